"""Decoding an archive once, for training: `prescreen prepare`."""

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from model.image_cache import (
    FACTS_FILE,
    FORMAT_VERSION,
    IMAGES_FILE,
    PIXELS_FILE,
    REJECTS_FILE,
    label_matrix,
    read_facts,
)
from pipeline import images
from pipeline.commit import RejectLimitError, share_of
from pipeline.images import LoadImages
from pipeline.layout import staged_parts, write_atomically
from pipeline.manifest import CheckedManifest, ManifestRow, check_manifest, read_row_group
from pipeline.manifest_formats import manifest_columns
from pipeline.rows import reject_row
from pipeline.runner import Runner
from pipeline.sharding import in_shards
from pipeline.staging import StageRows
from schemas.contract import STANDARD_CONTRACT
from schemas.errors import InputError
from schemas.tables import REJECTS_SCHEMA

_READ_AHEAD = 64
_SLOTS_SCHEMA = pa.schema([("slot", pa.int64())])
_NEEDED = ("labels", "patient_id")
_SPLIT = "split"


@dataclasses.dataclass(frozen=True)
class PrepareOptions:
    """The options of `prepare`, one attribute each; see its help for their meaning."""

    manifest: str
    cache: str
    decode_threads: int
    reject_limit: float


def prepare_images(options: PrepareOptions, runner: Runner) -> dict:
    """Decodes the images of a labelled manifest into a cache, unless that was done already.

    The pixels are one memory-mapped file with a slot a manifest row, so that a worker
    that is retried writes the same bytes in the same place. All workers must reach the
    folder. What an earlier attempt left is made again.

    Args:
      options: What to prepare, and where.
      runner: Runs the pipeline.

    Returns:
      What `cache.json` holds: the numbers of images and rejects among it.

    Raises:
      InputError: The manifest lacks labels or patients, or the cache is of another.
      RejectLimitError: Too many images were rejected.
    """
    cache = Path(options.cache).absolute()
    staging = cache / "_staging"
    shutil.rmtree(staging, ignore_errors=True)
    found = read_facts(cache)
    manifest = _check(options.manifest, staging)
    digest = _digest(Path(manifest.path))
    if found is not None:
        shutil.rmtree(staging)
        if found["manifest_sha256"] != digest:
            raise InputError(
                f"{cache} must be made of the same manifest. Received: another. Name another"
                " folder, or remove it."
            )
        return found
    _decode(manifest, cache / PIXELS_FILE, staging, options.decode_threads, runner)
    facts = _finish(manifest, cache, staging, options.reject_limit, digest)
    shutil.rmtree(staging)
    return facts


def _check(uri: str, staging: Path) -> CheckedManifest:
    """Returns the checked manifest; every image of it has labels and a patient."""
    carry = (_SPLIT,) if _SPLIT in manifest_columns(uri) else ()
    try:
        manifest = check_manifest(uri, into=str(staging / "manifest.parquet"), carry=carry)
        _check_labels(manifest)
    except InputError:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    return manifest


def _check_labels(manifest: CheckedManifest) -> None:
    for name in _NEEDED:
        lacking = manifest.rows
        if name in manifest.carried:
            lacking = pq.read_table(manifest.path, columns=[name])[name].null_count
        if lacking:
            raise InputError(
                f"manifest must give {name} for every image. Received: {lacking} without."
                " Labels are findings joined by '|'; without patients, images of one could"
                " fall in two parts and flatter the numbers."
            )
    for batch in pq.ParquetFile(manifest.path).iter_batches(columns=["labels"]):
        try:
            label_matrix(batch["labels"].to_pylist())
        except ValueError as error:
            raise InputError(str(error)) from error


def _digest(manifest: Path) -> str:
    """Returns SHA-256 over the rows of a checked manifest."""
    digest = hashlib.sha256()
    for batch in pq.ParquetFile(manifest).iter_batches():
        digest.update(json.dumps(batch.to_pydict(), sort_keys=True).encode())
    return digest.hexdigest()


def _decode(
    manifest: CheckedManifest, pixels: Path, staging: Path, threads: int, runner: Runner
) -> None:
    """Fills the slots, and stages which were filled and what was rejected."""
    size = STANDARD_CONTRACT.size
    # Sparse until it is written: a slot that is rejected takes no disk.
    np.lib.format.open_memmap(pixels, "w+", np.uint8, (manifest.rows, size, size)).flush()
    groups = range(manifest.row_groups)
    waves = ([group] for group in groups) if runner.is_local else [groups]
    for wave in waves:
        prepare = PrepareRows(manifest.path, wave, pixels, staging, threads)
        runner.run(lambda pipeline, prepare=prepare: pipeline | prepare)


class PrepareRows(beam.PTransform):
    """Row groups of a manifest in; filled slots, and parts that say which, out.

    A retry fills the same slots again, and stages their numbers twice.
    """

    def __init__(
        self, path: str, row_groups: Iterable[int], pixels: Path, staging: Path, threads: int
    ):
        super().__init__()
        self._path = path
        self._row_groups = list(row_groups)
        self._pixels = pixels
        self._staging = staging
        self._threads = threads

    def expand(self, pipeline):
        path = self._path
        loaded = (
            pipeline
            | "RowGroups" >> beam.Create(self._row_groups, reshuffle=False)
            | "ReadSlots" >> beam.FlatMap(lambda group: in_shards(read_slots(path, group)))
            | "ShuffleRows" >> beam.Reshuffle()
            | LoadImages(threads=self._threads, read_ahead=_READ_AHEAD)
        )
        (
            loaded[images.LOADED]
            | "FillSlots" >> beam.ParDo(_FillSlotDoFn(self._pixels))
            | "StageSlots" >> StageRows(str(self._staging / "slots"), _SLOTS_SCHEMA)
        )
        (
            loaded[images.REJECTED]
            | "RowRejected" >> beam.Map(reject_row, False)
            | "StageRejects" >> StageRows(str(self._staging / "rejects"), REJECTS_SCHEMA)
        )


def read_slots(path: str, group: int) -> list[ManifestRow]:
    """Returns a row group of a manifest; each row carries its number in the manifest alone."""
    metadata = pq.read_metadata(path)
    first = sum(metadata.row_group(k).num_rows for k in range(group))
    return [
        ManifestRow(row.image_id, row.uri, (str(slot),))
        for slot, row in enumerate(read_row_group(path, group), start=first)
    ]


class _FillSlotDoFn(beam.DoFn):
    """Writes pixels where they belong."""

    def __init__(self, pixels: Path):
        self._path = pixels

    def setup(self):
        self._pixels = np.load(self._path, mmap_mode="r+")

    def process(self, image):
        slot = int(image.row.carried[0])
        self._pixels[slot] = image.pixels
        yield {"slot": slot}

    def finish_bundle(self):
        # Before the parts that say so.
        self._pixels.flush()


def _finish(
    manifest: CheckedManifest, cache: Path, staging: Path, reject_limit: float, digest: str
) -> dict:
    """Writes the tables, and `cache.json` last."""
    slots = np.unique(_staged(staging / "slots", _SLOTS_SCHEMA)["slot"].to_numpy())
    rejects = _staged(staging / "rejects", REJECTS_SCHEMA).to_pandas().drop_duplicates("image_id")
    if len(slots) + len(rejects) != manifest.rows:
        raise RuntimeError(
            f"The {manifest.rows} manifest rows must each be decoded or rejected. Received:"
            f" {len(slots)} and {len(rejects)}. This is a defect: please report it."
        )
    if len(rejects) > share_of(reject_limit, manifest.rows):
        reasons = ", ".join(f"{k} {n}" for k, n in rejects["reason"].value_counts().items())
        raise RejectLimitError(
            f"{len(rejects)} of {manifest.rows} images were rejected ({reasons}), more than"
            f" --reject-limit {reject_limit} allows. Mend the images, or raise --reject-limit."
        )
    table = pq.read_table(manifest.path).take(slots).append_column("slot", pa.array(slots))
    _write_table(table, cache / IMAGES_FILE)
    _write_table(
        pa.Table.from_pandas(rejects, REJECTS_SCHEMA, preserve_index=False), cache / REJECTS_FILE
    )
    facts = {
        "format_version": FORMAT_VERSION,
        "input_contract": STANDARD_CONTRACT.to_json(),
        "manifest_sha256": digest,
        "images": len(slots),
        "rejected": len(rejects),
        "rejected_by_reason": rejects["reason"].value_counts().to_dict(),
    }
    write_atomically(cache / FACTS_FILE, json.dumps(facts, indent=2).encode() + b"\n")
    return facts


def _staged(folder: Path, schema: pa.Schema) -> pa.Table:
    parts: Sequence[str] = staged_parts(folder)
    return pa.concat_tables([schema.empty_table(), *(pq.read_table(part) for part in parts)])


def _write_table(table: pa.Table, path: Path) -> None:
    pq.write_table(table, path, compression="zstd")
