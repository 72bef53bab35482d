"""The header of a DICOM file: the few attributes that decoding needs, and where the pixels are.

Nothing else is kept, so that no attribute that names a patient leaves this module unasked; and
no message quotes a value.
"""

import contextlib
import io
import logging
import struct
import threading
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from pydicom.datadict import tag_for_keyword
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.filereader import data_element_generator, read_sequence
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian

from schemas.rejects import ImageError, Reason

_KEPT = frozenset(
    tag_for_keyword(keyword)
    for keyword in (
        *("TransferSyntaxUID", "MediaStorageSOPClassUID", "SOPClassUID", "Modality"),
        "NumberOfFrames",
        *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
        *("Rows", "Columns", "SamplesPerPixel", "PlanarConfiguration"),
        *("PhotometricInterpretation", "PresentationLUTShape"),
        *("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation"),
        *("PixelPaddingValue", "PixelPaddingRangeLimit"),
        *("ModalityLUTSequence", "RescaleSlope", "RescaleIntercept"),
        *("VOILUTSequence", "WindowCenter", "WindowWidth", "VOILUTFunction"),
        *(f"{c}PaletteColorLookupTableDescriptor" for c in ("Red", "Green", "Blue")),
        *(f"{c}PaletteColorLookupTableData" for c in ("Red", "Green", "Blue")),
        "SegmentedRedPaletteColorLookupTableData",
        *("ViewPosition", "ViewCodeSequence", "BurnedInAnnotation"),
    )
)
_PIXELS = frozenset(
    tag_for_keyword(keyword) for keyword in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
)
_UNDEFINED = 0xFFFFFFFF

_PREFIX_END = 132
_MAX_READS = 500_000
"""Of a header: a real one takes some hundreds; a made-up one could take all the memory."""
_MAX_VALUE_BYTES = 16 * 2**20
"""A longer value is stepped over; no lookup table comes near."""
_MAX_INFLATED_BYTES = 256 * 2**20
"""Of a deflated dataset: as much as a file may have."""

_NUMBERS = {"SS": "h", "UL": "L", "SL": "l"}
"""How a number is stored; as an unsigned short where the value representation is another."""

_reading = threading.local()


class _NotOfReading(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return not getattr(_reading, "now", False)


# What pydicom says of a broken value quotes it. Its logger is its own, and only what it logs
# while this module reads is dropped; warnings know no threads.
logging.getLogger("pydicom").addFilter(_NotOfReading())
warnings.filterwarnings("ignore", module=r"pydicom\b")


class ReadStream(io.BytesIO):
    """Bytes that can be read so and so often: each element takes at least one read."""

    def __init__(self, data: bytes, max_reads: int | None = None):
        super().__init__(data)
        self._left = _MAX_READS if max_reads is None else max_reads

    @property
    def is_exhausted(self) -> bool:
        """Whether there have been too many reads."""
        return self._left < 0

    def read(self, size: int | None = -1, /) -> bytes:
        """Returns up to `size` bytes.

        Raises:
          ImageError: There have been too many reads.
        """
        self._left -= 1
        if self.is_exhausted:
            raise _endless()
        return super().read(size)


class Elements:
    """Attributes of a dataset, by their names in the standard; each may be absent."""

    def __init__(self, elements: Iterable[RawDataElement | DataElement]):
        self._elements = {element.tag: element for element in elements}

    def __contains__(self, keyword: str) -> bool:
        return tag_for_keyword(keyword) in self._elements

    def integer(self, keyword: str) -> int | None:
        """Returns the first number of a binary value or an integer string; None without one.

        Raises:
          ImageError: It is none.
        """
        element, value = self._value(keyword)
        if not value:
            return None
        if element.VR == "IS" or keyword == "NumberOfFrames":
            return self._parsed(keyword, int)
        code = ("<" if element.is_little_endian else ">") + _NUMBERS.get(element.VR, "H")
        if len(value) < struct.calcsize(code):
            raise invalid(f"{keyword} is no number")
        return struct.unpack_from(code, value)[0]

    def decimal(self, keyword: str) -> float | None:
        """Returns the first number of a decimal string; None without one.

        Raises:
          ImageError: It is none, or not finite.
        """
        return self._parsed(keyword, float) if self.text(keyword) else None

    def text(self, keyword: str) -> str:
        """Returns the first of a value's texts, without spaces around it; empty without one."""
        _, value = self._value(keyword)
        return value.split(b"\\")[0].decode("ascii", "replace").strip(" \0")

    def descriptor(self, keyword: str, signed: bool) -> tuple[int, int, int]:
        """Returns of a lookup table: entries, first value mapped, bits of an entry.

        Args:
          keyword: Of the attribute that describes it.
          signed: Whether the first value is where the file does not say so.

        Raises:
          ImageError: There is none, or it is not one.
        """
        element, value = self._value(keyword)
        if len(value) < 6:
            raise invalid(f"{keyword} must have three values")
        order = "<" if element.is_little_endian else ">"
        entries, first, bits = struct.unpack_from(f"{order}3H", value)
        if element.VR == "SS" or (element.VR != "US" and signed):
            first -= (first & 0x8000) << 1
        return entries or 1 << 16, first, bits

    def binary(self, keyword: str) -> tuple[bytes, str]:
        """Returns a value as it is stored, and the byte order of its words: `<` or `>`."""
        element, value = self._value(keyword)
        return value, ">" if element and not element.is_little_endian else "<"

    def first_item(self, keyword: str) -> "Elements | None":
        """Returns the first item of a sequence; None without one.

        Raises:
          ImageError: It cannot be read.
        """
        element = self._elements.get(tag_for_keyword(keyword))
        if isinstance(element, RawDataElement):
            element, value = self._value(keyword)
            # PS3.5 6.2.2: an unknown representation holds its items in implicit VR.
            implicit = element.is_implicit_VR or element.VR == "UN"
            little = element.is_little_endian or element.VR == "UN"
            with naming_errors(stream := ReadStream(value), len(value)):
                items = read_sequence(stream, implicit, little, len(value), "iso8859")
        else:
            items = element.value if element else ()
        return Elements(items[0].elements()) if items else None

    def _parsed(self, keyword: str, kind: type) -> float:
        try:
            number = kind(self.text(keyword))
        except ValueError:
            raise invalid(f"{keyword} is no number") from None
        if abs(number) == float("inf") or number != number:
            raise invalid(f"{keyword} is not finite")
        return number

    def _value(self, keyword: str) -> tuple[RawDataElement | None, bytes]:
        element = self._elements.get(tag_for_keyword(keyword))
        if element is None:
            return None, b""
        if not isinstance(element, RawDataElement) or (element.value is None and element.length):
            raise invalid(f"{keyword} has a value of another kind")
        return element, element.value or b""


@dataclass(frozen=True, slots=True)
class PixelElement:
    """Where the pixels are.

    Attributes:
      tag: Of the element.
      vr: Its value representation; None where the file does not say.
      start: Of its value in the dataset, in bytes.
      length: Of its value in bytes; None where fragments follow.
    """

    tag: int
    vr: str | None
    start: int
    length: int | None


@dataclass(frozen=True, slots=True, eq=False)
class DicomFile:
    """A DICOM file up to its pixels.

    Attributes:
      elements: Of its header, and of the file meta information.
      transfer_syntax: The UID; empty where the file does not say.
      little_endian: Byte order of the pixels where they are not compressed.
      data: What holds the pixels: the file, or its dataset inflated.
      pixels: Where in it; None where there are none.
    """

    elements: Elements
    transfer_syntax: str
    little_endian: bool
    data: bytes
    pixels: PixelElement | None


def invalid(detail: str) -> ImageError:
    """Returns the error of a header that lacks or contradicts what the pixels need."""
    return ImageError(Reason.INVALID_HEADER, detail)


def read_dicom(data: bytes) -> DicomFile:
    """Returns the header of a file and where its pixels are, which are not looked at.

    Args:
      data: The file, from its start; enough of it to hold the header.

    Raises:
      ImageError: It ends too early, or is no DICOM.
    """
    return _read(data, _KEPT, _PIXELS.__contains__, _inflate)


def read_attributes(head: bytes, tags: frozenset[int], *, is_whole: bool) -> Elements:
    """Returns attributes of a file, from its first bytes; what follows them is not looked at.

    Args:
      head: The file, from its start.
      tags: Of the attributes, each of which may be absent; those of sequences will not do.
      is_whole: Whether that is all of the file.

    Raises:
      ImageError: It is no DICOM, or ends before the last of the attributes would come:
        `truncated`, which more of the file may mend.
    """
    last = max(tags)
    kept = tags | {tag_for_keyword("TransferSyntaxUID")}
    dicom = _read(head, kept, lambda tag: tag > last, _inflate_head)
    if dicom.pixels is None and not is_whole:
        raise _cut()
    return dicom.elements


def _read(
    data: bytes,
    kept: frozenset[int],
    stops: Callable[[int], bool],
    inflate: Callable[[memoryview], bytes],
) -> DicomFile:
    """Returns the attributes of a header up to one that stops it, which is called the pixels."""
    stream = ReadStream(data)
    stream.seek(_PREFIX_END if data[_PREFIX_END - 4 : _PREFIX_END] == b"DICM" else 0)
    meta, _ = _read_until(stream, len(data), kept, lambda tag: tag >> 16 != 2, False, True)
    syntax = Elements(meta).text("TransferSyntaxUID")
    if syntax == DeflatedExplicitVRLittleEndian:
        data = inflate(memoryview(data)[stream.tell() :])
        stream = ReadStream(data)
    little = syntax != ExplicitVRBigEndian
    # Writers err in what they call the transfer syntax: two capitals are a VR, not a length.
    start = stream.tell()
    vr = data[start + 4 : start + 6]
    implicit = little and not (vr.isalpha() and vr.isupper())
    elements, pixels = _read_until(stream, len(data), kept, stops, implicit, little)
    return DicomFile(Elements([*meta, *elements]), syntax, little, data, pixels)


def _inflate(deflated: memoryview) -> bytes:
    data, is_whole = _inflate_up_to(deflated, _MAX_INFLATED_BYTES)
    if not is_whole and len(data) == _MAX_INFLATED_BYTES:
        limit = f"a deflated dataset of more than {_MAX_INFLATED_BYTES} bytes"
        raise ImageError(Reason.UNSUPPORTED_FORMAT, limit)
    if not is_whole:
        raise _cut()
    return data


def _inflate_head(deflated: memoryview) -> bytes:
    return _inflate_up_to(deflated, _MAX_VALUE_BYTES)[0]


def _inflate_up_to(deflated: memoryview, most: int) -> tuple[bytes, bool]:
    """Returns what there is, up to so many bytes, and whether it is all."""
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        return inflater.decompress(deflated, most), inflater.eof
    except zlib.error:
        raise ImageError(Reason.CORRUPT, "the deflated dataset does not inflate") from None


def _read_until(
    stream: ReadStream,
    size: int,
    wanted: frozenset[int],
    stops: Callable[[int], bool],
    implicit: bool,
    little: bool,
) -> tuple[list[RawDataElement | DataElement], PixelElement | None]:
    """Returns the wanted elements up to one that stops it, and that; the stream is before it."""
    kept, stop, end = [], None, stream.tell()

    def stop_when(tag: int, vr: str | None, length: int) -> bool:
        nonlocal stop
        if stops(tag):
            known = None if length == _UNDEFINED else length
            stop = PixelElement(int(tag), vr, stream.tell(), known)
        return stop is not None

    with naming_errors(stream, size):
        for element in data_element_generator(
            stream, implicit, little, stop_when, defer_size=_MAX_VALUE_BYTES
        ):
            if isinstance(element, RawDataElement) and element.length != _UNDEFINED:
                end = element.value_tell + element.length
                if end > size:
                    raise _cut()
            if element.tag in wanted:
                kept.append(element)
            end = stream.tell()
    if stop is None and 0 < size - end < 8:
        raise _cut()
    return kept, stop


@contextlib.contextmanager
def silenced() -> Iterator[None]:
    """Drops what pydicom logs in this thread."""
    _reading.now = True
    try:
        yield
    finally:
        _reading.now = False


@contextlib.contextmanager
def naming_errors(stream: ReadStream, size: int) -> Iterator[None]:
    """Turns what pydicom raises into the error of an image, and drops what it logs.

    Args:
      stream: What it reads.
      size: Of that, in bytes.
    """
    try:
        with silenced():
            yield
    except ImageError:
        raise
    except Exception:  # pydicom names no set of errors, and their texts quote values.
        if stream.is_exhausted:  # which pydicom makes an error of its own in places
            raise _endless() from None
        if stream.tell() >= size:
            raise _cut() from None
        raise ImageError(Reason.CORRUPT, "the header does not decode") from None


def _endless() -> ImageError:
    return ImageError(Reason.CORRUPT, "a header of too many elements")


def _cut() -> ImageError:
    return ImageError(Reason.TRUNCATED, "the DICOM file ends within its header")
