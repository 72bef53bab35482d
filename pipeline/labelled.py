"""Labelled images of a manifest, divided into parts and held in memory."""

import os
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from model.finishing import LabelledImages
from model.training import split_by_patient
from pipeline.elements import RejectedImage
from pipeline.images import load_image
from pipeline.manifest import ManifestRow, check_manifest, read_row_group
from pipeline.manifest_formats import manifest_columns
from pipeline.read_ahead import ReadAhead
from schemas.errors import InputError
from schemas.findings import FINDINGS, parse_labels

_PARTS = {"train": 0.7, "validation": 0.15, "test": 0.15}
"""Share of patients in each part where the manifest has no column `split`."""


def load_parts(manifest: str, seed: int) -> tuple[dict[str, LabelledImages], str]:
    """Returns the parts of a labelled manifest by name, and how they came about.

    Args:
      manifest: With `labels` and `patient_id`; a column `split` says which image is
        in which part, otherwise patients are divided at random.
      seed: Of that division.

    Raises:
      InputError: Labels or patients are missing, a split is unknown, a part is
        empty, a patient stands in two parts, or an image cannot be decoded.
    """
    given = "split" in manifest_columns(manifest)
    rows, columns = _read(manifest, ("split",) if given else ())
    labels = _label_matrix(columns.get("labels", [None] * len(rows)))
    patients = _patients(columns.get("patient_id", [None] * len(rows)))
    if given:
        split, indices = "the manifest's column split", _given_split(columns["split"], patients)
    else:
        split = f"{_PARTS['test']:.0%} of patients"
        indices = split_by_patient(patients, seed, _PARTS)
    pixels = _decode(rows)
    parts = {name: LabelledImages(pixels[part], labels[part]) for name, part in indices.items()}
    return parts, split


def _read(
    manifest: str, carry: Sequence[str]
) -> tuple[list[ManifestRow], Mapping[str, list[str | None]]]:
    """Returns the rows, and the carried columns by name."""
    with tempfile.TemporaryDirectory() as folder:
        into = str(Path(folder) / "manifest.parquet")
        checked = check_manifest(manifest, into=into, carry=carry)
        groups = range(checked.row_groups)
        rows = [row for group in groups for row in read_row_group(checked.path, group)]
    values = zip(*(row.carried for row in rows), strict=True)
    return rows, {name: list(cells) for name, cells in zip(checked.carried, values, strict=True)}


def _label_matrix(labels: list[str | None]) -> np.ndarray:
    """Returns bool `(images, 15)` in the order of `FINDINGS`."""
    if None in labels:
        raise InputError(
            f"manifest must give labels for every image. Received: {labels.count(None)} without."
            " Add a column labels, findings joined by '|'."
        )
    try:
        named = [parse_labels(names) for names in labels]
    except ValueError as error:
        raise InputError(str(error)) from error
    return np.array([[finding in names for finding in FINDINGS] for names in named])


def _patients(patients: list[str | None]) -> list[str]:
    if None in patients:
        raise InputError(
            f"manifest must give patient_id for every image. Received: {patients.count(None)}"
            " without. Images of one patient in two parts would flatter the numbers."
        )
    return patients


def _given_split(split: list[str | None], patients: list[str]) -> dict[str, np.ndarray]:
    """Returns the indices of each part."""
    unknown = sorted({value or "" for value in split} - set(_PARTS))
    absent = sorted(set(_PARTS) - set(split))
    if unknown or absent:
        raise InputError(
            f"split must be one of {', '.join(_PARTS)}, each at least once."
            f" Received: unknown {unknown}, absent {absent}."
        )
    parts_of = defaultdict(set)
    for patient, part in zip(patients, split, strict=True):
        parts_of[patient].add(part)
    if leaks := sum(len(parts) > 1 for parts in parts_of.values()):
        raise InputError(
            "split must keep all images of a patient in one part."
            f" Received: {leaks} patients in several. Divide by patient."
        )
    return {name: np.flatnonzero([value == name for value in split]) for name in _PARTS}


def _decode(rows: list[ManifestRow]) -> np.ndarray:
    """Returns uint8 `(images, 224, 224)`, prepared exactly as for scoring."""
    threads = os.cpu_count() or 1
    ahead = ReadAhead(load_image, threads=threads, depth=8 * threads)
    images = []
    for row in tqdm(rows, unit="image", disable=None):
        images.extend(ahead.put(row))
    images.extend(ahead.drain())
    ahead.close()
    bad = [image for image in images if isinstance(image, RejectedImage)]
    if bad:
        named = ", ".join(f"{image.row.image_id} ({image.error.reason})" for image in bad[:3])
        raise InputError(
            f"manifest must name images that decode. Received: {len(bad)} that do not, first"
            f" {named}. Take them out."
        )
    return np.stack([image.pixels for image in images])
