"""What the page of `web` shows of an image; no Gradio is needed for it."""

import base64
import dataclasses
import html.parser
import io
import os

import pytest
from PIL import Image

from jobs.web_view import (
    draw_samples,
    notice,
    show_error,
    show_failure,
    show_image,
    take_upload,
)
from model import predictor as predictor_module
from model.decoding import decode_grey
from model.phantoms import draw_phantom
from model.predictor import Predictor
from model.reading import MAX_BYTES
from schemas.findings import FINDINGS, NO_FINDING
from schemas.rejects import ImageError, Reason
from tests.bad_files import write_bad_files
from tests.fakes import BLANK_CAMS, FakeScorer, make_bundle, picture, write_picture


class Parts(html.parser.HTMLParser):
    """The text, the cells, the pictures and the bars of a part of the page."""

    def __init__(self, content):
        super().__init__()
        self.text, self.rows, self.images, self.bars, self.tags = "", [], [], [], set()
        self.feed(content)
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.add(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
        elif tag == "img":
            kind, _, data = attributes["src"].partition(",")
            assert kind == "data:image/jpeg;base64"
            self.images.append((attributes["alt"], base64.b64decode(data)))
        elif tag == "svg":
            assert attributes["aria-hidden"] == "true"  # the cells beside it say the same
            self.bars.append([attributes["class"] == "bar flagged", None, None])
        elif attributes.get("class") == "value":
            self.bars[-1][1] = attributes["width"]
        elif attributes.get("class") == "limit":
            self.bars[-1][2] = attributes["d"]

    def handle_data(self, data):
        self.text += data
        if self.rows and data.strip():
            self.rows[-1][-1] += data.strip()


@pytest.fixture
def predictor(monkeypatch):
    monkeypatch.setattr(predictor_module, "load_bundle_info", lambda folder: make_bundle())
    monkeypatch.setattr(predictor_module, "build_scorer", lambda settings: FakeScorer())
    return Predictor("no bundle")


@pytest.fixture
def image(tmp_path):
    """Returns a function that gives the file of a picture."""
    return lambda *picture_of: write_picture(tmp_path / "i.png", picture(*picture_of)).read_bytes()


def test_show_image_lists_all_15_scores_flagged_first_with_bars(predictor, image):
    levels = {"Mass": 153, "Pleural_Thickening": 204, "Edema": 51, NO_FINDING: 255}
    shown = Parts(show_image(predictor, image(levels), "Uploaded image").result)
    header, *rows = shown.rows
    assert header == ["Finding", "Bar", "Score", "Threshold", "Flag"]
    assert rows[:4] == [
        ["Pleural Thickening", "", "0.800", "0.500", "flagged"],
        ["Mass", "", "0.600", "0.500", "flagged"],
        ["Edema", "", "0.200", "0.500", "no"],
        ["Atelectasis", "", "0.000", "0.500", "no"],
    ]
    assert rows[-1] == [NO_FINDING, "", "1.000", "–", "never"]
    assert {row[0].replace(" ", "_") for row in rows} == {
        name.replace(" ", "_") for name in FINDINGS
    }
    assert shown.bars[:3] == [
        [True, "80.0", "M50.0 0v10"],
        [True, "60.0", "M50.0 0v10"],
        [False, "20.0", "M50.0 0v10"],
    ]
    assert shown.bars[-1] == [False, "100.0", None]
    assert "Above threshold: Pleural Thickening, Mass." in shown.text
    assert "Abnormality 0.936, which orders images. 224x224 pixels." in shown.text
    assert "they are no probabilities" in shown.text


def test_show_image_without_a_flag_does_not_call_it_normal(predictor, image):
    shown = show_image(predictor, image({"Mass": 102}), "Uploaded image")
    said = "No finding is above its threshold. That does not make the image a normal one."
    assert said in Parts(shown.result).text
    assert "so there is nothing to draw" in Parts(shown.overlays).text


def test_show_image_says_what_speaks_against_believing_its_scores(predictor, image):
    # A picture of the fake network is black but for a row of levels: over 60% of it.
    dark = Parts(show_image(predictor, image({"Mass": 102}), "Uploaded image").result)
    assert "Speaks against believing this: clipped." in dark.text
    whole = io.BytesIO()
    Image.fromarray(draw_phantom(5, 3, 256).pixels).save(whole, "PNG")
    phantom = Parts(show_image(predictor, whole.getvalue(), "Phantom").result)
    assert "Speaks against" not in phantom.text


def test_show_image_draws_the_overlays_of_predict_for_all_that_is_flagged(predictor, image):
    data = image(dict.fromkeys(FINDINGS, 255))
    overlays = Parts(show_image(predictor, data, "Uploaded image").overlays)
    (prediction,) = predictor.predict([data], gradcam_top=14)
    assert len(overlays.images) == 14
    assert [jpeg for _, jpeg in overlays.images] == list(prediction.overlays.values())
    assert overlays.images[0][0] == "The image with attention for Atelectasis in colour"
    assert overlays.text.startswith("Grad-CAM of what is flagged Attention, not localisation:")


def test_show_image_without_attention_says_that_there_is_nothing_to_draw(predictor, image):
    overlays = Parts(show_image(predictor, image({"Mass": 255}, BLANK_CAMS), "x").overlays)
    assert overlays.images == []
    assert "Mass: nothing in the image speaks for it" in overlays.text


def test_show_image_shows_the_image_as_it_was_decoded(predictor, image):
    data = image({"Mass": 153})
    ((alt, jpeg),) = Parts(show_image(predictor, data, "Phantom 1").result).images
    assert alt == "Phantom 1, as the decoder reads it"
    assert decode_grey(jpeg).image.size == (224, 224)


def test_show_image_of_each_bad_file_says_why_and_what_to_do(predictor, tmp_path):
    seen = set()
    for name, reason in write_bad_files(tmp_path).items():
        if (tmp_path / name).is_file() and reason.stage == "decode":
            shown = show_image(predictor, (tmp_path / name).read_bytes(), "Uploaded image")
            text = Parts(shown.result).text
            said = f"No prediction This file could not be used: {reason.replace('_', ' ')}, "
            assert text.startswith(said) and text.endswith(".")
            assert name not in text and str(tmp_path) not in text and shown.overlays == ""
            seen.add(reason)
    assert seen >= {Reason.TOO_MANY_PIXELS, Reason.TRUNCATED, Reason.NOT_AN_IMAGE}


def test_show_error_names_reason_detail_and_remedy():
    shown = show_error(ImageError(Reason.TOO_MANY_PIXELS, "9000x9000 pixels"))
    assert Parts(shown.result).text == (
        "No prediction This file could not be used: too many pixels, 9000x9000 pixels."
        " Upload it at a lower resolution."
    )
    assert Parts(show_error(ImageError(Reason.INFERENCE_ERROR, "X")).result).text.endswith(
        "inference error, X. Upload it again, or another image."
    )
    assert "the server failed. Try again" in Parts(show_failure().result).text


def test_notice_names_model_and_statement_and_escapes_both():
    info = dataclasses.replace(make_bundle(), title="<script>x</script>", statement="a < b")
    shown = Parts(notice(info))
    assert shown.text == ("Research prototype, not for diagnosis. Model: <script>x</script>. a < b")
    assert shown.tags == {"div", "strong"}


def test_take_upload_removes_what_it_read(tmp_path):
    path = tmp_path / "digest" / "MUELLER_HANS.png"
    path.parent.mkdir()
    path.write_bytes(b"content")
    assert take_upload(path) == b"content"
    assert list(tmp_path.iterdir()) == []


def test_take_upload_over_the_limit_is_refused_and_removed(tmp_path):
    path = tmp_path / "digest" / "large.png"
    path.parent.mkdir()
    path.touch()
    os.truncate(path, MAX_BYTES + 1)
    with pytest.raises(ImageError, match="more than the limit of 268435456") as error:
        take_upload(path)
    assert error.value.reason == Reason.TOO_MANY_BYTES
    assert list(tmp_path.iterdir()) == []


def test_take_upload_that_is_gone_is_not_found(tmp_path):
    with pytest.raises(ImageError) as error:
        take_upload(tmp_path / "digest" / "gone.png")
    assert error.value.reason == Reason.NOT_FOUND


def test_samples_say_what_is_drawn_and_decode():
    samples = draw_samples()
    assert [sample.name for sample in samples] == [
        "Phantom 1, drawn with Cardiomegaly",
        "Phantom 2, drawn with Emphysema",
        "Phantom 3, drawn with Pneumothorax",
        "Phantom 4, drawn with Consolidation and Edema",
        "Phantom 5, drawn with Consolidation and Mass",
        "Phantom 6, drawn without a finding",
    ]
    assert all(decode_grey(sample.data).image.size == (512, 512) for sample in samples)
