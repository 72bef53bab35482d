"""A run whose workers are other processes, reached over the network as on a cluster.

Beam's own job service and worker pool stand for those of Spark and Flink.
"""

import contextlib
import json
import os
import socket
import subprocess
import sys
import time

import pyarrow.parquet as pq
import pytest

from model.bundle import demo_bundle_path
from pipeline.run import ScoreOptions, score_manifest
from tests.fakes import read_rows

_PATIENCE_S = 60.0


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def _service(module: str, *options: str, port: int, log):
    """Runs a module of Beam that listens on a port, in a process of its own."""
    # Its workers are called by the name `python`.
    path = os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]])
    process = subprocess.Popen(
        [sys.executable, "-m", module, *options],
        env={**os.environ, "PATH": path},
        stdout=log,
        stderr=log,
        start_new_session=True,
    )
    try:
        _wait_for(port, process)
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, 9)
        process.wait()


def _wait_for(port: int, process: subprocess.Popen) -> None:
    for _ in range(int(_PATIENCE_S / 0.1)):
        assert process.poll() is None, "the service has ended"
        with contextlib.suppress(OSError), socket.create_connection(("localhost", port), 1.0):
            return
        time.sleep(0.1)
    raise AssertionError(f"nothing listens on port {port}")


@pytest.fixture
def beam_args(tmp_path):
    """Options that lead to a job service and a worker pool that run."""
    job_port, pool_port = _free_port(), _free_port()
    with (
        open(tmp_path / "services.log", "wb") as log,
        _service(
            "apache_beam.runners.portability.local_job_service_main",
            f"--port={job_port}",
            port=job_port,
            log=log,
        ),
        _service(
            "apache_beam.runners.worker.worker_pool_main",
            f"--service_port={pool_port}",
            port=pool_port,
            log=log,
        ),
    ):
        yield (
            "--runner=PortableRunner",
            f"--job_endpoint=localhost:{job_port}",
            "--environment_type=EXTERNAL",
            f"--environment_config=localhost:{pool_port}",
        )


@pytest.mark.timeout(300)
def test_portable_run_publishes_what_a_local_run_does(tmp_path, phantoms, beam_args):
    manifest = tmp_path / "manifest.csv"
    lines = (phantoms / "manifest.csv").read_text().splitlines()
    rows = [line.replace("images/", f"{phantoms}/images/") for line in lines[1:]]
    bad = [f"missing,{phantoms}/images/none.png,,,", f"text,{phantoms}/boxes.csv,,,"]
    manifest.write_text("\n".join([lines[0], *rows, *bad]) + "\n")
    found = {}
    for name, args in (("portable", beam_args), ("local", ())):
        record = score_manifest(
            ScoreOptions(
                manifest=str(manifest),
                output=str(tmp_path / name),
                bundle=demo_bundle_path(),
                run_id="night",
                reject_limit=1.0,
                batch_size=5,
                beam_args=args,
            ),
            lambda event, **facts: None,
        )
        found[name] = _published(tmp_path / name, record)
    assert found["portable"]["runner"] == "PortableRunner"
    assert found["local"].pop("runner") == "FnApiRunner"
    del found["portable"]["runner"]
    local = found["local"].pop("scores")
    assert len(local) == 12
    assert found["portable"].pop("scores") == {
        image_id: {name: _nearly(value) for name, value in row.items()}
        for image_id, row in local.items()
    }
    assert found["portable"] == found["local"]
    assert found["local"]["rejects"] == {"missing": "not_found", "text": "not_an_image"}


def _nearly(value):
    return pytest.approx(value, abs=1e-5) if isinstance(value, float) else value


def _published(output, record) -> dict:
    """Returns what a run published, in a form in which runs compare."""
    assert json.loads((output / "runs" / "night.json").read_text()) == record
    tables = {
        table: read_rows(sorted((output / table / "run_id=night").glob("*.parquet")))
        for table in ("scores", "rejects")
    }
    scores = {
        row["image_id"]: {
            name: value for name, value in row.items() if name not in ("scored_at", "cams")
        }
        for row in tables["scores"]
    }
    worklist = pq.read_table(output / "worklist" / "run_id=night.parquet")
    return {
        "runner": record["runner"],
        "counts": record["counts"],
        "scores": scores,
        "rejects": {row["image_id"]: row["reason"] for row in tables["rejects"]},
        "worklist": worklist["image_id"].to_pylist(),
        "overlays": sorted(path.name for path in (output / "gradcam").rglob("*.jpg")),
    }
