"""Batches of images through the frozen graph."""

import functools
from collections.abc import Iterable, Sequence

import apache_beam as beam
import numpy as np
from apache_beam.ml.inference.base import ModelHandler, RunInference

from model.scorer import Scorer
from model.serving import ScorerSettings, build_scorer, score_each
from pipeline.elements import LoadedImage, RejectedImage, ScoredImage
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
    """Scores a batch; an image that has no score comes back rejected."""
    results = score_each(np.stack([image.pixels for image in batch]), scorer)
    return [
        RejectedImage(
            image.row,
            result,
            image.facts.size_bytes,
            image.facts.source_version,
            image.attempts,
        )
        if isinstance(result, ImageError)
        else ScoredImage(image.row, image.facts, result.scores, result.cams, result.views)
        for image, result in zip(batch, results, strict=True)
    ]
