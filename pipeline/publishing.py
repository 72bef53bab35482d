"""The second phase of a commit: what is built becomes visible, and the record is written.

In a local folder, once `prepared.json` is there, everything of the run is built, checked
and durable, and the commit only goes forward: each step can be done twice, and whoever
starts next in OUTPUT finishes what a crash has interrupted.

A store cannot rename. There files are copied to their last places, where no reader who
follows the records sees them, and the record is one object, written last. What a crash has
interrupted before that, a resume builds again from the staged parts.
"""

import json
import os
from contextlib import suppress
from pathlib import Path

from pipeline.layout import (
    SHARED,
    Output,
    RunPaths,
    staged_runs,
    sync,
    sync_tree,
    write_atomically,
)
from pipeline.lock import TAKEN_OVER, LockLostError
from pipeline.locking import living_holder, run_lock
from pipeline.mirror import discard, published_objects
from pipeline.run_state import read_record

_TABLES = ("rejects", "skipped", "scores")
_FOLDERS = ("gradcam", *_TABLES)
"""Published by one rename each; the scores last, since they name overlays."""


class PublishError(Exception):
    """A file of a prepared run is neither built nor published: the run needs a person."""


def publish_run(paths: RunPaths, record: dict) -> None:
    """Publishes a run whose files are all built; removes what was staged of it.

    Raises:
      PublishError: A file of the record is missing. No record is written.
      LockLostError: On a store, another process has written the record meanwhile.
    """
    if paths.store:
        _publish_on_store(paths, record)
    else:
        prepare(paths, record)
        publish(paths, record)


def prepare(paths: RunPaths, record: dict) -> None:
    """Makes what was built durable and says so; from here a crash loses nothing."""
    sync_tree(paths.commit)
    write_atomically(paths.prepared, _encode(record))


def publish(paths: RunPaths, record: dict) -> None:
    """Moves what is built in place, one rename a folder, and writes the record last.

    Raises:
      PublishError: A file of the record is missing. No record is written.
    """
    for kind in _FOLDERS:
        if paths.built(kind).is_dir():
            _move(paths.built(kind), paths.published(kind))
    for kind in SHARED:
        for path in sorted(paths.built(kind).iterdir() if paths.built(kind).is_dir() else ()):
            _move(path, paths.published(kind) / path.name)
    for file in record["files"]:
        path = paths.output / file["path"]
        _check_size(path.stat().st_size if path.is_file() else None, file, paths.run_id)
    paths.record.parent.mkdir(exist_ok=True)
    write_atomically(paths.record, _encode(record))
    _tidy_up(paths)


def _publish_on_store(paths: RunPaths, record: dict) -> None:
    for kind in _TABLES:
        discard(paths, paths.published(kind))  # of a commit that a crash has interrupted
    built = {
        paths.published(kind) / path.relative_to(paths.built(kind)): path
        for kind in (*_TABLES, *SHARED)
        for path in paths.built(kind).rglob("*")
    }
    paths.store.upload((path, paths.name_of(target)) for target, path in built.items())
    sizes = {found.name: found.size_bytes for found in published_objects(paths)}
    for file in record["files"]:
        _check_size(sizes.get(file["path"]), file, paths.run_id)
    _write_record(paths, _encode(record))
    _tidy_up(paths)


def _write_record(paths: RunPaths, data: bytes) -> None:
    name = paths.name_of(paths.record)
    try:
        paths.store.write(name, data, if_generation=0)
    except FileExistsError as error:
        # Its own, where the answer to the write was lost and the client wrote again.
        if paths.store.read(name) != data:
            raise LockLostError(TAKEN_OVER) from error


def _tidy_up(paths: RunPaths) -> None:
    # The run is published, whatever becomes of its leftovers.
    with suppress(OSError):
        discard(paths, paths.staging)


def finish_commits(output: Output) -> list[dict]:
    """Finishes what crashed commits in `output` left; returns the records of their runs.

    A run that another process works on is left to it. One whose record was written and whose
    staging was not removed counts as well: whoever started it may not know that it ended.

    Raises:
      PublishError: As `publish` does.
      InputError: The record of a run that was published cannot be read.
    """
    finished = []
    for paths in staged_runs(output):
        if not (paths.record.exists() or paths.prepared.exists()) or living_holder(paths):
            continue
        with run_lock(paths):
            if paths.record.exists():
                record = read_record(paths.record)
                _tidy_up(paths)
            else:
                record = json.loads(paths.prepared.read_bytes())
                publish(paths, record)
            finished.append(record)
    return finished


def _move(built: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    os.rename(built, target)
    sync(target.parent)


def _check_size(size_bytes: int | None, file: dict, run_id: str) -> None:
    if size_bytes != file["size_bytes"]:
        raise PublishError(
            f"Every file of a prepared run must be there to publish it. Received: run {run_id}"
            f" without {file['path']}. Restore it, or remove _staging/{run_id} and what run_id="
            f"{run_id} has under OUTPUT, and score again."
        )


def _encode(record: dict) -> bytes:
    return json.dumps(record, indent=2).encode() + b"\n"
