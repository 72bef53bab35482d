"""Where everything of a run lies."""

import dataclasses
import os
from pathlib import Path

TABLES = ("scores", "rejects")
"""Tables that are staged in parts and compacted."""


@dataclasses.dataclass(frozen=True)
class RunPaths:
    """Paths of one run under OUTPUT; see `Output` in the README.

    Attributes:
      output: The folder of all runs.
      run_id: Names this one.
    """

    output: Path
    run_id: str

    @property
    def record(self) -> Path:
        """The commit record, written last."""
        return self.output / "runs" / f"{self.run_id}.json"

    @property
    def staging(self) -> Path:
        """Work in progress, gone after the commit."""
        return self.output / "_staging" / self.run_id

    @property
    def manifest(self) -> Path:
        """The checked manifest."""
        return self.staging / "manifest.parquet"

    def parts(self, table: str) -> Path:
        """Folder of the staged parts of a table."""
        return self.staging / table

    @property
    def commit(self) -> Path:
        """What the commit makes before it publishes."""
        return self.staging / "commit"

    def built(self, kind: str) -> Path:
        """Where the commit builds the folder of a kind of result."""
        return self.commit / kind

    def published(self, kind: str) -> Path:
        """Where that folder is published; the worklists of all runs share one."""
        if kind == "worklist":
            return self.output / kind
        return self.output / kind / f"run_id={self.run_id}"


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
