"""Reason codes: published ones keep their names and stages, and errors survive pickling."""

import pickle

import pytest

from schemas.rejects import ImageError, Reason, Stage, TransientError

PUBLISHED = {
    Stage.READ: [
        *("not_found", "not_a_file", "permission_denied", "too_many_bytes", "read_error"),
        "read_timeout",
    ],
    Stage.DECODE: [
        *("empty_file", "not_an_image", "unsupported_format", "truncated", "corrupt"),
        *("zero_dimension", "too_many_pixels", "animated", "decode_timeout", "multi_frame"),
        *("no_pixel_data", "unsupported_transfer_syntax", "invalid_header", "other_modality"),
        "decoder_missing",
    ],
    Stage.INFER: ["non_finite_score", "inference_error"],
    Stage.GATE: [
        *("blank", "low_contrast", "clipped", "inverted_suspect", "lateral"),
        "far_from_training",
    ],
}


def test_reasons_are_those_published_each_with_its_stage():
    expected = {code: stage for stage, codes in PUBLISHED.items() for code in codes}
    assert {reason.value: reason.stage for reason in Reason} == expected


@pytest.mark.parametrize("kind", [ImageError, TransientError])
def test_image_error_survives_pickling(kind):
    error = pickle.loads(pickle.dumps(kind(Reason.READ_ERROR, "in words")))
    assert type(error) is kind and isinstance(error, ImageError)
    assert (error.reason, error.detail) == (Reason.READ_ERROR, "in words")
    assert str(error) == "read_error: in words"
