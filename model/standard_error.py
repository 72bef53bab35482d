"""Holding back what libraries write to standard error from C++, past every log of Python's."""

import contextlib
import os
import sys
import tempfile
import threading
from collections.abc import Iterator
from typing import BinaryIO

_lock = threading.Lock()


@contextlib.contextmanager
def standard_error_to(file: BinaryIO) -> Iterator[None]:
    """Sends what this process writes to standard error into `file` instead, in all threads.

    A second thread that wants the same waits until the first is done.
    """
    with _lock:
        sys.stderr.flush()
        kept = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)


@contextlib.contextmanager
def standard_error_without(line: bytes) -> Iterator[None]:
    """Drops one line from what is written to standard error meanwhile; the rest comes late."""
    with tempfile.TemporaryFile() as held:
        try:
            with standard_error_to(held):
                yield
        finally:
            held.seek(0)
            rest = held.read().replace(line + b"\n", b"")
            if rest:
                os.write(2, rest)
