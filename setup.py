"""Packaging of prescreen; see README.md."""

from setuptools import setup

setup(
    name="prescreen",
    version="0.1.0",
    description="Batch scoring of chest X-ray archives. Research prototype, not for diagnosis.",
    license="MIT",
    python_requires=">=3.11,<3.14",
    packages=["schemas", "model", "pipeline", "jobs"],
    package_data={
        "model": ["demo_bundle/*"],
        "pipeline": ["templates/*", "urgency.toml"],
        "jobs": ["templates/*"],
    },
    # Ranges that were tested; constraints.txt holds the exact set.
    install_requires=[
        "ai-edge-litert>=2.3,<2.4",
        "apache-beam[gcp]>=2.77,<2.78",
        "click>=8.1,<9",
        "duckdb>=2.0,<3",
        "google-cloud-storage>=3.0,<4",
        "h5py>=3.11,<4",
        "jinja2>=3.1.6,<4",
        "keras>=3.15,<4",
        "matplotlib>=3.9,<4",
        "numpy>=2.1,<3",
        "pandas>=2.2,<4",
        "pillow>=12,<13",
        "pyarrow>=20,<26",
        "scikit-learn>=1.5,<2",
        "scipy>=1.14,<2",
        "tensorflow>=2.20,<2.22",
        "threadpoolctl>=3.5,<4",
        "tqdm>=4.66,<5",
    ],
    extras_require={
        # Same package, other wheels: never beside tensorflow-cpu, which overwrites it.
        "gpu": ["tensorflow[and-cuda]>=2.20,<2.22"],
        # The version of Spark that the job server of `make spark-jar` holds; see docs/spark.md.
        "spark": ["pyspark==3.5.0"],
        # Brings FastAPI and uvicorn, which `prescreen web` names as well.
        "web": ["gradio>=6.31,<7"],
        # Licences: MIT, BSD-3-Clause; see README.md.
        "dicom": ["highdicom>=0.28,<0.29", "imagecodecs>=2026.3,<2027", "pydicom>=3.0.1,<4"],
        "dev": [
            "gcp-storage-emulator>=2026.7,<2027",
            "hypothesis>=6.100,<7",
            "pytest>=8.3,<10",
            "pytest-timeout>=2.3,<3",
            "pytest-xdist>=3.6,<4",
            "ruff>=0.17,<0.18",
        ],
    },
    entry_points={"console_scripts": ["prescreen = jobs.cli:cli"]},
)
