"""Files that are not plain grey PNGs, made when a test asks: bad ones and odd ones."""

import dataclasses
import io
import os
import pathlib
import random
import struct
import zlib

import numpy as np
from PIL import Image
from pydicom.encaps import encapsulate

from schemas.rejects import Reason
from scripts.dicom_files import dicom_file
from scripts.png_files import (
    GREY_ALPHA,
    PALETTE,
    PNG_MAGIC,
    RGB,
    png_chunk,
    png_file,
    png_header,
    png_rows,
)

_ORIENTATION = 0x0112
_TURNED_LEFT = 6
"""The EXIF orientation of a picture that must be turned clockwise to be upright."""


@dataclasses.dataclass(frozen=True)
class OddFile:
    """A decodable oddity.

    Attributes:
      grey: uint8 `(height, width)`, 0 to 255: what decoding must give, upright.
      tolerance: The largest difference allowed at a pixel, in grey levels; 0 unless lossy.
    """

    grey: np.ndarray
    tolerance: int = 0


def grey_picture(height: int = 72, width: int = 96) -> np.ndarray:
    """Returns uint8 `(height, width)`: smooth, with many levels, unlike any turn of itself."""
    y, x = np.mgrid[0:height, 0:width]
    level = 20 + 150 * x / width + 80 * (y / height) ** 2
    return np.rint(level).astype(np.uint8)


def image_file(image: Image.Image, image_format: str, **options) -> bytes:
    """Returns the image as Pillow writes it."""
    stream = io.BytesIO()
    image.save(stream, image_format, **options)
    return stream.getvalue()


def exif_block(orientation: int) -> bytes:
    """Returns an EXIF block that holds the orientation alone."""
    exif = Image.Exif()
    exif[_ORIENTATION] = orientation
    return exif.tobytes()


def write_bad_files(folder: pathlib.Path) -> dict[str, Reason]:
    """Writes one file of each kind that must be rejected.

    Returns:
      The reason expected of each name. `missing.png` is not written.
    """
    expected = {
        "missing.png": Reason.NOT_FOUND,
        "folder.png": Reason.NOT_A_FILE,
        "pipe.png": Reason.NOT_A_FILE,
    }
    (folder / "folder.png").mkdir()
    os.mkfifo(folder / "pipe.png")
    for name, (reason, data) in _bad_contents().items():
        (folder / name).write_bytes(data)
        expected[name] = reason
    if os.geteuid() != 0:  # Root may read it all the same.
        unreadable = folder / "unreadable.png"
        unreadable.write_bytes(png_file(grey_picture()))
        unreadable.chmod(0)
        expected[unreadable.name] = Reason.PERMISSION_DENIED
    return expected


def _bad_contents() -> dict[str, tuple[Reason, bytes]]:
    picture = Image.fromarray(grey_picture())
    png = png_file(grey_picture())
    jpeg = image_file(picture, "JPEG")
    inverse = Image.fromarray(255 - grey_picture())
    animated = image_file(picture, "PNG", save_all=True, append_images=[inverse])
    noise = random.Random(7).randbytes(4096)
    short = png_file(grey_picture(), rows=png_rows(grey_picture()[:40]))
    return {
        "empty.png": (Reason.EMPTY_FILE, b""),
        "text.png": (Reason.NOT_AN_IMAGE, b"Index,Patient,Finding\n1,2,Effusion\n" * 20),
        "noise.jpg": (Reason.NOT_AN_IMAGE, b"\x00" + noise),
        "gif.png": (Reason.UNSUPPORTED_FORMAT, image_file(picture, "GIF")),
        "tiff.png": (Reason.UNSUPPORTED_FORMAT, image_file(picture, "TIFF")),
        "bitmap.png": (Reason.UNSUPPORTED_FORMAT, image_file(picture, "BMP")),
        "dicom.png": (Reason.NO_PIXEL_DATA, bytes(128) + b"DICM"),
        "frames": (Reason.MULTI_FRAME, dicom_file(grey_picture(), NumberOfFrames=2)),
        "syntax.dcm": (
            Reason.UNSUPPORTED_TRANSFER_SYNTAX,
            dicom_file(grey_picture(), "1.2.840.10008.1.2.4.94", PixelData=encapsulate([b"JPIP"])),
        ),
        "header.dcm": (Reason.INVALID_HEADER, dicom_file(grey_picture(), BitsStored=9)),
        "ct.dcm": (Reason.OTHER_MODALITY, dicom_file(grey_picture(), Modality="CT")),
        "twelve_bit.jpg": (Reason.UNSUPPORTED_FORMAT, with_frame(jpeg, bits=12)),
        "truncated.png": (Reason.TRUNCATED, png[: len(png) // 2]),
        "truncated.jpg": (Reason.TRUNCATED, jpeg[: len(jpeg) * 2 // 3]),
        "checksum.png": (Reason.CORRUPT, png[:60] + bytes((png[60] ^ 1,)) + png[61:]),
        "short.png": (Reason.CORRUPT, short),
        "no_tables.jpg": (Reason.CORRUPT, jpeg.replace(b"\xff\xdb", b"\xff\xfe")),
        "zero_width.png": (Reason.ZERO_DIMENSION, _png_of_size(0, 72)),
        "zero_height.jpg": (Reason.ZERO_DIMENSION, with_frame(jpeg, height=0)),
        "bomb.png": (Reason.TOO_MANY_PIXELS, _png_of_size(40_000, 40_000)),
        "bomb.jpg": (Reason.TOO_MANY_PIXELS, with_frame(jpeg, height=40_000, width=40_000)),
        "animated.png": (Reason.ANIMATED, animated),
    }


def with_frame(jpeg: bytes, bits: int = 8, height: int = 72, width: int = 96) -> bytes:
    """Returns a baseline JPEG with another frame header."""
    start = jpeg.index(b"\xff\xc0") + 4
    return jpeg[:start] + struct.pack(">BHH", bits, height, width) + jpeg[start + 5 :]


def _png_of_size(width: int, height: int) -> bytes:
    pixels = png_chunk(b"IDAT", zlib.compress(bytes(1000)))
    return PNG_MAGIC + png_header(width, height) + pixels + png_chunk(b"IEND")


def write_odd_files(folder: pathlib.Path) -> dict[str, OddFile]:
    """Writes the same picture in every form that can be decoded; returns what each must give."""
    grey = grey_picture()
    odd_files = {}
    for name, data in (_odd_pngs(grey) | _odd_jpegs(grey)).items():
        (folder / name).write_bytes(data)
        odd_files[name] = OddFile(grey, tolerance=2 if name.endswith(".jpg") else 0)
    one_bit = grey >= 128
    (folder / "one_bit.png").write_bytes(png_file(one_bit.astype(int), depth=1))
    odd_files["one_bit.png"] = OddFile(one_bit.astype(np.uint8) * 255)
    return odd_files


def _odd_pngs(grey: np.ndarray) -> dict[str, bytes]:
    picture = Image.fromarray(grey)
    # Alpha that varies, over every level, so that using it anywhere would show.
    alpha = Image.fromarray(np.arange(grey.size).astype(np.uint8).reshape(grey.shape))
    # A palette in reverse, so that an index is never its own level.
    palette = bytes(np.repeat(np.arange(255, -1, -1, dtype=np.uint8), 3))
    sixteen_bit = grey.astype(np.uint16) * 257
    turned = np.rot90(grey)
    return {
        "grey.png": image_file(picture, "PNG"),
        "rgb.png": image_file(picture.convert("RGB"), "PNG"),
        "rgba.png": image_file(Image.merge("RGBA", (picture,) * 3 + (alpha,)), "PNG"),
        "grey_alpha.png": image_file(Image.merge("LA", (picture, alpha)), "PNG"),
        "palette.png": png_file(
            255 - grey, colour=PALETTE, before_pixels=[png_chunk(b"PLTE", palette)]
        ),
        "sixteen_bit.png": image_file(Image.fromarray(sixteen_bit), "PNG"),
        "sixteen_bit_rgb.png": png_file(np.dstack([sixteen_bit] * 3), depth=16, colour=RGB),
        "sixteen_bit_alpha.png": png_file(
            np.dstack([sixteen_bit, sixteen_bit[::-1]]), depth=16, colour=GREY_ALPHA
        ),
        "interlaced.png": png_file(grey, interlaced=True),
        "turned.png": image_file(Image.fromarray(turned), "PNG", exif=exif_block(_TURNED_LEFT)),
        "png_named.jpeg": image_file(picture, "PNG"),
    }


def _odd_jpegs(grey: np.ndarray) -> dict[str, bytes]:
    picture = Image.fromarray(grey)
    turned = Image.fromarray(np.rot90(grey))
    inverse = Image.fromarray(255 - grey)
    black = Image.new("L", picture.size)
    return {
        "grey.jpg": image_file(picture, "JPEG", quality=95),
        "progressive.jpg": image_file(picture, "JPEG", quality=95, progressive=True),
        "rgb.jpg": image_file(picture.convert("RGB"), "JPEG", quality=95),
        "cmyk.jpg": image_file(Image.merge("CMYK", (inverse,) * 3 + (black,)), "JPEG", quality=95),
        "turned.jpg": image_file(turned, "JPEG", quality=95, exif=exif_block(_TURNED_LEFT)),
        "several.jpg": image_file(
            picture, "MPO", quality=95, save_all=True, append_images=[inverse]
        ),
    }
