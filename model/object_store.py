"""A folder of objects on Google Cloud Storage: listed, read and written as files are."""

import contextlib
import dataclasses
import datetime
import errno
import functools
import io
import os
import typing
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

if typing.TYPE_CHECKING:
    from google.cloud.storage import Blob, Bucket, Client

SCHEME = "gs://"

_AT_ONCE = 8
"""Objects moved at once."""

_CONNECTIONS = 64
"""Kept open by a process, of which many threads read images; the client's own limit is ten."""

_READ_BYTES = 1024 * 1024
"""Read at once of an object of which a part is wanted; a multiple of 256 KiB."""

_TIMEOUT_S = 60.0
"""For one request; what may be mended by trying again is tried for two minutes."""


@dataclasses.dataclass(frozen=True)
class StoredObject:
    """An object as the store lists it.

    Attributes:
      name: Relative to its folder, with `/`.
      size_bytes: Of its content.
      generation: Another one each time it is written.
      updated: When it was written, in UTC, by the clock of the store.
    """

    name: str
    size_bytes: int
    generation: int
    updated: datetime.datetime


@dataclasses.dataclass(frozen=True)
class ObjectFolder:
    """All objects whose names begin as `uri` says.

    Each method raises an OSError where the store refuses or does not answer, a
    FileNotFoundError where there is no such object or bucket.

    Attributes:
      uri: `gs://bucket` or `gs://bucket/folder`, without `/` at its end.
      tries_again: Whether `find` and `read` try again what another attempt may help, as all
        others do.
    """

    uri: str
    tries_again: bool = True

    def objects(self, prefix: str = "") -> Iterator[StoredObject]:
        """Gives the objects whose names begin so, in the order of their names.

        What ends in `/` only stands for an empty folder, and is left out.
        """
        start = self._object_name("")
        with _os_errors():
            for blob in _client().list_blobs(
                self._bucket_name,
                prefix=start + prefix,
                fields="items(name,size,generation,updated),nextPageToken",
                timeout=_TIMEOUT_S,
            ):
                if not blob.name.endswith("/"):
                    yield StoredObject(
                        blob.name.removeprefix(start), blob.size, blob.generation, blob.updated
                    )

    def find(self, name: str) -> StoredObject | None:
        """Returns an object, or None where there is none."""
        with _os_errors():
            blob = self._bucket.get_blob(self._object_name(name), **self._patience)
        return blob and StoredObject(name, blob.size, blob.generation, blob.updated)

    def read(
        self,
        name: str,
        generation: int | None = None,
        on_progress: Callable[[], None] = lambda: None,
    ) -> bytes:
        """Returns an object's content.

        Args:
          name: Of the object.
          generation: The one wanted; the newest if None.
          on_progress: Called after each piece.
        """
        content = _Content(on_progress)
        with _os_errors():
            blob = self._bucket.blob(self._object_name(name), generation=generation)
            blob.download_to_file(content, **self._patience)
        return content.getvalue()

    def read_start(self, name: str, size_bytes: int) -> bytes:
        """Returns up to so many bytes from an object's start, by one request."""
        from google.api_core.exceptions import RequestRangeNotSatisfiable

        blob, end = self._bucket.blob(self._object_name(name)), size_bytes - 1
        with _os_errors():
            try:
                # The store's checksum is one of the whole object.
                return blob.download_as_bytes(end=end, checksum=None, **self._patience)
            except RequestRangeNotSatisfiable:
                return b""  # It has no bytes.

    def open(self, name: str) -> BinaryIO:
        """Returns an object to read parts of; reading it raises the store's own errors."""
        return self._blob(name).open("rb", chunk_size=_READ_BYTES, timeout=_TIMEOUT_S)

    def write(self, name: str, data: bytes, *, if_generation: int | None = None) -> int:
        """Writes an object, which readers see whole or not at all; returns its generation.

        Args:
          name: Of the object.
          data: Its content.
          if_generation: The one that it must have until now, 0 for none; any if None.

        Raises:
          FileExistsError: It has another.
        """
        blob = self._blob(name)
        with _os_errors():
            blob.upload_from_string(
                data,
                content_type="application/octet-stream",
                if_generation_match=if_generation,
                timeout=_TIMEOUT_S,
            )
        return blob.generation

    def upload(self, files: Iterable[tuple[Path, str]]) -> None:
        """Writes local files as objects of the names beside them."""

        def send(file: tuple[Path, str]) -> None:
            path, name = file
            with _os_errors():
                self._blob(name).upload_from_filename(path, timeout=_TIMEOUT_S)

        _all_at_once(send, files)

    def download(self, objects: Iterable[tuple[str, Path]]) -> None:
        """Writes objects to the local files beside their names, each whole or not at all."""

        def fetch(wanted: tuple[str, Path]) -> None:
            name, path = wanted
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_name(f".{path.name}.tmp")
            try:
                with _os_errors():
                    self._blob(name).download_to_filename(partial, timeout=_TIMEOUT_S)
                os.replace(partial, path)
            finally:
                partial.unlink(missing_ok=True)

        _all_at_once(fetch, objects)

    def delete(self, names: Iterable[str]) -> None:
        """Removes objects; those that are gone already are no error."""

        def remove(name: str) -> None:
            with contextlib.suppress(FileNotFoundError), _os_errors():
                self._blob(name).delete(timeout=_TIMEOUT_S)

        _all_at_once(remove, names)

    def delete_generation(self, name: str, generation: int) -> None:
        """Removes an object if it still is the one of that generation.

        Raises:
          FileExistsError: It is another.
        """
        with _os_errors():
            self._blob(name).delete(if_generation_match=generation, timeout=_TIMEOUT_S)

    @property
    def _patience(self) -> dict:
        """Arguments of a request."""
        return {"timeout": _TIMEOUT_S, **({} if self.tries_again else {"retry": None})}

    @property
    def _bucket_name(self) -> str:
        return self.uri.removeprefix(SCHEME).partition("/")[0]

    @property
    def _bucket(self) -> "Bucket":
        return _client().bucket(self._bucket_name)

    def _blob(self, name: str) -> "Blob":
        return self._bucket.blob(self._object_name(name))

    def _object_name(self, name: str) -> str:
        folder = self.uri.removeprefix(SCHEME).partition("/")[2]
        return f"{folder}/{name}" if folder else name


def object_of(uri: str, *, tries_again: bool = True) -> tuple[ObjectFolder, str]:
    """Returns the folder of an object, and its name there."""
    folder, _, name = uri.rpartition("/")
    return ObjectFolder(folder, tries_again), name


class _Content(io.BytesIO):
    """What was downloaded so far."""

    def __init__(self, on_progress: Callable[[], None]):
        super().__init__()
        self._on_progress = on_progress

    def write(self, piece) -> int:
        self._on_progress()
        return super().write(piece)


@functools.cache
def _client() -> "Client":
    """Returns the client of this process."""
    # Half a second, which most commands need not wait.
    from google.cloud import storage
    from requests.adapters import HTTPAdapter

    with _os_errors():
        client = storage.Client(project=None)
    # Else each thread beyond the tenth would connect anew for each request.
    for scheme in ("https://", "http://"):
        client._http.mount(scheme, HTTPAdapter(pool_maxsize=_CONNECTIONS))
    return client


def _all_at_once(move, items: Iterable) -> None:
    with ThreadPoolExecutor(_AT_ONCE) as threads:
        for _ in threads.map(move, items):
            pass


@contextlib.contextmanager
def _os_errors() -> Iterator[None]:
    """Turns what the client raises into an OSError that says so in plain words."""
    import requests
    from google.api_core import exceptions
    from google.auth.exceptions import GoogleAuthError

    try:
        yield
    except exceptions.NotFound as error:
        raise FileNotFoundError(errno.ENOENT, "no such object or bucket on the store") from error
    except exceptions.PreconditionFailed as error:
        raise FileExistsError(errno.EEXIST, "the object was written by another") from error
    except (exceptions.Forbidden, exceptions.Unauthorized, GoogleAuthError) as error:
        raise PermissionError(
            errno.EACCES, f"the store refuses access ({type(error).__name__})"
        ) from error
    except (exceptions.GoogleAPIError, requests.RequestException) as error:
        raise OSError(
            errno.EIO, f"the store does not answer as it should ({type(error).__name__})"
        ) from error
