"""A published run under other thresholds: a new run of the same scores, which supersedes it."""

import dataclasses
import datetime
import functools
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress

from model.bundle import BundleInfo, load_bundle_info, thresholds_id
from model.calibration import Calibration, calibration_from_json
from model.overlays import overlay_note
from model.thresholds import Thresholds, load_thresholds, threshold_vector
from pipeline.commit import CommitSettings, commit_run
from pipeline.comparison import earlier_run
from pipeline.drawing import SOURCE_UNKNOWN, DrawingSettings
from pipeline.earlier_overlays import EarlierOverlays
from pipeline.events import Report
from pipeline.job import ScoringJob
from pipeline.layout import Output, RunPaths
from pipeline.locking import succession_lock
from pipeline.mirror import run_in_output
from pipeline.publishing import finish_commits
from pipeline.record import RunFacts
from pipeline.restaging import AddedMaps, restage
from pipeline.run_errors import EXPECTED, RunFailedError, RunStoppedError
from pipeline.run_state import committed_runs, read_record, scoring_began, unfinished_runs
from pipeline.runner import choose_runner
from pipeline.settings import RowSettings, current_version
from pipeline.starting import ActiveRun, StartRequest, begin_run
from pipeline.stopping import STOP
from pipeline.workers import cause
from schemas.contract import InputContract
from schemas.errors import InputError
from schemas.quality import Gate

_GO_ON = "Give the same command again: it goes on with run {run_id}"


@dataclasses.dataclass(frozen=True)
class RethresholdOptions:
    """The options of `rethreshold`, one attribute each; see its help for their meaning.

    `bundle` is None for the one that the run's record names, `run_id` for the start in UTC,
    `review_budget` for what the run had.
    """

    run: str
    thresholds: str
    bundle: str | None = None
    run_id: str | None = None
    review_budget: float | int | None = None
    no_report: bool = False
    decode_threads: int = 2


@dataclasses.dataclass(frozen=True)
class RecordedModel:
    """What the record of a run says of the model; see `pipeline.record.ModelFacts`."""

    title: str
    statement: str
    input_contract: InputContract
    metrics: Mapping


@dataclasses.dataclass(frozen=True)
class _Setup:
    """What is made of what, checked before anything is read but records.

    Attributes:
      parent: Record of the run that is superseded.
      settings: Of the new run's rows.
      model: What it says of its model.
      started: In UTC, and by the clock that times the stages.
    """

    options: RethresholdOptions
    output: Output
    parent: dict
    thresholds: Thresholds
    settings: RowSettings
    model: RecordedModel
    started: datetime.datetime
    started_s: float


def rethreshold_run(
    options: RethresholdOptions, report: Report, prepare: Callable[[], None] = lambda: None
) -> dict:
    """Publishes a run of the scores of another one under other thresholds; returns its record.

    Nothing is scored anew. Maps of findings that are flagged only now are computed, from the
    images; one that cannot be is NaN, and counted. The same call goes on with what an earlier
    one left unfinished.

    Args:
      options: Of the command.
      report: Told of each change of state.
      prepare: Called before TensorFlow is needed, if it is.

    Raises:
      InputError: The run, the thresholds or the bundle break a rule.
      OutputError: OUTPUT cannot be read or written.
      ReconciliationError: Rows were lost or doubled.
      ReportError: The report could not be made.
      RunStoppedError: A stop was requested.
      RunFailedError: Anything else.
    """
    started, started_s = datetime.datetime.now(datetime.UTC), time.monotonic()
    with ExitStack() as held:
        output, paths = held.enter_context(run_in_output(options.run))
        parent = read_record(paths.record)
        setup = _set_up(options, output, parent, started, started_s)
        for record in finish_commits(output):
            report("run_finished_earlier", run_id=record["run_id"])
            if _is_wanted(record, setup):
                return record
        held.enter_context(_succession(paths))
        _check_current(output, parent)
        run = held.enter_context(begin_run(output, _request(setup)))
        run_id = run.paths.run_id
        report("run_resumed" if run.is_resumed else "run_started", run_id=run_id)
        try:
            record = _make(run, setup, report, prepare)
        except EXPECTED:
            raise
        except Exception as error:
            raise RunFailedError(
                f"Run {run_id} failed: {cause(error)}. Nothing was published."
                f" {_GO_ON.format(run_id=run_id)}."
            ) from error
    report("published", run_id=run_id, **record["counts"])
    return record


def _set_up(
    options: RethresholdOptions,
    output: Output,
    parent: dict,
    started: datetime.datetime,
    started_s: float,
) -> _Setup:
    try:
        tta, then = parent["tta"], parent["settings"]
        settings = RowSettings(**{**then, "carried": tuple(then["carried"])})
        contract = parent["input_contract"]
        model = RecordedModel(
            parent["model_title"],
            parent["model_statement"],
            InputContract(**{**contract, "value_range": tuple(contract["value_range"])}),
            parent["model_metrics"],
        )
    except (KeyError, TypeError) as error:
        raise InputError(
            "RUN must be the record of a run that this version can re-threshold. Received:"
            f" {parent['run_id']}, whose settings it does not know ({error})."
        ) from error
    thresholds = load_thresholds(options.thresholds, tta)
    chosen = thresholds_id(thresholds)
    if chosen == parent["thresholds_id"]:
        raise InputError(
            "--thresholds must be other ones than those of RUN. Received: the same,"
            f" thresholds_id {chosen}. There is nothing to change."
        )
    settings = dataclasses.replace(
        settings, thresholds_id=chosen, software_version=current_version()
    )
    if options.bundle:
        _check_bundle(options.bundle, parent)
    return _Setup(options, output, parent, thresholds, settings, model, started, started_s)


def _check_bundle(bundle: str, parent: dict) -> BundleInfo:
    info = load_bundle_info(bundle)
    if info.model_id != parent["model_id"]:
        raise InputError(
            f"--model must be the bundle that scored {parent['run_id']}, of model_id"
            f" {parent['model_id']}. Received: {bundle}, of model_id {info.model_id}."
        )
    return info


def _request(setup: _Setup) -> StartRequest:
    parent = setup.parent["run_id"]
    return StartRequest(
        run_id=setup.options.run_id,
        resume=True,
        settings=setup.settings,
        options={},
        parent_run=parent,
        started=setup.started,
        supersedes=parent,
    )


@contextmanager
def _succession(parent: RunPaths) -> Iterator[None]:
    """Keeps any other process from making another run of the same scores meanwhile."""
    with ExitStack() as held:
        try:
            held.enter_context(succession_lock(parent))
        except InputError as error:
            raise InputError(
                "RUN must be re-thresholded by one process at a time. Received:"
                f" {parent.run_id}, which another one is at. Wait for it to end."
            ) from error
        try:
            yield
        finally:
            held.close()
            for folder in (parent.succession.parent, parent.succession.parents[1]):
                with suppress(OSError):
                    folder.rmdir()


def _is_wanted(record: dict, setup: _Setup) -> bool:
    """Returns whether a run is what this start would make: a crash came as it was published."""
    asked = (setup.parent["run_id"], setup.settings.digest)
    return (record.get("supersedes"), record.get("settings_digest")) == asked


def _check_current(output: Output, parent: dict) -> None:
    """Checks that no other run supersedes the parent, or is about to."""
    run_id = parent["run_id"]
    for record in committed_runs(output.folder):
        if record.get("supersedes") == run_id:
            raise InputError(
                f"RUN must not be superseded yet. Received: {run_id}, which {record['run_id']}"
                f" supersedes. Re-threshold that one, or remove it first: see OPERATIONS.md."
            )
    for paths, state in unfinished_runs(output):
        if state.supersedes == run_id and paths.prepared.exists():
            raise InputError(
                f"RUN must not be superseded yet. Received: {run_id}, which {paths.run_id} is just"
                " about to supersede. See `prescreen runs`, and run again."
            )


def _make(run: ActiveRun, setup: _Setup, report: Report, prepare: Callable[[], None]) -> dict:
    """Works on a run until it is published; returns its record."""
    paths, parent, settings = run.paths, setup.parent, setup.settings
    clock, runner = time.monotonic(), choose_runner(())
    vector = threshold_vector(setup.thresholds)
    staged = restage(paths, parent, vector, settings.thresholds_id, settings.carried)
    timings_s = {"start": clock - setup.started_s, "flag": time.monotonic() - clock}
    report("manifest_checked", images=staged.manifest.rows)
    unknown = staged.counts.pop("unknown", 0)
    # Where no row says where its image is, there is nothing to compute from.
    added = AddedMaps(missing=Counter({SOURCE_UNKNOWN: unknown} if unknown else {}))
    if staged.missing and not settings.redact_uris:
        clock = time.monotonic()
        bundle, info = _bundle_of(setup)
        prepare()
        # Both load TensorFlow, which is not needed where all maps are known.
        from model.serving import scorer_settings
        from pipeline.maps import add_maps

        # Maps are those of the original view, whatever the mode.
        scorer = scorer_settings(bundle, info, tta="none", precision=settings.precision)
        added = add_maps(
            paths, staged.missing, scorer, setup.options.decode_threads, runner, report
        )
        timings_s["score"] = time.monotonic() - clock
    checkpoint = functools.partial(_checkpoint, run, setup, report)
    checkpoint("scored")
    missing = added.missing.total()
    known = staged.counts.pop("maps", 0) - added.computed - missing
    job = ScoringJob(
        paths=paths,
        manifest=staged.manifest,
        plan=staged.plan,
        scorer=settings,
        thresholds=setup.thresholds,
        thresholds_id=settings.thresholds_id,
        calibration=_calibration(parent),
        batch_size=0,
        decode_threads=setup.options.decode_threads,
        redact_uris=settings.redact_uris,
    )
    facts = RunFacts(
        state=run.state,
        settings=settings,
        manifest_sha256=parent["manifest_sha256"],
        runner=runner.name,
        options=_recorded_options(setup, paths.run_id),
        timings_s=timings_s,
        read_retries=added.read_retries,
        scoring_started_at=scoring_began(parent),
        counts={
            **staged.counts,
            "maps_kept": known,
            "maps_computed": added.computed,
            "maps_missing": missing,
            "maps_missing_by_reason": dict(added.missing.most_common()),
        },
    )
    return commit_run(job, _commit_settings(setup, paths), runner, facts, checkpoint)


def _bundle_of(setup: _Setup) -> tuple[str, BundleInfo]:
    """Returns the folder of the bundle that made the scores, and what it says of itself."""
    bundle = setup.options.bundle or setup.parent["options"]["bundle"]
    if bundle is None:
        raise InputError(
            "--model must name the bundle that scored RUN where findings are newly flagged, whose"
            f" maps it computes. Received: none, and {setup.parent['run_id']} does not say where"
            " it is."
        )
    return bundle, _check_bundle(bundle, setup.parent)


def _calibration(parent: dict) -> Calibration | None:
    values = parent["calibration"]
    return None if values is None else calibration_from_json(values, parent["run_id"])


def _recorded_options(setup: _Setup, run_id: str) -> dict:
    """Returns the options of the new run: the parent's, but for those that were given."""
    given, then = setup.options, setup.parent["options"]
    return {
        **then,
        "run_id": run_id,
        "thresholds": None if setup.settings.redact_uris else given.thresholds,
        "review_budget": _review_budget(setup),
        "no_report": given.no_report,
        "dicom_out": None,
        "decode_threads": given.decode_threads,
    }


def _review_budget(setup: _Setup) -> float | int | None:
    given = setup.options.review_budget
    return setup.parent["options"]["review_budget"] if given is None else given


def _commit_settings(setup: _Setup, paths: RunPaths) -> CommitSettings:
    parent = setup.parent
    return CommitSettings(
        bundle=setup.model,
        drawing=DrawingSettings(
            top=parent["options"]["gradcam_top"],
            limit=parent["options"]["gradcam_limit"],
            note=overlay_note(setup.model.title),
            gated_last=Gate(parent["options"]["gate"]) != Gate.OFF,
            earlier=EarlierOverlays(paths, parent["thresholds"]),
        ),
        # That limit has been kept already, and of these very rows.
        reject_limit=1.0,
        review_budget=_review_budget(setup),
        urgency=parent["worklist"]["urgency"],
        urgent_first=parent["worklist"]["urgent_first"],
        report=not setup.options.no_report,
        find_earlier=functools.partial(earlier_run, setup.output),
        go_on=_GO_ON,
    )


def _checkpoint(run: ActiveRun, setup: _Setup, report: Report, step: str) -> None:
    """Reports a step, and ends the run where it must not go on."""
    run.lock.check()
    if STOP.requested:
        raise RunStoppedError(
            f"Run {run.paths.run_id} was stopped. Nothing was published."
            f" {_GO_ON.format(run_id=run.paths.run_id)}."
        )
    if step == "built":
        _check_current(setup.output, setup.parent)
    report(step, run_id=run.paths.run_id)
