"""A few images at once, without a pipeline, and with a run's scores."""

import dataclasses
import os
from collections.abc import Mapping, Sequence

import numpy as np

from model.bundle import demo_bundle_path, load_bundle_info, thresholds_id
from model.decoding import decode_grey
from model.overlays import overlay_jpeg, overlay_note
from model.preprocessing import PreparedImage, prepare
from model.quality import image_quality
from model.reading import read_file
from model.scorer import CPU_BATCH_SIZE
from model.serving import (
    ImageScores,
    build_scorer,
    choose_thresholds,
    score_each,
    scorer_settings,
)
from model.thresholds import abnormality, flagged_findings, threshold_vector
from schemas.findings import FINDINGS
from schemas.quality import Quality, in_order
from schemas.rejects import ImageError

ImageSource = str | os.PathLike | bytes
"""A local path, or the content of a file."""


@dataclasses.dataclass(frozen=True, eq=False)
class Prediction:
    """What the model says of one image: the values of a row of the scores table.

    Attributes:
      scores: float32 `(15,)` in the order of `FINDINGS`, 0 to 1, uncalibrated.
      findings: Those above threshold, highest score first.
      abnormality: Orders images; 0 to 1. From calibrated probabilities where the
        bundle has a calibration.
      cams: float32 `(15, 7, 7)`, 0 to 1: Grad-CAM maps of all classes, of the
        original view, row-major; all zeros where nothing speaks for a class.
      tta_views: Number of views averaged.
      width, height: Of the whole image, in pixels, as displayed.
      mean_intensity, std_intensity: Of the network's input, 0 to 255.
      quality: What speaks against believing the scores; `lateral` where the header of a
        DICOM file says so, since there is no manifest.
      feature_distance: From the images that the model was trained on; None where the
        bundle cannot say.
      overlays: By finding, in the order of `findings`, the JPEG file of what was
        asked for; None where the map is zero everywhere.
    """

    scores: np.ndarray
    findings: tuple[str, ...]
    abnormality: float
    cams: np.ndarray
    tta_views: int
    width: int
    height: int
    mean_intensity: float
    std_intensity: float
    quality: tuple[Quality, ...]
    feature_distance: float | None
    overlays: Mapping[str, bytes | None]

    @property
    def flagged(self) -> bool:
        """Whether a finding is above its threshold."""
        return bool(self.findings)


class Predictor:
    """Predicts with a bundle, loaded once, for images as they come.

    Bundle, graph, preprocessing and thresholds are those of `score`, and so are the
    scores to 1e-5. Safe in threads, as `model.scorer.Scorer` is.

    Example:
      predictor = Predictor("models/chest", tta="all")
      (prediction,) = predictor.predict(["chest.png"])
      print(prediction.findings, prediction.abnormality)

    Attributes:
      info: Of the bundle; its title and statement belong beside whatever is shown.
      tta: Test-time augmentation mode.
      precision: Keras dtype policy of the network.
      thresholds: One for each of the 14 findings.
      thresholds_id: Of these.
    """

    def __init__(
        self,
        bundle: str | os.PathLike | None = None,
        *,
        tta: str = "none",
        precision: str = "auto",
        thresholds: str | None = None,
    ):
        """Verifies and loads a bundle.

        Args:
          bundle: Its folder; None for the demonstration, which was trained on
            phantoms.
          tta: `none`, `borderline` or `all`.
          precision: `auto`, `float32`, `mixed_float16` or `mixed_bfloat16`.
          thresholds: A JSON file to take instead of the bundle's.

        Raises:
          InputError: The bundle or the thresholds break a rule, or there are none
            for `tta`.
        """
        folder = demo_bundle_path() if bundle is None else os.fspath(bundle)
        self.info = load_bundle_info(folder)
        self.tta = tta
        self.thresholds = choose_thresholds(self.info, tta, thresholds)
        self.thresholds_id = thresholds_id(self.thresholds)
        settings = scorer_settings(folder, self.info, tta=tta, precision=precision)
        self.precision = settings.precision
        self._scorer = build_scorer(settings)
        self._is_far = settings.is_far
        self._vector = threshold_vector(self.thresholds)

    def predict(
        self, images: Sequence[ImageSource], *, gradcam_top: int = 0
    ) -> list[Prediction | ImageError]:
        """Returns for each image a prediction, or why there is none.

        An error stands in the place of its image and is not raised: a bad image costs
        no neighbour, and is never taken for one without findings.

        Args:
          images: Paths of local PNG and JPEG files, or their bytes.
          gradcam_top: Findings above threshold to draw an overlay of, highest score
            first.

        Raises:
          TypeError: `images` is a single one.
        """
        if isinstance(images, ImageSource):
            raise TypeError(
                "images must be a list of paths or bytes."
                f" Received: one {type(images).__name__}. Put it in a list."
            )
        results = []
        for start in range(0, len(images), CPU_BATCH_SIZE):
            results += self._predict_batch(images[start : start + CPU_BATCH_SIZE], gradcam_top)
        return results

    def _predict_batch(
        self, images: Sequence[ImageSource], gradcam_top: int
    ) -> list[Prediction | ImageError]:
        loaded = [_load(image) for image in images]
        good = [image for image in loaded if not isinstance(image, ImageError)]
        scored = iter(())
        if good:
            scored = iter(score_each(np.stack([one.prepared.pixels for one in good]), self._scorer))
        results = []
        for image in loaded:
            outcome = image if isinstance(image, ImageError) else next(scored)
            if isinstance(outcome, ImageScores):
                outcome = self._prediction(image, outcome, gradcam_top)
            results.append(outcome)
        return results

    def _prediction(
        self, image: "_LoadedImage", scored: ImageScores, gradcam_top: int
    ) -> Prediction:
        prepared, scores, calibration = image.prepared, scored.scores, self.info.calibration
        flagged = flagged_findings(scores, self._vector)
        quality = image_quality(
            prepared.pixels,
            prepared.width,
            prepared.height,
            header_codes=prepared.header_codes,
        )
        if self._is_far(scored.distance):
            quality = in_order((*quality, Quality.FAR_FROM_TRAINING))
        return Prediction(
            scores=scores,
            findings=tuple(FINDINGS[k] for k in flagged),
            abnormality=float(abnormality(calibration.apply(scores) if calibration else scores)),
            cams=scored.cams,
            tta_views=scored.views,
            width=prepared.width,
            height=prepared.height,
            mean_intensity=float(prepared.pixels.mean()),
            std_intensity=float(prepared.pixels.std()),
            quality=quality,
            feature_distance=scored.distance,
            overlays=self._overlays(image.data, scored, flagged[:gradcam_top]),
        )

    def _overlays(
        self, data: bytes, scored: ImageScores, indices: Sequence[int]
    ) -> dict[str, bytes | None]:
        if not indices:
            return {}
        # Decoded again: keeping a batch of full-size images would take gigabytes.
        grey = decode_grey(data).image
        return {
            FINDINGS[k]: overlay_jpeg(
                grey,
                scored.cams[k],
                finding=FINDINGS[k],
                score=float(scored.scores[k]),
                threshold=self.thresholds[FINDINGS[k]].threshold,
                note=overlay_note(self.info.title),
            )
            for k in indices
        }


@dataclasses.dataclass(frozen=True, eq=False)
class _LoadedImage:
    """A file's content, and the network's input made from it."""

    data: bytes
    prepared: PreparedImage


def _load(image: ImageSource) -> _LoadedImage | ImageError:
    try:
        data = image if isinstance(image, bytes) else read_file(image).data
        return _LoadedImage(data, prepare(data))
    except ImageError as error:
        return error
