"""A run whose workers are other processes, reached over the network as on a cluster.

Beam's own job service and worker pool stand for those of Spark and Flink.
"""

import sys
from pathlib import Path

import pytest

from model.bundle import demo_bundle_path
from pipeline.run import score_manifest
from pipeline.score_options import ScoreOptions

# The scripts are no package: they are run by path, and so find one another.
sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))

from nothing_lost_checks import differences, read_published
from services import free_ports, start_beam_module


@pytest.fixture
def beam_args(tmp_path):
    """Options that lead to a job service and a worker pool that run."""
    job_port, pool_port = free_ports(2)
    job_service = start_beam_module(
        "apache_beam.runners.portability.local_job_service_main",
        f"--port={job_port}",
        port=job_port,
        log=tmp_path / "job_service.log",
    )
    try:
        pool = start_beam_module(
            "apache_beam.runners.worker.worker_pool_main",
            f"--service_port={pool_port}",
            port=pool_port,
            log=tmp_path / "pool.log",
        )
        try:
            yield (
                "--runner=PortableRunner",
                f"--job_endpoint=localhost:{job_port}",
                "--environment_type=EXTERNAL",
                f"--environment_config=localhost:{pool_port}",
            )
        finally:
            pool.stop()
    finally:
        job_service.stop()


@pytest.mark.timeout(300)
def test_portable_run_publishes_what_a_local_run_does(tmp_path, phantoms, beam_args):
    manifest = tmp_path / "manifest.csv"
    lines = (phantoms / "manifest.csv").read_text().splitlines()
    rows = [line.replace("images/", f"{phantoms}/images/") for line in lines[1:]]
    bad = [f"missing,{phantoms}/images/none.png,,,", f"text,{phantoms}/boxes.csv,,,"]
    manifest.write_text("\n".join([lines[0], *rows, *bad]) + "\n")
    found = {}
    for name, args in (("portable", beam_args), ("local", ())):
        score_manifest(
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
        found[name] = read_published(tmp_path / name, "night")
    local = found["local"]
    assert list(differences(local, found["portable"])) == []
    assert found["portable"].record["runner"] == "PortableRunner"
    assert local.record["runner"] == "FnApiRunner"
    assert len(local.tables["scores"]) == 12
    assert {row["image_id"]: row["reason"] for row in local.tables["rejects"]} == {
        "missing": "not_found",
        "text": "not_an_image",
    }
