"""Many staged parts into few published files."""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.layout import staged_parts
from pipeline.ledger import Ledger
from pipeline.runner import Runner

ROWS_A_GROUP = 64 * 1024
_ROWS_A_FILE = 4 * ROWS_A_GROUP
_ROWS_AT_ONCE = 16 * 1024


@dataclasses.dataclass(frozen=True)
class OutputFile:
    """A file to publish and the staged parts it is made of.

    Attributes:
      path: Where the commit builds it.
      parts: Staged files, in order.
      dropped: Row numbers to leave out, by staged file.
    """

    path: Path
    parts: tuple[str, ...]
    dropped: dict[str, frozenset[int]]


def plan_files(folder: Path, parts: list[str], ledger: Ledger) -> list[OutputFile]:
    """Returns the files that a table's staged parts are compacted into; at least one."""
    groups, rows = [[]], 0
    for part in parts:
        if rows >= _ROWS_A_FILE:
            groups.append([])
            rows = 0
        groups[-1].append(part)
        rows += pq.read_metadata(part).num_rows
    return [
        OutputFile(
            folder / f"part-{number:05d}.parquet",
            tuple(group),
            {part: ledger.dropped[part] for part in group if part in ledger.dropped},
        )
        for number, group in enumerate(groups)
    ]


def compact(files: list[OutputFile], schema: pa.Schema, drawn: Path, runner: Runner) -> None:
    """Writes `files` on `runner`, each by one worker; a retry writes the same bytes.

    Args:
      files: As `plan_files` returns them, all of one table.
      schema: Of the table, with the metadata of the run.
      drawn: Folder with the staged outcome of the drawing.
      runner: Runs it.
    """
    files[0].path.parent.mkdir(parents=True, exist_ok=True)
    runner.run(
        lambda pipeline: (
            pipeline
            | "OutputFiles" >> beam.Create(files)
            | "CompactParts" >> beam.ParDo(_CompactDoFn(schema, drawn))
        )
    )


class _CompactDoFn(beam.DoFn):
    def __init__(self, schema: pa.Schema, drawn: Path):
        self._schema = schema
        self._drawn = drawn

    def setup(self):
        self._overlays = read_overlays(self._drawn)

    def process(self, file: OutputFile):
        write_file(file, self._schema, self._overlays)


def read_overlays(drawn: Path) -> dict[str, dict[str, str]]:
    """Returns the overlays that were drawn, by image id and finding."""
    overlays: dict[str, dict[str, str]] = {}
    for part in staged_parts(drawn):
        for row in pq.read_table(part).to_pylist():
            if row["overlay"] is not None:
                overlays.setdefault(row["image_id"], {})[row["finding"]] = row["overlay"]
    return overlays


def write_file(file: OutputFile, schema: pa.Schema, overlays: dict[str, dict[str, str]]) -> None:
    """Writes one compacted file, in row groups of at most `ROWS_A_GROUP` rows."""
    with pq.ParquetWriter(file.path, schema, compression="zstd") as writer:
        for table in _gather(file, schema):
            if "cams" in schema.names:
                table = _with_overlays(table, overlays)
            writer.write_table(table, row_group_size=ROWS_A_GROUP)


def write_skipped(held: Sequence[str], run_id: str, schema: pa.Schema, path: Path) -> None:
    """Writes which images other runs hold, in the manifest's order.

    Args:
      held: Files that name what is held, and by which run, in that order.
      run_id: Of this run, whose own rows are not skipped.
      schema: Of the table, with the metadata of the run.
      path: New; its folder is made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    is_skipped = pc.field("held_by_run") != run_id
    tables = (pq.ParquetFile(file).read(schema.names).filter(is_skipped) for file in held)
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for table in _at_once(table.cast(schema) for table in tables):
            writer.write_table(table, row_group_size=ROWS_A_GROUP)


def _gather(file: OutputFile, schema: pa.Schema) -> Iterator[pa.Table]:
    """Gives the rows of all parts, some thousands at a time; an empty table where none are."""
    yield from _at_once(_kept_rows(part, file, schema) for part in file.parts)
    if not file.parts:
        yield schema.empty_table()


def _kept_rows(part: str, file: OutputFile, schema: pa.Schema) -> pa.Table:
    table = pq.ParquetFile(part).read()
    if part in file.dropped:
        keep = [number not in file.dropped[part] for number in range(table.num_rows)]
        table = table.filter(pa.array(keep))
    return table.cast(schema)


def _at_once(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Joins small tables to larger ones."""
    waiting, rows = [], 0
    for table in tables:
        waiting.append(table)
        rows += table.num_rows
        if rows >= _ROWS_AT_ONCE:
            yield pa.concat_tables(waiting)
            waiting, rows = [], 0
    if waiting:
        yield pa.concat_tables(waiting)


def _with_overlays(table: pa.Table, overlays: dict[str, dict[str, str]]) -> pa.Table:
    """Returns a table whose maps name these overlays, and no others."""
    position = table.schema.get_field_index("cams")
    cams, field = table["cams"].combine_chunks(), table.schema.field(position)
    if len(cams) == 0:
        return table
    maps = cams.flatten()
    ends = np.cumsum(pc.list_value_length(cams).to_numpy())
    named = [None] * len(maps)
    for number, image_id in enumerate(table["image_id"].to_pylist()):
        if found := overlays.get(image_id):
            for place in range(ends[number - 1] if number else 0, ends[number]):
                named[place] = found.get(maps.field("finding")[place].as_py())
    told = pa.StructArray.from_arrays(
        [maps.field("finding"), maps.field("grid"), pa.array(named, pa.string())],
        fields=list(field.type.value_type),
    )
    starts = pa.array(np.concatenate([[0], ends]), pa.int32())
    return table.set_column(
        position, field, pa.ListArray.from_arrays(starts, told, type=field.type)
    )
