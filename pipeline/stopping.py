"""The wish to stop: by a signal, or by whoever started the run."""

from collections.abc import Iterable, Iterator


class Stop:
    """Asked for in one thread, seen by those that work.

    Once it is requested, what loads images takes no row in and gives no image more;
    what it has given is scored and staged as ever, so the pipeline ends soon and
    without an error, short of some rows. So whoever runs a pipeline looks here at its
    end: after a request nothing is committed. The rows left out are in no part of the
    ledger, and a resume scores them: none is lost.

    Workers in this process see it, and `pipeline.workers` tells others. A runner elsewhere is
    stopped by its own means.
    """

    def __init__(self):
        # No lock, and so no Event: a signal's handler could find it taken by its own thread.
        self._requested = False

    @property
    def requested(self) -> bool:
        """Whether the run is to stop."""
        return self._requested

    def request(self) -> None:
        """Asks the run to stop; safe in a signal's handler."""
        self._requested = True

    def reset(self) -> None:
        """Forgets the request, for the next run of this process."""
        self._requested = False

    def until_requested(self, results: Iterable) -> Iterator:
        """Gives `results` until a stop is requested; one that came too late is dropped."""
        if self.requested:
            return
        for result in results:
            if self.requested:
                return
            yield result


STOP = Stop()
"""Of the run in this process. DoFns are pickled, so they cannot carry it."""
