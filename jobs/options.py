"""Options that several commands have."""

import os

import click

model_option = click.option(
    "--model", "bundle", metavar="BUNDLE", show_default="demonstration", help="Model bundle."
)

batch_size_option = click.option(
    "--batch-size",
    type=click.IntRange(1),
    metavar="N",
    show_default="32 on CPU, largest that fits on GPU",
    help="Images a batch.",
)

precision_option = click.option(
    "--precision",
    type=click.Choice(["auto", "float32", "mixed_float16", "mixed_bfloat16"]),
    default="auto",
    help="Arithmetic of the network; auto is float32 on CPU, mixed_float16 on GPU.",
)

decode_threads_option = click.option(
    "--decode-threads",
    type=click.IntRange(1),
    default=lambda: os.cpu_count() or 1,
    metavar="N",
    show_default="number of cores",
    help="Images that a worker decodes at once.",
)
