"""The model card: what a bundle is and how good it was seen to be, in Markdown.

Every number comes from the bundle. What it does not hold is said to be not measured
or not recorded, and is not made up for.

Reference: Mitchell et al. 2019, "Model Cards for Model Reporting",
https://arxiv.org/abs/1810.03993.
"""

import json
import re
import typing
from collections.abc import Iterable, Mapping, Sequence

from model.card_text import (
    EXCLUDED,
    INTENDED,
    INTENDED_PHANTOMS,
    INTERVAL_KINDS,
    LIMIT_NIH_LABELS,
    LIMIT_PHANTOMS,
    LIMIT_UNCALIBRATED,
    LIMITS,
    MEASURED,
    NOT_MEASURED,
    RULES,
)
from schemas.findings import ABNORMAL_FINDINGS

if typing.TYPE_CHECKING:  # bundles are written with their card
    from model.bundle import BundleInfo
    from model.feature_distance import FeatureReference
    from model.thresholds import Threshold

_NIH = re.compile(r"\bNIH\b|Chest ?X-?ray-?(8|14)", re.IGNORECASE)
_SHOWN_ELSEWHERE = ("data", "images", "patients", "config", "software", "history")
"""Provenance that is not listed under Training as it is."""


def model_card(info: "BundleInfo") -> str:
    """Returns the card of a bundle as Markdown, ending in a newline."""
    sections = {
        "Intended use": [INTENDED_PHANTOMS if _on_phantoms(info) else INTENDED],
        "Excluded use": _bullets(EXCLUDED),
        "Data and split": _data(info),
        "Metrics": _metrics(info.metrics),
        "Thresholds": _thresholds(info),
        "Calibration": _calibration(info),
        "Subgroups": _subgroups(info.metrics),
        "Distance from the training data": _distance(info.feature_reference),
        "Limits": _bullets(_limits(info)),
        "Training": _training(info.provenance),
    }
    lines = [f"# {info.title}", "", info.statement, "", *_identity(info)]
    for title, content in sections.items():
        lines += ["", f"## {title}", "", *content]
    return "\n".join(lines) + "\n"


def _on_phantoms(info: "BundleInfo") -> bool:
    texts = (info.provenance.get("data", ""), info.title, info.statement)
    return any("phantom" in text.casefold() for text in texts)


def _on_nih(info: "BundleInfo") -> bool:
    split = info.provenance.get("config", {}).get("split", {})
    return split.get("kind") == "official" or bool(_NIH.search(info.provenance.get("data", "")))


def _identity(info: "BundleInfo") -> list[str]:
    contract = info.input_contract
    return _bullets(
        (
            f"Model id: `{info.model_id}`",
            f"Input: `{contract.name}`, {contract.size}x{contract.size} grey",
            f"Output: {len(info.findings)} scores from 0 to 1; No Finding is scored and"
            " never flagged",
        )
    )


def _data(info: "BundleInfo") -> list[str]:
    provenance, metrics = info.provenance, info.metrics
    patients = provenance.get("patients", {})
    parts = [
        f"{name} {count}" + (f" of {patients[name]} patients" if name in patients else "")
        for name, count in provenance.get("images", {}).items()
    ]
    measured = NOT_MEASURED
    if metrics.get("images"):
        of = f" of {metrics['patients']} patients" if metrics.get("patients") else ""
        measured = f"{metrics['images']} images{of}"
    return _bullets(
        (
            f"Images: {provenance.get('data', 'where they are from is not recorded')}",
            f"Parts, in images: {', '.join(parts) or 'not recorded'}",
            f"Split: {metrics.get('split', 'not recorded')}",
            f"Measured on: {measured}",
        )
    )


def _metrics(metrics: Mapping) -> list[str]:
    lines = [
        f"Mean AUC over the {len(ABNORMAL_FINDINGS)} findings:"
        f" {_with_interval(metrics, 'mean_auc')}. AUC of the abnormality score, any finding"
        f" against none: {_with_interval(metrics.get('abnormality', {}), 'auc')}.",
    ]
    if bootstrap := metrics.get("bootstrap"):
        lines[0] += (
            f" In brackets 95% intervals, from {bootstrap['samples']} bootstrap samples by"
            f" {bootstrap['unit']} (seed {bootstrap['seed']})."
        )
    findings = {name: metrics.get("findings", {}).get(name, {}) for name in ABNORMAL_FINDINGS}
    columns = {
        name: title
        for name, title in MEASURED.items()
        if any(values.get(name) is not None for values in findings.values())
    }
    if columns:
        header = ("finding", "positives", *columns.values())
        rows = [
            (name, _or_not(values.get("positives")), *(_with_interval(values, k) for k in columns))
            for name, values in findings.items()
        ]
        lines += ["", *_table(header, rows)]
    if "brier" in columns:
        read_as = "calibrated probabilities" if metrics.get("calibrated") else "the scores as such"
        lines += ["", f"Brier score and calibration error are of {read_as}."]
    if missing := [title for name, title in MEASURED.items() if name not in columns]:
        lines += ["", f"By finding, {NOT_MEASURED}: {', '.join(missing)}."]
    return lines


def _thresholds(info: "BundleInfo") -> list[str]:
    target = info.provenance.get("config", {}).get("target_recall", "not recorded")
    lines = [
        "A score at or above its threshold is flagged. Recall, with its 95% interval, and"
        f" precision are of the part that thresholds were chosen on. Target recall: {target}.",
    ]
    for mode, thresholds in info.thresholds.items():
        rate = info.metrics.get("flag_rate", {}).get(mode)
        share = NOT_MEASURED if rate is None else f"{rate:.0%}"
        header = ("finding", "threshold", "recall", "precision", "positives", "rule", "interval")
        rules = dict.fromkeys(value.rule for value in thresholds.values())
        kinds = dict.fromkeys(value.interval for value in thresholds.values() if value.interval)
        lines += [
            *("", f"### `--tta {mode}`", "", f"Share of images flagged: {share}.", ""),
            *_table(header, (_threshold_row(name, value) for name, value in thresholds.items())),
            "",
            *_bullets(f"rule `{rule}`: {RULES[rule]}" for rule in rules),
            *_bullets(f"interval `{kind}`: {INTERVAL_KINDS[kind]}" for kind in kinds),
        ]
    return lines


def _threshold_row(name: str, value: "Threshold") -> tuple[str, ...]:
    recall = precision = NOT_MEASURED
    if value.recall is not None:
        recall = f"{value.recall:.2f} ({value.recall_low:.2f} to {value.recall_high:.2f})"
    if value.precision is not None:
        precision = f"{value.precision:.2f}"
    positives, interval = _or_not(value.positives), _or_not(value.interval)
    return (name, f"{value.threshold:.3f}", recall, precision, positives, value.rule, interval)


def _calibration(info: "BundleInfo") -> list[str]:
    if info.calibration is None:
        return ["None: the scores are the network's own, and no probabilities."]
    errors = info.metrics.get("calibration", {})
    rows = [
        (
            name,
            "calibrated" if scaling else "left as it is",
            _with_interval(errors.get(name, {}), "log_loss_scores"),
            _with_interval(errors.get(name, {}), "log_loss_calibrated"),
        )
        for name, scaling in info.calibration.scalings.items()
    ]
    return [
        "Platt scaling a finding, fitted on the validation part, and kept where it lowered"
        " the log loss of patients it was not fitted on. It goes into the abnormality score"
        " alone: scores and thresholds stay the network's own.",
        "",
        *_table(("finding", "", "log loss of scores", "log loss, calibrated"), rows),
    ]


def _subgroups(metrics: Mapping) -> list[str]:
    rows = [
        (attribute, value, str(values["images"]), _with_interval(values, "mean_auc"))
        for attribute, groups in metrics.get("subgroups", {}).items()
        for value, values in groups.items()
    ]
    if not rows:
        return [f"{NOT_MEASURED.capitalize()}."]
    return _table(("attribute", "value", "images", "mean AUC"), rows)


def _distance(reference: "FeatureReference | None") -> list[str]:
    if reference is None:
        return [f"{NOT_MEASURED.capitalize()}: images unlike the training data are not told."]
    rows = [(f"{float(name):.1%}", f"{value:.1f}") for name, value in reference.quantiles.items()]
    return [
        "Mahalanobis distance of the pooled features, of length 1, with a covariance shrunk by"
        f" {reference.shrinkage:.3f} (Ledoit and Wolf 2004), fitted on"
        f" {reference.fitted_on_images} images of the training part. An image beyond the last"
        " of these has the quality code `far_from_training`. One that is nearer may still be"
        " unlike all that the model has seen.",
        "",
        *_table((f"of {reference.images} images, {reference.measured_on}", "nearer than"), rows),
    ]


def _limits(info: "BundleInfo") -> list[str]:
    limits = [limit.format(size=info.input_contract.size) for limit in LIMITS]
    if _on_phantoms(info):
        limits.insert(0, LIMIT_PHANTOMS)
    if _on_nih(info):
        limits.insert(0, LIMIT_NIH_LABELS)
    if info.calibration is None:
        limits.append(LIMIT_UNCALIBRATED)
    return limits


def _training(provenance: Mapping) -> list[str]:
    facts = {name: text for name, text in provenance.items() if name not in _SHOWN_ELSEWHERE}
    if history := provenance.get("history"):
        facts["epochs"] = f"{len(history)}, their metrics in bundle.json"
    software = provenance.get("software", {})
    facts["software"] = ", ".join(f"{k} {v}" for k, v in software.items()) or "not recorded"
    lines = _bullets(
        f"{name}: {value if isinstance(value, str) else json.dumps(value)}"
        for name, value in facts.items()
    )
    config = provenance.get("config")
    if not config:
        return [*lines, "- configuration: not recorded"]
    apart = ("title", "statement", "data")
    shown = {name: value for name, value in config.items() if name not in apart}
    return [*lines, "- configuration:", "", "```json", json.dumps(shown, indent=2), "```"]


def _with_interval(values: Mapping, name: str) -> str:
    """Returns a number to three digits, with its 95% interval in brackets if there is one."""
    value, low, high = (values.get(key) for key in (name, f"{name}_low", f"{name}_high"))
    if value is None:
        return NOT_MEASURED
    interval = "" if low is None or high is None else f" ({low:.3f} to {high:.3f})"
    return f"{value:.3f}{interval}"


def _or_not(value: object) -> str:
    return NOT_MEASURED if value is None else str(value)


def _bullets(lines: Iterable[str]) -> list[str]:
    return [f"- {line}" for line in lines]


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [header, ["---"] * len(header), *rows]
    return [f"| {' | '.join(line)} |" for line in lines]
