"""Reading the bytes of one image, wherever it is."""

import dataclasses
import http
import os
import stat
from decimal import Decimal

from apache_beam.io.filesystem import BeamIOError, CompressionTypes
from apache_beam.io.filesystems import FileSystems

from pipeline.uris import has_scheme
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
    if has_scheme(uri):
        return _read_remote(uri)
    try:
        return _read_local(uri)
    except FileNotFoundError as error:
        raise ImageError(Reason.NOT_FOUND, "no file at the uri") from error
    except PermissionError as error:
        raise ImageError(Reason.PERMISSION_DENIED, "the file may not be read") from error
    except OSError as error:
        # Not the error's own text, which quotes the path.
        cause = os.strerror(error.errno) if error.errno else type(error).__name__
        raise ImageError(Reason.READ_ERROR, cause) from error


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
    try:
        # Not match, which would take brackets in a name for a pattern.
        found = FileSystems.get_filesystem(uri).metadata(uri)
        _check_size(found.size_in_bytes)
        with FileSystems.open(uri, compression_type=CompressionTypes.UNCOMPRESSED) as file:
            data = file.read(MAX_BYTES + 1)
        _check_size(len(data))
    except ImageError:
        raise
    except Exception as error:  # every file system has errors of its own
        if _is_missing(error):
            raise ImageError(Reason.NOT_FOUND, "no file at the uri") from error
        raise ImageError(Reason.READ_ERROR, type(error).__name__) from error
    # Exact: a float of seconds times 1e9 is not.
    modified_ns = int(Decimal(repr(found.last_updated_in_seconds)) * 10**9)
    return SourceFile(data, str(modified_ns))


def _is_missing(error: Exception) -> bool:
    causes = [error]
    if isinstance(error, BeamIOError):
        causes += (error.exception_details or {}).values()
    return any(
        isinstance(cause, FileNotFoundError)
        or getattr(cause, "code", None) == http.HTTPStatus.NOT_FOUND
        for cause in causes
    )


def _check_size(size_bytes: int) -> None:
    if size_bytes > MAX_BYTES:
        raise ImageError(
            Reason.TOO_MANY_BYTES, f"{size_bytes} bytes, more than the limit of {MAX_BYTES}"
        )
