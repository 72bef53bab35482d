"""What this machine copies of an OUTPUT on a store while it works there.

The driver's own work, planning and the commit, needs files that DuckDB can read. So it
has a folder here that looks as OUTPUT does and holds what it needs of it: the records,
and of the run it works on what is staged. Workers never see that folder: they read and
write the store. Where OUTPUT is a local folder there is nothing to copy, and each of
these does nothing but what its name says there.
"""

import errno
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from model.object_store import SCHEME, ObjectFolder, StoredObject
from pipeline.layout import PUBLISHED, Output, RunPaths
from schemas.errors import InputError


class OutputError(Exception):
    """OUTPUT cannot be read or written."""


@contextmanager
def existing_output(place: str) -> Iterator[Output]:
    """Gives an OUTPUT; of one on a store, the records and the states of unfinished runs are here.

    Args:
      place: A local folder or a `gs://` uri.

    Raises:
      OutputError: A store refuses, or does not answer.
    """
    if not place.startswith(SCHEME):
        yield Output(Path(place).absolute())
        return
    with TemporaryDirectory(prefix="prescreen-") as folder:
        output = Output(Path(folder), ObjectFolder(place.rstrip("/")))
        with _reading_store():
            _fetch_records(output)
        yield output


@contextmanager
def run_in_output(record: str) -> Iterator[tuple[Output, RunPaths]]:
    """Gives the OUTPUT of a run, as `existing_output` does, and the run's paths in it.

    Args:
      record: `OUTPUT/runs/ID.json`, a local path or a `gs://` uri; need not be there.

    Raises:
      InputError: It is no such place.
      OutputError: A store refuses, or does not answer.
    """
    place = record if record.startswith(SCHEME) else str(Path(record).absolute())
    folder, _, name = place.rpartition("/")
    if not folder.endswith("/runs") or not name.endswith(".json"):
        raise InputError(f"RUN must be a record, OUTPUT/runs/ID.json. Received: {record}.")
    with existing_output(folder.removesuffix("/runs")) as output:
        yield output, output.run(name.removesuffix(".json"))


def _fetch_records(output: Output) -> None:
    folder, store = output.folder, output.store
    _fetch(store, folder, store.objects("runs/"))
    states = []
    for found in store.objects("_staging/"):
        # What a crash left without a state still is a run, to be listed or tidied up.
        _place(folder, found.name).parent.mkdir(parents=True, exist_ok=True)
        if found.name.endswith("/run.json"):
            states.append(found)
    _fetch(store, folder, states)


@contextmanager
def _reading_store() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"OUTPUT must be a place that can be read. Received: {error.strerror}. Check its name"
            " and its permissions, and run again."
        ) from error


@contextmanager
def published_run(record: str, kinds: Sequence[str] = PUBLISHED) -> Iterator[Path]:
    """Gives the path of a run's record, with what the run published beside it.

    Args:
      record: `OUTPUT/runs/ID.json`, a local path or a `gs://` uri.
      kinds: What to copy of a run on a store.

    Raises:
      OutputError: A store refuses, or does not answer.
    """
    if not record.startswith(SCHEME):
        yield Path(record)
        return
    folder, _, name = record.rpartition("/")
    with existing_output(folder.removesuffix("/runs")) as output:
        paths = output.run(name.removesuffix(".json"))
        with _reading_store():
            _fetch(paths.store, paths.output, published_objects(paths, kinds))
        yield paths.record


def published_objects(paths: RunPaths, kinds: Sequence[str] = PUBLISHED) -> Iterator[StoredObject]:
    """Gives what a run published on a store of these kinds; its record is of none."""
    for kind in kinds:
        start = f"{kind}/run_id={paths.run_id}"
        for found in paths.store.objects(start):
            if found.name[len(start)] in "/.":
                yield found


def fetch(paths: RunPaths, wanted: Path) -> None:
    """Copies what is on the store below a folder, or the file itself, and is not here yet."""
    if paths.store:
        _fetch(paths.store, paths.output, _below(paths, wanted))


def send(paths: RunPaths, file: Path) -> None:
    """Copies a file to the store, for the workers or for the next attempt."""
    if paths.store:
        paths.store.upload([(file, paths.name_of(file))])


def discard(paths: RunPaths, unwanted: Path, keep: Path | None = None) -> None:
    """Removes a file, or a folder and all that is in it but `keep`, here and on the store."""
    for path in list(unwanted.glob("*")) if keep else [unwanted]:
        if path.is_dir():
            shutil.rmtree(path)
        elif path != keep:
            path.unlink(missing_ok=True)
    if paths.store:
        kept = keep and paths.name_of(keep)
        names = (found.name for found in _below(paths, unwanted))
        paths.store.delete(name for name in names if name != kept)


def _below(paths: RunPaths, path: Path) -> Iterator[StoredObject]:
    """Gives the object of a path, or those of a folder."""
    name = paths.name_of(path)
    for found in paths.store.objects(name):
        if found.name == name or found.name.startswith(f"{name}/"):
            yield found


def _fetch(store: ObjectFolder, folder: Path, objects: Iterable[StoredObject]) -> None:
    wanted = ((found.name, _place(folder, found.name)) for found in objects)
    store.download((name, path) for name, path in wanted if not path.exists())


def _place(folder: Path, name: str) -> Path:
    """Returns where an object goes, which is inside the folder whatever it is called."""
    if {"", ".", ".."}.intersection(name.split("/")):
        raise OSError(errno.EINVAL, "an object whose name is no path")
    return folder / name
