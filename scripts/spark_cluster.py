"""A Spark cluster on this machine: a master, workers, and a pool of Beam's workers.

Usage: python scripts/spark_cluster.py [--workers 2] [--cores 1] [--memory 1g] [--folder DIR]

Prints what to give to `prescreen score` and runs until Ctrl-C or SIGTERM, which end all of it.
Needs Java 17, and Spark as `pip install 'prescreen[spark]'` brings it. The cluster listens on
127.0.0.1 alone, but for the pool of Beam's workers, which listens on every address and runs
what it is told: so not on a machine that others reach.
"""

import argparse
import contextlib
import importlib.util
import json
import shutil
import signal
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

from services import Service, ServiceError, free_ports, listens, start_beam_module

JAR = Path(__file__).parents[1] / "build" / "spark" / "beam-spark-job-server.jar"
"""Where `make spark-jar` puts Beam's job server."""

_HOST = "127.0.0.1"
_POOL = "apache_beam.runners.worker.worker_pool_main"
_KEEP_WORKERS_MS = 600_000
"""Without it, Beam ends its worker after each task, and the next one loads the network anew."""

_TASKS_A_CORE = 4
"""What a dead executor had begun is scored again: a task each core."""


def missing() -> str | None:
    """Returns what a Spark cluster lacks on this machine, and the remedy; None for nothing."""
    if shutil.which("java") is None:
        return "needs java on PATH: install a JDK 17"
    if importlib.util.find_spec("pyspark") is None:
        return "needs pyspark: pip install -c constraints.txt -e '.[spark]'"
    if not JAR.exists():
        return "needs Beam's job server for Spark: make spark-jar"
    return None


class SparkCluster:
    """A master, workers, and the pool of Beam's workers that all of them use.

    A context manager: all runs within it, and nothing after it.
    """

    def __init__(self, folder: Path, *, workers: int = 2, cores: int = 1, memory: str = "1g"):
        """Plans a cluster.

        Args:
          folder: Logs, and what Spark keeps on disk.
          workers: Spark workers; each has an executor a job.
          cores: Of each worker; so many bundles are scored at once in one process of Beam.
          memory: Of each executor, in Spark's notation, without Beam's worker beside it.
        """
        self._folder = folder
        self._cores = cores
        self._memory = memory
        self._tasks = workers * cores * _TASKS_A_CORE
        port, self._master_page, self._pool_port, *self._ports = free_ports(3 + 2 * workers)
        self._master_url = f"spark://{_HOST}:{port}"
        self._services = contextlib.ExitStack()
        self._workers: list[Service] = []

    def __enter__(self) -> "SparkCluster":
        """Starts all, and waits until the workers are known to the master.

        Raises:
          ServiceError: Something does not start; all is ended then.
        """
        with contextlib.ExitStack() as services:
            master = self._start_spark("master", *self._master_options())
            services.callback(master.stop)
            master.wait_until(lambda: listens(self._master_page), "Spark's master")
            for number in range(len(self._ports) // 2):
                worker = self._start_spark(f"worker-{number}", *self._worker_options(number))
                services.callback(worker.stop)
                self._workers.append(worker)
            pool = start_beam_module(
                _POOL,
                f"--service_port={self._pool_port}",
                port=self._pool_port,
                log=self._folder / "pool.log",
            )
            services.callback(pool.stop)
            for number, worker in enumerate(self._workers, start=1):
                worker.wait_until(
                    lambda number=number: self.living_workers >= number, "Spark's worker"
                )
            self._services = services.pop_all()
        return self

    def __exit__(self, *_) -> None:
        self._services.close()

    @property
    def living_workers(self) -> int:
        """Workers that the master holds to be alive."""
        with urllib.request.urlopen(
            f"http://{_HOST}:{self._master_page}/json/", timeout=10
        ) as page:
            return json.load(page)["aliveworkers"]

    def kill_worker(self, number: int) -> None:
        """Kills a worker and its executor by SIGKILL; Beam's own worker is left to itself."""
        self._workers[number].kill()

    def beam_args(self, jar: Path = JAR) -> tuple[str, ...]:
        """Returns what leads `prescreen score` to this cluster, for after its `--`."""
        return (
            "--runner=SparkRunner",
            f"--spark_job_server_jar={jar}",
            f"--spark_master_url={self._master_url}",
            "--environment_type=EXTERNAL",
            f"--environment_config=localhost:{self._pool_port}",
            f"--environment_cache_millis={_KEEP_WORKERS_MS}",
            *(
                f"--job_server_jvm_properties=-D{name}={value}"
                for name, value in {
                    "spark.driver.host": _HOST,
                    "spark.driver.bindAddress": _HOST,
                    "spark.default.parallelism": self._tasks,
                    "spark.executor.memory": self._memory,
                    "spark.local.dir": self._folder / "local",
                }.items()
            ),
        )

    def _master_options(self) -> list[str]:
        port = self._master_url.rpartition(":")[2]
        return [
            "org.apache.spark.deploy.master.Master",
            *("--host", _HOST, "--port", port, "--webui-port", str(self._master_page)),
        ]

    def _worker_options(self, number: int) -> list[str]:
        port, page = self._ports[2 * number : 2 * number + 2]
        return [
            "org.apache.spark.deploy.worker.Worker",
            *("--host", _HOST, "--port", str(port), "--webui-port", str(page)),
            *("--cores", str(self._cores), "--memory", self._memory),
            *("--work-dir", str(self._folder / f"worker-{number}")),
            self._master_url,
        ]

    def _start_spark(self, name: str, *options: str) -> Service:
        home = Path(importlib.util.find_spec("pyspark").origin).parent
        # `spark-class` adds what Java 17 wants, here and for executors.
        return Service(
            [str(home / "bin" / "spark-class"), *options],
            self._folder / f"{name}.log",
            {
                "SPARK_HOME": str(home),
                "SPARK_LOCAL_IP": _HOST,
                "SPARK_LOCAL_DIRS": str(self._folder / "local"),
                # Else a cluster that runs already gets this one's settings.
                "SPARK_CONF_DIR": str(self._folder),
                "SPARK_DAEMON_MEMORY": "512m",
            },
        )


@contextlib.contextmanager
def exit_on_signals():
    """Makes Ctrl-C and SIGTERM end the program alike, so that nothing it started stays."""

    def leave(*_):
        raise KeyboardInterrupt

    # SIGINT too: a shell makes what it runs in the background deaf to it.
    before = {number: signal.signal(number, leave) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def main() -> int:
    """Runs a cluster until it is told to stop; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, default=2, help="Spark workers (2)")
    parser.add_argument("--cores", type=int, default=1, help="of each worker (1)")
    parser.add_argument("--memory", default="1g", help="of each worker's executor (1g)")
    parser.add_argument("--folder", type=Path, help="logs and Spark's files (a new one)")
    arguments = parser.parse_args()
    if lack := missing():
        print(f"This {lack}.", file=sys.stderr)
        return 2
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="prescreen-spark-"))
    folder.mkdir(parents=True, exist_ok=True)
    cluster = SparkCluster(
        folder.absolute(),
        workers=arguments.workers,
        cores=arguments.cores,
        memory=arguments.memory,
    )
    try:
        with exit_on_signals(), contextlib.suppress(KeyboardInterrupt), cluster:
            print(f"Runs; logs in {folder}. Ctrl-C ends it. In another terminal:\n")
            print("prescreen score --manifest FILE --output DIR -- \\")
            print(" \\\n".join(f"    {option}" for option in cluster.beam_args()), flush=True)
            while True:
                time.sleep(3600)
    except ServiceError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
