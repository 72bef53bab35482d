"""Reading the bytes of one image, wherever it is, and trying again where that may help."""

import http
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from decimal import Decimal
from typing import BinaryIO, TypeVar

from apache_beam.io.filesystem import BeamIOError, CompressionTypes
from apache_beam.io.filesystems import FileSystems

from model.object_store import SCHEME, object_of
from model.reading import (
    FileVersion,
    SourceFile,
    check_size,
    file_version,
    naming_errors,
    read_content,
    read_whole,
)
from pipeline.tar_files import read_member
from pipeline.uris import has_scheme, split_member
from pipeline.watch import GivenUp, Watch
from schemas.rejects import ImageError, Reason, TransientError

PAUSES_S = (0.5, 1.0, 2.0)
"""The longest pause after each attempt that failed; after the last there is no more.

What is waited is drawn from 0 up to it, so that workers whom a store turned away
together do not come back together.
"""

_REFUSED = (http.HTTPStatus.UNAUTHORIZED, http.HTTPStatus.FORBIDDEN)
_LATER = (http.HTTPStatus.REQUEST_TIMEOUT, http.HTTPStatus.TOO_MANY_REQUESTS)
"""Answers to a client that are not final."""

_Found = TypeVar("_Found")


def source_version(
    uri: str, watch: Watch | None = None, *, sleep: Callable[[float], None] = time.sleep
) -> FileVersion:
    """Returns the version of the file that a checked manifest names, without reading it.

    It equals that of `read_source` for as long as the file is unchanged. Tried again
    as a read is.

    Args:
      uri: A local path, a URL of any scheme that Beam's FileSystems know, or a member of
        an archive there, of which only the archive is looked at.
      watch: Told how far it is.
      sleep: Waits for that many seconds.

    Raises:
      ImageError: There is no such file, it is not a regular one, or it may not be
        looked at.
    """
    return _with_retries(lambda watch: look_up(uri), watch or Watch(), sleep)


def read_source(
    uri: str,
    watch: Watch | None = None,
    make_room: Callable[[int], None] = lambda size_bytes: None,
    *,
    sleep: Callable[[float], None] = time.sleep,
) -> SourceFile:
    """Reads the file that a checked manifest names.

    Errors that a moment may mend are met by `len(PAUSES_S) + 1` attempts in all.

    Args:
      uri: A local path, a URL of any scheme that Beam's FileSystems know, or a member of
        a plain local archive.
      watch: Told how far it is; knows the file's version also where reading fails.
      make_room: Called in each attempt with the file's size, before its content is read;
        may wait.
      sleep: Waits for that many seconds.

    Raises:
      ImageError: There is no such file, it is not a regular one, it may not be
        read, reading fails, or it is larger than `model.reading.MAX_BYTES`.
    """
    return _with_retries(lambda watch: _read(uri, watch, make_room), watch or Watch(), sleep)


def read_start(
    uri: str,
    size_bytes: int,
    watch: Watch | None = None,
    *,
    sleep: Callable[[float], None] = time.sleep,
) -> bytes:
    """Returns the first bytes of a file, fewer where it has no more; of an object by one request.

    Args:
      uri: A local path, or a URL of any scheme that Beam's FileSystems know.
      size_bytes: How many.
      watch: Told how far it is.
      sleep: Waits for that many seconds.

    Raises:
      ImageError: As `read_source` does.
    """
    return _with_retries(lambda watch: _read_start(uri, size_bytes), watch or Watch(), sleep)


def _read_start(uri: str, size_bytes: int) -> bytes:
    if uri.startswith(SCHEME):
        store, name = object_of(uri, tries_again=False)
        with _naming_remote_errors():
            return store.read_start(name, size_bytes)
    if not has_scheme(uri):
        file_version(uri)  # raises if it is a pipe, whose opening would wait
    with open_source(uri) as file:
        return file.read(size_bytes)


def _with_retries(
    attempt: Callable[[Watch], _Found], watch: Watch, sleep: Callable[[float], None]
) -> _Found:
    """Returns what an attempt gives, once one succeeds; raises the last one's error."""
    for longest_s in PAUSES_S:
        watch.begin_attempt()
        try:
            return attempt(watch)
        except TransientError:
            sleep(random.uniform(0, longest_s))
    watch.begin_attempt()
    return attempt(watch)


def look_up(uri: str) -> FileVersion:
    """Returns what `source_version` does, by one attempt.

    Raises:
      ImageError: As there; a TransientError if another attempt may succeed.
    """
    path, member = split_member(uri)
    version = _look_up_remote(path) if has_scheme(path) else file_version(path)
    if member is None:
        return version
    return FileVersion(None, f"{version.version}-{version.size_bytes}")


def _look_up_remote(uri: str) -> FileVersion:
    if uri.startswith(SCHEME):
        return _look_up_object(uri)
    with _naming_remote_errors():
        # Not match, which would take brackets in a name for a pattern.
        found = FileSystems.get_filesystem(uri).metadata(uri)
    # Exact: a float of seconds times 1e9 is not.
    modified_ns = int(Decimal(repr(found.last_updated_in_seconds)) * 10**9)
    return FileVersion(found.size_in_bytes, str(modified_ns))


def _look_up_object(uri: str) -> FileVersion:
    store, name = object_of(uri, tries_again=False)
    with _naming_remote_errors():
        found = store.find(name)
    if found is None:
        raise ImageError(Reason.NOT_FOUND, "no file at the uri")
    return FileVersion(found.size_bytes, str(found.generation))


def _read_object(uri: str, version: FileVersion, on_progress: Callable[[], None]) -> bytes:
    """Returns the content of that version: two requests an image, where Beam makes six."""
    store, name = object_of(uri, tries_again=False)
    with _naming_remote_errors():
        try:
            return store.read(name, int(version.version), on_progress)
        except FileNotFoundError as error:
            # Or removed; another attempt will tell.
            detail = "the file was replaced while it was read"
            raise TransientError(Reason.READ_ERROR, detail) from error


@contextmanager
def open_source(uri: str) -> Iterator[BinaryIO]:
    """Gives a file to read, local or remote; raises what reading it raises as an ImageError.

    Raises:
      ImageError: As `read_source` does; a TransientError if another attempt may succeed.
    """
    if has_scheme(uri):
        with (
            _naming_remote_errors(),
            FileSystems.open(uri, compression_type=CompressionTypes.UNCOMPRESSED) as file,
        ):
            yield file
    else:
        with naming_errors(), open(uri, "rb") as file:
            yield file


def _read(uri: str, watch: Watch, make_room: Callable[[int], None]) -> SourceFile:
    version = watch.version = look_up(uri)
    path, member = split_member(uri)
    if member is not None:
        return _read_member(path, member, watch, make_room)
    check_size(version.size_bytes)
    make_room(version.size_bytes)
    if not has_scheme(uri):
        return SourceFile(read_content(uri, version, watch.moved), version)
    if uri.startswith(SCHEME):
        return SourceFile(_read_object(uri, version, watch.moved), version)
    with open_source(uri) as file:
        return SourceFile(read_whole(file, watch.moved), version)


def _read_member(
    path: str, name: str, watch: Watch, make_room: Callable[[int], None]
) -> SourceFile:
    archive = watch.version

    def begin(size_bytes: int) -> None:
        watch.version = FileVersion(size_bytes, archive.version)
        make_room(size_bytes)

    content = read_member(path, name, archive, begin, watch.moved)
    return SourceFile(content, watch.version)


@contextmanager
def _naming_remote_errors() -> Iterator[None]:
    """Turns what a remote file system raises into the error of an image."""
    try:
        yield
    except (ImageError, GivenUp):
        raise
    except Exception as error:  # every file system has errors of its own
        causes = _causes(error)
        codes = {code for cause in causes if isinstance(code := getattr(cause, "code", None), int)}
        if _any_is(causes, FileNotFoundError) or http.HTTPStatus.NOT_FOUND in codes:
            raise ImageError(Reason.NOT_FOUND, "no file at the uri") from error
        if _any_is(causes, PermissionError) or codes.intersection(_REFUSED):
            raise ImageError(Reason.PERMISSION_DENIED, "the file may not be read") from error
        # A ValueError is a uri that the file system cannot make sense of.
        is_final = _any_is(causes, ValueError) or any(map(_is_final, codes))
        kind = ImageError if is_final else TransientError
        raise kind(Reason.READ_ERROR, type(error).__name__) from error


def _causes(error: Exception) -> list[Exception]:
    if isinstance(error, BeamIOError):
        return [error, *(error.exception_details or {}).values()]
    return [error]


def _any_is(causes: list[Exception], kind: type[Exception]) -> bool:
    return any(isinstance(cause, kind) for cause in causes)


def _is_final(code: int) -> bool:
    return 400 <= code < 500 and code not in _LATER
