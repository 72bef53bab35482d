"""Images in archives that are read from the start: each archive once, by one worker."""

import collections
import contextlib
import queue
import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, BinaryIO

from model.reading import FileVersion, SourceFile
from pipeline.budget import Budget
from pipeline.elements import ReadImage, Shard
from pipeline.read_ahead import TIMEOUT_S
from pipeline.source import PAUSES_S, look_up, open_source
from pipeline.tar_files import Member, member_name, read_members
from pipeline.uris import is_gzipped, split_member
from pipeline.watch import GivenUp, Watch
from schemas.rejects import ImageError, Reason, Stage, TransientError

_TICK_S = 0.25


def images_of(work: Any, budget: Budget) -> Iterable[tuple[Any, Watch | None]]:
    """Returns what to read or decode, with its watch: a row as it is, a shard as it is read.

    Args:
      work: A row that names an image, or a `Shard` of them.
      budget: As for `ShardReader`.
    """
    return ShardReader(work, budget) if isinstance(work, Shard) else [(work, None)]


class ShardReader:
    """Reads a shard in a thread of its own, ahead of whoever takes the images.

    Every row of it is given once: in the archive's order those that are read, then those
    that cannot be. A read that brings nothing for `timeout_s` is given up, and with it the
    rest of the archive.
    """

    def __init__(
        self,
        shard: Shard,
        budget: Budget,
        *,
        timeout_s: float = TIMEOUT_S,
        sleep: Callable[[float], None] = time.sleep,
    ):
        """Begins to read.

        Args:
          shard: Its rows name members of its archive.
          budget: Of bytes; those of an image are taken for its watch, and given back by
            whoever decodes it.
          timeout_s: Seconds that a read may bring nothing.
          sleep: Waits for that many seconds.
        """
        self._shard = shard
        self._budget = budget
        self._timeout_s = timeout_s
        self._sleep = sleep
        self._left = collections.defaultdict(list)
        for row in shard.rows:
            self._left[member_name(split_member(row.uri)[1])].append(row)
        self._stream = Watch()  # how far the thread is in the archive
        self._version: FileVersion | None = None
        self._found: queue.SimpleQueue = queue.SimpleQueue()
        threading.Thread(target=self._work, daemon=True, name="shard").start()

    def __iter__(self) -> Iterator[tuple[ReadImage, Watch]]:
        """Gives each image and its watch, which has counted the attempts to read it."""
        left = {row.image_id: row for row in self._shard.rows}
        try:
            while (found := self._next()) is not None:
                if isinstance(found, BaseException):
                    raise found
                image, _ = found
                del left[image.row.image_id]
                yield found
        finally:
            self._abandon()
        for row in left.values():
            detail = f"the archive brought nothing for {self._timeout_s:.0f} s"
            watch = Watch()
            watch.attempts, watch.version = 1, self._version
            yield ReadImage(row, ImageError(Reason.READ_TIMEOUT, detail)), watch

    def _abandon(self) -> None:
        """Ends the thread, and frees what was taken for images that nobody took."""
        self._stream.is_given_up = True
        with contextlib.suppress(queue.Empty):
            while found := self._found.get_nowait():
                if not isinstance(found, BaseException):
                    self._budget.give_back(found[1])

    def _next(self) -> tuple[ReadImage, Watch] | BaseException | None:
        """Waits for what the thread found; None at the end, or if it is given up."""
        while True:
            try:
                return self._found.get(timeout=_TICK_S)
            except queue.Empty:
                if self._stream.give_up(self._timeout_s):
                    return None

    def _work(self) -> None:
        try:
            self._read()
        except GivenUp:
            return
        except BaseException as error:  # it is raised to whoever takes the images
            self._found.put(error)
        self._found.put(None)

    def _read(self) -> None:
        """Gives all rows, by as many attempts as an error that may pass is worth."""
        attempt = 0
        while self._left:
            attempt += 1
            left = len(self._left)
            try:
                self._read_once(attempt)
                error = ImageError(Reason.NOT_FOUND, "no member of that name in the archive")
            except TransientError as found:
                if len(self._left) < left:
                    attempt = 1  # it got further, and is stuck at another member
                if attempt <= len(PAUSES_S):
                    self._stream.begin(None)
                    self._sleep(random.uniform(0, PAUSES_S[attempt - 1]))
                    continue
                error = found
            except ImageError as found:
                error = found
            for name in list(self._left):
                self._give(name, error, self._version, attempt)

    def _read_once(self, attempt: int) -> None:
        """Gives what is left of the rows, as far as the archive can be read."""
        archive = self._shard.archive
        self._moved()
        self._version = None
        self._version = look_up(f"{archive}#")
        with open_source(archive) as file:
            members = read_members(_Moving(file, self._moved), gzipped=is_gzipped(archive))
            for member in members:
                if member.name in self._left:
                    self._read_member(member, attempt)
                if not self._left:
                    return

    def _read_member(self, member: Member, attempt: int) -> None:
        version = FileVersion(member.size_bytes, self._version.version)
        watch = Watch()
        try:
            member.check()
            self._stream.begin(None)  # waiting for memory is no fault of the archive
            self._budget.take(watch, member.size_bytes)
            self._moved()
            source = SourceFile(member.read(self._moved), version)
        except TransientError:
            self._budget.give_back(watch)
            raise
        except ImageError as error:
            source = error
        self._give(member.name, source, version, attempt, watch)

    def _give(
        self,
        name: str,
        source: SourceFile | ImageError,
        version: FileVersion | None,
        attempts: int,
        watch: Watch | None = None,
    ) -> None:
        """Hands on all rows of a member; the first has the watch that its bytes are taken for."""
        for row in self._left.pop(name):
            watch = watch or Watch()
            watch.begin(None)
            watch.attempts, watch.version = attempts, version
            self._found.put((ReadImage(row, source), watch))
            watch = None

    def _moved(self) -> None:
        self._stream.begin(Stage.READ)


class _Moving:
    """A file that tells of each piece read from it."""

    def __init__(self, file: BinaryIO, on_progress: Callable[[], None]):
        self._file = file
        self._on_progress = on_progress

    def read(self, size: int = -1) -> bytes:
        piece = self._file.read(size)
        self._on_progress()
        return piece
