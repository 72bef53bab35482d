"""Whether a published run still is what was published."""

import dataclasses
import os
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from model.bundle import file_sha256
from pipeline.database import connect
from pipeline.layout import SHARED, RunPaths
from pipeline.run_state import read_record, record_digest
from schemas.errors import InputError
from schemas.tables import read_metadata

_FOLDERS = ("scores", "rejects", "skipped", "gradcam")
"""What a run publishes as a folder of its own."""

_ROW_COUNTS = {
    "scores": "scored",
    "rejects": "rejected",
    "skipped": "skipped",
    "worklist": "listed",
}
"""Which count of the record says how many rows a table has."""

_COUNTS = ("manifest", *_ROW_COUNTS.values(), "flagged", "overlays")
_IMAGE_TABLES = ("scores", "rejects", "skipped")
"""An image is in one of these, once."""

_SHOWN = 3


@dataclasses.dataclass(frozen=True)
class PublishedFile:
    """A file as the record lists it.

    Attributes:
      path: Relative to OUTPUT, with `/`.
      size_bytes: Of the file.
      sha256: Of its content, 64 hex digits.
      rows: Of a Parquet file; None for any other.
    """

    path: str
    size_bytes: int
    sha256: str
    rows: int | None

    @property
    def kind(self) -> str:
        """What it holds: the first folder of its path."""
        return self.path.partition("/")[0]


@dataclasses.dataclass(frozen=True)
class Problem:
    """Something that is not as it was published.

    Attributes:
      path: Of the file, relative to OUTPUT; of the record where more than one is meant.
      what: One line on it, to be read after the path.
    """

    path: str
    what: str


@dataclasses.dataclass(frozen=True)
class Verification:
    """What was checked of a run, and what was found.

    Attributes:
      run_id: Names the run.
      files: Number of files that the record lists.
      size_bytes: Of all of them.
      counts: Images by what became of them, as the record says.
      problems: Empty for a run that is what was published.
    """

    run_id: str
    files: int
    size_bytes: int
    counts: dict[str, int]
    problems: list[Problem]


def verify_run(path: Path) -> Verification:
    """Checks a published run: its record, every file of it, and the rows of its tables.

    Files are read one after the other, in pieces; image ids are compared on disk, in a
    temporary folder. Nothing is written to OUTPUT.

    Args:
      path: Its record, `OUTPUT/runs/ID.json`.

    Raises:
      InputError: There is no record at `path`, or it cannot be understood.
    """
    path = path.absolute()
    if path.parent.name != "runs":
        raise InputError(f"RUN must be a record, OUTPUT/runs/ID.json. Received: {path}.")
    record = read_record(path)
    files, counts = _listed_files(record, path), _counts(record, path)
    paths = RunPaths(path.parents[1], path.stem)
    problems = [Problem(f"runs/{path.name}", what) for what in _check_record(paths, record, files)]
    found = set(_found_files(paths))
    wrong = {file.path: what for file in files if (what := _check(paths, file, found, record))}
    problems += [Problem(name, what) for name, what in wrong.items()]
    unlisted = {name for name in found - {file.path for file in files} if not _is_report(name)}
    problems += [Problem(name, "is not in the record") for name in sorted(unlisted)]
    sound = [file for file in files if file.path not in wrong]
    problems += [
        Problem(f"runs/{path.name}", what) for what in _check_rows(paths, files, sound, counts)
    ]
    return Verification(
        run_id=path.stem,
        files=len(files),
        size_bytes=sum(file.size_bytes for file in files),
        counts=counts,
        problems=problems,
    )


def _listed_files(record: dict, path: Path) -> list[PublishedFile]:
    try:
        files = [
            PublishedFile(file["path"], file["size_bytes"], file["sha256"], file["rows"])
            for file in record["files"]
        ]
    except (KeyError, TypeError) as error:
        raise _damaged(path, "files") from error
    for file in files:
        typed = isinstance(file.path, str) and isinstance(file.sha256, str)
        if not (typed and isinstance(file.size_bytes, int) and isinstance(file.rows, int | None)):
            raise _damaged(path, "files")
    return files


def _counts(record: dict, path: Path) -> dict[str, int]:
    counts = record["counts"]
    if not isinstance(counts, dict):
        raise _damaged(path, "counts")
    for name in _COUNTS:
        if not isinstance(counts.get(name), int):
            raise _damaged(path, f"counts.{name}")
    return {name: counts[name] for name in _COUNTS}


def _damaged(path: Path, field: str) -> InputError:
    return InputError(
        f"a run's record must be as `prescreen score` wrote it. Received: {path}, whose {field}"
        " cannot be understood. Restore it, or remove it and what it published."
    )


def _check_record(paths: RunPaths, record: dict, files: Iterable[PublishedFile]) -> Iterator[str]:
    """Gives what in the record contradicts its name or itself."""
    counts = record["counts"]
    if record["run_id"] != paths.run_id:
        yield f"is the record of run {record['run_id']!r}"
    if record.get("record_sha256") != (digest := record_digest(record)):
        yield f"has changed: its digest is {digest}, and was {record.get('record_sha256')}"
    named = Counter(file.path for file in files)
    for name in sorted(name for name, times in named.items() if times > 1):
        yield f"lists {name} {named[name]} times"
    parts = counts["scored"] + counts["rejected"] + counts["skipped"]
    if parts != counts["manifest"]:
        yield (
            f"counts {counts['scored']} scored, {counts['rejected']} rejected and"
            f" {counts['skipped']} skipped, which are not the {counts['manifest']} of the manifest"
        )
    rows = Counter()
    for file in files:
        rows[file.kind] += file.rows or 0
    for kind, name in _ROW_COUNTS.items():
        if rows[kind] != counts[name]:
            yield f"counts {counts[name]} {name}, and {rows[kind]} rows in {kind}"
    overlays = sum(file.kind == "gradcam" for file in files)
    if overlays != counts["overlays"]:
        yield f"counts {counts['overlays']} overlays, and lists {overlays}"


def _found_files(paths: RunPaths) -> Iterator[str]:
    """Gives everything in the run's folders that is not a folder, relative to OUTPUT."""
    for kind in _FOLDERS:
        if not paths.published(kind).is_dir():
            continue
        for folder, folders, names in os.walk(paths.published(kind), onerror=_fail):
            # A link to a folder is not followed: nothing below it was published.
            links = [name for name in folders if os.path.islink(os.path.join(folder, name))]
            for name in (*names, *links):
                yield Path(folder, name).relative_to(paths.output).as_posix()
    for kind in SHARED:
        folder = paths.published(kind)
        for path in folder.iterdir() if folder.is_dir() else ():
            if path.name.lstrip(".").startswith(f"run_id={paths.run_id}."):
                yield path.relative_to(paths.output).as_posix()


def _is_report(name: str) -> bool:
    # `prescreen report` makes one of a run that published none.
    return name.startswith("report/") and name.endswith(".html")


def _fail(error: OSError) -> None:
    raise error


def _check(paths: RunPaths, file: PublishedFile, found: set[str], record: dict) -> str | None:
    """Returns what is wrong with a file, or None."""
    if file.path not in found:
        return "is missing"
    path = paths.output / file.path
    if not path.is_file():
        return "is not a file"
    try:
        size_bytes = path.stat().st_size
        if size_bytes != file.size_bytes:
            return f"has {size_bytes} bytes, and had {file.size_bytes} when it was published"
        sha256 = file_sha256(path)
        if sha256 != file.sha256:
            return f"has changed: its sha256 is {sha256}, and was {file.sha256}"
        return _check_table(path, file, record) if path.suffix == ".parquet" else None
    except OSError as error:
        return f"cannot be read ({error.strerror})"


def _check_table(path: Path, file: PublishedFile, record: dict) -> str | None:
    try:
        with pq.ParquetFile(path) as parquet:
            rows, schema = parquet.metadata.num_rows, parquet.schema_arrow
    except pa.ArrowException:
        return "is not Parquet"
    if rows != file.rows:
        return f"has {rows} rows, and {file.rows} in the record"
    if b"prescreen" not in (schema.metadata or {}):
        return "does not say of which run it is"
    told = {"run_id": None, "model_id": None, **read_metadata(schema)}
    other = sorted(name for name in told if name in record and told[name] != record[name])
    if other:
        return f"is of another run: {', '.join(other)} not as in the record"
    return None


def _check_rows(
    paths: RunPaths,
    files: Iterable[PublishedFile],
    sound: Iterable[PublishedFile],
    counts: dict[str, int],
) -> Iterator[str]:
    """Gives what is wrong with the rows of the tables that are whole."""
    with tempfile.TemporaryDirectory() as folder, connect(Path(folder)) as connection:
        tables = {str(paths.output / file.path) for file in sound if file.kind in _IMAGE_TABLES}
        if tables:
            yield from _check_ids(connection, sorted(tables))
        scores = [str(paths.output / file.path) for file in sound if file.kind == "scores"]
        if scores and len(scores) == sum(file.kind == "scores" for file in files):
            [(flagged,)] = connection.execute(
                "SELECT count(*) FILTER (flagged) FROM read_parquet(?, hive_partitioning=false)",
                [scores],
            ).fetchall()
            if flagged != counts["flagged"]:
                yield f"counts {counts['flagged']} flagged, and {flagged} are in scores"


def _check_ids(connection: duckdb.DuckDBPyConnection, tables: list[str]) -> Iterator[str]:
    connection.execute(
        "CREATE TABLE doubled AS SELECT image_id"
        " FROM read_parquet(?, union_by_name=true, hive_partitioning=false)"
        " GROUP BY image_id HAVING count(*) > 1",
        [tables],
    )
    [(doubled,)] = connection.execute("SELECT count(*) FROM doubled").fetchall()
    if doubled:
        first = connection.execute(
            "SELECT image_id FROM doubled ORDER BY image_id LIMIT ?", [_SHOWN]
        ).fetchall()
        named = ", ".join(repr(image_id) for (image_id,) in first)
        yield f"is of a run that holds {doubled} image ids more than once, such as {named}"
