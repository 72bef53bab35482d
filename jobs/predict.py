"""The command `predict`: a few images at once, without a pipeline."""

import dataclasses
import json
import os
import typing
from pathlib import Path

import click

from jobs.command import EXIT_FAILED, Command, Failure
from jobs.logs import load_tensorflow
from jobs.options import model_option, precision_option, thresholds_option, tta_option
from schemas.errors import InputError
from schemas.findings import FINDINGS
from schemas.rejects import ImageError

if typing.TYPE_CHECKING:
    from model.predictor import Prediction, Predictor
    from model.thresholds import Thresholds

_SHOWN = 3
"""How many images an error names."""

_DEFAULT_TOP = 3


@click.command("predict", cls=Command, context_settings={"show_default": True})
@click.argument("images", nargs=-1, required=True, metavar="IMAGE...")
@model_option
@thresholds_option
@tta_option
@click.option("--gradcam", metavar="DIR", show_default="none", help="Folder to draw overlays into.")
@click.option(
    "--gradcam-top",
    type=click.IntRange(1, 14),
    metavar="K",
    show_default=str(_DEFAULT_TOP),
    help="Findings drawn per flagged image; with --gradcam.",
)
@precision_option
@click.option("--json", "as_json", is_flag=True, help="Print all scores, as JSON.")
def predict_command(
    images: tuple[str, ...],
    bundle: str | None,
    gradcam: str | None,
    gradcam_top: int | None,
    as_json: bool,
    **options,
):
    """Predicts the findings of a few local images: PNG, JPEG or DICOM.

    Prints what is above its threshold, highest score first. Scores, thresholds and
    overlays are those of score; an image is called what it is called in a manifest
    that lies in the current folder. Exit code 1 where an image could not be
    predicted: it is named with the reason, and all others are printed.
    """
    if gradcam_top and not gradcam:
        raise click.UsageError("--gradcam-top needs --gradcam DIR, where to draw.")
    folder = _make_folder(gradcam) if gradcam else None
    load_tensorflow()
    from model.predictor import Predictor

    predictor = Predictor(bundle, **options)
    top = (gradcam_top or _DEFAULT_TOP) if gradcam else 0
    predictions = predictor.predict(images, gradcam_top=top)
    outcomes = [
        _outcome(image, prediction, folder)
        for image, prediction in zip(images, predictions, strict=True)
    ]
    click.echo((_as_json if as_json else _as_text)(predictor, outcomes))
    _check_all_predicted(outcomes)


@dataclasses.dataclass(frozen=True)
class _Outcome:
    """What became of an image, and where its overlays lie by finding."""

    image_id: str
    prediction: "Prediction | ImageError"
    overlays: dict[str, str | None]

    @property
    def failed(self) -> bool:
        """Whether there is an error in the place of a prediction."""
        return isinstance(self.prediction, ImageError)


def _make_folder(gradcam: str) -> Path:
    try:
        Path(gradcam).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"--gradcam must be a folder that can be written. Received: {gradcam}:"
            f" {error.strerror}."
        ) from error
    return Path(gradcam)


def _outcome(image: str, prediction: "Prediction | ImageError", folder: Path | None) -> _Outcome:
    """Gives the image its id, and writes its overlays."""
    from model.overlays import overlay_name
    from pipeline.layout import write_atomically
    from pipeline.uris import image_id_of

    image_id = image_id_of(image, os.getcwd())
    if isinstance(prediction, ImageError):
        return _Outcome(image_id, prediction, {})
    overlays = {}
    for finding, jpeg in prediction.overlays.items():
        overlays[finding] = None
        if jpeg is not None:
            path = folder / overlay_name(image_id, finding)
            path.parent.mkdir(exist_ok=True)
            write_atomically(path, jpeg)
            overlays[finding] = str(path)
    return _Outcome(image_id, prediction, overlays)


def _as_text(predictor: "Predictor", outcomes: list[_Outcome]) -> str:
    info = predictor.info
    lines = [f"Model {info.model_id}: {info.title}. {info.statement}"]
    if "not for diagnosis" not in info.statement.casefold():
        lines.append("Not for diagnosis.")
    for outcome in outcomes:
        lines += ["", *_image_lines(outcome, predictor.thresholds)]
    if any(path for outcome in outcomes for path in outcome.overlays.values()):
        lines += ["", "Overlays show attention, not localisation."]
    return "\n".join(lines)


def _image_lines(outcome: _Outcome, thresholds: "Thresholds") -> list[str]:
    prediction = outcome.prediction
    if outcome.failed:
        return [f"{outcome.image_id}: no prediction. {prediction}"]
    size = f"{prediction.width}x{prediction.height} pixels"
    views = f", {prediction.tta_views} views" if prediction.tta_views > 1 else ""
    lines = [f"{outcome.image_id}: {size}{views}, abnormality {prediction.abnormality:.3f}"]
    if prediction.quality:
        lines.append(f"  quality: {', '.join(prediction.quality)}")
    for finding in prediction.findings:
        score = prediction.scores[FINDINGS.index(finding)]
        line = f"  {finding:<18}  score {score:.3f}, threshold {thresholds[finding].threshold:.3f}"
        if finding in outcome.overlays:
            line += f", overlay {outcome.overlays[finding] or 'none: no attention'}"
        lines.append(line)
    return lines if prediction.findings else [*lines, "  none above threshold"]


def _as_json(predictor: "Predictor", outcomes: list[_Outcome]) -> str:
    info = predictor.info
    values = {
        "model_id": info.model_id,
        "model_title": info.title,
        "model_statement": info.statement,
        "thresholds_id": predictor.thresholds_id,
        "thresholds": {name: value.threshold for name, value in predictor.thresholds.items()},
        "tta": predictor.tta,
        "precision": predictor.precision,
        "images": [_image_values(outcome) for outcome in outcomes],
    }
    return json.dumps(values, indent=2, allow_nan=False)


def _image_values(outcome: _Outcome) -> dict:
    prediction = outcome.prediction
    if outcome.failed:
        error = {
            "stage": prediction.reason.stage,
            "reason": prediction.reason,
            "detail": prediction.detail,
        }
        return {"image_id": outcome.image_id, "error": error}
    return {
        "image_id": outcome.image_id,
        "error": None,
        "scores": dict(zip(FINDINGS, prediction.scores.tolist(), strict=True)),
        "abnormality": prediction.abnormality,
        "findings": list(prediction.findings),
        "flagged": prediction.flagged,
        "tta_views": prediction.tta_views,
        "width": prediction.width,
        "height": prediction.height,
        "mean_intensity": prediction.mean_intensity,
        "std_intensity": prediction.std_intensity,
        "quality": list(prediction.quality),
        "feature_distance": prediction.feature_distance,
        "overlays": outcome.overlays,
    }


def _check_all_predicted(outcomes: list[_Outcome]) -> None:
    failed = [outcome for outcome in outcomes if outcome.failed]
    if not failed:
        return
    named = [f"{one.image_id} ({one.prediction.reason})" for one in failed[:_SHOWN]]
    if len(failed) > _SHOWN:
        named.append(f"and {len(failed) - _SHOWN} more")
    raise Failure(
        f"{len(failed)} of {len(outcomes)} images could not be predicted: {', '.join(named)}."
        " Any others are printed.",
        EXIT_FAILED,
    )
