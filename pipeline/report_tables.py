"""What a report reads of a run's tables: counts of all rows, and a sample of them."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from model.drift import Observations
from pipeline.layout import TABLES, RunPaths
from schemas.findings import ABNORMAL_FINDINGS, FINDINGS, score_column
from schemas.tables import scores_schema

SCORE_BINS = 50
"""Of a histogram over scores from 0 to 1."""

MOST_SAMPLED = 20_000
"""Rows that runs are compared by; of a longer run they are drawn at random."""

_ROWS_AT_ONCE = 16 * 1024
_EXAMPLES = 5
_MEASURED = ("abnormality", "mean_intensity", "std_intensity")
_MISSING = "(none)"
_ANY = "any finding"


@dataclasses.dataclass(frozen=True)
class RunTables:
    """The files of a run that a report is made of, built or published.

    Attributes:
      scores, rejects: Their parts, in order.
      worklist: As Parquet.
      read_overlay: Returns the JPEG of an overlay, named relative to OUTPUT.
    """

    scores: Sequence[Path]
    rejects: Sequence[Path]
    worklist: Path
    read_overlay: Callable[[str], bytes]


def built_tables(paths: RunPaths) -> RunTables:
    """Returns the tables of a run that is about to be published."""

    def read_overlay(name: str) -> bytes:
        if paths.store:
            return paths.store.read(name)
        drawn = Path(name).relative_to(paths.name_of(paths.published("gradcam")))
        return (paths.drawn / drawn).read_bytes()

    return RunTables(
        *(sorted(paths.built(kind).glob("*.parquet")) for kind in TABLES),
        paths.built("worklist") / f"run_id={paths.run_id}.parquet",
        read_overlay,
    )


def worklist_of(paths: RunPaths) -> Path:
    """Returns the published worklist of a run, as Parquet."""
    return paths.published("worklist") / f"run_id={paths.run_id}.parquet"


def published_tables(paths: RunPaths, record: dict) -> RunTables:
    """Returns the tables of a published run, which its record lists."""
    files = [paths.output / file["path"] for file in record["files"] if file["rows"] is not None]
    return RunTables(
        *([file for file in files if file.parent == paths.published(kind)] for kind in TABLES),
        worklist_of(paths),
        lambda name: (paths.output / name).read_bytes(),
    )


@dataclasses.dataclass(frozen=True)
class ScoreCounts:
    """Counts over all rows of a scores table.

    Attributes:
      histograms: By finding, images in each of `SCORE_BINS` equal parts of 0 to 1.
      flagged: By finding, images with a score at or over its threshold.
    """

    histograms: Mapping[str, np.ndarray]
    flagged: Mapping[str, int]


def read_scores(
    files: Sequence[Path], thresholds: Mapping[str, float]
) -> tuple[ScoreCounts, Observations]:
    """Returns counts over all rows of a scores table, and at most `MOST_SAMPLED` of the rows.

    Reads it once, in pieces; which rows are drawn depends on their number alone.

    Args:
      files: The parts of the table.
      thresholds: By finding.
    """
    histograms = {finding: np.zeros(SCORE_BINS, np.int64) for finding in FINDINGS}
    flagged = dict.fromkeys(ABNORMAL_FINDINGS, 0)
    kept = []
    columns = _columns_of(files)
    rows = draw_rows(sum(pq.read_metadata(file).num_rows for file in files), MOST_SAMPLED)
    for piece, chosen in read_pieces(files, columns.names, rows):
        batch = piece.cast(columns)
        for finding in FINDINGS:
            scores = batch[score_column(finding)].to_numpy()
            bins = np.minimum((scores * SCORE_BINS).astype(int), SCORE_BINS - 1)
            histograms[finding] += np.bincount(bins, minlength=SCORE_BINS)
            if finding in flagged:
                flagged[finding] += int((scores >= np.float32(thresholds[finding])).sum())
        kept.append(batch.take(pa.array(chosen)))
    sample = pa.Table.from_batches(kept, columns)
    return ScoreCounts(histograms, flagged), _observe(sample, thresholds)


def _columns_of(files: Sequence[Path]) -> pa.Schema:
    """Returns the columns that are read: scores, what was measured, and what was carried."""
    schema = pq.read_schema(files[0]) if files else scores_schema()
    carried = schema.names[schema.names.index("scored_at") + 1 :]
    wanted = [*map(score_column, FINDINGS), *_MEASURED, *carried]
    return pa.schema([schema.field(name) for name in wanted])


def draw_rows(rows: int, most: int) -> np.ndarray:
    """Returns in order the numbers of all rows, or of `most` that are drawn at random."""
    if rows <= most:
        return np.arange(rows)
    return np.sort(np.random.default_rng(0).choice(rows, most, replace=False))


def read_pieces(
    files: Sequence[Path], columns: Sequence[str], chosen: np.ndarray
) -> Iterator[tuple[pa.RecordBatch, np.ndarray]]:
    """Gives all rows of a table in pieces, and which of each piece are among the chosen.

    Args:
      files: The parts of the table.
      columns: To read.
      chosen: Numbers of rows, in order, over all parts.
    """
    start = 0
    for file in files:
        with pq.ParquetFile(file) as parquet:
            for batch in parquet.iter_batches(_ROWS_AT_ONCE, columns=columns):
                first, last = np.searchsorted(chosen, (start, start + len(batch)))
                yield batch, chosen[first:last] - start
                start += len(batch)


def _observe(sample: pa.Table, thresholds: Mapping[str, float]) -> Observations:
    numbers = {finding: sample[score_column(finding)].to_numpy() for finding in FINDINGS}
    flags = {name: numbers[name] >= np.float32(thresholds[name]) for name in ABNORMAL_FINDINGS}
    flags[_ANY] = np.logical_or.reduce(list(flags.values()))
    numbers |= {name: sample[name].to_numpy() for name in _MEASURED}
    carried = sample.column_names[len(FINDINGS) + len(_MEASURED) :]
    return Observations(
        numbers=numbers,
        flags=flags,
        categories={name: _texts(sample[name]) for name in carried if name != "patient_id"},
        patients=_patients(sample),
    )


def _texts(column: pa.ChunkedArray) -> np.ndarray:
    return np.array(column.fill_null(_MISSING).to_pylist(), dtype=str)


def _patients(sample: pa.Table) -> np.ndarray:
    """Returns a number a row, equal for images of one patient; unknown ones are nobody else's."""
    own = np.arange(len(sample))
    if "patient_id" not in sample.column_names:
        return own
    column = sample["patient_id"]
    known = column.is_valid().to_numpy()
    _, numbers = np.unique(_texts(column), return_inverse=True)
    return np.where(known, numbers + len(sample), own)


def read_examples(files: Iterable[Path]) -> dict[str, list[str]]:
    """Returns by reason the first ids of rejected images, at most five, in order."""
    examples: dict[str, list[str]] = {}
    for file in files:
        with pq.ParquetFile(file) as parquet:
            for batch in parquet.iter_batches(_ROWS_AT_ONCE, columns=["reason", "image_id"]):
                for reason, image_id in zip(*(column.to_pylist() for column in batch), strict=True):
                    examples.setdefault(reason, []).append(image_id)
                examples = {name: sorted(ids)[:_EXAMPLES] for name, ids in examples.items()}
    return examples
