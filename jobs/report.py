"""The command `report`."""

import click

from jobs.command import Command


@click.command("report", cls=Command)
@click.argument("run", metavar="RUN")
@click.option(
    "--output",
    metavar="FILE",
    show_default="OUTPUT/report/run_id=ID.html, if the run published none",
    help="Where to write it.",
)
@click.option(
    "--against",
    metavar="RUN",
    show_default="the newest before it with the same settings of scoring",
    help="Earlier run of the same model to compare with, another OUTPUT's as well.",
)
def report_command(run: str, output: str | None, against: str | None):
    """Writes the report of a published run as one HTML file.

    RUN is its record, OUTPUT/runs/ID.json. The file needs no network and no other file.
    Of drift it tells what changed since the earlier run beyond what is normal there.
    """
    from pipeline.reporting import report_run

    made = report_run(run, output, against)
    click.echo(made)
