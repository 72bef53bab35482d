"""Fitting the distance from the training data."""

import keras
import numpy as np
import scipy.linalg
from sklearn.covariance import LedoitWolf

from model.feature_distance import QUANTILES, FeatureDistance, FeatureReference, of_length_1
from model.folding import fold_batch_norms
from model.frozen import freeze
from model.gradcam import explained_network
from model.image_cache import LabelledImages
from model.network import set_precision
from model.scorer import CPU_BATCH_SIZE, pooled_features

_MOST_FITTED = 20_000
"""Images that the mean and covariance come from; of more they are drawn at random."""


def fit_feature_distance(
    network: keras.Model, train: LabelledImages, validation: LabelledImages, seed: int
) -> tuple[FeatureDistance, FeatureReference]:
    """Fits the distance on a training part, and its quantiles on a validation part.

    On images of the training part itself distances would be too small. No image is changed,
    as it would be in training.

    Reference: Ledoit and Wolf 2004, "A well-conditioned estimator for large-dimensional
    covariance matrices", Journal of Multivariate Analysis 88, 365-411.

    Args:
      network: As `model.network.build_network` makes it, trained.
      train: Fitted on; of more than 20,000 images on so many.
      validation: Measured on.
      seed: Draws those images.

    Returns:
      The distance, and what to say of it, without the digest that saving adds.
    """
    chosen = np.arange(len(train))
    if len(train) > _MOST_FITTED:
        rng = np.random.default_rng(seed)
        chosen = np.sort(rng.choice(len(train), _MOST_FITTED, replace=False))
    features_of = _feature_function(network)
    distance, shrinkage = fit_distance(features_of(train.take(chosen)))
    reference = distance.of(features_of(validation))
    return distance, FeatureReference(
        sha256="",
        quantiles={name: float(np.quantile(reference, float(name))) for name in QUANTILES},
        measured_on="validation part",
        images=len(validation),
        fitted_on_images=len(chosen),
        shrinkage=shrinkage,
    )


def fit_distance(features: np.ndarray) -> tuple[FeatureDistance, float]:
    """Returns the distance from features float32 `(images, 1280)`, and the shrinkage."""
    directions = of_length_1(features)
    mean, scale = directions.mean(axis=0), directions.std(axis=0)
    scale[scale == 0] = 1
    # Each feature counts alike where the covariance is shrunk towards a round one.
    fitted = LedoitWolf().fit((directions - mean) / scale)
    root = np.linalg.cholesky(fitted.covariance_)
    whitening = scipy.linalg.solve_triangular(root, np.eye(len(root)), lower=True).T
    whitening /= scale[:, np.newaxis]
    distance = FeatureDistance(mean.astype(np.float32), whitening.astype(np.float32))
    return distance, float(fitted.shrinkage_)


def _feature_function(network: keras.Model):
    folded = fold_batch_norms(network)
    set_precision(folded, "float32")
    explained = explained_network(folded)
    graph = freeze(lambda images: [pooled_features(explained(images, training=False))])

    def features_of(part: LabelledImages) -> np.ndarray:
        starts = range(0, len(part), CPU_BATCH_SIZE)
        batches = (part.squares(slice(start, start + CPU_BATCH_SIZE)) for start in starts)
        return np.concatenate([graph(batch)[0] for batch in batches])

    return features_of
