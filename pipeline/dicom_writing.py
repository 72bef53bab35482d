"""What was drawn of a run as DICOM objects, into the folder of a reading room."""

import dataclasses
import datetime
import functools
import glob
import os
import shutil
import typing
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

import duckdb
import pyarrow.parquet as pq

from model.dicom import is_dicom
from model.overlays import overlay_name
from pipeline.budget import Budget
from pipeline.database import connect
from pipeline.drawing import SOURCE_CHANGED
from pipeline.elements import ReadImage, row_of
from pipeline.images import MOST_READ_BYTES
from pipeline.job import ScoringJob
from pipeline.layout import sync, sync_tree
from pipeline.quality import is_gated
from pipeline.read_ahead import ReadAhead, TimedOut
from pipeline.reading_room import ReadingRoomError, hidden_folder
from pipeline.record import ModelFacts
from pipeline.shard_reader import images_of
from pipeline.sharding import in_shards, write_row_groups
from pipeline.shared_files import open_shared
from pipeline.source import read_source
from pipeline.stopping import STOP
from pipeline.watch import Watch
from schemas.findings import FINDINGS, score_column
from schemas.rejects import ImageError

if typing.TYPE_CHECKING:
    # Of an extra.
    from model.dicom_out import DicomObject, Producer

_ROWS_A_GROUP = 64

NOT_DICOM = "not_dicom"
"""The image is of another format: there is nothing to refer to."""

GATED = "gated"
"""Its scores are not to be believed."""

UNUSABLE_HEADER = "unusable_header"
"""It lacks what a reference needs, or says something against the standard."""

SAME_INSTANCE = "same_instance"
"""Another image of the run has the same SOPInstanceUID, and its objects stand for both."""

NOT_BUILT = "not_built"
"""Its header is in order as far as it is checked, and no object can be made all the same."""


@dataclasses.dataclass(frozen=True, slots=True)
class _Shown:
    """An image whose objects are to be made.

    Attributes:
      uri: Where it is.
      source_version: Which version of it was scored.
      scores: 15, in the order of `FINDINGS`.
      findings: Those flagged, highest score first.
      drawn: Those of them with an overlay.
    """

    image_id: str
    uri: str
    source_version: str
    scores: list[float]
    findings: list[str]
    drawn: list[str]


def write_objects(
    room: Path,
    job: ScoringJob,
    scores: list[Path],
    model: ModelFacts,
    *,
    gated_last: bool,
    started: datetime.datetime,
    go_on: str,
) -> dict:
    """Writes the objects of the images that were drawn into the hidden folder; returns counts.

    Whatever an earlier attempt has left there is removed first. After a request to stop
    (`pipeline.stopping`) no more is written.

    Args:
      room: The folder.
      job: What was scored.
      scores: The scores table as it will be published.
      model: What made it.
      gated_last: Whether images are kept apart whose scores are not to be believed.
      started: When the run began.
      go_on: How to begin again after an error, for its message.

    Raises:
      ReadingRoomError: The folder cannot be written.
    """
    from model.dicom_out import Producer

    producer = Producer(
        run_id=job.paths.run_id,
        title=model.title,
        statement=model.statement,
        model_id=job.scorer.model_id,
        software_version=metadata.version("prescreen"),
        made=started.astimezone(),
    )
    plan = job.paths.commit / "shown.parquet"
    with connect(job.paths.commit) as connection:
        groups, gated = _plan(connection, scores, job.paths.manifest, gated_last, plan)
    hidden = hidden_folder(room, job.paths.run_id)
    left_out = Counter({GATED: gated} if gated else {})
    images = objects = 0
    seen = set()
    writing = functools.partial(_writing, job.paths.run_id, go_on)
    with writing():
        if hidden.exists():
            shutil.rmtree(hidden)
    for made in STOP.until_requested(_make_all(plan, groups, job, producer)):
        # The report is last, and one an instance.
        reason = made if isinstance(made, str) else SAME_INSTANCE if made[-1].uid in seen else None
        if reason:
            left_out[reason] += 1
            continue
        seen.add(made[-1].uid)
        with writing():
            for one in made:
                _write(hidden / one.study / f"{one.uid}.dcm", one.data)
        images, objects = images + 1, objects + len(made)
    with writing():
        if hidden.exists():
            sync_tree(hidden)
            sync(room)
    return {
        "dicom_images": images,
        "dicom_objects": objects,
        "dicom_not_written": dict(left_out.most_common()),
    }


@contextmanager
def _writing(run_id: str, go_on: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ReadingRoomError(
            f"The DICOM objects of run {run_id} could not be written to --dicom-out"
            f" ({error.strerror}). Nothing was published; what was scored is kept. Mend it."
            f" {go_on}, or without --dicom-out to publish without them."
        ) from error


def _plan(
    connection: duckdb.DuckDBPyConnection,
    scores: list[Path],
    manifest: Path,
    gated_last: bool,
    plan: Path,
) -> tuple[int, int]:
    """Writes which images were drawn; returns the row groups, and how many are kept apart."""
    columns = ", ".join(f's."{score_column(finding)}"' for finding in FINDINGS)
    drawn = "list_filter(cams, lambda _cam: _cam.overlay IS NOT NULL)"
    query = (
        f"SELECT s.image_id, m.uri, source_version, [{columns}] AS scores, findings,"
        f" list_transform({drawn}, lambda _cam: _cam.finding) AS drawn,"
        f" {is_gated(gated_last)} AS gated FROM read_parquet(?, hive_partitioning=false) s"
        " JOIN read_parquet(?, hive_partitioning=false) m ON m.image_id = s.image_id"
        f" WHERE len({drawn}) > 0"
    )
    params = [[str(path) for path in scores], glob.escape(str(manifest))]
    [(gated,)] = connection.execute(
        f"SELECT count(*) FROM ({query}) WHERE gated", params
    ).fetchall()
    groups = write_row_groups(
        connection,
        f"SELECT * FROM ({query}) WHERE NOT gated",
        params,
        columns=[field.name for field in dataclasses.fields(_Shown)],
        order="image_id",
        path=plan,
        rows_a_group=_ROWS_A_GROUP,
    )
    return groups, gated


def _make_all(
    plan: Path, groups: int, job: ScoringJob, producer: "Producer"
) -> Iterator["list[DicomObject] | str"]:
    """Gives of each image its objects, or why there are none; reads in threads."""
    thresholds = {name: value.threshold for name, value in job.thresholds.items()}
    held = Budget(MOST_READ_BYTES)

    def make(item: _Shown | ReadImage, watch: Watch) -> "list[DicomObject] | str":
        try:
            return _make(item, watch, job, thresholds, producer)
        finally:
            held.give_back(watch)

    ahead = ReadAhead(make, threads=job.decode_threads, depth=2 * job.decode_threads)
    try:
        for group in range(groups):
            rows = pq.ParquetFile(plan).read_row_group(group).to_pylist()
            for work in in_shards(_Shown(**row) for row in rows):
                for item, watch in images_of(work, held):
                    yield from map(_outcome, ahead.put(item, watch))
        yield from map(_outcome, ahead.drain())
    finally:
        ahead.close()


def _outcome(found: "list[DicomObject] | str | TimedOut") -> "list[DicomObject] | str":
    return str(found.error.reason) if isinstance(found, TimedOut) else found


def _make(
    item: _Shown | ReadImage,
    watch: Watch,
    job: ScoringJob,
    thresholds: dict[str, float],
    producer: "Producer",
) -> "list[DicomObject] | str":
    from model.dicom_out import FlaggedFinding, make_objects
    from model.dicom_source import read_source_header

    image = row_of(item)
    try:
        source = item.source if isinstance(item, ReadImage) else read_source(item.uri, watch)
        if isinstance(source, ImageError):
            raise source
    except ImageError as error:
        return str(error.reason)
    # Not to be given up from here on: the rest is in memory, and short.
    watch.begin(None)
    if source.version.version != image.source_version:
        return SOURCE_CHANGED
    if not is_dicom(source.data):
        return NOT_DICOM
    try:
        header = read_source_header(source.data)
    except ImageError:
        return UNUSABLE_HEADER
    flagged = [
        FlaggedFinding(
            finding,
            image.scores[FINDINGS.index(finding)],
            thresholds[finding],
            _overlay(job, image.image_id, finding) if finding in image.drawn else None,
        )
        for finding in image.findings
    ]
    try:
        return make_objects(header, flagged, producer)
    except Exception:  # neither library names a set of errors, and their texts may quote values
        return NOT_BUILT


def _overlay(job: ScoringJob, image_id: str, finding: str) -> bytes:
    path = job.paths.drawn / overlay_name(image_id, finding)
    with open_shared(job.paths.shared(path)) as file:
        return file.read()


def _write(path: Path, data: bytes) -> None:
    """Writes a file that nobody but its owner may read."""
    for folder in (path.parent.parent, path.parent):
        folder.mkdir(mode=0o700, exist_ok=True)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(data)
