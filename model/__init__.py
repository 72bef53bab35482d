"""Decode, score, explain, train, evaluate: everything that needs no pipeline.

Images
* `model.reading`, `model.decoding`: files to bytes, PNG and JPEG bytes to grey, strictly.
* `model.preprocessing`: grey to the network's input, one way for all.
* `model.phantoms` with `phantom_canvas` and `phantom_findings`, `model.sample_archive`:
  synthetic radiographs.

Network and scores
* `model.network`: EfficientNetB0 with the head and the scaling of this project.
* `model.devices`: GPUs and precision.
* `model.gradcam`: class activation maps in closed form.
* `model.folding`: batch normalisations into convolutions.
* `model.frozen`: graphs without variables, on LiteRT or TensorFlow.
* `model.scorer`: the frozen graph, precision, memory back-off.
* `model.tta`: the six views of test-time augmentation.
* `model.serving`: from a bundle to a scorer, for a run and for a few images alike.
* `model.predictor`: a few images at once, `Predictor`.
* `model.overlays`: drawing activation maps over images.

Bundles
* `model.bundle`: a network on disk with everything needed to believe its scores.
* `model.card`: what a bundle says of itself to people.
* `model.thresholds`, `model.tuning`: applying and choosing thresholds.
* `model.calibration`: scores to probabilities.
* `model.seed_import`, `seed_weights`, `restricted_pickle`: bundles of the seed system.

Training
* `model.image_cache`, `model.splits`: prepared images, divided by patient.
* `model.training_config`: everything that decides what a training gives.
* `model.balance`, `model.augmentation`, `model.losses`: what an epoch shows, and counts.
* `model.training` with `callbacks` and `training_state`: the loop, resumed after a kill.
* `model.finishing`: a trained network to a bundle's facts.

Evaluation
* `model.score_table` with `score_files`, `label_table` and `table_files`: scores beside
  labels.
* `model.bootstrap`, `model.metrics`: resampled patients, metrics of many samples at once.
* `model.evaluation`, `evaluation_report`, `plots`: all metrics, as JSON, text and pictures.

Imports NumPy, Pillow, pandas, scikit-learn, matplotlib and Keras, never Beam.
"""

import os
import typing

# TensorFlow reads it as it is loaded, which every worker of any runner does by way of this
# package. Without it every batch gives its hundreds of megabytes back to the system and gets
# them anew page by page, which took as long again as the inference (benchmarks/README.md).
os.environ.setdefault("TF_CPU_ALLOCATOR_USE_BFC", "true")

if typing.TYPE_CHECKING:
    from model.predictor import Predictor

__all__ = ["Predictor"]


def __getattr__(name: str):
    """Loads `Predictor`, and TensorFlow with it, only for those who ask for it."""
    if name == "Predictor":
        from model.predictor import Predictor

        return Predictor
    raise AttributeError(f"module 'model' has no attribute {name!r}")
