"""The commit record: `runs/ID.json`, and what every Parquet file says of its run."""

import dataclasses
import datetime
import platform
from collections.abc import Iterator, Mapping
from importlib import metadata
from typing import Any, Protocol

import pyarrow.parquet as pq

from model.bundle import file_sha256
from pipeline.job import ScoringJob
from pipeline.layout import PUBLISHED, RunPaths
from pipeline.report import MadeReport
from pipeline.run_state import RunState, record_digest
from pipeline.settings import RowSettings
from schemas.contract import InputContract

RECORD_VERSION = 1
_SOFTWARE = ("prescreen", "tensorflow", "keras", "apache-beam", "pyarrow", "numpy", "pillow")


class ModelFacts(Protocol):
    """What a run says of its model: a bundle says it, or the record of an earlier run."""

    title: str
    statement: str
    input_contract: InputContract
    metrics: Mapping


@dataclasses.dataclass(frozen=True)
class RunFacts:
    """What is known of a run before it commits.

    Attributes:
      state: When it began, under which settings, and how often.
      settings: What changes a row.
      manifest_sha256: Of the checked manifest; tells whether it is the same one.
      runner: Name of the Beam runner.
      options: All options as given or defaulted.
      timings_s: Seconds by stage of this attempt; the commit adds its own.
      read_retries: Reads tried again in this attempt.
      scoring_started_at: When the run began that made the scores, if another one made them.
      counts: What else is counted.
    """

    state: RunState
    settings: RowSettings
    manifest_sha256: str
    runner: str
    options: dict
    timings_s: dict[str, float]
    read_retries: int
    scoring_started_at: str | None = None
    counts: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def file_metadata(job: ScoringJob, bundle: ModelFacts) -> dict:
    """Returns what every Parquet file of a run says of itself."""
    return {
        "run_id": job.paths.run_id,
        "model_id": job.scorer.model_id,
        "model_title": bundle.title,
        "model_statement": bundle.statement,
        "thresholds_id": job.thresholds_id,
        "thresholds": {name: value.threshold for name, value in job.thresholds.items()},
        # Null says that abnormality was computed from uncalibrated scores.
        "calibration": job.calibration.to_json() if job.calibration else None,
        "tta": job.scorer.tta,
        "precision": job.scorer.precision,
        "input_contract": bundle.input_contract.to_json(),
        "software_version": metadata.version("prescreen"),
    }


def build_record(
    job: ScoringJob,
    bundle: ModelFacts,
    facts: RunFacts,
    counts: dict,
    reasons: dict,
    worklist: dict,
    files: list[dict],
    report: MadeReport | None = None,
) -> dict:
    """Returns the record of a run whose files are built and not yet published.

    Args:
      job: What was scored.
      bundle: What it was scored with.
      facts: What the run knew before.
      counts: Images by what became of them.
      reasons: Rejected images by reason code.
      worklist: How it ranks, and how many images of each finding it captures.
      files: Path, size, digest and rows of each.
      report: What it found; None where none is made, or before it is.
    """
    expected = bundle.metrics.get("flag_rate", {}).get(job.scorer.tta)
    scored = counts["scored"]
    record = {
        "record_version": RECORD_VERSION,
        **file_metadata(job, bundle),
        "counts": {**counts, **facts.counts},
        "rejected_by_reason": reasons,
        "flag_rate": {
            "expected": expected,
            "actual": counts["flagged"] / scored if scored else None,
        },
        "worklist": worklist,
        "drift": report.comparison.to_json() if report and report.comparison else None,
        "measured": report.measured.to_json() if report else None,
        "files": files,
        "model_metrics": dict(bundle.metrics),
        "manifest_sha256": facts.manifest_sha256,
        "options": facts.options,
        "settings": facts.settings.to_json(),
        "settings_digest": facts.settings.digest,
        "scoring_digest": facts.settings.scoring_digest,
        "parent_run": facts.state.parent_run,
        "supersedes": facts.state.supersedes,
        "scoring_started_at": facts.scoring_started_at,
        "attempts": facts.state.attempts,
        "read_retries": facts.read_retries,
        "runner": facts.runner,
        "timings_s": {name: round(seconds, 3) for name, seconds in facts.timings_s.items()},
        "software": {
            "python": platform.python_version(),
            **{name: metadata.version(name) for name in _SOFTWARE},
        },
        "started_at": facts.state.started.isoformat(timespec="seconds"),
        "ended_at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    return {**record, "record_sha256": record_digest(record)}


def built_files(paths: RunPaths) -> Iterator[dict]:
    """Gives the path to be, size, digest and rows of each file to be published but overlays."""
    for kind in (kind for kind in PUBLISHED if kind != "gradcam"):
        for path in sorted(paths.built(kind).iterdir() if paths.built(kind).is_dir() else ()):
            is_table = path.suffix == ".parquet"
            yield {
                "path": paths.name_of(paths.published(kind) / path.name),
                "size_bytes": path.stat().st_size,
                "sha256": file_sha256(path),
                "rows": pq.read_metadata(path).num_rows if is_table else None,
            }
