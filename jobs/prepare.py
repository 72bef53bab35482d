"""The command `prepare`: decodes labelled images once, for training."""

import click

from jobs.command import Command
from jobs.options import decode_threads_option


@click.command("prepare", cls=Command, context_settings={"show_default": True})
@click.option(
    "--manifest", required=True, metavar="FILE", help="Images with labels and patient_id."
)
@click.option("--output", "cache", required=True, metavar="CACHE", help="Folder to write.")
@decode_threads_option
@click.option(
    "--reject-limit",
    type=click.FloatRange(0, 1),
    default=0.01,
    metavar="FRACTION",
    help="Share of all manifest rows that may be rejected.",
)
@click.argument("beam_args", nargs=-1, type=click.UNPROCESSED)
def prepare_command(beam_args: tuple[str, ...], **options):
    """Decodes labelled images into a cache that `train --cache` reads.

    Images become the network's input, exactly as for scoring, 50 KB each, in one
    memory-mapped file. What follows -- goes to Beam as pipeline options; all workers
    must reach CACHE.
    """
    from pipeline.preparation import PrepareOptions, prepare_images
    from pipeline.runner import choose_runner

    facts = prepare_images(PrepareOptions(**options), choose_runner(beam_args))
    click.echo(
        f"{facts['images']:,} images prepared in {options['cache']},"
        f" {facts['rejected']:,} rejected."
    )
