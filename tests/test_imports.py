"""Packages import one way, and a command loads nothing heavy before it runs."""

import functools
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

_ROOT = Path(__file__).parents[1]
_PACKAGES = ("schemas", "model", "pipeline", "jobs")
"""In order: each may import those before it."""

_HEAVY = ("tensorflow", "keras", "apache_beam", "pandas", "pyarrow", "duckdb", "matplotlib")


@functools.cache
def _loaded_by(statement: str) -> set[str]:
    """Returns the top-level modules that are loaded after `statement`, in a new process."""
    code = f"import sys\n{statement}\nprint(*{{name.partition('.')[0] for name in sys.modules}})"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=_ROOT
    )
    return set(result.stdout.split())


def _modules_of(package: str) -> str:
    names = {path.stem for path in (_ROOT / package).glob("[!_]*.py")}
    if not importlib.util.find_spec("gradio"):
        names -= {"web_page"}  # of an extra
    return ", ".join(f"{package}.{name}" for name in sorted(names))


@pytest.mark.parametrize("package", _PACKAGES)
def test_package_imports_only_those_before_it(package):
    later = set(_PACKAGES[_PACKAGES.index(package) + 1 :])
    assert not _loaded_by(f"import {_modules_of(package)}") & later


def test_schemas_load_neither_tensorflow_nor_beam():
    loaded = _loaded_by(f"import {_modules_of('schemas')}")
    assert not loaded & {"tensorflow", "keras", "apache_beam"}


def test_model_loads_no_beam():
    assert "apache_beam" not in _loaded_by(f"import {_modules_of('model')}")


@pytest.mark.parametrize(
    "module", ["decoding", "preprocessing", "overlays", "phantoms", "sample_archive", "bundle"]
)
def test_model_without_a_network_loads_no_tensorflow(module):
    assert not _loaded_by(f"import model.{module}") & {"tensorflow", "keras"}


def test_cli_loads_nothing_heavy():
    assert not _loaded_by("import jobs.cli") & set(_HEAVY)
