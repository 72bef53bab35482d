"""Plots of an evaluation, as PNG files.

Drawn without pyplot, so that nothing is kept between figures.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from model.plot_panels import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    RED,
    SKY,
    plot_precision_recall_apart,
    plot_reliability,
    plot_roc_apart,
    plot_thresholds,
    precision_recall_points,
    roc_points,
    title_of,
    why_undefined,
)
from model.score_table import LabelledScores
from model.thresholds import Thresholds
from schemas.findings import ABNORMAL_FINDINGS, FINDINGS

_LINES = (
    (BLUE, "-"),
    (RED, "--"),
    (GREEN, "-."),
    (PURPLE, ":"),
    (BLACK, "-"),
    (ORANGE, "--"),
)

BEST = 6
"""Findings in the plots of the best, as many as a reader can tell apart."""

_STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "legend.frameon": False,
    "savefig.dpi": 120,
}


def write_plots(
    table: LabelledScores,
    metrics: dict,
    label_counts: Mapping[str, Mapping[str, int]],
    folder: Path,
    *,
    thresholds: Thresholds | None = None,
    probabilities: np.ndarray | None = None,
) -> list[str]:
    """Writes all plots of an evaluation, and returns their file names.

    Args:
      table: What was evaluated.
      metrics: As `model.evaluation.evaluate` returns it for `table`.
      label_counts: As for `plot_label_distribution`.
      folder: Where to; files of the same names are written over.
      thresholds: As given to `evaluate`; without them no plot of recall against
        precision.
      probabilities: As given to `evaluate`, for the reliability plot.
    """
    best = best_findings(metrics)
    read_as = table.scores if probabilities is None else probabilities
    plots: dict[str, Callable[[], Figure]] = {
        "auc.png": lambda: plot_areas(metrics),
        "label_distribution.png": lambda: plot_label_distribution(label_counts),
        "roc.png": lambda: plot_roc_together(table, metrics, best),
        "roc_all.png": lambda: plot_roc_apart(table, metrics),
        "precision_recall.png": lambda: plot_precision_recall_together(table, metrics, best),
        "precision_recall_all.png": lambda: plot_precision_recall_apart(table, metrics),
        "reliability.png": lambda: plot_reliability(
            table, read_as, calibrated=probabilities is not None
        ),
        "thresholds.png": lambda: plot_thresholds(table, thresholds),
    }
    if thresholds is not None:
        plots["recall_precision.png"] = lambda: plot_recall_precision(metrics)
    with mpl.rc_context(_STYLE):
        for name, plot in plots.items():
            plot().savefig(folder / name, metadata={"Software": None})
    return sorted(plots)


def best_findings(metrics: dict) -> list[str]:
    """Returns the findings of the highest areas, best first, of the 14 where it is defined."""
    areas = {name: metrics["findings"][name]["auc"] for name in ABNORMAL_FINDINGS}
    defined = [name for name in ABNORMAL_FINDINGS if areas[name] is not None]
    return sorted(defined, key=lambda name: -areas[name])[:BEST]


def plot_areas(metrics: dict) -> Figure:
    """Draws the area under the ROC curve of each finding with its interval, best on top."""
    findings = metrics["findings"]
    names = sorted(findings, key=lambda name: findings[name]["auc"] or 0)
    figure = Figure(figsize=(7, 5.2), layout="constrained")
    axes = figure.subplots()
    for row, name in enumerate(names):
        values = findings[name]
        if values["auc"] is None:
            axes.text(1.01, row, why_undefined(values), va="center", color=GREY)
            continue
        colour = BLUE if name in ABNORMAL_FINDINGS else GREY
        axes.barh(row, values["auc"], color=colour, alpha=0.55, height=0.7)
        axes.plot([values["auc_low"], values["auc_high"]], [row, row], color=BLACK, lw=1.5)
        axes.text(1.01, row, f"{values['auc']:.3f}", va="center")
    axes.set_yticks(range(len(names)), [title_of(name) for name in names])
    lowest = min((findings[name]["auc_low"] or 1 for name in names), default=0.5)
    axes.set_xlim(min(0.5, np.floor(lowest * 10) / 10), 1)
    axes.set_xlabel("area under the ROC curve, with 95% interval over patients")
    mean = metrics["mean_auc"]
    if mean is not None:
        axes.axvline(mean, color=RED, ls="--", lw=1)
        axes.set_title(f"Mean over the 14 findings {mean:.3f} (dashed)")
    return figure


def plot_recall_precision(metrics: dict) -> Figure:
    """Draws recall against precision of each finding at its threshold, with intervals."""
    figure = Figure(figsize=(7.5, 6), layout="constrained")
    axes = figure.subplots()
    findings = {
        name: metrics["findings"][name]
        for name in ABNORMAL_FINDINGS
        if None not in (metrics["findings"][name][key] for key in ("recall", "precision"))
    }
    for values in findings.values():
        middle = values["recall"], values["precision"]
        axes.plot([values["recall_low"], values["recall_high"]], [middle[1]] * 2, color=SKY, lw=1)
        axes.plot(
            [middle[0]] * 2, [values["precision_low"], values["precision_high"]], color=SKY, lw=1
        )
        axes.plot(*middle, "o", color=BLUE, ms=5)
    _label_points(
        axes, {name: (each["recall"], each["precision"]) for name, each in findings.items()}
    )
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, None))
    axes.set_title("At the thresholds, with 95% intervals over patients")
    return figure


def plot_label_distribution(label_counts: Mapping[str, Mapping[str, int]]) -> Figure:
    """Draws the share of images with each label, by split.

    Args:
      label_counts: By split, the number of images with each of `FINDINGS` and,
        under `images`, of all.
    """
    figure = Figure(figsize=(7, 5.6), layout="constrained")
    axes = figure.subplots()
    height, rows = 0.8 / len(label_counts), np.arange(len(FINDINGS))
    colours = (BLUE, ORANGE, GREEN, PURPLE)
    for number, (split, counts) in enumerate(label_counts.items()):
        shares = [counts[name] / counts["images"] for name in FINDINGS]
        bars = axes.barh(
            rows + (number - (len(label_counts) - 1) / 2) * height,
            np.multiply(shares, 100),
            height,
            color=colours[number % len(colours)],
            label=f"{split} ({counts['images']:,} images)",
        )
        axes.bar_label(bars, [f"{share:.1%}" for share in shares], padding=2, fontsize=7)
    axes.set_yticks(rows, [title_of(name) for name in FINDINGS])
    axes.invert_yaxis()
    axes.set_xlabel("images with the label, percent; an image may have several")
    axes.legend(loc="lower right")
    return figure


def plot_roc_together(table: LabelledScores, metrics: dict, names: Sequence[str]) -> Figure:
    """Draws the ROC curves of some findings in one plot."""
    figure, axes = _square("false positive rate", "true positive rate (recall)")
    axes.plot([0, 1], [0, 1], color=GREY, lw=0.8, ls=":")
    for (colour, style), name in zip(_LINES, names, strict=False):
        label = f"{title_of(name)} {metrics['findings'][name]['auc']:.3f}"
        axes.plot(*roc_points(table, name), color=colour, ls=style, label=label)
    axes.set_title(f"ROC curves of the best {len(names)}, with their areas")
    if names:
        axes.legend(loc="lower right")
    return figure


def plot_precision_recall_together(
    table: LabelledScores, metrics: dict, names: Sequence[str]
) -> Figure:
    """Draws the precision-recall curves of some findings in one plot."""
    figure, axes = _square("recall", "precision")
    for (colour, style), name in zip(_LINES, names, strict=False):
        label = f"{title_of(name)} {metrics['findings'][name]['average_precision']:.3f}"
        axes.plot(*precision_recall_points(table, name), color=colour, ls=style, label=label)
    axes.set_title(f"Precision and recall of the best {len(names)} by area, average precision")
    if names:
        axes.legend(loc="upper right")
    return figure


def _square(x: str, y: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(6, 6), layout="constrained")
    axes = figure.subplots()
    axes.set(xlabel=x, ylabel=y, xlim=(0, 1), ylim=(0, 1.01), aspect="equal")
    return figure, axes


def _label_points(axes: Axes, points: Mapping[str, tuple[float, float]]) -> None:
    """Writes names in a column at the right edge, each joined to its point by a line."""
    order = sorted(points, key=lambda name: points[name][1])
    for row, name in enumerate(order):
        axes.annotate(
            title_of(name),
            points[name],
            xytext=(1.02, (row + 0.5) / len(order)),
            textcoords="axes fraction",
            va="center",
            arrowprops={"arrowstyle": "-", "color": GREY, "lw": 0.5},
            annotation_clip=False,
        )
