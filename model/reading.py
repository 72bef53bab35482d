"""Reading the bytes of one file: local ones, and the limit that holds for all."""

import dataclasses
import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import BinaryIO

from schemas.rejects import ImageError, Reason, TransientError

MAX_BYTES = 256 * 2**20
"""Larger files are rejected unread: no radiograph in PNG or JPEG comes near."""

_CHUNK_BYTES = 256 * 1024
"""Read at once, so that a slow file shows that it is coming."""

_TRANSIENT = frozenset(
    getattr(errno, name)
    for name in (
        *("EIO", "EAGAIN", "EINTR", "EBUSY", "ENOMEM", "EMFILE", "ENFILE", "ENOBUFS"),
        *("ESTALE", "ETIMEDOUT", "ECONNRESET", "ECONNABORTED", "ECONNREFUSED", "ENOTCONN"),
        *("ENETDOWN", "ENETUNREACH", "ENETRESET", "EHOSTDOWN", "EHOSTUNREACH", "EPIPE"),
        *("EPROTO", "ENOLINK", "ECOMM", "EREMOTEIO"),
    )
    if hasattr(errno, name)  # some are Linux's own
)
"""What a disk, a network or a busy machine says, and may not say a moment later."""


@dataclasses.dataclass(frozen=True, slots=True)
class FileVersion:
    """Which file it is, without its content: equal for as long as it is unchanged.

    Attributes:
      size_bytes: As its file system says; None for a member of an archive that was not
        looked into.
      version: Time of modification in ns since 1970; of a member that of the archive, and
        after a dash the archive's size in bytes.
    """

    size_bytes: int | None
    version: str


@dataclasses.dataclass(frozen=True, slots=True)
class SourceFile:
    """The content of a file and which version of it that was.

    Attributes:
      data: All of it.
      version: As looked up before it was read.
    """

    data: bytes
    version: FileVersion


def file_version(path: str | os.PathLike) -> FileVersion:
    """Returns the version of a local file; asks for its status and nothing else.

    Raises:
      ImageError: There is no such file, it is not a regular one, or it may not be
        looked at; a TransientError if another attempt may find it.
    """
    with naming_errors():
        try:
            status = os.stat(path)
        except ValueError as error:
            raise ImageError(Reason.NOT_FOUND, "no file can have such a name") from error
    if not stat.S_ISREG(status.st_mode):
        # Opening a pipe would wait for a writer for ever.
        raise ImageError(Reason.NOT_A_FILE, "the uri names a folder, pipe or device")
    return FileVersion(status.st_size, str(status.st_mtime_ns))


def read_file(path: str | os.PathLike) -> SourceFile:
    """Reads a local file, once.

    Raises:
      ImageError: There is no such file, it is not a regular one, it may not be
        read, reading fails, or it is larger than `MAX_BYTES`; a TransientError if
        another attempt may succeed.
    """
    version = file_version(path)
    return SourceFile(read_content(path, version), version)


def read_content(
    path: str | os.PathLike,
    version: FileVersion,
    on_progress: Callable[[], None] = lambda: None,
) -> bytes:
    """Returns the content of a local file whose version is known; raises as `read_file` does.

    Args:
      path: Of a regular file.
      version: Of it; too large a file is not opened.
      on_progress: Called after each piece.
    """
    check_size(version.size_bytes)
    with naming_errors(), open(path, "rb") as file:
        return read_whole(file, on_progress)


def read_whole(file: BinaryIO, on_progress: Callable[[], None] = lambda: None) -> bytes:
    """Returns the content of an open file, which may be larger than its size said.

    Args:
      file: From where it stands.
      on_progress: Called after each piece.

    Raises:
      ImageError: It is over `MAX_BYTES`; no more than that was read.
    """
    pieces, size_bytes = [], 0
    while piece := file.read(min(_CHUNK_BYTES, MAX_BYTES + 1 - size_bytes)):
        size_bytes += len(piece)
        check_size(size_bytes)
        pieces.append(piece)
        on_progress()
    return b"".join(pieces)


def check_size(size_bytes: int) -> None:
    """Raises if a file of that size is not read.

    Raises:
      ImageError: It is over `MAX_BYTES`.
    """
    if size_bytes > MAX_BYTES:
        raise ImageError(
            Reason.TOO_MANY_BYTES, f"{size_bytes} bytes, more than the limit of {MAX_BYTES}"
        )


@contextmanager
def naming_errors() -> Iterator[None]:
    """Turns what the operating system says of a file into the error of an image."""
    try:
        yield
    except FileNotFoundError as error:
        raise ImageError(Reason.NOT_FOUND, "no file at the uri") from error
    except PermissionError as error:
        raise ImageError(Reason.PERMISSION_DENIED, "the file may not be read") from error
    except OSError as error:
        # Not the error's own text, which quotes the path.
        cause = os.strerror(error.errno) if error.errno else type(error).__name__
        kind = TransientError if _is_transient(error) else ImageError
        raise kind(Reason.READ_ERROR, cause) from error


def _is_transient(error: OSError) -> bool:
    # Some are raised without a number.
    return error.errno in _TRANSIENT or isinstance(error, TimeoutError | ConnectionError)
