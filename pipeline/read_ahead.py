"""Threads that work ahead of whoever consumes their results, and do not wait for ever."""

import collections
import contextlib
import dataclasses
import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any

from pipeline.watch import Watch
from schemas.rejects import ImageError, Reason, Stage

TIMEOUT_S = 60.0
"""A read or a decode that takes longer is given up."""

LATE_S = 2.0
"""What gives no sign of life for longer is late: the others do not wait for it."""

MAX_HUNG = 256
"""Threads of this process that may hang at once, one an image: more means a store that is down."""

_TICK_S = 0.25
"""How often whoever waits for a result looks for late ones, in seconds."""

_SPARES, _SPARES_EARNED = 4, 0.1
"""See `ReadAhead`: the spare threads of a start on few, and those an item in time earns."""

_TIMEOUTS = {Stage.READ: Reason.READ_TIMEOUT, Stage.DECODE: Reason.DECODE_TIMEOUT}


class StoreError(Exception):
    """So many reads hang that the store does not answer; what is staged stays for a resume."""


@dataclasses.dataclass(frozen=True, slots=True)
class TimedOut:
    """What is given for an item that took too long.

    Attributes:
      item: What was put in.
      watch: How far it was.
      error: Says that it took too long, and at what.
    """

    item: Any
    watch: Watch
    error: ImageError


@dataclasses.dataclass(slots=True, eq=False)
class _Job:
    """An item, and what became of it: a result, an error, or a TimedOut, once `is_done`."""

    item: Any
    watch: Watch
    is_begun: bool = False
    is_done: bool = False
    is_replaced: bool = False
    result: Any = None
    error: BaseException | None = None


_hung: set[_Job] = set()
"""Of all ReadAheads of this process: those in threads that others have replaced."""


class ReadAhead:
    """Applies a function to items in threads, and gives the results in order.

    At most `depth` items are under way or waiting to be taken, which bounds the
    memory. The threads are daemons: one that hangs in a read must not keep the
    process from ending, as the standard library's executors would.

    No item is waited for at any price. When one is late, it is set aside and given when
    it is done, whatever the order; when it takes longer than `timeout_s`, a `TimedOut`
    is given for it, its thread is abandoned, and what comes from there is dropped. In
    place of a thread with a late read another one is started, so that hung reads leave
    the others their threads. Such spare threads are as many as `threads` (4 where those
    are fewer) and are earned again by items that are done in time: where all reads are
    slow, more of them at once would only be slower.

    Items set aside each have a thread, so that they are bounded too.
    """

    def __init__(
        self,
        function: Callable,
        *,
        threads: int,
        depth: int,
        timeout_s: float = TIMEOUT_S,
        late_s: float = LATE_S,
    ):
        """Starts the threads.

        Args:
          function: Called with an item and its watch, which it tells how far it is; what
            it raises is raised to the consumer.
          threads: Number of them that work at once.
          depth: Items that may be under way at once; at least `threads`.
          timeout_s: After that long at one stage an item is given up.
          late_s: After that long without a sign of life an item is set aside.
        """
        self._function = function
        self._threads = threads
        self._depth = depth
        self._timeout_s = timeout_s
        self._late_s = late_s
        self._waiting: queue.SimpleQueue = queue.SimpleQueue()
        self._pending: collections.deque[_Job] = collections.deque()
        self._aside: list[_Job] = []
        # The rest is shared with the threads, and so are the attributes of a job.
        self._changed = threading.Condition()
        self._busy: set[_Job] = set()
        self._spares = self._most_spares = float(max(threads, _SPARES))
        for _ in range(threads):
            self._start_thread()

    def put(self, item, watch: Watch | None = None) -> Iterator:
        """Takes an item in, once the results that it gives have made room.

        Iterate over it to the end: that is what takes the item in.

        Args:
          item: For the function.
          watch: By another clock than the system's.

        Raises:
          StoreError: More than `MAX_HUNG` threads hang.
        """
        yield from self._results(self._depth - 1)
        job = _Job(item, watch or Watch())
        self._waiting.put(job)
        self._pending.append(job)

    def drain(self) -> Iterator:
        """Gives the results of all items taken in so far; raises as `put` does."""
        yield from self._results(0, to_the_end=True)

    def close(self) -> None:
        """Ends the threads once they are idle, and lets go of items that were not given."""
        self._pending.clear()
        self._aside.clear()
        with contextlib.suppress(queue.Empty):
            while True:
                self._waiting.get_nowait()
        for _ in range(self._threads):
            self._waiting.put(None)

    def _results(self, most: int, to_the_end: bool = False) -> Iterator:
        """Gives what is due, until no more than `most` items wait in order, or none at all."""
        while (job := self._next(most, to_the_end)) is not None:
            if job.error is not None:
                raise job.error
            yield job.result

    def _next(self, most: int, to_the_end: bool) -> _Job | None:
        """Waits for the job to be given next; None where none has to be waited for."""
        with self._changed:
            while True:
                self._look_after_threads()
                for job in self._aside:
                    if job.is_done:
                        self._aside.remove(job)
                        return job
                if len(self._pending) > most:
                    if self._pending[0].is_done:
                        return self._pending.popleft()
                    if self._is_late(self._pending[0]):
                        self._aside.append(self._pending.popleft())
                        continue
                elif not (to_the_end and self._aside):
                    return None
                self._changed.wait(_TICK_S)

    def _is_late(self, job: _Job) -> bool:
        return job.is_begun and job.watch.is_late(self._late_s)

    def _look_after_threads(self) -> None:
        """Gives up what takes too long, and starts threads in place of those that hang."""
        for job in tuple(self._busy):
            if job.is_done:
                continue
            if job.watch.give_up(self._timeout_s):
                job.result = TimedOut(job.item, job.watch, self._error_of(job.watch))
                job.is_done = True
                # Not a slow read, then: others that are late will rather hang, too.
                self._earn_spares(1)
                self._replace(job)
            elif self._spares >= 1 and self._hangs(job):
                self._spares -= 1
                self._replace(job)
        if len(_hung) > MAX_HUNG:
            raise StoreError(
                "The store that holds the images must answer. Received: no answer to"
                f" {len(_hung)} reads at once. See to it, then go on with --resume."
            )

    def _hangs(self, job: _Job) -> bool:
        """Returns whether a thread may be hanging in the read of a job, and has no substitute."""
        # Not in a decode: that needs a processor, not another thread.
        return not job.is_replaced and job.watch.stage is Stage.READ and self._is_late(job)

    def _error_of(self, watch: Watch) -> ImageError:
        return ImageError(_TIMEOUTS[watch.stage], f"not done within {self._timeout_s:g} s")

    def _earn_spares(self, number: float) -> None:
        self._spares = min(self._spares + number, self._most_spares)

    def _replace(self, job: _Job) -> None:
        if not job.is_replaced:
            job.is_replaced = True
            _hung.add(job)
            self._start_thread()

    def _start_thread(self) -> None:
        threading.Thread(target=self._work, daemon=True, name="read-ahead").start()

    def _work(self) -> None:
        while (job := self._waiting.get()) is not None:
            with self._changed:
                job.is_begun = True
                self._busy.add(job)
                job.watch.begin(Stage.READ)
            result = error = None
            try:
                result = self._function(job.item, job.watch)
            except BaseException as raised:  # the consumer raises it
                error = raised
            self._finish(job, result, error)
            if job.is_replaced:
                return

    def _finish(self, job: _Job, result: Any, error: BaseException | None) -> None:
        with self._changed:
            self._busy.discard(job)
            _hung.discard(job)
            if job.is_done:
                return  # given up: what comes now is dropped
            job.result, job.error, job.is_done = result, error, True
            if not job.is_replaced:
                self._earn_spares(_SPARES_EARNED)
            self._changed.notify_all()
