"""Fixtures that several test modules share."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_CPU_ALLOCATOR_USE_BFC", "true")  # as the package model does

_REAL_DATA = Path(__file__).parents[2] / "shared" / "data"
"""Real X-rays, beside the checkout where there are any; see CONTRIBUTING.md."""


def _real(name: str) -> Path:
    path = _REAL_DATA / name
    if not path.exists():
        pytest.skip(f"needs real data: no shared/data/{name} beside the checkout")
    return path


@pytest.fixture(scope="session")
def nih_images() -> list[Path]:
    """200 frontal chest X-rays as the NIH ships them."""
    return sorted(_real("nih_images").glob("*.png"))


@pytest.fixture(scope="session")
def nih_labels() -> Path:
    """The NIH labels of all 112,120 images."""
    return _real("Data_Entry_2017_v2020.csv.gz")


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory) -> Path:
    """A sample archive of 12 small phantoms, with its manifest."""
    from model.sample_archive import write_sample_archive

    folder = tmp_path_factory.mktemp("phantoms") / "archive"
    write_sample_archive(folder, count=12, seed=7, size=128, manifest=folder / "manifest.csv")
    return folder


@pytest.fixture(scope="session")
def demo_network():
    """The network of the demonstration bundle; tests must not change it."""
    from model.bundle import demo_bundle_path, load_network

    return load_network(demo_bundle_path())


@pytest.fixture(scope="session")
def demo_scorer(demo_network):
    """The demonstration network, frozen, one view an image."""
    from model.scorer import Scorer

    return Scorer(demo_network)


@pytest.fixture
def one_scorer(monkeypatch, demo_scorer):
    """Spares a benchmark the making of a scorer for each thing that it measures."""
    from pipeline import run, scoring, workbench

    monkeypatch.setattr(workbench, "_scorers", lambda *_: [("none", demo_scorer)])
    monkeypatch.setattr(workbench, "_without_maps", lambda _: demo_scorer.score)
    for module in (run, scoring):
        monkeypatch.setattr(module, "load_scorer", lambda _: demo_scorer)


@pytest.fixture(scope="session")
def squares():
    """uint8 `(40, 224, 224)`: network inputs made from phantoms."""
    import numpy as np

    from model.phantoms import draw_phantom

    return np.stack([draw_phantom(21, index, size=224).pixels for index in range(40)])


@pytest.fixture
def store(tmp_path):
    """A Google Cloud Storage with an empty bucket, and the faults that it is asked for."""
    from tests.gcs import storage

    with storage(tmp_path) as faulty:
        yield faulty
