"""What the threads of a worker share between them: memory, and turns at the processors."""

import collections
import threading

from pipeline.watch import Watch

_TICK_S = 5.0
"""How often a thread that waits looks for takers that were given up, which tell nobody."""


class Budget:
    """An amount that threads take parts of, in the order they come, and give back.

    What was taken for an image that is given up counts no more: its thread may hang.
    """

    def __init__(self, limit: int):
        """Makes all of it free.

        Args:
          limit: How much may be taken at once, in any unit. Who needs more waits until
            nothing is taken.
        """
        self._limit = limit
        self._lock = threading.Lock()
        self._taken: dict[Watch, int] = {}
        self._queue: collections.deque[threading.Event] = collections.deque()

    def take(self, watch: Watch, amount: int) -> None:
        """Waits until so much is free, and takes it; meanwhile the image cannot be given up.

        Args:
          watch: Of the image that it is for, which has not taken of it before.
          amount: In the budget's unit.

        Raises:
          GivenUp: The image was given up before.
        """
        watch.begin(None)
        turn = threading.Event()
        with self._lock:
            self._queue.append(turn)
        while not self._takes(turn, watch, amount):
            turn.wait(_TICK_S)
            turn.clear()

    def give_back(self, watch: Watch) -> None:
        """Frees what was taken for an image, if anything was."""
        with self._lock:
            if self._taken.pop(watch, None) is not None:
                self._call_next()

    def _takes(self, turn: threading.Event, watch: Watch, amount: int) -> bool:
        with self._lock:
            if self._queue[0] is not turn or not self._has_room(amount):
                return False
            self._queue.popleft()
            self._taken[watch] = amount
            self._call_next()
            return True

    def _call_next(self) -> None:
        if self._queue:
            self._queue[0].set()

    def _has_room(self, amount: int) -> bool:
        for watch in [watch for watch in self._taken if watch.is_given_up]:
            del self._taken[watch]
        return not self._taken or sum(self._taken.values()) + amount <= self._limit
