"""`prescreen predict`: what it prints and writes, and that it is what a run gives."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from jobs.predict import predict_command
from jobs.score import score_command
from model import predictor as predictor_module
from model.overlays import overlay_name
from schemas.findings import FINDINGS, score_column
from tests.fakes import BLANK_CAMS, NAN_SCORE, FakeScorer, make_bundle, picture, write_picture

SCORES = [score_column(finding) for finding in FINDINGS]
MODEL_ID = make_bundle().model_id


def predict(*arguments):
    return CliRunner().invoke(predict_command, [str(argument) for argument in arguments])


# Against a run


@pytest.fixture
def compare(tmp_path, monkeypatch):
    """Returns a function that scores and predicts images, and compares all there is."""

    def run_both(paths, tta):
        archive = tmp_path / "archive"
        images = [f"ward {k % 2}/{path.name}" for k, path in enumerate(paths)]
        for path, name in zip(paths, images, strict=True):
            (archive / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, archive / name)
        # A manifest without ids: they are made of the paths.
        (archive / "paths.txt").write_text("\n".join(images))
        output = tmp_path / "results"
        arguments = ["--manifest", archive / "paths.txt", "--output", output, "--tta", tta]
        result = CliRunner().invoke(score_command, [str(a) for a in (*arguments, "--run-id", "r")])
        assert result.exit_code == 0, result.output

        monkeypatch.chdir(archive)
        # Another order, so that batches differ.
        result = predict(*reversed(images), "--tta", tta, "--json", "--gradcam", "drawn")
        assert result.exit_code == 0, result.output
        return pd.read_parquet(output / "scores"), json.loads(result.stdout), output, archive

    return run_both


def check_equal(table, values, output, archive):
    """Compares a scores table with what `predict --json` gave, overlays byte for byte."""
    rows = table.set_index("image_id").to_dict("index")
    assert len(values["images"]) == len(rows)
    drawn = 0
    for image in values["images"]:
        row = rows[image["image_id"]]
        scores = [image["scores"][name] for name in FINDINGS]
        np.testing.assert_allclose(scores, [row[name] for name in SCORES], atol=1e-5)
        assert image["abnormality"] == pytest.approx(row["abnormality"], abs=1e-5)
        assert image["findings"] == list(row["findings"])
        assert image["quality"] == list(row["quality"])
        for name in ("flagged", "tta_views", "width", "height"):
            assert image[name] == row[name]
        for name in ("mean_intensity", "std_intensity"):
            assert np.float32(image[name]) == row[name]
        assert (values["model_id"], values["thresholds_id"]) == (
            row["model_id"],
            row["thresholds_id"],
        )
        for cam in row["cams"][: len(image["overlays"])]:
            path = image["overlays"].pop(cam["finding"])
            assert (path is None) == (cam["overlay"] is None)
            if path:
                drawn += 1
                expected = (output / cam["overlay"]).read_bytes()
                assert (archive / path).read_bytes() == expected
                assert path.removeprefix("drawn/") in cam["overlay"]
        assert image["overlays"] == {}
    published = list((output / "gradcam").rglob("*.jpg"))
    assert drawn == len(published) == len(list((archive / "drawn").rglob("*.jpg"))) > 0


def test_predict_phantoms_equals_a_run(compare, phantoms):
    check_equal(*compare(sorted((phantoms / "images").iterdir()), "none"))


def test_predict_real_images_equals_a_run(compare, nih_images):
    # Two of these six have an alpha channel.
    check_equal(*compare(nih_images[31:37], "none"))


def test_predict_second_look_equals_a_run(compare, phantoms):
    table, *rest = compare(sorted((phantoms / "images").iterdir())[:4], "borderline")
    check_equal(table, *rest)
    assert 6 in set(table["tta_views"])


@pytest.mark.slow
@pytest.mark.parametrize("tta", ["none", "borderline", "all"])
def test_predict_many_real_images_equals_a_run(compare, nih_images, tta):
    check_equal(*compare(nih_images[28:48], tta))


# What is printed, with a fake network


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty current folder; every network is the fake one."""
    monkeypatch.setattr(predictor_module, "load_bundle_info", lambda folder: make_bundle())
    monkeypatch.setattr(predictor_module, "build_scorer", lambda settings: FakeScorer())
    monkeypatch.chdir(tmp_path)
    return tmp_path


HEADER = f"Model {MODEL_ID}: Fake network. For tests.\nNot for diagnosis.\n"


def test_predict_prints_findings_highest_score_first(folder):
    write_picture(folder / "a.png", picture({"Mass": 153, "Pleural_Thickening": 255}))
    write_picture(folder / "ward/b.png", picture({"No Finding": 255, "Hernia": 102}))
    result = predict("a.png", folder / "ward" / "b.png")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == (
        f"{HEADER}\n"
        "a.png: 224x224 pixels, abnormality 1.000\n"
        "  quality: clipped\n"
        "  Pleural_Thickening  score 1.000, threshold 0.500\n"
        "  Mass                score 0.600, threshold 0.500\n"
        "\n"
        "ward/b.png: 224x224 pixels, abnormality 0.400\n"
        "  quality: clipped\n"
        "  none above threshold\n"
    )


def test_predict_prints_where_overlays_are_or_that_there_is_none(folder):
    write_picture(folder / "a.png", picture({"Mass": 153, "Edema": 204}))
    write_picture(folder / "blank.png", picture({"Mass": 153}, BLANK_CAMS))
    result = predict("a.png", "blank.png", "--gradcam", "drawn", "--gradcam-top", 1)
    overlay = f"drawn/{overlay_name('a.png', 'Edema')}"
    assert result.exit_code == 0, result.output
    assert result.stdout == (
        f"{HEADER}\n"
        "a.png: 224x224 pixels, abnormality 0.920\n"
        "  quality: clipped\n"
        f"  Edema               score 0.800, threshold 0.500, overlay {overlay}\n"
        "  Mass                score 0.600, threshold 0.500\n"
        "\n"
        "blank.png: 224x224 pixels, abnormality 0.600\n"
        "  quality: clipped\n"
        "  Mass                score 0.600, threshold 0.500, overlay none: no attention\n"
        "\n"
        "Overlays show attention, not localisation.\n"
    )
    assert [path.relative_to(folder).as_posix() for path in folder.rglob("*.jpg")] == [overlay]


def test_predict_bad_images_are_named_and_the_others_printed(folder):
    write_picture(folder / "good.png", picture({"Mass": 153}))
    write_picture(folder / "nan.png", picture({"Mass": 153}, NAN_SCORE))
    (folder / "text.png").write_text("no image")
    (folder / "empty.png").touch()
    result = predict("nan.png", "text.png", "good.png", "empty.png", "none.png")
    assert result.exit_code == 1
    assert result.stdout == (
        f"{HEADER}\n"
        "nan.png: no prediction. non_finite_score: the network gave NaN or infinity\n"
        "\n"
        "text.png: no prediction. not_an_image: the content is neither PNG, JPEG nor DICOM\n"
        "\n"
        "good.png: 224x224 pixels, abnormality 0.600\n"
        "  quality: clipped\n"
        "  Mass                score 0.600, threshold 0.500\n"
        "\n"
        "empty.png: no prediction. empty_file: the file has no bytes\n"
        "\n"
        "none.png: no prediction. not_found: no file at the uri\n"
    )
    assert result.stderr == (
        "Error: 4 of 5 images could not be predicted: nan.png (non_finite_score),"
        " text.png (not_an_image), empty.png (empty_file), and 1 more."
        " Any others are printed.\n"
    )


def test_predict_json_holds_all_scores_and_the_reasons(folder):
    write_picture(folder / "good.png", picture({"Mass": 153, "Edema": 204}))
    write_picture(folder / "nan.png", picture({"Mass": 153}, NAN_SCORE))
    result = predict("good.png", "nan.png", "--json", "--gradcam", "drawn", "--gradcam-top", 1)
    assert result.exit_code == 1
    values = json.loads(result.stdout)
    good, bad = values.pop("images")
    thresholds = values.pop("thresholds")
    assert thresholds == {name: 0.5 for name in FINDINGS if name != "No Finding"}
    assert len(values.pop("thresholds_id")) == 12
    assert values == {
        "model_id": MODEL_ID,
        "model_title": "Fake network",
        "model_statement": "For tests.",
        "tta": "none",
        "precision": "float32",
    }
    levels = {"Mass": 153, "Edema": 204}
    scores = {name: float(np.float32(levels.get(name, 0) / 255)) for name in FINDINGS}
    pixels = picture(levels)
    assert good == {
        "image_id": "good.png",
        "error": None,
        "scores": scores,
        "abnormality": pytest.approx(0.92),
        "findings": ["Edema", "Mass"],
        "flagged": True,
        "tta_views": 1,
        "width": 224,
        "height": 224,
        "mean_intensity": pixels.mean(),
        "std_intensity": pixels.std(),
        "quality": ["clipped"],
        "feature_distance": None,
        "overlays": {"Edema": f"drawn/{overlay_name('good.png', 'Edema')}"},
    }
    assert bad == {
        "image_id": "nan.png",
        "error": {
            "stage": "infer",
            "reason": "non_finite_score",
            "detail": "the network gave NaN or infinity",
        },
    }


def test_predict_image_elsewhere_keeps_its_path_as_its_id(folder, tmp_path_factory):
    elsewhere = write_picture(tmp_path_factory.mktemp("other") / "a.png", picture({"Mass": 153}))
    (image,) = json.loads(predict(elsewhere, "--json").stdout)["images"]
    assert image["image_id"] == str(elsewhere)


# Bad usage


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Missing argument 'IMAGE...'"),
        (["a.png", "--gradcam-top", "2"], "--gradcam-top needs --gradcam DIR, where to draw."),
        (["a.png", "--gradcam", "d", "--gradcam-top", "15"], "15 is not in the range 1<=x<=14"),
        (
            ["a.png", "--gradcam", "taken"],
            "--gradcam must be a folder that can be written. Received: taken: File exists.",
        ),
        (["a.png", "--tta", "all"], "--tta must be a mode that the bundle has thresholds for"),
        (["a.png", "--thresholds", "none.json"], "none.json must be a readable JSON file."),
    ],
    ids=["no image", "top alone", "top", "folder", "mode", "thresholds"],
)
def test_predict_bad_usage_exits_2_and_prints_no_result(folder, arguments, message):
    (folder / "taken").touch()
    result = predict(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr


def test_predict_no_bundle_exits_2(tmp_path):
    result = predict("a.png", "--model", tmp_path / "nowhere")
    assert (result.exit_code, result.stdout) == (2, "")
    assert f"A bundle must be a folder with bundle.json and model.keras. Received: {tmp_path}" in (
        result.stderr
    )
