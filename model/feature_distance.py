"""How far an image lies from those that a network was trained on.

The Mahalanobis distance of its pooled features, divided by their length: from the mean of the
training images, in units of how much these scatter in that direction. Undivided, features of an
image with many findings are as far as those of another kind of image.

Reference: Lee et al. 2018, "A Simple Unified Framework for Detecting Out-of-Distribution
Samples and Adversarial Attacks", https://arxiv.org/abs/1807.03888, with one mean for all.
"""

import dataclasses
import functools
import hashlib
import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from threadpoolctl import ThreadpoolController

from schemas.errors import InputError

FEATURES_FILE = "features.npz"
FEATURES = 1280
"""Of EfficientNetB0, after the average over all places."""

QUANTILES = ("0.5", "0.9", "0.95", "0.99", "0.999")
FAR_QUANTILE = "0.999"
"""What lies beyond this share of the reference images is `far_from_training`."""

_TRIANGLE = np.triu_indices(FEATURES)


@dataclasses.dataclass(frozen=True, eq=False)
class FeatureDistance:
    """Measures distances; what `features.npz` holds.

    Attributes:
      mean: float32 `(1280,)`, of features of length 1.
      whitening: float32 `(1280, 1280)`, upper triangular: such features less the mean, times
        it, have the covariance 1.
    """

    mean: np.ndarray
    whitening: np.ndarray

    def of(self, features: np.ndarray) -> np.ndarray:
        """Returns float32 `(images,)`, the distances of features `(images, 1280)`."""
        centred = (of_length_1(features) - self.mean).astype(np.float32)
        # After a product in several threads, OpenBLAS keeps them turning for tens of
        # milliseconds in wait of the next, on cores that the network wants.
        with _native_libraries().limit(limits=1, user_api="blas"):
            return np.linalg.norm(centred @ self.whitening, axis=1)


@functools.cache
def _native_libraries() -> ThreadpoolController:
    """Finding them takes 25 ms."""
    return ThreadpoolController()


def of_length_1(features: np.ndarray) -> np.ndarray:
    """Returns float64 `(images, 1280)`, each row divided by its Euclidean length."""
    features = features.astype(np.float64)
    return features / np.linalg.norm(features, axis=1, keepdims=True)


@dataclasses.dataclass(frozen=True)
class FeatureReference:
    """What `bundle.json` says of the distances.

    Attributes:
      sha256: Of `features.npz`, 64 hex digits.
      quantiles: By the share of the reference images that lie nearer, as `QUANTILES` name
        them: the distance.
      measured_on: Which images these are, in words.
      images: How many they are.
      fitted_on_images: Of the training part.
      shrinkage: Weight of the round covariance in the one used, 0 to 1.
    """

    sha256: str
    quantiles: Mapping[str, float]
    measured_on: str
    images: int
    fitted_on_images: int
    shrinkage: float

    @property
    def far_above(self) -> float:
        """The largest distance that is not far."""
        return self.quantiles[FAR_QUANTILE]

    def to_json(self) -> dict:
        """Returns the reference as JSON values."""
        return {**dataclasses.asdict(self), "quantiles": dict(self.quantiles)}

    @classmethod
    def from_json(cls, values: Mapping) -> "FeatureReference":
        """Returns what `to_json` gave; a field that lacks raises a KeyError or TypeError."""
        quantiles = {name: float(values["quantiles"][name]) for name in QUANTILES}
        return cls(**{**values, "quantiles": quantiles})


def write_features(distance: FeatureDistance, folder: Path) -> str:
    """Writes `features.npz`; returns its SHA-256. The same distance gives the same bytes."""
    buffer = io.BytesIO()
    # Half of a triangular matrix is zeros.
    np.savez(buffer, mean=distance.mean, triangle=distance.whitening[_TRIANGLE])
    (folder / FEATURES_FILE).write_bytes(buffer.getvalue())
    return hashlib.sha256(buffer.getvalue()).hexdigest()


def read_features(folder: Path, sha256: str) -> FeatureDistance:
    """Reads `features.npz` if it is the file that `sha256` names; unpickles nothing.

    Raises:
      InputError: It is missing or another, or does not hold what it must.
    """
    try:
        content = (folder / FEATURES_FILE).read_bytes()
    except OSError as error:
        raise InputError(
            f"A bundle whose bundle.json names {FEATURES_FILE} must have it. Received: {folder},"
            f" where it cannot be read ({error.strerror}). Restore the bundle."
        ) from error
    digest = hashlib.sha256(content).hexdigest()
    if digest != sha256:
        raise InputError(
            f"{folder}/{FEATURES_FILE} must have the digest that bundle.json names, {sha256[:12]}."
            f" Received: {digest[:12]}. The file was changed or damaged: restore the bundle."
        )
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            mean, triangle = arrays["mean"], arrays["triangle"]
    except (OSError, ValueError, KeyError) as error:
        raise _not_features(folder, type(error).__name__) from error
    if (mean.shape, triangle.shape) != ((FEATURES,), _TRIANGLE[0].shape):
        raise _not_features(folder, f"shapes {mean.shape} and {triangle.shape}")
    if not (mean.dtype == triangle.dtype == np.float32):
        raise _not_features(folder, f"{mean.dtype} and {triangle.dtype}")
    if not (np.isfinite(mean).all() and np.isfinite(triangle).all()):
        raise _not_features(folder, "numbers that are not finite")
    whitening = np.zeros((FEATURES, FEATURES), np.float32)
    whitening[_TRIANGLE] = triangle
    return FeatureDistance(mean, whitening)


def _not_features(folder: Path, received: str) -> InputError:
    return InputError(
        f"{folder}/{FEATURES_FILE} must hold the mean and the triangle of {FEATURES} features in"
        f" float32. Received: {received}. Restore the bundle."
    )
