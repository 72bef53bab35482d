"""What a long manifest costs beside decoding and inference: time and memory, by stage.

Usage: python benchmarks/many_rows.py [--rows 100000 1000000] [--images FOLDER] [--folder DIR]
       [--output FILE.json]

The manifest names 300 PNGs of 16x16 again and again under other ids, and a stub stands
for the network: what is left is the program itself, `pipeline.run.score_manifest` from
the manifest to the published run. Each length is run twice, each time in a process of
its own: all rows anew, then again with --only-new, where all are skipped. Drawing is
switched off. It takes some milliseconds and about a kilobyte of disk a row.

With --images the files of that folder and the network of the demonstration bundle take
the places of the tiny images and the stub, and each length is run anew only: for the
memory that real work takes, with fewer rows.

A stage's peak memory is the kernel's high-water mark of the process, reset where the
stage begins (Linux).
"""

import argparse
import contextlib
import functools
import importlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from importlib import metadata
from pathlib import Path
from types import ModuleType

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from jobs.logs import load_tensorflow
from schemas.findings import ABNORMAL_INDICES, FINDINGS

_KINDS = ("decode", "all", "only_new", "real")

_FILES, _SIDE = 300, 16
_FLAGGED = 0.1
"""Share of the images that the stub gives one finding; the others none."""

_ROWS_AT_ONCE = 64 * 1024
_DECODED = 6000
"""Images decoded alone, a repeat; five repeats, and the median counts."""

STAGES = {
    "normalise the manifest": ("pipeline.manifest", "write_rows"),
    "check the ids": ("pipeline.manifest", "_check_rows"),
    "plan": ("pipeline.run", "plan_work"),
    "load the network": ("pipeline.run", "load_scorer"),
    "score": ("pipeline.run", "score_archive"),
    "freeze the ledger": ("pipeline.commit", "freeze_ledger"),
    "draw (off)": ("pipeline.commit", "_draw"),
    "compact": ("pipeline.commit", "_compact"),
    "reconcile": ("pipeline.commit", "_reconcile"),
    "rank": ("pipeline.commit", "_rank"),
    "report": ("pipeline.commit", "_report"),
    "publish": ("pipeline.commit", "publish_run"),
}
"""Which function's call begins a stage: where it is looked up, and its name."""

ID_CHECKS = ("check the ids", "plan", "freeze the ledger", "reconcile")
"""Stages that may take memory in proportion to the rows, and spill to disk beyond a bound."""


def main() -> None:
    """Measures, prints a table a run, and writes JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--rows", type=int, nargs="+", default=[100_000, 1_000_000], help="manifest rows, each"
    )
    parser.add_argument("--images", type=Path, help="real images, for the real network")
    parser.add_argument("--folder", type=Path, help="where to work (the temporary folder)")
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    parser.add_argument("--measure", choices=_KINDS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(_measure(arguments.folder, arguments.measure)))
        return
    result = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "software": {
            name: metadata.version(name)
            for name in ("prescreen", "tensorflow", "apache-beam", "duckdb", "pyarrow")
        },
        "runs": {},
    }
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        if arguments.images:
            uris, kinds = sorted(map(str, arguments.images.absolute().glob("*.png"))), ("real",)
        else:
            uris, kinds = _write_images(Path(folder) / "images"), ("all", "only_new")
            result["decode"] = _in_a_process(Path(folder), "decode")
        for count in arguments.rows:
            with tempfile.TemporaryDirectory(dir=folder) as archive:
                _write_manifest(Path(archive) / "manifest.parquet", uris, count)
                for kind in kinds:
                    run = _in_a_process(Path(archive), kind)
                    result["runs"][f"{count} {kind}"] = run
                    _print_run(count, kind, run, result.get("decode"))
    for kind in kinds:
        _print_peaks(result["runs"], arguments.rows, kind)
    if arguments.output:
        arguments.output.write_text(json.dumps(result, indent=2) + "\n")


def _write_images(folder: Path) -> list[str]:
    folder.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (_FILES, _SIDE, _SIDE), np.uint8)
    for number, pixels in enumerate(noise):
        Image.fromarray(pixels).save(folder / f"{number:03d}.png")
    return sorted(map(str, folder.iterdir()))


def _write_manifest(path: Path, uris: list[str], count: int) -> None:
    schema = pa.schema([("image_id", pa.string()), ("uri", pa.string())])
    with pq.ParquetWriter(path, schema) as writer:
        for start in range(0, count, _ROWS_AT_ONCE):
            numbers = range(start, min(start + _ROWS_AT_ONCE, count))
            ids = [f"{number:08d}_000.png" for number in numbers]
            files = [uris[number % len(uris)] for number in numbers]
            writer.write_table(pa.table([ids, files], schema))


def _in_a_process(folder: Path, kind: str) -> dict:
    command = [sys.executable, __file__, "--folder", str(folder), "--measure", kind]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def _measure(folder: Path, kind: str) -> dict:
    load_tensorflow()
    if kind == "decode":
        return _decode_alone(folder / "images")
    return _run(folder, kind)


class Stub:
    """Stands for the network: scores without looking, and knows what that takes."""

    def __init__(self):
        self.clock = Clock()
        self._images = 0
        random = np.random.default_rng(0)
        self._found = random.random(_ROWS_AT_ONCE) < _FLAGGED
        self._finding = random.choice(ABNORMAL_INDICES, _ROWS_AT_ONCE)
        # Above any threshold, and far enough apart for a rank.
        self._score = random.uniform(0.995, 1, _ROWS_AT_ONCE).astype(np.float32)
        self._cams = np.broadcast_to(np.float32(0.5), (1024, len(FINDINGS), 7, 7))

    def score(self, images: np.ndarray):
        """Returns `model.scorer.Scores` of a batch, about a tenth of it with a finding."""
        from model.scorer import Scores

        with self.clock.running():
            count = len(images)
            places = np.arange(self._images, self._images + count) % _ROWS_AT_ONCE
            self._images += count
            scores = np.zeros((count, len(FINDINGS)), np.float32)
            scores[np.arange(count), self._finding[places]] = np.where(
                self._found[places], self._score[places], 0
            )
            return Scores(scores, self._cams[:count], np.ones(count, np.int8))


class Clock:
    """Adds up seconds: those that pass, and those that this thread has a processor."""

    def __init__(self):
        self.wall_s = self.cpu_s = 0.0

    @contextlib.contextmanager
    def running(self):
        """Counts until left."""
        wall, cpu = time.perf_counter(), time.thread_time()
        yield
        self.wall_s += time.perf_counter() - wall
        self.cpu_s += time.thread_time() - cpu


class Stages:
    """Seconds, processor seconds of all threads, and peak memory of each stage of a run.

    A stage lasts until the next begins: to close its tables is part of an id check.
    """

    def __init__(self):
        self._facts: dict[str, dict[str, float]] = {}
        self._begin("start")

    def begin_at(self, module: ModuleType, function: str, stage: str) -> None:
        """Makes a stage begin whenever a module's function is called."""
        original = getattr(module, function)

        @functools.wraps(original)
        def watched(*args, **options):
            self._end()
            self._begin(stage)
            return original(*args, **options)

        setattr(module, function, watched)

    def close(self) -> dict[str, dict[str, float]]:
        """Ends the last stage and returns all of them, in the order they began."""
        self._end()
        return self._facts

    def _begin(self, stage: str) -> None:
        self._stage = stage
        self._wall, self._cpu = time.perf_counter(), time.process_time()
        # Resets the high-water mark to what is in use now.
        Path("/proc/self/clear_refs").write_text("5")

    def _end(self) -> None:
        self._facts[self._stage] = {
            "wall_s": time.perf_counter() - self._wall,
            "cpu_s": time.process_time() - self._cpu,
            "peak_mb": _memory_mb("VmHWM"),
            "end_mb": _memory_mb("VmRSS"),
        }


def _memory_mb(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{name}:"))


def _run(folder: Path, kind: str) -> dict:
    from model.bundle import demo_bundle_path
    from pipeline import run, scoring

    stages, stub = Stages(), Stub()
    if kind != "real":
        scoring.load_scorer = run.load_scorer = lambda settings: stub
    for stage, (module, function) in STAGES.items():
        stages.begin_at(importlib.import_module(module), function, stage)
    options = run.ScoreOptions(
        manifest=str(folder / "manifest.parquet"),
        output=str(folder / "out"),
        bundle=demo_bundle_path(),
        run_id=kind,
        only_new=kind == "only_new",
        gradcam_limit=0,
        batch_size=32,
        decode_threads=os.cpu_count() or 1,
    )
    record = run.score_manifest(options, lambda event, **facts: None)
    return {
        "counts": record["counts"],
        "stages": stages.close(),
        "stub": {"wall_s": stub.clock.wall_s, "cpu_s": stub.clock.cpu_s},
        "threads_left": threading.active_count() - 1,
    }


def _decode_alone(folder: Path) -> dict:
    """Returns seconds an image that reading, decoding and resizing take, in one thread."""
    from pipeline.images import load_image
    from pipeline.manifest import ManifestRow

    rows = [ManifestRow(path.name, str(path), ()) for path in sorted(folder.iterdir())]
    wall_s, cpu_s = [], []
    for _ in range(5):
        clock = Clock()
        with clock.running():
            for number in range(_DECODED):
                load_image(rows[number % len(rows)])
        wall_s.append(clock.wall_s / _DECODED)
        cpu_s.append(clock.cpu_s / _DECODED)
    return {"wall_s": statistics.median(wall_s), "cpu_s": statistics.median(cpu_s)}


def _print_run(count: int, kind: str, run: dict, decode: dict | None) -> None:
    """Prints seconds and peak by stage, and microseconds an image.

    Args:
      count: Rows.
      kind: Of the run.
      run: What `_run` returned.
      decode: What `_decode_alone` returned; None where the network was real.
    """
    name = f"{count} rows{', --only-new' if kind == 'only_new' else ''}"
    print(f"{name:<26}{'s':>9}{'us/image':>10}{'cpu us':>9}{'peak MB':>9}{'then MB':>9}")
    for stage, facts in run["stages"].items():
        print(
            f"{stage:<26}{facts['wall_s']:9.1f}{facts['wall_s'] / count * 1e6:10.1f}"
            f"{facts['cpu_s'] / count * 1e6:9.1f}{facts['peak_mb']:9.0f}{facts['end_mb']:9.0f}"
        )
    total = {
        clock: sum(facts[clock] for facts in run["stages"].values()) / count * 1e6
        for clock in ("wall_s", "cpu_s")
    }
    print(
        f"{'all':<26}{total['wall_s'] * count / 1e6:9.1f}{total['wall_s']:10.1f}"
        f"{total['cpu_s']:9.1f}{max(facts['peak_mb'] for facts in run['stages'].values()):9.0f}"
    )
    scored = run["counts"]["scored"]
    if scored and decode:
        alone = {clock: decode[clock] * 1e6 for clock in total}
        stub = {clock: run["stub"][clock] / scored * 1e6 for clock in total}
        rest = {clock: total[clock] - alone[clock] - stub[clock] for clock in total}
        for label, spent in (("decode alone", alone), ("stub", stub), ("all but these", rest)):
            print(f"{label:<35}{spent['wall_s']:10.1f}{spent['cpu_s']:9.1f}")
    print(f"{run['counts']}, threads left: {run['threads_left']}\n", flush=True)


def _print_peaks(runs: dict, counts: list[int], kind: str) -> None:
    """Prints how the peaks of the shortest and the longest manifest compare."""
    low, high = min(counts), max(counts)
    few, many = (runs[f"{count} {kind}"]["stages"] for count in (low, high))
    for label, names in (
        ("outside the id checks", [name for name in many if name not in ID_CHECKS]),
        ("in the id checks", [name for name in many if name in ID_CHECKS]),
    ):
        peaks = [max(stages[name]["peak_mb"] for name in names) for stages in (few, many)]
        print(
            f"peak memory {label:<22} {kind:<9} {low:>8} rows {peaks[0]:6.0f} MB,"
            f" {high:>8} rows {peaks[1]:6.0f} MB, ratio {peaks[1] / peaks[0]:.3f}"
        )


if __name__ == "__main__":
    main()
