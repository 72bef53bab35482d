"""One training, from options to a bundle."""

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

from model.bundle import BundleInfo, file_sha256, save_bundle
from model.feature_fitting import fit_feature_distance
from model.finishing import measure
from model.image_cache import open_cache
from model.splits import describe_split, split_images
from model.training import plan_epoch, read_history, train_network
from model.training_config import TrainingConfig
from pipeline.preparation import PrepareOptions, prepare_images
from pipeline.runner import choose_runner
from schemas.errors import InputError


@dataclasses.dataclass(frozen=True)
class TrainOptions:
    """The options of `train`, one attribute each; see its help for their meaning."""

    prepare: PrepareOptions
    output: str
    state: str
    config: TrainingConfig
    backbone_weights: str | None
    resume: bool


def train_bundle(options: TrainOptions, show: Callable[[str], None]) -> BundleInfo:
    """Prepares, trains, measures and saves; returns the bundle's facts.

    Args:
      options: What to do.
      show: Called with lines for a person.

    Raises:
      InputError: An option, the manifest or a state that is there breaks a rule.
      RejectLimitError: Too many images cannot be decoded.
    """
    output, state, config = Path(options.output), Path(options.state), options.config
    if output.exists():
        raise InputError(
            f"--output must be a new folder. Received: {options.output}, which is there."
            " Name another, or remove it."
        )
    prepared = prepare_images(options.prepare, choose_runner(()))
    cache = open_cache(Path(options.prepare.cache))
    images = cache.images
    indices = split_images(
        config.split, images.image_ids, images.patients, cache.split, config.seed
    )
    parts = {name: images.take(chosen) for name, chosen in indices.items()}
    plan = plan_epoch(parts["train"], config)
    sizes = ", ".join(f"{name} {len(part)}" for name, part in parts.items())
    split = describe_split(config.split)
    show(f"Images: {sizes}; {prepared['rejected']} rejected. Split: {split}.")
    show(f"An epoch shows {len(plan.chosen)} images of the training part.")
    network = train_network(
        plan,
        parts["validation"],
        config,
        state,
        backbone_weights=options.backbone_weights,
        resume=options.resume,
    )
    show("Tuning and measuring.")
    training = {
        "backbone_weights": _describe_weights(options.backbone_weights),
        "balance": plan.report(),
        "rejected": prepared["rejected_by_reason"],
        "history": read_history(state),
    }
    distance, reference = fit_feature_distance(
        network, parts["train"], parts["validation"], config.seed
    )
    info = measure(network, parts, config, split, training)
    info = dataclasses.replace(info, feature_reference=reference)
    info = save_bundle(network, info, options.output, distance)
    shutil.rmtree(state)
    return info


def _describe_weights(weights: str | None) -> str:
    """Returns what a bundle says of its start; of a file its digest, not where it was."""
    if weights is None or weights == "imagenet":
        return weights or "none"
    return f"file with sha256 {file_sha256(Path(weights))}"
