"""Options that several commands have."""

import os

import click

log_json_option = click.option(
    "--log-json", is_flag=True, help="Log to standard error as JSON, one line a change of state."
)

quiet_option = click.option("--quiet", is_flag=True, help="Print errors only.")

model_option = click.option(
    "--model", "bundle", metavar="BUNDLE", show_default="demonstration", help="Model bundle."
)

thresholds_option = click.option(
    "--thresholds", metavar="FILE", show_default="the bundle's", help="Thresholds as JSON."
)

tta_option = click.option(
    "--tta",
    type=click.Choice(["none", "borderline", "all"]),
    default="none",
    help="Test-time augmentation: average six views of no image, of images with a score"
    " near a threshold, or of all.",
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
