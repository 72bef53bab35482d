"""What a run is made of, checked before any image is read."""

import dataclasses
import datetime
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

from model.bundle import BundleInfo, file_sha256, load_bundle_info, thresholds_id
from model.devices import gpu_ids
from model.object_store import SCHEME
from model.serving import ScorerSettings, choose_thresholds, scorer_settings
from model.thresholds import Thresholds
from pipeline.layout import Output
from pipeline.manifest import CheckedManifest, carried_columns, check_manifest
from pipeline.reading_room import check_room
from pipeline.run_state import read_record
from pipeline.runner import Handover, Runner, choose_runner
from pipeline.score_options import ScoreOptions
from pipeline.settings import RowSettings, row_settings
from pipeline.starting import StartRequest, open_output, record_path
from pipeline.urgency import load_urgency
from pipeline.workers import Workers
from schemas.errors import InputError
from schemas.quality import Gate


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


def check_own_manifest(setup: Setup, into: Path) -> CheckedManifest:
    """Writes the checked form of a run's manifest, a local Parquet file."""
    options = setup.options
    return check_manifest(
        options.manifest, into=str(into), carry=options.carry, redact_ids=options.redact_uris
    )


def holders_among(runs: Iterable[dict], setup: Setup) -> list[dict]:
    """Returns those of current runs whose rows `--only-new` need not score again."""
    digest = setup.settings.scoring_digest
    return [run for run in runs if run.get("scoring_digest") == digest]
