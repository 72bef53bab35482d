"""New flags for rows that are scored already: many rows at once, pure NumPy and Arrow."""

import dataclasses

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from schemas.findings import FINDINGS, score_column
from schemas.tables import CAM_SIDE

_NAMES = pa.array(FINDINGS)
_CELLS = CAM_SIDE * CAM_SIDE
_CHANGED = ("flags_added", "flags_removed", "newly_flagged", "no_longer_flagged")


def order_flags(scores: np.ndarray, vector: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns what `model.thresholds.flagged_findings` does, of many images.

    Args:
      scores: float32 `(images, 15)`.
      vector: As `model.thresholds.threshold_vector` returns it.

    Returns:
      int64 `(images,)`, how many findings each image is flagged for, and int64 of their sum:
      the indices of these findings, image after image.
    """
    flagged = scores >= vector
    order = np.argsort(np.where(flagged, -scores, np.inf), axis=1, kind="stable")
    counts = flagged.sum(axis=1)
    return counts, order[np.arange(len(FINDINGS)) < counts[:, None]]


@dataclasses.dataclass(frozen=True)
class Reflagged:
    """Rows of the scores table with new flags.

    Attributes:
      table: The rows. A map that is not known is NaN everywhere: Parquet's reader in Arrow
        takes no null for a list of fixed size.
      counts: `flags_added` and `flags_removed`, a finding of an image each; images
        `newly_flagged` and `no_longer_flagged`; and `maps`, all findings flagged now.
    """

    table: pa.Table
    counts: dict[str, int]


def reflag(table: pa.Table, vector: np.ndarray, thresholds_id: str) -> Reflagged:
    """Returns rows as they would be under other thresholds.

    Args:
      table: Rows of the scores table.
      vector: As `model.thresholds.threshold_vector` returns it.
      thresholds_id: Of these thresholds.
    """
    scores = np.stack([table[score_column(name)].to_numpy() for name in FINDINGS], axis=1)
    counts, findings = order_flags(scores, vector)
    rows = np.repeat(np.arange(len(table)), counts)
    places, maps = _places_of_maps(table["cams"])
    kept = places[rows, findings]
    was, now = places >= 0, np.zeros(places.shape, bool)
    now[rows, findings] = True
    changes = (now & ~was).sum(), (was & ~now).sum()
    of_images = now.any(axis=1), was.any(axis=1)
    changes += (of_images[0] & ~of_images[1]).sum(), (of_images[1] & ~of_images[0]).sum()
    ends = pa.array(np.concatenate([[0], np.cumsum(counts)]), pa.int32())
    names = _NAMES.take(pa.array(findings))
    overlays = maps.field("overlay").take(pa.array(kept, mask=kept < 0))
    columns = {
        "findings": pa.ListArray.from_arrays(ends, names),
        "flagged": pa.array(counts > 0),
        "cams": _cams(ends, names, _taken(maps, kept), overlays, table.schema),
        "thresholds_id": pa.repeat(pa.scalar(thresholds_id), len(table)),
    }
    for name, column in columns.items():
        position = table.schema.get_field_index(name)
        table = table.set_column(position, table.schema.field(position), column)
    found = dict(zip(_CHANGED, map(int, changes), strict=True))
    return Reflagged(table, {**found, "maps": len(findings)})


def missing_maps(table: pa.Table) -> pa.Table:
    """Returns the images some of whose maps are not known.

    Args:
      table: Rows of the scores table.

    Returns:
      `image_id`, `uri`, `content_sha256`, and `findings`, joined by `|`.
    """
    cams = table["cams"].combine_chunks()
    maps = cams.flatten()
    unknown = np.isnan(_grids(maps)[:, 0])
    rows = np.repeat(np.arange(len(table)), pc.list_value_length(cams).to_numpy())[unknown]
    found, starts = np.unique(rows, return_index=True)
    names = np.split(np.array(maps.field("finding"))[unknown], starts[1:])
    missing = table.select(["image_id", "uri", "content_sha256"]).take(pa.array(found))
    joined = pa.array(["|".join(part) for part in names[: len(found)]], pa.string())
    return missing.append_column("findings", joined)


def with_maps(table: pa.Table, computed: pa.Table) -> pa.Table:
    """Returns rows with maps that were computed for them in the places of unknown ones.

    Args:
      table: Rows of the scores table.
      computed: `image_id`, `findings` and `grids`, all of an image's one after the other.
    """
    cams = table["cams"].combine_chunks()
    maps = cams.flatten()
    places, _ = _places_of_maps(table["cams"])
    grids = _grids(maps).copy()
    rows = pc.index_in(computed["image_id"], table["image_id"].combine_chunks()).to_numpy()
    of_image = pc.list_value_length(computed["findings"]).to_numpy()
    findings = pc.index_in(pc.list_flatten(computed["findings"]), _NAMES).to_numpy()
    new = pc.list_flatten(computed["grids"]).to_numpy().reshape(-1, _CELLS)
    wanted = places[np.repeat(rows, of_image), findings]
    grids[wanted[wanted >= 0]] = new[wanted >= 0]
    names, overlays = maps.field("finding"), maps.field("overlay")
    ends = np.concatenate([[0], np.cumsum(pc.list_value_length(cams).to_numpy())])
    position = table.schema.get_field_index("cams")
    filled = _cams(pa.array(ends, pa.int32()), names, grids, overlays, table.schema)
    return table.set_column(position, table.schema.field(position), filled)


def _places_of_maps(column: pa.ChunkedArray) -> tuple[np.ndarray, pa.StructArray]:
    """Returns int64 `(rows, 15)`, where each finding's map is, -1 for none; and all the maps."""
    cams = column.combine_chunks()
    maps = cams.flatten()
    rows = np.repeat(np.arange(len(cams)), pc.list_value_length(cams).to_numpy())
    places = np.full((len(cams), len(FINDINGS)), -1)
    places[rows, pc.index_in(maps.field("finding"), _NAMES).to_numpy()] = np.arange(len(maps))
    return places, maps


def _grids(maps: pa.StructArray) -> np.ndarray:
    return maps.field("grid").flatten().to_numpy().reshape(-1, _CELLS)


def _taken(maps: pa.StructArray, places: np.ndarray) -> np.ndarray:
    """Returns float32 `(places, 49)`: the maps at these places, NaN at -1."""
    grids = np.full((len(places), _CELLS), np.nan, np.float32)
    grids[places >= 0] = _grids(maps)[places[places >= 0]]
    return grids


def _cams(
    ends: pa.Array, names: pa.Array, grids: np.ndarray, overlays: pa.Array, schema: pa.Schema
) -> pa.ListArray:
    kind = schema.field("cams").type
    listed = pa.FixedSizeListArray.from_arrays(pa.array(grids.ravel()), _CELLS)
    maps = pa.StructArray.from_arrays([names, listed, overlays], fields=list(kind.value_type))
    return pa.ListArray.from_arrays(ends, maps, type=kind)
