"""Quality codes in tables: which images rank last, and how many carry what."""

from collections.abc import Sequence

import duckdb

from schemas.quality import GATING, Quality

_GATING_CODES = ", ".join(f"'{code}'" for code in GATING)


def is_gated(counts: bool) -> str:
    """Returns the SQL expression for whether the row of an image is kept apart.

    Args:
      counts: False for none that is, whatever its codes.
    """
    return f"coalesce(list_has_any(quality, [{_GATING_CODES}]), false)" if counts else "false"


def count_quality(connection: duckdb.DuckDBPyConnection, scores: Sequence[str]) -> dict:
    """Returns how many images of a scores table carry a code, any that gates, and each.

    Args:
      connection: Counts.
      scores: The files of the table.
    """
    each = ", ".join(f"count(*) FILTER (list_contains(quality, '{code}'))" for code in Quality)
    [(carrying, gated, *by_code)] = connection.execute(
        f"SELECT count(*) FILTER (len(quality) > 0), count(*) FILTER ({is_gated(True)}), {each}"
        " FROM read_parquet(?, hive_partitioning=false)",
        [list(scores)],
    ).fetchall()
    found = zip(Quality, by_code, strict=True)
    return {
        "with_quality_code": carrying,
        "gated": gated,
        "quality": {code.value: images for code, images in found if images},
    }
