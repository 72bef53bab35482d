"""Plots: what they show, and that odd evaluations can be drawn."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from model.evaluation import evaluate, label_matrix
from model.label_table import count_labels
from model.plot_panels import plot_reliability, plot_roc_apart, plot_thresholds
from model.plots import (
    best_findings,
    plot_areas,
    plot_label_distribution,
    plot_recall_precision,
    plot_roc_together,
    write_plots,
)
from schemas.findings import ABNORMAL_FINDINGS, FINDINGS
from tests.test_model_evaluation import make_table, make_thresholds

_PLOTS = [
    "auc.png",
    "label_distribution.png",
    "precision_recall.png",
    "precision_recall_all.png",
    "reliability.png",
    "roc.png",
    "roc_all.png",
    "thresholds.png",
]


@pytest.fixture(scope="module")
def evaluated():
    """A table and its metrics at thresholds; one finding has no positive."""
    table = make_table()
    labels = table.labels.copy()
    labels[:, FINDINGS.index("Hernia")] = False
    table = dataclasses.replace(table, labels=labels)
    return table, evaluate(table, samples=10, thresholds=make_thresholds(Mass=1.0))


def _texts(axes):
    return [text.get_text() for text in axes.texts]


def test_write_plots_writes_readable_images_and_names_them(evaluated, tmp_path):
    table, metrics = evaluated
    counts = {"evaluated": count_labels(label_matrix(table))}
    names = write_plots(table, metrics, counts, tmp_path, thresholds=make_thresholds())
    assert names == sorted([*_PLOTS, "recall_precision.png"])
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    for name in names:
        with Image.open(tmp_path / name) as image:
            assert image.format == "PNG"
            assert min(image.size) > 500
            assert len(np.unique(np.asarray(image.convert("L")))) > 5


def test_write_plots_of_one_class_everywhere_draw_nothing_and_do_not_fail(tmp_path):
    table = make_table(images=6, findings=ABNORMAL_FINDINGS)
    table = dataclasses.replace(table, labels=np.zeros_like(table.labels))
    counts = {"evaluated": count_labels(label_matrix(table))}
    metrics = evaluate(table, samples=5)
    assert write_plots(table, metrics, counts, tmp_path) == _PLOTS


def test_best_findings_are_six_of_the_14_by_area(evaluated):
    _, metrics = evaluated
    areas = {name: metrics["findings"][name]["auc"] for name in ABNORMAL_FINDINGS}
    areas["Hernia"] = -1
    assert best_findings(metrics) == sorted(areas, key=areas.get)[:-7:-1]


def test_plot_areas_shows_each_with_its_number_or_why_there_is_none(evaluated):
    _, metrics = evaluated
    axes = plot_areas(metrics).axes[0]
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert sorted(names) == sorted(name.replace("_", " ") for name in FINDINGS)
    shown = dict(zip(names, _texts(axes), strict=True))
    assert shown["Hernia"] == "no positive image"
    assert shown["Mass"] == f"{metrics['findings']['Mass']['auc']:.3f}"


def test_plot_recall_precision_leaves_out_what_is_undefined(evaluated):
    # Hernia has no recall; Mass, never flagged, no precision.
    _, metrics = evaluated
    shown = _texts(plot_recall_precision(metrics).axes[0])
    assert len(shown) == 12
    assert "Edema" in shown
    assert not {"Hernia", "Mass"} & set(shown)


def test_plot_label_distribution_shows_shares_by_split():
    counts = {
        "train": {"images": 200, **dict.fromkeys(FINDINGS, 50)},
        "test": {"images": 10, **dict.fromkeys(FINDINGS, 1)},
    }
    axes = plot_label_distribution(counts).axes[0]
    legend = [text.get_text() for text in axes.get_legend().get_texts()]
    assert legend == ["train (200 images)", "test (10 images)"]
    widths = sorted({round(bar.get_width(), 6) for bar in axes.patches})
    assert widths == [10, 25]
    assert len(axes.patches) == 30


def test_plot_roc_together_draws_curves_of_the_area_it_states(evaluated):
    table, metrics = evaluated
    lines = plot_roc_together(table, metrics, ["Edema", "Mass"]).axes[0].lines[1:]
    for line, name in zip(lines, ("Edema", "Mass"), strict=True):
        area = metrics["findings"][name]["auc"]
        assert np.trapezoid(line.get_ydata(), line.get_xdata()) == pytest.approx(area)
        assert line.get_label() == f"{name} {area:.3f}"


def test_plot_apart_has_a_panel_a_finding(evaluated):
    table, metrics = evaluated
    panels = plot_roc_apart(table, metrics).axes
    assert len(panels) == 15
    assert _texts(panels[FINDINGS.index("Hernia")]) == ["no positive image"]
    assert panels[FINDINGS.index("Mass")].get_title().startswith("Mass 0.")


def test_plot_reliability_shows_mean_score_and_share_of_positives(evaluated):
    table, _ = evaluated
    k = FINDINGS.index("Edema")
    panel = plot_reliability(table, table.scores, calibrated=False).axes[k]
    mean, share = panel.lines[1].get_data()
    assert len(mean) == 10
    # Bins of equally many images: their means are those of all.
    assert np.mean(mean) == pytest.approx(table.scores[:, k].mean(), abs=1e-6)
    assert np.mean(share) == pytest.approx(table.labels[:, k].mean())


def test_plot_thresholds_shows_recall_at_each_threshold(evaluated):
    table, _ = evaluated
    k = FINDINGS.index("Edema")
    panel = plot_thresholds(table, make_thresholds(0.3)).axes[k]
    recall, precision, flagged, chosen = panel.lines
    at, value = recall.get_xdata()[120], recall.get_ydata()[120]
    above = table.scores[:, k] >= np.float32(at)
    assert value == above[table.labels[:, k]].mean()
    assert precision.get_ydata()[120] == table.labels[above, k].mean()
    assert flagged.get_ydata()[120] == above.mean()
    assert chosen.get_xdata()[0] == np.float32(0.3)
    assert len(plot_thresholds(table, None).axes[k].lines) == 3
