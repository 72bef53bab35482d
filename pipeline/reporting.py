"""Reports of runs that are published already."""

from contextlib import ExitStack
from pathlib import Path

from model.object_store import SCHEME
from pipeline.comparison import EarlierRun, check_comparable, earlier_run
from pipeline.layout import Output, RunPaths
from pipeline.mirror import existing_output, fetch, published_run
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
        opened, paths = _open(run, held)
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


def _open(run: str, held: ExitStack) -> tuple[Output, RunPaths]:
    """Returns the OUTPUT of a run and the run's paths in it; `held` ends what is opened."""
    place = run if run.startswith(SCHEME) else str(Path(run).absolute())
    folder, _, name = place.rpartition("/")
    if not folder.endswith("/runs") or not name.endswith(".json"):
        raise InputError(f"RUN must be a record, OUTPUT/runs/ID.json. Received: {run}.")
    opened = held.enter_context(existing_output(folder.removesuffix("/runs")))
    return opened, opened.run(name.removesuffix(".json"))


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
