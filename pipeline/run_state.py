"""What OUTPUT holds: records of published runs, and runs that are not finished."""

import dataclasses
import datetime
import hashlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path

from pipeline.layout import Output, RunPaths, staged_runs, write_atomically
from pipeline.mirror import send
from schemas.errors import InputError

_log = logging.getLogger(__name__)

STATE_VERSION = 2


@dataclasses.dataclass(frozen=True)
class RunState:
    """What an unfinished run says of itself; its first file, written before any row.

    Attributes:
      settings: As `RowSettings.to_json` gives them.
      digest: Of these.
      started: When it began, in UTC.
      options: Those of the last start, as `pipeline.run.ScoreOptions` has them.
      parent_run: The run whose rejects it retries, or whose scores it re-thresholds; None for
        any other.
      attempts: How often it was started.
      supersedes: The run whose scores it re-thresholds; None for any other.
    """

    settings: dict
    digest: str
    started: datetime.datetime
    options: dict
    parent_run: str | None
    attempts: int = 1
    supersedes: str | None = None

    def write(self, paths: RunPaths) -> None:
        """Writes the state of the run at `paths`."""
        content = {
            "state_version": STATE_VERSION,
            **dataclasses.asdict(self),
            "started": self.started.isoformat(),
        }
        write_atomically(paths.state, json.dumps(content, indent=2).encode() + b"\n")
        send(paths, paths.state)


def read_state(paths: RunPaths) -> RunState | None:
    """Returns the state of an unfinished run, or None where it ended before it wrote one.

    Raises:
      InputError: It is damaged, or was written by a version that is not understood.
    """
    try:
        content = json.loads(paths.state.read_bytes())
        version = content.pop("state_version")
        if version == STATE_VERSION:
            started = datetime.datetime.fromisoformat(content.pop("started"))
            return RunState(**content, started=started)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"an unfinished run must be as `prescreen score` wrote it. Received: run"
            f" {paths.run_id}, whose run.json cannot be understood ({type(error).__name__})."
            f" Remove _staging/{paths.run_id} to score its images anew."
        ) from error
    raise InputError(
        f"state_version must be {STATE_VERSION}. Received: {version}, of run {paths.run_id}."
        f" Finish it with the version that began it, or remove _staging/{paths.run_id}."
    )


def unfinished_runs(output: Output) -> list[tuple[RunPaths, RunState]]:
    """Returns the runs that began and are not published, newest first.

    One whose state cannot be read is warned of and left out: it must not keep all
    others from being resumed.
    """
    found = []
    for paths in staged_runs(output):
        try:
            if not paths.record.exists() and (state := read_state(paths)):
                found.append((paths, state))
        except InputError as error:
            _log.warning("%s", error)
    return sorted(found, key=lambda run: (run[1].started, run[0].run_id), reverse=True)


def read_record(path: Path) -> dict:
    """Returns a run record.

    Raises:
      InputError: There is none at `path`, or it is not one.
    """
    try:
        record = json.loads(path.read_bytes())
        record["run_id"], record["files"], record["counts"]
    except OSError as error:
        raise InputError(
            "a run must be named by its record, OUTPUT/runs/ID.json, that can be read."
            f" Received: {path} ({error.strerror})."
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"a run's record must be as `prescreen score` wrote it. Received: {path}"
            f" ({type(error).__name__}). Restore it, or remove it and what it published."
        ) from error
    return record


def record_digest(record: dict) -> str:
    """Returns 64 hex digits over a record without its own `record_sha256`."""
    content = {name: record[name] for name in record if name != "record_sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def scoring_began(record: dict) -> str:
    """Returns when the run began that made a run's scores: its own start, if it scored them."""
    return record.get("scoring_started_at") or record["started_at"]


def committed_runs(output: Path) -> list[dict]:
    """Returns the records of all published runs."""
    return [read_record(path) for path in sorted((output / "runs").glob("*.json"))]


def current_runs(records: Sequence[dict]) -> list[dict]:
    """Returns the records of runs that none of them supersedes, those with the oldest scores first.

    Args:
      records: Of all published runs of one OUTPUT.
    """
    superseded = {record.get("supersedes") for record in records}
    return sorted(
        (record for record in records if record["run_id"] not in superseded),
        key=lambda record: (scoring_began(record), record["started_at"], record["run_id"]),
    )
