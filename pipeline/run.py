"""One run of `score`, from options to a published record."""

import dataclasses
import datetime
import functools
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

from model.bundle import BundleInfo, file_sha256, load_bundle_info, thresholds_id
from model.devices import gpu_ids
from model.object_store import SCHEME
from model.overlays import overlay_note
from model.scorer import default_batch_size
from model.serving import ScorerSettings, choose_thresholds, scorer_settings
from model.thresholds import Thresholds
from pipeline.archive import score_archive, share_bundle
from pipeline.commit import CommitSettings, commit_run
from pipeline.comparison import earlier_run
from pipeline.drawing import DrawingSettings
from pipeline.events import Report
from pipeline.job import ScoringJob
from pipeline.layout import TABLES, Output, RunPaths
from pipeline.manifest import CheckedManifest, carried_columns, check_manifest
from pipeline.mirror import fetch
from pipeline.planning import WorkPlan, divide_work, keep_rejected, plan_work
from pipeline.publishing import finish_commits
from pipeline.reading_room import check_new, check_room, open_room
from pipeline.record import RunFacts
from pipeline.run_errors import EXPECTED, RunFailedError, RunStoppedError
from pipeline.run_state import committed_runs, current_runs, read_record, read_state
from pipeline.runner import Handover, Runner, choose_runner
from pipeline.scoring import load_scorer
from pipeline.settings import RowSettings, row_settings
from pipeline.staging import discard_broken_parts
from pipeline.starting import ActiveRun, StartRequest, begin_run, open_output, record_path
from pipeline.stopping import STOP
from pipeline.urgency import load_urgency
from pipeline.workers import Workers, cause
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


_PATHS = ("manifest", "output", "bundle", "thresholds", "urgency", "dicom_out")
"""Options that can tell what nobody is to know."""


@dataclasses.dataclass(frozen=True)
class ScoreOptions:
    """The options of `score`, one attribute each; see its help for their meaning.

    `batch_size` is None for what suits the device, `run_id` for the start in UTC,
    `thresholds` for the bundle's, `review_budget` for all that are flagged,
    `urgency` for the table that comes with the software, `dicom_out` for no DICOM objects.
    `decode_threads` are those of each worker.
    """

    manifest: str
    output: str
    bundle: str
    run_id: str | None = None
    resume: bool = False
    only_new: bool = False
    retry_rejects: str | None = None
    retry_reasons: tuple[str, ...] = ()
    thresholds: str | None = None
    tta: str = "none"
    gradcam_top: int = 3
    gradcam_limit: int = 1000
    batch_size: int | None = None
    precision: str = "auto"
    decode_threads: int = 2
    workers: int = 1
    reject_limit: float = 0.01
    review_budget: float | int | None = None
    urgency: str | None = None
    urgent_first: bool = False
    carry: tuple[str, ...] = ()
    gate: str = Gate.FLAG.value
    redact_uris: bool = False
    no_report: bool = False
    dicom_out: str | None = None
    preset: str | None = None
    beam_args: tuple[str, ...] = ()

    def to_json(self) -> dict:
        """Returns the options for the run's record, without paths where those are redacted."""
        options = self.to_state()
        if self.redact_uris:
            options |= dict.fromkeys(_PATHS)
            options["retry_rejects"] = self.retry_rejects and Path(self.retry_rejects).name
        return options

    def to_state(self) -> dict:
        """Returns the options for a later start of the same run."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in dataclasses.asdict(self).items()
        }

    @classmethod
    def from_state(cls, options: dict) -> "ScoreOptions":
        """Returns what `to_state` was called on."""
        return cls(
            **{
                name: tuple(value) if isinstance(value, list) else value
                for name, value in options.items()
            }
        )


@dataclasses.dataclass(frozen=True)
class Setup:
    """What a run is made of, checked before any image is read.

    Attributes:
      output: Where the runs are.
      workers: Processes that score.
      urgency: Tier of each of the 14 findings.
      scored_by: The runner that has scored all there is to score; None where that is left
        to do.
      parent: Record of the run whose rejects are retried.
      started: In UTC, and by the clock that times the stages.
    """

    options: ScoreOptions
    output: Output
    runner: Runner
    workers: Workers
    bundle: BundleInfo
    thresholds: Thresholds
    scorer: ScorerSettings
    settings: RowSettings
    urgency: dict[str, int]
    scored_by: str | None
    parent: dict | None
    started: datetime.datetime
    started_s: float

    @property
    def request(self) -> StartRequest:
        return StartRequest(
            run_id=self.options.run_id,
            resume=self.options.resume,
            settings=self.settings,
            options=self.options.to_state(),
            parent_run=self.parent["run_id"] if self.parent else None,
            started=self.started,
        )


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


def set_up(
    options: ScoreOptions,
    held: ExitStack,
    prepare_worker: Callable[[], None] | None = None,
    scored_by: str | None = None,
    open_place: Callable[[str], AbstractContextManager[Output]] = open_output,
) -> Setup:
    """Checks what can be checked before any image is read.

    Args:
      options: Of the command.
      held: Ends what is opened.
      prepare_worker: As for `pipeline.workers.Workers`.
      scored_by: As that of a `Setup`.
      open_place: Gives the place of all runs.

    Raises:
      InputError: An option, the bundle or OUTPUT breaks a rule.
      OutputError: OUTPUT cannot be written.
    """
    started, started_s = datetime.datetime.now(datetime.UTC), time.monotonic()
    runner = choose_runner(options.beam_args, options.preset)
    _check_workers(options.workers, runner)
    _check_reach(options, runner)
    _check_handover(options, runner)
    if options.dicom_out:
        check_room(options.dicom_out, options.output)
    bundle = load_bundle_info(options.bundle)
    thresholds = choose_thresholds(bundle, options.tta, options.thresholds)
    scorer = scorer_settings(options.bundle, bundle, tta=options.tta, precision=options.precision)
    settings = row_settings(
        scorer,
        thresholds_id(thresholds),
        redact_uris=options.redact_uris,
        carried=carried_columns(options.manifest, options.carry),
        gradcam_top=options.gradcam_top,
        gate=Gate(options.gate),
    )
    output = held.enter_context(open_place(options.output))
    return Setup(
        options=options,
        output=output,
        runner=runner,
        workers=Workers(options.workers, prepare_worker, gpu_ids()),
        bundle=bundle,
        thresholds=thresholds,
        scorer=scorer,
        settings=settings,
        urgency=load_urgency(options.urgency),
        scored_by=scored_by,
        parent=_retried_run(options, output),
        started=started,
        started_s=started_s,
    )


def _check_workers(workers: int, runner: Runner) -> None:
    if workers > 1 and not runner.is_local:
        raise InputError(
            f"--workers must be 1 with --runner={runner.name}, where Beam spreads the work."
            f" Received: --workers {workers}. Leave one of them out."
        )


def _check_reach(options: ScoreOptions, runner: Runner) -> None:
    if runner.is_dataflow and not options.output.startswith(SCHEME):
        raise InputError(
            f"--output must be on a store ({SCHEME}...) with --runner={runner.name}, whose workers"
            f" reach nothing else. Received: --output {options.output}."
        )


def _check_handover(options: ScoreOptions, runner: Runner) -> None:
    if options.only_new and runner.handover in (Handover.DRY_RUN, Handover.TEMPLATE):
        raise InputError(
            f"--only-new must not be given with {runner.handover.value}, since the runner also"
            " compares the files with published runs, and at once. Leave one of them out."
        )


def _retried_run(options: ScoreOptions, output: Output) -> dict | None:
    """Returns the record of the run whose rejects are retried."""
    if options.retry_rejects is None:
        return None
    if options.only_new:
        raise InputError(
            "--retry-rejects must not be given with --only-new, which skips rejects that have not"
            " changed. Leave one out."
        )
    path = record_path(output, options.retry_rejects)
    if path is None:
        raise InputError(
            "--retry-rejects must be the record of a run in --output, OUTPUT/runs/ID.json."
            f" Received: --retry-rejects {options.retry_rejects}."
        )
    return read_record(path)


def published_already(setup: Setup, finished: Iterable[dict]) -> dict | None:
    """Returns the record that a resume would have to write, where it is written already.

    That is so if a crash came after the last row was scored, or if the same command
    is given twice.

    Args:
      setup: Of this start.
      finished: Records of the runs that this start has just finished, or would.
    """
    run_id = setup.options.run_id
    if not setup.options.resume:
        return None
    if run_id is not None:
        path = setup.output.run(run_id).record
        finished = [read_record(path)] if path.exists() else finished
        finished = [run for run in finished if run["run_id"] == run_id]
    wanted = (setup.settings.digest, setup.request.parent_run, None)
    same = [
        run
        for run in finished
        if (run.get("settings_digest"), run["parent_run"], run.get("supersedes")) == wanted
    ]
    if not same:
        return None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "manifest.parquet"
        check_own_manifest(setup, path)
        digest = file_sha256(path)
    return next((run for run in same if run["manifest_sha256"] == digest), None)


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


def check_own_manifest(setup: Setup, into: Path) -> CheckedManifest:
    """Writes the checked form of a run's manifest, a local Parquet file."""
    options = setup.options
    return check_manifest(
        options.manifest, into=str(into), carry=options.carry, redact_ids=options.redact_uris
    )


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


def holders_among(runs: Iterable[dict], setup: Setup) -> list[dict]:
    """Returns those of current runs whose rows `--only-new` need not score again."""
    digest = setup.settings.scoring_digest
    return [run for run in runs if run.get("scoring_digest") == digest]


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
