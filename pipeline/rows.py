"""Rows of the published tables."""

import datetime

import apache_beam as beam
import numpy as np

from model.calibration import Calibration
from model.thresholds import Thresholds, abnormality, flagged_findings, threshold_vector
from pipeline.elements import RejectedImage, ScoredImage
from schemas.findings import FINDINGS, score_column

_SCORE_COLUMNS = tuple(score_column(finding) for finding in FINDINGS)


class ApplyThresholds(beam.PTransform):
    """Scored images in; rows of the scores table out, as dicts. Pure NumPy.

    Args:
      thresholds: One for each of the 14 findings, of scores.
      calibration: Makes the probabilities that the abnormality is computed from;
        None for the scores themselves.
      model_id, thresholds_id: Stored in each row.
      carried: Names of the carried columns, in the order of the manifest rows.
      redact_uris: Whether rows have no uri.
    """

    def __init__(
        self,
        thresholds: Thresholds,
        *,
        calibration: Calibration | None,
        model_id: str,
        thresholds_id: str,
        carried: tuple[str, ...],
        redact_uris: bool,
    ):
        super().__init__()
        self._vector = threshold_vector(thresholds)
        self._calibration = calibration
        self._ids = {"model_id": model_id, "thresholds_id": thresholds_id}
        self._carried = carried
        self._redact_uris = redact_uris

    def expand(self, images):
        return images | beam.Map(
            score_row,
            self._vector,
            self._calibration,
            self._ids,
            self._carried,
            self._redact_uris,
        )


def score_row(
    image: ScoredImage,
    vector: np.ndarray,
    calibration: Calibration | None,
    ids: dict,
    carried: tuple[str, ...],
    redact_uris: bool,
) -> dict:
    """Returns a row of the scores table; its overlays are not drawn yet."""
    probabilities = calibration.apply(image.scores) if calibration else image.scores
    flagged = flagged_findings(image.scores, vector)
    facts = image.facts
    return {
        "image_id": image.row.image_id,
        "uri": None if redact_uris else image.row.uri,
        **dict(zip(_SCORE_COLUMNS, image.scores.tolist(), strict=True)),
        "abnormality": float(abnormality(probabilities)),
        "findings": [FINDINGS[k] for k in flagged],
        "flagged": bool(flagged),
        "cams": [
            {"finding": FINDINGS[k], "grid": image.cams[k].ravel(), "overlay": None}
            for k in flagged
        ],
        "tta_views": image.views,
        "width": facts.width,
        "height": facts.height,
        "size_bytes": facts.size_bytes,
        "source_version": facts.source_version,
        "content_sha256": facts.content_sha256,
        "mean_intensity": facts.mean_intensity,
        "std_intensity": facts.std_intensity,
        "quality": [code.value for code in facts.quality],
        "feature_distance": image.distance,
        **ids,
        "scored_at": datetime.datetime.now(datetime.UTC),
        **dict(zip(carried, image.row.carried, strict=True)),
    }


def reject_row(image: RejectedImage, redact_uris: bool) -> dict:
    """Returns a row of the rejects table."""
    return {
        "image_id": image.row.image_id,
        "uri": None if redact_uris else image.row.uri,
        "stage": image.error.reason.stage.value,
        "reason": image.error.reason.value,
        "detail": image.error.detail,
        "attempts": image.attempts,
        "size_bytes": image.size_bytes,
        "source_version": image.source_version,
    }
