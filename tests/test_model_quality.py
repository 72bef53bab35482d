"""Quality codes: each where it belongs, none on sound radiographs, and no input that breaks one."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from model.preprocessing import prepare
from model.quality import image_quality, is_lateral
from schemas.quality import GATING, Gate, Quality, gate_error
from schemas.rejects import Reason, Stage

MOST_FALSE_ALARMS = 2
"""Of 200 radiographs, for any code."""


def codes(pixels, width=1024, height=1024, view=None):
    return [code.value for code in image_quality(pixels, width, height, view)]


def framed(square, level, share):
    """Returns an image shrunk into a frame that takes `share` of it."""
    side = int(224 * (1 - share) ** 0.5)
    pixels = np.full((224, 224), level, np.uint8)
    start = (224 - side) // 2
    at = np.linspace(0, 223, side).astype(int)
    pixels[start : start + side, start : start + side] = square[at][:, at]
    return pixels


def brightened(square):
    return np.minimum(square * 1.8 + 60, 255).astype(np.uint8)


def test_image_quality_sound_phantoms_have_no_code(squares):
    assert [codes(square) for square in squares] == [[]] * len(squares)


def test_image_quality_inverted_phantoms_are_suspects(squares):
    assert all("inverted_suspect" in codes(255 - square) for square in squares)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda square: np.full_like(square, 130), ["blank"]),
        (lambda square: 100 + square // 64, ["blank"]),
        (lambda square: 100 + square // 12, ["low_contrast"]),
        (lambda square: 40 + square // 3, []),
        (brightened, ["clipped"]),
        (lambda square: framed(square, 0, 0.3), ["border"]),
        (lambda square: framed(square, 255, 0.3), ["border"]),
        (lambda square: framed(square, 0, 0.1), []),
        (lambda square: np.where(square < np.quantile(square, 0.7), 0, square), ["clipped"]),
    ],
    ids=["one_level", "four_levels", "faint", "dim", "bright", "black_frame", "white_frame"]
    + ["narrow_frame", "dark"],
)
def test_image_quality_changed_phantoms_have_the_code_of_the_change(squares, change, expected):
    assert [codes(change(square)) for square in squares[:5]] == [expected] * 5


@pytest.mark.parametrize(
    ("width", "height", "expected"),
    [
        (224, 224, []),
        (223, 300, ["low_resolution"]),
        (1024, 640, []),
        (1025, 640, ["odd_aspect"]),
        (640, 1025, ["odd_aspect"]),
        (100, 500, ["low_resolution", "odd_aspect"]),
    ],
)
def test_image_quality_size_decides_resolution_and_aspect(squares, width, height, expected):
    assert codes(squares[0], width, height) == expected


@pytest.mark.parametrize(
    "view",
    ["LATERAL", "Lateral", " lat ", "LL", "RL", "L", "R", "Left Lateral", "L-LAT", "LLD", "RLD"]
    + ["RIGHT_LATERAL", "AP decubitus"],
)
def test_image_quality_side_views_are_lateral(squares, view):
    assert is_lateral(view) and codes(squares[0], view=view) == ["lateral"]


@pytest.mark.parametrize(
    "view", ["PA", "AP", "", "AP supine", "PA ERECT", "FRONTAL", "LAO", "RPO", "LLO", "AP PORTABLE"]
)
def test_image_quality_other_views_are_not_lateral(squares, view):
    assert not is_lateral(view) and codes(squares[0], view=view) == []


def test_image_quality_codes_of_the_header_stand_among_the_others_each_once(squares):
    said = (Quality.BURNED_IN_ANNOTATION, Quality.LATERAL)
    found = image_quality(255 - squares[0], 100, 100, "LL", said)
    assert [code.value for code in found] == [
        *("inverted_suspect", "clipped", "lateral", "low_resolution", "burned_in_annotation")
    ]


@settings(max_examples=60, deadline=None)
@given(
    pixels=st.one_of(
        arrays.arrays(np.uint8, (224, 224)),
        st.integers(0, 2**32 - 1).map(
            lambda seed: np.random.default_rng(seed).integers(0, 256, (224, 224), np.uint8)
        ),
    ),
    width=st.integers(1, 65535),
    height=st.integers(1, 65535),
    view=st.none() | st.text(max_size=16),
)
def test_image_quality_any_image_gives_codes_in_their_order_each_once(pixels, width, height, view):
    before = pixels.copy()
    found = image_quality(pixels, width, height, view)
    assert list(found) == [code for code in Quality if code in found]
    assert Quality.FAR_FROM_TRAINING not in found
    if Quality.BLANK in found:
        rest = {Quality.LATERAL, Quality.LOW_RESOLUTION, Quality.ODD_ASPECT}
        assert set(found) <= {Quality.BLANK} | rest
    np.testing.assert_array_equal(pixels, before)


def test_image_quality_real_radiographs_raise_few_false_alarms(nih_images):
    squares = [prepare(path.read_bytes()).pixels for path in nih_images]
    alarms = Counter(code for square in squares for code in codes(square))
    assert max(alarms.values(), default=0) <= MOST_FALSE_ALARMS, alarms
    inverted = ["inverted_suspect" in codes(255 - square) for square in squares]
    assert sum(inverted) >= len(squares) - MOST_FALSE_ALARMS
    clipped = ["clipped" in codes(brightened(square)) for square in squares]
    assert sum(clipped) >= 0.98 * len(squares)


def test_gate_error_is_for_the_first_code_that_gates():
    error = gate_error([Quality.BORDER, Quality.LATERAL, Quality.CLIPPED])
    assert (error.reason, error.reason.stage) == (Reason.CLIPPED, Stage.GATE)
    assert error.detail == "quality: clipped, lateral, border"
    rest = [Quality.BORDER, Quality.ODD_ASPECT, Quality.LOW_RESOLUTION]
    assert gate_error([*rest, Quality.BURNED_IN_ANNOTATION]) is None
    assert gate_error([]) is None


def test_quality_codes_are_those_published_and_what_gates_has_a_reason():
    assert [code.value for code in Quality] == [
        *("blank", "low_contrast", "inverted_suspect", "clipped", "lateral"),
        *("far_from_training", "low_resolution", "border", "odd_aspect", "burned_in_annotation"),
    ]
    assert [Reason(code).stage for code in GATING] == [Stage.GATE] * 6
    assert [gate.value for gate in Gate] == ["flag", "reject", "off"]
