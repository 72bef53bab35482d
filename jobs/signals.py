"""Stopping in good order when the operator or the system asks for it."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pipeline.stopping import STOP

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def stop_on_signals(report: Callable[..., None]) -> Iterator[None]:
    """Makes SIGINT and SIGTERM stop the run; a second one ends the process as ever."""
    before = {number: signal.getsignal(number) for number in _SIGNALS}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def request_stop(number: int, _) -> None:
        restore()
        report("stopping", signal=signal.Signals(number).name)
        STOP.request()

    STOP.reset()
    for number in _SIGNALS:
        signal.signal(number, request_stop)
    try:
        yield
    finally:
        restore()
