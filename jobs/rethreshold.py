"""The command `rethreshold`."""

import functools
import os

import click

from jobs.command import Command
from jobs.logs import load_tensorflow
from jobs.options import log_json_option, quiet_option
from jobs.score_options import ReviewBudget


@click.command("rethreshold", cls=Command)
@click.argument("run", metavar="RUN")
@click.option("--thresholds", required=True, metavar="FILE", help="The new thresholds as JSON.")
@click.option("--run-id", metavar="ID", show_default="start in UTC", help="Names the new run.")
@click.option(
    "--model",
    "bundle",
    metavar="BUNDLE",
    show_default="where RUN's record says",
    help="The bundle that scored RUN, for maps of newly flagged findings.",
)
@click.option(
    "--review-budget",
    type=ReviewBudget(),
    metavar="FRACTION|N",
    show_default="that of RUN",
    help="Images in the worklist, as a share of the manifest or a number.",
)
@click.option("--no-report", is_flag=True, help="Make no report of the run, and compare with none.")
@log_json_option
@quiet_option
@click.pass_context
def rethreshold_command(context: click.Context, log_json: bool, quiet: bool, **options):
    """Publishes the scores of a run under other thresholds, as a new run that supersedes it.

    RUN is its record, OUTPUT/runs/ID.json; the new run goes to the same OUTPUT. Nothing is
    scored again. Only maps of findings that are flagged now and were not are computed, from
    the images, by the same model. Ended early, the same command goes on.
    """
    from jobs.progress import shown
    from pipeline.rethreshold import RethresholdOptions, rethreshold_run

    given = RethresholdOptions(decode_threads=os.cpu_count() or 1, **options)
    with shown(context, log_json=log_json, quiet=quiet) as display:
        prepare = functools.partial(load_tensorflow, as_json=log_json)
        record = rethreshold_run(given, display, prepare)
    if not quiet:
        click.echo(_summary(record, options["run"].rpartition("/")[0].rpartition("/")[0] or "."))


def _summary(record: dict, output: str) -> str:
    """Returns a few lines on a re-thresholded run, for a person."""
    counts, timings, run = record["counts"], record["timings_s"], record["run_id"]
    lines = [
        f"Run {run} supersedes {record['supersedes']}: {counts['scored']} images scored then,"
        f" {counts['rejected']} rejected, {counts['skipped']} skipped.",
        f"  Flagged: {counts['flagged']} images, {counts['newly_flagged']} of them newly;"
        f" {counts['no_longer_flagged']} no longer; {counts['listed']} on the worklist.",
        f"  Findings: {counts['flags_added']} flagged newly, {counts['flags_removed']} no longer.",
        f"  Maps: {counts['maps_kept']} kept, {counts['maps_computed']} computed,"
        f" {counts['maps_missing']} missing{_reasons(counts['maps_missing_by_reason'])}.",
        f"  Overlays: {counts['overlays_kept']} kept, {counts['overlays_drawn']} drawn"
        f"{_outdated(counts)}, {sum(counts['not_drawn'].values())} not"
        f"{_reasons(counts['not_drawn'])} (attention, not localisation).",
        f"  Time: {sum(timings.values()):.1f} s.",
        f"  Scores:   {output}/scores/run_id={run}",
        f"  Worklist: {output}/worklist/run_id={run}.csv",
        f"  Overlays: {output}/gradcam/run_id={run}",
        *([f"  Report:   {output}/report/run_id={run}.html"] if "report" in timings else []),
        f"  Record:   {output}/runs/{run}.json",
        f"Model {record['model_id']}: {record['model_title']}. {record['model_statement']}",
    ]
    return "\n".join(lines)


def _reasons(reasons: dict[str, int]) -> str:
    told = ", ".join(f"{name} {count}" for name, count in reasons.items())
    return f" ({told})" if told else ""


def _outdated(counts: dict) -> str:
    count = counts["overlays_outdated"]
    return f", {count} kept that name the threshold of then" if count else ""
