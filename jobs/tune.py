"""The command `tune`: thresholds for a wanted recall."""

import json
import typing
from collections.abc import Mapping
from pathlib import Path

import click

from jobs.command import Command
from jobs.scores import local_scores
from schemas.errors import InputError
from schemas.findings import FINDINGS, NO_FINDING

if typing.TYPE_CHECKING:
    import numpy as np

    from model.bundle import BundleInfo
    from model.thresholds import Thresholds


@click.command("tune", cls=Command, context_settings={"show_default": True})
@click.option(
    "--scores",
    required=True,
    metavar="FILE|DIR|RUN",
    help="Scores of the validation part: CSV or Parquet, a folder of it, or runs/ID.json.",
)
@click.option(
    "--labels", required=True, metavar="FILE", help="Labels with patients: a manifest or NIH CSV."
)
@click.option("--output", required=True, metavar="FILE", help="Thresholds to write, as JSON.")
@click.option(
    "--target-recall",
    type=click.FloatRange(0, 1, min_open=True),
    default=0.8,
    metavar="SHARE",
    help="Share of the positive images of each finding to flag.",
)
@click.option(
    "--policy",
    type=click.Choice(["point", "conservative"]),
    default="point",
    help="What must reach the target: the recall of these images, or the lower end of its"
    " 95% interval over patients.",
)
@click.option(
    "--tta",
    type=click.Choice(["none", "borderline", "all"]),
    default="none",
    help="Test-time augmentation that the scores were made with.",
)
@click.option(
    "--score-prefix",
    default="score_",
    metavar="TEXT",
    help="What stands before the finding in the names of score columns.",
)
@click.option(
    "--bootstrap",
    "samples",
    type=click.IntRange(100),
    default=1000,
    metavar="N",
    help="Bootstrap samples of patients.",
)
@click.option("--seed", type=click.IntRange(0), default=0, metavar="N", help="Of the bootstrap.")
@click.option(
    "--bundle", metavar="BUNDLE", show_default="none", help="Bundle to copy; needs --into."
)
@click.option(
    "--into",
    metavar="NEW",
    show_default="none",
    help="New folder for a copy of --bundle with these thresholds.",
)
def tune_command(
    scores: str,
    labels: str,
    output: str,
    target_recall: float,
    policy: str,
    tta: str,
    score_prefix: str,
    samples: int,
    seed: int,
    bundle: str | None,
    into: str | None,
):
    """Chooses for each finding the highest threshold that reaches a wanted recall.

    Tune on validation data: never on images that the network was trained on, and
    never on those you report on, whose recall would then flatter. A finding with
    too few positive patients gets the lowest score of any of them, and a note.
    """
    _check_destinations(output, bundle, into)
    import numpy as np

    from model.bundle import load_bundle_info
    from model.score_table import read_labelled_scores
    from model.thresholds import threshold_vector, thresholds_to_json
    from model.tuning import fewest_positives, tune_thresholds
    from pipeline.layout import write_atomically

    info = load_bundle_info(bundle) if bundle else None
    with local_scores(scores) as here:
        images = read_labelled_scores(here, labels, score_prefix=score_prefix)
    values = _all_classes(images.scores, images.findings)
    thresholds = tune_thresholds(
        values,
        _all_classes(images.labels, images.findings),
        target_recall,
        policy=policy,
        patients=images.patients,
        samples=samples,
        seed=seed,
    )
    tuned_on = {
        "target_recall": target_recall,
        "policy": policy,
        "images": len(images),
        "patients": len(np.unique(images.patients)),
        "bootstrap": samples,
        "seed": seed,
        "flag_rate": float((values >= threshold_vector(thresholds)).any(axis=1).mean()),
    }
    document = {"tta": tta, **tuned_on, "findings": thresholds_to_json(thresholds)}
    write_atomically(Path(output), json.dumps(document, indent=2).encode() + b"\n")
    _show(document, fewest_positives(target_recall, policy))
    click.echo(f"Thresholds: {output}")
    if info:
        _store(info, bundle, into, tta, thresholds, tuned_on)


def _check_destinations(output: str, bundle: str | None, into: str | None) -> None:
    """Raises what would fail at the end, before anything is read."""
    if (bundle is None) != (into is None):
        given = "--into" if bundle is None else "--bundle"
        raise InputError(f"--bundle and --into must be given together. Received: {given} alone.")
    if into and Path(into).exists():
        raise InputError(
            f"--into must be a folder that does not exist. Received: {into}. Name another."
        )
    if Path(output).is_dir() or not Path(output).absolute().parent.is_dir():
        raise InputError(
            f"--output must be a file in a folder that exists. Received: {output}."
            " Make the folder, or name a file."
        )


def _all_classes(values: "np.ndarray", findings: tuple[str, ...]) -> "np.ndarray":
    """Returns `(images, 15)` of `(images, findings)`, with 0 where No Finding is absent."""
    if NO_FINDING in findings:
        return values
    import numpy as np

    return np.insert(values, FINDINGS.index(NO_FINDING), 0, axis=1)


def _store(
    info: "BundleInfo", bundle: str, into: str, tta: str, thresholds: "Thresholds", tuned_on: dict
) -> None:
    """Writes the copy of the bundle, and says what it lost."""
    from model.bundle import copy_bundle
    from model.tuning import with_thresholds

    tuned = with_thresholds(info, tta, thresholds, tuned_on["flag_rate"], tuned_on)
    copy_bundle(bundle, into, tuned)
    click.echo(f"Bundle:     {into}")
    if set(info.thresholds) - set(tuned.thresholds):
        click.echo(
            "The copy has no thresholds for --tta borderline: other images are borderline now."
            " Tune that mode again."
        )


def _show(values: Mapping, fewest: int) -> None:
    """Prints what was chosen, a line a finding, and each fallback in words."""
    click.echo(
        f"Tuned on {values['images']:,} images of {values['patients']:,} patients: recall"
        f" {values['target_recall']}, policy {values['policy']}, --tta {values['tta']}.\n"
    )
    click.echo(
        f"{'finding':<20} {'threshold':>9} {'recall':>7} {'95% interval':>15} {'precision':>9}"
        f" {'positives':>9}"
    )
    for name, value in values["findings"].items():
        interval = f"{value['recall_low']:.3f} to {value['recall_high']:.3f}"
        mark = " *" if value["rule"] == "fallback_few_positives" else ""
        click.echo(
            f"{name:<20} {value['threshold']:>9.5f} {value['recall']:>7.3f} {interval:>15}"
            f" {value['precision']:>9.3f} {value['positives']:>9,}{mark}"
        )
    click.echo()
    for name, value in values["findings"].items():
        if value["rule"] == "fallback_few_positives":
            click.echo(
                f"* {name}: fewer than {fewest} patients have it, too few to aim with; flags all"
                " positive images known."
            )
    click.echo(f"Flagged: {values['flag_rate']:.1%} of these images.")
