"""Services of the cluster tests: started, waited for, and ended with what they started."""

import importlib.util
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

# The scripts are no package: they are run by path, and so find one another.
sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))

import spark_cluster
import spark_test
from services import Service, ServiceError, free_ports, listens

_ROOT = Path(__file__).parents[1]

LISTENS = "import http.server as h; h.HTTPServer(('localhost', {port}), None).serve_forever()"


def _has_ended(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return True
    return state == "Z"


def test_service_is_ready_once_it_listens(tmp_path):
    (port,) = free_ports(1)
    assert not listens(port)
    service = Service([sys.executable, "-c", LISTENS.format(port=port)], tmp_path / "log")
    try:
        service.wait_until(lambda: listens(port), "The page")
        assert listens(port)
    finally:
        service.stop()
    assert not listens(port)


@pytest.mark.parametrize("end", [Service.stop, Service.kill], ids=["stop", "kill"])
def test_service_that_ends_takes_along_what_it_started(tmp_path, end):
    child = tmp_path / "child"
    service = Service(["bash", "-c", f"sleep 600 & echo $! > {child}; wait"], tmp_path / "log")
    service.wait_until(lambda: child.exists() and child.read_text().strip(), "The shell")
    process = int(child.read_text())
    assert not _has_ended(process)
    end(service)
    end_s = time.monotonic() + 10
    while not _has_ended(process) and time.monotonic() < end_s:
        time.sleep(0.05)
    assert _has_ended(process)


def test_service_that_ends_by_itself_is_named_with_its_log(tmp_path):
    service = Service(["bash", "-c", "echo no room; exit 3"], tmp_path / "log")
    with pytest.raises(ServiceError) as error:
        service.wait_until(lambda: False, "The shell")
    assert str(error.value) == f"The shell ended with exit code 3; see {tmp_path / 'log'}."
    assert (tmp_path / "log").read_text() == "no room\n"


@pytest.mark.parametrize(
    ("lacks", "expected"),
    [
        ("java", "needs java on PATH: install a JDK 17"),
        ("pyspark", "needs pyspark: pip install -c constraints.txt -e '.[spark]'"),
        ("jar", "needs Beam's job server for Spark: make spark-jar"),
        ("nothing", None),
    ],
)
def test_missing_names_what_spark_lacks_and_the_remedy(monkeypatch, tmp_path, lacks, expected):
    jar = tmp_path / "job-server.jar"
    if lacks != "jar":
        jar.touch()
    monkeypatch.setattr(spark_cluster, "JAR", jar)
    monkeypatch.setattr(shutil, "which", lambda name: None if lacks == "java" else name)
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if lacks == "pyspark" else name
    )
    assert spark_cluster.missing() == expected


def test_spark_is_of_one_version_wherever_it_is_named():
    pom = (_ROOT / "scripts/spark_job_server/pom.xml").read_text()
    (version,) = re.findall(r"<spark\.version>(.*)</spark\.version>", pom)
    assert f'"pyspark=={version}"' in (_ROOT / "setup.py").read_text()
    assert f"\npyspark=={version}\n" in (_ROOT / "constraints.txt").read_text()
    digests = (_ROOT / "scripts/spark_job_server/jars.sha256").read_text()
    assert f"  spark-core_2.12-{version}.jar\n" in digests
    assert f"Spark on the cluster | {version}," in (_ROOT / "docs/spark.md").read_text()


def test_cluster_makes_options_of_its_ports(tmp_path):
    cluster = spark_cluster.SparkCluster(tmp_path, workers=3, cores=2, memory="2g")
    args = cluster.beam_args(Path("/opt/job-server.jar"))
    assert args[:2] == ("--runner=SparkRunner", "--spark_job_server_jar=/opt/job-server.jar")
    assert re.fullmatch(r"--spark_master_url=spark://127\.0\.0\.1:\d+", args[2])
    assert "--environment_cache_millis=600000" in args
    assert "--job_server_jvm_properties=-Dspark.default.parallelism=24" in args
    assert "--job_server_jvm_properties=-Dspark.executor.memory=2g" in args


@pytest.mark.parametrize("is_left", [True, False], ids=["left", "gone"])
def test_comparison_tells_a_process_that_a_run_left_behind(monkeypatch, tmp_path, is_left):
    monkeypatch.setattr(spark_test, "check_alone", lambda output, whole, run_id: iter(()))
    comparison = object.__new__(spark_test.Comparison)
    comparison._work = tmp_path
    comparison.local = SimpleNamespace(published=None)
    found = SimpleNamespace(record={"runner": "SparkRunner"})
    run = subprocess.Popen(["sleep", "600"], start_new_session=True)
    if not is_left:
        run.kill()
        run.wait()
    try:
        harm = list(comparison._harm(found, "spark", SimpleNamespace(process=run.pid)))
    finally:
        run.kill()
        run.wait()
    left = "the job server, or another process of the run, is left behind"
    assert harm == ([left] if is_left else [])
