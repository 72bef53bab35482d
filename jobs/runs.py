"""The command `runs`."""

import json
import typing

import click

from jobs.command import Command

if typing.TYPE_CHECKING:
    from pipeline.run_listing import ListedRun


@click.command("runs", cls=Command)
@click.argument("output", metavar="OUTPUT")
@click.option("--json", "as_json", is_flag=True, help="Print all that is known, as JSON.")
def runs_command(output: str, as_json: bool):
    """Lists the runs in OUTPUT, newest first, and what to do about each.

    A run is published, superseded (by one with other thresholds), running, committing
    (built, and finished by the next score), unfinished (resumed or removed), begun (empty),
    or broken (its record or its state cannot be read). Nothing is written: OUTPUT may be read-only.
    """
    from pipeline.mirror import existing_output
    from pipeline.run_listing import list_runs

    with existing_output(output) as opened:
        runs = list_runs(opened)
    if as_json:
        click.echo(json.dumps([_values(run) for run in runs], indent=2))
        return
    width = max((len(run.run_id) for run in runs), default=0)
    for run in runs:
        click.echo(_line(run, width))
    if not runs:
        click.echo(f"No runs in {output}.")


def _line(run: "ListedRun", width: int) -> str:
    started = f"{run.started:%Y-%m-%d %H:%M} UTC" if run.started else "-"
    counts = ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in run.counts.items())
    if counts:
        counts += "." if run.state in ("published", "superseded") else " so far."
    told = " ".join(text for text in (counts, run.advice) if text)
    return f"{run.run_id:<{width}}  {run.state:<10}  {started:<20}  {told}"


def _values(run: "ListedRun") -> dict:
    holder = run.holder
    return {
        "run_id": run.run_id,
        "state": run.state,
        "started_at": run.started.isoformat(timespec="seconds") if run.started else None,
        "counts": run.counts,
        "settings": run.settings,
        "supersedes": run.supersedes,
        "holder": holder
        and {"host": holder.host, "process": holder.process, "age_s": round(holder.age_s, 1)},
        "advice": run.advice,
    }
