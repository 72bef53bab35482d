"""What is known of labelled images: findings, patient, sex, age and view position."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from model.table_files import read_table, table_columns
from schemas.errors import InputError
from schemas.findings import FINDINGS, parse_labels

IMAGE_COLUMNS = ("image_id", "Image Index", "image")
"""Columns that may name the image; the first that is there does."""

_LABEL_COLUMNS = ("labels", "Finding Labels")
_PATIENT_COLUMNS = ("patient_id", "Patient ID")
_VIEW_COLUMNS = ("view_position", "View Position")
_SEX_COLUMNS = ("Patient Gender", "Patient Sex")
_AGE_COLUMNS = ("Patient Age",)

_AGE_BANDS = ("0-17", "18-39", "40-59", "60-79", "80+")
_AGE_BOUNDS = (18, 40, 60, 80)
_HIGHEST_AGE = 120
"""In years. The first edition of the NIH list has ages of 148 to 414: typing errors."""

_YEARS = {"": 1, "Y": 1, "M": 1 / 12, "D": 1 / 365}
"""Years in a unit; older editions of the NIH list write 060Y, 011M, 013D."""


@dataclasses.dataclass(frozen=True)
class Labels:
    """Labelled images of one file.

    Attributes:
      image_ids: str `(images,)`, each once.
      labels: bool `(images, 15)` in the order of `FINDINGS`.
      patients: str `(images,)`; empty where the file names none.
      attributes: By name (`sex`, `age_band`, `view_position`, those the file has
        columns for) str `(images,)`; empty where unknown.
    """

    image_ids: np.ndarray
    labels: np.ndarray
    patients: np.ndarray
    attributes: Mapping[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.image_ids)


def read_labels(path: str) -> Labels:
    """Reads a manifest with labels, or the NIH `Data_Entry` CSV, in any edition.

    Rows without labels are left out: a manifest may name images nobody has read.

    Args:
      path: CSV, TSV, JSON lines or Parquet; see `model.table_files`.

    Raises:
      InputError: The file cannot be read, lacks a column of images, labels or
        patients, names an image twice, or holds labels that are no findings.
    """
    present = table_columns(path)
    columns = {
        "image": find_column(present, IMAGE_COLUMNS, path),
        "labels": find_column(present, _LABEL_COLUMNS, path),
        "patient": find_column(present, _PATIENT_COLUMNS, path),
    }
    optional = {"view_position": _VIEW_COLUMNS, "sex": _SEX_COLUMNS, "age": _AGE_COLUMNS}
    for name, choices in optional.items():
        if found := [choice for choice in choices if choice in present]:
            columns[name] = found[0]
    table = read_table(path, list(columns.values())).set_axis(list(columns), axis=1)
    table = table[table["labels"] != ""]
    require_unique(table["image"], path)
    return Labels(
        image_ids=table["image"].to_numpy(object),
        labels=_label_matrix(table["labels"], path),
        patients=table["patient"].to_numpy(object),
        attributes=_attributes(table),
    )


def count_labels(labels: np.ndarray) -> dict[str, int]:
    """Returns the number of images with each of `FINDINGS` and, under `images`, of all.

    Args:
      labels: bool `(images, 15)`.
    """
    return {"images": len(labels), **dict(zip(FINDINGS, labels.sum(axis=0).tolist(), strict=True))}


def find_column(present: Sequence[str], choices: Sequence[str], path: str) -> str:
    """Returns the first of `choices` that a table has.

    Raises:
      InputError: It has none of them.
    """
    for choice in choices:
        if choice in present:
            return choice
    raise InputError(f"{path} must have a column {' or '.join(choices)}. Received: none of them.")


def require_unique(image_ids: pd.Series, path: str) -> None:
    """Raises `InputError` where an image stands twice in a table."""
    if len(twice := image_ids[image_ids.duplicated()].unique()):
        raise InputError(
            f"{path} must name each image once. Received: {len(twice)} twice or more, first"
            f" {', '.join(twice[:3])}. Keep one row each."
        )


def _label_matrix(labels: pd.Series, path: str) -> np.ndarray:
    """Returns bool `(images, 15)`; each of the few combinations is parsed once."""
    codes, combinations = pd.factorize(labels)
    try:
        named = [parse_labels(text) for text in combinations]
    except ValueError as error:
        raise InputError(f"{path}: {error}") from error
    rows = [[finding in names for finding in FINDINGS] for names in named]
    return np.array(rows, bool).reshape(-1, len(FINDINGS))[codes]


def _attributes(table: pd.DataFrame) -> dict[str, np.ndarray]:
    attributes = {}
    if "sex" in table:
        attributes["sex"] = table["sex"].str.strip().to_numpy(object)
    if "age" in table:
        attributes["age_band"] = _age_bands(table["age"])
    if "view_position" in table:
        attributes["view_position"] = table["view_position"].str.strip().to_numpy(object)
    return attributes


def _age_bands(ages: pd.Series) -> np.ndarray:
    """Returns the band of each age; empty for no number, and for one over 120 years."""
    parts = ages.str.strip().str.extract(r"^(\d+)([YMD]?)$")
    years = pd.to_numeric(parts[0]).to_numpy(float) * parts[1].map(_YEARS).to_numpy(float)
    bands = np.array(_AGE_BANDS, object)[np.searchsorted(_AGE_BOUNDS, years, side="right")]
    bands[~(years <= _HIGHEST_AGE)] = ""
    return bands
