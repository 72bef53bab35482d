"""Writes files as the seed system does, and what it predicts, to check `import-seed`.

For a throw-away environment with TensorFlow 2.15, whose Keras is Keras 2:

    python3.11 -m venv /tmp/keras2 && /tmp/keras2/bin/pip install 'tensorflow-cpu==2.15.*'
    PYTHONPATH=. /tmp/keras2/bin/python \\
        scripts/seed_reference.py build/seed_reference FOLDER [COUNT]

FOLDER holds PNG files, of which the first COUNT (20) are scored. Written are:

    evaluated.h5           weights alone, of the graph that the notebook evaluated
    demo.h5                weights alone, of the graph of demo.py
    whole.h5               the model of evaluated.h5 whole, with its optimiser
    nested.h5              the same weights, EfficientNetB0 as a model in the model
    optimal_thresholds.pkl, label_encoder.pkl
    reference.npz          uint8 squares, and what both graphs say of them and of the files

The weights are random and mean nothing. The batch norms know the statistics of the
images, as after a training. Without that a network hardly tells these images apart: scaled
twice, all grey levels lie within 0.017 of each other, around -2. For the same reason an
error of rounding reaches a score as about 0.2% of the scores' spread over images,
whatever the spread is; here it is some thousandths.
"""

import pickle
import sys
from pathlib import Path

import numpy as np
import tensorflow as tf
from keras import Input, Model, backend, layers, mixed_precision, optimizers
from keras.applications import EfficientNetB0
from keras.src.applications import efficientnet

from schemas.findings import FINDINGS

SIZE = 224
SHAPE = (SIZE, SIZE, 3)


def main(output: str, folder: str, count: str = "20") -> None:
    """Writes everything into `output`, a folder."""
    tf.keras.utils.set_random_seed(11)
    path = Path(output)
    path.mkdir(parents=True, exist_ok=True)
    files = sorted(Path(folder).glob("*.png"))[: int(count)]
    resized = np.stack([resize_file(file) for file in files])
    squares = np.rint(resized[..., 0]).astype(np.uint8)
    rgb = np.repeat(squares[..., np.newaxis], 3, axis=-1).astype(np.float32) / 255

    write_backbone(path / "backbone.h5")
    # What Keras would download where there is a network.
    efficientnet.data_utils.get_file = lambda *args, **kwargs: str(path / "backbone.h5")
    evaluated, predictions = build("imagenet"), {}
    save(evaluated, "evaluated", path, rgb, resized, predictions)
    evaluated.save(path / "whole.h5")
    demo = build(None)
    demo.load_weights(path / "evaluated.h5")
    save(demo, "demo", path, rgb, resized, predictions)
    nested = build_nested()
    nested.set_weights(evaluated.get_weights())
    np.testing.assert_allclose(nested.predict(rgb, verbose=0), predictions["evaluated"], atol=1e-6)
    nested.save_weights(path / "nested.h5")

    write_pickles(path)
    names = np.array([file.name for file in files])
    np.savez(path / "reference.npz", images=squares, files=names, **predictions)
    for name in ("evaluated", "demo"):
        spread = predictions[name].std(axis=0).mean()
        print(f"{name}: {len(files)} images, standard deviation of a score {spread:.4f}")
    print("grey levels left in half precision:", half_precision_levels("imagenet"))


def save(
    model: Model,
    name: str,
    path: Path,
    squares: np.ndarray,
    files: np.ndarray,
    predictions: dict[str, np.ndarray],
) -> None:
    """Settles a model, writes its weights, and adds what it predicts.

    Args:
      model: As `build` returns it.
      name: Of its graph.
      path: Of the folder.
      squares: float32 `(images, 224, 224, 3)`, 0 to 1: what both systems are fed.
      files: float32 `(images, 224, 224, 3)`, 0 to 255: the files as the seed reads them.
      predictions: Changed in place.
    """
    settle(model, squares)
    model.save_weights(path / f"{name}.h5")
    predictions[name] = model.predict(squares, verbose=0)
    predictions[f"{name}_files"] = model.predict(files / 255, verbose=0)


def resize_file(file: Path) -> np.ndarray:
    """Returns float32 `(224, 224, 3)`, 0 to 255: a file as the seed reads it."""
    return tf.image.resize(tf.io.decode_png(file.read_bytes(), channels=3), SHAPE[:2]).numpy()


def write_backbone(path: Path) -> None:
    """Writes weights such as Keras' own: random, with its statistics of ImageNet."""
    whole = EfficientNetB0(include_top=False, weights=None, input_shape=SHAPE)
    normalization = next(x for x in whole.layers if isinstance(x, layers.Normalization))
    # Keras stores the standard deviation as the variance; rescaling_1 does the rest.
    mean, std = np.array([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]], np.float32)
    normalization.set_weights([mean, std, np.array(0)])
    whole.save_weights(path)


def build(weights: str | None) -> Model:
    """Returns the seed's model; `imagenet` is what puts `rescaling_1` in."""
    backend.clear_session()
    images = Input(SHAPE)
    base = EfficientNetB0(include_top=False, weights=weights, input_tensor=images, pooling="avg")
    return Model(images, head(base.output))


def build_nested() -> Model:
    """Returns the same graph, with EfficientNetB0 as one layer of it."""
    backend.clear_session()
    images = Input(SHAPE)
    base = EfficientNetB0(include_top=False, weights="imagenet", input_shape=SHAPE, pooling="avg")
    return Model(images, head(base(images)))


def head(x):
    """Returns the scores of pooled features."""
    x = layers.Dropout(0.3)(layers.Dense(512, activation="relu")(x))
    x = layers.Dropout(0.2)(layers.Dense(256, activation="relu")(x))
    return layers.Dense(len(FINDINGS), activation="sigmoid", dtype="float32")(x)


def settle(model: Model, images: np.ndarray) -> None:
    """Trains a step, then gives every batch norm other weights and the statistics of `images`."""
    rng = np.random.default_rng(5)
    model.compile(optimizers.Adam(1e-4), "binary_crossentropy")
    model.train_on_batch(images, rng.integers(0, 2, (len(images), len(FINDINGS))))
    norms = [x for x in model.layers if isinstance(x, layers.BatchNormalization)]
    for layer in norms:
        gamma, beta, *statistics = layer.get_weights()
        # Small where a block adds to what it was given: random ones would be chaotic.
        low, high = (0.02, 0.1) if "project" in layer.name else (0.5, 1.5)
        gamma, beta = rng.uniform(low, high, gamma.shape), rng.normal(0, 0.2, beta.shape)
        layer.set_weights([gamma, beta, *statistics])
        layer.momentum = 0.0
    model(images, training=True)
    for layer in norms:
        layer.momentum = 0.99
    kernel, bias = model.layers[-1].get_weights()
    model.layers[-1].set_weights([kernel / 2, bias])


def half_precision_levels(weights: str) -> np.ndarray:
    """Returns how many of 256 grey levels differ at the first convolution, by channel."""
    mixed_precision.set_global_policy("mixed_float16")
    model = build(weights)
    mixed_precision.set_global_policy("float32")
    scaled = Model(model.input, model.get_layer("stem_conv_pad").input)
    ramp = np.resize(np.arange(256, dtype=np.float32), (SIZE, SIZE)) / 255
    seen = scaled.predict(np.stack([ramp] * 3, axis=-1)[np.newaxis], verbose=0)
    return np.array([len(np.unique(seen[..., channel])) for channel in range(3)])


def write_pickles(path: Path) -> None:
    """Writes thresholds as NumPy scalars, and the labels' indices, as the notebook does."""
    thresholds = np.linspace(0.18, 0.45, len(FINDINGS), dtype=np.float32)
    with open(path / "optimal_thresholds.pkl", "wb") as file:
        pickle.dump(dict(zip(FINDINGS, thresholds, strict=True)), file)
    with open(path / "label_encoder.pkl", "wb") as file:
        pickle.dump({name: index for index, name in enumerate(FINDINGS)}, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
