"""Plots with a panel a finding, and what all plots share.

Colours are those of Okabe and Ito, which people with any colour vision tell apart;
what a colour says is also said by a label, a marker or a line style.
"""

from collections.abc import Callable, Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.metrics import precision_recall_curve, roc_curve

from model.evaluation import threshold_values
from model.metrics import CALIBRATION_BINS, calibration_bins
from model.score_table import LabelledScores
from model.thresholds import Thresholds
from model.tuning import wilson_interval

BLACK, BLUE, ORANGE, GREEN, SKY, PURPLE, RED = (
    "#000000", "#0072B2", "#E69F00", "#009E73", "#56B4E9", "#CC79A7", "#D55E00",
)  # fmt: skip
GREY = "#8c8c8c"

_EDGE = 5e-4
"""Scores are drawn from here to 1 minus this: the logit axis has no ends."""

_SHARE_TICKS = {0: "0", 0.5: ".5", 1: "1"}
_SCORE_TICKS = {0.01: ".01", 0.1: ".1", 0.5: ".5", 0.9: ".9", 0.99: ".99"}

_FEWEST_FLAGGED = 10
"""Precision is drawn where at least so many images are flagged; below it only jumps."""


def plot_roc_apart(table: LabelledScores, metrics: dict) -> Figure:
    """Draws the ROC curve of every finding in a plot of its own."""

    def draw(axes: Axes, name: str) -> None:
        axes.plot([0, 1], [0, 1], color=GREY, lw=0.8, ls=":")
        axes.plot(*roc_points(table, name), color=BLUE)
        axes.set_title(f"{title_of(name)} {metrics['findings'][name]['auc']:.3f}")

    return _apart(table, draw, "false positive rate", "true positive rate (recall)", (0, 1))


def plot_precision_recall_apart(table: LabelledScores, metrics: dict) -> Figure:
    """Draws precision against recall of every finding; dotted, the share of positives."""

    def draw(axes: Axes, name: str) -> None:
        share = table.labels[:, table.findings.index(name)].mean()
        axes.axhline(share, color=GREY, lw=0.8, ls=":")
        axes.plot(*precision_recall_points(table, name), color=BLUE)
        axes.set_title(f"{title_of(name)} {metrics['findings'][name]['average_precision']:.3f}")

    return _apart(table, draw, "recall", "precision (dotted: share of positives)", (0, 1))


def plot_reliability(
    table: LabelledScores, probabilities: np.ndarray, *, calibrated: bool
) -> Figure:
    """Draws the share of positives against the mean score, in the bins of `calibration_error`.

    Args:
      table: Labels and findings.
      probabilities: float32 `(images, findings)`.
      calibrated: Whether they are; says what the axis is called.
    """

    def draw(axes: Axes, name: str) -> None:
        k = table.findings.index(name)
        bins = calibration_bins(probabilities[:, k])
        images = np.bincount(bins, minlength=CALIBRATION_BINS)
        filled = images > 0
        mean = np.bincount(bins, probabilities[:, k], CALIBRATION_BINS)[filled] / images[filled]
        hits = np.bincount(bins, table.labels[:, k], CALIBRATION_BINS)[filled]
        counts = zip(hits, images[filled], strict=True)
        ranges = np.array([wilson_interval(int(hit), int(count)) for hit, count in counts])
        top = max(mean.max(), ranges.max()) * 1.05
        axes.plot([0, top], [0, top], color=GREY, lw=0.8, ls=":")
        axes.vlines(mean, *ranges.T, color=SKY, lw=1.5)
        axes.plot(mean, hits / images[filled], "o-", color=BLUE, ms=3, lw=1)
        axes.set(xlim=(0, top), ylim=(0, top), title=title_of(name))
        axes.locator_params(nbins=4)

    name = "mean calibrated probability" if calibrated else "mean score (not calibrated)"
    return _apart(table, draw, f"{name} of a tenth of the images", "share of positives, 95%", None)


def plot_thresholds(table: LabelledScores, thresholds: Thresholds | None) -> Figure:
    """Draws recall, precision and share flagged against the threshold, for each finding."""
    chosen = dict.fromkeys(table.findings, np.inf)
    if thresholds is not None:
        chosen = dict(zip(table.findings, threshold_values(table, thresholds), strict=True))
    logits = np.linspace(-np.log(1 / _EDGE - 1), np.log(1 / _EDGE - 1), 200)
    grid = 1 / (1 + np.exp(-logits))

    def draw(axes: Axes, name: str) -> None:
        k = table.findings.index(name)
        flagged = _at_or_above(table.scores[:, k], grid)
        hits = _at_or_above(table.scores[table.labels[:, k], k], grid)
        positives = table.labels[:, k].sum()
        precision = np.where(flagged >= _FEWEST_FLAGGED, hits / np.maximum(flagged, 1), np.nan)
        axes.plot(grid, hits / positives, color=BLUE, label="recall")
        axes.plot(grid, precision, color=RED, ls="--", label="precision")
        axes.plot(grid, flagged / len(table), color=GREEN, ls=":", label="share flagged")
        if np.isfinite(chosen[name]):
            axes.axvline(chosen[name], color=GREY, lw=0.8)
        axes.set_xscale("logit")
        axes.set_xticks(list(_SCORE_TICKS), list(_SCORE_TICKS.values()))
        axes.minorticks_off()
        axes.set(xlim=(_EDGE, 1 - _EDGE), title=title_of(name))

    line = "" if thresholds is None else "; grey, the one in use"
    figure = _apart(table, draw, f"threshold{line}", "share", (0, 1))
    handles, labels = figure.axes[0].get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="upper center", ncols=3)
    return figure


def roc_points(table: LabelledScores, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns false positive and true positive rates, `(points,)` each."""
    k = table.findings.index(name)
    return roc_curve(table.labels[:, k], table.scores[:, k])[:2]


def precision_recall_points(table: LabelledScores, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns recall and precision, `(points,)` each."""
    k = table.findings.index(name)
    curve = precision_recall_curve(table.labels[:, k], table.scores[:, k], drop_intermediate=True)
    return curve[1], curve[0]


def why_undefined(values: Mapping[str, int]) -> str:
    """Returns why a finding of so many `positives`, none or all, has no area."""
    return "no positive image" if values["positives"] == 0 else "no negative image"


def title_of(name: str) -> str:
    """Returns a finding's name as text."""
    return name.replace("_", " ")


def _at_or_above(scores: np.ndarray, grid: np.ndarray) -> np.ndarray:
    return len(scores) - np.searchsorted(np.sort(scores), grid.astype(np.float32))


def _apart(
    table: LabelledScores,
    draw: Callable[[Axes, str], None],
    x: str,
    y: str,
    limits: tuple[float, float] | None,
) -> Figure:
    """Returns a grid with one plot a finding; one without two classes says so instead.

    Args:
      table: Labels and findings.
      draw: Draws the plot of a finding.
      x, y: What the axes are.
      limits: Of both axes in all plots; None where each has its own.
    """
    figure, shared = Figure(figsize=(11, 7)), limits is not None
    # By hand: constrained layout takes seconds for so many texts.
    figure.subplots_adjust(0.07, 0.08, 0.98, 0.92, wspace=0.12 if shared else 0.3, hspace=0.35)
    grid = figure.subplots(3, 5, sharex=shared, sharey=shared).ravel()
    if shared:
        grid[0].set(xlim=limits, ylim=limits)
        grid[0].set_xticks(list(_SHARE_TICKS), list(_SHARE_TICKS.values()))
        grid[0].set_yticks(list(_SHARE_TICKS), list(_SHARE_TICKS.values()))
    for axes, name in zip(grid, table.findings, strict=False):
        positives = int(table.labels[:, table.findings.index(name)].sum())
        if 0 < positives < len(table):
            draw(axes, name)
            continue
        axes.set_title(title_of(name), color=GREY)
        note = why_undefined({"positives": positives})
        axes.text(0.5, 0.5, note, ha="center", color=GREY, transform=axes.transAxes)
    for blank in range(len(table.findings), len(grid)):
        grid[blank].set_axis_off()
        grid[blank - 5].tick_params(labelbottom=True)
    figure.supxlabel(x)
    figure.supylabel(y)
    return figure
