"""Processes that share the work of a run, since one Python process cannot use many cores.

The parent hands out tasks one at a time, over a pipe to each worker. They share nothing
else, so a worker that dies takes nothing with it, and is missed as soon as the system
closes its pipe. In the same way a worker misses its parent, and ends itself at once: a
resume may take the run over, and nobody else may stage rows for it then.

This module loads nothing heavy, so that a worker can be prepared before it does.
"""

import contextlib
import dataclasses
import math
import multiprocessing
import os
import pickle
import queue
import re
import signal
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import connection, resource_tracker
from typing import Any

from pipeline.progress import PROGRESS
from pipeline.stopping import STOP
from schemas.errors import InputError

_SPAWN = multiprocessing.get_context("spawn")
"""A fork would copy the locks that TensorFlow's and Beam's threads hold."""

_TICK_S = 0.25
"""How often the parent looks for a request to stop, and a worker tells its progress."""

_PATIENCE_S = 180.0
"""A worker that does not end in good order for so long is ended; a read may take a minute."""

_END_S = 10.0


class WorkerError(Exception):
    """A worker failed, or is gone."""


@dataclasses.dataclass(frozen=True)
class Workers:
    """Which processes score.

    Attributes:
      number: Of them; 1 is this process alone.
      prepare: Called in each of several before anything heavy is imported there; must
        pickle.
      gpus: As CUDA_VISIBLE_DEVICES calls them; each of several sees one, in turn.
    """

    number: int = 1
    prepare: Callable[[], None] | None = None
    gpus: tuple[str, ...] = ()


_SAYS_NOTHING = re.compile(r"\s*($|at \S+\(|\.\.\. \d+ more$|Driver stacktrace:$)")
"""Empty lines, and those of Java's traces."""

ALONE = Workers()
"""No process but this one."""


@dataclasses.dataclass(frozen=True)
class _Done:
    """A task's result."""

    result: Any


@dataclasses.dataclass(frozen=True)
class _Failed:
    """Why a worker cannot go on."""

    error: Exception


def cores_a_worker(workers: int) -> int:
    """Returns how many of the machine's cores are each worker's share, at least 1."""
    return max(1, (os.cpu_count() or 1) // workers)


def cause(error: Exception) -> str:
    """Returns the last line of an error: Beam puts a worker's whole trace into its message.

    Where the runner is in Java, its own trace stands below that of the worker.
    """
    lines = [line for line in str(error).splitlines() if not _SAYS_NOTHING.match(line)]
    return f"{type(error).__name__}: {lines[-1]}" if lines else type(error).__name__


def hand_out(tasks: Sequence, work: Callable[[Any], Any], workers: Workers) -> list:
    """Does tasks in worker processes; returns their results in the order they were done.

    Once a stop is requested, or a worker is lost, the others end what they are at as on
    a stop, and no further task is begun: then results are missing. What workers
    count as progress is counted in this process.

    Args:
      tasks: Small and picklable; never None.
      work: Called with a task in a worker; picklable, as is what it returns.
      workers: How many, and how they are prepared. Never more than tasks.

    Raises:
      WorkerError: A worker died or failed; says which and of what.
      InputError: Raised by `work`.
    """
    number = min(workers.number, len(tasks))
    with contextlib.ExitStack() as started:
        team = [
            started.enter_context(_Worker(index, number, work, workers)) for index in range(number)
        ]
        return _Shift(team, tasks).work()


class _Worker:
    """A worker as its parent sees it; a context manager that starts and ends the process.

    Attributes:
      connection: To it.
      is_busy: Whether it has a task, or had one when it was lost.
    """

    def __init__(self, index: int, number: int, work: Callable[[Any], Any], workers: Workers):
        self.is_busy = False
        self._name = f"worker {index + 1} of {number}"
        # Before TensorFlow is imported: the network's threads, and the GPU it is on.
        environment = {"TF_NUM_INTRAOP_THREADS": str(cores_a_worker(workers.number))}
        if workers.gpus:
            environment["CUDA_VISIBLE_DEVICES"] = workers.gpus[index % len(workers.gpus)]
        # Bytes, or the modules of `work` would be imported before the worker is prepared.
        self._args = (environment, workers.prepare, pickle.dumps(work))
        self._counts: dict[str, int] = {}

    def __enter__(self) -> "_Worker":
        self.connection, theirs = _SPAWN.Pipe()
        self._process = _SPAWN.Process(
            target=_be_worker, args=(theirs, *self._args), name=self._name, daemon=True
        )
        with _signals_blocked():
            self._process.start()
        theirs.close()  # or the pipe would outlive the process
        return self

    def __exit__(self, *_) -> None:
        self.connection.close()  # ends it
        self._process.join(_END_S)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def give(self, task: Any) -> None:
        """Hands it a task."""
        self.is_busy = True
        self._tell(task)

    def stop(self) -> None:
        """Makes it end its task as on a request to stop."""
        self._tell(None)

    def hear(self) -> _Done | None:
        """Takes a message in; returns what was done, None where it only tells progress.

        Raises:
          WorkerError: It failed or is gone.
          InputError: Its task broke a rule.
        """
        try:
            counts, outcome = self.connection.recv()
        except (EOFError, OSError):
            self.is_busy = False
            raise WorkerError(f"{self._name} {self._how_it_ended()}") from None
        self._count(counts)
        self.is_busy = outcome is None
        if isinstance(outcome, _Failed):
            raise outcome.error
        return outcome

    def _tell(self, message: Any) -> None:
        with contextlib.suppress(OSError):  # it is gone: `hear` says so
            self.connection.send(message)

    def _count(self, counts: dict[str, int]) -> None:
        for table, rows in counts.items():
            PROGRESS.add(table, rows - self._counts.get(table, 0))
        self._counts = counts

    def _how_it_ended(self) -> str:
        self._process.join(_END_S)
        code = self._process.exitcode
        who = f"(process {self._process.pid})"
        if code is None or code >= 0:
            return f"{who} ended with exit code {code}"
        name = signal.Signals(-code).name
        hint = ", as the system does where memory is short" if name == "SIGKILL" else ""
        return f"{who} was ended by {name}{hint}"


@contextlib.contextmanager
def _signals_blocked() -> Iterator[None]:
    """Makes a process that is started meanwhile deaf to requests to stop.

    A terminal's SIGINT, and systemd's SIGTERM, may reach all processes of a run. The
    parent alone acts on it, and tells the workers.
    """
    resource_tracker.ensure_running()  # whose start within this one's would unblock them
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Shift:
    """What a team does with some tasks, until they are done or it has to stop."""

    def __init__(self, team: Sequence[_Worker], tasks: Sequence):
        self._team = team
        self._tasks = deque(tasks)
        self._results: list = []
        self._failure: Exception | None = None
        self._ends_s = math.inf

    def work(self) -> list:
        """Returns the results; raises what a worker was lost by."""
        for worker in self._team:
            worker.give(self._tasks.popleft())
        while (busy := self._busy()) and time.monotonic() < self._ends_s:
            if (STOP.requested or self._failure) and self._ends_s == math.inf:
                self._stop(busy.values())
            for heard in connection.wait(list(busy), _TICK_S):
                self._hear(busy[heard])
        if self._failure:
            raise self._failure
        return self._results

    def _busy(self) -> dict[connection.Connection, _Worker]:
        return {worker.connection: worker for worker in self._team if worker.is_busy}

    def _stop(self, busy) -> None:
        self._ends_s = time.monotonic() + _PATIENCE_S
        self._tasks.clear()
        for worker in busy:
            worker.stop()

    def _hear(self, worker: _Worker) -> None:
        try:
            done = worker.hear()
        except Exception as error:
            # One that ends while it is to stop has been asked to.
            if not STOP.requested:
                self._failure = self._failure or error
            return
        if done:
            self._results.append(done.result)
            if self._tasks and not (STOP.requested or self._failure):
                worker.give(self._tasks.popleft())


def _be_worker(
    to_parent: connection.Connection,
    environment: dict[str, str],
    prepare: Callable[[], None] | None,
    pickled_work: bytes,
) -> None:
    """Does the parent's tasks until it closes the pipe; the process's main function."""
    os.environ.update(environment)
    parent = _Parent(to_parent)
    threading.Thread(target=parent.listen, daemon=True, name="parent").start()
    try:
        if prepare:
            prepare()
        work = pickle.loads(pickled_work)
        while True:
            parent.tell(_Done(work(parent.next_task())))
    except Exception as error:
        parent.tell(_Failed(_portable(error)))


def _portable(error: Exception) -> Exception:
    """Returns an error that certainly pickles."""
    if isinstance(error, InputError):
        return error
    name = multiprocessing.current_process().name
    portable = WorkerError(f"{name} (process {os.getpid()}) failed: {cause(error)}")
    portable.add_note(traceback.format_exc())
    return portable


class _Parent:
    """The parent as a worker sees it."""

    def __init__(self, to_parent: connection.Connection):
        self._connection = to_parent
        self._sending = threading.Lock()
        self._tasks: queue.SimpleQueue = queue.SimpleQueue()
        self._told: dict[str, int] = {}
        self._has_begun = False

    def next_task(self) -> Any:
        """Returns a task once there is one."""
        task = self._tasks.get()
        self._has_begun = True
        return task

    def tell(self, outcome: _Done | _Failed | None) -> None:
        """Sends what became of a task, and how far this process is."""
        with self._sending, contextlib.suppress(OSError):  # it is gone: `listen` ends this process
            self._told = PROGRESS.counts()
            self._connection.send((self._told, outcome))

    def listen(self) -> None:
        """Takes messages in, and tells progress meanwhile; ends the process with the parent."""
        try:
            while True:
                if self._connection.poll(_TICK_S):
                    self._take(self._connection.recv())
                elif PROGRESS.counts() != self._told:
                    self.tell(None)
        except (EOFError, OSError):
            # Not by an exception: it would end this thread only.
            os._exit(0)

    def _take(self, task: Any) -> None:
        if task is not None:
            self._tasks.put(task)
            return
        STOP.request()
        if not self._has_begun:
            os._exit(0)  # the libraries still load, and there is nothing to finish
