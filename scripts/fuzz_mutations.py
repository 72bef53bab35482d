"""Ways to damage a file, each by chance and the same for the same chance.

Each of `MUTATORS` takes a source of chance, the bytes to change and those of another
file, and returns the changed bytes. None of them raises, whatever the bytes are.
"""

import gzip
import itertools
import random
import re
import struct
import zlib
from collections.abc import Callable

from png_files import PNG_MAGIC, png_chunk

_MOST_BYTES = 4_000_000
"""Copies of pieces end here, so that a file does not grow from change to change."""

Mutator = Callable[[random.Random, bytes, bytes], bytes]

_JPEG_MAGIC = b"\xff\xd8\xff"
_PARQUET_MAGIC = b"PAR1"
_DICOM_PREFIX = b"DICM"
_LONG_VRS = frozenset((b"OB", b"OD", b"OF", b"OW", b"SQ", b"UN", b"UT"))
_UNDEFINED = 0xFFFF_FFFF
_DICOM_NUMBER = re.compile(rb"\x28\x00..US\x02\x00", re.DOTALL)
"""An element of the group that says how pixels are stored, up to its value."""
_FRAGMENTS = re.compile(rb"\xe0\x7f\x10\x00OB\x00\x00\xff{4}.{12}\xfe\xff\x00\xe0", re.DOTALL)
"""Compressed pixels up to the length of the first fragment, after a table of one offset."""
_JPEG_PIECE = re.compile(rb"\xff[^\x00\x01\xff\xd0-\xd7]")
_JPEG_FRAME = re.compile(rb"\xff[\xc0-\xc2]..\x08", re.DOTALL)
_SCAN = b"\xda"
_PNG_HEADER_FIELDS = ((16, 4), (20, 4), (24, 1), (25, 1), (28, 1))
"""Place and bytes of width, height, depth, colour type and interlacing."""
_JPEG_FRAME_FIELDS = ((5, 2), (7, 2), (9, 1), (11, 1))
"""Likewise, from the start of the frame: height, width, channels, sampling of the first."""

_NUMBERS = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFF_FFFF, 0x8000_0000, 2**32 - 1)
"""Where counters, signs and lengths turn over."""
_SIDES = (0, 1, 63, 65, 255, 4096, 8000, 8001, 65_535)
_TEXTS = (
    b'"', b"'", b",", b"\t", b"\n", b"\r", b"\r\n", b"\0", b"\xff", b"\xef\xbb\xbf", b"#", b"../",
    b"{", b"[" * 5000, b"9" * 5000, b"a" * 255, b"\\u0000", b"\\ud800", b"gs://", b".tar#", b"NaN",
)  # fmt: skip
"""What means something to a reader of text, or to what uses the text."""
_CELL = re.compile(rb"\"[^\"\n]*\"|[^\",:\t\n]+")
"""A quoted or bare value, or a name, of a table or of a JSON line."""
_TEXT_BYTES = 16_384
"""The manifests are shorter; in a picture they stand by chance."""


def pieces_of(data: bytes) -> list[bytes]:
    """Returns PNG chunks, JPEG segments with what follows, DICOM elements or lines.

    Joined they are `data`.
    """
    if data.startswith(PNG_MAGIC):
        starts, at = [0], len(PNG_MAGIC)
        while at < len(data):
            starts.append(at)
            at += 12 + int.from_bytes(data[at : at + 4])
    elif data.startswith(_JPEG_MAGIC):
        starts = [match.start() for match in _JPEG_PIECE.finditer(data)]
    elif data.startswith(_DICOM_PREFIX, 128):
        starts = _dicom_starts(data)
    else:
        starts = [0, *(match.end() for match in re.finditer(b"\n", data))]
    return [data[a:b] for a, b in zip(starts, [*starts[1:], len(data)], strict=True) if a < b]


def _dicom_starts(data: bytes) -> list[int]:
    """Returns where the prefix, then each element in explicit VR little endian begins."""
    starts, at = [0], 132
    while at < len(data) and data[at + 4 : at + 6].isupper():
        starts.append(at)
        place, size = _length_field(data, at)
        length = int.from_bytes(data[place : place + size], "little")
        if length == _UNDEFINED:
            break
        at = place + size + length
    return starts


def _length_field(data: bytes, start: int) -> tuple[int, int]:
    """Returns place and bytes of the length of a DICOM element that begins at `start`."""
    return (start + 8, 4) if data[start + 4 : start + 6] in _LONG_VRS else (start + 6, 2)


def flip_bits(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """Flips one bit to eight."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 8) if data else 0):
        changed[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def overwrite(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """Writes a number or a text that means something over a place."""
    size = rng.choice((1, 2, 4))
    number = (rng.choice(_NUMBERS) % 256**size).to_bytes(size, rng.choice(("big", "little")))
    at, value = rng.randint(0, len(data)), rng.choice((number, number, rng.choice(_TEXTS)))
    return data[:at] + value + data[at + len(value) :]


def truncate(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """Cuts the end off, anywhere or within the last 32 bytes."""
    return data[: rng.randint(rng.choice((0, max(0, len(data) - 32))), len(data))]


def splice(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """Goes on with another file from some place."""
    return data[: rng.randint(0, len(data))] + other[rng.randint(0, len(other)) :]


def insert(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """Puts random bytes, or a text that means something, between two."""
    at, text = rng.randint(0, len(data)), rng.choice(_TEXTS)
    value = rng.choice((rng.randbytes(rng.randint(1, 64)), text, text))
    return data[:at] + value + data[at:]


def remove(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """Takes up to 64 bytes out."""
    at = rng.randint(0, len(data))
    return data[:at] + data[at + rng.randint(1, 64) :]


def change_pieces(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """Repeats, drops, swaps or borrows chunks, segments or lines."""
    pieces, lent = pieces_of(data), pieces_of(other)
    if not pieces or not lent:
        return other
    at, to = rng.randrange(len(pieces)), rng.randrange(len(pieces))
    change = rng.choice(("repeat", "drop", "swap", "borrow"))
    if change == "repeat":
        pieces[to:to] = [pieces[at]] * rng.choice((1, 2, 120))
    elif change == "drop":
        del pieces[at]
    elif change == "swap":
        pieces[at], pieces[to] = pieces[to], pieces[at]
    else:
        pieces.insert(to, rng.choice(lent))
    return b"".join(pieces)[:_MOST_BYTES]


def change_length(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """Changes the length that a piece of a file or a Parquet footer gives; else a cell."""
    order = "big"
    if data.startswith(PNG_MAGIC):
        places, size = _starts(data)[1:], 4
    elif data.startswith(_JPEG_MAGIC):
        places, size = [start + 2 for start in _starts(data)], 2
    elif data.startswith(_PARQUET_MAGIC):
        places, size = [len(data) - 8], 4
    elif starts := _starts_of_elements(data):
        place, size = _length_field(data, rng.choice(starts))
        places, order = [place], "little"
    else:
        return change_cell(rng, data, other)
    at = rng.choice(places or [0])
    length = int.from_bytes(data[at : at + size], order) + rng.choice((-1, 1, 12, 255))
    value = rng.choice((length, rng.choice(_NUMBERS))) % 256**size
    return data[:at] + value.to_bytes(size, order) + data[at + size :]


def _starts_of_elements(data: bytes) -> list[int]:
    return _dicom_starts(data)[1:] if data.startswith(_DICOM_PREFIX, 128) else []


def _starts(data: bytes) -> list[int]:
    lengths = [len(piece) for piece in pieces_of(data)]
    return list(itertools.accumulate(lengths, initial=0))[:-1]


def change_header(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """Changes the width, the height or what else an image says of itself; else a cell."""
    frame = _JPEG_FRAME.search(data)
    if data.startswith(PNG_MAGIC) and len(data) >= 33:
        at, size = rng.choice(_PNG_HEADER_FIELDS)
    elif frame and data.startswith(_JPEG_MAGIC):
        place, size = rng.choice(_JPEG_FRAME_FIELDS)
        at = frame.start() + place
    elif numbers := list(_DICOM_NUMBER.finditer(data)):
        at = rng.choice(numbers).end()
        value = rng.choice((*_SIDES, *range(17)))
        return data[:at] + value.to_bytes(2, "little") + data[at + 2 :]
    else:
        return change_cell(rng, data, other)
    value = rng.choice(_SIDES) if size > 1 else rng.randrange(256)
    return data[:at] + value.to_bytes(size) + data[at + size :]


def change_cell(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """Puts a text that means something in the place of a cell, bare, quoted or added to it."""
    cells = list(_CELL.finditer(data, 0, _TEXT_BYTES))
    if not cells:
        return insert(rng, data, other)
    start, end = rng.choice(cells).span()
    text = rng.choice(_TEXTS)
    added = data[start:end].removesuffix(b'"') + text + b'"'
    return data[:start] + rng.choice((text, b'"%b"' % text, added)) + data[end:]


def change_body(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """Changes what is in a chunk, with its length and checksum, a segment, an element or a cell."""
    pieces = pieces_of(data)
    change = rng.choice((flip_bits, overwrite, insert, remove))
    at = rng.randrange(len(pieces)) if pieces else 0
    if data.startswith(PNG_MAGIC) and at:
        pieces[at] = _change_chunk(rng, pieces[at], change)
    elif data.startswith(_JPEG_MAGIC) and at:
        piece = pieces[at]
        if piece[1:2] == _SCAN:
            start = 2 + int.from_bytes(piece[2:4])
            pieces[at] = piece[:start] + change(rng, piece[start:], other)
        else:
            body = change(rng, piece[4:], other)[:65_533]
            pieces[at] = piece[:2] + (len(body) + 2).to_bytes(2) + body
    elif data.startswith(_DICOM_PREFIX, 128) and at:
        pieces[at] = _change_element(rng, pieces[at], change)
    else:
        return change_cell(rng, data, other)
    return b"".join(pieces)


def _change_chunk(rng: random.Random, chunk: bytes, change: Mutator) -> bytes:
    kind, body = chunk[4:8], chunk[8:-4]
    try:
        rows = zlib.decompressobj().decompress(body, _MOST_BYTES) if kind == b"IDAT" else b""
    except zlib.error:
        rows = b""
    if rows and rng.random() < 0.5:
        return png_chunk(kind, zlib.compress(change(rng, rows, b""), 1))
    return png_chunk(kind, change(rng, body, b""))


def _change_element(rng: random.Random, element: bytes, change: Mutator) -> bytes:
    if fragments := _FRAGMENTS.match(element):
        body = change(rng, element[fragments.end() + 4 : -8], b"")
        body += bytes(len(body) % 2)
        return fragments[0] + len(body).to_bytes(4, "little") + body + element[-8:]
    place, size = _length_field(element, 0)
    body = change(rng, element[place + size :], b"")[:65_000]
    body += bytes(len(body) % 2)
    return element[:place] + len(body).to_bytes(size, "little") + body


MUTATORS: tuple[Mutator, ...] = (
    flip_bits,
    overwrite,
    truncate,
    splice,
    insert,
    remove,
    change_pieces,
    change_length,
    change_header,
    change_body,
    change_body,
)
"""All of them; the last twice, since only it gets deep into a file."""


def mutate(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """Returns `data` after one change to three, which may borrow from `other`.

    Half the PNGs get their checksums put right, and half the gzip files are changed
    before compression: else nearly all damage would be found by the checksum.

    Args:
      rng: What decides.
      data: A whole file.
      other: Another of the same format.
    """
    repair = rng.random() < 0.5
    packed = data[:2] == b"\x1f\x8b"
    if packed and repair:
        data, other = gzip.decompress(data), gzip.decompress(other)
    for _ in range(rng.choice((1, 1, 2, 3))):
        data = rng.choice(MUTATORS)(rng, data, other)
    if packed and repair:
        return gzip.compress(data, mtime=0)
    return with_checksums(data) if repair else data


def with_checksums(data: bytes) -> bytes:
    """Returns a PNG with the checksum of each whole chunk put right; other bytes as they are."""
    if not data.startswith(PNG_MAGIC):
        return data
    magic, *chunks = pieces_of(data)
    return magic + b"".join(
        chunk[:-4] + struct.pack(">I", zlib.crc32(chunk[4:-4]))
        if len(chunk) == 12 + int.from_bytes(chunk[:4])
        else chunk
        for chunk in chunks
    )
