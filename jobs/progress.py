"""What an operator sees of a run: a progress bar, lines now and then, or JSON."""

import datetime
import json
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import click
from tqdm import tqdm

from jobs.command import SHOW_FAILURE
from jobs.signals import stop_on_signals
from pipeline.progress import PROGRESS

_BAR_SECONDS = 0.5
_LINE_SECONDS = 30.0


@contextmanager
def shown(context: click.Context, *, log_json: bool, quiet: bool) -> Iterator["Display"]:
    """Gives what shows a run, which a signal ends in good order meanwhile."""
    display = JsonLines() if log_json else Display() if quiet else Console()
    if log_json:
        context.meta[SHOW_FAILURE] = display
    with display, stop_on_signals(display):
        yield display


class Display:
    """Shows nothing; others show a run's events, and its progress from `scoring` to `scored`.

    A context manager: what it shows ends with the run, however that ends.
    """

    def __init__(self):
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> "Display":
        return self

    def __exit__(self, *_) -> None:
        self._end_progress()

    def __call__(self, event: str, **facts) -> None:
        """Takes an event; see `pipeline.events.Report`."""
        if event in ("scored", "handed_over"):
            self._end_progress()
        self.show(event, facts)
        if event == "scoring":
            PROGRESS.reset()
            follow = (facts["images"], self._ended)
            self._thread = threading.Thread(
                target=self.follow, args=follow, daemon=True, name="progress"
            )
            self._thread.start()

    def show(self, event: str, facts: dict) -> None:
        """Shows an event."""

    def follow(self, total: int, ended: threading.Event) -> None:
        """Shows how many of `total` images are done until `ended`."""

    def _end_progress(self) -> None:
        self._ended.set()
        if self._thread:
            self._thread.join()


class Console(Display):
    """For people: lines, and a bar on a terminal."""

    def show(self, event: str, facts: dict) -> None:
        """Prints a line where there is something to say."""
        line = _line(event, facts)
        if line:
            print(line, file=sys.stderr, flush=True)

    def follow(self, total: int, ended: threading.Event) -> None:
        """Draws a bar, or prints a line now and then."""
        if sys.stderr.isatty():
            _draw_bar(total, ended)
            return
        start = time.monotonic()
        while not ended.wait(_LINE_SECONDS):
            print(_progress_line(total, time.monotonic() - start), file=sys.stderr, flush=True)


class JsonLines(Display):
    """For machines: a JSON object a line on standard error."""

    def __init__(self):
        super().__init__()
        self._run_id: str | None = None

    def show(self, event: str, facts: dict) -> None:
        """Prints an event as one line."""
        if event in ("run_started", "run_resumed"):
            self._run_id = facts["run_id"]
        level = "error" if event == "failed" else "info"
        print_json(level, event, {"run_id": self._run_id, **facts})

    def follow(self, total: int, ended: threading.Event) -> None:
        """Prints the numbers now and then."""
        while not ended.wait(_LINE_SECONDS):
            counts = PROGRESS.counts()
            self.show(
                "progress",
                {
                    "images": total,
                    "scored": counts.get("scores", 0),
                    "rejected": counts.get("rejects", 0),
                },
            )


def print_json(level: str, event: str, facts: dict) -> None:
    """Prints one line of the JSON log."""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
    line = json.dumps({"time": now, "level": level, "event": event, **facts})
    print(line, file=sys.stderr, flush=True)


def _line(event: str, facts: dict) -> str | None:
    match event:
        case "run_finished_earlier":
            return f"Finished the commit of run {facts['run_id']}, which had been interrupted."
        case "run_resumed":
            return f"Going on with run {facts['run_id']}."
        case "dicom_shown":
            return f"The DICOM objects of run {facts['run_id']}, left hidden, are in place now."
        case "published_already":
            return f"Run {facts['run_id']} is published already; nothing is left to do."
        case "parts_discarded":
            return (
                f"{facts['parts']} staged parts of {facts['table']} were broken and are discarded;"
                " their images are scored again."
            )
        case "planned" if facts["kept"] or facts["skipped"]:
            return (
                f"{facts['kept']} images were scored by earlier attempts,"
                f" {facts['skipped'] or 0} are held by earlier runs."
            )
        case "planning":
            return f"{facts['step'].capitalize()}."
        case "scoring":
            return f"Scoring {facts['images']} images on {facts['runner']}."
        case "stopping":
            return "Stopping once the batch is done. Once more to end at once."
    return None


def _draw_bar(total: int, ended: threading.Event) -> None:
    with tqdm(total=total, unit="image", file=sys.stderr, dynamic_ncols=True) as bar:
        last = False
        while not last:
            last = ended.wait(_BAR_SECONDS)
            counts = PROGRESS.counts()
            bar.set_postfix(rejected=counts.get("rejects", 0), refresh=False)
            bar.update(sum(counts.values()) - bar.n)


def _progress_line(total: int, elapsed: float) -> str:
    counts = PROGRESS.counts()
    done = sum(counts.values())
    rate = done / elapsed
    left = f"{(total - done) / rate / 60:.0f} min left" if done else "starting"
    return (
        f"{done} of {total} images, {counts.get('rejects', 0)} rejected,"
        f" {rate:.1f} images/s, {left}"
    )
