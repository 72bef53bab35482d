"""Why an image could not be scored: the reason codes of the rejects table."""

import enum


class Stage(enum.StrEnum):
    """Where the image was lost."""

    READ = "read"
    DECODE = "decode"
    INFER = "infer"
    GATE = "gate"


class Reason(enum.StrEnum):
    """What was wrong with it. A published code never changes its meaning."""

    # read
    NOT_FOUND = "not_found"
    NOT_A_FILE = "not_a_file"
    PERMISSION_DENIED = "permission_denied"
    TOO_MANY_BYTES = "too_many_bytes"
    READ_ERROR = "read_error"
    READ_TIMEOUT = "read_timeout"
    # decode
    EMPTY_FILE = "empty_file"
    NOT_AN_IMAGE = "not_an_image"
    UNSUPPORTED_FORMAT = "unsupported_format"
    TRUNCATED = "truncated"
    CORRUPT = "corrupt"
    ZERO_DIMENSION = "zero_dimension"
    TOO_MANY_PIXELS = "too_many_pixels"
    ANIMATED = "animated"
    MULTI_FRAME = "multi_frame"
    NO_PIXEL_DATA = "no_pixel_data"
    UNSUPPORTED_TRANSFER_SYNTAX = "unsupported_transfer_syntax"
    INVALID_HEADER = "invalid_header"
    OTHER_MODALITY = "other_modality"
    DECODE_TIMEOUT = "decode_timeout"
    DECODER_MISSING = "decoder_missing"
    # infer
    NON_FINITE_SCORE = "non_finite_score"
    INFERENCE_ERROR = "inference_error"
    # gate, with `--gate reject` alone: what these mean, `schemas.quality` says
    BLANK = "blank"
    LOW_CONTRAST = "low_contrast"
    CLIPPED = "clipped"
    INVERTED_SUSPECT = "inverted_suspect"
    LATERAL = "lateral"
    FAR_FROM_TRAINING = "far_from_training"

    @property
    def stage(self) -> Stage:
        """The stage this reason belongs to."""
        return _STAGES[self]


_STAGES = {
    **dict.fromkeys(
        (
            Reason.NOT_FOUND,
            Reason.NOT_A_FILE,
            Reason.PERMISSION_DENIED,
            Reason.TOO_MANY_BYTES,
            Reason.READ_ERROR,
            Reason.READ_TIMEOUT,
        ),
        Stage.READ,
    ),
    **dict.fromkeys(
        (
            Reason.EMPTY_FILE,
            Reason.NOT_AN_IMAGE,
            Reason.UNSUPPORTED_FORMAT,
            Reason.TRUNCATED,
            Reason.CORRUPT,
            Reason.ZERO_DIMENSION,
            Reason.TOO_MANY_PIXELS,
            Reason.ANIMATED,
            Reason.MULTI_FRAME,
            Reason.NO_PIXEL_DATA,
            Reason.UNSUPPORTED_TRANSFER_SYNTAX,
            Reason.INVALID_HEADER,
            Reason.OTHER_MODALITY,
            Reason.DECODE_TIMEOUT,
            Reason.DECODER_MISSING,
        ),
        Stage.DECODE,
    ),
    **dict.fromkeys((Reason.NON_FINITE_SCORE, Reason.INFERENCE_ERROR), Stage.INFER),
    **dict.fromkeys(
        (
            Reason.BLANK,
            Reason.LOW_CONTRAST,
            Reason.CLIPPED,
            Reason.INVERTED_SUSPECT,
            Reason.LATERAL,
            Reason.FAR_FROM_TRAINING,
        ),
        Stage.GATE,
    ),
}


class ImageError(Exception):
    """One image cannot be scored; its row goes to the rejects.

    Attributes:
      reason: The code.
      detail: One line for a person. Never a path or metadata of the file.
    """

    def __init__(self, reason: Reason, detail: str):
        # Both go to Exception, so that the error survives pickling.
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"


class TransientError(ImageError):
    """A read failed as it may not fail a moment later: it is worth another attempt."""
