"""One run of `score`, from options to a published record."""

import dataclasses
import datetime
import re
import shutil
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from model.bundle import load_bundle_info, thresholds_id
from model.overlays import overlay_note
from model.scorer import default_batch_size
from model.serving import choose_thresholds, scorer_settings
from pipeline.archive import ScoringJob, score_archive
from pipeline.commit import CommitSettings, commit_run
from pipeline.drawing import DrawingSettings
from pipeline.layout import RunPaths
from pipeline.manifest import check_manifest
from pipeline.record import RunFacts
from pipeline.runner import choose_runner
from pipeline.scoring import load_scorer
from pipeline.uris import has_scheme
from schemas.errors import InputError

_GLOB_CHARACTERS = frozenset("*?[")
_RUN_ID = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")


@dataclasses.dataclass(frozen=True)
class ScoreOptions:
    """The options of `score`, one attribute each; see its help for their meaning.

    `batch_size` is None for what suits the device, `run_id` for the start in UTC,
    `thresholds` for the bundle's, `review_budget` for all that are flagged.
    """

    manifest: str
    output: str
    bundle: str
    run_id: str | None = None
    thresholds: str | None = None
    tta: str = "none"
    gradcam_top: int = 3
    gradcam_limit: int = 1000
    batch_size: int | None = None
    precision: str = "auto"
    decode_threads: int = 2
    reject_limit: float = 0.01
    review_budget: float | int | None = None
    carry: tuple[str, ...] = ()
    beam_args: tuple[str, ...] = ()


ShowProgress = Callable[[int, str], AbstractContextManager]
"""Called with the number of images and the runner's name; entered while they are scored."""


def score_manifest(options: ScoreOptions, show_progress: ShowProgress) -> dict:
    """Scores a manifest and publishes the run; returns its record.

    Everything that the user can mend is checked before any image is read.

    Raises:
      InputError: An option, the manifest, the bundle or OUTPUT breaks a rule.
      RejectLimitError: Too many images were rejected. Staged work is kept.
      ReconciliationError: Rows were lost or doubled. Staged work is kept.
    """
    started, clock = datetime.datetime.now(datetime.UTC), time.monotonic()
    runner = choose_runner(options.beam_args)
    bundle = load_bundle_info(options.bundle)
    thresholds = choose_thresholds(bundle, options.tta, options.thresholds)
    scorer = scorer_settings(options.bundle, bundle, tta=options.tta, precision=options.precision)
    paths = _new_run(options, started)
    try:
        manifest = check_manifest(options.manifest, into=str(paths.manifest), carry=options.carry)
        load_scorer(scorer)
    except InputError:
        shutil.rmtree(paths.staging, ignore_errors=True)
        raise
    job = ScoringJob(
        paths=paths,
        manifest=manifest,
        scorer=scorer,
        thresholds=thresholds,
        thresholds_id=thresholds_id(thresholds),
        calibration=bundle.calibration,
        batch_size=options.batch_size or default_batch_size(),
        decode_threads=options.decode_threads,
    )
    timings_s = {"start": time.monotonic() - clock}
    clock = time.monotonic()
    with show_progress(manifest.rows, runner.name):
        score_archive(job, runner)
    timings_s["score"] = time.monotonic() - clock
    settings = CommitSettings(
        bundle=bundle,
        drawing=DrawingSettings(
            top=options.gradcam_top,
            limit=options.gradcam_limit,
            note=overlay_note(bundle.title),
        ),
        reject_limit=options.reject_limit,
        review_budget=options.review_budget,
    )
    facts = RunFacts(started, runner.name, dataclasses.asdict(options), timings_s)
    return commit_run(job, settings, runner, facts)


def _new_run(options: ScoreOptions, started: datetime.datetime) -> RunPaths:
    """Returns the paths of a run that does not exist yet, and makes its staging folder."""
    if has_scheme(options.output):
        raise InputError(
            "--output must be a local folder in this version."
            f" Received: --output {options.output}. Copy the finished run to the store."
        )
    run_id = options.run_id or f"r{started:%Y%m%dT%H%M%SZ}"
    if not _RUN_ID.fullmatch(run_id):
        raise InputError(
            "--run-id must be a letter and up to 63 letters, digits, '_' or '-'."
            f" Received: --run-id {run_id!r}."
        )
    paths = RunPaths(Path(options.output).absolute(), run_id)
    if found := _GLOB_CHARACTERS & set(str(paths.output)):
        raise InputError(
            "--output must not hold characters of a pattern, which readers would expand."
            f" Received: {' '.join(sorted(found))} in its path. Name another folder."
        )
    if paths.record.exists() or paths.published("scores").exists():
        raise InputError(
            f"--run-id must be new in --output. Received: {run_id}, which is there already."
            " Choose another, or leave it out."
        )
    try:
        paths.staging.mkdir(parents=True)
    except FileExistsError as error:
        raise InputError(
            f"--run-id must be new in --output. Received: {run_id}, which was begun and not"
            f" finished. Choose another, or remove _staging/{run_id} there."
        ) from error
    except OSError as error:
        raise InputError(
            f"--output must be a folder that can be written. Received: {options.output}:"
            f" {error.strerror}."
        ) from error
    return paths
