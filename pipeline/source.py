"""Reading the bytes of one image, wherever it is."""

import dataclasses
import os
import stat

from apache_beam.io.filesystem import BeamIOError, CompressionTypes
from apache_beam.io.filesystems import FileSystems

from schemas.rejects import ImageError, Reason

MAX_BYTES = 256 * 2**20
"""Larger files are rejected unread: no radiograph in PNG or JPEG comes near."""


@dataclasses.dataclass(frozen=True, slots=True)
class SourceFile:
    """The content of a file and which version of it that was.

    Attributes:
      data: All of it.
      version: Time of modification in ns since 1970.
    """

    data: bytes
    version: str


def read_source(uri: str) -> SourceFile:
    """Reads the file that a checked manifest names.

    Args:
      uri: A local path, or a URL of any scheme that Beam's FileSystems know.

    Raises:
      ImageError: There is no such file, it is not a regular one, it may not be
        read, reading fails, or it is larger than `MAX_BYTES`.
    """
    try:
        return _read_remote(uri) if "://" in uri else _read_local(uri)
    except FileNotFoundError as error:
        raise ImageError(Reason.NOT_FOUND, "no file at the uri") from error
    except PermissionError as error:
        raise ImageError(Reason.PERMISSION_DENIED, "the file may not be read") from error
    except (BeamIOError, OSError) as error:
        name = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else ""
        raise ImageError(Reason.READ_ERROR, name or type(error).__name__) from error


def _read_local(path: str) -> SourceFile:
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        # Opening a pipe would wait for a writer for ever.
        raise ImageError(Reason.NOT_A_FILE, "the uri names a folder, pipe or device")
    _check_size(status.st_size)
    with open(path, "rb") as file:
        data = file.read(MAX_BYTES + 1)
    _check_size(len(data))
    return SourceFile(data, str(status.st_mtime_ns))


def _read_remote(uri: str) -> SourceFile:
    found = FileSystems.match([uri], limits=[1])[0].metadata_list
    if not found:
        raise ImageError(Reason.NOT_FOUND, "no file at the uri")
    _check_size(found[0].size_in_bytes)
    with FileSystems.open(uri, compression_type=CompressionTypes.UNCOMPRESSED) as file:
        data = file.read()
    return SourceFile(data, str(round(found[0].last_updated_in_seconds * 1e9)))


def _check_size(size_bytes: int) -> None:
    if size_bytes > MAX_BYTES:
        raise ImageError(
            Reason.TOO_MANY_BYTES, f"{size_bytes} bytes, more than the limit of {MAX_BYTES}"
        )
