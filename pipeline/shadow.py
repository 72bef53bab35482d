"""Planning beside an OUTPUT: what it reads is linked into a folder where it may write.

A plan of work writes into the staging of its run. A start that only tells what it would do
must leave nothing in OUTPUT, so its run is a shadow, elsewhere.
"""

import dataclasses
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.layout import TABLES, Output, RunPaths, staged_parts, staged_runs
from pipeline.mirror import existing_output, fetch
from pipeline.run_state import read_record
from pipeline.staging import is_whole
from pipeline.starting import check_output


@contextmanager
def read_output(place: str) -> Iterator[Output]:
    """Gives the place of all runs to read from; it need not exist, and is not made.

    Raises:
      InputError: It cannot hold runs.
      OutputError: A store does not answer.
    """
    check_output(place)
    with existing_output(place) as output:
        yield output


def prepared_runs(output: Output) -> list[dict]:
    """Returns the records of commits that were interrupted, which the next start finishes."""
    prepared = [
        paths.prepared
        for paths in staged_runs(output)
        if paths.prepared.exists() and not paths.record.exists()
    ]
    return [read_record(path) for path in prepared]


def shadow_run(paths: RunPaths, records: Iterable[dict], folder: Path) -> RunPaths:
    """Returns the paths of a run below a folder where what is planned with is linked.

    Args:
      paths: Of the run, in OUTPUT. Its staged parts are linked, but for broken ones.
      records: Of runs that are published, or prepared; their tables are linked.
      folder: New, on this machine.
    """
    shadow = RunPaths(folder, paths.run_id)
    for record in records:
        run, twin = (dataclasses.replace(own, run_id=record["run_id"]) for own in (paths, shadow))
        for table in TABLES:
            published = run.published(table)
            fetch(run, published)
            source = published if published.exists() else run.built(table)
            _link(source, twin.published(table))
    for table in TABLES:
        fetch(paths, paths.parts(table))
        for part in filter(is_whole, staged_parts(paths.parts(table))):
            _link(Path(part), shadow.parts(table) / Path(part).name)
    return shadow


def _link(source: Path, link: Path) -> None:
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(source)
