"""Scores of images, read from a file, a folder or the record of a run."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pandas as pd

from model.calibration import Calibration, calibration_from_json
from model.label_table import IMAGE_COLUMNS, Labels, find_column, read_labels, require_unique
from model.table_files import read_table, table_columns, table_schema
from model.thresholds import Thresholds, bare_thresholds
from schemas.errors import InputError
from schemas.findings import ABNORMAL_FINDINGS, FINDINGS, NO_FINDING
from schemas.tables import read_metadata


@dataclasses.dataclass(frozen=True)
class Scores:
    """Scores of one source.

    Attributes:
      image_ids: str `(images,)`, each once.
      findings: Those with a score, in the order of `FINDINGS`: all 15, or the 14.
      scores: float32 `(images, findings)`, 0 to 1.
    """

    image_ids: np.ndarray
    findings: tuple[str, ...]
    scores: np.ndarray

    def __len__(self) -> int:
        return len(self.image_ids)

    def select(self, images: np.ndarray) -> "Scores":
        """Returns the chosen images, by bool mask."""
        return Scores(self.image_ids[images], self.findings, self.scores[images])


def read_scores(scores: str, score_prefix: str = "score_") -> Scores:
    """Reads the scores of one source.

    Args:
      scores: A CSV, TSV, JSON lines or Parquet file, a folder of Parquet files, or
        the record of a run, `OUTPUT/runs/ID.json`.
      score_prefix: What stands before the finding in the names of score columns; a
        space in a finding may be an underscore there, and the other way round.

    Raises:
      InputError: A file cannot be read, has no column of images or lacks one of the
        14 findings, names an image twice, or holds a score that is not 0 to 1.
    """
    files = _score_files(scores)
    parts = [_read_part(str(file), score_prefix) for file in files]
    if len({tuple(part.columns) for part in parts}) > 1:
        raise InputError(
            f"{scores} must hold files with the same score columns. Received: some with and some"
            f" without {NO_FINDING}. Name one file."
        )
    table = pd.concat(parts, ignore_index=True)
    if not len(table):
        raise InputError(f"{scores} must hold at least one image. Received: none.")
    require_unique(table["image"], scores)
    findings = tuple(table.columns[1:])
    values = table[list(findings)].to_numpy(np.float32)
    _require_scores(values, table["image"], scores)
    return Scores(table["image"].to_numpy(object), findings, values)


def read_own_labels(scores: str) -> Labels:
    """Returns the labels that stand beside scores, as a run carries those of its manifest.

    Args:
      scores: As for `read_scores`.

    Raises:
      InputError: As `model.label_table.read_labels`; or no image has labels.
    """
    parts = [read_labels(str(file)) for file in _score_files(scores)]
    if not sum(map(len, parts)):
        raise InputError(
            f"{scores} must carry the labels of some images, or --labels must name a file of them."
            " Received: none."
        )
    shared = set.intersection(*(set(part.attributes) for part in parts))
    return Labels(
        *(
            np.concatenate([getattr(part, name) for part in parts])
            for name in ("image_ids", "labels", "patients")
        ),
        {
            name: np.concatenate([part.attributes[name] for part in parts])
            for name in sorted(shared)
        },
    )


def run_thresholds(scores: str) -> Thresholds | None:
    """Returns by finding the thresholds that a run flagged with.

    A run says nothing of what stood behind them: the rest of each is NaN.

    Args:
      scores: As for `read_scores`.

    Returns:
      None where the files say nothing of a run.

    Raises:
      InputError: A file cannot be read, or they come from runs with different
        thresholds.
    """
    found = [values["thresholds"] for values in _facts_of_runs(scores)]
    if any(thresholds != found[0] for thresholds in found):
        raise InputError(
            f"{scores} must hold scores that were flagged with the same thresholds. Received:"
            " runs with different ones. Name one run, or give --thresholds."
        )
    return bare_thresholds(found[0]) if found else None


def run_calibration(scores: str) -> Calibration | None:
    """Returns the calibration that a run computed `abnormality` with.

    Args:
      scores: As for `read_scores`.

    Returns:
      None where there was none, or the files say nothing of a run.

    Raises:
      InputError: A file cannot be read, or they come from runs with different
        calibrations.
    """
    found = [values.get("calibration") for values in _facts_of_runs(scores)]
    if any(calibration != found[0] for calibration in found):
        raise InputError(
            f"{scores} must hold scores of one calibration. Received: runs with different ones."
            " Name one run."
        )
    return calibration_from_json(found[0], scores) if found and found[0] else None


def _facts_of_runs(scores: str) -> list[dict]:
    """Returns what the files say of the runs that they come from; nothing for other files."""
    files = [file for file in _score_files(scores) if file.suffix == ".parquet"]
    return [values for file in files if (values := _metadata_of_run(str(file)))]


def _metadata_of_run(path: str) -> dict | None:
    schema = table_schema(path)
    return read_metadata(schema) if b"prescreen" in (schema.metadata or {}) else None


def _score_files(scores: str) -> list[Path]:
    """Returns the files that hold the scores of a file, a folder or a run record."""
    path = Path(scores)
    if path.is_dir():
        if (path / "runs").is_dir():
            raise InputError(
                f"--scores must be one run, or files of scores. Received: {scores}, a folder of"
                f" runs. Name {path / 'runs' / 'ID.json'}."
            )
        files = sorted(path.rglob("*.parquet"))
        if not files:
            raise InputError(f"{scores} must hold Parquet files. Received: none in the folder.")
        return files
    return _files_of_run(path) if path.suffix == ".json" else [path]


def _files_of_run(record: Path) -> list[Path]:
    try:
        values = json.loads(record.read_bytes())
        listed = [file["path"] for file in values["files"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{record} must be the record of a run, OUTPUT/runs/ID.json."
            f" Received: {type(error).__name__}."
        ) from error
    return [record.parent.parent / path for path in listed if path.startswith("scores/")]


def _read_part(path: str, prefix: str) -> pd.DataFrame:
    """Returns the image as `image`, then one column a finding, named as the finding."""
    present = table_columns(path)
    image = find_column(present, IMAGE_COLUMNS, path)
    # The prefix is cut off first: an underscore of its own may be meant, as in score_.
    named = {
        name[len(prefix) :].replace(" ", "_"): name for name in present if name.startswith(prefix)
    }
    columns = {
        finding: named[finding.replace(" ", "_")]
        for finding in FINDINGS
        if finding.replace(" ", "_") in named
    }
    if missing := [finding for finding in ABNORMAL_FINDINGS if finding not in columns]:
        raise InputError(
            f"{path} must have a column of scores for each of the 14 findings, named"
            f" {prefix}<Finding>. Received: none for {', '.join(missing)}."
            " Give the prefix with --score-prefix."
        )
    table = read_table(path, [image], list(columns.values()))
    return table.set_axis(["image", *columns], axis=1)


def _require_scores(values: np.ndarray, image_ids: pd.Series, source: str) -> None:
    # Written so that NaN fails it too.
    bad = ~((values >= 0) & (values <= 1)).all(axis=1)
    if bad.any():
        raise InputError(
            f"{source} must hold scores from 0 to 1. Received: {some_images(image_ids[bad])} with"
            " others, or with none. Score them again, or take them out."
        )


def some_images(image_ids: np.ndarray | pd.Series) -> str:
    """Returns a count, and the first three ids."""
    return f"{len(image_ids)} images (first {', '.join(image_ids[:3])})"
