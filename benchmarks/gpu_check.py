"""Checks and measures the network on a GPU: `make gpu-check`.

Prints the Keras backend, images a second of the forward pass and of a training step
at float32 and mixed_float16, and how far the scores of the two lie apart. Under
TensorFlow it also runs the frozen graph that scoring uses. Exits with 1 where there
is no GPU or a number is not finite.
"""

import statistics
import sys
import time
from collections.abc import Callable

import keras
import numpy as np

from model.augmentation import draw_changes
from model.devices import prepare_gpus
from model.network import build_network, set_precision
from model.training import build_trainee
from model.training_config import Stage, TrainingConfig

_BATCH = 128
_REPEATS = 5
_STEPS = 10


def main() -> int:
    """Runs every check; returns the exit code."""
    if not prepare_gpus():
        print("No GPU is visible to Keras. Nothing was checked.", file=sys.stderr)
        return 1
    print(f"Keras {keras.__version__} on {keras.backend.backend()}, batch {_BATCH}")
    squares = np.random.default_rng(0).integers(0, 256, (_BATCH, 224, 224), np.uint8)
    network = build_network(224)
    scores = {}
    for precision in ("float32", "mixed_float16"):
        set_precision(network, precision)
        forward = keras.Model(network.input, network.output)
        scores[precision] = np.asarray(forward.predict_on_batch(squares))
        report(f"forward, {precision}", lambda model=forward: model.predict_on_batch(squares))
    difference = float(np.abs(scores["float32"] - scores["mixed_float16"]).max())
    print(f"largest difference of a score between precisions: {difference:.2e}")
    for precision in ("float32", "mixed_float16"):
        _train(squares, precision)
    if keras.backend.backend() == "tensorflow":
        _score(network, squares)
    return 0 if np.isfinite(difference) else 1


def report(name: str, step: Callable[[], object]) -> None:
    """Prints images a second: the median and the range of the repeats."""
    step()
    rates = []
    for _ in range(_REPEATS):
        start = time.perf_counter()
        for _ in range(_STEPS):
            step()
        rates.append(_BATCH * _STEPS / (time.perf_counter() - start))
    spread = f"{min(rates):,.0f} to {max(rates):,.0f}"
    print(f"{name}: {statistics.median(rates):,.0f} images/s ({spread})")


def _train(squares: np.ndarray, precision: str) -> None:
    config = TrainingConfig(stages=(Stage(224, 1, 1e-4),), batch_size=_BATCH, precision=precision)
    rng = np.random.default_rng(0)
    labels = (rng.random((_BATCH, 15)) < 0.2).astype(np.float32)
    trainee = build_trainee(build_network(224), config, config.stages[0], _STEPS, labels > 0)
    changes = draw_changes(config.augmentation, _BATCH, 224, rng)
    batch = ((squares, *changes), labels)
    report(f"training, {precision}", lambda: trainee.train_on_batch(*batch))
    loss = float(trainee.train_on_batch(*batch))
    if not np.isfinite(loss):
        raise SystemExit(f"training, {precision}: the loss is {loss}.")


def _score(network: keras.Model, squares: np.ndarray) -> None:
    from model.scorer import Scorer

    for precision in ("float32", "mixed_float16"):
        scorer = Scorer(network, precision=precision)
        report(f"frozen graph with maps, {precision}", lambda scorer=scorer: scorer.score(squares))


if __name__ == "__main__":
    sys.exit(main())
