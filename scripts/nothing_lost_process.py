"""`prescreen score` in a process of its own, which is watched, and killed."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

_ROOT = Path(__file__).parents[1]
_CHILD = Path(__file__).with_name("nothing_lost_child.py")
_HANGS_AFTER_S = 1800.0


@dataclass(frozen=True)
class Event:
    """A line of the JSON log.

    Attributes:
      name: Of the event.
      at_s: When it came, by `time.monotonic`.
      facts: All of the line.
    """

    name: str
    at_s: float
    facts: dict


class Attempt:
    """A process of `score` and what it says of itself.

    Attributes:
      began_s: When it was started, by `time.monotonic`.
      events: What came so far.
      other_lines: Of standard error, which are no events.
      ended_s: When it ended; None until then.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        *,
        changes: Sequence[str] = (),
        prefix: Sequence[str] = (),
        on_event: Callable[[Event], None] = lambda event: None,
    ):
        """Starts the process, in a group of its own.

        Args:
          arguments: Of `score`; it logs JSON.
          changes: Options of `nothing_lost_child`; without any the command is as it is.
          prefix: A command that runs this one.
          on_event: Called with each event as it comes, in another thread.
        """
        program = [str(_CHILD), *changes, "--"] if changes else ["-m", "jobs"]
        self.began_s = time.monotonic()
        self.events: list[Event] = []
        self.other_lines: list[str] = []
        self.ended_s: float | None = None
        self._on_event = on_event
        self._changed = threading.Condition()
        self._process = subprocess.Popen(
            [*prefix, sys.executable, *program, "score", "--log-json", *arguments],
            cwd=_ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        for line in self._process.stderr:
            try:
                facts = json.loads(line)
                event = Event(facts["event"], time.monotonic(), facts)
            except (ValueError, KeyError, TypeError):
                self.other_lines.append(line.rstrip("\n"))
                continue
            with self._changed:
                self.events.append(event)
                self._changed.notify_all()
            self._on_event(event)
        with self._changed:
            self.ended_s = time.monotonic()
            self._changed.notify_all()

    def wait_for(self, name: str | None) -> Event | None:
        """Returns the first event of a name once it came; None if the process ended before."""
        with self._changed:
            while name is not None:
                if found := self.find(name):
                    return found
                if self.ended_s is not None:
                    return None
                self._changed.wait()
        return None

    def find(self, name: str) -> Event | None:
        """Returns the first event of a name that came so far."""
        return next((event for event in list(self.events) if event.name == name), None)

    @property
    def process(self) -> int:
        """Number of the process."""
        return self._process.pid

    def send(self, number: signal.Signals) -> None:
        """Sends a signal to the process, unless it has ended."""
        self._process.send_signal(number)

    def kill(self) -> bool:
        """Kills the process and all that it started; returns whether it was alive until then."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        return self.end() == -signal.SIGKILL

    def end(self) -> int:
        """Waits for the end; returns the exit code, negative where a signal ended it.

        Raises:
          subprocess.TimeoutExpired: It hangs. It is killed.
        """
        try:
            code = self._process.wait(_HANGS_AFTER_S)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            raise
        self._reader.join()
        return code

    @property
    def last_event(self) -> str:
        """Name of the last event, `-` before the first."""
        return self.events[-1].name if self.events else "-"

    @property
    def message(self) -> str:
        """What the process says of its failure, else what it printed last."""
        failed = self.find("failed")
        return failed.facts["message"] if failed else "\n".join(self.other_lines[-20:])

    @property
    def result(self) -> Event | None:
        """The event that names what was published, with the run's id."""
        return self.find("published") or self.find("published_already")


def run_command(*arguments: str) -> tuple[int, str]:
    """Runs another command of `prescreen`; returns exit code and all it printed."""
    done = subprocess.run(
        [sys.executable, "-m", "jobs", *arguments],
        cwd=_ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=_HANGS_AFTER_S,
    )
    return done.returncode, done.stdout
