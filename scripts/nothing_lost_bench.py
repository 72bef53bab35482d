"""An archive to disturb runs over, and what to say of such a run."""

import itertools
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from nothing_lost_archive import Archive
from nothing_lost_checks import check_alone, published_files, read_published
from nothing_lost_process import Attempt, Event

HEADER = (
    "| fault | exit code | message | then | exit code | as uninterrupted |\n" + "|---" * 6 + "|"
)

_BLOCK = 512
"""Bytes of what `stat` counts in."""

_PAUSE_S = 0.5


@dataclass(frozen=True)
class Fault:
    """What came of one fault.

    Attributes:
      name: Of the fault.
      code: Exit code under it; None where it was left out.
      message: Of that process.
      then: What was done afterwards.
      then_code: Exit code after that; None where nothing was done.
      harm: What is not as it must be; empty is good.
    """

    name: str
    code: int | None = None
    message: str = ""
    then: str = ""
    then_code: int | None = None
    harm: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Returns the line of the table."""
        good = "left out" if self.code is None else "NO" if self.harm else "yes"
        message = " ".join(self.message.split()).replace("|", "\\|")
        codes = ("" if code is None else code for code in (self.code, self.then_code))
        return f"| {self.name} | {next(codes)} | {message} | {self.then} | {next(codes)} | {good} |"


class Bench:
    """An archive, a run over it that nothing disturbs, and how much disk that takes.

    Attributes:
      work: The folder of all.
      archive: What is scored.
      whole: What the run published.
      durations: Seconds from its start or an event to the next, by that event.
      occupied: Bytes that OUTPUT held at an event, by the event.
    """

    def __init__(self, work: Path, *, images: int, seed: int):
        """Writes the archive and scores it.

        Raises:
          RuntimeError: That does not succeed.
        """
        self.work = work
        self.archive = Archive(work / "archive", images=images, seed=seed)
        self.archive.add_bad()
        self.images = images
        self.seed = seed
        self.occupied: dict[str, int] = {}
        output = work / "whole"
        attempt = self.start(
            output,
            *("--run-id", "whole"),
            # Or files would move while they are measured.
            changes=("--pause-s", str(_PAUSE_S)),
            on_event=self._measure(output),
        )
        if attempt.end():
            raise RuntimeError(f"an undisturbed run must succeed. Received: {attempt.message}")
        self.whole = read_published(output, "whole")
        times = {event.name: event.at_s for event in attempt.events if event.name != "progress"}
        moments = zip(times, [attempt.began_s, *times.values()], times.values(), strict=False)
        self.durations = {f"to {name}": until - since for name, since, until in moments}

    def _measure(self, output: Path) -> Callable[[Event], None]:
        def measure(event: Event) -> None:
            folders = (Path(folder).glob("*") for folder, _, _ in os.walk(output))
            self.occupied[event.name] = sum(map(_allocated, itertools.chain(*folders)))

        return measure

    def start(self, output: Path, *options: str, **how) -> Attempt:
        """Starts `score` over the archive; `how` as for `Attempt`."""
        arguments = ("--manifest", str(self.archive.manifest), "--output", str(output))
        limits = ("--reject-limit", "0.2", "--gradcam-limit", str(self.images // 4))
        return Attempt((*arguments, *limits, *options), **how)

    def fail(self, name: str, output: Path, **how) -> tuple[Fault, Attempt]:
        """Lets a run called `night` fail; returns what came of it, and the process."""
        attempt = self.start(output, "--run-id", "night", **how)
        code = attempt.end()
        return Fault(
            name, code, attempt.message, harm=tuple(badly_failed(attempt, output))
        ), attempt

    def resume(self, fault: Fault, output: Path, then: str) -> Fault:
        """Resumes the run of a fault; returns the fault with what came of that."""
        attempt = self.start(output, "--resume", "--run-id", "night")
        code = attempt.end()
        harm = [f"resumed: exit code {code}: {attempt.message}"] if code else []
        if not code:
            harm += check_alone(output, self.whole, "night")
        return replace(fault, then=then, then_code=code, harm=(*fault.harm, *harm))


def _allocated(path: Path) -> int:
    """Returns the bytes that a file takes up: one of the database has holes."""
    try:
        return path.stat().st_blocks * _BLOCK if path.is_file() else 0
    except FileNotFoundError:
        return 0  # of a moment's work


def badly_failed(attempt: Attempt, output: Path) -> Iterator[str]:
    """Gives what a failed run did that it must not; nothing is good."""
    if attempt.end() != 1:
        yield f"exit code {attempt.end()}"
    if attempt.find("failed") is None or "\n" in attempt.message:
        yield f"not one line: {attempt.message}"
    if attempt.other_lines:
        yield f"other output: {attempt.other_lines[-1]}"
    if files := published_files(output):
        yield f"published {', '.join(files)}"
