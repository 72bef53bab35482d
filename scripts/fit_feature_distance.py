"""Gives a bundle that was trained before the distance from its training data.

Fits on the training part and measures on the validation part, as `prescreen train` does, and
writes a copy of the bundle. No score changes, nor the model id.

Wants the cache that the training left, BUNDLE.cache, or one that `prescreen prepare` made of
the same manifest, and the configuration that the bundle was trained with, which says how its
parts came about.
"""

import argparse
import dataclasses
import sys
from pathlib import Path

from model.bundle import copy_bundle, load_bundle_info, load_network
from model.feature_fitting import fit_feature_distance
from model.image_cache import open_cache
from model.splits import split_images
from model.training_config import load_training_config
from schemas.errors import InputError


def main() -> None:
    """Reads the arguments, fits, writes, and says what came of it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", metavar="BUNDLE")
    parser.add_argument("--cache", required=True, metavar="CACHE", help="decoded images")
    parser.add_argument("--config", required=True, metavar="FILE", help="of the training")
    parser.add_argument("--into", required=True, metavar="NEW", help="folder of the new bundle")
    arguments = parser.parse_args()
    try:
        reference = fit_into(arguments.bundle, arguments.cache, arguments.config, arguments.into)
    except InputError as error:
        sys.exit(f"Error: {error}")
    print(f"Fitted on {reference.fitted_on_images} images, shrinkage {reference.shrinkage:.4f}.")
    print(f"Distances of {reference.images} others, by the share that is nearer:")
    for name, value in reference.quantiles.items():
        print(f"  {float(name):6.1%}  {value:.2f}")


def fit_into(bundle: str, cache: str, config_file: str, into: str):
    """Writes the copy with a distance; returns what it says of distances."""
    info, config = load_bundle_info(bundle), load_training_config(config_file)
    opened = open_cache(Path(cache))
    images = opened.images
    indices = split_images(
        config.split, images.image_ids, images.patients, opened.split, config.seed
    )
    parts = {name: images.take(chosen) for name, chosen in indices.items()}
    expected = info.provenance.get("images", {})
    found = {name: len(part) for name, part in parts.items()}
    if expected and any(expected[name] != found[name] for name in ("train", "validation")):
        raise InputError(
            "--cache and --config must give the parts that the bundle was trained with, of"
            f" {expected} images. Received: {found}."
        )
    distance, reference = fit_feature_distance(
        load_network(bundle), parts["train"], parts["validation"], config.seed
    )
    copy_bundle(bundle, into, dataclasses.replace(info, feature_reference=reference), distance)
    return reference


if __name__ == "__main__":
    main()
