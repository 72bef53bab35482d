"""The frozen graph: uint8 squares in, scores and activation maps out."""

import dataclasses
import logging
from collections.abc import Callable

import keras
import numpy as np
from keras import ops

from model import gradcam, tta
from model.devices import prepare_gpus
from model.feature_distance import FeatureDistance
from model.folding import fold_batch_norms
from model.frozen import freeze
from model.network import set_precision
from model.thresholds import TTA_MODES
from schemas.contract import STANDARD_CONTRACT, VIEWS
from schemas.findings import ABNORMAL_INDICES

_log = logging.getLogger(__name__)

CPU_BATCH_SIZE = 32
GPU_BATCH_SIZE = 512
"""A first guess that halves itself until it fits."""


@dataclasses.dataclass(frozen=True)
class Borderline:
    """When an image is worth a second look.

    Attributes:
      thresholds: float32 `(15,)`, those of single-view scores; infinite where a
        class has none.
      band: Distance from a threshold, in score, within which it is.
    """

    thresholds: np.ndarray
    band: float

    def selects(self, scores: np.ndarray) -> np.ndarray:
        """Returns bool `(batch,)`: one of the 14 scores lies within the band."""
        near = np.abs(scores - self.thresholds) <= self.band
        return near[:, ABNORMAL_INDICES].any(axis=1)


@dataclasses.dataclass(frozen=True)
class Scores:
    """What the graph says of a batch.

    Attributes:
      scores: float32 `(batch, 15)`, 0 to 1, uncalibrated, averaged over views. NaN
        where the network gave NaN.
      cams: float32 `(batch, 15, 7, 7)`, 0 to 1, of the original view.
      views: int8 `(batch,)`, number of views averaged.
      distances: float32 `(batch,)` from the training data, of the original view; None where
        no distance is known.
    """

    scores: np.ndarray
    cams: np.ndarray
    views: np.ndarray
    distances: np.ndarray | None = None


class Scorer:
    """Scores batches with a network that is folded and frozen.

    Traced once, at construction. Thread-safe except for the memory limit it
    learns, which may be learnt twice.
    """

    def __init__(
        self,
        network: keras.Model,
        *,
        precision: str = "float32",
        tta_mode: str = "none",
        borderline: Borderline | None = None,
        distance: FeatureDistance | None = None,
    ):
        """Freezes a copy of `network`.

        Args:
          network: As `model.network.build_network` makes it, trained.
          precision: A Keras dtype policy, as `model.devices.resolve_precision` returns it.
          tta_mode: One of `TTA_MODES`.
          borderline: Wanted by, and only by, the mode `borderline`.
          distance: Measures how far an image is from the training data, where that is known.

        Raises:
          ValueError: An unknown mode, or `borderline` without its rule.
        """
        if tta_mode not in TTA_MODES:
            raise ValueError(f"tta_mode must be one of {TTA_MODES}. Received: {tta_mode!r}.")
        if (tta_mode == "borderline") != (borderline is not None):
            raise ValueError("borderline must be given for tta_mode='borderline', and only then.")
        self._tta_mode = tta_mode
        self._borderline = borderline
        self._batch_limit: int | None = None
        network = fold_batch_norms(network)
        set_precision(network, precision)
        self._distance = distance
        self._graph = freeze(_single_view(network), precision)

    def score(self, images: np.ndarray) -> Scores:
        """Returns the scores of a batch of any size.

        Args:
          images: uint8 `(batch, 224, 224)`, 0 to 255.

        Raises:
          ValueError: The images have another dtype or shape.
          InferenceError: The network could not be computed.
          MemoryError: Not even one image fits in the accelerator's memory.
        """
        size = STANDARD_CONTRACT.size
        if images.dtype != np.uint8 or images.shape[1:] != (size, size):
            raise ValueError(
                f"images must be uint8 (batch, {size}, {size})."
                f" Received: dtype={images.dtype}, shape={images.shape}."
            )
        scores, cams, features = self._in_memory(images)
        distances = self._distance.of(features) if self._distance else None
        views = np.ones(len(images), np.int8)
        second_look = self._second_look(scores)
        if len(second_look):
            # One after the other, by the same graph: its maps of these are thrown away, which
            # costs less than tracing the network again without them.
            for view in tta.further_views(images[second_look]):
                scores[second_look] += self._in_memory(np.asarray(view))[0]
            scores[second_look] /= len(VIEWS)
            views[second_look] = len(VIEWS)
        return Scores(scores, cams, views, distances)

    def _second_look(self, scores: np.ndarray) -> np.ndarray:
        if self._tta_mode == "none":
            return np.empty(0, np.intp)
        if self._tta_mode == "all":
            return np.arange(len(scores))
        return np.flatnonzero(self._borderline.selects(scores))

    def _in_memory(self, images: np.ndarray) -> list[np.ndarray]:
        """Returns what the graph gives, in pieces that fit in memory; remembers what fits."""
        pieces, start = [], 0
        while start < len(images):
            piece = images[start : start + (self._batch_limit or len(images))]
            try:
                pieces.append(self._graph(piece))
            except MemoryError:
                if len(piece) == 1:
                    raise
                self._batch_limit = len(piece) // 2
                _log.warning("out of memory: batch size is now %d", self._batch_limit)
                continue
            start += len(piece)
        return [np.concatenate(part) for part in zip(*pieces, strict=True)]


def default_batch_size() -> int:
    """Returns a batch size that suits this machine."""
    return GPU_BATCH_SIZE if prepare_gpus() else CPU_BATCH_SIZE


def _single_view(network: keras.Model) -> Callable:
    explained = gradcam.explained_network(network)

    def single_view(images):
        outputs = explained(images, training=False)
        maps = gradcam.activation_maps(network, outputs)
        return [outputs["scores"], maps, pooled_features(outputs)]

    return single_view


def pooled_features(outputs: dict):
    """Returns float32 `(batch, 1280)`: the feature map averaged over its places.

    Not the network's own average, which half precision would round.

    Args:
      outputs: What `model.gradcam.explained_network` returned for a batch.
    """
    return ops.mean(ops.cast(outputs["features"], "float32"), axis=(1, 2))
