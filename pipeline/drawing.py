"""Grad-CAM overlays of the flagged images that rank highest."""

import dataclasses
import enum
import functools
import glob
import hashlib
from collections.abc import Iterator
from pathlib import Path

import apache_beam as beam
import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from apache_beam.metrics import Metrics
from apache_beam.transforms.window import GlobalWindows
from PIL import Image

from model.decoding import decode_grey
from model.overlays import overlay_jpeg, overlay_name
from model.thresholds import Thresholds
from pipeline.budget import Budget
from pipeline.database import STAGED_PARTS
from pipeline.earlier_overlays import EarlierOverlays
from pipeline.elements import ReadImage, Shard, row_of
from pipeline.images import MOST_READ_BYTES, READS_RETRIED
from pipeline.layout import RunPaths
from pipeline.ledger import Ledger
from pipeline.mirror import discard, send
from pipeline.quality import is_gated
from pipeline.read_ahead import ReadAhead, TimedOut
from pipeline.runner import Runner
from pipeline.shard_reader import images_of
from pipeline.sharding import in_shards, write_row_groups
from pipeline.shared_files import make_shared_folder, open_shared, write_shared
from pipeline.source import read_source
from pipeline.staging import StageRows
from pipeline.stopping import STOP
from pipeline.watch import Watch
from schemas.findings import FINDINGS, score_column
from schemas.rejects import ImageError, Stage
from schemas.tables import CAM_SIDE

_ROWS_A_GROUP = 64
"""Images a row group of the drawing plan: the unit that goes to a worker."""

NO_ATTENTION = "no_attention"
"""The map of a finding is zero everywhere: there is nothing to draw."""

SOURCE_CHANGED = "source_changed"
"""The file is no longer the one that was scored."""

SOURCE_UNKNOWN = "source_unknown"
"""Nothing says where the file is: the run whose scores these are has kept uris to itself."""

MAP_MISSING = "map_missing"
"""The map of a finding could not be computed when its threshold was lowered."""


class Origin(enum.StrEnum):
    """What an overlay is."""

    DRAWN = "drawn"
    KEPT = "kept"
    """Of the earlier run, with a caption that is right."""
    OUTDATED = "outdated"
    """Of the earlier run, whose threshold its caption names: it could not be drawn again."""


DRAWN_SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("image_id", "finding", "overlay", "reason", "sha256")),
        ("size_bytes", pa.int64()),
        ("origin", pa.string()),
    ]
)
"""One row a finding to draw: the overlay relative to OUTPUT, or why there is none."""


@dataclasses.dataclass(frozen=True)
class DrawingSettings:
    """How much to draw, and what to say below it.

    Attributes:
      top: Findings an image, highest score first.
      limit: Images, highest rank first.
      note: A line under each overlay.
      earlier: What the run takes over of another one's overlays; None where it draws all.
      gated_last: Whether images whose scores are not to be believed rank behind all others.
    """

    top: int
    limit: int
    note: str
    earlier: EarlierOverlays | None = None
    gated_last: bool = True


def plan_drawings(
    connection: duckdb.DuckDBPyConnection,
    ledger: Ledger,
    settings: DrawingSettings,
    plan: Path,
    manifest: Path,
) -> int:
    """Writes which images to draw, in order of their rank; shards come last.

    Args:
      connection: Holds what the ledger kept.
      ledger: The staged parts.
      settings: How much to draw.
      plan: The Parquet file to write.
      manifest: The checked one. It says where the images are: scores may not.

    Returns:
      The number of row groups written to `plan`.
    """
    if not (ledger.parts["scores"] and settings.top and settings.limit):
        return 0
    scores = ", ".join(f's."{score_column(finding)}"' for finding in FINDINGS)
    query = (
        "WITH ranked AS ("
        f"SELECT s.image_id, source_version, [{scores}] AS scores, cams, abnormality,"
        f" {is_gated(settings.gated_last)} AS gated"
        f" FROM {STAGED_PARTS} s"
        " JOIN kept ON kept.part = s._part AND kept.number = s.file_row_number"
        " WHERE flagged ORDER BY gated, abnormality DESC, s.image_id LIMIT ?)"
        " SELECT ranked.image_id, m.uri, ranked.source_version, ranked.scores, ranked.cams,"
        " ranked.abnormality, ranked.gated FROM ranked"
        " JOIN read_parquet(?, hive_partitioning=false) m ON m.image_id = ranked.image_id"
    )
    return write_row_groups(
        connection,
        query,
        [ledger.parts["scores"], settings.limit, glob.escape(str(manifest))],
        columns=[field.name for field in dataclasses.fields(PlannedImage)],
        order="gated, abnormality DESC, image_id",
        path=plan,
        rows_a_group=_ROWS_A_GROUP,
    )


@dataclasses.dataclass(frozen=True, slots=True)
class PlannedImage:
    """An image to draw.

    Attributes:
      uri: Where it is; None where nobody knows, or needs to.
      source_version: Which version of it was scored.
      scores: 15, in the order of `FINDINGS`.
      cams: As in the scores table: those of flagged findings, highest score first.
    """

    image_id: str
    uri: str | None
    source_version: str
    scores: list[float]
    cams: list[dict]


class DrawOverlays(beam.PTransform):
    """Planned images and shards in; JPEGs, and a row of `DRAWN_SCHEMA` a finding, out.

    A retry writes the same files again. After a request to stop (`pipeline.stopping`)
    no more is drawn.
    """

    def __init__(
        self, paths: RunPaths, thresholds: Thresholds, settings: DrawingSettings, threads: int
    ):
        super().__init__()
        self._paths = paths
        self._thresholds = {name: value.threshold for name, value in thresholds.items()}
        self._settings = settings
        self._threads = threads

    def expand(self, planned):
        dofn = _DrawDoFn(self._paths, self._thresholds, self._settings, self._threads)
        return planned | beam.ParDo(dofn)


class _DrawDoFn(beam.DoFn):
    """Draws in threads: decoding and encoding let go of the interpreter."""

    def __init__(self, paths, thresholds, settings, threads):
        self._paths = paths
        self._thresholds = thresholds
        self._settings = settings
        self._threads = threads
        self._retried = Metrics.counter("prescreen", READS_RETRIED)

    def setup(self):
        self._ahead = ReadAhead(self._draw, threads=self._threads, depth=2 * self._threads)
        self._bytes = Budget(MOST_READ_BYTES)

    def process(self, work: PlannedImage | Shard):
        for item, watch in STOP.until_requested(images_of(work, self._bytes)):
            for drawn in STOP.until_requested(self._ahead.put(item, watch)):
                yield from self._rows(drawn)

    def finish_bundle(self):
        for drawn in STOP.until_requested(self._ahead.drain()):
            yield from map(GlobalWindows.windowed_value, self._rows(drawn))

    def teardown(self):
        self._ahead.close()

    def _draw(self, item: PlannedImage | ReadImage, watch: Watch) -> tuple[list[dict], Watch]:
        try:
            rows = draw_image(item, self._paths, self._thresholds, self._settings, watch)
            return list(rows), watch
        finally:
            self._bytes.give_back(watch)

    def _rows(self, drawn: tuple[list[dict], Watch] | TimedOut) -> list[dict]:
        if isinstance(drawn, TimedOut):
            rows, watch = list(self._without_source(drawn)), drawn.watch
        else:
            rows, watch = drawn
        self._retried.inc(watch.attempts - 1)
        return rows

    def _without_source(self, drawn: TimedOut) -> Iterator[dict]:
        planned, source = row_of(drawn.item), (None, drawn.error.reason)
        return _draw(planned, source, self._paths, self._thresholds, self._settings)


def draw_image(
    item: PlannedImage | ReadImage,
    paths: RunPaths,
    thresholds: dict[str, float],
    settings: DrawingSettings,
    watch: Watch,
) -> Iterator[dict]:
    """Draws the highest-scored findings of one image; gives a row of `DRAWN_SCHEMA` each."""
    planned, earlier = row_of(item), settings.earlier
    source = (None, SOURCE_UNKNOWN)
    if not (earlier and earlier.all_stay(planned.cams[: settings.top], thresholds)):
        source = _read_grey(item, watch)
    # Not to be given up from here on: a file written after that would be in no row.
    watch.begin(None)
    yield from _draw(planned, source, paths, thresholds, settings)


def _draw(
    planned: PlannedImage,
    source: tuple[Image.Image | None, str],
    paths: RunPaths,
    thresholds: dict[str, float],
    settings: DrawingSettings,
) -> Iterator[dict]:
    """Writes the overlays of an image: an earlier run's as it is, where that is right, else drawn.

    Args:
      source: The image, if there is one, and why a finding is not drawn.
    """
    grey, reason = source
    cams, earlier = planned.cams[: settings.top], settings.earlier
    known = earlier.read(cams) if earlier else {}
    for cam in cams:
        finding, missing, origin = cam["finding"], reason, Origin.DRAWN
        grid = np.array(cam["grid"], np.float32).reshape(CAM_SIDE, CAM_SIDE)
        if finding in known and earlier.is_right(finding, thresholds):
            jpeg, origin = known[finding], Origin.KEPT
        elif np.isnan(grid).any():
            jpeg, missing = None, MAP_MISSING
        elif grey is None:
            jpeg, origin = known.get(finding), Origin.OUTDATED
        else:
            jpeg = overlay_jpeg(
                grey,
                grid,
                finding=finding,
                score=planned.scores[FINDINGS.index(finding)],
                threshold=thresholds[finding],
                note=settings.note,
            )
        if jpeg is None:
            yield _not_drawn(planned, finding, missing)
            continue
        name = overlay_name(planned.image_id, finding)
        path = paths.drawn / name
        make_shared_folder(paths.shared(path.parent))
        write_shared(paths.shared(path), jpeg)
        yield {
            "image_id": planned.image_id,
            "finding": finding,
            "overlay": paths.name_of(paths.published("gradcam") / name),
            "reason": None,
            "sha256": hashlib.sha256(jpeg).hexdigest(),
            "size_bytes": len(jpeg),
            "origin": origin.value,
        }


def _not_drawn(planned: PlannedImage, finding: str, reason: str) -> dict:
    return {
        "image_id": planned.image_id,
        "finding": finding,
        "overlay": None,
        "reason": str(reason),
        "sha256": None,
        "size_bytes": None,
        "origin": None,
    }


def _read_grey(item: PlannedImage | ReadImage, watch: Watch) -> tuple[Image.Image | None, str]:
    """Returns the image if it still is the one scored, and why a finding is not drawn."""
    if row_of(item).uri is None:
        return None, SOURCE_UNKNOWN
    try:
        source = item.source if isinstance(item, ReadImage) else read_source(item.uri, watch)
        if isinstance(source, ImageError):
            return None, source.reason.value
        if source.version.version != row_of(item).source_version:
            return None, SOURCE_CHANGED
        watch.begin(Stage.DECODE)
        return decode_grey(source.data).image, NO_ATTENTION
    except ImageError as error:
        return None, error.reason.value


def draw_overlays(
    plan: Path,
    row_groups: int,
    paths: RunPaths,
    thresholds: Thresholds,
    settings: DrawingSettings,
    threads: int,
    runner: Runner,
) -> None:
    """Draws what `plan_drawings` planned, and stages the outcome as the table `drawn`."""
    discard(paths, paths.drawn)
    make_shared_folder(paths.shared(paths.drawn))
    if not row_groups:
        return
    send(paths, plan)
    read_plan = functools.partial(
        _read_plan,
        paths.shared(plan),
        settings,
        {name: value.threshold for name, value in thresholds.items()},
    )
    runner.run(
        lambda pipeline: (
            pipeline
            | "DrawingGroups" >> beam.Create(range(row_groups), reshuffle=False)
            | "ReadPlan" >> beam.FlatMap(read_plan)
            | "ShufflePlan" >> beam.Reshuffle()
            | DrawOverlays(paths, thresholds, settings, threads)
            | "StageDrawn" >> StageRows(paths.shared(paths.built("drawn")), DRAWN_SCHEMA)
        )
    )


def _read_plan(
    plan: str, settings: DrawingSettings, thresholds: dict[str, float], group: int
) -> Iterator[PlannedImage | Shard]:
    with open_shared(plan) as file:
        rows = pq.ParquetFile(file).read_row_group(group).to_pylist()
    images, earlier = [PlannedImage(**row) for row in rows], settings.earlier
    if earlier:
        # No archive is read for images whose overlays all stay.
        images = [
            dataclasses.replace(image, uri=None)
            if earlier.all_stay(image.cams[: settings.top], thresholds)
            else image
            for image in images
        ]
    yield from (image for image in images if image.uri is None)
    yield from in_shards(image for image in images if image.uri is not None)
