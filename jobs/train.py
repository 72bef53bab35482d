"""The command `train`: a bundle from labelled images."""

import os

import click

from jobs.command import Command
from jobs.logs import load_tensorflow


@click.command("train", cls=Command, context_settings={"show_default": True})
@click.option("--manifest", required=True, metavar="FILE", help="Images with labels and patients.")
@click.option("--output", required=True, metavar="BUNDLE", help="New folder for the bundle.")
@click.option(
    "--config", metavar="FILE.toml", show_default="built in", help="Training configuration."
)
@click.option(
    "--backbone-weights",
    default="none",
    metavar="imagenet|none|FILE",
    help="Where EfficientNetB0 starts from; imagenet is downloaded by Keras.",
)
@click.option(
    "--cache",
    metavar="CACHE",
    show_default="BUNDLE.cache",
    help="Decoded images, as `prepare` writes them; made where there are none.",
)
@click.option(
    "--state",
    metavar="DIR",
    show_default="BUNDLE.state",
    help="State of the training, written each epoch, removed once BUNDLE is written.",
)
@click.option("--resume", is_flag=True, help="Go on from the state, if there is one.")
@click.option(
    "--reject-limit",
    type=click.FloatRange(0, 1),
    default=0.01,
    metavar="FRACTION",
    help="Share of all images that may fail to decode.",
)
def train_command(
    manifest: str,
    output: str,
    config: str | None,
    backbone_weights: str,
    cache: str | None,
    state: str | None,
    resume: bool,
    reject_limit: float,
):
    """Trains the network, tunes its thresholds, measures it, and writes a bundle.

    Images are decoded once, into a cache. A training that was killed goes on with
    --resume, and gives the same network as if it had not been. The best epoch is
    chosen, thresholds are tuned and scores calibrated on the validation part; the test
    part is only measured.
    """
    load_tensorflow()
    from model.training_config import TrainingConfig, load_training_config
    from pipeline.preparation import PrepareOptions
    from pipeline.train import TrainOptions, train_bundle

    info = train_bundle(
        TrainOptions(
            prepare=PrepareOptions(
                manifest, cache or f"{output}.cache", os.cpu_count() or 1, reject_limit
            ),
            output=output,
            state=state or f"{output}.state",
            config=load_training_config(config) if config else TrainingConfig(),
            backbone_weights=None if backbone_weights == "none" else backbone_weights,
            resume=resume,
        ),
        show=lambda line: click.echo(line, err=True),
    )
    click.echo(
        f"Bundle {info.model_id} in {output}: mean AUC over the 14 findings"
        f" {info.metrics['mean_auc']} on {info.metrics['images']} images of the test part"
        f" ({info.metrics['split']})."
    )
