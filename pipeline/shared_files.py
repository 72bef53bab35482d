"""Files that the workers of a run share: on a file system that all of them reach, or on a store.

Each is named by its absolute path or by its uri, and is there whole or not at all.
"""

from pathlib import Path
from typing import BinaryIO

from model.object_store import SCHEME, object_of
from pipeline.layout import write_atomically


def make_shared_folder(folder: str) -> None:
    """Makes a folder where folders have to be made."""
    if not folder.startswith(SCHEME):
        Path(folder).mkdir(parents=True, exist_ok=True)


def write_shared(path: str, data: bytes) -> None:
    """Writes a file for the other workers and the commit to read."""
    if path.startswith(SCHEME):
        store, name = object_of(path)
        store.write(name, data)
    else:
        write_atomically(Path(path), data)


def open_shared(path: str) -> BinaryIO:
    """Returns a file to read parts of."""
    if path.startswith(SCHEME):
        store, name = object_of(path)
        return store.open(name)
    return open(path, "rb")
