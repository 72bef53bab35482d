"""Which run a start works on: a new one, or an unfinished one that it goes on with."""

import dataclasses
import datetime
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from model.object_store import SCHEME
from pipeline.layout import Output, RunPaths
from pipeline.lock import RunLock
from pipeline.locking import run_lock
from pipeline.mirror import OutputError, discard, existing_output, fetch
from pipeline.run_state import RunState, read_state, unfinished_runs
from pipeline.settings import RowSettings, describe_difference
from pipeline.store_lock import StoreLock
from pipeline.uris import has_scheme
from schemas.errors import InputError

_GLOB_CHARACTERS = frozenset("*?[")
_RUN_ID = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")


@dataclasses.dataclass(frozen=True)
class StartRequest:
    """What a start asks for.

    Attributes:
      run_id: Names the run; None for the newest unfinished one where `resume`
        allows, else for the start in UTC.
      resume: Whether to go on with an unfinished run.
      settings: Those of now.
      options: All that was asked for.
      parent_run: The run whose rejects are retried, or whose scores are re-thresholded; None
        for any other start.
      started: Now, in UTC.
      supersedes: The run whose scores are re-thresholded; None for any other start.
    """

    run_id: str | None
    resume: bool
    settings: RowSettings
    options: dict
    parent_run: str | None
    started: datetime.datetime
    supersedes: str | None = None

    def is_of(self, state: RunState) -> bool:
        """Returns whether it asks for what an unfinished run is."""
        begun = (state.digest, state.parent_run, state.supersedes)
        return begun == (self.settings.digest, self.parent_run, self.supersedes)


@dataclasses.dataclass(frozen=True)
class ActiveRun:
    """A run that this process holds the lock of.

    Attributes:
      paths: Of the run.
      state: As it was just written.
      lock: Held.
    """

    paths: RunPaths
    state: RunState
    lock: RunLock | StoreLock

    @property
    def is_resumed(self) -> bool:
        """Whether an earlier attempt began it."""
        return self.state.attempts > 1


@contextmanager
def open_output(output: str) -> Iterator[Output]:
    """Gives the place of all runs; a local folder is made where it is missing.

    Raises:
      InputError: It cannot hold runs.
      OutputError: It cannot be written, or a store does not answer.
    """
    check_output(output)
    if not output.startswith(SCHEME):
        _make_folder(Path(output).absolute())
    with existing_output(output) as opened:
        yield opened


def check_output(output: str) -> None:
    """Checks that a place can hold runs, and makes nothing.

    Raises:
      InputError: It cannot.
    """
    if output.startswith(SCHEME):
        _check_no_pattern(output)
        return
    if has_scheme(output):
        raise InputError(
            f"--output must be a local folder, or a place on Google Cloud Storage ({SCHEME}...)."
            f" Received: --output {output}. Score into one of these, and copy the finished run."
        )
    path = Path(output).absolute()
    _check_no_pattern(str(path))
    if path.exists() and not path.is_dir():
        raise InputError(f"--output must be a folder. Received: --output {path}, a file.")


def _check_no_pattern(path: str) -> None:
    if found := _GLOB_CHARACTERS & set(path):
        raise InputError(
            "--output must not hold characters of a pattern, which readers would expand."
            f" Received: {' '.join(sorted(found))} in its path. Name another folder."
        )


def _make_folder(path: Path) -> None:
    with _writing_output():
        (path / "_staging").mkdir(parents=True, exist_ok=True)


def record_path(output: Output, run: str) -> Path | None:
    """Returns where here the record of a run in `output` is, None for a record elsewhere."""
    if output.store:
        folder, _, name = run.rpartition("/")
        return output.folder / "runs" / name if folder == f"{output.store.uri}/runs" else None
    path = Path(run).absolute()
    return path if path.parent == output.folder / "runs" else None


def find_run(output: Output, request: StartRequest) -> tuple[RunPaths, RunState | None]:
    """Returns the run that a start would work on, and what it says of itself if it was begun.

    Only reads: another process may hold the run.

    Raises:
      InputError: As `begin_run` does.
    """
    paths = _choose(output, request)
    _check_not_published(paths)
    state = read_state(paths)
    if state:
        _check_resumable(paths, state, request)
    return paths, state


@contextmanager
def begin_run(output: Output, request: StartRequest) -> Iterator[ActiveRun]:
    """Holds a run while it is worked on.

    A new run whose input turns out to be bad leaves nothing behind.

    Raises:
      InputError: The run is published, is another process's, is unfinished and was
        not asked to be resumed, or was begun under other settings.
      OutputError: OUTPUT cannot be written.
    """
    paths = _choose(output, request)
    _check_not_published(paths)
    with ExitStack() as held:
        with _writing_output():
            paths.staging.mkdir(parents=True, exist_ok=True)
            lock = held.enter_context(run_lock(paths))
            run = ActiveRun(paths, _take_up(paths, request), lock)
        try:
            yield run
        except InputError:
            if not run.is_resumed:
                with suppress(OSError):
                    discard(paths, paths.staging)
            raise


def _choose(output: Output, request: StartRequest) -> RunPaths:
    if request.run_id is not None and not _RUN_ID.fullmatch(request.run_id):
        raise InputError(
            "--run-id must be a letter and up to 63 letters, digits, '_' or '-'."
            f" Received: --run-id {request.run_id!r}."
        )
    if request.run_id is None and request.resume:
        for paths, state in unfinished_runs(output):
            if request.is_of(state):
                return paths
    return output.run(request.run_id or f"r{request.started:%Y%m%dT%H%M%SZ}")


def _check_not_published(paths: RunPaths) -> None:
    if paths.record.exists() or paths.published("scores").exists():
        raise InputError(
            f"--run-id must be new in --output. Received: {paths.run_id}, which is there already."
            " Choose another, or leave it out."
        )


def _take_up(paths: RunPaths, request: StartRequest) -> RunState:
    """Writes and returns the state of a run whose lock was just taken."""
    # By whoever held the lock until now.
    fetch(paths, paths.record)
    _check_not_published(paths)
    fetch(paths, paths.state)
    state = read_state(paths)
    if state is None:
        _clear(paths)
        state = RunState(
            request.settings.to_json(),
            request.settings.digest,
            request.started,
            request.options,
            request.parent_run,
            supersedes=request.supersedes,
        )
    else:
        _check_resumable(paths, state, request)
        state = dataclasses.replace(state, options=request.options, attempts=state.attempts + 1)
    state.write(paths)
    return state


def _check_resumable(paths: RunPaths, state: RunState, request: StartRequest) -> None:
    if not request.resume:
        raise InputError(
            f"--run-id must be new in --output. Received: {paths.run_id}, which was begun and not"
            " finished. Go on with it by --resume, or choose another."
        )
    if state.supersedes != request.supersedes:
        begun, now = (
            f"to re-threshold {run}" if run else "by `prescreen score`"
            for run in (state.supersedes, request.supersedes)
        )
        raise InputError(
            f"a run must be gone on with by the command that began it. Received: {paths.run_id},"
            f" begun {begun} and not {now}. Give that command again, or another --run-id."
        )
    if state.digest != request.settings.digest:
        difference = describe_difference(state.settings, request.settings.to_json())
        raise InputError(
            "--resume must go on under the settings that a run was begun under. Received:"
            f" {paths.run_id}, with {difference}."
            " Give those again, or begin another run."
        )
    if state.parent_run != request.parent_run:
        raise InputError(
            "--resume must go on with the same --retry-rejects. Received:"
            f" {paths.run_id}, begun to retry {state.parent_run or 'none'}."
        )


def _clear(paths: RunPaths) -> None:
    """Removes what nothing says the settings of; the lock stays."""
    discard(paths, paths.staging, keep=paths.lock)


@contextmanager
def _writing_output() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"--output must be a place that can be written. Received: {error.strerror}."
            " Nothing was published. Mend it and run again."
        ) from error
