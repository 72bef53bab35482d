"""One run of `score`, from options to a published record."""

import dataclasses
import functools
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from model.bundle import file_sha256
from model.overlays import overlay_note
from model.scorer import default_batch_size
from pipeline.archive import score_archive, share_bundle
from pipeline.commit import CommitSettings, commit_run
from pipeline.comparison import earlier_run
from pipeline.drawing import DrawingSettings
from pipeline.events import Report
from pipeline.job import ScoringJob
from pipeline.layout import TABLES, RunPaths
from pipeline.manifest import CheckedManifest
from pipeline.mirror import fetch
from pipeline.planning import WorkPlan, divide_work, keep_rejected, plan_work
from pipeline.publishing import finish_commits
from pipeline.reading_room import check_new, open_room
from pipeline.record import RunFacts
from pipeline.run_errors import EXPECTED, RunFailedError, RunStoppedError
from pipeline.run_state import committed_runs, current_runs, read_state
from pipeline.runner import Handover, choose_runner
from pipeline.score_options import ScoreOptions
from pipeline.scoring import load_scorer
from pipeline.setting_up import Setup, check_own_manifest, holders_among, published_already, set_up
from pipeline.staging import discard_broken_parts
from pipeline.starting import ActiveRun, begin_run, open_output
from pipeline.stopping import STOP
from pipeline.workers import cause
from schemas.errors import InputError
from schemas.quality import Gate


@dataclasses.dataclass(frozen=True)
class HandedOver:
    """A run that is left before its rows are scored, for a commit later.

    Attributes:
      run_id: Of the run.
      by: The option that asked for it.
    """

    run_id: str
    by: Handover


def score_manifest(
    options: ScoreOptions, report: Report, prepare_worker: Callable[[], None] | None = None
) -> dict | HandedOver:
    """Scores a manifest and publishes the run; returns its record.

    Where Beam's options say that the job is only built, or not waited for, it returns
    that instead, and nothing is published.

    Everything that the user can mend is checked before any image is read. What a
    crash left of an earlier commit in OUTPUT is finished first.

    Args:
      options: Of the command.
      report: Told of each change of state.
      prepare_worker: As for `pipeline.workers.Workers`.

    Raises:
      InputError: An option, the manifest, the bundle or OUTPUT breaks a rule.
      OutputError: OUTPUT cannot be written.
      ReadingRoomError: The DICOM objects could not be written. Staged work is kept. Or they
        could not be shown, and the run is published.
      RejectLimitError: Too many images were rejected. Staged work is kept.
      ReconciliationError: Rows were lost or doubled. Staged work is kept.
      ReportError: The report could not be made. Staged work is kept.
      RunStoppedError: A stop was requested. Staged work is kept.
      RunFailedError: Anything else. Staged work is kept.
    """
    with ExitStack() as held:
        return _run(set_up(options, held, prepare_worker), report)


def commit_scored(output: str, run_id: str, report: Report) -> dict:
    """Publishes a run that was handed over and is scored by now; returns its record.

    What the commit itself does, such as drawing, is done on this machine.

    Args:
      output: The place of all runs.
      run_id: Names the run.
      report: Told of each change of state.

    Raises:
      InputError: There is no such run, or not all of its images are scored.
      Exception: As `score_manifest` does.
    """
    with open_output(output) as opened:
        state = read_state(opened.run(run_id))
    if state is None:
        raise InputError(
            f"RUN-ID must be a run that is not published yet. Received: {run_id}, of which OUTPUT"
            " has nothing staged. `prescreen runs` lists what there is."
        )
    if state.supersedes:
        raise InputError(
            f"RUN-ID must be a run of `prescreen score`. Received: {run_id}, which re-thresholds"
            f" {state.supersedes}. Give `prescreen rethreshold` as before: it goes on."
        )
    given = ScoreOptions.from_state(state.options)
    options = dataclasses.replace(
        given,
        output=output,
        run_id=run_id,
        resume=True,
        workers=1,
        preset=None,
        beam_args=(),
    )
    scored_by = choose_runner(given.beam_args, given.preset).name
    with ExitStack() as held:
        return _run(set_up(options, held, scored_by=scored_by), report)


def _run(setup: Setup, report: Report) -> dict | HandedOver:
    finished = finish_commits(setup.output)
    for record in finished:
        report("run_finished_earlier", run_id=record["run_id"])
    room = None
    if setup.options.dicom_out:
        room = open_room(setup.options.dicom_out, setup.output, report)
    if record := published_already(setup, finished):
        report("published_already", run_id=record["run_id"])
        return record
    with begin_run(setup.output, setup.request) as run:
        run_id = run.paths.run_id
        report("run_resumed" if run.is_resumed else "run_started", run_id=run_id)
        try:
            record = _score(run, setup, room, report)
        except EXPECTED:
            raise
        except Exception as error:
            raise RunFailedError(
                f"Run {run_id} failed: {cause(error)}. Nothing was published; what was scored is"
                f" kept. Go on with --resume --run-id {run_id}."
            ) from error
    if isinstance(record, HandedOver):
        return record
    report("published", run_id=run_id, **record["counts"])
    return record


def _score(run: ActiveRun, setup: Setup, room: Path | None, report: Report) -> dict | HandedOver:
    """Works on a run until it is published, or handed over; returns its record, or that."""
    paths, runner, options = run.paths, setup.runner, setup.options
    if room:
        check_new(room, paths.run_id)
    manifest = check_own_manifest(setup, paths.manifest)
    if setup.parent:
        manifest = keep_rejected(paths, manifest, setup.parent, options.retry_reasons)
    report("manifest_checked", images=manifest.rows)
    plan = _plan(paths, manifest, setup, report)
    if setup.scored_by and plan.work.rows:
        raise InputError(
            "a run must be scored before it is committed. Received:"
            f" {paths.run_id}, where {plan.work.rows} of {manifest.rows} images are not, or have"
            " changed since. Wait for its job to end; if that has failed, go on with `prescreen"
            f" score` as before and --resume --run-id {paths.run_id}."
        )
    batch_size = options.batch_size or default_batch_size()
    if options.workers > 1:
        plan = divide_work(paths, plan, options.workers, batch_size)
    elif plan.work.rows:
        load_scorer(setup.scorer)
    job = ScoringJob(
        paths=paths,
        manifest=manifest,
        plan=plan,
        scorer=setup.scorer if runner.is_local else share_bundle(paths, setup.scorer),
        thresholds=setup.thresholds,
        thresholds_id=setup.settings.thresholds_id,
        calibration=setup.bundle.calibration,
        batch_size=batch_size,
        decode_threads=options.decode_threads,
        redact_uris=options.redact_uris,
        gate=Gate(options.gate),
    )
    clock = time.monotonic()
    report("scoring", images=plan.work.rows, runner=runner.name)
    retries = score_archive(job, runner, setup.workers)
    if runner.handover and plan.work.rows:
        report("handed_over", by=runner.handover.value)
        return HandedOver(paths.run_id, runner.handover)
    checkpoint = functools.partial(_checkpoint, run, report)
    checkpoint("scored")
    facts = RunFacts(
        state=run.state,
        settings=setup.settings,
        manifest_sha256=file_sha256(paths.manifest),
        runner=setup.scored_by or runner.name,
        options=options.to_json(),
        timings_s={"start": clock - setup.started_s, "score": time.monotonic() - clock},
        read_retries=retries,
    )
    return commit_run(job, _commit_settings(setup, room), runner, facts, checkpoint)


def _plan(paths: RunPaths, manifest: CheckedManifest, setup: Setup, report: Report) -> WorkPlan:
    for table in TABLES:
        fetch(paths, paths.parts(table))
        if broken := discard_broken_parts(paths, table):
            report("parts_discarded", table=table, parts=broken)
    holders = None
    if setup.options.only_new:
        current = current_runs(committed_runs(setup.output.folder))
        holders = holders_among(current, setup)
    tries_again = setup.scored_by is None
    plan = plan_work(paths, manifest, holders, setup.runner, tries_again=tries_again)
    report("planned", to_score=plan.work.rows, kept=plan.kept, skipped=plan.skipped)
    return plan


def _commit_settings(setup: Setup, room: Path | None) -> CommitSettings:
    options = setup.options
    return CommitSettings(
        bundle=setup.bundle,
        drawing=DrawingSettings(
            top=options.gradcam_top,
            limit=options.gradcam_limit,
            note=overlay_note(setup.bundle.title),
            gated_last=Gate(options.gate) != Gate.OFF,
        ),
        reject_limit=options.reject_limit,
        review_budget=options.review_budget,
        urgency=setup.urgency,
        urgent_first=options.urgent_first,
        report=not options.no_report,
        find_earlier=functools.partial(earlier_run, setup.output),
        reading_room=room,
    )


def _checkpoint(run: ActiveRun, report: Report, step: str) -> None:
    """Reports a step, and ends the run where it must not go on."""
    run.lock.check()
    if STOP.requested:
        raise RunStoppedError(
            f"Run {run.paths.run_id} was stopped. Nothing was published; what was scored is kept."
            f" Go on with --resume --run-id {run.paths.run_id}."
        )
    report(step, run_id=run.paths.run_id)
