"""The command `import-seed`: a bundle from the files of the seed system."""

import os
import shlex
from collections.abc import Iterator
from pathlib import Path

import click

from jobs.command import Command
from jobs.logs import load_tensorflow
from schemas.errors import InputError


@click.command("import-seed", cls=Command)
@click.option(
    "--weights",
    required=True,
    metavar="H5",
    help="best_model_final.h5: weights or a whole model, as Keras 2 writes HDF5.",
)
@click.option(
    "--thresholds",
    required=True,
    metavar="PKL",
    help="optimal_thresholds.pkl: a threshold by finding.",
)
@click.option(
    "--labels", required=True, metavar="PKL", help="label_encoder.pkl: an output index by finding."
)
@click.option(
    "--graph",
    required=True,
    type=click.Choice(["evaluated", "demo"]),
    help="Whose scores to give: the graph that the notebook evaluated, or that of demo.py.",
)
@click.option(
    "--output", required=True, metavar="BUNDLE", help="Folder of the new bundle; must not exist."
)
def import_seed_command(weights: str, thresholds: str, labels: str, graph: str, output: str):
    """Makes a bundle of the seed's weights, thresholds and labels.

    Grey levels are scaled twice, as the seed does: its weights know nothing else.
    Nothing in the files is executed; a pickle of more than plain data is refused.
    """
    _check_new(Path(output))
    load_tensorflow()
    from model.bundle import save_bundle
    from model.seed_import import SeedFiles, import_seed

    network, info = import_seed(SeedFiles(weights, thresholds, labels), graph)
    info = save_bundle(network, info, output)
    click.echo(f"Bundle {info.model_id} in {output}: {info.title}.\n{info.statement}")
    for line in _to_know(info):
        click.echo(line)
    mode = next(iter(info.thresholds))
    click.echo(
        "Next: prescreen score --manifest FILE --output DIR"
        f" --model {shlex.quote(output)} --tta {mode}"
    )


def _check_new(output: Path) -> None:
    """Raises InputError unless a folder can be made there, before minutes are spent on it."""
    if os.path.lexists(output):
        raise InputError(
            f"--output must be a folder that does not exist yet. Received: {output}."
            " Name another one."
        )
    above = next(folder for folder in output.absolute().parents if folder.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise InputError(
            f"--output must be in a folder that can be written. Received: {output}."
            " Name another one."
        )


def _to_know(info) -> Iterator[str]:
    """Yields what of the import changes how scores and flags are to be read."""
    provenance = info.provenance
    yield (
        f"Thresholds: those of the pickle, for --tta {' and '.join(info.thresholds)};"
        " No Finding's is left out. Tune others with prescreen tune."
    )
    levels = "; ".join(
        f"{precision} {', '.join(map(str, counts))}"
        for precision, counts in provenance["grey_levels_left"].items()
    )
    yield (
        f"Of 256 grey levels the network can tell apart, in red, green and blue: {levels}."
        " The seed was trained in mixed_float16, which is --precision auto on a GPU."
    )
    with_rescaling = provenance["written_with_rescaling_1"]
    if with_rescaling is not None and with_rescaling != (provenance["graph"] == "evaluated"):
        yield (
            f"The weights were written by a graph {'with' if with_rescaling else 'without'}"
            f" rescaling_1, and the graph {provenance['graph']} is"
            f" {'without' if with_rescaling else 'with'} it: its scores are others than those"
            " of the graph that wrote them."
        )
