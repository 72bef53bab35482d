"""One process a run: the second is refused, a dead one's place is taken."""

import dataclasses
import fcntl
import json
import os
import socket
import threading
import time
import uuid
from pathlib import Path

from schemas.errors import InputError

HEARTBEAT_S = 15.0
DEAD_AFTER_S = 120.0
"""A process on another machine that shows no sign of life for so long is dead."""

_TRIES, _TRY_AGAIN_S = 5, 0.1
"""Whoever lists runs holds the lock for a moment."""


TAKEN_OVER = (
    "Another process took this run over, or may have, since this one had shown no sign of life"
    f" for {DEAD_AFTER_S:.0f} s. Nothing was published by this one."
)


class LockLostError(Exception):
    """Another machine took this run over, as this process had shown no sign of life."""


@dataclasses.dataclass(frozen=True)
class Holder:
    """The process that works on a run.

    Attributes:
      host: Name of its machine.
      process: Its number there.
      token: Tells it from any other process.
      age_s: Seconds since its last sign of life.
    """

    host: str
    process: int
    token: str
    age_s: float

    def __str__(self) -> str:
        return f"process {self.process} on {self.host}, last seen {self.age_s:.0f} s ago"


class RunLock:
    """Held while a process works on a run; a context manager.

    The operating system's lock on the file tells processes of one machine, and of
    machines whose file system shares locks, and ends with the process however that
    ends. A heartbeat in the file tells machines that share no locks.
    """

    def __init__(self, path: Path):
        """Names the lock's file; its folder is made where it is missing."""
        self._path = path
        self._token = uuid.uuid4().hex
        self._lost = False
        self._stop = threading.Event()

    def __enter__(self) -> "RunLock":
        """Takes the lock.

        Raises:
          InputError: A living process holds it.
        """
        self._file = self._acquire()
        self._beat()
        self._thread = threading.Thread(target=self._keep_alive, daemon=True, name="heartbeat")
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._stop.set()
        self._thread.join()
        if not self._lost:
            self._path.unlink(missing_ok=True)
        os.close(self._file)

    def check(self) -> None:
        """Raises if the run belongs to another process by now.

        Raises:
          LockLostError: It does: this one must not publish.
        """
        if self._lost:
            raise LockLostError(TAKEN_OVER)

    def _acquire(self) -> int:
        for remaining in reversed(range(_TRIES)):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
            holder = _living_holder(self._path, file, fcntl.LOCK_EX)
            if holder is None and _is_at(self._path, file):
                return file
            os.close(file)
            if holder is not None and not remaining:
                raise InputError(
                    "a run must be worked on by one process at a time. Received:"
                    f" run {self._path.parent.name}, held by {holder}. Wait for it to end, or"
                    " stop it, then run again with --resume."
                )
            time.sleep(_TRY_AGAIN_S)
        raise InputError(
            f"run {self._path.parent.name} must not be finished by another process while this"
            " one starts. Received: a lock that went away. Run again."
        )

    def _beat(self) -> None:
        content = {"host": socket.gethostname(), "process": os.getpid(), "token": self._token}
        # In place: the lock is on this very file.
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, json.dumps(content).encode(), 0)

    def _keep_alive(self) -> None:
        while not self._stop.wait(HEARTBEAT_S):
            content = _read(self._path)
            if content is None or content["token"] != self._token:
                self._lost = True
                return
            self._beat()


def find_holder(path: Path) -> Holder | None:
    """Returns the living process that holds a lock, or None."""
    try:
        file = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        return _living_holder(path, file, fcntl.LOCK_SH)
    finally:
        os.close(file)


def _living_holder(path: Path, file: int, kind: int) -> Holder | None:
    """Takes the lock on an open file, or returns who has it."""
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return _holder(path) or Holder("this machine", 0, "", 0.0)
    holder = _holder(path)
    if holder is None or holder.host == socket.gethostname():
        return None  # the system has let go of it, so its process has ended
    return holder if holder.age_s < DEAD_AFTER_S else None


def _holder(path: Path) -> Holder | None:
    content = _read(path)
    if content is None:
        return None
    # Clocks of machines may differ by less than `DEAD_AFTER_S`.
    return Holder(**content, age_s=max(time.time() - os.stat(path).st_mtime, 0.0))


def _read(path: Path) -> dict | None:
    try:
        return json.loads(path.read_bytes())
    except (FileNotFoundError, json.JSONDecodeError):
        return None  # gone, or just being written


def _is_at(path: Path, file: int) -> bool:
    """Whether the open file still is the one at `path`, and not a removed one."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(file))
    except FileNotFoundError:
        return False
