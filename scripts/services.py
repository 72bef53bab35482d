"""Processes that listen on a port: started, waited for, and ended with all that they started."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

_READY_AFTER_S = 120.0
_ENDS_AFTER_S = 15.0
_LOOK_EVERY_S = 0.1


class ServiceError(Exception):
    """A service ended by itself, or was not ready in time."""


class Service:
    """A process in a group of its own, with what it starts.

    Attributes:
      log: File of all that it prints.
    """

    def __init__(self, command: Sequence[str], log: Path, env: Mapping[str, str] | None = None):
        """Starts the process.

        Args:
          command: Program and arguments.
          log: File to write, anew.
          env: Added to this process's environment.
        """
        self.log = log
        with open(log, "wb") as file:
            self._process = subprocess.Popen(
                command,
                env={**os.environ, **(env or {})},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )

    def wait_until(self, is_ready: Callable[[], bool], what: str) -> None:
        """Waits until it is ready.

        Raises:
          ServiceError: It has ended, or is not ready after two minutes.
        """
        end_s = time.monotonic() + _READY_AFTER_S
        while not is_ready():
            if (code := self._process.poll()) is not None:
                raise ServiceError(f"{what} ended with exit code {code}; see {self.log}.")
            if time.monotonic() > end_s:
                raise ServiceError(f"{what} was not ready in {_READY_AFTER_S:.0f} s: {self.log}.")
            time.sleep(_LOOK_EVERY_S)

    def kill(self) -> None:
        """Ends the process and all that it started, at once and unasked."""
        self._signal(signal.SIGKILL)
        self._process.wait()

    def stop(self) -> None:
        """Asks the process and all that it started to end; kills after 15 s what has not."""
        self._signal(signal.SIGTERM)
        end_s = time.monotonic() + _ENDS_AFTER_S
        while self._is_alive() and time.monotonic() < end_s:
            time.sleep(_LOOK_EVERY_S)
        self.kill()

    def _is_alive(self) -> bool:
        self._process.poll()
        return self._signal(0)

    def _signal(self, number: int) -> bool:
        """Sends a signal to the whole group; returns whether any of it is there."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)
            return True
        return False


def free_ports(number: int) -> list[int]:
    """Returns ports of this machine that nothing listens on at this moment."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for probe in sockets:
            probe.bind(("localhost", 0))
        return [probe.getsockname()[1] for probe in sockets]


def listens(port: int) -> bool:
    """Returns whether anything on this machine listens on a port."""
    with contextlib.suppress(OSError), socket.create_connection(("localhost", port), 1.0):
        return True
    return False


def start_beam_module(module: str, *options: str, port: int, log: Path) -> Service:
    """Starts a module of Beam that listens on a port, and waits until it does."""
    env = {
        # A pool starts its workers by the name `python`.
        "PATH": os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]]),
        # As `prescreen` itself sets them; a worker does not go through it.
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "TF_CPU_ALLOCATOR_USE_BFC": "true",
    }
    service = Service([sys.executable, "-m", module, *options], log, env)
    try:
        service.wait_until(lambda: listens(port), module)
    except BaseException:
        service.kill()
        raise
    return service
