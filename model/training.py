"""A network from labelled images held in memory."""

import dataclasses
import tomllib
from collections.abc import Mapping

import keras
import numpy as np
from PIL import Image

from model.network import build_network
from schemas.contract import STANDARD_CONTRACT
from schemas.errors import InputError

_WARM_UP_SHARE = 0.05
"""Share of a stage's steps in which the learning rate climbs from 0."""

_FINAL_RATE = 0.02
"""Share of the learning rate left at the end of a stage."""


@dataclasses.dataclass(frozen=True)
class Stage:
    """Some epochs at one image size; small sizes first save most of the time.

    Attributes:
      size: Height and width the images are shrunk to, in pixels.
      epochs: Passes over the training part.
      learning_rate: Highest rate of Adam, after a warm-up and before a cosine
        decay.
    """

    size: int
    epochs: int
    learning_rate: float


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """Everything that decides what a training run gives.

    Attributes:
      stages: In order; the last one is at the size that the network is used at.
      batch_size: Images a step.
      flip: Mirror half of the images of a batch. Doubtful anatomically, since it
        moves the heart to the other side, but test-time augmentation does it too.
      target_recall: Wanted recall of each finding's threshold.
      borderline_band: Distance from a threshold within which `--tta borderline`
        takes a second look.
      seed: Orders, flips and initial weights.
      title: What the bundle is called wherever its output is shown.
      statement: What the bundle may be used for.
    """

    stages: tuple[Stage, ...] = (Stage(size=224, epochs=20, learning_rate=1e-3),)
    batch_size: int = 32
    flip: bool = True
    target_recall: float = 0.8
    borderline_band: float = 0.05
    seed: int = 0
    title: str = "Research model"
    statement: str = "Research prototype. Not for diagnosis. Not validated clinically."

    def __post_init__(self):
        if not self.stages or self.stages[-1].size != STANDARD_CONTRACT.size:
            sizes = [stage.size for stage in self.stages]
            raise InputError(
                f"stages must end at size {STANDARD_CONTRACT.size}, the network's input."
                f" Received: sizes={sizes}."
            )


def load_training_config(path: str) -> TrainingConfig:
    """Reads a TOML file with the fields of `TrainingConfig`.

    Raises:
      InputError: The file cannot be read, or names a field that is not there.
    """
    try:
        with open(path, "rb") as file:
            values = tomllib.load(file)
        stages = tuple(Stage(**stage) for stage in values.pop("stages", ()))
        return TrainingConfig(**values, **({"stages": stages} if stages else {}))
    except (OSError, tomllib.TOMLDecodeError, TypeError) as error:
        raise InputError(
            f"{path} must be a TOML file with fields of the training configuration."
            f" Received: {error}."
        ) from error


def train_network(
    pixels: np.ndarray,
    labels: np.ndarray,
    config: TrainingConfig,
    backbone_weights: str | None = None,
) -> keras.Model:
    """Trains a network on uint8 squares.

    Args:
      pixels: uint8 `(images, 224, 224)`, as `model.preprocessing` prepares them.
      labels: bool `(images, 15)` in the order of `FINDINGS`.
      config: What to do with them.
      backbone_weights: As for `build_network`.

    Returns:
      A trained network at the size of the last stage, as `build_network` makes it.
    """
    keras.utils.set_random_seed(config.seed)
    network = None
    for number, stage in enumerate(config.stages):
        larger = build_network(stage.size, backbone_weights if network is None else None)
        if network is not None:
            larger.set_weights(network.get_weights())
        network = larger
        batches = _Batches(_shrink(pixels, stage.size), labels, config, number)
        _fit(network, batches, stage)
    return network


def _fit(network: keras.Model, batches: "_Batches", stage: Stage) -> None:
    """Trains on logits, where the loss is exact for any confidence."""
    steps = len(batches) * stage.epochs
    warm_up = max(int(steps * _WARM_UP_SHARE), 1)
    rate = keras.optimizers.schedules.CosineDecay(
        0.0,
        decay_steps=max(steps - warm_up, 1),
        alpha=_FINAL_RATE,
        warmup_target=stage.learning_rate,
        warmup_steps=warm_up,
    )
    trainee = keras.Model(network.input, network.get_layer("logits").output)
    trainee.compile(
        keras.optimizers.Adam(rate, clipnorm=1.0),
        loss=keras.losses.BinaryCrossentropy(from_logits=True),
        jit_compile=False,
    )
    trainee.fit(batches, epochs=stage.epochs, verbose=2, shuffle=False)


class _Batches(keras.utils.PyDataset):
    """Shuffled batches, another order each epoch, the same for the same seed."""

    def __init__(self, pixels: np.ndarray, labels: np.ndarray, config: TrainingConfig, stage: int):
        super().__init__()
        self._pixels = pixels
        self._labels = labels.astype(np.float32)
        self._batch_size = config.batch_size
        self._flip = config.flip
        self._rng = np.random.default_rng([config.seed, stage])
        self._order = self._rng.permutation(len(pixels))

    def __len__(self) -> int:
        # A last, shorter batch would only upset the batch statistics.
        return max(len(self._pixels) // self._batch_size, 1)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        chosen = self._order[index * self._batch_size : (index + 1) * self._batch_size]
        images = self._pixels[chosen]
        if self._flip:
            mirrored = self._rng.random(len(chosen)) < 0.5
            images[mirrored] = images[mirrored, :, ::-1]
        return images, self._labels[chosen]

    def on_epoch_end(self) -> None:
        self._order = self._rng.permutation(len(self._pixels))


def _shrink(pixels: np.ndarray, size: int) -> np.ndarray:
    if pixels.shape[1] == size:
        return pixels
    shrunk = np.empty((len(pixels), size, size), np.uint8)
    for index, image in enumerate(pixels):
        small = Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR)
        shrunk[index] = np.asarray(small)
    return shrunk


def split_by_patient(
    patients: list[str], seed: int, shares: Mapping[str, float]
) -> dict[str, np.ndarray]:
    """Returns the indices of each part; all images of a patient fall in one part.

    Args:
      patients: One id an image.
      seed: Decides who falls where.
      shares: Share of patients by name of the part, summing to 1.
    """
    unique, owner = np.unique(np.asarray(patients), return_inverse=True)
    order = np.random.default_rng(seed).permutation(len(unique))
    bounds = np.cumsum([round(share * len(unique)) for share in shares.values()])[:-1]
    parts = np.split(order, bounds)
    return {
        name: np.flatnonzero(np.isin(owner, part)) for name, part in zip(shares, parts, strict=True)
    }
