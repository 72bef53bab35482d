"""Scores of images beside what is known of them, joined for evaluation and tuning."""

import dataclasses
import gzip
import re
import zlib
from collections.abc import Mapping

import numpy as np
import pandas as pd

from model.label_table import Labels, read_labels
from model.score_files import Scores, read_scores, some_images
from schemas.errors import InputError
from schemas.findings import FINDINGS

SPLITS = ("all", "official")

_FOLDER = re.compile(r".*(?:/|\.(?:tar|tar\.gz|tgz)#)")
"""What stands before the base name in an id: folders, or an archive and its folders."""


@dataclasses.dataclass(frozen=True)
class LabelledScores:
    """Images that have scores and labels.

    Attributes:
      image_ids: str `(images,)`, as the scores name them.
      findings: Those with a score, in the order of `FINDINGS`: all 15, or the 14.
      scores: float32 `(images, findings)`, 0 to 1.
      labels: bool `(images, findings)`.
      patients: str `(images,)`.
      attributes: By name (`sex`, `age_band`, `view_position`, those known for any
        image) str `(images,)`; empty where unknown.
      unscored: Number of labelled images of the split that have no score and are
        not here.
      unlabelled: Number of scored images that have no label and are not here.
    """

    image_ids: np.ndarray
    findings: tuple[str, ...]
    scores: np.ndarray
    labels: np.ndarray
    patients: np.ndarray
    attributes: Mapping[str, np.ndarray]
    unscored: int = 0
    unlabelled: int = 0

    def __len__(self) -> int:
        return len(self.image_ids)

    def select(self, images: np.ndarray) -> "LabelledScores":
        """Returns the chosen images, by bool mask or by indices."""
        return dataclasses.replace(
            self,
            image_ids=self.image_ids[images],
            scores=self.scores[images],
            labels=self.labels[images],
            patients=self.patients[images],
            attributes={name: values[images] for name, values in self.attributes.items()},
        )


def read_labelled_scores(
    scores: str,
    labels: str | Labels,
    *,
    score_prefix: str = "score_",
    split: str = "all",
    official_test_list: str | None = None,
    only_labelled: bool = False,
) -> LabelledScores:
    """Reads scores and labels, and joins them; see the functions it is made of.

    Args:
      scores: As `model.score_files.read_scores` reads it.
      labels: As `model.label_table.read_labels` reads it, or what it has read.
      score_prefix: What stands before the finding in the names of score columns.
      split: One of `SPLITS`; `official` keeps the images of `official_test_list`.
      official_test_list: As `read_image_list` reads it; wanted for `official`.
      only_labelled: Whether to leave out the scored images whose id has no label, and to
        look up no base name; else they are an error.

    Raises:
      InputError: A file breaks a rule, or an image with a score has no label.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {SPLITS}. Received: {split!r}.")
    if split == "official" and official_test_list is None:
        raise InputError(
            "--split official needs --test-list FILE, the NIH's list of test images, one file"
            " name a line (test_list.txt). Received: none."
        )
    chosen = read_scores(scores, score_prefix)
    known = labels if isinstance(labels, Labels) else read_labels(labels)
    if split == "official":
        names = read_image_list(official_test_list)
        chosen, known = _keep_scores(chosen, names, scores), _keep_labels(known, names)
    if not only_labelled:
        return join_labels(chosen, known)
    labelled = pd.Index(known.image_ids).get_indexer(chosen.image_ids) >= 0
    table = join_labels(chosen.select(labelled), known)
    return dataclasses.replace(table, unlabelled=int((~labelled).sum()))


def read_image_list(path: str) -> frozenset[str]:
    """Returns the base names in a text file, one image a line, gzip allowed.

    Raises:
      InputError: The file cannot be read as text, or is empty.
    """
    opened = gzip.open if path.lower().endswith(".gz") else open
    try:
        with opened(path, "rt", encoding="utf-8-sig") as file:
            names = frozenset(base_name(line.strip()) for line in file if line.strip())
    except (OSError, EOFError, zlib.error, UnicodeError) as error:
        cause = getattr(error, "strerror", None) or type(error).__name__
        raise InputError(
            f"{path} must be a text file with one image a line. Received: {cause}."
        ) from error
    if not names:
        raise InputError(f"{path} must name at least one image. Received: none.")
    return names


def base_name(image_id: str) -> str:
    """Returns an id without folders, and without the archive of a member."""
    return _FOLDER.sub("", image_id)


def join_labels(scores: Scores, labels: Labels) -> LabelledScores:
    """Returns scores beside their labels, in the order of the scores.

    An image is looked up by its id, else by its base name, if only one labelled
    image and only one scored image have it.

    Raises:
      InputError: An image has no label, or its patient is unknown.
    """
    rows = _label_rows(scores.image_ids, labels.image_ids)
    patients = labels.patients[rows]
    if len(without := scores.image_ids[patients == ""]):
        raise InputError(
            "The labels must name the patient of every image. Received:"
            f" {some_images(without)} without. Intervals are over patients."
        )
    columns = [FINDINGS.index(finding) for finding in scores.findings]
    attributes = {name: values[rows] for name, values in labels.attributes.items()}
    return LabelledScores(
        image_ids=scores.image_ids,
        findings=scores.findings,
        scores=scores.scores,
        labels=labels.labels[np.ix_(rows, columns)],
        patients=patients,
        attributes={name: values for name, values in attributes.items() if (values != "").any()},
        unscored=len(labels) - len(scores),
    )


def _label_rows(image_ids: np.ndarray, labelled: np.ndarray) -> np.ndarray:
    """Returns int `(images,)`: the row of each image among the labelled."""
    rows = pd.Index(labelled).get_indexer(image_ids)
    open_images = rows < 0
    if open_images.any():
        rows[open_images] = _rows_by_base_name(image_ids, labelled)[open_images]
    if len(missing := image_ids[rows < 0]):
        raise InputError(
            f"Every image with a score must have a label. Received: {some_images(missing)}"
            " without, by id and by base name. Add their labels, or take them out of the scores."
        )
    return rows


def _rows_by_base_name(image_ids: np.ndarray, labelled: np.ndarray) -> np.ndarray:
    """Returns rows among the labelled; -1 where the base name is not there just once."""
    names = pd.Series([base_name(image_id) for image_id in labelled])
    row_of = {name: row for row, name in names[~names.duplicated(keep=False)].items()}
    own = pd.Series([base_name(image_id) for image_id in image_ids])
    # Two images of one base name would share a label; neither gets it.
    unique = ~own.duplicated(keep=False)
    return np.array([row_of.get(name, -1) for name in own.where(unique)])


def _keep_scores(scores: Scores, names: frozenset[str], source: str) -> Scores:
    kept = np.array([base_name(image_id) in names for image_id in scores.image_ids], bool)
    if not kept.any():
        raise InputError(
            f"{source} must hold images of --test-list. Received: none of them."
            " Leave out --split official, or score the test images."
        )
    return scores.select(kept)


def _keep_labels(labels: Labels, names: frozenset[str]) -> Labels:
    kept = np.array([base_name(image_id) in names for image_id in labels.image_ids], bool)
    return Labels(
        labels.image_ids[kept],
        labels.labels[kept],
        labels.patients[kept],
        {name: values[kept] for name, values in labels.attributes.items()},
    )
