"""Batches of images through the frozen graph."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence

import apache_beam as beam
import numpy as np
from apache_beam.ml.inference.base import ModelHandler, RunInference

from model.scorer import Scorer
from model.serving import ImageScores, ScorerSettings, build_scorer, score_each
from pipeline.elements import LoadedImage, RejectedImage, ScoredImage
from schemas.quality import Quality, gate_error, in_order
from schemas.rejects import ImageError

SCORED = "scored"
REJECTED = "rejected"


@functools.lru_cache(maxsize=1)
def load_scorer(settings: ScorerSettings) -> Scorer:
    """Returns the scorer of a bundle, kept for the next pipeline of this process."""
    return build_scorer(settings)


class ScoreImages(beam.PTransform):
    """Loaded images in; scored images and rejected ones out.

    Batches are made within a bundle, so that a retry may batch differently; the
    scores stay the same within 1e-5.

    Args:
      settings: What decides a score.
      batch_size: Images a batch.
      rejects_gated: Whether an image too far from the training data is rejected.
    """

    def __init__(self, settings: ScorerSettings, batch_size: int, rejects_gated: bool = False):
        super().__init__()
        self._settings = settings
        self._batch_size = batch_size
        self._rejects_gated = rejects_gated

    def expand(self, images):
        handler = ScoringHandler(self._settings, self._batch_size, self._rejects_gated)
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

    def __init__(self, settings: ScorerSettings, batch_size: int, rejects_gated: bool = False):
        super().__init__()
        self._settings = settings
        self._batch_size = batch_size
        self._rejects_gated = rejects_gated

    def load_model(self) -> Scorer:
        return load_scorer(self._settings)

    def run_inference(
        self, batch: Sequence[LoadedImage], model: Scorer, inference_args=None
    ) -> Iterable[ScoredImage | RejectedImage]:
        # A list, not a generator: Beam counts errors only while this call runs.
        is_far = self._settings.is_far
        return score_batch(batch, model, is_far, self._rejects_gated)

    def batch_elements_kwargs(self) -> dict:
        # Both bounds: with only an upper one Beam tries out small batches.
        return {"min_batch_size": self._batch_size, "max_batch_size": self._batch_size}

    def get_num_bytes(self, batch: Sequence[LoadedImage]) -> int:
        # The default would pickle every batch to measure it.
        return sum(image.pixels.nbytes for image in batch)

    def get_metrics_namespace(self) -> str:
        return "prescreen"


def score_batch(
    batch: Sequence[LoadedImage],
    scorer: Scorer,
    is_far: Callable[[float | None], bool] = lambda distance: False,
    rejects_gated: bool = False,
) -> list[ScoredImage | RejectedImage]:
    """Scores a batch; an image that has no score, or is to have none, comes back rejected.

    Args:
      batch: Images in any number.
      scorer: Scores them.
      is_far: Tells of a distance whether it is far from the training data.
      rejects_gated: Whether an image that is has no score.
    """
    results = score_each(np.stack([image.pixels for image in batch]), scorer)
    return [
        _outcome(image, result, is_far, rejects_gated)
        for image, result in zip(batch, results, strict=True)
    ]


def _outcome(
    image: LoadedImage,
    result: ImageScores | ImageError,
    is_far: Callable[[float | None], bool],
    rejects_gated: bool,
) -> ScoredImage | RejectedImage:
    facts = image.facts
    if not isinstance(result, ImageError):
        if is_far(result.distance):
            codes = in_order((*facts.quality, Quality.FAR_FROM_TRAINING))
            facts = dataclasses.replace(facts, quality=codes)
        error = gate_error(facts.quality) if rejects_gated else None
        if error is None:
            return ScoredImage(
                image.row, facts, result.scores, result.cams, result.views, result.distance
            )
        result = error
    return RejectedImage(image.row, result, facts.size_bytes, facts.source_version, image.attempts)
