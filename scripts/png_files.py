"""PNGs written by hand: right ones that Pillow does not write, and parts for wrong ones."""

import struct
import zlib
from collections.abc import Iterable

import numpy as np

PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
GREY, RGB, PALETTE, GREY_ALPHA, RGBA = 0, 2, 3, 4, 6
"""Colour types of a PNG."""

_ADAM7 = (
    (0, 0, 8, 8),
    (4, 0, 8, 8),
    (0, 4, 4, 8),
    (2, 0, 4, 4),
    (0, 2, 2, 4),
    (1, 0, 2, 2),
    (0, 1, 1, 2),
)
"""First column, first row, column step and row step of each interlacing pass."""
_NO_PASSES = ((0, 0, 1, 1),)


def png_chunk(kind: bytes, body: bytes = b"") -> bytes:
    """Returns a PNG chunk with its right checksum."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_header(width: int, height: int, depth: int = 8, colour: int = GREY, interlace=0) -> bytes:
    """Returns the IHDR chunk."""
    return png_chunk(
        b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlace)
    )


def png_rows(samples: np.ndarray, depth: int = 8, interlaced: bool = False) -> bytes:
    """Returns the rows of a PNG before compression, none of them filtered.

    Args:
      samples: `(height, width)` or `(height, width, channels)`, 0 to 2**depth - 1.
      depth: Bits of a sample.
      interlaced: By Adam7.
    """
    if samples.ndim == 2:
        samples = samples[:, :, np.newaxis]
    rows = []
    for x, y, x_step, y_step in _ADAM7 if interlaced else _NO_PASSES:
        part = samples[y::y_step, x::x_step]
        if part.size:
            rows += [b"\x00" + _packed(row.reshape(-1), depth) for row in part]
    return b"".join(rows)


def _packed(row: np.ndarray, depth: int) -> bytes:
    if depth < 8:
        bits = row[:, np.newaxis] >> np.arange(depth - 1, -1, -1) & 1
        return np.packbits(bits.astype(np.uint8)).tobytes()
    return row.astype(f">u{depth // 8}").tobytes()


def png_file(
    samples: np.ndarray,
    depth: int = 8,
    colour: int = GREY,
    interlaced: bool = False,
    before_pixels: Iterable[bytes] = (),
    rows: bytes | None = None,
) -> bytes:
    """Returns a PNG as `png_rows` takes it, with chunks before its pixels, or other `rows`."""
    height, width = samples.shape[:2]
    if rows is None:
        rows = png_rows(samples, depth, interlaced)
    header = png_header(width, height, depth, colour, int(interlaced))
    pixels = png_chunk(b"IDAT", zlib.compress(rows))
    return b"".join((PNG_MAGIC, header, *before_pixels, pixels, png_chunk(b"IEND")))
