"""Scores on a Spark cluster what one machine scores, and compares: `make spark-test`.

Usage: python scripts/spark_test.py [FOLDER] [--images 100] [--work DIR]

FOLDER holds X-rays; without one, phantoms are drawn. Ten files that no network can score are
added. Then the same manifest is scored three times: on this machine; on a Spark master and two
workers that `spark_cluster.py` starts; and there again, while a worker and its executor are
killed by SIGKILL once the first rows are staged. What is published must be the same, scores
within 1e-5. Prints versions and a Markdown table, and exits with 1 if anything differs.
"""

import argparse
import contextlib
import io
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from nothing_lost_archive import Archive
from nothing_lost_checks import Published, check_alone, read_published, staged_rows
from nothing_lost_process import Attempt, run_command
from PIL import Image
from spark_cluster import SparkCluster, exit_on_signals, missing

_LOOK_EVERY_S = 0.05


@dataclass(frozen=True)
class Outcome:
    """What came of one run.

    Attributes:
      name: Of the run.
      published: What it published.
      total_s: From its start to its end.
      killed_after_rows: Rows that were staged when a worker was killed; None where none was.
      harm: What is not as it must be; empty is good.
    """

    name: str
    published: Published
    total_s: float
    killed_after_rows: int | None = None
    harm: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Returns the line of the table."""
        record = self.published.record
        counts, timings = record["counts"], record["timings_s"]
        killed = "-" if self.killed_after_rows is None else f"at {self.killed_after_rows} rows"
        return (
            f"| {self.name} | {record['runner']} | {counts['scored']} | {counts['rejected']}"
            f" | {counts['duplicates_dropped']} | {killed} | {timings['score']:.0f} s"
            f" | {self.total_s:.0f} s | {'NO' if self.harm else 'yes'} |"
        )


HEADER = (
    "| run | runner | scored | rejected | repeated | worker killed | scoring | all"
    " | as on one machine |\n" + "|---" * 9 + "|"
)


class RunFailedError(Exception):
    """A run that had to succeed did not."""


def write_manifest(images: Path, work: Path) -> Path:
    """Lists the images of a folder and ten bad files, which it writes; returns the manifest."""
    bad = work / "bad"
    write_bad_files(bad, next(path for path in sorted(images.rglob("*")) if path.is_file()))
    manifest = work / "manifest.csv"
    code, printed = run_command("manifest", str(images), str(bad), "--output", str(manifest))
    if code:
        raise RunFailedError(printed)
    with open(manifest, "a", encoding="utf-8") as file:
        file.writelines(f"{bad}/{name},{bad}/{name}\n" for name in ("missing.png", "folder.png"))
    return manifest


def write_bad_files(folder: Path, image: Path) -> None:
    """Writes eight files and a folder that are no images; `missing.png` is the tenth."""
    data = image.read_bytes()
    (folder / "folder.png").mkdir(parents=True)
    contents = {"empty": b"", "text": b"no picture", "zeros": bytes(4096), "cut": data[:-999]}
    contents["header"] = data[:40]
    for kind in ("gif", "bmp", "tiff"):
        buffer = io.BytesIO()
        Image.new("L", (64, 64)).save(buffer, kind)
        contents[kind] = buffer.getvalue()
    for name, content in contents.items():
        (folder / f"{name}.png").write_bytes(content)


class Comparison:
    """One manifest, scored in several ways."""

    def __init__(self, manifest: Path, work: Path):
        """Scores the manifest on this machine, which is what the others are compared with."""
        self._manifest = manifest
        self._work = work
        self.local = self._outcome("local", self._start("local"))

    def on_cluster(self, name: str, cluster: SparkCluster, *, kill: bool = False) -> Outcome:
        """Scores the manifest on a cluster; kills its first worker on the way, where told to."""
        attempt = self._start(name, "--", *cluster.beam_args())
        rows = None
        try:
            if kill:
                rows = self._kill_worker(cluster, attempt, self._work / name)
            return self._outcome(name, attempt, rows)
        finally:
            attempt.kill()

    def _start(self, name: str, *beam_args: str) -> Attempt:
        return Attempt(
            [
                *("--manifest", str(self._manifest), "--output", str(self._work / name)),
                *("--run-id", name, "--reject-limit", "1", *beam_args),
            ]
        )

    def _kill_worker(self, cluster: SparkCluster, attempt: Attempt, output: Path) -> int:
        while attempt.ended_s is None and not attempt.find("scored"):
            if rows := staged_rows(output):
                cluster.kill_worker(0)
                return rows
            time.sleep(_LOOK_EVERY_S)
        raise RunFailedError(f"Scoring ended before a worker was killed.\n{attempt.message}")

    def _outcome(
        self, name: str, attempt: Attempt, killed_after_rows: int | None = None
    ) -> Outcome:
        if attempt.end():
            raise RunFailedError(f"Run {name} failed: {attempt.message}")
        found = read_published(self._work / name, name)
        harm = tuple(self._harm(found, name, attempt)) if name != "local" else ()
        total_s = attempt.ended_s - attempt.began_s
        return Outcome(name, found, total_s, killed_after_rows, harm)

    def _harm(self, found: Published, name: str, attempt: Attempt) -> Iterator[str]:
        yield from check_alone(self._work / name, self.local.published, name)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(attempt.process, 0)
            yield "the job server, or another process of the run, is left behind"
        if (runner := found.record["runner"]) != "SparkRunner":
            yield f"the record names {runner}, not SparkRunner"


def versions() -> str:
    """Returns the versions of what takes part."""
    java = subprocess.run(["java", "-version"], capture_output=True, text=True, check=True)
    python = ".".join(map(str, sys.version_info[:3]))
    return (
        f"Spark {version('pyspark')}, {java.stderr.splitlines()[0]}, Python {python},"
        f" Beam {version('apache-beam')} with the job server of `make spark-jar`"
    )


def compare(arguments: argparse.Namespace, work: Path) -> list[Outcome]:
    """Runs all three, prints each as it ends, and returns them."""
    if arguments.folder is None:
        archive = Archive(work / "phantoms", images=arguments.images, seed=1)
        arguments.folder = archive.folder / "images"
    manifest = write_manifest(arguments.folder.absolute(), work)
    print(HEADER, flush=True)
    comparison = Comparison(manifest, work)
    outcomes = [comparison.local]
    print(outcomes[-1], flush=True)
    (work / "cluster").mkdir()
    with SparkCluster(work / "cluster") as cluster:
        for name, kill in (("spark", False), ("spark-killed", True)):
            outcomes.append(comparison.on_cluster(name, cluster, kill=kill))
            print(outcomes[-1], flush=True)
    return outcomes


def main() -> int:
    """Does what the command line asks for; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", help="X-rays (phantoms)")
    parser.add_argument("--images", type=int, default=100, help="phantoms (100)")
    parser.add_argument("--work", type=Path, metavar="DIR", help="new or empty (a new one)")
    arguments = parser.parse_args()
    if lack := missing():
        print(f"This {lack}.", file=sys.stderr)
        return 2
    work = arguments.work or Path(tempfile.mkdtemp(prefix="prescreen-spark-"))
    work.mkdir(parents=True, exist_ok=True)
    print(f"{versions()}. All is kept in {work}.\n", flush=True)
    try:
        with exit_on_signals():
            outcomes = compare(arguments, work.absolute())
    except RunFailedError as error:
        print(error, file=sys.stderr)
        return 1
    harmed = [outcome for outcome in outcomes if outcome.harm]
    for outcome in harmed:
        print(f"\n{outcome.name}:", *outcome.harm[:20], sep="\n  ")
    print("\n" + (f"{len(harmed)} differ." if harmed else "Nothing lost, nothing doubled."))
    return 1 if harmed else 0


if __name__ == "__main__":
    sys.exit(main())
