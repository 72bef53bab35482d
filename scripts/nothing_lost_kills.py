"""Runs that are killed at random moments, resumed, and compared with one that was not."""

import itertools
import random
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from nothing_lost_archive import Archive
from nothing_lost_checks import (
    Published,
    Watcher,
    check_alone,
    published_files,
    read_published,
    staged_rows,
)
from nothing_lost_child import create_counter, read_counter
from nothing_lost_process import Attempt

MOST_TWICE = 512
"""Images that a kill may cause to be scored again."""

PAUSE_S = 0.2
"""After each step of publishing: all of them take some milliseconds, too few to hit."""

HEADER = (
    "| kill | phase | moment, s | last event | rows staged | scored twice | kills"
    " | resumed by | resumed in, s | looks | equal |\n" + "|---" * 11 + "|"
)

_AGAIN_EVERY = 5
"""The resumed process of each fifth kill is killed as well."""


@dataclass(frozen=True)
class Phase:
    """A part of a run.

    Attributes:
      name: For the table.
      begins: The event; None for the start of the process.
      ends: The event.
      share: Of 25 kills, how many come in it.
    """

    name: str
    begins: str | None
    ends: str
    share: int


PHASES = (
    Phase("loading", None, "run_started", 2),
    Phase("start", "run_started", "scoring", 2),
    Phase("scoring", "scoring", "scored", 9),
    Phase("drawing", "scored", "drawn", 5),
    Phase("writing", "drawn", "built", 3),
    Phase("publishing", "built", "published", 4),
)


@dataclass(frozen=True)
class Kill:
    """What came of one kill.

    Attributes:
      number: Of the kill, from 1.
      phase: In which it came.
      moment_s: Seconds into that phase.
      found: The last event before it, and what was published by then.
      staged: Rows that were durable after it.
      twice: Images that went through the network more than once, in all attempts.
      kills: How many processes were killed.
      resumed_by: The options.
      resumed_s: What the last attempt took.
      looks: How often a reader looked.
      harm: What is not as it must be; empty is good.
    """

    number: int
    phase: str
    moment_s: float
    found: str
    staged: int
    twice: int
    kills: int
    resumed_by: str
    resumed_s: float
    looks: int
    harm: tuple[str, ...]

    def __str__(self) -> str:
        """Returns the line of the table."""
        return (
            f"| {self.number} | {self.phase} | {self.moment_s:.2f} | {self.found} | {self.staged}"
            f" | {self.twice} | {self.kills} | {self.resumed_by} | {self.resumed_s:.1f}"
            f" | {self.looks} | {'NO' if self.harm else 'yes'} |"
        )


def spread(kills: int) -> list[Phase]:
    """Returns the phases of so many kills, in order, as `Phase.share` spreads them."""
    phases = [phase for phase in PHASES for _ in range(phase.share)]
    return [phases[number * len(phases) // kills] for number in range(kills)]


class Killer:
    """Kills runs over one archive.

    Attributes:
      whole: What the run published that nothing interrupted.
      durations: Seconds of each of its phases, by name.
    """

    def __init__(self, work: Path, *, images: int, seed: int):
        """Writes the archive and scores it once without interruption.

        Raises:
          RuntimeError: That does not succeed.
        """
        self._work = work
        self._counter = work / "counter"
        self._random = random.Random(seed)
        archive = Archive(work / "archive", images=images, seed=seed)
        archive.add_bad()
        self._options = (
            *("--manifest", str(archive.manifest)),
            *("--reject-limit", "0.2"),
            *("--gradcam-limit", str(images // 4)),
        )
        create_counter(self._counter)
        attempt = self._start(work / "whole", "--run-id", "whole")
        if attempt.end():
            raise RuntimeError(f"an uninterrupted run must succeed. Received: {attempt.message}")
        self.whole = read_published(work / "whole", "whole")
        self.durations = {phase.name: _duration(attempt, phase) for phase in PHASES}

    def _start(self, output: Path, *options: str) -> Attempt:
        changes = ("--counter", str(self._counter), "--pause-s", str(PAUSE_S))
        return Attempt(("--output", str(output), *self._options, *options), changes=changes)

    def kills(self, count: int) -> Iterator[Kill]:
        """Kills so many runs, each in an OUTPUT of its own, and gives what came of each."""
        for number, phase in enumerate(spread(count), start=1):
            while (kill := self._kill_and_resume(number, phase)) is None:
                pass
            yield kill

    def _kill_and_resume(self, number: int, phase: Phase) -> Kill | None:
        """Returns None where the kill missed its phase, which is a matter of luck."""
        output, run_id = self._work / f"kill-{number}", f"kill-{number}"
        rows = self.whole.record["counts"]["scored"]
        with Watcher(output, rows) as watcher:
            if hit := self._kill(output, run_id, phase):
                moment_s, found = hit
                staged = staged_rows(output)
                named = number % 2 == 1
                options = ("--resume", "--run-id", run_id) if named else ("--resume",)
                again = number % _AGAIN_EVERY == 0
                attempt, kills = self._resume(output, options, phase if again else None)
        if not hit:
            shutil.rmtree(output, ignore_errors=True)
            return None
        twice = read_counter(self._counter) - rows
        seen = dict.fromkeys(watcher.harm)  # the same at many looks is said once
        harm = (*_judge(attempt, output, self.whole, twice, 1 + kills), *seen)
        if not harm:
            shutil.rmtree(output)
        return Kill(
            number=number,
            phase=phase.name,
            moment_s=moment_s,
            found=found,
            staged=staged,
            twice=twice,
            kills=1 + kills,
            resumed_by="`--resume --run-id`" if named else "`--resume`",
            resumed_s=attempt.ended_s - attempt.began_s,
            looks=watcher.looks,
            harm=harm,
        )

    def _kill(self, output: Path, run_id: str, phase: Phase) -> tuple[float, str] | None:
        """Kills a run in a phase; returns when, in seconds into it, and how far the run was.

        None where the phase was over by then; the next try knows how long it takes now.
        """
        create_counter(self._counter)
        attempt = self._start(output, "--run-id", run_id)
        attempt.wait_for(phase.begins)
        moment_s = self._random.uniform(0, self.durations[phase.name])
        time.sleep(moment_s)
        attempt.kill()
        if attempt.find(phase.ends):
            self.durations[phase.name] = _duration(attempt, phase)
            return None
        moved = (name.split("/")[0] for name in published_files(output))
        return moment_s, ", ".join(dict.fromkeys([attempt.last_event, *moved]))

    def _resume(
        self, output: Path, options: Sequence[str], kill_from: Phase | None
    ) -> tuple[Attempt, int]:
        """Resumes a run to its end; returns the last attempt and how many were killed.

        Args:
          output: Of the run.
          options: That resume it.
          kill_from: Kill the first resumed process, in this phase or a later one.
        """
        for attempt_number in itertools.count():
            attempt = self._start(output, *options)
            if kill_from is not None and attempt_number == 0:
                phase = self._random.choice(PHASES[PHASES.index(kill_from) :])
                attempt.wait_for(phase.begins)
                time.sleep(self._random.uniform(0, self.durations[phase.name]))
                if attempt.kill():
                    continue
            attempt.end()
            return attempt, attempt_number


def _duration(attempt: Attempt, phase: Phase) -> float:
    begins_s = attempt.find(phase.begins).at_s if phase.begins else attempt.began_s
    return attempt.find(phase.ends).at_s - begins_s


def _judge(
    attempt: Attempt, output: Path, whole: Published, twice: int, kills: int
) -> Iterator[str]:
    if code := attempt.end():
        yield f"the resumed run ended with {code}: {attempt.message}"
    else:
        yield from check_alone(output, whole, attempt.result.facts["run_id"])
    if twice > MOST_TWICE * kills:
        yield f"{twice} images were scored twice, over {MOST_TWICE} a kill"
