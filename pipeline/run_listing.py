"""All runs of an OUTPUT, in what state each is, and what to do about it."""

import dataclasses
import datetime
import enum
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.layout import Output, RunPaths, staged_parts, staged_runs
from pipeline.lock import Holder
from pipeline.locking import living_holder
from pipeline.mirror import fetch
from pipeline.run_state import RunState, read_state
from schemas.errors import InputError

_SETTINGS = ("model_id", "thresholds_id", "tta", "precision")
_PUBLISHED_COUNTS = ("scored", "rejected", "skipped", "flagged")
_STAGED_COUNTS = {"scored": "scores", "rejected": "rejects"}
"""What is counted of an unfinished run, and the table whose staged parts hold it."""


class RunPhase(enum.StrEnum):
    """How far a run came."""

    PUBLISHED = "published"
    SUPERSEDED = "superseded"
    RUNNING = "running"
    COMMITTING = "committing"
    UNFINISHED = "unfinished"
    BEGUN = "begun"
    BROKEN = "broken"


@dataclasses.dataclass(frozen=True)
class ListedRun:
    """One run of an OUTPUT.

    Attributes:
      run_id: Names it.
      state: How far it came.
      started: When it began, in UTC; None where nothing says so.
      counts: Images of a published run by what became of them; rows that an unfinished
        one staged so far, where an image can stand twice; and staged parts that cannot
        be read, where there are any.
      settings: Ids of model and thresholds, TTA and precision; None where unknown.
      supersedes: The run whose scores it re-thresholds; None for any other.
      holder: The living process that works on it.
      advice: What is wrong and what to do; empty where nothing is to be done.
    """

    run_id: str
    state: RunPhase
    started: datetime.datetime | None = None
    counts: dict[str, int] = dataclasses.field(default_factory=dict)
    settings: dict[str, str] | None = None
    supersedes: str | None = None
    holder: Holder | None = None
    advice: str = ""


def list_runs(output: Output) -> list[ListedRun]:
    """Returns the runs of an OUTPUT, newest first; those of unknown start go before all.

    Reads records, states and the footers of staged parts. Writes nothing.

    Args:
      output: The folder of all runs; may be read-only.

    Raises:
      InputError: There is no such folder.
    """
    if not output.folder.is_dir():
        raise InputError(
            "OUTPUT must be a folder of runs, as `prescreen score --output` made it. Received:"
            f" {output.folder}, which is no folder."
        )
    # These first: a run that is published meanwhile is then found by its record.
    runs = {paths.run_id: _unfinished_run(paths) for paths in staged_runs(output)}
    for path in (output.folder / "runs").glob("[!.]*.json"):
        runs[path.stem] = _published_run(path)
    _mark_superseded(runs)
    return sorted(runs.values(), key=_age, reverse=True)


def _mark_superseded(runs: dict[str, ListedRun]) -> None:
    """Says of each published run that another one supersedes by which."""
    for by in list(runs.values()):
        parent = runs.get(by.supersedes)
        if by.state == RunPhase.PUBLISHED and parent and parent.state == RunPhase.PUBLISHED:
            runs[parent.run_id] = dataclasses.replace(
                parent,
                state=RunPhase.SUPERSEDED,
                advice=f"Superseded by {by.run_id}: other thresholds for the same scores.",
            )


def _age(run: ListedRun) -> tuple:
    unknown = run.started is None
    return unknown, "" if unknown else run.started.isoformat(), run.run_id


def _published_run(path: Path) -> ListedRun:
    try:
        record = _read_without_files(path)
        return ListedRun(
            run_id=path.stem,
            state=RunPhase.PUBLISHED,
            started=_in_utc(record["started_at"]),
            counts={name: int(record["counts"][name]) for name in _PUBLISHED_COUNTS},
            settings={name: record[name] for name in _SETTINGS},
            supersedes=record.get("supersedes"),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        return ListedRun(
            run_id=path.stem,
            state=RunPhase.BROKEN,
            advice=f"runs/{path.name} is not as `prescreen score` wrote it"
            f" ({_kind(error)}). Restore it, or remove it and what it published.",
        )


def _read_without_files(path: Path) -> dict:
    """Returns a record without its list of files, which can be a thousand times the rest.

    The list is found by how records are indented; where it is not found, all is read.
    """
    data = path.read_bytes()
    start = data.find(b'\n  "files": [\n')
    end = data.find(b"\n  ]", start)
    if -1 < start < end:
        data = data[:start] + b'\n  "files": [' + data[end:]
    return json.loads(data)


def _unfinished_run(paths: RunPaths) -> ListedRun:
    holder = None
    try:
        holder = living_holder(paths)
        run = _describe(paths, read_state(paths))
    except InputError as error:
        run = ListedRun(paths.run_id, RunPhase.BROKEN, advice=str(error))
    if holder is None:
        return run
    advice = f"Held by {holder}. Wait for it; where it was stopped, start again with --resume."
    return dataclasses.replace(run, state=RunPhase.RUNNING, holder=holder, advice=advice)


def _describe(paths: RunPaths, state: RunState | None) -> ListedRun:
    """Returns a run that nobody works on."""
    run_id = paths.run_id
    if state is None:
        return ListedRun(
            run_id,
            RunPhase.BEGUN,
            advice=f"Ended before it said what it is. Remove _staging/{run_id}.",
        )
    phase = RunPhase.UNFINISHED
    advice = (
        f"Run the same command with --resume --run-id {run_id}, or remove _staging/{run_id}"
        " to score its images anew."
    )
    if state.supersedes:
        advice = (
            f"Re-threshold {state.supersedes} by the same command again, or remove"
            f" _staging/{run_id}."
        )
    if paths.prepared.exists():
        phase = RunPhase.COMMITTING
        advice = (
            "Built and not yet published. The next `prescreen score` into this folder finishes"
            f" it: start it with --resume. Do not remove _staging/{run_id}."
        )
    return ListedRun(
        run_id=run_id,
        state=phase,
        started=_in_utc(state.started.isoformat()),
        counts=_count_staged(paths),
        settings={name: state.settings[name] for name in _SETTINGS},
        supersedes=state.supersedes,
        advice=advice,
    )


def _count_staged(paths: RunPaths) -> dict[str, int]:
    """Returns the number of rows in staged parts, from their footers alone."""
    counts, unreadable = {}, 0
    for name, table in _STAGED_COUNTS.items():
        counts[name] = 0
        fetch(paths, paths.parts(table))
        for part in staged_parts(paths.parts(table)):
            try:
                counts[name] += pq.read_metadata(part).num_rows
            except (OSError, pa.ArrowException):
                unreadable += 1
    return {**counts, "unreadable_parts": unreadable} if unreadable else counts


def _in_utc(moment: str) -> datetime.datetime:
    return datetime.datetime.fromisoformat(moment).astimezone(datetime.UTC)


def _kind(error: Exception) -> str:
    return getattr(error, "strerror", None) or type(error).__name__
