"""Bootstrap over patients: how far a number would move with other patients.

Images of one patient resemble each other, so they are not independent draws.
Resampling images would make every interval too narrow; patients are resampled
here, and a patient's images come along together.

Reference: Field and Welsh 2007, "Bootstrapping clustered data",
https://doi.org/10.1111/j.1467-9868.2007.00593.x.
"""

import numpy as np

_TAILS = (2.5, 97.5)
"""Percentiles that bound a two-sided 95% interval."""


def patient_weights(patients: np.ndarray, samples: int, seed: int) -> np.ndarray:
    """Returns how often each image is drawn in each bootstrap sample.

    A sample draws as many patients as there are, with replacement; an image's
    weight is the number of times its patient was drawn. Sizes of samples differ
    therefore, as patients have different numbers of images.

    Args:
      patients: `(images,)`, the patient of each image, as strings or numbers. With
        every value another one, images are resampled.
      samples: Number of bootstrap samples, at least 1.
      seed: The same seed gives the same samples for the same patients.

    Returns:
      uint16 `(samples, images)`. The samples of one image lie side by side in
      memory, which is the order that `model.metrics` reads them in.

    Raises:
      ValueError: There is no image, or no sample is wanted.
    """
    if len(patients) == 0 or samples < 1:
        raise ValueError(
            "A bootstrap needs at least one image and one sample."
            f" Received: images={len(patients)}, samples={samples}."
        )
    _, owner = np.unique(np.asarray(patients), return_inverse=True)
    count = int(owner.max()) + 1
    rng = np.random.default_rng(seed)
    drawn = np.empty((count, samples), np.uint16)
    for sample in range(samples):
        drawn[:, sample] = np.bincount(rng.integers(count, size=count), minlength=count)
    return drawn[owner].T


def interval(values: np.ndarray) -> tuple[float, float]:
    """Returns the 95% percentile interval of a metric over bootstrap samples.

    A sample in which the metric is undefined, because it drew no positive or no
    negative image, is NaN and left out: the interval is that of the samples that
    have a value. Where none has one, both ends are NaN.

    Args:
      values: `(samples,)`, NaN where undefined.
    """
    defined = np.asarray(values, np.float64)
    defined = defined[~np.isnan(defined)]
    if not len(defined):
        return float("nan"), float("nan")
    low, high = np.percentile(defined, _TAILS)
    return float(low), float(high)
