"""Dividing images into train, validation and test, never a patient between two."""

from collections.abc import Mapping, Sequence

import numpy as np

from model.score_table import base_name, read_image_list
from model.training_config import Split
from schemas.errors import InputError

PARTS = ("train", "validation", "test")


def split_images(
    split: Split,
    image_ids: Sequence[str],
    patients: Sequence[str],
    column: Sequence[str | None] | None,
    seed: int,
) -> dict[str, np.ndarray]:
    """Returns the indices of each part.

    Args:
      split: How to divide.
      image_ids: One an image; with `official` their last path component is looked up
        in the lists.
      patients: One an image.
      column: The manifest's column `split`, if it has one.
      seed: Of what is drawn at random.

    Raises:
      InputError: A list or the column is missing, leaves an image out, puts a patient
        in two parts, or leaves a part empty.
    """
    if split.kind == "column":
        parts = _split_by_column(column)
    elif split.kind == "official":
        parts = _split_officially(split, image_ids, patients, seed)
    else:
        rest = 1 - split.validation_share - split.test_share
        shares = dict(zip(PARTS, (rest, split.validation_share, split.test_share), strict=True))
        parts = split_by_patient(patients, seed, shares)
    if empty := [name for name in PARTS if not len(parts[name])]:
        raise InputError(
            f"Each part must have an image. Received: none for {', '.join(empty)}."
            " Add images of more patients, or change the shares."
        )
    check_no_leak(parts, patients)
    return parts


def describe_split(split: Split) -> str:
    """Returns how the parts came about, in words, for whoever reads the metrics."""
    if split.kind == "official":
        return "official test list; validation carved out of the rest by patient"
    if split.kind == "column":
        return "the manifest's column split"
    return f"by patient at random, {split.test_share:.0%} of patients to test"


def split_by_patient(
    patients: Sequence[str], seed: int, shares: Mapping[str, float]
) -> dict[str, np.ndarray]:
    """Returns the indices of each part; all images of a patient fall in one part.

    Args:
      patients: One id an image.
      seed: Decides who falls where.
      shares: Share of patients by name of the part, summing to 1.
    """
    unique, owner = np.unique(np.asarray(patients), return_inverse=True)
    order = np.random.default_rng(seed).permutation(len(unique))
    bounds = np.rint(np.cumsum(list(shares.values())) * len(unique)).astype(int)[:-1]
    parts = np.split(order, bounds)
    return {
        name: np.flatnonzero(np.isin(owner, part)) for name, part in zip(shares, parts, strict=True)
    }


def check_no_leak(parts: Mapping[str, np.ndarray], patients: Sequence[str]) -> None:
    """Raises `InputError` if images of one patient stand in two parts."""
    patients = np.asarray(patients)
    names = list(parts)
    owners = [set(patients[parts[name]].tolist()) for name in names]
    for k, name in enumerate(names):
        for other in range(k + 1, len(names)):
            if leaks := len(owners[k] & owners[other]):
                raise InputError(
                    "split must keep all images of a patient in one part, or the numbers flatter."
                    f" Received: {leaks} patients in both {name} and {names[other]}."
                    " Divide by patient."
                )


def _split_by_column(column: Sequence[str | None] | None) -> dict[str, np.ndarray]:
    if column is None:
        raise InputError(
            "manifest must have a column split for split.kind 'column'. Received: none."
            " Add it, or use split.kind 'patients'."
        )
    if unknown := sorted({value or "" for value in column} - set(PARTS)):
        raise InputError(
            f"The manifest's column split must hold {', '.join(PARTS)}. Received: {unknown[0]!r}."
        )
    return {name: np.flatnonzero([value == name for value in column]) for name in PARTS}


def _split_officially(
    split: Split, image_ids: Sequence[str], patients: Sequence[str], seed: int
) -> dict[str, np.ndarray]:
    """Returns the NIH's test part, and the rest divided by patient."""
    names = np.array([base_name(image_id) for image_id in image_ids])
    is_test, is_rest = (
        np.isin(names, list(read_image_list(path)))
        for path in (split.test_list, split.train_val_list)
    )
    if odd := names[is_test == is_rest].tolist():
        raise InputError(
            "Each image must be in exactly one of the official lists, by its file name."
            f" Received: {len(odd)} in none or both, first {', '.join(odd[:3])}."
        )
    rest = np.flatnonzero(is_rest)
    shares = {"train": 1 - split.validation_share, "validation": split.validation_share}
    parts = split_by_patient(np.asarray(patients)[rest], seed, shares)
    return {name: rest[part] for name, part in parts.items()} | {"test": np.flatnonzero(is_test)}
