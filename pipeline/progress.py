"""How far a local run is: Beam's own counters are only there at its end."""

import threading


class Progress:
    """Counts rows by table; read by whoever draws a progress bar.

    Workers in this process count here; the parent of others adds what they tell
    (`pipeline.workers`). A runner elsewhere has its own display.
    """

    def __init__(self):
        self._lock = threading.Lock()
        self._counts: dict[str, int] = {}

    def add(self, table: str, rows: int = 1) -> None:
        """Counts more rows of `table`."""
        with self._lock:
            self._counts[table] = self._counts.get(table, 0) + rows

    def counts(self) -> dict[str, int]:
        """Returns the number of rows so far, by table."""
        with self._lock:
            return dict(self._counts)

    def reset(self) -> None:
        """Forgets all counts, for the next run of this process."""
        with self._lock:
            self._counts.clear()


PROGRESS = Progress()
"""Of the run in this process. DoFns are pickled, so they cannot carry it."""
