"""`metrics.md`: an evaluation for a person to read."""

from collections.abc import Sequence

from model.metrics import CALIBRATION_BINS
from schemas.findings import ABNORMAL_FINDINGS

_ATTRIBUTES = {"sex": "Sex", "age_band": "Age, years", "view_position": "View position"}


def write_report(metrics: dict, plots: Sequence[str]) -> str:
    """Returns Markdown on what `model.evaluation.evaluate` returned.

    Args:
      metrics: Its result.
      plots: File names of the plots that lie beside the report.
    """
    sections = [_head(metrics), _findings(metrics), _undefined(metrics)]
    if "flag_rate" in metrics:
        sections.append(_thresholds(metrics))
    sections.append(_subgroups(metrics))
    if "comparison" in metrics:
        sections.append(_comparison(metrics["comparison"]))
    sections.append("## Plots\n\n" + "\n".join(f"![{name}]({name})" for name in plots))
    return "\n\n".join(section for section in sections if section) + "\n"


def format_range(values: dict, name: str, digits: int = 3) -> str:
    """Returns `0.838 (0.832 to 0.844)`, or `undefined`."""
    keys = (name, f"{name}_low", f"{name}_high")
    value, low, high = (_number(values[key], digits) for key in keys)
    return "undefined" if value == "-" else f"{value} ({low} to {high})"


def _head(metrics: dict) -> str:
    bootstrap = metrics["bootstrap"]
    lines = [
        "# Evaluation",
        "",
        "Research prototype, not for diagnosis. Labels are taken as the truth.",
        "",
        f"- {metrics['images']:,} images of {metrics['patients']:,} patients;"
        f" {metrics['unscored']:,} labelled images have no score and are not part of this,"
        f" nor are {metrics['unlabelled']:,} scored images without a label.",
        f"- Mean AUC over the 14 findings: {format_range(metrics, 'mean_auc')}.",
        f"- Any of the 14 findings, AUC of `abnormality`:"
        f" {format_range(metrics['abnormality'], 'auc')}.",
        f"- In brackets, 95% intervals: {bootstrap['samples']:,} bootstrap samples of patients,"
        f" seed {bootstrap['seed']}. Samples in which a number is undefined are left out.",
    ]
    return "\n".join(lines)


def _findings(metrics: dict) -> str:
    rows = [
        (
            name,
            f"{values['positives']:,}",
            format_range(values, "auc"),
            format_range(values, "average_precision"),
            _number(values["brier"], 4),
            _number(values["calibration_error"], 4),
        )
        for name, values in metrics["findings"].items()
    ]
    read_as = (
        "of the calibrated probabilities"
        if metrics["calibrated"]
        else "of the scores as if they were probabilities, which they need not be"
    )
    note = (
        f"Brier score and calibration error are {read_as}; the latter over {CALIBRATION_BINS}"
        " bins of equally many images. No Finding is not one of the 14. An interval of a"
        " single value comes of too few images: no sample of them can show another."
    )
    header = ("finding", "positives", "AUC", "average precision", "Brier", "calibration error")
    return f"## Findings\n\n{_table(header, rows)}\n\n{note}"


def _undefined(metrics: dict) -> str:
    """Returns why an area is missing; empty where none is."""
    names = {
        "positive": [name for name, each in metrics["findings"].items() if not each["positives"]],
        "negative": [
            name
            for name, each in metrics["findings"].items()
            if each["positives"] == metrics["images"]
        ],
    }
    lines = [
        f"No {kind} image of {', '.join(found)}: the AUC is undefined."
        for kind, found in names.items()
        if found
    ]
    missing = [name for name in ABNORMAL_FINDINGS if metrics["findings"][name]["auc"] is None]
    if missing:
        lines.append("So is the mean over the 14 findings; one over fewer is not given instead.")
    return "\n".join(lines)


def _thresholds(metrics: dict) -> str:
    rows = []
    for name in ABNORMAL_FINDINGS:
        values = metrics["findings"][name]
        counts = (f"{values['confusion'][key]:,}" for key in ("tp", "fp", "fn", "tn"))
        ranges = (format_range(values, key) for key in ("recall", "precision"))
        rows.append((name, _number(values["threshold"], 4), *ranges, *counts))
    header = ("finding", "threshold", "recall", "precision", "tp", "fp", "fn", "tn")
    note = (
        f"{metrics['flag_rate']:.1%} of the images have a flag, {metrics['flags_per_image']:.2f}"
        " flags an image. tp, fp, fn, tn: true and false positives, false and true negatives."
    )
    return f"## At the thresholds\n\n{_table(header, rows)}\n\n{note}"


def _subgroups(metrics: dict) -> str:
    if not metrics["subgroups"]:
        return ""
    rows = [
        (
            _ATTRIBUTES.get(attribute, attribute),
            value,
            f"{group['images']:,}",
            f"{group['patients']:,}",
            format_range(group, "mean_auc"),
            ", ".join(name for name in ABNORMAL_FINDINGS if group["findings"][name]["auc"] is None),
        )
        for attribute, groups in metrics["subgroups"].items()
        for value, group in groups.items()
    ]
    header = ("", "", "images", "patients", "mean AUC", "undefined for")
    note = "Each finding's AUC in each subgroup is in `metrics.json`."
    return f"## Subgroups\n\n{_table(header, rows)}\n\n{note}"


def _comparison(comparison: dict) -> str:
    keys = ("auc", "baseline_auc", "auc_difference")
    mean = ("Mean of the 14", "", *(format_range(comparison, f"mean_{key}") for key in keys))
    rows = [
        (name, f"{each['positives']:,}", *(format_range(each, key) for key in keys))
        for name, each in comparison["findings"].items()
    ]
    header = ("finding", "positives", "AUC", "AUC of the other scores", "difference")
    note = (
        f"On the {comparison['images']:,} images of {comparison['patients']:,} patients that both"
        f" have; {comparison['only_in_scores']:,} are only here and"
        f" {comparison['only_in_baseline']:,} only there. Both are measured in the same bootstrap"
        " samples. The intervals are not adjusted for comparing 14 findings."
    )
    return f"## Comparison\n\n{_table(header, [mean, *rows])}\n\n{note}"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
