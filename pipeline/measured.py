"""What a run's scores are worth on those of its images whose labels the manifest carried."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from model.calibration import calibration_from_json
from model.evaluation import any_abnormality, evaluate
from model.score_table import LabelledScores
from model.thresholds import bare_thresholds
from pipeline.report_tables import RunTables, draw_rows, read_pieces
from schemas.findings import ABNORMAL_FINDINGS, FINDINGS, parse_labels, score_column

MOST_MEASURED = 100_000
"""Images that are measured; of more they are drawn at random, so that time has a bound."""

FEWEST_PATIENTS = 10
"""Patients with a finding, and without it, below which nothing is said of it."""

SAMPLES = 200
"""Of the bootstrap: enough for a 95% interval, few enough for every night."""

_MEASURES = ("auc", "recall", "precision")


@dataclasses.dataclass(frozen=True)
class Measured:
    """Scores against labels.

    Attributes:
      labelled: Scored images with labels that are findings.
      unlabelled: Scored images that carried none.
      not_understood: Scored images whose labels are no findings.
      by_patient: Whether the intervals are over patients, else over images.
      metrics: What `model.evaluation.evaluate` says of the labelled, or of `MOST_MEASURED`
        of them; of a finding that too few have or lack, its positives alone. Empty where
        none is labelled.
      listed: Measured images on the worklist, by whether one of the 14 findings is labelled.
    """

    labelled: int
    unlabelled: int
    not_understood: int
    by_patient: bool = False
    metrics: dict = dataclasses.field(default_factory=dict)
    listed: dict[bool, int] = dataclasses.field(default_factory=dict)

    def to_json(self) -> dict | None:
        """Returns what the record says of it, without the intervals; None without labels."""
        if not self.metrics:
            return None
        findings = self.metrics["findings"]
        return {
            "images": self.metrics["images"],
            "labelled": self.labelled,
            "unlabelled": self.unlabelled,
            "not_understood": self.not_understood,
            "mean_auc": self.metrics["mean_auc"],
            "abnormality_auc": self.metrics["abnormality"]["auc"],
            "findings": {
                name: {
                    "positives": findings[name]["positives"],
                    **{measure: findings[name].get(measure) for measure in _MEASURES},
                }
                for name in ABNORMAL_FINDINGS
            },
        }


def measure(tables: RunTables, record: dict) -> Measured:
    """Returns scores of a run against the labels that it carried, which count as the truth.

    An empty label says that nobody has read the image, as in `model.label_table`: it is left
    out, and `No Finding` is not. What is no label at all is left out too, since a night must
    not fail by it, and all these are counted.

    Args:
      tables: Its files.
      record: Tells its thresholds, and its calibration.
    """
    labels, codes = _read_labels(tables.scores)
    labelled = np.flatnonzero(codes >= 0)
    counts = (len(labelled), int((codes == _EMPTY).sum()), int((codes == _UNKNOWN).sum()))
    if not len(labelled):
        return Measured(*counts)
    chosen = labelled[draw_rows(len(labelled), MOST_MEASURED)]
    table, by_patient = _read_scores(tables.scores, chosen, labels[codes[chosen]])
    calibration = record["calibration"] and calibration_from_json(record["calibration"], "record")
    metrics = evaluate(
        table,
        thresholds=bare_thresholds(record["thresholds"]),
        samples=SAMPLES,
        probabilities=calibration.apply(table.scores) if calibration else None,
    )
    _leave_out_rare(metrics, table)
    return Measured(*counts, by_patient, metrics, _listed(tables.worklist, table))


_EMPTY, _UNKNOWN = -1, -2
"""Codes of images without labels, and of those whose labels are no findings."""


def _read_labels(files: Sequence[Path]) -> tuple[np.ndarray, np.ndarray]:
    """Returns bool `(combinations, 15)`, and of each row of the scores which one it has."""
    known: dict[str | None, int] = {None: _EMPTY, "": _EMPTY}
    combinations, codes = [], []
    for file in files:
        with pq.ParquetFile(file) as parquet:
            if "labels" not in parquet.schema_arrow.names:
                codes.append(np.full(parquet.metadata.num_rows, _EMPTY))
                continue
            for batch in parquet.iter_batches(columns=["labels"]):
                texts = batch["labels"].to_pylist()
                for text in dict.fromkeys(texts):
                    if text not in known:
                        known[text] = _code(text, combinations)
                codes.append(np.array([known[text] for text in texts], np.int64))
    shape = (len(combinations), len(FINDINGS))
    return np.array(combinations, bool).reshape(shape), np.concatenate([[], *codes]).astype(int)


def _code(text: str, combinations: list[list[bool]]) -> int:
    """Returns the number of a combination of labels, which is new."""
    try:
        names = parse_labels(text)
    except ValueError:
        return _UNKNOWN
    combinations.append([finding in names for finding in FINDINGS])
    return len(combinations) - 1


def _read_scores(
    files: Sequence[Path], chosen: np.ndarray, labels: np.ndarray
) -> tuple[LabelledScores, bool]:
    """Returns the chosen rows beside their labels, and whether their patients are known."""
    columns = [*map(score_column, FINDINGS), "image_id"]
    if "patient_id" in pq.read_schema(files[0]).names:
        columns.append("patient_id")
    drawn = pa.Table.from_batches(
        [batch.take(pa.array(rows)) for batch, rows in read_pieces(files, columns, chosen)]
    )
    ids = drawn["image_id"].to_numpy()
    patients = ids
    if by_patient := columns[-1] == "patient_id" and drawn["patient_id"].null_count < len(ids):
        # Whoever is unknown is a patient of its own, and none that is called as an image is.
        names = drawn["patient_id"].to_numpy()
        patients = np.array([f"p{n}" if n else f"i{i}" for n, i in zip(names, ids, strict=True)])
    table = LabelledScores(
        image_ids=ids,
        findings=FINDINGS,
        scores=np.stack([drawn[score_column(name)].to_numpy() for name in FINDINGS], axis=1),
        labels=labels,
        patients=patients,
        attributes={},
    )
    return table, by_patient


def _leave_out_rare(metrics: dict, table: LabelledScores) -> None:
    """Takes out what chance alone decides, and the means over the 14 findings with it."""
    _, owner = np.unique(table.patients, return_inverse=True)

    def is_rare(positive: np.ndarray) -> bool:
        groups = (len(np.unique(owner[which])) for which in (positive, ~positive))
        return min(groups) < FEWEST_PATIENTS

    for name in ABNORMAL_FINDINGS:
        positive = table.labels[:, FINDINGS.index(name)]
        if is_rare(positive):
            metrics["findings"][name] = {"positives": int(positive.sum())}
            metrics["mean_auc"] = None
    if is_rare(any_abnormality(table)):
        metrics["abnormality"]["auc"] = None


def _listed(worklist: Path, table: LabelledScores) -> dict[bool, int]:
    ids, listed = pa.array(table.image_ids, pa.string()), np.zeros(len(table), bool)
    with pq.ParquetFile(worklist) as parquet:
        for batch in parquet.iter_batches(columns=["image_id"]):
            listed[pc.index_in(batch["image_id"], ids).drop_null().to_numpy()] = True
    abnormal = any_abnormality(table)
    return {which: int((listed & (abnormal == which)).sum()) for which in (True, False)}
