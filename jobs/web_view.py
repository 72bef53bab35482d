"""What the page of `web` shows of one image, as HTML."""

import base64
import contextlib
import dataclasses
import functools
import io
import typing
from collections.abc import Mapping
from pathlib import Path

import jinja2
from PIL import Image

from model.bundle import BundleInfo
from model.decoding import decode_grey
from model.overlays import LONGEST_SIDE, encode_jpeg
from model.phantoms import draw_phantom
from model.reading import read_file
from pipeline.report import NOTICE
from schemas.findings import ABNORMAL_FINDINGS, FINDINGS
from schemas.rejects import ImageError, Reason

if typing.TYPE_CHECKING:
    from model.predictor import Prediction, Predictor
    from model.thresholds import Thresholds

_SAMPLE_SEED = 5
"""None that the demonstration was trained, tuned or measured on."""

_SAMPLE_NUMBERS = (11, 26, 3, 27, 23, 2)
"""Phantoms of that seed: one finding, two, none."""

_SAMPLE_SIDE = 512
_THUMBNAIL_SIDE = 160

_ANEW = "Copy it anew from where it came."
_REMEDIES = {
    Reason.NOT_FOUND: "Upload it again.",
    Reason.TOO_MANY_BYTES: "Upload a smaller file.",
    Reason.EMPTY_FILE: _ANEW,
    Reason.NOT_AN_IMAGE: "Upload a radiograph as PNG, JPEG or DICOM.",
    Reason.UNSUPPORTED_FORMAT: "Convert it to PNG or to an 8-bit JPEG.",
    Reason.TRUNCATED: _ANEW,
    Reason.CORRUPT: _ANEW,
    Reason.TOO_MANY_PIXELS: "Upload it at a lower resolution.",
    Reason.ANIMATED: "Upload one picture alone.",
}
_OTHER_REMEDY = "Upload it again, or another image."


@dataclasses.dataclass(frozen=True, eq=False)
class Sample:
    """A phantom to click: a PNG file, and how it is offered."""

    name: str
    data: bytes
    thumbnail: str


@dataclasses.dataclass(frozen=True)
class ScoreRow:
    """A line of the table of scores; `No Finding` has no threshold."""

    finding: str
    score: float
    threshold: float | None

    @property
    def is_flagged(self) -> bool:
        """Whether the score reaches the threshold."""
        return self.threshold is not None and self.score >= self.threshold


@dataclasses.dataclass(frozen=True)
class Shown:
    """What the page shows of an image.

    Attributes:
      result: HTML of bars and scores, or of why there are none.
      overlays: HTML of the overlays; empty where there is no prediction.
    """

    result: str
    overlays: str = ""


def show_image(predictor: "Predictor", data: bytes, name: str) -> Shown:
    """Returns what the page shows of an image, or of why it cannot be used.

    Args:
      predictor: Says what is in it.
      data: All of a file.
      name: What the image is called on the page; never that of a file.
    """
    (outcome,) = predictor.predict([data], gradcam_top=len(ABNORMAL_FINDINGS))
    if isinstance(outcome, ImageError):
        return show_error(outcome)
    rows = score_rows(outcome, predictor.thresholds)
    drawn = [(finding, jpeg and _base64(jpeg)) for finding, jpeg in outcome.overlays.items()]
    return Shown(
        result=_render("result", name, _small(data, LONGEST_SIDE), outcome, rows),
        overlays=_render("overlays", drawn),
    )


def show_error(error: ImageError) -> Shown:
    """Returns the reason and what can be done about it; details hold no path and no name."""
    remedy = _REMEDIES.get(error.reason, _OTHER_REMEDY)
    return Shown(_render("failure", error.reason, error.detail, remedy))


def show_failure() -> Shown:
    """Returns what is said where the fault is not the image's."""
    remedy = "Try again; the terminal that the server runs in says what happened."
    return Shown(_render("failure", "the server failed", "", remedy))


def notice(info: BundleInfo) -> str:
    """Returns the HTML of what must always be in view."""
    return _render("notice", NOTICE, info)


def score_rows(prediction: "Prediction", thresholds: "Thresholds") -> list[ScoreRow]:
    """Returns all 15: flagged ones first, highest score first, `No Finding` last."""
    limits: Mapping[str, float] = {name: value.threshold for name, value in thresholds.items()}
    rows = [
        ScoreRow(finding, float(score), limits.get(finding))
        for finding, score in zip(FINDINGS, prediction.scores, strict=True)
    ]
    return sorted(rows, key=lambda row: (row.threshold is None, not row.is_flagged, -row.score))


def take_upload(path: Path) -> bytes:
    """Returns the content of an uploaded file, and removes it with its folder.

    Raises:
      ImageError: It cannot be read.
    """
    try:
        return read_file(path).data
    finally:
        path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # not empty: the same image under another name
            path.parent.rmdir()


@functools.cache
def draw_samples() -> list[Sample]:
    """Returns the phantoms to click, made in memory; takes seconds."""
    samples = []
    for index, number in enumerate(_SAMPLE_NUMBERS, start=1):
        phantom = draw_phantom(_SAMPLE_SEED, number, _SAMPLE_SIDE)
        buffer = io.BytesIO()
        Image.fromarray(phantom.pixels).save(buffer, "PNG")
        drawn = " and ".join(box.finding.replace("_", " ") for box in phantom.boxes)
        name = f"Phantom {index}, drawn {f'with {drawn}' if drawn else 'without a finding'}"
        data = buffer.getvalue()
        samples.append(Sample(name, data, _small(data, _THUMBNAIL_SIDE)))
    return samples


def _small(data: bytes, side: int) -> str:
    """Returns an image as JPEG, both sides at most `side` pixels, in base64."""
    image = decode_grey(data, at_least=side).image
    image.thumbnail((side, side), reducing_gap=2.0)
    return _base64(encode_jpeg(image))


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _render(part: str, *arguments) -> str:
    return str(getattr(_parts(), part)(*arguments))


@functools.cache
def _parts():
    """Returns the parts of the page, each a function that returns HTML."""
    # A bundle's texts come from outside: whatever is in them is shown, never markup.
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("jobs"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("web.html").module
