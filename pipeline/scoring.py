"""Batches of images through the frozen graph."""

import dataclasses
import functools
from collections.abc import Iterable, Sequence

import apache_beam as beam
import numpy as np
from apache_beam.ml.inference.base import ModelHandler, RunInference

from model.bundle import load_network
from model.scorer import Borderline, InferenceError, Scorer
from pipeline.elements import LoadedImage, RejectedImage, ScoredImage
from schemas.rejects import ImageError, Reason

SCORED = "scored"
REJECTED = "rejected"


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
    """

    bundle: str
    model_id: str
    precision: str
    tta: str
    borderline_thresholds: tuple[float, ...] | None = None
    borderline_band: float = 0.0


@functools.lru_cache(maxsize=1)
def load_scorer(settings: ScorerSettings) -> Scorer:
    """Returns the scorer of a bundle, kept for the next pipeline of this process."""
    borderline = None
    if settings.borderline_thresholds is not None:
        vector = np.array(settings.borderline_thresholds, np.float32)
        borderline = Borderline(vector, settings.borderline_band)
    return Scorer(
        load_network(settings.bundle),
        precision=settings.precision,
        tta_mode=settings.tta,
        borderline=borderline,
    )


class ScoreImages(beam.PTransform):
    """Loaded images in; scored images and rejected ones out.

    Batches are made within a bundle, so that a retry may batch differently; the
    scores stay the same within 1e-5.
    """

    def __init__(self, settings: ScorerSettings, batch_size: int):
        super().__init__()
        self._settings = settings
        self._batch_size = batch_size

    def expand(self, images):
        handler = ScoringHandler(self._settings, self._batch_size)
        return (
            images
            | "RunInference" >> RunInference(handler)
            | "SplitRejected" >> beam.FlatMap(_tag_rejected).with_outputs(REJECTED, main=SCORED)
        )


def _tag_rejected(image: ScoredImage | RejectedImage):
    rejected = isinstance(image, RejectedImage)
    yield beam.pvalue.TaggedOutput(REJECTED, image) if rejected else image


class ScoringHandler(ModelHandler[LoadedImage, ScoredImage | RejectedImage, Scorer]):
    """Gives exactly one result an image, in order."""

    def __init__(self, settings: ScorerSettings, batch_size: int):
        super().__init__()
        self._settings = settings
        self._batch_size = batch_size

    def load_model(self) -> Scorer:
        return load_scorer(self._settings)

    def run_inference(
        self, batch: Sequence[LoadedImage], model: Scorer, inference_args=None
    ) -> Iterable[ScoredImage | RejectedImage]:
        # A list, not a generator: Beam counts errors only while this call runs.
        return score_batch(batch, model)

    def batch_elements_kwargs(self) -> dict:
        # Both bounds: with only an upper one Beam tries out small batches.
        return {"min_batch_size": self._batch_size, "max_batch_size": self._batch_size}

    def get_num_bytes(self, batch: Sequence[LoadedImage]) -> int:
        # The default would pickle every batch to measure it.
        return sum(image.pixels.nbytes for image in batch)

    def get_metrics_namespace(self) -> str:
        return "prescreen"


def score_batch(batch: Sequence[LoadedImage], scorer: Scorer) -> list[ScoredImage | RejectedImage]:
    """Scores a batch; halves it where the network fails, so that one image costs one image."""
    try:
        result = scorer.score(np.stack([image.pixels for image in batch]))
    except InferenceError as error:
        if len(batch) == 1:
            return [_rejected(batch[0], Reason.INFERENCE_ERROR, str(error))]
        half = len(batch) // 2
        return score_batch(batch[:half], scorer) + score_batch(batch[half:], scorer)
    finite = np.isfinite(result.scores).all(axis=1) & np.isfinite(result.cams).all(axis=(1, 2, 3))
    return [
        ScoredImage(image.row, image.facts, scores, cams, int(views))
        if is_finite
        else _rejected(image, Reason.NON_FINITE_SCORE, "the network gave NaN or infinity")
        for image, scores, cams, views, is_finite in zip(
            batch, result.scores, result.cams, result.views, finite, strict=True
        )
    ]


def _rejected(image: LoadedImage, reason: Reason, detail: str) -> RejectedImage:
    facts = image.facts
    error = ImageError(reason, detail)
    return RejectedImage(image.row, error, facts.size_bytes, facts.source_version)
