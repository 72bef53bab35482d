"""Rates of decoding, inference and the whole job on one set of images, side by side.

Usage: python benchmarks/end_to_end.py FOLDER [--repeats 5] [--output FILE.json]

FOLDER holds PNG or JPEG files, 200 or more for steady numbers. Each repeat measures
every stage once, in turn, so that a slow minute of the machine hits all of them.
The median of the repeats counts. Memory is measured in processes of their own.
"""

import argparse
import csv
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path

from jobs.logs import load_tensorflow

_BATCH = 32


def main() -> None:
    """Measures, prints a table, and writes JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="images to decode and score")
    parser.add_argument("--repeats", type=int, default=5, help="interleaved repeats (5)")
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    parser.add_argument("--peak-memory", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    images = sorted(p for p in arguments.folder.iterdir() if p.suffix in (".png", ".jpg"))
    if arguments.peak_memory:
        print(_peak_memory_mb(images, arguments.peak_memory))
        return
    result = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "software": {
            name: metadata.version(name) for name in ("prescreen", "tensorflow", "apache-beam")
        },
        "images": len(images),
        "repeats": arguments.repeats,
        **_rates(images, arguments.repeats),
        "peak_memory_mb": {
            count: _peak_memory_of_a_process(arguments.folder, count) for count in (200, 2000)
        },
    }
    _print(result)
    if arguments.output:
        arguments.output.write_text(json.dumps(result, indent=2) + "\n")


def _write_manifest(path: Path, images: list[Path], count: int) -> None:
    """Lists `count` images, the files again under other ids where there are fewer."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["image_id", "uri"])
        for number in range(count):
            rows.writerow([f"image-{number}", images[number % len(images)].resolve()])


def _rates(images: list[Path], repeats: int) -> dict:
    import numpy as np

    from model.bundle import demo_bundle_path, load_network
    from model.folding import fold_batch_norms
    from model.scorer import Scorer, freeze
    from pipeline.images import load_image
    from pipeline.manifest import ManifestRow
    from pipeline.read_ahead import ReadAhead

    network = load_network(demo_bundle_path())
    scorer = Scorer(network)
    folded = fold_batch_norms(network)
    plain = freeze(lambda squares: [folded(squares, training=False)])
    rows = [ManifestRow(str(number), str(path), ()) for number, path in enumerate(images)]
    pixels = np.stack([load_image(row).pixels for row in rows])
    batches = [pixels[start : start + _BATCH] for start in range(0, len(pixels), _BATCH)]

    def decode():
        ahead = ReadAhead(load_image, threads=os.cpu_count() or 1, depth=2 * _BATCH)
        for row in rows:
            list(ahead.put(row))
        list(ahead.drain())
        ahead.close()

    def infer():
        for batch in batches:
            scorer.score(batch)

    def infer_without_cams():
        import tensorflow as tf

        for batch in batches:
            [output.numpy() for output in plain(tf.constant(batch))]

    stages = {
        "decode": decode,
        "inference": infer,
        "inference without maps": infer_without_cams,
        "end to end": lambda: _score(images, len(images)),
    }
    for measured in stages.values():
        measured()  # warm up
    seconds = {name: [] for name in stages}
    for _ in range(repeats):
        for name, measured in stages.items():
            start = time.perf_counter()
            spent = measured()
            # The job times its own stages, start-up apart.
            seconds[name].append(spent or time.perf_counter() - start)
    rate = {name: len(images) / statistics.median(spent) for name, spent in seconds.items()}
    serial = 1 / (1 / rate["decode"] + 1 / rate["inference"])
    return {
        "images_per_second": rate,
        "spread": {name: [min(spent), max(spent)] for name, spent in seconds.items()},
        "1/(1/decode + 1/inference)": serial,
        "end to end over that": rate["end to end"] / serial,
        "cost of the maps": rate["inference without maps"] / rate["inference"] - 1,
    }


def _score(images: list[Path], count: int) -> float:
    """Runs the whole job and returns the seconds from the first row to the last."""
    from contextlib import nullcontext

    from model.bundle import demo_bundle_path
    from pipeline.run import ScoreOptions, score_manifest

    with tempfile.TemporaryDirectory() as folder:
        manifest = Path(folder) / "manifest.csv"
        _write_manifest(manifest, images, count)
        options = ScoreOptions(
            manifest=str(manifest),
            output=str(Path(folder) / "out"),
            bundle=demo_bundle_path(),
            gradcam_limit=0,
            decode_threads=os.cpu_count() or 1,
        )
        record = score_manifest(options, lambda total, runner: nullcontext())
    return record["timings_s"]["score"]


def _peak_memory_mb(images: list[Path], count: int) -> float:
    _score(images, count)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _peak_memory_of_a_process(folder: Path, count: int) -> float:
    command = [sys.executable, __file__, str(folder), "--peak-memory", str(count)]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return float(printed.split()[-1])


def _print(result: dict) -> None:
    for name, rate in result["images_per_second"].items():
        low, high = (result["images"] / spent for spent in reversed(result["spread"][name]))
        print(f"{name:<24} {rate:7.1f} images/s  ({low:.1f} to {high:.1f})")
    print(f"{'both, one after another':<24} {result['1/(1/decode + 1/inference)']:7.1f} images/s")
    print(f"end to end over that     {result['end to end over that']:7.2f}")
    print(f"cost of the maps         {result['cost of the maps']:7.1%} of inference")
    for count, peak in result["peak_memory_mb"].items():
        print(f"peak memory, {count:>4} images {peak:8.0f} MB")


if __name__ == "__main__":
    load_tensorflow()
    main()
