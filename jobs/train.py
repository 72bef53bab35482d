"""The command `train`: a bundle from labelled images."""

import click

from jobs.command import Command
from jobs.logs import load_tensorflow


@click.command("train", cls=Command, context_settings={"show_default": True})
@click.option("--manifest", required=True, metavar="FILE", help="Labelled images; see the README.")
@click.option("--output", required=True, metavar="BUNDLE", help="Folder of the new bundle.")
@click.option(
    "--config", metavar="FILE.toml", show_default="built in", help="Training configuration."
)
@click.option(
    "--backbone-weights",
    default="none",
    metavar="imagenet|none|FILE",
    help="Where EfficientNetB0 starts from; imagenet is downloaded by Keras.",
)
def train_command(manifest: str, output: str, config: str | None, backbone_weights: str):
    """Trains the network, tunes its thresholds, measures it, and writes a bundle.

    The manifest needs labels. Its column split (train, validation, test) says which
    image goes where; without one patients are divided at random. All images are
    held in memory, 50 KB each.
    """
    load_tensorflow()
    from model.bundle import save_bundle
    from model.finishing import measure
    from model.training import TrainingConfig, load_training_config, train_network
    from pipeline.labelled import load_parts

    training_config = load_training_config(config) if config else TrainingConfig()
    parts, split = load_parts(manifest, training_config.seed)
    sizes = ", ".join(f"{name} {len(part)}" for name, part in parts.items())
    click.echo(f"Images: {sizes}. Split: {split}.", err=True)
    network = train_network(
        parts["train"].pixels,
        parts["train"].labels,
        training_config,
        None if backbone_weights == "none" else backbone_weights,
    )
    info = save_bundle(network, measure(network, parts, training_config, split), output)
    click.echo(
        f"Bundle {info.model_id} in {output}: mean AUC over the 14 findings"
        f" {info.metrics['mean_auc']} on {len(parts['test'])} images of the test part."
    )
