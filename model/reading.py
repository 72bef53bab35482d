"""Reading the bytes of one file: local ones, and the limit that holds for all."""

import dataclasses
import os
import stat
from typing import BinaryIO

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


def read_file(path: str | os.PathLike) -> SourceFile:
    """Reads a local file.

    Raises:
      ImageError: There is no such file, it is not a regular one, it may not be
        read, reading fails, or it is larger than `MAX_BYTES`.
    """
    try:
        return _read(path)
    except FileNotFoundError as error:
        raise ImageError(Reason.NOT_FOUND, "no file at the uri") from error
    except PermissionError as error:
        raise ImageError(Reason.PERMISSION_DENIED, "the file may not be read") from error
    except OSError as error:
        # Not the error's own text, which quotes the path.
        cause = os.strerror(error.errno) if error.errno else type(error).__name__
        raise ImageError(Reason.READ_ERROR, cause) from error


def _read(path: str | os.PathLike) -> SourceFile:
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        # Opening a pipe would wait for a writer for ever.
        raise ImageError(Reason.NOT_A_FILE, "the uri names a folder, pipe or device")
    check_size(status.st_size)
    with open(path, "rb") as file:
        return SourceFile(read_whole(file), str(status.st_mtime_ns))


def read_whole(file: BinaryIO) -> bytes:
    """Returns the content of an open file, which may be larger than its size said.

    Raises:
      ImageError: It is over `MAX_BYTES`; no more than that was read.
    """
    data = file.read(MAX_BYTES + 1)
    check_size(len(data))
    return data


def check_size(size_bytes: int) -> None:
    """Raises if a file of that size is not read.

    Raises:
      ImageError: It is over `MAX_BYTES`.
    """
    if size_bytes > MAX_BYTES:
        raise ImageError(
            Reason.TOO_MANY_BYTES, f"{size_bytes} bytes, more than the limit of {MAX_BYTES}"
        )
