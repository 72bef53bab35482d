"""Runs on a Spark cluster of this machine, with and without the death of a worker."""

import sys
from pathlib import Path

import pytest

# The scripts are no package: they are run by path, and so find one another.
sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))

from spark_cluster import SparkCluster, missing
from spark_test import Comparison, write_manifest

LACK = missing()

pytestmark = [
    pytest.mark.spark,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(LACK is not None, reason=f"{LACK}; see docs/spark.md"),
]


@pytest.fixture(scope="module")
def comparison(tmp_path_factory, phantoms) -> Comparison:
    """Twelve phantoms and ten files that cannot be scored, scored on this machine."""
    work = tmp_path_factory.mktemp("spark")
    return Comparison(write_manifest(phantoms / "images", work), work)


@pytest.fixture
def cluster(tmp_path) -> SparkCluster:
    """A cluster whose workers are all alive."""
    with SparkCluster(tmp_path) as cluster:
        yield cluster


def test_spark_run_publishes_what_a_local_run_does(comparison, cluster):
    outcome = comparison.on_cluster("spark", cluster)
    assert outcome.harm == ()
    assert cluster.living_workers == 2
    assert {row["image_id"].rpartition("/")[2] for row in outcome.published.tables["rejects"]} == {
        *("bmp.png", "cut.png", "empty.png", "folder.png", "gif.png", "header.png"),
        *("missing.png", "text.png", "tiff.png", "zeros.png"),
    }
    assert len(outcome.published.tables["scores"]) == 12


def test_spark_run_whose_worker_is_killed_publishes_the_same(comparison, cluster):
    outcome = comparison.on_cluster("killed", cluster, kill=True)
    assert outcome.killed_after_rows > 0
    assert outcome.harm == ()
    assert cluster.living_workers < 2
