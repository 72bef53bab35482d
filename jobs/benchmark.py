"""The command `benchmark`: what this machine can do, stage by stage, and beside peers."""

import dataclasses
import json
import os
import platform
import shlex
import sys
import tempfile
import typing
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

import click

from jobs.command import Command
from jobs.logs import load_tensorflow
from jobs.options import (
    batch_size_option,
    decode_threads_option,
    model_option,
    precision_option,
)
from schemas.errors import InputError

if typing.TYPE_CHECKING:
    from pipeline.workbench import BenchmarkOptions

_SOFTWARE = ("prescreen", "tensorflow", "keras", "apache-beam", "pyarrow", "numpy", "pillow")


@click.command("benchmark", cls=Command, context_settings={"show_default": True})
@click.option(
    "--manifest",
    required=True,
    metavar="FILE",
    help="Images to measure with: the first of it, again and again where there are too few.",
)
@model_option
@click.option(
    "--images", type=click.IntRange(1), default=1000, metavar="N", help="How many images."
)
@click.option(
    "--repeats",
    type=click.IntRange(1),
    default=5,
    metavar="N",
    help="Times that every stage is measured, all in turn.",
)
@batch_size_option
@precision_option
@decode_threads_option
@click.option(
    "--peer",
    "peers",
    multiple=True,
    metavar="COMMAND",
    help="Another program to time on the same images, such as"
    " 'python benchmarks/peers/tf_data.py'; repeatable.",
)
@click.option(
    "--price-per-hour",
    type=click.FloatRange(0),
    metavar="PRICE",
    show_default="none",
    help="Of this machine, in any currency: tells what a million images cost.",
)
@click.option("--output", metavar="FILE", show_default="none", help="Write all numbers as JSON.")
def benchmark_command(
    bundle: str | None,
    peers: tuple[str, ...],
    price_per_hour: float | None,
    output: str | None,
    **options,
):
    """Measures rates of decoding, inference, overlays and the whole job.

    Every stage is measured in turn, several times; medians are shown, with the slowest
    and fastest repeat.
    """
    # A peer gets what its user would have, without what makes this job's TensorFlow quick.
    environment = dict(os.environ)
    load_tensorflow()
    from model.bundle import demo_bundle_path
    from pipeline.workbench import BenchmarkOptions

    settings = BenchmarkOptions(bundle=bundle or demo_bundle_path(), **options)
    result = _measure(settings, peers, environment)
    _print(result, price_per_hour)
    if output:
        Path(output).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def _measure(
    options: "BenchmarkOptions", commands: tuple[str, ...], environment: Mapping[str, str]
) -> dict:
    """Returns all that is measured, and where and how, as JSON values."""
    from model.devices import resolve_precision
    from pipeline.benchmark import PUBLISHED, measure_in_turn, rates_of, ratios_of
    from pipeline.peers import Peer, PeerJob
    from pipeline.workbench import Workbench

    peers = [Peer(command) for command in commands]
    if len({peer.name for peer in peers}) < len(peers):
        names = ", ".join(peer.name for peer in peers)
        raise InputError(f"--peer must name each program once. Received: {names}.")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        bench = Workbench(options, folder)
        job = PeerJob(
            manifest=bench.manifest,
            images=bench.images,
            bundle=options.bundle,
            batch_size=bench.batch_size,
            folder=folder,
            environment=environment,
        )
        stages = [*bench.stages(), *(peer.stage(job) for peer in peers)]
        calls = len(stages) * (options.repeats + 1)
        with click.progressbar(length=calls, label="measuring", file=sys.stderr) as progress:
            measured = measure_in_turn(stages, options.repeats, lambda name: progress.update(1))
        for peer in peers:
            peer.facts["largest_score_difference"] = peer.largest_difference(bench.scores)
    published = measured[PUBLISHED].rate
    return {
        "command": shlex.join(["prescreen", *sys.argv[1:]]),
        "machine": _machine(),
        "software": {name: metadata.version(name) for name in _SOFTWARE},
        "settings": {
            "images": bench.images,
            "repeats": options.repeats,
            "batch_size": bench.batch_size,
            "decode_threads": options.decode_threads,
            "precision": resolve_precision(options.precision),
        },
        "stages": {name: stage.to_json() for name, stage in measured.items()},
        "ratios": ratios_of(measured, bench.borderline_share),
        "peers": {
            peer.name: {
                **peer.facts,
                "prescreen_is_faster_by": published / measured[peer.name].rate,
            }
            for peer in peers
        },
        "rates": dataclasses.asdict(rates_of(measured)),
    }


def _machine() -> dict:
    """Returns what the rates depend on."""
    from model.devices import gpu_names

    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_gb": round(memory / 1e9, 1),
        "gpus": gpu_names(),
        "system": platform.platform(),
        "python": platform.python_version(),
    }


def _processor() -> str:
    """Returns the processor's own name, where Linux tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _print(result: dict, price_per_hour: float | None) -> None:
    from pipeline.benchmark import START
    from pipeline.cost_model import COST_UNIT, Rates, estimate

    machine, settings = result["machine"], result["settings"]
    click.echo(
        f"{', '.join([machine['processor'], *machine['gpus']])}, {machine['cores']} cores;"
        f" {settings['images']} images,"
        f" {settings['repeats']} repeats, batches of {settings['batch_size']},"
        f" {settings['decode_threads']} decode threads, {settings['precision']}\n"
    )
    for name, stage in result["stages"].items():
        if name == START:
            continue
        cpu = stage.get("cpu_ms_per_image")
        click.echo(
            f"{name:<24} {stage['images_per_second']:8.1f} images/s"
            f"  ({stage['slowest']:.1f} to {stage['fastest']:.1f})"
            + (f"  {cpu:6.1f} ms CPU an image" if cpu is not None else "")
        )
    click.echo()
    for name, ratio in result["ratios"].items():
        click.echo(f"{name:<40} {ratio:8.3f}")
    for name, peer in result["peers"].items():
        click.echo(
            f"end to end, published, over {name:<12} {peer['prescreen_is_faster_by']:8.2f}"
            f"  (scores differ by {peer['largest_score_difference']:.0e} at most)"
        )
    rates = Rates(**result["rates"])
    archive = estimate(rates, COST_UNIT, 0, price_per_hour=price_per_hour)
    click.echo(
        f"\nA million such images take {archive.hours:.1f} h on this machine"
        + ("." if archive.cost is None else f" and cost {archive.cost:.2f}.")
        + f" Its bottleneck is {rates.bottleneck}."
    )
