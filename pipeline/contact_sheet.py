"""The first images of a worklist, small, with their overlays and scores."""

import base64
import dataclasses
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow.dataset as ds
import pyarrow.parquet as pq
from PIL import Image

from model.decoding import decode_grey
from model.overlays import encode_jpeg
from pipeline.read_ahead import ReadAhead, TimedOut
from pipeline.report_tables import RunTables
from pipeline.source import read_source
from pipeline.uris import is_streamed
from pipeline.watch import Watch
from schemas.findings import ABNORMAL_FINDINGS, score_column
from schemas.quality import GATING
from schemas.rejects import ImageError, Stage

MOST_IMAGES = 24
SIDE = 384
"""Longest side of an image in the sheet, in pixels."""

_BARS = 6
_THREADS = 4


@dataclasses.dataclass(frozen=True)
class Bar:
    """A finding's score beside its threshold, both 0 to 1."""

    finding: str
    score: float
    threshold: float

    @property
    def is_flagged(self) -> bool:
        """Whether it is on the worklist for this finding."""
        return self.score >= self.threshold


@dataclasses.dataclass(frozen=True)
class ListedImage:
    """One image of the sheet.

    Attributes:
      rank: On the worklist, from 1.
      image_id: Its id.
      abnormality: What it is ranked by, 0 to 1.
      urgency: Tier of its most urgent finding, 1 for the first; None in a list without tiers.
      bars: The findings with the highest scores, flagged ones first.
      flagged: How many are flagged in all.
      kept_apart: The quality codes that rank it behind all others; empty where none does.
      overlay: JPEG as base64; None where nothing was drawn.
      overlay_finding: What that shows.
      image: JPEG as base64, without overlay; None where the file could not be read at once,
        has changed since it was scored, or has no uri in the tables.
    """

    rank: int
    image_id: str
    abnormality: float
    urgency: int | None
    bars: list[Bar]
    flagged: int
    kept_apart: list[str]
    overlay: str | None
    overlay_finding: str | None
    image: str | None


def contact_sheet(tables: RunTables, thresholds: Mapping[str, float]) -> list[ListedImage]:
    """Returns the first images of the worklist; reads their files once more where it can."""
    listed = _first_rows(tables.worklist)
    if not listed:
        return []
    scores = _rows_of(tables.scores, [row["image_id"] for row in listed])
    images = _read_images(list(scores.values()))
    return [
        ListedImage(
            rank=row["rank"],
            image_id=row["image_id"],
            abnormality=row["abnormality"],
            urgency=row.get("urgency"),
            bars=_bars(scores[row["image_id"]], thresholds)[: max(_BARS, len(row["findings"]))],
            flagged=len(row["findings"]),
            kept_apart=_kept_apart(row),
            image=images.get(row["image_id"]),
            **_overlay(row, tables),
        )
        for row in listed
    ]


def _first_rows(worklist: Path) -> list[dict]:
    with pq.ParquetFile(worklist) as parquet:
        wanted = ("rank", "image_id", "abnormality", "urgency", "findings", "overlays")
        wanted += ("quality", "gated")
        columns = [name for name in wanted if name in parquet.schema_arrow.names]
        batches = parquet.iter_batches(MOST_IMAGES, columns=columns)
        return next(batches).to_pylist() if parquet.metadata.num_rows else []


def _rows_of(scores: Sequence[Path], ids: list[str]) -> dict[str, dict]:
    columns = ["image_id", "uri", "source_version", *map(score_column, ABNORMAL_FINDINGS)]
    table = ds.dataset([str(path) for path in scores], format="parquet").to_table(
        columns=columns, filter=ds.field("image_id").isin(ids)
    )
    return {row["image_id"]: row for row in table.to_pylist()}


def _bars(row: dict, thresholds: Mapping[str, float]) -> list[Bar]:
    bars = [Bar(name, row[score_column(name)], thresholds[name]) for name in ABNORMAL_FINDINGS]
    return sorted(bars, key=lambda bar: (not bar.is_flagged, -bar.score))


def _kept_apart(row: dict) -> list[str]:
    # A list from before there were quality codes lacks both columns.
    return [code for code in row["quality"] if code in GATING] if row.get("gated") else []


def _overlay(row: dict, tables: RunTables) -> dict[str, str | None]:
    """Returns the overlay of the finding with the highest score that has one."""
    for finding, name in zip(row["findings"], row["overlays"], strict=True):
        if name is not None:
            with Image.open(io.BytesIO(tables.read_overlay(name))) as overlay:
                return {"overlay": _small(overlay), "overlay_finding": finding}
    return {"overlay": None, "overlay_finding": None}


def _read_images(rows: list[dict]) -> dict[str, str]:
    """Returns small images by id, of those files that can be read and are as they were."""
    # Each member of a compressed archive would cost a reading of all before it.
    wanted = [row for row in rows if row["uri"] and not is_streamed(row["uri"])]
    ahead = ReadAhead(_read_image, threads=_THREADS, depth=MOST_IMAGES + 1)
    try:
        results = [result for row in wanted for result in ahead.put(row)]
        results += ahead.drain()
    finally:
        ahead.close()
    return dict(result for result in results if not isinstance(result, TimedOut) and result[1])


def _read_image(row: dict, watch: Watch) -> tuple[str, str | None]:
    try:
        source = read_source(row["uri"], watch)
        if source.version.version != row["source_version"]:
            return row["image_id"], None
        watch.begin(Stage.DECODE)
        return row["image_id"], _small(decode_grey(source.data, at_least=SIDE).image)
    except ImageError:
        return row["image_id"], None


def _small(image: Image.Image) -> str:
    image.thumbnail((SIDE, SIDE), reducing_gap=2.0)
    return base64.b64encode(encode_jpeg(image)).decode()
