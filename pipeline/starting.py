"""Which run a start works on: a new one, or an unfinished one that it goes on with."""

import dataclasses
import datetime
import re
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from pipeline.layout import RunPaths
from pipeline.lock import RunLock
from pipeline.run_state import RunState, read_state, unfinished_runs
from pipeline.settings import RowSettings, describe_difference
from pipeline.uris import has_scheme
from schemas.errors import InputError

_GLOB_CHARACTERS = frozenset("*?[")
_RUN_ID = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")


class OutputError(Exception):
    """OUTPUT cannot be written."""


@dataclasses.dataclass(frozen=True)
class StartRequest:
    """What a start asks for.

    Attributes:
      run_id: Names the run; None for the newest unfinished one where `resume`
        allows, else for the start in UTC.
      resume: Whether to go on with an unfinished run.
      settings: Those of now.
      parent_run: The run whose rejects are retried; None for any other start.
      started: Now, in UTC.
    """

    run_id: str | None
    resume: bool
    settings: RowSettings
    parent_run: str | None
    started: datetime.datetime


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
    lock: RunLock

    @property
    def is_resumed(self) -> bool:
        """Whether an earlier attempt began it."""
        return self.state.attempts > 1


def open_output(output: str) -> Path:
    """Returns the folder of all runs, made where it is missing.

    Raises:
      InputError: It cannot be a folder of runs.
      OutputError: It cannot be written.
    """
    if has_scheme(output):
        raise InputError(
            "--output must be a local folder in this version."
            f" Received: --output {output}. Copy the finished run to the store."
        )
    path = Path(output).absolute()
    if found := _GLOB_CHARACTERS & set(str(path)):
        raise InputError(
            "--output must not hold characters of a pattern, which readers would expand."
            f" Received: {' '.join(sorted(found))} in its path. Name another folder."
        )
    if path.exists() and not path.is_dir():
        raise InputError(f"--output must be a folder. Received: --output {output}, a file.")
    with _writing_output():
        (path / "_staging").mkdir(parents=True, exist_ok=True)
    return path


@contextmanager
def begin_run(output: Path, request: StartRequest) -> Iterator[ActiveRun]:
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
            lock = held.enter_context(RunLock(paths.lock))
            run = ActiveRun(paths, _take_up(paths, request), lock)
        try:
            yield run
        except InputError:
            if not run.is_resumed:
                shutil.rmtree(paths.staging, ignore_errors=True)
            raise


def _choose(output: Path, request: StartRequest) -> RunPaths:
    if request.run_id is not None and not _RUN_ID.fullmatch(request.run_id):
        raise InputError(
            "--run-id must be a letter and up to 63 letters, digits, '_' or '-'."
            f" Received: --run-id {request.run_id!r}."
        )
    if request.run_id is None and request.resume:
        for paths, state in unfinished_runs(output):
            if (state.digest, state.parent_run) == (request.settings.digest, request.parent_run):
                return paths
    return RunPaths(output, request.run_id or f"r{request.started:%Y%m%dT%H%M%SZ}")


def _check_not_published(paths: RunPaths) -> None:
    if paths.record.exists() or paths.published("scores").exists():
        raise InputError(
            f"--run-id must be new in --output. Received: {paths.run_id}, which is there already."
            " Choose another, or leave it out."
        )


def _take_up(paths: RunPaths, request: StartRequest) -> RunState:
    """Writes and returns the state of a run whose lock was just taken."""
    _check_not_published(paths)  # by whoever held the lock until now
    settings = request.settings.to_json()
    state = read_state(paths)
    if state is None:
        _clear(paths)
        state = RunState(settings, request.settings.digest, request.started, request.parent_run)
    elif not request.resume:
        raise InputError(
            f"--run-id must be new in --output. Received: {paths.run_id}, which was begun and not"
            " finished. Go on with it by --resume, or choose another."
        )
    elif state.digest != request.settings.digest:
        raise InputError(
            "--resume must go on under the settings that a run was begun under. Received:"
            f" {paths.run_id}, with {describe_difference(state.settings, settings)}."
            " Give those again, or begin another run."
        )
    elif state.parent_run != request.parent_run:
        raise InputError(
            "--resume must go on with the same --retry-rejects. Received:"
            f" {paths.run_id}, begun to retry {state.parent_run or 'none'}."
        )
    else:
        state = dataclasses.replace(state, attempts=state.attempts + 1)
    state.write(paths)
    return state


def _clear(paths: RunPaths) -> None:
    """Removes what nothing says the settings of; the lock stays."""
    for path in paths.staging.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path != paths.lock:
            path.unlink()


@contextmanager
def _writing_output() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"--output must be a folder that can be written. Received: {error.strerror}."
            " Nothing was published. Mend it and run again."
        ) from error
