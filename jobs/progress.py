"""A progress bar on a terminal, a line now and then elsewhere."""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from tqdm import tqdm

from pipeline.progress import PROGRESS

_BAR_SECONDS = 0.5
_LINE_SECONDS = 30.0


def show_progress(quiet: bool) -> Callable[[int, str], AbstractContextManager]:
    """Returns what shows the progress of `total` images on a runner while it is entered."""
    return (lambda total, runner: nullcontext()) if quiet else _progress


@contextmanager
def _progress(total: int, runner: str) -> Iterator[None]:
    print(f"Scoring {total} images on {runner}.", file=sys.stderr)
    PROGRESS.reset()
    stop = threading.Event()
    show = _draw_bar if sys.stderr.isatty() else _print_lines
    thread = threading.Thread(target=show, args=(total, stop), daemon=True, name="progress")
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _draw_bar(total: int, stop: threading.Event) -> None:
    with tqdm(total=total, unit="image", file=sys.stderr, dynamic_ncols=True) as bar:
        ended = False
        while not ended:
            ended = stop.wait(_BAR_SECONDS)
            counts = PROGRESS.counts()
            bar.set_postfix(rejected=counts.get("rejects", 0), refresh=False)
            bar.update(sum(counts.values()) - bar.n)


def _print_lines(total: int, stop: threading.Event) -> None:
    start = time.monotonic()
    while not stop.wait(_LINE_SECONDS):
        counts = PROGRESS.counts()
        done, elapsed = sum(counts.values()), time.monotonic() - start
        rate = done / elapsed
        left = f"{(total - done) / rate / 60:.0f} min left" if done else "starting"
        print(
            f"{done} of {total} images, {counts.get('rejects', 0)} rejected,"
            f" {rate:.1f} images/s, {left}",
            file=sys.stderr,
            flush=True,
        )
