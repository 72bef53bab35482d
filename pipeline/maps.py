"""Activation maps of images that are scored already, for findings that are flagged only now."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from model.scorer import default_batch_size
from model.serving import ScorerSettings
from pipeline import images, scoring
from pipeline.drawing import SOURCE_CHANGED
from pipeline.elements import RejectedImage, ScoredImage, Shard
from pipeline.events import Report
from pipeline.flags import with_maps
from pipeline.images import READS_RETRIED, LoadImages
from pipeline.layout import RunPaths, staged_parts
from pipeline.manifest import ManifestRow
from pipeline.mirror import fetch
from pipeline.restaging import AddedMaps, missing_of, part_of
from pipeline.runner import Runner, counter
from pipeline.scoring import ScoreImages
from pipeline.sharding import in_shards
from pipeline.staging import StageRows, discard_broken_parts
from pipeline.stopping import STOP
from schemas.findings import FINDINGS

MAPS_SCHEMA = pa.schema(
    [
        ("image_id", pa.string()),
        ("findings", pa.list_(pa.string())),
        ("grids", pa.list_(pa.float32())),
        ("reason", pa.string()),
    ]
)
"""One row an image: its maps, 49 cells each in the order of `findings`, or why there are none."""


def add_maps(
    paths: RunPaths,
    numbers: list[int],
    scorer: ScorerSettings,
    threads: int,
    runner: Runner,
    report: Report,
) -> AddedMaps:
    """Computes the maps that staged parts lack, a part at a time, and writes them there.

    Ends early, between or within parts, once a stop is requested. What an earlier attempt has
    computed is not computed again.

    Args:
      paths: Of the run.
      numbers: Of the parts, as `pipeline.restaging.restage` returns them.
      scorer: The model that made the scores, one view an image.
      threads: Threads that decode at once.
      runner: A local one.
      report: Told how many images there are.
    """
    images_left = sum(pq.read_metadata(missing_of(paths, number)).num_rows for number in numbers)
    report("scoring", images=images_left, runner=runner.name)
    scoring.load_scorer(scorer)
    computed, missing, retries = 0, Counter(), 0
    for number in numbers:
        if STOP.requested:
            break
        # Called as the table that the progress of a run counts.
        table = f"maps/{number:06d}/scores"
        retries += _compute(paths, missing_of(paths, number), table, scorer, threads, runner)
        maps = _read_maps(paths.parts(table))
        if len(maps):
            _fill_in(part_of(paths, number), maps)
        reasons = _read_reasons(paths.parts(table))
        known = set(maps["image_id"].to_pylist())
        for row in pq.read_table(missing_of(paths, number)).to_pylist():
            findings = row["findings"].count("|") + 1
            if row["image_id"] in known:
                computed += findings
            else:
                missing[reasons[row["image_id"]]] += findings
    return AddedMaps(computed, missing, retries)


def _fill_in(part: Path, maps: pa.Table) -> None:
    with pq.ParquetFile(part) as file:
        table = file.read()
    pq.write_table(with_maps(table, maps), part, compression="zstd")


def _compute(
    paths: RunPaths, missing: Path, table: str, scorer: ScorerSettings, threads: int, runner: Runner
) -> int:
    """Stages the maps of the images of a part; returns how many reads were tried again."""
    folder = paths.parts(table)
    fetch(paths, folder)
    discard_broken_parts(paths, table)
    done = frozenset(_read_maps(folder)["image_id"].to_pylist())
    if done.issuperset(pq.read_table(missing)["image_id"].to_pylist()):
        return 0
    result = runner.run(
        lambda pipeline: (
            pipeline
            | "Missing" >> beam.Create([missing], reshuffle=False)
            | "ReadMissing" >> beam.FlatMap(_read_missing, done)
            | "ShuffleMissing" >> beam.Reshuffle()
            | ComputeMaps(paths.shared(folder), scorer, threads)
        )
    )
    fetch(paths, folder)
    return counter(result, READS_RETRIED)


def _read_missing(path: Path, done: frozenset[str]) -> Iterator[ManifestRow | Shard]:
    return in_shards(
        ManifestRow(row["image_id"], row["uri"], (row["content_sha256"], row["findings"]))
        for row in pq.read_table(path).to_pylist()
        if row["image_id"] not in done
    )


class ComputeMaps(beam.PTransform):
    """Images and shards of them in; staged parts of `MAPS_SCHEMA` out.

    Each image carries the SHA-256 of the content that was scored, and the findings, joined by
    `|`. A file with other content has no maps. A retry stages an image twice.

    Args:
      folder: Where workers stage.
      scorer: As for `add_maps`.
      threads: Likewise.
    """

    def __init__(self, folder: str, scorer: ScorerSettings, threads: int):
        super().__init__()
        self._folder = folder
        self._scorer = scorer
        self._threads = threads

    def expand(self, rows):
        batch_size = default_batch_size()
        loaded = rows | LoadImages(threads=self._threads, read_ahead=2 * batch_size)
        scored = loaded[images.LOADED] | ScoreImages(self._scorer, batch_size)
        found = {
            "mapped": scored[scoring.SCORED] | "Row_mapped" >> beam.Map(_maps_row),
            "unread": loaded[images.REJECTED] | "Row_unread" >> beam.Map(_no_maps_row),
            "unmapped": scored[scoring.REJECTED] | "Row_unmapped" >> beam.Map(_no_maps_row),
        }
        for name, staged in found.items():
            staged | f"Stage_{name}" >> StageRows(self._folder, MAPS_SCHEMA)


def _maps_row(image: ScoredImage) -> dict:
    sha256, findings = image.row.carried
    if image.facts.content_sha256 != sha256:
        return _row(image.row.image_id, SOURCE_CHANGED)
    names = findings.split("|")
    grids = image.cams[[FINDINGS.index(name) for name in names]]
    return {**_row(image.row.image_id), "findings": names, "grids": grids.ravel()}


def _no_maps_row(image: RejectedImage) -> dict:
    return _row(image.row.image_id, image.error.reason.value)


def _row(image_id: str, reason: str | None = None) -> dict:
    return {"image_id": image_id, "findings": [], "grids": [], "reason": reason}


def _read_maps(folder: Path) -> pa.Table:
    """Returns the maps that are staged, an image once."""
    table = _read(folder)
    table = table.filter(pc.is_null(table["reason"]))
    _, first = np.unique(np.array(table["image_id"].to_pylist(), object), return_index=True)
    return table.take(pa.array(first))


def _read_reasons(folder: Path) -> dict[str, str]:
    """Returns by image why it has no maps."""
    table = _read(folder).select(["image_id", "reason"])
    return {row["image_id"]: row["reason"] for row in table.to_pylist() if row["reason"]}


def _read(folder: Path) -> pa.Table:
    parts = (pq.ParquetFile(part).read() for part in staged_parts(folder))
    return pa.concat_tables([MAPS_SCHEMA.empty_table(), *parts])
