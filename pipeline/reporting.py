"""Reports of runs that are published already."""

from contextlib import ExitStack
from pathlib import Path

from model.object_store import SCHEME
from pipeline.comparison import EarlierRun, check_comparable, earlier_run
from pipeline.layout import RunPaths
from pipeline.mirror import fetch, published_run, run_in_output
from pipeline.report import make_report, write_report
from pipeline.report_tables import published_tables, worklist_of
from pipeline.run_state import read_record
from schemas.errors import InputError


def report_run(run: str, output: str | None, against: str | None) -> Path:
    """Writes the report of a published run, and returns where.

    Args:
      run: Its record, `OUTPUT/runs/ID.json`; a local path or a `gs://` uri.
      output: File to write; None for the run's own place, where that is here and free.
      against: Record of a run to compare with; None for the newest comparable one before.

    Raises:
      InputError: A run or a file cannot be read, the runs cannot be compared, or the place
        is taken or cannot be written.
      OutputError: A store refuses, or does not answer.
    """
    with ExitStack() as held:
        opened, paths = held.enter_context(run_in_output(run))
        record = read_record(paths.record)
        path = Path(output) if output else _own_place(paths, record)
        _fetch_run(paths)
        earlier = _against(against, record, held) if against else earlier_run(opened, record)
        tables = published_tables(paths, record)
        missing = [file for file in (*tables.scores, *tables.rejects) if not file.is_file()]
        if missing:
            raise InputError(
                "a run must have the files that its record lists. Received: RUN without"
                f" {paths.name_of(missing[0])}. Restore it; `prescreen verify` finds what is amiss."
            )
        report = make_report(record, tables, earlier)
    try:
        write_report(report, path)
    except OSError as error:
        raise InputError(
            f"--output must be a file that can be written. Received: {path} ({error.strerror})."
        ) from error
    return path


def _fetch_run(paths: RunPaths) -> None:
    for kind in ("scores", "rejects", "gradcam"):
        fetch(paths, paths.published(kind))
    fetch(paths, worklist_of(paths))


def _own_place(paths: RunPaths, record: dict) -> Path:
    path = paths.published("report") / f"run_id={paths.run_id}.html"
    if paths.store:
        raise InputError(f"--output must name a file here for a run on {SCHEME}. Received: none.")
    if any(file["path"] == paths.name_of(path) for file in record["files"]):
        raise InputError(
            "--output must be given for a run that published its report, which stays as it is:"
            f" {path}. Received: none."
        )
    return path


def _against(against: str, record: dict, held: ExitStack) -> EarlierRun:
    path = held.enter_context(published_run(against))
    other = read_record(path)
    check_comparable(other, record)
    paths = RunPaths(path.absolute().parents[1], other["run_id"])
    return EarlierRun(other, published_tables(paths, other), named=True)
