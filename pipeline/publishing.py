"""The second phase of a commit: what is built becomes visible, and the record is written.

Once `prepared.json` is there, everything of the run is built, checked and durable, and
the commit only goes forward: each step can be done twice, and whoever starts next in
OUTPUT finishes what a crash has interrupted.
"""

import json
import os
import shutil
from pathlib import Path

from pipeline.layout import RunPaths, staged_runs, sync, sync_tree, write_atomically
from pipeline.lock import RunLock, find_holder
from pipeline.run_state import read_record

_FOLDERS = ("gradcam", "rejects", "skipped", "scores")
"""Published by one rename each; the scores last, since they name overlays."""


class PublishError(Exception):
    """A file of a prepared run is neither built nor published: the run needs a person."""


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
    if paths.built("worklist").is_dir():
        for path in sorted(paths.built("worklist").iterdir()):
            _move(path, paths.published("worklist") / path.name)
    for file in record["files"]:
        _check_published(paths.output / file["path"], file, paths.run_id)
    paths.record.parent.mkdir(exist_ok=True)
    write_atomically(paths.record, _encode(record))
    # The run is published, whatever becomes of its leftovers.
    shutil.rmtree(paths.staging, ignore_errors=True)


def finish_commits(output: Path) -> list[dict]:
    """Finishes what crashed commits in `output` left; returns the records of their runs.

    A run that another process works on is left to it. One whose record was written and whose
    staging was not removed counts as well: whoever started it may not know that it ended.

    Raises:
      PublishError: As `publish` does.
      InputError: The record of a run that was published cannot be read.
    """
    finished = []
    for paths in staged_runs(output):
        if not (paths.record.exists() or paths.prepared.exists()) or find_holder(paths.lock):
            continue
        with RunLock(paths.lock):
            if paths.record.exists():
                record = read_record(paths.record)
                shutil.rmtree(paths.staging, ignore_errors=True)
            else:
                record = json.loads(paths.prepared.read_bytes())
                publish(paths, record)
            finished.append(record)
    return finished


def _move(built: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    os.rename(built, target)
    sync(target.parent)


def _check_published(path: Path, file: dict, run_id: str) -> None:
    if not path.is_file() or path.stat().st_size != file["size_bytes"]:
        raise PublishError(
            f"Every file of a prepared run must be there to publish it. Received: run {run_id}"
            f" without {file['path']}. Restore it, or remove _staging/{run_id} and what run_id="
            f"{run_id} has under OUTPUT, and score again."
        )


def _encode(record: dict) -> bytes:
    return json.dumps(record, indent=2).encode() + b"\n"
