"""From a bundle to scores: what a run and a few images at once must do alike."""

import dataclasses

import numpy as np

from model.bundle import BundleInfo, load_features, load_network
from model.devices import resolve_precision
from model.frozen import InferenceError
from model.scorer import Borderline, Scorer
from model.thresholds import Thresholds, load_thresholds, threshold_vector
from schemas.errors import InputError
from schemas.rejects import ImageError, Reason


@dataclasses.dataclass(frozen=True)
class ScorerSettings:
    """Everything that decides a score, small enough to send to every worker.

    Attributes:
      bundle: Folder of a verified bundle.
      model_id: Of that bundle; another one is another scorer.
      precision: As for `model.scorer.Scorer`.
      tta: Test-time augmentation mode.
      borderline_thresholds: 15 single-view thresholds in the order of `FINDINGS`,
        where `tta` is `borderline`.
      borderline_band: As in the bundle.
      feature_distance: Digest of the bundle's file that measures the distance from the
        training data, and the largest distance that is not far; None where it has none.
    """

    bundle: str
    model_id: str
    precision: str
    tta: str
    borderline_thresholds: tuple[float, ...] | None = None
    borderline_band: float = 0.0
    feature_distance: tuple[str, float] | None = None

    def is_far(self, distance: float | None) -> bool:
        """Returns whether an image at a distance is further than nearly all of its kind."""
        return distance is not None and distance > self.feature_distance[1]


@dataclasses.dataclass(frozen=True, eq=False)
class ImageScores:
    """What the network says of one image.

    Attributes:
      scores: float32 `(15,)`, finite, 0 to 1, uncalibrated.
      cams: float32 `(15, 7, 7)`, 0 to 1, of the original view.
      views: Number of views averaged.
      distance: From the training data, of the original view; None where the bundle has no
        measure of it.
    """

    scores: np.ndarray
    cams: np.ndarray
    views: int
    distance: float | None = None


def choose_thresholds(info: BundleInfo, tta: str, path: str | None = None) -> Thresholds:
    """Returns the thresholds of a file, or without one those of the bundle for a mode.

    Args:
      info: Of the bundle.
      tta: Test-time augmentation mode.
      path: As for `model.thresholds.load_thresholds`.

    Raises:
      InputError: The file breaks a rule, or the bundle has none for that mode.
    """
    if path:
        return load_thresholds(path, tta)
    if tta not in info.thresholds:
        raise InputError(
            f"--tta must be a mode that the bundle has thresholds for:"
            f" {', '.join(info.thresholds)}. Received: --tta {tta}."
            " Give --thresholds tuned for it."
        )
    return info.thresholds[tta]


def scorer_settings(folder: str, info: BundleInfo, *, tta: str, precision: str) -> ScorerSettings:
    """Returns what decides a score with a verified bundle, on this machine.

    Args:
      folder: Of the bundle.
      info: Of that bundle.
      tta: Test-time augmentation mode.
      precision: As for `model.devices.resolve_precision`.

    Raises:
      InputError: The mode is `borderline`, and the bundle cannot say what that is.
    """
    settings = ScorerSettings(
        bundle=folder,
        model_id=info.model_id,
        # Here and not by each worker, or a mixed fleet would give mixed scores.
        precision=resolve_precision(precision),
        tta=tta,
        feature_distance=_distance_settings(info),
    )
    if tta != "borderline":
        return settings
    if "none" not in info.thresholds:
        raise InputError(
            "--tta borderline needs a bundle with thresholds for the mode none, which say"
            f" what is borderline. Received: {', '.join(info.thresholds)}."
        )
    return dataclasses.replace(
        settings,
        borderline_thresholds=tuple(threshold_vector(info.thresholds["none"]).tolist()),
        borderline_band=info.borderline_band,
    )


def _distance_settings(info: BundleInfo) -> tuple[str, float] | None:
    reference = info.feature_reference
    return reference and (reference.sha256, reference.far_above)


def build_scorer(settings: ScorerSettings) -> Scorer:
    """Returns the scorer of a bundle, loaded, folded and frozen.

    Raises:
      InputError: The network is not one that the bundle's format describes.
    """
    borderline = None
    if settings.borderline_thresholds is not None:
        vector = np.array(settings.borderline_thresholds, np.float32)
        borderline = Borderline(vector, settings.borderline_band)
    distance = None
    if settings.feature_distance is not None:
        distance = load_features(settings.bundle, settings.feature_distance[0])
    return Scorer(
        load_network(settings.bundle),
        precision=settings.precision,
        tta_mode=settings.tta,
        borderline=borderline,
        distance=distance,
    )


def score_each(images: np.ndarray, scorer: Scorer) -> list[ImageScores | ImageError]:
    """Returns for each image of a batch its scores, or why it has none.

    Halves the batch where the network fails, so that one image costs one image. What
    is not finite is no score.

    Args:
      images: uint8 `(batch, 224, 224)`, 0 to 255.
      scorer: As `build_scorer` returns it.

    Raises:
      MemoryError: Not even one image fits in the accelerator's memory.
    """
    try:
        result = scorer.score(images)
    except InferenceError as error:
        if len(images) == 1:
            return [ImageError(Reason.INFERENCE_ERROR, str(error))]
        half = len(images) // 2
        return score_each(images[:half], scorer) + score_each(images[half:], scorer)
    finite = np.isfinite(result.scores).all(axis=1) & np.isfinite(result.cams).all(axis=(1, 2, 3))
    distances = [None] * len(finite)
    if result.distances is not None:
        distances = result.distances.tolist()
    return [
        ImageScores(scores, cams, int(views), distance)
        if is_finite
        else ImageError(Reason.NON_FINITE_SCORE, "the network gave NaN or infinity")
        for scores, cams, views, distance, is_finite in zip(
            result.scores, result.cams, result.views, distances, finite, strict=True
        )
    ]
