"""A few images at once: the rows of a run, and an error in the place of a bad image."""

import dataclasses
import io
import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from model import predictor as predictor_module
from model.bundle import thresholds_id
from model.calibration import Calibration, Scaling
from model.decoding import decode_grey
from model.overlays import draw_overlay, encode_jpeg
from model.predictor import Prediction, Predictor
from model.preprocessing import prepare
from model.quality import image_quality
from model.thresholds import abnormality, threshold_vector, thresholds_to_json
from pipeline.rows import score_row
from schemas.errors import InputError
from schemas.findings import ABNORMAL_FINDINGS, FINDINGS, score_column
from schemas.quality import in_order
from schemas.rejects import ImageError, Reason
from scripts.dicom_files import dicom_file
from tests.bad_files import write_bad_files
from tests.fakes import (
    BLANK_CAMS,
    INFINITE_SCORE,
    NAN_CAM,
    NAN_SCORE,
    POISON,
    FakeScorer,
    make_bundle,
    make_thresholds,
    picture,
    scored_image,
    varied_picture,
    write_picture,
)

NOTE = "Fake network. Not for diagnosis."


@pytest.fixture
def scorer(monkeypatch):
    """The fake scorer that every predictor of a test gets, with the fake bundle."""
    fake = FakeScorer()
    monkeypatch.setattr(predictor_module, "load_bundle_info", lambda folder: make_bundle())
    monkeypatch.setattr(predictor_module, "build_scorer", lambda settings: fake)
    return fake


@pytest.fixture
def predictor(scorer):
    return Predictor("no bundle")


@pytest.fixture
def file(tmp_path):
    """Returns a function that writes a picture and gives its path."""

    def make(name, pixels):
        return write_picture(tmp_path / f"{name}.png", pixels)

    return make


def why(result):
    """Returns the reason and detail of an error; fails on a prediction."""
    assert isinstance(result, ImageError), result
    return result.reason, result.detail


# What a prediction holds


def test_predict_images_gives_the_values_of_their_rows_in_order(predictor, file):
    paths = [file(f"i{index}", varied_picture(index)) for index in range(5)]
    predictions = predictor.predict(paths)
    vector = threshold_vector(make_thresholds())
    for index, prediction in enumerate(predictions):
        image = scored_image(f"i{index}", varied_picture(index))
        row = score_row(image, vector, None, {}, (), False)
        assert prediction.scores.dtype == np.float32
        assert prediction.scores.tolist() == [row[score_column(name)] for name in FINDINGS]
        assert list(prediction.findings) == row["findings"] and prediction.flagged
        assert prediction.abnormality == row["abnormality"]
        np.testing.assert_array_equal(prediction.cams, image.cams)
        assert (prediction.tta_views, prediction.width, prediction.height) == (1, 224, 224)
        assert prediction.mean_intensity == varied_picture(index).mean()
        assert prediction.std_intensity == varied_picture(index).std()
        assert prediction.quality == image_quality(varied_picture(index), 224, 224)
        assert prediction.feature_distance is None
        assert prediction.overlays == {}


def test_predict_dicom_has_the_quality_codes_of_its_header(predictor):
    pixels = varied_picture(1)
    data = dicom_file(pixels, ViewPosition="LL", BurnedInAnnotation="YES")
    (prediction,) = predictor.predict([data])
    seen = image_quality(pixels, 224, 224)
    assert prediction.quality == in_order((*seen, "lateral", "burned_in_annotation"))


def test_predict_nothing_above_threshold_is_not_flagged(predictor, file):
    (prediction,) = predictor.predict([file("a", picture({"No Finding": 255, "Mass": 127}))])
    assert (prediction.findings, prediction.flagged) == ((), False)


def test_predict_bytes_give_what_their_file_gives(predictor, file):
    path = file("a", varied_picture(3))
    from_path, from_text, from_bytes = predictor.predict([path, str(path), path.read_bytes()])
    for other in (from_text, from_bytes):
        assert other.scores.tobytes() == from_path.scores.tobytes()
        assert other.findings == from_path.findings


def test_predict_calibration_changes_the_abnormality_alone(monkeypatch, scorer, file):
    scalings = dict.fromkeys(ABNORMAL_FINDINGS, Scaling(0.5, -1.0))
    calibration = Calibration(scalings)
    bundle = dataclasses.replace(make_bundle(), calibration=calibration)
    path = file("a", varied_picture(2))
    (plain,) = Predictor("no bundle").predict([path])
    monkeypatch.setattr(predictor_module, "load_bundle_info", lambda folder: bundle)
    (calibrated,) = Predictor("no bundle").predict([path])
    assert calibrated.abnormality == float(abnormality(calibration.apply(plain.scores)))
    assert calibrated.abnormality != plain.abnormality
    assert calibrated.scores.tobytes() == plain.scores.tobytes()
    assert calibrated.findings == plain.findings


# Batches, and bad images among good ones


def test_predict_more_than_a_batch_keeps_the_order(predictor, scorer, file):
    levels = [7 * index for index in range(35)]
    paths = [file(f"i{level}", picture({"Mass": level})) for level in levels]
    predictions = predictor.predict(paths)
    mass = FINDINGS.index("Mass")
    expected = [float(np.float32(level / 255)) for level in levels]
    assert [prediction.scores[mass] for prediction in predictions] == expected
    assert scorer.batches == [32, 3]


def test_predict_bad_files_cost_no_neighbour(predictor, file, tmp_path):
    (tmp_path / "bad").mkdir()
    reasons = write_bad_files(tmp_path / "bad")
    good = file("good", varied_picture(1))
    paths = [path for name in reasons for path in (tmp_path / "bad" / name, good)]
    results = predictor.predict(paths)
    assert [result.reason for result in results[::2]] == list(reasons.values())
    (alone,) = predictor.predict([good])
    assert {prediction.scores.tobytes() for prediction in results[1::2]} == {alone.scores.tobytes()}


NOT_FINITE = (Reason.NON_FINITE_SCORE, "the network gave NaN or infinity")


@pytest.mark.parametrize(
    ("mark", "expected"),
    [
        (NAN_SCORE, NOT_FINITE),
        (INFINITE_SCORE, NOT_FINITE),
        (NAN_CAM, NOT_FINITE),
        (POISON, (Reason.INFERENCE_ERROR, "InvalidArgumentError")),
    ],
    ids=["nan_score", "infinite_score", "nan_cam", "poison"],
)
def test_predict_what_the_network_cannot_score_is_an_error(predictor, file, mark, expected):
    paths = [file(f"i{index}", picture(200, mark * (index == 1))) for index in range(3)]
    before, bad, after = predictor.predict(paths)
    assert why(bad) == expected
    assert before.scores.tolist() == after.scores.tolist() == [float(np.float32(200 / 255))] * 15


def test_predict_none_readable_asks_nothing_of_the_network(predictor, scorer, tmp_path):
    results = predictor.predict([tmp_path / "missing.png", b"", tmp_path])
    assert [result.reason for result in results] == ["not_found", "empty_file", "not_a_file"]
    assert scorer.batches == []


def test_predict_no_images_gives_no_predictions(predictor):
    assert predictor.predict([]) == []


@pytest.mark.parametrize("image", ["a.png", b"bytes"], ids=["path", "bytes"])
def test_predict_single_image_outside_a_list_is_refused(predictor, image):
    with pytest.raises(TypeError) as caught:
        predictor.predict(image)
    kind = type(image).__name__
    assert str(caught.value) == (
        f"images must be a list of paths or bytes. Received: one {kind}. Put it in a list."
    )


@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.sampled_from([0, NAN_SCORE, POISON, NAN_CAM, -1]), max_size=40))
def test_predict_any_mixture_gives_one_result_an_image_in_its_place(predictor, marks):
    images = [
        b"no image" if mark == -1 else _png(picture({"Mass": index}, mark))
        for index, mark in enumerate(marks)
    ]
    results = predictor.predict(images)
    assert [isinstance(result, Prediction) for result in results] == [mark == 0 for mark in marks]
    for index, result in enumerate(results):
        if isinstance(result, Prediction):
            assert result.scores[FINDINGS.index("Mass")] == np.float32(index / 255)


def _png(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


# Overlays


@pytest.mark.parametrize("top", [0, 1, 2, 14])
def test_predict_overlays_are_of_the_highest_scores(predictor, file, top):
    path = file("a", picture({"Mass": 200, "Edema": 220, "Hernia": 130, "No Finding": 255}))
    (prediction,) = predictor.predict([path], gradcam_top=top)
    assert list(prediction.overlays) == ["Edema", "Mass", "Hernia"][:top]
    grey = decode_grey(path.read_bytes()).image
    for finding, jpeg in prediction.overlays.items():
        index = FINDINGS.index(finding)
        expected = draw_overlay(
            grey,
            prediction.cams[index],
            finding=finding,
            score=float(prediction.scores[index]),
            threshold=0.5,
            note=NOTE,
        )
        assert jpeg == encode_jpeg(expected)


def test_predict_overlay_of_an_empty_map_is_none(predictor, file):
    path = file("a", picture({"Mass": 200}, BLANK_CAMS))
    (prediction,) = predictor.predict([path], gradcam_top=3)
    assert prediction.overlays == {"Mass": None}


# Which bundle, thresholds and views


def test_predictor_says_what_it_predicts_with(predictor):
    assert predictor.info.title == "Fake network"
    assert (predictor.tta, predictor.precision) == ("none", "float32")
    assert predictor.thresholds == make_thresholds()
    assert predictor.thresholds_id == thresholds_id(make_thresholds())


def test_predictor_thresholds_file_replaces_the_bundles(scorer, file, tmp_path):
    values = thresholds_to_json(make_thresholds(0.9))
    (tmp_path / "t.json").write_text(json.dumps({"tta": "none", "findings": values}))
    stricter = Predictor("no bundle", thresholds=str(tmp_path / "t.json"))
    (prediction,) = stricter.predict([file("a", picture({"Mass": 200, "Edema": 240}))])
    assert prediction.findings == ("Edema",)


@pytest.mark.parametrize("tta", ["all", "borderline", "some"])
def test_predictor_mode_without_thresholds_is_refused(scorer, tta):
    with pytest.raises(InputError) as caught:
        Predictor("no bundle", tta=tta)
    assert str(caught.value) == (
        "--tta must be a mode that the bundle has thresholds for: none."
        f" Received: --tta {tta}. Give --thresholds tuned for it."
    )


def test_predictor_no_bundle_is_refused_and_never_replaced(tmp_path):
    with pytest.raises(InputError, match="A bundle must be a folder"):
        Predictor(tmp_path / "nowhere")


def test_predictor_without_a_bundle_is_the_demonstration(phantoms, demo_network):
    paths = sorted((phantoms / "images").iterdir())[:3]
    predictor = Predictor()
    assert predictor.info.title == "Phantom-trained demonstration"
    predictions = predictor.predict(paths)
    pixels = np.stack([prepare(path.read_bytes()).pixels for path in paths])
    expected = np.asarray(demo_network(pixels, training=False))
    scores = np.stack([prediction.scores for prediction in predictions])
    np.testing.assert_allclose(scores, expected, atol=1e-5)
