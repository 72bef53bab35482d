"""`prescreen`, counted, slowed or disturbed: what `nothing_lost` starts and kills.

Usage: python scripts/nothing_lost_child.py [--counter FILE] [--pause-s S] [--flaky SEED]
       -- score ARGUMENTS

The changes go in after TensorFlow is loaded, as `score` loads it, so that a process starts,
logs and ends as ever.
"""

import argparse
import errno
import functools
import mmap
import os
import random
import struct
import sys
import threading
from pathlib import Path

import jobs.score
from jobs.cli import cli

FAILS, HANGS = 0.2, 0.01
"""Share of reads of the flaky store that fail, and of those that never end."""

_COUNT = struct.Struct("Q")


def create_counter(path: Path) -> None:
    """Writes a counter that stands at zero; processes that follow each other share it."""
    path.write_bytes(_COUNT.pack(0))


def read_counter(path: Path) -> int:
    """Returns the number of images that went through the network."""
    return _COUNT.unpack(path.read_bytes())[0]


def fate_of_read(seed: int, name: str, attempt: int) -> str:
    """Returns what the flaky store does: `hang`, `fail` or `read`.

    It follows from the arguments, so that whoever started the process knows it too.

    Args:
      seed: Of the store.
      name: Of the file, without its folder.
      attempt: How often that file has been opened before, 0 at first.
    """
    chance = random.Random(f"{seed} {attempt} {name}").random()
    return "hang" if chance < HANGS else "fail" if chance < HANGS + FAILS else "read"


def count_images(counter: str) -> None:
    """Counts images that come out of the network, in a file: a kill does not lose those."""
    from model.scorer import Scorer

    file = os.open(counter, os.O_RDWR)
    shared, lock, score = mmap.mmap(file, _COUNT.size), threading.Lock(), Scorer.score

    @functools.wraps(score)
    def score_and_count(self, images):
        scores = score(self, images)
        with lock:
            _COUNT.pack_into(shared, 0, _COUNT.unpack_from(shared)[0] + len(images))
        return scores

    Scorer.score = score_and_count


def pause_publishing(seconds: float) -> None:
    """Waits after each step of publishing, so that a kill can come between two of them."""
    for name in ("rename", "replace"):
        setattr(os, name, _pausing(getattr(os, name), seconds))


def _pausing(move, seconds: float):
    @functools.wraps(move)
    def move_and_pause(source, target, **options):
        move(source, target, **options)
        if is_step_of_publishing(Path(target)):
            threading.Event().wait(seconds)

    return move_and_pause


def is_step_of_publishing(target: Path) -> bool:
    """Returns whether what was moved there is the state of a commit, or published."""
    return target.name == "prepared.json" or "_staging" not in target.parts


def make_store_flaky(seed: int) -> None:
    """Makes opening a file of the archive fail or hang as `fate_of_read` says."""
    import model.reading

    attempts: dict[str, int] = {}

    def open_or_not(path, *arguments, **options):
        name = Path(path).name
        attempt = attempts[name] = attempts.get(name, -1) + 1  # one thread an image
        match fate_of_read(seed, name, attempt):
            case "hang":
                threading.Event().wait()
            case "fail":
                raise OSError(errno.EIO, os.strerror(errno.EIO))
        return open(path, *arguments, **options)

    model.reading.open = open_or_not


def main() -> None:
    """Runs `prescreen` with the changes that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--counter", metavar="FILE", help="counts images scored")
    parser.add_argument("--pause-s", type=float, help="after each step of publishing")
    parser.add_argument("--flaky", type=int, metavar="SEED", help="of a store that fails")
    parser.add_argument("arguments", nargs="+", help="of prescreen")
    given = parser.parse_args()
    load = jobs.score.load_tensorflow

    def load_and_change(**options):
        load(**options)
        if given.counter is not None:
            count_images(given.counter)
        if given.pause_s is not None:
            pause_publishing(given.pause_s)
        if given.flaky is not None:
            make_store_flaky(given.flaky)

    jobs.score.load_tensorflow = load_and_change
    sys.exit(cli(given.arguments, prog_name="prescreen"))


if __name__ == "__main__":
    main()
