"""The rows of a published run as the staged parts of one with other thresholds."""

import dataclasses
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.flags import missing_maps, reflag
from pipeline.layout import RunPaths
from pipeline.manifest import CheckedManifest
from pipeline.mirror import discard
from pipeline.planning import HELD_SCHEMA, WorkPlan, files_of
from schemas.errors import InputError
from schemas.tables import manifest_schema, scores_schema

_ROWS_A_PART = 16 * 1024
"""Rows in memory at once: with all 14 findings flagged their maps take 45 MB."""

_IN_PASSING = {"compression": "lz4", "use_dictionary": False}
"""How parts are written that are read once: half the time of what is published, more disk."""


@dataclasses.dataclass(frozen=True)
class Restaged:
    """What was staged.

    Attributes:
      manifest: All images of the run that the rows are of.
      plan: Nothing to score, and what that run skipped.
      counts: Changes of flags, as `pipeline.flags.Reflagged` has them, and maps `unknown`.
      missing: Numbers of the parts some of whose maps are not known, in order.
    """

    manifest: CheckedManifest
    plan: WorkPlan
    counts: Counter
    missing: list[int]


@dataclasses.dataclass(frozen=True)
class AddedMaps:
    """What became of maps that were not known.

    Attributes:
      computed: How many are known now.
      missing: How many are not, by the reason why.
      read_retries: Reads tried again.
    """

    computed: int = 0
    missing: Counter = dataclasses.field(default_factory=Counter)
    read_retries: int = 0


def part_of(paths: RunPaths, number: int) -> Path:
    """Returns where a part of the scores is staged."""
    return paths.parts("scores") / f"{number:06d}.parquet"


def missing_of(paths: RunPaths, number: int) -> Path:
    """Returns where it is said which images of a part lack maps."""
    return paths.plan / f"missing-{number:06d}.parquet"


def restage(
    paths: RunPaths, parent: dict, vector: np.ndarray, thresholds_id: str, carried: tuple[str, ...]
) -> Restaged:
    """Stages the rows of a published run under other thresholds.

    Reads them once, some thousands at a time. What an earlier attempt staged of them is
    staged anew.

    Args:
      paths: Of the new run.
      parent: Record of the published one, in the same OUTPUT.
      vector: As `model.thresholds.threshold_vector` returns it.
      thresholds_id: Of these thresholds.
      carried: Names of the carried columns.

    Raises:
      InputError: A file of that run is missing, or its tables have not the rows that its
        record counts.
    """
    for folder in (paths.plan, paths.parts("scores"), paths.parts("rejects")):
        discard(paths, folder)
        folder.mkdir(parents=True)
    counts, missing, rows = Counter(), [], Counter()
    schema = manifest_schema(carried)
    with pq.ParquetWriter(paths.manifest, schema, compression="zstd") as manifest:
        for number, table in enumerate(_batches(paths, parent, "scores")):
            table = table.cast(scores_schema(carried))
            new = reflag(table, vector, thresholds_id)
            pq.write_table(new.table, part_of(paths, number), **_IN_PASSING)
            counts.update(new.counts)
            without = missing_maps(new.table)
            if len(without):
                counts["unknown"] += sum(
                    names.count("|") + 1 for names in without["findings"].to_pylist()
                )
                pq.write_table(without, missing_of(paths, number), compression="zstd")
                missing.append(number)
            rows["scored"] += len(table)
            manifest.write_table(_only(table, schema))
        for number, table in enumerate(_batches(paths, parent, "rejects")):
            pq.write_table(table, paths.parts("rejects") / f"{number:06d}.parquet")
            rows["rejected"] += len(table)
            manifest.write_table(_only(table, schema))
        held = []
        for number, table in enumerate(_batches(paths, parent, "skipped")):
            held.append(str(paths.plan / f"held-{number:06d}.parquet"))
            pq.write_table(_only(table, HELD_SCHEMA), held[-1])
            rows["skipped"] += len(table)
            manifest.write_table(_only(table, schema))
    _check_rows(parent, rows)
    total = rows.total()
    checked = CheckedManifest(
        str(paths.manifest), total, pq.read_metadata(paths.manifest).num_row_groups, carried
    )
    has_skipped = any(file["path"].startswith("skipped/") for file in parent["files"])
    plan = WorkPlan(
        work=dataclasses.replace(checked, rows=0, row_groups=0),
        held=tuple(held),
        kept=rows["scored"] + rows["rejected"],
        skipped=rows["skipped"] if has_skipped else None,
    )
    return Restaged(checked, plan, counts, missing)


def _batches(paths: RunPaths, record: dict, table: str) -> Iterator[pa.Table]:
    """Gives the rows of a table of a published run, without what its files say of that run."""
    for path in files_of(paths, record, table):
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(_ROWS_A_PART):
                yield pa.Table.from_batches([batch]).replace_schema_metadata()


def _only(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Returns these columns of a table, null where it lacks one."""
    absent = pa.nulls(len(table))
    columns = [
        (table[field.name] if field.name in table.column_names else absent).cast(field.type)
        for field in schema
    ]
    return pa.table(columns, schema)


def _check_rows(parent: dict, rows: Counter) -> None:
    for name in ("scored", "rejected", "skipped"):
        if rows[name] != parent["counts"][name]:
            raise InputError(
                f"RUN must have the rows that its record counts. Received: {parent['run_id']}, with"
                f" {rows[name]} {name} and not {parent['counts'][name]}. `prescreen verify` finds"
                " what is amiss."
            )
