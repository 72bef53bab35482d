"""Arrow schemas of everything that is published, and of what is staged for it."""

import json

import pyarrow as pa

from schemas.findings import FINDINGS, score_column

CAM_SIDE = 7
"""Height and width of a class activation map, in cells."""

VIEW_POSITION = "view_position"

UNDERSTOOD_COLUMNS = ("patient_id", VIEW_POSITION, "study_date", "labels")
"""Optional manifest columns that always go to the scores."""

_CAM = pa.struct(
    [
        ("finding", pa.string()),
        ("grid", pa.list_(pa.float32(), CAM_SIDE * CAM_SIDE)),
        ("overlay", pa.string()),
    ]
)


def manifest_schema(carried: tuple[str, ...] = ()) -> pa.Schema:
    """Returns the schema of a checked manifest: id, uri, carried columns."""
    return pa.schema([(name, pa.string()) for name in ("image_id", "uri", *carried)])


def scores_schema(carried: tuple[str, ...] = ()) -> pa.Schema:
    """Returns the schema of the scores table: one row an image scored.

    Args:
      carried: Manifest columns copied to the end of each row, as strings.
    """
    return pa.schema(
        [
            ("image_id", pa.string()),
            ("uri", pa.string()),
            *((score_column(finding), pa.float32()) for finding in FINDINGS),
            ("abnormality", pa.float32()),
            ("findings", pa.list_(pa.string())),
            ("flagged", pa.bool_()),
            ("cams", pa.list_(_CAM)),
            ("tta_views", pa.int8()),
            ("width", pa.int32()),
            ("height", pa.int32()),
            ("size_bytes", pa.int64()),
            ("source_version", pa.string()),
            ("content_sha256", pa.string()),
            ("mean_intensity", pa.float32()),
            ("std_intensity", pa.float32()),
            ("quality", pa.list_(pa.string())),
            ("feature_distance", pa.float32()),
            ("model_id", pa.string()),
            ("thresholds_id", pa.string()),
            ("scored_at", pa.timestamp("us", tz="UTC")),
            *((name, pa.string()) for name in carried),
        ]
    )


REJECTS_SCHEMA = pa.schema(
    [
        ("image_id", pa.string()),
        ("uri", pa.string()),
        ("stage", pa.string()),
        ("reason", pa.string()),
        ("detail", pa.string()),
        ("attempts", pa.int8()),
        ("size_bytes", pa.int64()),
        ("source_version", pa.string()),
    ]
)
"""One row an image that could not be scored; the last two null where no file was found."""

SKIPPED_SCHEMA = pa.schema([("image_id", pa.string()), ("held_by_run", pa.string())])
"""One row an image that an earlier run holds."""

WORKLIST_SCHEMA = pa.schema(
    [
        ("rank", pa.int64()),
        ("image_id", pa.string()),
        ("abnormality", pa.float32()),
        ("urgency", pa.int8()),
        ("findings", pa.list_(pa.string())),
        ("scores", pa.list_(pa.float32())),
        ("thresholds", pa.list_(pa.float32())),
        ("overlays", pa.list_(pa.string())),
        ("uri", pa.string()),
        ("quality", pa.list_(pa.string())),
        ("gated", pa.bool_()),
    ]
)
"""One row a flagged image by rank; the lists run in the order of `findings`. `urgency` is the
tier of the most urgent of these, 1 for what is to be read first. Where `gated` is true, `quality`
says why the scores are not to be believed, and the rank is behind all others."""


def with_metadata(schema: pa.Schema, metadata: dict) -> pa.Schema:
    """Returns `schema` carrying `metadata` as JSON under the key `prescreen`."""
    return schema.with_metadata({b"prescreen": json.dumps(metadata, sort_keys=True).encode()})


def read_metadata(schema: pa.Schema) -> dict:
    """Returns what `with_metadata` stored."""
    return json.loads(schema.metadata[b"prescreen"])
