"""How far a thread is with one image, seen from the one that waits for it."""

import threading
import time
from collections.abc import Callable

from model.reading import FileVersion
from schemas.rejects import Stage


class GivenUp(Exception):
    """The consumer waits for this item no more: its thread may stop working on it."""


class Watch:
    """How far the thread of one image is, for whoever waits for it.

    Attributes:
      stage: What the thread is at, READ at first; None for what is never late nor given up.
      is_given_up: Whether it is waited for no more.
      attempts: Reads begun.
      version: Of the file; None until the last attempt has found it.
      began_s, moved_s: When the stage began, and when the last sign of life came, in
        seconds by the clock.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        self._lock = threading.Lock()
        self.is_given_up = False
        self.attempts = 0
        self.version: FileVersion | None = None
        self.begin(Stage.READ)

    def begin(self, stage: Stage | None) -> None:
        """Notes that a stage begins.

        Raises:
          GivenUp: It is too late for that.
        """
        with self._lock:
            self._check()
            self.stage = stage
            self.began_s = self.moved_s = self._clock()

    def begin_attempt(self) -> None:
        """Notes that the file is read, or read again; raises as `begin` does."""
        self.moved()
        self.attempts += 1
        self.version = None

    def moved(self) -> None:
        """Notes a sign of life; raises as `begin` does."""
        self._check()
        self.moved_s = self._clock()

    def is_late(self, late_s: float) -> bool:
        """Returns whether there was no sign of life for longer than that."""
        return self.stage is not None and self._clock() - self.moved_s > late_s

    def give_up(self, timeout_s: float) -> bool:
        """Returns whether the stage took longer than that; if so it is given up now."""
        with self._lock:
            if self.stage is not None and self._clock() - self.began_s > timeout_s:
                self.is_given_up = True
            return self.is_given_up

    def _check(self) -> None:
        if self.is_given_up:
            raise GivenUp
