"""Feeds damaged images and manifests to the code that reads them, and looks for harm.

Usage: python scripts/fuzz.py [FOLDER...] [--inputs 20000] [--manifests 2000] [--seed 1]
       [--seconds 900] [--time-limit-s 30] [--memory-limit-mb 1024] [--findings build/fuzz]
       python scripts/fuzz.py --replay FILE

Inputs are made from phantoms in many encodings, from small manifests in every format, and
from the PNG, JPEG and DICOM files of the folders. A damaged image must become a square or a reason
of the decode stage, the same both times it is decoded, while an intact image beside it in
another thread comes out as ever. A damaged manifest must be refused with one line, or be
read without losing a row and come back the same when written and read again.

Anything else is a finding: any other exception or warning, a process that dies, an input
that takes too long or too much memory. Its bytes are saved, and `--replay` feeds them once
more, in one process. Exits with 1 if anything was found. Linux only.
"""

import argparse
import collections
import dataclasses
import multiprocessing
import re
import resource
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

from fuzz_checks import CheckImages, CheckManifests
from fuzz_inputs import IMAGE_EXTENSIONS, MutatedImages, MutatedManifests, Original

_START_LIMIT_S = 120
"""What a worker may take to import and to make its first input."""
_ADDRESS_SPACE = 4
"""How many times the memory limit a process may reserve, so that none takes the machine."""

Check = Callable[[Original], str]


@dataclasses.dataclass(frozen=True)
class Limits:
    """What one input may take.

    Attributes:
      time_s: Seconds from its first byte to its outcome.
      memory_mb: Resident memory of the process, imports included, in MiB.
    """

    time_s: float
    memory_mb: int


@dataclasses.dataclass(frozen=True)
class Answer:
    """What a worker says of one input.

    Attributes:
      outcome: What became of it; None where that is a finding.
      harm: What is wrong; None where nothing is.
      seconds: What it took.
      peak_mb: Resident memory of the process at its highest during this input, in MiB.
    """

    outcome: str | None
    harm: str | None
    seconds: float
    peak_mb: int


@dataclasses.dataclass
class Tally:
    """What became of all inputs that were fed.

    Attributes:
      outcomes: How many inputs had each outcome; findings are not among them.
      findings: Number of the input and what is wrong, in order.
      slowest: Seconds and number of the slowest input.
      peak_mb: Highest memory that a worker had, in MiB.
      seconds: Time for all, start of workers included.
    """

    outcomes: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    findings: list[tuple[int, str]] = dataclasses.field(default_factory=list)
    slowest: tuple[float, int] = (0.0, 0)
    peak_mb: int = 0
    seconds: float = 0.0

    @property
    def fed(self) -> int:
        """Number of inputs that were fed."""
        return self.outcomes.total() + len(self.findings)

    def add(self, number: int, answer: Answer) -> None:
        """Counts one input."""
        if answer.harm:
            self.findings.append((number, answer.harm))
        else:
            self.outcomes[answer.outcome] += 1
        self.slowest = max(self.slowest, (answer.seconds, number))
        self.peak_mb = max(self.peak_mb, answer.peak_mb)


def feed(
    make_check: Callable[[], Check],
    make_input: Callable[[int], Original],
    *,
    count: int,
    deadline: float,
    limits: Limits,
) -> Tally:
    """Feeds inputs 0 to `count` to workers, one at a time, until `deadline`.

    After a finding a fresh worker goes on with the next input: the old one may be dead,
    hung or harmed.

    Args:
      make_check: Makes what is called with each input, in the worker; picklable.
      make_input: Makes an input from its number, in the worker; picklable.
      count: Number of inputs.
      deadline: Of `time.monotonic`.
      limits: Of each input.
    """
    tally, start = Tally(), time.monotonic()
    while tally.fed < count and time.monotonic() < deadline:
        _feed_one_worker(make_check, make_input, tally, count, deadline, limits)
    tally.seconds = time.monotonic() - start
    return tally


def _feed_one_worker(make_check, make_input, tally, count, deadline, limits) -> None:
    # A fresh interpreter: a fork would share this one's memory and locks.
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    arguments = (theirs, make_check, make_input, tally.fed, count, limits)
    worker = context.Process(target=work, args=arguments, daemon=True)
    worker.start()
    theirs.close()  # so that a dead worker ends the pipe
    try:
        _await_start(ours)
        while tally.fed < count and time.monotonic() < deadline:
            answer = _answer(ours, worker, limits)
            tally.add(tally.fed, answer)
            if answer.harm:
                return
    finally:
        worker.kill()
        worker.join()
        ours.close()


def _await_start(pipe: Connection) -> None:
    try:
        started = pipe.poll(_START_LIMIT_S) and pipe.recv() is None
    except EOFError:
        started = False
    if not started:
        raise RuntimeError("a worker must start. Received: none. See what it printed above.")


def _answer(pipe: Connection, worker: multiprocessing.Process, limits: Limits) -> Answer:
    """Returns what the worker says of its next input, or what became of the worker."""
    if not pipe.poll(limits.time_s):
        return Answer(None, f"no end within {limits.time_s:g} s", limits.time_s, 0)
    try:
        answer = pipe.recv()
    except EOFError:
        worker.join()
        return Answer(None, f"the process died with exit code {worker.exitcode}", 0.0, 0)
    if answer.peak_mb > limits.memory_mb:
        harm = f"{answer.peak_mb} MiB of memory, over {limits.memory_mb}"
        return dataclasses.replace(answer, harm=answer.harm or harm)
    return answer


def work(
    pipe: Connection,
    make_check: Callable[[], Check],
    make_input: Callable[[int], Original],
    start: int,
    stop: int,
    limits: Limits,
) -> None:
    """Feeds inputs in this process and sends an `Answer` for each, after a first None."""
    check = make_check()
    make_input(start)  # the originals are made now, not on the clock
    _limit_address_space(limits.memory_mb)
    pipe.send(None)
    for number in range(start, stop):
        given = make_input(number)
        _forget_peak()
        begin, outcome, harm = time.monotonic(), None, None
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                outcome = check(given)
        except Exception as error:  # whatever it is, it is what is looked for
            harm = f"{type(error).__name__}: {error}"
        pipe.send(Answer(outcome, harm, time.monotonic() - begin, _status_mb("VmHWM")))


def _limit_address_space(memory_mb: int) -> None:
    size = (_status_mb("VmSize") + _ADDRESS_SPACE * memory_mb) << 20
    resource.setrlimit(resource.RLIMIT_AS, (size, size))


def _status_mb(name: str) -> int:
    """Returns a size that Linux keeps of this process, in MiB."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(rf"^{name}:\s+(\d+) kB$", status, re.MULTILINE)[1]) >> 10


def _forget_peak() -> None:
    # Linux: 5 sets VmHWM back to what is in use. Unlike getrusage, that is an input's own.
    Path("/proc/self/clear_refs").write_text("5")


def _print_tally(kind: str, tally: Tally, count: int) -> None:
    rate = tally.fed / tally.seconds if tally.seconds else 0
    stopped = "all fed" if tally.fed == count else f"stopped by --seconds, {count:,} asked for"
    print(f"{kind}: {tally.fed:,} inputs in {tally.seconds:.0f} s, {rate:.0f} a second; {stopped}")
    for outcome, number in tally.outcomes.most_common():
        print(f"  {number:>7,} {outcome}")
    print(f"  {len(tally.findings):>7,} findings")
    seconds, number = tally.slowest
    print(f"  slowest {seconds:.2f} s, input {number}; peak memory {tally.peak_mb:,} MiB")


def _save_findings(
    kind: str, tally: Tally, make_input: Callable[[int], Original], folder: Path
) -> None:
    for number, harm in tally.findings:
        folder.mkdir(parents=True, exist_ok=True)
        given = make_input(number)
        path = folder / f"{kind}-{number}-{given.name}"
        path.write_bytes(given.data)
        print(f"{path}: {harm}")


def replay(path: Path) -> None:
    """Feeds one saved input in this process, where a debugger sees what it does."""
    is_image = path.suffix.lower() in IMAGE_EXTENSIONS
    with tempfile.TemporaryDirectory() as scratch:
        check = CheckImages() if is_image else CheckManifests(scratch)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            print(check(Original(path.name, path.read_bytes())))


def main() -> int:
    """Feeds what the command line asks for; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="*", help="folders of images to damage too")
    parser.add_argument("--inputs", type=int, default=20_000, help="damaged images (20000)")
    parser.add_argument("--manifests", type=int, default=2000, help="damaged manifests (2000)")
    parser.add_argument("--seed", type=int, default=1, help="of the damage (1)")
    parser.add_argument("--seconds", type=float, default=900, help="ends by then, in s (900)")
    parser.add_argument("--time-limit-s", type=float, default=30, help="of an input, in s (30)")
    parser.add_argument("--memory-limit-mb", type=int, default=1024, help="in MiB (1024)")
    parser.add_argument("--findings", type=Path, default=Path("build/fuzz"), help="(build/fuzz)")
    parser.add_argument("--replay", type=Path, metavar="FILE", help="feed one saved input again")
    arguments = parser.parse_args()
    if arguments.replay:
        replay(arguments.replay)
        return 0
    return _fuzz(arguments)


def _fuzz(arguments: argparse.Namespace) -> int:
    limits = Limits(arguments.time_limit_s, arguments.memory_limit_mb)
    start, seed = time.monotonic(), arguments.seed
    images, manifests = MutatedImages(tuple(arguments.folders), seed), MutatedManifests(seed)
    found = 0
    with tempfile.TemporaryDirectory() as scratch:
        for kind, make_check, make_input, count, share in (
            ("manifests", partial(CheckManifests, scratch), manifests, arguments.manifests, 0.2),
            ("images", CheckImages, images, arguments.inputs, 1.0),
        ):
            deadline = start + share * arguments.seconds
            tally = feed(make_check, make_input, count=count, deadline=deadline, limits=limits)
            _print_tally(kind, tally, count)
            _save_findings(kind, tally, make_input, arguments.findings)
            found += len(tally.findings)
    return int(found > 0)


if __name__ == "__main__":
    sys.exit(main())
