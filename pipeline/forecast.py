"""What a run of `score` would do, and what it would take: `prescreen plan`."""

import dataclasses
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path

from pipeline.compaction import write_skipped
from pipeline.database import connect
from pipeline.layout import TABLES, RunPaths
from pipeline.locking import living_holder
from pipeline.manifest import CheckedManifest
from pipeline.planning import WorkPlan, keep_rejected, plan_work
from pipeline.reckoning import PlanOptions, WorkCounts, reckon
from pipeline.run_state import committed_runs, current_runs
from pipeline.runner import choose_runner
from pipeline.sampling import choose_sample, measure_sample, sample_size
from pipeline.setting_up import Setup, check_own_manifest, holders_among, published_already, set_up
from pipeline.shadow import prepared_runs, read_output, shadow_run
from pipeline.starting import find_run
from schemas.tables import SKIPPED_SCHEMA


def forecast_run(
    options: PlanOptions,
    prepare_worker: Callable[[], None] | None = None,
    on_step: Callable[[str], None] = lambda step: None,
) -> dict:
    """Returns what a run would do and take, as JSON values; leaves nothing behind.

    Args:
      options: Of the command.
      prepare_worker: As for `pipeline.workers.Workers`.
      on_step: Called with what is done next, for people.

    Raises:
      InputError: As `pipeline.run.score_manifest` does, before any image is read; no image of
        the sample can be scored; or the deadline is over before the first image.
      OutputError: A store does not answer.
      MeasureError: The sample cannot be measured.
    """
    begin = time.monotonic()
    with ExitStack() as held:
        setup = set_up(options.score, held, prepare_worker, open_place=read_output)
        folder = Path(held.enter_context(tempfile.TemporaryDirectory(prefix="prescreen-plan-")))
        prepared = prepared_runs(setup.output)
        found = {"finishes_first": [record["run_id"] for record in prepared]}
        if record := published_already(setup, prepared):
            return {**found, "published_already": record["run_id"]}
        shadow, runs, resumed = _shadow(setup, prepared, folder / "shadow")
        on_step("looking through the manifest")
        manifest, plan = _plan(setup, shadow, runs)
        prepare_s = time.monotonic() - begin
        counts = count_work(setup, shadow, (manifest, plan), runs)
        found |= {"published_already": None, **resumed, "images": counts.to_json()}
        if not counts.to_score:
            return {**found, "sample": None}
        small, size = sample_size(options.score)
        sample = choose_sample(plan.work, size, folder / "choice")
        (folder / "runs").mkdir()
        measured = measure_sample(setup, sample, small, folder / "runs", on_step)
        skipped_bytes = _skipped_bytes(plan, shadow, folder / "skipped.parquet")
    return found | {
        "sample": {
            "images": sample.distinct,
            "rejected_by_reason": measured.rejected_by_reason,
            "runner": measured.large.record["runner"],
            "batch_size": measured.large.record["options"]["batch_size"],
            "precision": measured.large.record["precision"],
        },
        "runner": setup.runner.name,
        "leaves_out": ["the DICOM objects of --dicom-out"] if options.score.dicom_out else [],
        **reckon(options, counts, sample.distinct, measured, prepare_s, skipped_bytes),
    }


def _shadow(
    setup: Setup, prepared: list[dict], folder: Path
) -> tuple[RunPaths, list[dict], dict[str, str | None]]:
    """Returns the run as planning may use it, all published ones, and which one is gone on with."""
    paths, state = find_run(setup.output, setup.request)
    if paths.prepared.exists():  # it is finished first, so that nothing is left to go on with
        request = dataclasses.replace(setup.request, resume=False)
        paths, state = find_run(setup.output, request)
    holder = living_holder(paths) if state else None
    runs = current_runs([*committed_runs(setup.output.folder), *prepared])
    resumed = {
        "resumes": paths.run_id if state else None,
        "held_by": str(holder) if holder else None,
    }
    return shadow_run(paths, runs, folder), runs, resumed


def _plan(setup: Setup, shadow: RunPaths, runs: list[dict]) -> tuple[CheckedManifest, WorkPlan]:
    """Returns the manifest and what is left of it, as a run would find them."""
    manifest = check_own_manifest(setup, shadow.manifest)
    if setup.parent:
        manifest = keep_rejected(shadow, manifest, setup.parent, setup.options.retry_reasons)
    holders = holders_among(runs, setup) if setup.options.only_new else None
    return manifest, plan_work(shadow, manifest, holders, choose_runner(()))


def count_work(
    setup: Setup, shadow: RunPaths, planned: tuple[CheckedManifest, WorkPlan], runs: Iterable[dict]
) -> WorkCounts:
    """Returns the images of a manifest by what a run would do with them.

    Args:
      setup: Of the run.
      shadow: Where the tables of published runs are linked; files that are gone tell nothing.
      planned: The manifest, and what is left of it.
      runs: Records of published runs.
    """
    manifest, plan = planned
    holding = {record["run_id"] for record in holders_among(runs, setup)}
    with connect(shadow.staging / "counts") as connection:
        connection.execute("CREATE TABLE seen (image_id VARCHAR, is_held BOOLEAN)")
        for record in runs:
            paths = [file["path"] for file in record["files"] if file["path"].startswith(TABLES)]
            files = [str(shadow.output / path) for path in paths]
            if files := [file for file in files if Path(file).is_file()]:
                connection.execute(
                    "INSERT INTO seen SELECT image_id, ? FROM"
                    " read_parquet(?, hive_partitioning=false)",
                    [record["run_id"] in holding, files],
                )
        [(new, other, same)] = connection.execute(
            "SELECT count(*) FILTER (is_held IS NULL), count(*) FILTER (NOT is_held),"
            " count(*) FILTER (is_held) FROM read_parquet(?, hive_partitioning=false) w LEFT JOIN"
            " (SELECT image_id, bool_or(is_held) AS is_held FROM seen GROUP BY image_id) s"
            " USING (image_id)",
            [plan.work.path],
        ).fetchall()
    is_compared = plan.skipped is not None
    return WorkCounts(
        manifest=manifest.rows,
        new=new,
        changed=same if is_compared else 0,
        other_settings=other,
        again=0 if is_compared else same,
        skipped=plan.skipped or 0,
        kept=plan.kept,
    )


def _skipped_bytes(plan: WorkPlan, shadow: RunPaths, path: Path) -> int:
    """Returns what the table of skipped images takes, by writing it."""
    if not plan.skipped:
        return 0
    write_skipped(plan.held, shadow.run_id, SKIPPED_SCHEMA, path)
    return path.stat().st_size
