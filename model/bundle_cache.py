"""Bundles on a store: each is downloaded once, and kept by its digest."""

import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from model.object_store import SCHEME, ObjectFolder
from schemas.errors import InputError


def local_bundle(folder: str, first: str, further: Callable[[bytes], tuple[str, ...]]) -> str:
    """Returns the folder of a bundle on this machine.

    A local one is where it is. One on a store is copied into `prescreen/bundles` below
    `XDG_CACHE_HOME` (`~/.cache`), under a digest of the first of its files, which names
    the others' digests: a changed bundle is another folder there. The names of its files go
    into the digest, since a version before this one may have copied fewer of them.

    Args:
      folder: A local folder or a `gs://` uri.
      first: Name of the file that names the others.
      further: Returns the names of these, given its content.

    Raises:
      InputError: The store has no such bundle, or does not give it.
    """
    if not folder.startswith(SCHEME):
        return folder
    store = ObjectFolder(folder.rstrip("/"))
    try:
        content = store.read(first)
        files = (first, *further(content))
        digest = hashlib.sha256(content + "/".join(files).encode()).hexdigest()
        cache = _cache_folder() / digest
        if not cache.is_dir():
            _fill(cache, store, files)
    except OSError as error:
        raise InputError(
            f"A bundle must be a folder with {first} and what that names, to be read. Received:"
            f" {folder} ({error.strerror}). Check its name and its permissions."
        ) from error
    return str(cache)


def _cache_folder() -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "prescreen" / "bundles"


def _fill(cache: Path, store: ObjectFolder, files: tuple[str, ...]) -> None:
    cache.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache.parent, prefix=".") as scratch:
        copied = Path(scratch) / "bundle"
        store.download((name, copied / name) for name in files)
        try:
            copied.rename(cache)
        except OSError:
            if not cache.is_dir():  # else another worker was faster
                raise
