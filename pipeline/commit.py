"""From staged parts to a published run: nothing lost, nothing doubled, or nothing at all."""

import dataclasses
import functools
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path

import duckdb

from pipeline.compaction import compact, plan_files, write_skipped
from pipeline.comparison import EarlierRun
from pipeline.database import connect
from pipeline.dicom_writing import write_objects
from pipeline.drawing import DrawingSettings, Origin, draw_overlays, plan_drawings
from pipeline.job import ScoringJob
from pipeline.layout import TABLES, RunPaths, staged_parts
from pipeline.ledger import Ledger, freeze_ledger
from pipeline.mirror import discard, fetch
from pipeline.publishing import publish_run
from pipeline.quality import count_quality
from pipeline.reading_room import show
from pipeline.record import ModelFacts, RunFacts, build_record, built_files, file_metadata
from pipeline.report import MadeReport, make_report, write_report
from pipeline.report_tables import built_tables
from pipeline.runner import Runner, choose_runner
from pipeline.worklist import Ranking, captured_findings, write_worklist
from schemas.tables import REJECTS_SCHEMA, SKIPPED_SCHEMA, scores_schema, with_metadata


class RejectLimitError(Exception):
    """More images were rejected than the run allows; nothing was published."""


class ReportError(Exception):
    """The report could not be made; nothing was published."""


class ReconciliationError(Exception):
    """Rows scored, rejected and skipped are not the manifest's; nothing was published."""


@dataclasses.dataclass(frozen=True)
class CommitSettings:
    """What the commit needs beside the job.

    Attributes:
      bundle: The model's facts.
      drawing: How much to draw.
      reject_limit: Largest share of manifest rows that may be rejected.
      review_budget: Most images in the worklist: a share of the manifest if a
        float, a number if an int, None for all that are flagged.
      urgency: Tier of each of the 14 findings, 1 for the most urgent.
      urgent_first: Whether the worklist ranks by tier before it ranks by abnormality.
      report: Whether to make one.
      find_earlier: Returns the run that the report compares with, given a record of
        this one; None where there is none.
      reading_room: Folder for what was drawn as DICOM objects; None for none.
      go_on: How to begin again where this ended, for messages.
    """

    bundle: ModelFacts
    drawing: DrawingSettings
    reject_limit: float
    review_budget: float | int | None
    urgency: dict[str, int]
    urgent_first: bool
    report: bool
    find_earlier: Callable[[dict], EarlierRun | None]
    reading_room: Path | None = None
    go_on: str = "Go on with --resume --run-id {run_id}"


def commit_run(
    job: ScoringJob,
    settings: CommitSettings,
    runner: Runner,
    facts: RunFacts,
    checkpoint: Callable[[str], None] = lambda step: None,
) -> dict:
    """Publishes what is staged, and returns the record that was written last.

    Args:
      job: What was scored.
      settings: What else the commit needs.
      runner: Draws and compacts.
      facts: What the run knows.
      checkpoint: Called with the name of each step that is done, the last time when
        all is built and nothing published; ends the commit by raising.

    Raises:
      RejectLimitError: Before anything is drawn.
      ReadingRoomError: The DICOM objects could not be written; or, with the run published, not
        be shown.
      ReportError: It could not be made, whatever the cause.
      ReconciliationError: The files as written do not hold each manifest row once.
    """
    paths, timings_s = job.paths, facts.timings_s
    # What an earlier attempt at this commit left is made again from the parts.
    discard(paths, paths.commit)
    for table in TABLES:
        fetch(paths, paths.parts(table))
    drawings = paths.commit / "drawings.parquet"
    # A connection a step: the tables of one are not in memory while the next one works.
    with connect(paths.commit) as connection:
        ledger = freeze_ledger(connection, paths, job.plan)
        _check_reject_limit(ledger, job, settings.reject_limit)
        groups = plan_drawings(connection, ledger, settings.drawing, drawings, paths.manifest)
    with _timed(timings_s, "draw"):
        overlays = _draw(drawings, groups, job, settings.drawing, runner)
    checkpoint("drawn")
    with _timed(timings_s, "write"):
        tables = _compact(ledger, job, settings.bundle, runner)
        with connect(paths.commit) as connection:
            _reconcile(connection, paths, tables, job.manifest.rows)
        with connect(paths.commit) as connection:
            flagged, listed, captured = _rank(connection, tables["scores"], job, settings)
            quality = count_quality(connection, [str(path) for path in tables["scores"]])
    counts = {
        "manifest": job.manifest.rows,
        "scored": ledger.counts["scores"],
        "rejected": ledger.counts["rejects"],
        "skipped": job.plan.skipped or 0,
        "flagged": flagged,
        "listed": listed,
        "drawn": overlays.images,
        "overlays": len(overlays.files),
        "not_drawn": overlays.reasons,
        **quality,
        "kept": job.plan.kept,
        "duplicates_dropped": ledger.duplicates,
        "outdated_dropped": ledger.outdated,
    }
    if settings.drawing.earlier:
        for origin in Origin:
            counts[f"overlays_{origin}"] = overlays.origins.get(origin, 0)
    if room := settings.reading_room:
        with _timed(timings_s, "dicom"):
            counts |= write_objects(
                room,
                job,
                tables["scores"],
                settings.bundle,
                gated_last=settings.drawing.gated_last,
                started=facts.state.started,
                go_on=settings.go_on.format(run_id=paths.run_id),
            )
        checkpoint("dicom_written")
    worklist = {
        "urgent_first": settings.urgent_first,
        "urgency": settings.urgency,
        "captured": captured,
    }
    build = functools.partial(
        build_record, job, settings.bundle, facts, counts, ledger.reasons, worklist
    )
    report = None
    if settings.report:
        with _timed(timings_s, "report"):
            report = _report(paths, build([]), settings)
    record = build([*built_files(paths), *overlays.files], report)
    checkpoint("built")
    publish_run(paths, record)
    if room:
        show(room, paths.run_id)
    return record


def share_of(share: float, rows: int) -> Decimal:
    """Returns `share` of `rows` as people count: 0.29 of 100 is 29, not a bit less."""
    return Decimal(str(share)) * rows


def _check_reject_limit(ledger: Ledger, job: ScoringJob, limit: float) -> None:
    rejected, rows = ledger.counts["rejects"], job.manifest.rows
    if rejected > share_of(limit, rows):
        reasons = ", ".join(f"{reason} {count}" for reason, count in ledger.reasons.items())
        raise RejectLimitError(
            f"{rejected} of {rows} images were rejected ({reasons}), more than --reject-limit"
            f" {limit} allows. Nothing was published. Mend the images, or raise --reject-limit;"
            f" then go on with --resume --run-id {job.paths.run_id}."
        )


@dataclasses.dataclass(frozen=True)
class _Overlays:
    """What was drawn.

    Attributes:
      images: How many have an overlay.
      files: The overlays as the record lists files.
      reasons: Findings to draw that have none, by the reason why.
      origins: Overlays by where they come from.
    """

    images: int = 0
    files: list[dict] = dataclasses.field(default_factory=list)
    reasons: dict[str, int] = dataclasses.field(default_factory=dict)
    origins: dict[str, int] = dataclasses.field(default_factory=dict)


def _draw(
    drawings: Path, groups: int, job: ScoringJob, settings: DrawingSettings, runner: Runner
) -> _Overlays:
    """Draws what is planned."""
    paths = job.paths
    draw_overlays(drawings, groups, paths, job.thresholds, settings, job.decode_threads, runner)
    fetch(paths, paths.built("drawn"))
    # What a worker that was killed left half written is in no row.
    for path in paths.drawn.rglob(".*.tmp"):
        path.unlink()
    parts = staged_parts(paths.built("drawn"))
    if not parts:
        return _Overlays()
    # A bundle that was drawn twice staged its rows twice.
    drawn = "(SELECT DISTINCT * FROM read_parquet(?, hive_partitioning=false))"
    with connect(paths.commit) as connection:
        overlays = connection.execute(
            f"SELECT overlay, size_bytes, sha256, image_id, origin FROM {drawn}"
            " WHERE overlay IS NOT NULL ORDER BY overlay",
            [parts],
        ).fetchall()
        reasons = connection.execute(
            f"SELECT reason, count(*) FROM {drawn} WHERE reason IS NOT NULL"
            " GROUP BY reason ORDER BY reason",
            [parts],
        ).fetchall()
    files = [
        {"path": path, "size_bytes": size_bytes, "sha256": sha256, "rows": None}
        for path, size_bytes, sha256, *_ in overlays
    ]
    images = {image_id for *_, image_id, _ in overlays}
    origins = Counter(origin for *_, origin in overlays)
    return _Overlays(len(images), files, dict(reasons), dict(origins))


def _compact(
    ledger: Ledger, job: ScoringJob, bundle: ModelFacts, runner: Runner
) -> dict[str, list[Path]]:
    """Compacts all tables and returns their files."""
    schemas = {"scores": scores_schema(job.manifest.carried), "rejects": REJECTS_SCHEMA}
    metadata = file_metadata(job, bundle)
    written = {}
    for table, schema in schemas.items():
        files = plan_files(job.paths.built(table), ledger.parts[table], ledger)
        # The parts of a run on a store are all here, for the ledger, and workers elsewhere
        # would fetch each once more. One file is one worker's work: to rent some takes longer.
        is_near = job.paths.store or len(files) == 1
        nearest = choose_runner(()) if is_near else runner
        compact(files, with_metadata(schema, metadata), job.paths.built("drawn"), nearest)
        written[table] = [file.path for file in files]
    if job.plan.skipped is not None:
        path = job.paths.built("skipped") / "part-00000.parquet"
        schema = with_metadata(SKIPPED_SCHEMA, metadata)
        write_skipped(job.plan.held, job.paths.run_id, schema, path)
        written["skipped"] = [path]
    return written


def _reconcile(
    connection: duckdb.DuckDBPyConnection,
    paths: RunPaths,
    tables: dict[str, list[Path]],
    rows: int,
) -> None:
    """Checks from the files as written that they hold each manifest id exactly once."""
    files = [str(path) for table in tables.values() for path in table]
    connection.execute(
        "CREATE OR REPLACE TABLE written AS SELECT image_id, count(*) AS copies"
        " FROM read_parquet(?, union_by_name=true, hive_partitioning=false) GROUP BY image_id",
        [files],
    )
    manifest = "read_parquet($manifest, hive_partitioning=false) m"
    [(missing, unknown, doubled)] = connection.execute(
        f"SELECT (SELECT count(*) FROM {manifest} ANTI JOIN written USING (image_id)),"
        f" (SELECT count(*) FROM written ANTI JOIN {manifest} USING (image_id)),"
        " (SELECT count(*) FROM written WHERE copies > 1)",
        {"manifest": str(paths.manifest)},
    ).fetchall()
    if missing or unknown or doubled:
        raise ReconciliationError(
            f"The files written must hold each of the {rows} manifest rows once. Received:"
            f" {missing} missing, {unknown} not in the manifest, {doubled} more than once."
            " Nothing was published. This is a defect: please report it."
        )


def _rank(
    connection: duckdb.DuckDBPyConnection,
    scores: Sequence[Path],
    job: ScoringJob,
    settings: CommitSettings,
) -> tuple[int, int, dict[str, dict[str, int]]]:
    """Writes the worklist; returns how many images are flagged, how many listed, and of what."""
    files, budget = [str(path) for path in scores], settings.review_budget
    [(flagged,)] = connection.execute(
        "SELECT count(*) FROM read_parquet(?, hive_partitioning=false) WHERE flagged", [files]
    ).fetchall()
    limit = int(share_of(budget, job.manifest.rows)) if isinstance(budget, float) else budget
    listed = flagged if limit is None else min(limit, flagged)
    folder, name = job.paths.built("worklist"), f"run_id={job.paths.run_id}"
    write_worklist(
        connection,
        files,
        job.thresholds,
        Ranking(listed, settings.urgency, settings.urgent_first, settings.drawing.gated_last),
        folder,
        name,
        file_metadata(job, settings.bundle),
    )
    return flagged, listed, captured_findings(connection, files, folder / f"{name}.parquet")


def _report(paths: RunPaths, record: dict, settings: CommitSettings) -> MadeReport:
    """Makes the report from the tables as built, and a record that lacks their files."""
    try:
        report = make_report(record, built_tables(paths), settings.find_earlier(record))
        write_report(report, paths.built("report") / f"run_id={paths.run_id}.html")
    except Exception as error:
        raise ReportError(
            f"The report of run {paths.run_id} could not be made ({type(error).__name__}: {error})."
            " Nothing was published; what was scored is kept."
            f" {settings.go_on.format(run_id=paths.run_id)}, and with --no-report to publish"
            " without it."
        ) from error
    return report


@contextmanager
def _timed(timings_s: dict[str, float], name: str) -> Iterator[None]:
    start = time.monotonic()
    yield
    timings_s[name] = time.monotonic() - start
