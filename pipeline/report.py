"""The report of a run: one HTML file that needs nothing else."""

import dataclasses
import functools
from collections.abc import Iterator
from pathlib import Path

import jinja2
import numpy as np

from model.drift import SAMPLES, Change, Observations, Statistic, floors
from pipeline.comparison import FEWEST_IMAGES, Comparison, EarlierRun, compare
from pipeline.contact_sheet import MOST_IMAGES, contact_sheet
from pipeline.layout import write_atomically
from pipeline.measured import FEWEST_PATIENTS, MOST_MEASURED, Measured, measure
from pipeline.report_tables import (
    MOST_SAMPLED,
    SCORE_BINS,
    RunTables,
    ScoreCounts,
    read_examples,
    read_scores,
)
from schemas.findings import ABNORMAL_FINDINGS, FINDINGS

NOTICE = "Research prototype, not for diagnosis."

_PLACES = ("manifest", "output", "bundle", "thresholds", "retry_rejects", "beam_args")
"""Options that hold paths or uris, which a report never shows."""

_CARD = {
    "split": "Measured on",
    "images": "Images there",
    "patients": "Patients there",
    "mean_auc": "Mean AUC of the 14 findings",
}


@dataclasses.dataclass(frozen=True)
class MadeReport:
    """A report, and what it found.

    Attributes:
      html: The file's content.
      comparison: With an earlier run; None where there is none.
      measured: Scores against the labels that the run carried.
    """

    html: str
    comparison: Comparison | None
    measured: Measured


@dataclasses.dataclass(frozen=True)
class FindingRow:
    """A line of the table of findings.

    Attributes:
      finding: Its name.
      bars: Heights of the histogram, 0 to 1, on a logarithmic scale of images.
      threshold: Score from which on it is flagged; None for `No Finding`.
      flagged: Images that are.
      share: Of the scored.
      median, high: Scores below which half and nine tenths are, to a bin.
    """

    finding: str
    bars: list[float]
    threshold: float | None
    flagged: int | None
    share: float | None
    median: float | None
    high: float | None


def make_report(record: dict, tables: RunTables, earlier: EarlierRun | None) -> MadeReport:
    """Returns the report of a run.

    No path or uri is in it. Images are called by their ids.

    Args:
      record: Of the run; one that is about to be published lacks files and later timings.
      tables: Its files.
      earlier: A comparable run, if there is one.

    Raises:
      InputError: The earlier run was named by the user, and cannot be read.
    """
    counts, observed = read_scores(tables.scores, record["thresholds"])
    comparison = compare(earlier, observed, record) if earlier else None
    measured = measure(tables, record)
    html = _template().render(
        record=record,
        counts=record["counts"],
        notice=NOTICE,
        findings=list(_finding_rows(counts, record)),
        bins=SCORE_BINS,
        sheet=contact_sheet(tables, record["thresholds"]),
        most_images=MOST_IMAGES,
        examples=read_examples(tables.rejects),
        rate=_rate(record),
        input_statistics=_input_statistics(observed),
        comparison=comparison,
        drift=_drift_rows(comparison) if comparison else [],
        statistics=list(Statistic),
        floors=floors(*comparison.sampled) if comparison and comparison.changes else {},
        samples=SAMPLES,
        most_sampled=MOST_SAMPLED,
        fewest_images=FEWEST_IMAGES,
        measured=measured,
        urgent_first=record.get("worklist", {}).get("urgent_first", False),
        most_measured=MOST_MEASURED,
        fewest_patients=FEWEST_PATIENTS,
        abnormal_findings=ABNORMAL_FINDINGS,
        card=_CARD,
        options={name: value for name, value in record["options"].items() if name not in _PLACES},
    )
    return MadeReport(html, comparison, measured)


def write_report(report: MadeReport, path: Path) -> None:
    """Writes a report; a crash leaves all of it or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, report.html.encode())


@functools.cache
def _template() -> jinja2.Template:
    """Returns the page; compiling it takes as long as all else of a small report."""
    # Ids and carried texts come from outside: whatever is in them is shown, never markup.
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("pipeline"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"share": _share, "number": _number, "words": _words}
    return environment.get_template("report.html")


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"


def _words(finding: str) -> str:
    return finding.replace("_", " ")


def _number(value: int | None) -> str:
    return "–" if value is None else f"{value:,}"


def _finding_rows(counts: ScoreCounts, record: dict) -> Iterator[FindingRow]:
    scored = record["counts"]["scored"]
    for finding in FINDINGS:
        histogram = counts.histograms[finding]
        heights = np.log1p(histogram)
        flagged = counts.flagged.get(finding)
        yield FindingRow(
            finding=finding,
            bars=(heights / max(heights.max(), 1)).round(3).tolist(),
            threshold=record["thresholds"].get(finding),
            flagged=flagged,
            share=flagged / scored if scored and flagged is not None else None,
            median=_below(histogram, 0.5),
            high=_below(histogram, 0.9),
        )


def _below(histogram: np.ndarray, share: float) -> float | None:
    """Returns the upper end of the bin by which that share of the images is reached."""
    if not histogram.any():
        return None
    reached = np.cumsum(histogram) >= share * histogram.sum()
    return (int(np.argmax(reached)) + 1) / len(histogram)


def _rate(record: dict) -> float | None:
    """Returns images a second while this attempt scored; None where there was nothing to do."""
    counts = record["counts"]
    images = counts["scored"] + counts["rejected"] - counts["kept"]
    return images / record["timings_s"]["score"] if images else None


def _input_statistics(observed: Observations) -> dict[str, float]:
    names = {"mean_intensity": "Mean intensity", "std_intensity": "Standard deviation"}
    if not len(observed.patients):
        return {}
    return {label: float(observed.numbers[name].mean()) for name, label in names.items()}


def _drift_rows(comparison: Comparison) -> dict[str, dict[Statistic, Change]]:
    """Returns the changes by finding or column, those with an alarm first."""
    rows: dict[str, dict[Statistic, Change]] = {}
    for change in comparison.changes:
        rows.setdefault(change.name, {})[change.statistic] = change
    alarmed = {change.name for change in comparison.alarms}
    return dict(sorted(rows.items(), key=lambda row: row[0] not in alarmed))
