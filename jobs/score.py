"""The command `score`: the main job."""

import functools

import click

from jobs.command import Command
from jobs.logs import load_tensorflow
from jobs.score_options import check_score_options, make_score_options, score_options


@click.command("score", cls=Command, context_settings={"show_default": True})
@score_options
@click.pass_context
def score_command(context: click.Context, log_json: bool, quiet: bool, **options):
    """Scores the images of a manifest and publishes Parquet and overlays.

    What follows -- goes to Beam as pipeline options. On this machine Beam's
    FnApiRunner runs, also where --runner=DirectRunner asks for Beam's default.
    """
    check_score_options(options["retry_rejects"], options["retry_reasons"])
    load_tensorflow(as_json=log_json)
    from jobs.progress import shown
    from jobs.summary import next_step, summarise
    from pipeline.run import HandedOver, score_manifest

    made = make_score_options(**options)
    with shown(context, log_json=log_json, quiet=quiet) as display:
        prepare_worker = functools.partial(load_tensorflow, as_json=log_json)
        ended = score_manifest(made, display, prepare_worker)
    if not quiet:
        say = next_step if isinstance(ended, HandedOver) else summarise
        click.echo(say(ended, made.output))
