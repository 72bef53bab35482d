"""Bootstrap samples of patients, and intervals from them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.bootstrap import interval, patient_weights


@given(st.lists(st.sampled_from("abcdef"), min_size=1, max_size=30), st.integers(0, 99))
@settings(deadline=None, max_examples=100)
def test_patient_weights_draw_as_many_patients_and_all_images_of_each(patients, seed):
    names, first, owner = np.unique(patients, return_index=True, return_inverse=True)
    weights = patient_weights(np.array(patients), 20, seed)
    assert weights.shape == (20, len(patients))
    assert weights.dtype == np.uint16
    np.testing.assert_array_equal(weights, weights[:, first][:, owner])
    np.testing.assert_array_equal(weights[:, first].sum(axis=1), len(names))


def test_patient_weights_same_seed_same_samples_other_seed_others():
    patients = np.array(list("aabbccdd"))
    weights = patient_weights(patients, 50, 1)
    np.testing.assert_array_equal(weights, patient_weights(patients, 50, 1))
    assert (weights != patient_weights(patients, 50, 2)).any()
    assert len(np.unique(weights, axis=0)) > 10


def test_patient_weights_are_those_of_drawing_with_replacement():
    weights = patient_weights(np.arange(100), 4000, 3).astype(float)
    assert weights.mean() == 1
    # A binomial of 100 trials at 1/100: variance .99; nobody drawn .99 ** 100 = .366.
    assert weights.var() == pytest.approx(0.99, abs=0.02)
    assert (weights == 0).mean() == pytest.approx(0.366, abs=0.005)


def test_patient_weights_samples_of_an_image_lie_side_by_side():
    assert patient_weights(np.arange(5), 7, 0).T.flags.c_contiguous


@pytest.mark.parametrize(("images", "samples"), [(0, 5), (3, 0)])
def test_patient_weights_of_nothing_are_refused(images, samples):
    with pytest.raises(ValueError, match=f"at least one.*images={images}, samples={samples}"):
        patient_weights(np.arange(images), samples, 0)


def test_interval_holds_the_middle_95_percent():
    assert interval(np.arange(1001)) == (25.0, 975.0)


def test_interval_leaves_undefined_samples_out():
    assert interval(np.array([np.nan, 2.0, np.nan, 2.0])) == (2.0, 2.0)
    assert np.isnan(interval(np.array([np.nan, np.nan]))).all()
