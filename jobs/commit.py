"""The command `commit`."""

import click

from jobs.command import Command
from jobs.logs import load_tensorflow
from jobs.options import log_json_option, quiet_option


@click.command("commit", cls=Command)
@click.argument("output", metavar="OUTPUT")
@click.argument("run_id", metavar="RUN-ID")
@log_json_option
@quiet_option
@click.pass_context
def commit_command(context: click.Context, output: str, run_id: str, log_json: bool, quiet: bool):
    """Publishes a run that a job has scored which was not waited for.

    For a job from a template, and after --no_wait_until_finish. The run's options are those
    that it was begun with. Images are drawn on this machine. Where some are not scored, it
    says how many, and publishes nothing.
    """
    load_tensorflow(as_json=log_json)
    from jobs.progress import shown
    from jobs.summary import summarise
    from pipeline.run import commit_scored

    with shown(context, log_json=log_json, quiet=quiet) as display:
        record = commit_scored(output, run_id, display)
    if not quiet:
        click.echo(summarise(record, output))
