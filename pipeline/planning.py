"""Which images of a manifest are to be scored, and which are held already.

An image is held by a row that an earlier attempt at this run staged, or, with
`--only-new`, by a published run of the same model and settings, as long as its file
has the size and version that the row says. Files are asked for those, never read.
"""

import dataclasses
import io
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import apache_beam as beam
import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.database import STAGED_PARTS, connect
from pipeline.layout import TABLES, RunPaths, staged_parts
from pipeline.manifest import CheckedManifest
from pipeline.manifest_formats import ROW_GROUP_ROWS
from pipeline.mirror import discard, fetch, send
from pipeline.read_ahead import ReadAhead, TimedOut
from pipeline.runner import Runner
from pipeline.sharding import has_shards, write_row_groups
from pipeline.shared_files import open_shared, write_shared
from pipeline.source import source_version
from pipeline.uris import is_streamed
from pipeline.watch import Watch
from schemas.errors import InputError
from schemas.rejects import ImageError, Reason, Stage
from schemas.tables import manifest_schema

HELD_SCHEMA = pa.schema(
    [
        ("image_id", pa.string()),
        ("held_by_run", pa.string()),
        ("size_bytes", pa.int64()),
        ("source_version", pa.string()),
    ]
)
"""One row an image that needs not be scored: which run holds it, and which file it was."""

_CANDIDATES = "candidates.parquet"
"""Rows of the manifest beside what holds them, for the workers to compare."""

_GROUPS_A_WORKER = 16
"""Row groups each of several workers gets: at the end none waits for more than one of another's."""

_THREADS, _READ_AHEAD = 16, 256
"""Files asked at once: the answer of a store takes time, and no work here."""

_LASTING = f"reason <> '{Reason.DECODER_MISSING}'"
"""Rejects of a published run that hold an image: another is for want of software, not its own."""

_OF_THE_FILE = (
    f"stage IN ('{Stage.DECODE}', '{Stage.GATE}') AND reason <> '{Reason.DECODE_TIMEOUT}'"
    f" AND {_LASTING}"
)
"""Rejects that a resume keeps. What somebody may have mended beside the file is tried again."""


@dataclasses.dataclass(frozen=True)
class WorkPlan:
    """What a run has to do.

    Attributes:
      work: The rows to score, as a checked manifest.
      held: Files of `HELD_SCHEMA`, in the manifest's order.
      earlier: Parts that earlier attempts staged; only their rows that `held` names
        count.
      kept: Number of images that such rows hold.
      skipped: Number of images that published runs hold; None where these do not count.
    """

    work: CheckedManifest
    held: tuple[str, ...] = ()
    earlier: frozenset[str] = frozenset()
    kept: int = 0
    skipped: int | None = None


def plan_work(
    paths: RunPaths,
    manifest: CheckedManifest,
    holders: Sequence[dict] | None,
    runner: Runner,
    *,
    tries_again: bool = True,
) -> WorkPlan:
    """Returns what is left to score of a manifest.

    Args:
      paths: Of the run; what earlier attempts staged there is kept where it holds.
      manifest: Checked.
      holders: Records of the published runs that hold images, oldest first; None
        where every image is to be scored anew.
      runner: Asks the files for their versions.
      tries_again: Whether to score anew what the run has rejected for a reason that somebody
        may have mended beside the file.

    Raises:
      InputError: The files of a published run are not all there.
    """
    plan = _plan(paths, manifest, holders, runner, tries_again)
    return dataclasses.replace(plan, work=_gather_shards(paths, plan.work))


def _plan(
    paths: RunPaths,
    manifest: CheckedManifest,
    holders: Sequence[dict] | None,
    runner: Runner,
    tries_again: bool,
) -> WorkPlan:
    discard(paths, paths.plan)
    earlier = [part for table in TABLES for part in staged_parts(paths.parts(table))]
    if not (earlier or holders):
        return WorkPlan(manifest, skipped=None if holders is None else 0)
    with connect(paths.plan) as connection:
        _collect_held(connection, paths, holders or (), tries_again)
        candidates = paths.plan / _CANDIDATES
        groups = _write_candidates(connection, manifest, candidates)
        send(paths, candidates)
        _compare(paths.shared(paths.plan), groups, manifest.carried, runner)
        fetch(paths, paths.plan)
        held = sorted(str(path) for path in paths.plan.glob("held-*.parquet"))
        [(kept, skipped)] = connection.execute(
            "SELECT count(*) FILTER (held_by_run = $run), count(*) FILTER (held_by_run <> $run)"
            " FROM read_parquet($held, hive_partitioning=false)",
            {"run": paths.run_id, "held": held},
        ).fetchall()
        work = _merge(connection, manifest, paths.plan)
    return WorkPlan(
        work, tuple(held), frozenset(earlier), kept, None if holders is None else skipped
    )


def _gather_shards(paths: RunPaths, work: CheckedManifest) -> CheckedManifest:
    """Returns the work with each shard in a row group, so that its archive is read once."""
    path = paths.plan / "sharded.parquet"
    rows = "SELECT * FROM read_parquet(?, file_row_number=true, hive_partitioning=false)"
    with connect(paths.plan) as connection:
        if not has_shards(connection, rows, [work.path]):
            return work
        groups = write_row_groups(
            connection,
            rows,
            [work.path],
            columns=manifest_schema(work.carried).names,
            order="file_row_number",
            path=path,
            rows_a_group=ROW_GROUP_ROWS,
        )
    return dataclasses.replace(work, path=str(path), row_groups=groups)


def divide_work(paths: RunPaths, plan: WorkPlan, workers: int, batch_size: int) -> WorkPlan:
    """Returns a plan in row groups so small that workers are all busy to the end.

    Args:
      paths: Of the run.
      plan: What to score, in row groups of any size.
      workers: Processes that take a row group at a time.
      batch_size: Images a batch; a row group has whole ones, unless it is a shard, which
        stays whole.
    """
    batches = math.ceil(plan.work.rows / (workers * _GROUPS_A_WORKER * batch_size))
    rows = batches * batch_size
    if rows >= ROW_GROUP_ROWS or not plan.work.rows:
        return plan
    paths.plan.mkdir(parents=True, exist_ok=True)
    path = paths.plan / "divided.parquet"
    with (
        pq.ParquetFile(plan.work.path) as source,
        pq.ParquetWriter(path, source.schema_arrow, compression="zstd") as writer,
    ):
        for group in range(source.num_row_groups):
            table = source.read_row_group(group)
            is_shard = is_streamed(table["uri"][0].as_py())
            writer.write_table(table, row_group_size=len(table) if is_shard else rows)
    groups = pq.read_metadata(path).num_row_groups
    work = dataclasses.replace(plan.work, path=str(path), row_groups=groups)
    return dataclasses.replace(plan, work=work)


def keep_rejected(
    paths: RunPaths, manifest: CheckedManifest, record: dict, reasons: Sequence[str]
) -> CheckedManifest:
    """Returns those rows of a manifest that a published run rejected.

    Args:
      paths: Of the run that retries them; its checked manifest is replaced.
      manifest: That one.
      record: Of the published run.
      reasons: Codes to retry; all where empty.

    Raises:
      InputError: There are none, or that run's files are not all there.
    """
    path = paths.staging / "retried.parquet"
    with connect(paths.plan) as connection:
        reader = connection.sql(
            "SELECT m.* EXCLUDE (file_row_number)"
            " FROM read_parquet($manifest, file_row_number=true, hive_partitioning=false) m"
            " SEMI JOIN (SELECT image_id FROM read_parquet($rejects, hive_partitioning=false)"
            "  WHERE len($reasons::VARCHAR[]) = 0 OR list_contains($reasons, reason)) r"
            " USING (image_id) ORDER BY file_row_number",
            params={
                "manifest": manifest.path,
                "rejects": files_of(paths, record, "rejects"),
                "reasons": list(reasons),
            },
        ).to_arrow_reader(ROW_GROUP_ROWS)
        groups = _write_batches(reader, path)
    rows = pq.read_metadata(path).num_rows
    if not rows:
        raise InputError(
            "--retry-rejects must find images of the manifest that RUN rejected. Received:"
            f" {record['run_id']}, which rejected none of them"
            f"{' for ' + ' or '.join(reasons) if reasons else ''}."
        )
    path.replace(paths.manifest)
    return CheckedManifest(str(paths.manifest), rows, groups, manifest.carried)


def _collect_held(
    connection: duckdb.DuckDBPyConnection,
    paths: RunPaths,
    holders: Iterable[dict],
    tries_again: bool,
) -> None:
    """Leaves a table `held`: the newest row of each image that any run has."""
    connection.execute(
        "CREATE TABLE found (image_id VARCHAR, held_by_run VARCHAR, size_bytes BIGINT,"
        " source_version VARCHAR, age BIGINT, kind TINYINT, part VARCHAR)"
    )
    for age, record in enumerate(holders, start=1):
        for kind, table in enumerate(TABLES):
            files = files_of(paths, record, table)
            _insert_found(connection, record["run_id"], -age, kind, files, _LASTING)
    for kind, table in enumerate(TABLES):
        parts = staged_parts(paths.parts(table))
        # Its own rows go first, then the newest run's.
        rejects_kept = _OF_THE_FILE if tries_again else "TRUE"
        _insert_found(connection, paths.run_id, -(2**62), kind, parts, rejects_kept)
    connection.execute(
        "CREATE TABLE held AS SELECT * EXCLUDE (copy) FROM (SELECT *, row_number() OVER"
        " (PARTITION BY image_id ORDER BY age, kind, part DESC) AS copy FROM found)"
        " WHERE copy = 1"
    )


def _insert_found(
    connection: duckdb.DuckDBPyConnection,
    run_id: str,
    age: int,
    kind: int,
    parts: list[str],
    rejects_kept: str,
) -> None:
    if not parts:
        return
    kept = rejects_kept if TABLES[kind] == "rejects" else "TRUE"
    connection.execute(
        "INSERT INTO found SELECT image_id, ?, size_bytes, source_version, ?, ?, _part"
        f" FROM {STAGED_PARTS} WHERE {kept}",
        [run_id, age, kind, parts],
    )


def files_of(paths: RunPaths, record: dict, table: str) -> list[str]:
    """Returns the files of a table of a published run, here.

    Raises:
      InputError: One is missing, or has another size.
    """
    files = [file for file in record["files"] if file["path"].startswith(f"{table}/")]
    for file in files:
        path = paths.output / file["path"]
        fetch(paths, path)
        if not path.is_file() or path.stat().st_size != file["size_bytes"]:
            raise InputError(
                "published runs must be as they were published for --only-new, --retry-rejects and"
                f" rethreshold. Received: run {record['run_id']}, with {file['path']} missing"
                f" or changed. See `prescreen verify`; restore it, or remove that run's record."
            )
    return [str(paths.output / file["path"]) for file in files]


def _write_candidates(
    connection: duckdb.DuckDBPyConnection, manifest: CheckedManifest, path: Path
) -> int:
    """Writes the manifest's rows beside what holds them; returns the number of row groups."""
    reader = connection.sql(
        "SELECT m.* EXCLUDE (file_row_number), held_by_run, size_bytes, source_version"
        " FROM read_parquet(?, file_row_number=true, hive_partitioning=false) m"
        " LEFT JOIN held USING (image_id) ORDER BY file_row_number",
        params=[manifest.path],
    ).to_arrow_reader(ROW_GROUP_ROWS)
    return _write_batches(reader, path)


def _compare(plan: str, groups: int, carried: tuple[str, ...], runner: Runner) -> None:
    """Tells rows to score from held ones, a group of rows at a time, into files of `plan`."""
    runner.run(
        lambda pipeline: (
            pipeline
            | "CandidateGroups" >> beam.Create(range(groups))
            | "CompareVersions" >> beam.ParDo(_CompareVersionsDoFn(plan, carried))
        )
    )


class _CompareVersionsDoFn(beam.DoFn):
    """Writes two files a group of candidates; a retry writes the same ones again."""

    def __init__(self, plan: str, carried: tuple[str, ...]):
        self._plan = plan
        self._columns = manifest_schema(carried).names

    def setup(self):
        self._ahead = ReadAhead(_ask, threads=_THREADS, depth=_READ_AHEAD)

    def process(self, group: int):
        with open_shared(f"{self._plan}/{_CANDIDATES}") as file:
            table = pq.ParquetFile(file).read_row_group(group)
        unchanged = pa.array(self._compare(table), pa.bool_())
        held = table.filter(unchanged).select(HELD_SCHEMA.names)
        _write(f"{self._plan}/held-{group:06d}.parquet", held)
        work = table.filter(pc.invert(unchanged)).select(self._columns)
        _write(f"{self._plan}/work-{group:06d}.parquet", work)

    def teardown(self):
        self._ahead.close()

    def _compare(self, table: pa.Table) -> list[bool]:
        unchanged = [False] * table.num_rows
        for number, row in enumerate(table.to_pylist()):
            if row["held_by_run"] is not None:
                self._note(unchanged, self._ahead.put((number, row)))
        self._note(unchanged, self._ahead.drain())
        return unchanged

    def _note(self, unchanged: list[bool], results: Iterable) -> None:
        for result in results:
            # What does not answer now is read again later, and rejected there if need be.
            if not isinstance(result, TimedOut):
                number, unchanged[number] = result


def _ask(numbered: tuple[int, dict], watch: Watch) -> tuple[int, bool]:
    number, row = numbered
    return number, is_unchanged(row, watch)


def is_unchanged(row: dict, watch: Watch) -> bool:
    """Returns whether the file of a candidate is the one that its holder has a row of."""
    held = (row["size_bytes"], row["source_version"])
    try:
        now = source_version(row["uri"], watch)
    except ImageError:
        return held == (None, None)  # it could not be found then, and cannot be now
    size_bytes = row["size_bytes"] if now.size_bytes is None else now.size_bytes
    return held == (size_bytes, now.version)


def _merge(
    connection: duckdb.DuckDBPyConnection, manifest: CheckedManifest, plan: Path
) -> CheckedManifest:
    """Returns the rows to score as one file, so that few rows make few waves."""
    path = plan / "work.parquet"
    reader = connection.sql(
        "SELECT * EXCLUDE (_part, file_row_number)"
        f" FROM {STAGED_PARTS} ORDER BY _part, file_row_number",
        params=[sorted(str(part) for part in plan.glob("work-*.parquet"))],
    ).to_arrow_reader(ROW_GROUP_ROWS)
    groups = _write_batches(reader, path)
    return CheckedManifest(str(path), pq.read_metadata(path).num_rows, groups, manifest.carried)


def _write_batches(reader: pa.RecordBatchReader, path: Path) -> int:
    with pq.ParquetWriter(path, reader.schema, compression="zstd") as writer:
        for batch in reader:
            table = pa.Table.from_batches([batch])
            writer.write_table(table, row_group_size=ROW_GROUP_ROWS)
    return pq.ParquetFile(path).num_row_groups


def _write(path: str, table: pa.Table) -> None:
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    write_shared(path, buffer.getvalue())
