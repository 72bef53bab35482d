"""What is done about rare findings: repeated images and soft class weights."""

import numpy as np

from schemas.findings import FINDINGS


def oversample(labels: np.ndarray, minimum: int, rng: np.random.Generator) -> np.ndarray:
    """Returns which images make up an epoch: all once, those of rare classes more often.

    A class with fewer positives than `minimum` has whole copies of its images added,
    and a random rest, until `minimum` is reached. Classes are counted before any copy
    is made, so that a class that gains from the copies of another ends above it.

    Args:
      labels: bool `(images, 15)` of the training part.
      minimum: Wanted positives a class; 0 repeats none.
      rng: Chooses the rest.

    Returns:
      Indices into `labels`, every one at least once, not shuffled.
    """
    chosen = [np.arange(len(labels))]
    for positive in labels.T:
        images = np.flatnonzero(positive)
        if 0 < len(images) < minimum:
            copies, rest = divmod(minimum, len(images))
            chosen += [images] * (copies - 1)
            chosen.append(rng.choice(images, size=rest, replace=False))
    return np.concatenate(chosen)


def class_weights(labels: np.ndarray, strength: float) -> np.ndarray:
    """Returns float32 `(15,)`: 1 minus `strength` times the share of positive images.

    Args:
      labels: bool `(images, 15)`, before images are repeated.
      strength: 0 to 1; 0 gives ones.
    """
    return (1 - strength * labels.mean(axis=0)).astype(np.float32)


def sample_weights(labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Returns float32 `(images,)`: the mean class weight of an image's positives.

    Args:
      labels: bool `(images, 15)`; an image without a positive weighs 1.
      weights: float32 `(15,)`, as `class_weights` returns them.
    """
    positives = labels.sum(axis=1)
    total = labels.astype(np.float32) @ weights
    return np.where(positives > 0, total / np.maximum(positives, 1), 1).astype(np.float32)


def positives_by_finding(labels: np.ndarray, chosen: np.ndarray) -> dict[str, int]:
    """Returns the number of positive images of each class among `chosen`, for reports."""
    return dict(zip(FINDINGS, labels[chosen].sum(axis=0).tolist(), strict=True))
