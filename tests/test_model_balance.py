"""Repeated images and soft class weights, on made-up and on real labels."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.model_selection import train_test_split

from model.balance import class_weights, oversample, positives_by_finding, sample_weights
from model.image_cache import label_matrix
from schemas.findings import FINDINGS


def _labels(columns: dict[str, list[int]], images: int) -> np.ndarray:
    labels = np.zeros((images, len(FINDINGS)), bool)
    for name, positive in columns.items():
        labels[positive, FINDINGS.index(name)] = True
    return labels


def test_oversample_reaches_the_minimum_with_copies_and_a_rest():
    labels = _labels({"Hernia": [1, 4, 7], "No Finding": [0, 2, 3, 5, 6]}, 8)
    chosen = oversample(labels, 10, np.random.default_rng(0))
    counts = np.bincount(chosen, minlength=8)
    # 10 Hernias of 3: two whole copies and one more; 10 without a finding of 5: one copy.
    assert sorted(counts[[1, 4, 7]].tolist()) == [3, 3, 4]
    assert counts[[0, 2, 3, 5, 6]].tolist() == [2] * 5
    assert positives_by_finding(labels, chosen)["Hernia"] == 10


def test_oversample_zero_shows_every_image_once():
    labels = _labels({"Mass": [0]}, 5)
    assert oversample(labels, 0, np.random.default_rng(0)).tolist() == [0, 1, 2, 3, 4]


@given(
    st.lists(st.sets(st.integers(0, 14)), min_size=1, max_size=40), st.integers(0, 60),
    st.integers(0, 3),
)  # fmt: skip
def test_oversample_loses_no_image_and_reaches_the_minimum(findings, minimum, seed):
    labels = np.array([[k in found for k in range(15)] for found in findings])
    chosen = oversample(labels, minimum, np.random.default_rng(seed))
    assert set(chosen.tolist()) == set(range(len(labels)))
    before, after = labels.sum(axis=0), labels[chosen].sum(axis=0)
    assert (after[before > 0] >= np.maximum(before, minimum)[before > 0]).all()
    assert (after[before == 0] == 0).all()


def test_sample_weights_are_the_mean_over_positives():
    labels = _labels({"Effusion": [0, 1], "Mass": [1]}, 3)
    weights = class_weights(labels, 0.5)
    assert weights[FINDINGS.index("Effusion")] == pytest.approx(1 - 0.5 * 2 / 3)
    expected = [1 - 1 / 3, (1 - 1 / 3 + 1 - 1 / 6) / 2, 1.0]
    np.testing.assert_allclose(sample_weights(labels, weights), expected, rtol=1e-6)


def test_class_weights_strength_zero_gives_ones():
    assert (class_weights(_labels({"Mass": [0]}, 3), 0.0) == 1).all()


def test_balance_on_the_nih_labels_gives_the_counts_of_the_seed_system(nih_labels):
    table = pd.read_csv(nih_labels)
    patients, _ = train_test_split(table["Patient ID"].unique(), test_size=0.2, random_state=42)
    train = table[table["Patient ID"].isin(patients)]
    labels = label_matrix(train["Finding Labels"].tolist())
    assert (len(patients), len(train)) == (24_644, 89_826)
    chosen = oversample(labels, 2000, np.random.default_rng(0))
    assert len(chosen) == 93_354
    weights = dict(zip(FINDINGS, class_weights(labels, 0.5).round(4).tolist(), strict=True))
    assert weights["Hernia"] == pytest.approx(0.9990, abs=5e-5)
    assert weights["No Finding"] == pytest.approx(0.7307, abs=5e-5)
