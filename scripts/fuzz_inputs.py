"""What the fuzzer feeds: whole files, and what becomes of them.

Everything follows from a seed: the same originals, seed and number give the same bytes.
"""

import csv
import functools
import gzip
import io
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from dicom_files import dicom_file, lookup_table
from fuzz_mutations import mutate, pieces_of
from PIL import Image
from png_files import png_chunk, png_file
from pydicom import uid

from model.phantoms import draw_phantom

_PHANTOM_SIZE = 64
_FOLDER_SHARE = 0.4
"""Share of the inputs that are made from files of the folders, where there are any."""

IMAGE_EXTENSIONS = (".png", ".jpg", ".jpeg", ".dcm")

_ORIENTATION, _TURNED_LEFT = 0x0112, 6


_TWELVE_BIT_SYNTAXES = (
    *uid.UncompressedTransferSyntaxes,
    *(uid.JPEGExtended12Bit, uid.JPEGLosslessSV1, uid.JPEGLSLossless, uid.JPEGLSNearLossless),
    *(uid.JPEG2000Lossless, uid.JPEG2000, uid.HTJ2KLossless, uid.RLELossless),
)


@dataclass(frozen=True)
class Original:
    """A whole file: its name, for people and for its extension, and its bytes."""

    name: str
    data: bytes


def drawn_images() -> list[Original]:
    """Returns phantoms in each encoding that the decoder reads, half a MB in all."""
    grey = draw_phantom(1, 0, _PHANTOM_SIZE).pixels
    picture, other = Image.fromarray(grey), Image.fromarray(draw_phantom(1, 1, 96).pixels)
    exif = Image.Exif()
    exif[_ORIENTATION] = _TURNED_LEFT
    colour = Image.merge("RGB", (picture, picture.rotate(180), picture.rotate(90)))
    alpha = Image.merge("RGBA", (*colour.split(), picture))
    pngs = {
        "grey": _saved(picture, "PNG"),
        "chunked": _rechunked(_saved(other, "PNG")),
        "sixteen_bit": _saved(Image.fromarray(grey.astype(np.uint16) * 257), "PNG"),
        "palette": _saved(colour.quantize(16), "PNG"),
        "rgba": _saved(alpha, "PNG"),
        "grey_alpha": _saved(Image.merge("LA", (picture, picture)), "PNG"),
        "one_bit": _saved(picture.convert("1"), "PNG"),
        "turned": _saved(colour, "PNG", exif=exif),
        "interlaced": png_file(grey, interlaced=True),
    }
    jpegs = {
        "grey": _saved(other, "JPEG"),
        "rgb": _saved(colour, "JPEG", comment=b"phantom"),
        "cmyk": _saved(colour.convert("CMYK"), "JPEG"),
        "progressive": _saved(colour, "JPEG", progressive=True),
        "turned": _saved(picture, "JPEG", exif=exif),
        "restarts": _saved(colour, "JPEG", restart_marker_blocks=1),
    }
    kinds = (("png", pngs), ("jpg", jpegs), ("dcm", _dicoms(grey, np.asarray(colour))))
    return [
        Original(f"{name}.{extension}", data)
        for extension, files in kinds
        for name, data in files.items()
    ]


def _dicoms(grey: np.ndarray, colour: np.ndarray) -> dict[str, bytes]:
    """Returns DICOM files of each transfer syntax and of each way to make grey of it."""
    twelve_bit = grey.astype(np.uint16) * 16
    window = {"WindowCenter": 2000, "WindowWidth": 3000, "BitsStored": 12}
    files = {
        syntax.keyword: dicom_file(twelve_bit, syntax, **window) for syntax in _TWELVE_BIT_SYNTAXES
    }
    palette = {"PhotometricInterpretation": "PALETTE COLOR"}
    for name in ("Red", "Green", "Blue"):
        palette[f"{name}PaletteColorLookupTableDescriptor"] = [256, 0, 16]
        palette[f"{name}PaletteColorLookupTableData"] = bytes(512)
    curve = lookup_table(np.arange(4096) ** 2 // 4096, bits=12)
    signed = twelve_bit.astype(np.int16) - 2048
    return files | {
        "baseline": dicom_file(colour, uid.JPEGBaseline8Bit, PhotometricInterpretation="YBR_FULL"),
        "rgb": dicom_file(colour, uid.RLELossless),
        "jpeg_ls_rgb": dicom_file(colour, uid.JPEGLSLossless),
        "palette": dicom_file(grey, **palette),
        "ybr_422": dicom_file(
            colour, PhotometricInterpretation="YBR_FULL_422", PixelData=grey.tobytes() * 2
        ),
        "modality_lut": dicom_file(twelve_bit, BitsStored=12, ModalityLUTSequence=curve),
        "voi_lut": dicom_file(
            *(signed, uid.ImplicitVRLittleEndian),
            **{"BitsStored": 12, "RescaleSlope": 1, "RescaleIntercept": 2048},
            **{"VOILUTSequence": curve, "PixelPaddingValue": -2048},
        ),
        "sigmoid": dicom_file(
            signed, **window, VOILUTFunction="SIGMOID", PhotometricInterpretation="MONOCHROME1"
        ),
    }


def folder_images(folders: Sequence[str]) -> list[Original]:
    """Returns the PNG, JPEG and DICOM files that lie directly in the folders."""
    paths = sorted(path for folder in folders for path in Path(folder).iterdir())
    return [
        Original(f"folder{path.suffix.lower()}", path.read_bytes())
        for path in paths
        if path.suffix.lower() in IMAGE_EXTENSIONS
    ]


def drawn_manifests() -> list[Original]:
    """Returns one small manifest in each format, and one as the NIH writes it."""
    columns = ["image_id", "uri", "patient_id", "labels"]
    rows = [(f"image {n}", f"folder/{n}.png", str(n // 2), "Mass|Nodule") for n in range(12)]
    rows += [
        ('quote " and, comma', "a.tar#b.png", "", "No Finding"),
        ("two\nlines", "gs://bucket/d.png", "", ""),
        ("carriage\rreturn", "gs://bucket/c.png", "7", ""),
        ("IMAGE 0", "../é.png", "", "Effusion"),
    ]
    objects = (dict(zip(columns, row, strict=True)) for row in rows)
    json_lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in objects).encode()
    nih_columns = ("Image Index", "Finding Labels", "Patient ID", "View Position")
    nih = [(f"{n:08d}_000.png", "Mass|Hernia", str(n), "PA") for n in range(12)]
    table = pa.table(
        {name: list(cells) for name, cells in zip(columns, zip(*rows, strict=True), strict=True)}
    )
    manifests = {
        "manifest.csv": _delimited((columns, *rows), ","),
        "nih.csv": _delimited((nih_columns, *nih), ","),
        "manifest.tsv": _delimited((columns, *rows), "\t"),
        "manifest.csv.gz": gzip.compress(_delimited((columns, *rows), ","), mtime=0),
        "manifest.jsonl": json_lines,
        "manifest.jsonl.gz": gzip.compress(json_lines, mtime=0),
        "manifest.txt": "".join(f"{uri}\n" for _, uri, *_ in rows).encode(),
        "manifest.parquet": _parquet(table, compression="zstd"),
        "plain.parquet": _parquet(table, compression="none", use_dictionary=False),
    }
    return [Original(name, data) for name, data in manifests.items()]


def _saved(image: Image.Image, image_format: str, **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, image_format, **options)
    return stream.getvalue()


def _rechunked(png: bytes) -> bytes:
    """Returns the PNG with its pixels in chunks of 1,000 bytes, as large files have several."""
    bodies = b"".join(piece[8:-4] for piece in pieces_of(png) if piece[4:8] == b"IDAT")
    pixels = [png_chunk(b"IDAT", bodies[at : at + 1000]) for at in range(0, len(bodies), 1000)]
    return b"".join((png[:33], *pixels, png_chunk(b"IEND", b"")))


def _delimited(rows: Sequence[Sequence[str]], delimiter: str) -> bytes:
    text = io.StringIO()
    csv.writer(text, delimiter=delimiter).writerows(rows)
    return text.getvalue().encode()


def _parquet(table: pa.Table, **options) -> bytes:
    stream = io.BytesIO()
    pq.write_table(table, stream, row_group_size=8, **options)
    return stream.getvalue()


@dataclass(frozen=True)
class MutatedImages:
    """Damaged images by number; those of the same folders and seed are the same."""

    folders: tuple[str, ...]
    seed: int

    @functools.cached_property
    def _originals(self) -> tuple[list[Original], list[Original]]:
        return drawn_images(), folder_images(self.folders)

    def __call__(self, number: int) -> Original:
        """Returns input `number`, from 0, with the name of the original it was made from."""
        drawn, found = self._originals
        rng = random.Random(f"image {self.seed} {number}")
        return _mutated(rng, found if found and rng.random() < _FOLDER_SHARE else drawn)


@dataclass(frozen=True)
class MutatedManifests:
    """Damaged manifests by number; those of the same seed are the same."""

    seed: int

    @functools.cached_property
    def _originals(self) -> list[Original]:
        return drawn_manifests()

    def __call__(self, number: int) -> Original:
        """Returns input `number`, from 0, with the name of the original it was made from."""
        return _mutated(random.Random(f"manifest {self.seed} {number}"), self._originals)


def _mutated(rng: random.Random, originals: Sequence[Original]) -> Original:
    original = rng.choice(originals)
    extension = Path(original.name).suffix
    other = rng.choice([each for each in originals if Path(each.name).suffix == extension])
    return Original(original.name, mutate(rng, original.data, other.data))
