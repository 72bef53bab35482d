"""Where everything of a run lies."""

import dataclasses
import os
from pathlib import Path

from model.object_store import ObjectFolder

TABLES = ("scores", "rejects")
"""Tables that are staged in parts and compacted."""

SHARED = ("worklist", "report")
"""Kinds of result in whose folder each run has files, and not a folder."""

PUBLISHED = ("scores", "rejects", "skipped", "gradcam", *SHARED)
"""Kinds of result that a run publishes, each in a folder of OUTPUT."""


@dataclasses.dataclass(frozen=True)
class Output:
    """An OUTPUT: the place of all runs.

    Attributes:
      folder: On this machine; what it has copied of it (`pipeline.mirror`) where OUTPUT is on
        a store.
      store: That place there; None for a local folder.
    """

    folder: Path
    store: ObjectFolder | None = None

    def run(self, run_id: str) -> "RunPaths":
        """Returns the paths of a run."""
        return RunPaths(self.folder, run_id, self.store)


@dataclasses.dataclass(frozen=True)
class RunPaths:
    """Paths of one run under OUTPUT; see `Output` in the README.

    Attributes:
      output: The folder of all runs, as that of an `Output`.
      run_id: Names this one.
      store: As that of an `Output`.
    """

    output: Path
    run_id: str
    store: ObjectFolder | None = None

    def name_of(self, path: Path) -> str:
        """Returns a path relative to OUTPUT, with `/`."""
        return path.relative_to(self.output).as_posix()

    def shared(self, path: Path) -> str:
        """Returns where workers find what is `path` here: the same, or its uri on the store."""
        return f"{self.store.uri}/{self.name_of(path)}" if self.store else str(path)

    @property
    def record(self) -> Path:
        """The commit record, written last."""
        return self.output / "runs" / f"{self.run_id}.json"

    @property
    def staging(self) -> Path:
        """Work in progress, gone after the commit."""
        return self.output / "_staging" / self.run_id

    @property
    def state(self) -> Path:
        """What the run is: under which settings it began, written first."""
        return self.staging / "run.json"

    @property
    def lock(self) -> Path:
        """Held by the process that works on the run."""
        return self.staging / "lock"

    @property
    def succession(self) -> Path:
        """Held by the process that re-thresholds the run; no run's folder, so hidden."""
        return self.output / "_staging" / ".rethreshold" / self.run_id / "lock"

    @property
    def manifest(self) -> Path:
        """The checked manifest."""
        return self.staging / "manifest.parquet"

    @property
    def plan(self) -> Path:
        """Which rows of the manifest are to be scored, and which are held already."""
        return self.staging / "plan"

    def parts(self, table: str) -> Path:
        """Folder of the staged parts of a table."""
        return self.staging / table

    @property
    def commit(self) -> Path:
        """What the commit makes before it publishes."""
        return self.staging / "commit"

    @property
    def prepared(self) -> Path:
        """The record of a commit that is built and durable; from here it only goes forward."""
        return self.staging / "prepared.json"

    def built(self, kind: str) -> Path:
        """Where the commit builds the folder of a kind of result."""
        return self.commit / kind

    @property
    def drawn(self) -> Path:
        """Where overlays are drawn: on a store, which cannot rename, in their last place."""
        return self.published("gradcam") if self.store else self.built("gradcam")

    def published(self, kind: str) -> Path:
        """Where that folder is published; the worklists of all runs share one, and the reports."""
        if kind in SHARED:
            return self.output / kind
        return self.output / kind / f"run_id={self.run_id}"


def staged_runs(output: Output) -> list[RunPaths]:
    """Returns the runs that have a staging folder in `output`, by id."""
    folders = sorted((output.folder / "_staging").glob("[!.]*/"))
    return [output.run(path.name) for path in folders]


def staged_parts(folder: Path) -> list[str]:
    """Returns the complete parts of a table in `folder`, by name."""
    return sorted(str(path) for path in folder.glob("[!.]*.parquet"))


def write_atomically(path: Path, data: bytes) -> None:
    """Writes a file that is there whole or not at all, and durable once there."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync(path.parent)


def sync(path: Path) -> None:
    """Makes a file's content, or the names in a folder, survive a loss of power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Makes a folder and all that is in it survive a loss of power."""
    for path in (*folder.rglob("*"), folder):
        sync(path)
