"""Durable parts of a table: written as rows arrive, read back by the commit."""

import io
import time
import uuid
from pathlib import Path

import apache_beam as beam
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.layout import RunPaths, staged_parts
from pipeline.mirror import discard
from pipeline.progress import PROGRESS
from pipeline.shared_files import make_shared_folder, write_shared

ROWS_A_PART = 512
_SECONDS_A_PART = 30.0


class StageRows(beam.PTransform):
    """Rows in, as dicts; nothing out but files in `folder`.

    A part is named by the moment it was written and at random, so that a retry
    never overwrites one. Rows are staged at least once: the commit keeps one an id.

    Args:
      folder: A folder or prefix that every worker reaches.
      schema: Of the rows.
    """

    def __init__(self, folder: str, schema: pa.Schema):
        super().__init__()
        self._folder = folder
        self._schema = schema

    def expand(self, rows):
        return rows | beam.ParDo(StageRowsDoFn(self._folder, self._schema))


class StageRowsDoFn(beam.DoFn):
    """Flushes every `ROWS_A_PART` rows, 30 s, and at the end of a bundle."""

    def __init__(self, folder: str, schema: pa.Schema):
        self._folder = folder.rstrip("/")
        self._schema = schema

    def setup(self):
        make_shared_folder(self._folder)

    def start_bundle(self):
        self._rows: list[dict] = []
        self._oldest = time.monotonic()

    def process(self, row: dict):
        if not self._rows:
            self._oldest = time.monotonic()
        self._rows.append(row)
        PROGRESS.add(self._folder.rpartition("/")[2])
        if len(self._rows) >= ROWS_A_PART or time.monotonic() - self._oldest >= _SECONDS_A_PART:
            self._flush()

    def finish_bundle(self):
        if self._rows:
            self._flush()

    def _flush(self):
        buffer = io.BytesIO()
        table = pa.Table.from_pylist(self._rows, self._schema)
        # Checksums, so that a resume can tell a part that is no longer what was written.
        pq.write_table(table, buffer, compression="zstd", write_page_checksum=True)
        # The time first: in a local run parts then sort in the manifest's order.
        name = f"{time.time_ns():020d}-{uuid.uuid4().hex}.parquet"
        write_shared(f"{self._folder}/{name}", buffer.getvalue())
        self._rows = []


def discard_broken_parts(paths: RunPaths, table: str) -> int:
    """Removes what a crash or a failing disk left half written; returns the number of parts.

    Their images are scored again.
    """
    folder = paths.parts(table)
    for path in folder.glob(".*.tmp"):
        path.unlink()
    broken = [part for part in staged_parts(folder) if not is_whole(part)]
    for part in broken:
        discard(paths, Path(part))
    return len(broken)


def is_whole(part: str) -> bool:
    """Returns whether a staged part can be read and is what was written."""
    try:
        pq.ParquetFile(part, page_checksum_verification=True).read()
    except (pa.ArrowException, OSError):
        return False
    return True
