"""The command `evaluate`: metrics, intervals and plots of scores against labels."""

import click

from jobs.command import Command
from jobs.scores import local_scores


@click.command("evaluate", cls=Command, context_settings={"show_default": True})
@click.option(
    "--scores",
    required=True,
    metavar="FILE|DIR|RUN",
    help="CSV or Parquet with a column of images and one a finding, a folder of Parquet, or"
    " OUTPUT/runs/ID.json.",
)
@click.option(
    "--labels",
    metavar="FILE",
    show_default="those that the run carried",
    help="Manifest with labels, or the NIH CSV.",
)
@click.option("--output", required=True, metavar="DIR", help="Folder for metrics and plots.")
@click.option(
    "--score-prefix",
    default="score_",
    metavar="TEXT",
    help="What stands before the finding in a column of scores.",
)
@click.option(
    "--split",
    type=click.Choice(["all", "official"]),
    default="all",
    help="Which images: all that have a score, or those of --test-list.",
)
@click.option(
    "--test-list",
    metavar="FILE",
    show_default="none",
    help="The NIH's list of test images, a file name a line; for --split official.",
)
@click.option(
    "--bootstrap",
    "samples",
    type=click.IntRange(1),
    default=1000,
    metavar="N",
    help="Bootstrap samples of patients behind each interval.",
)
@click.option("--seed", type=click.IntRange(0), default=0, metavar="N", help="Of the bootstrap.")
@click.option(
    "--thresholds",
    metavar="FILE",
    show_default="the run's",
    help="Thresholds as JSON; without them and without a run no recall and precision.",
)
@click.option(
    "--compare",
    metavar="SCORES",
    show_default="none",
    help="Other scores of the same images, with the same prefix, to compare with.",
)
def evaluate_command(
    scores: str,
    labels: str | None,
    output: str,
    score_prefix: str,
    split: str,
    test_list: str | None,
    samples: int,
    seed: int,
    thresholds: str | None,
    compare: str | None,
):
    """Measures scores against labels: per finding, per subgroup, with intervals.

    Writes metrics.json, metrics.md and plots. Intervals are by bootstrap over
    patients. Every image with a score must have a label in the file of --labels; without
    one, images that carried none are left out and counted.
    """
    from model.evaluation import evaluate
    from model.label_table import read_labels
    from model.score_files import read_own_labels, run_calibration
    from model.score_table import read_labelled_scores

    with local_scores(scores) as here, local_scores(compare) as other:
        known = read_labels(labels) if labels else read_own_labels(here)
        options = {"score_prefix": score_prefix, "split": split, "official_test_list": test_list}
        options["only_labelled"] = not labels
        table = read_labelled_scores(here, known, **options)
        baseline = read_labelled_scores(other, known, **options) if other else None
        chosen = _choose_thresholds(thresholds, here)
        calibration = run_calibration(here)
    folder = _make_folder(output)
    click.echo(
        f"Measuring {len(table):,} images with {samples:,} bootstrap samples of patients.",
        err=True,
    )
    metrics = evaluate(
        table,
        thresholds=chosen,
        samples=samples,
        seed=seed,
        baseline=baseline,
        probabilities=calibration.apply(table.scores) if calibration else None,
    )
    source = {"scores": scores, "labels": labels, "split": split, "compare": compare}
    _write(folder, metrics | {"source": source}, table, known, chosen)
    click.echo(_summarise(metrics, output))


def _choose_thresholds(path: str | None, scores: str):
    """Returns those of a file, else those the run used, else None."""
    import json

    from model.score_files import run_thresholds
    from model.thresholds import thresholds_from_json
    from schemas.errors import InputError

    if path is None:
        return run_thresholds(scores)
    try:
        with open(path, encoding="utf-8") as file:
            findings = json.load(file)["findings"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            "--thresholds must be a JSON file with the key 'findings', as tune writes it."
            f" Received: {path} ({type(error).__name__})."
        ) from error
    return thresholds_from_json(findings, path)


def _make_folder(output: str):
    from pathlib import Path

    from schemas.errors import InputError

    folder = Path(output)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"--output must be a folder that can be written. Received: {output}: {error.strerror}."
        ) from error
    return folder


def _write(folder, metrics: dict, table, known, thresholds) -> None:
    """Writes metrics.json last: where it is new, all the rest is."""
    import json

    from model.evaluation import label_matrix
    from model.evaluation_report import write_report
    from model.label_table import count_labels
    from model.plots import write_plots

    counts = {
        "evaluated": count_labels(label_matrix(table)),
        "all labels": count_labels(known.labels),
    }
    plots = write_plots(table, metrics, counts, folder, thresholds=thresholds)
    (folder / "metrics.md").write_text(write_report(metrics, plots), encoding="utf-8")
    text = json.dumps(metrics, indent=2, allow_nan=False) + "\n"
    (folder / "metrics.json").write_text(text, encoding="utf-8")


def _summarise(metrics: dict, output: str) -> str:
    from model.evaluation_report import format_range

    lines = [
        f"{metrics['images']:,} images of {metrics['patients']:,} patients,"
        f" {metrics['unscored']:,} labelled images without a score,"
        f" {metrics['unlabelled']:,} scored images without a label.",
        f"Mean AUC over the 14 findings  {format_range(metrics, 'mean_auc')}",
        f"Any of the 14 findings, AUC    {format_range(metrics['abnormality'], 'auc')}",
    ]
    lines += [
        f"  {name:<20} {values['positives']:>7,}  {format_range(values, 'auc')}"
        for name, values in metrics["findings"].items()
    ]
    if "flag_rate" in metrics:
        lines.append(
            f"Flagged: {metrics['flag_rate']:.1%} of the images,"
            f" {metrics['flags_per_image']:.2f} flags an image."
        )
    if "comparison" in metrics:
        difference = format_range(metrics["comparison"], "mean_auc_difference", 4)
        lines.append(f"Mean AUC above that of --compare: {difference}.")
    lines.append(f"In {output}: metrics.json, metrics.md and plots. Not for diagnosis.")
    return "\n".join(lines)
