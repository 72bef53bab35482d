"""The training loop: schedules, the best epoch, and going on after an interruption."""

import csv
import dataclasses

import keras
import numpy as np
import pytest

from model import training
from model.callbacks import mean_auc
from model.image_cache import LabelledImages
from model.training import plan_epoch, train_network
from model.training_config import Augmentation, Balance, Loss, Optimizer, Stage, TrainingConfig
from model.training_state import StateFolder
from schemas.errors import InputError
from schemas.findings import FINDINGS

_CONFIG = TrainingConfig(
    stages=(
        Stage(64, 2, 3e-3, schedule="cosine"),
        Stage(224, 3, 3e-3, schedule="plateau"),
    ),
    batch_size=8,
    balance=Balance(minimum_positives=6),
    precision="float32",
)


def small_network(size=224, backbone_weights=None):
    """A network with the layers that training looks for, and dropout, but little to compute."""
    images = keras.Input((size, size), dtype="uint8", name="images")
    x = keras.layers.Reshape((size, size, 1))(images)
    x = keras.layers.Rescaling(1 / 255, dtype="float32", name="scaling")(x)
    x = keras.layers.Conv2D(8, 7, strides=8, activation="relu")(x)
    x = keras.layers.BatchNormalization()(x)
    x = keras.layers.Dropout(0.3)(x)
    x = keras.layers.GlobalAveragePooling2D(name="average_pool")(x)
    logits = keras.layers.Dense(len(FINDINGS), dtype="float32", name="logits")(x)
    scores = keras.layers.Activation("sigmoid", dtype="float32", name="scores")(logits)
    return keras.Model(images, scores)


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(training, "build_network", small_network)


@pytest.fixture(scope="module")
def labelled(squares):
    """40 images; `Mass` shows as brightness, the rest is chance."""
    rng = np.random.default_rng(5)
    labels = rng.random((40, len(FINDINGS))) < 0.2
    labels[:, FINDINGS.index("Mass")] = np.arange(40) % 2 == 0
    pixels = squares.copy()
    pixels[::2] = np.minimum(pixels[::2], 155) + 100
    names = np.array([f"i{k}" for k in range(40)])
    return LabelledImages(pixels, np.arange(40), labels, names, names, np.array([""] * 40))


def _train(labelled, folder, config=_CONFIG, **options):
    plan = plan_epoch(labelled.take(np.arange(24)), config)
    return train_network(plan, labelled.take(np.arange(24, 40)), config, folder, **options)


def _log(folder):
    with open(folder / "training.csv", newline="", encoding="utf-8") as file:
        return [(row["stage"], row["epoch"]) for row in csv.DictReader(file)]


def _assert_same(one, other):
    for weights, same in zip(one.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(weights, same)


@pytest.fixture(scope="module")
def uninterrupted(labelled, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "build_network", small_network)
        return _train(labelled, folder), folder


@pytest.mark.parametrize("killed_at", [4, 11], ids="after {} batches".format)
def test_train_network_interrupted_and_resumed_gives_the_same_network(
    small, monkeypatch, labelled, uninterrupted, tmp_path, killed_at
):
    """3 batches an epoch, some of them fetched ahead: within each stage and epoch."""
    whole, folder = uninterrupted
    batches, left = training._batches, [killed_at]

    def dying(*arguments):
        for batch in batches(*arguments):
            if not left[0]:
                raise KeyboardInterrupt
            left[0] -= 1
            yield batch

    monkeypatch.setattr(training, "_batches", dying)
    with pytest.raises((KeyboardInterrupt, Exception), match=r"KeyboardInterrupt|^$"):
        _train(labelled, tmp_path / "s")
    monkeypatch.setattr(training, "_batches", batches)
    resumed = _train(labelled, tmp_path / "s", resume=True)
    _assert_same(whole, resumed)
    assert (tmp_path / "s" / "training.csv").read_bytes() == (folder / "training.csv").read_bytes()


def test_train_network_finished_and_resumed_trains_no_more(
    small, monkeypatch, labelled, uninterrupted
):
    whole, folder = uninterrupted
    monkeypatch.setattr(training, "_batches", None)
    _assert_same(whole, _train(labelled, folder, resume=True))


def test_train_network_log_has_a_row_an_epoch_of_each_stage(uninterrupted):
    _, folder = uninterrupted
    assert _log(folder) == [("0", "0"), ("0", "1"), ("1", "0"), ("1", "1"), ("1", "2")]


def test_train_network_returns_the_best_epoch_of_the_last_stage(uninterrupted, labelled):
    network, folder = uninterrupted
    progress, _ = StateFolder(folder).load()
    aucs = [row["val_mean_auc"] for row in progress.history if row["stage"] == 1]
    validation = labelled.take(np.arange(24, 40))
    logits = keras.Model(network.input, network.get_layer("logits").output)
    # In the batches of the training: near ties fall as they fell there.
    starts = range(0, len(validation), _CONFIG.batch_size)
    batches = [validation.squares(slice(k, k + _CONFIG.batch_size)) for k in starts]
    scores = np.concatenate([logits.predict_on_batch(batch) for batch in batches])
    assert mean_auc(scores, validation.labels) == pytest.approx(max(aucs), abs=1e-6)
    assert progress.best_auc == max(aucs)


def test_train_network_stops_and_lowers_the_rate_where_nothing_improves(
    small, monkeypatch, labelled, tmp_path
):
    monkeypatch.setattr("model.callbacks.mean_auc", lambda scores, labels: 0.5)
    config = dataclasses.replace(_CONFIG, stages=(Stage(224, 30, 1e-3, stop_after=7),))
    _train(labelled, tmp_path, config)
    progress, _ = StateFolder(tmp_path).load()
    assert progress.stopped
    # The first epoch is the best one; 7 more are waited for, the rate falls after 5.
    rates = [row["learning_rate"] for row in progress.history]
    np.testing.assert_allclose(rates, [1e-3] * 6 + [5e-4] * 2, rtol=1e-6)


@pytest.mark.parametrize(
    "loss",
    [
        Loss("focal"),
        Loss("focal", alpha=0.25, class_balancing=True),
        Loss("bce"),
        Loss("weighted_bce"),
    ],
    ids=lambda loss: f"{loss.kind} {loss.class_balancing}",
)
def test_train_network_any_loss_and_optimizer_learns_what_shows(small, labelled, tmp_path, loss):
    config = dataclasses.replace(
        _CONFIG,
        stages=(Stage(224, 15, 1e-2, "cosine", 15),),
        loss=loss,
        optimizer=Optimizer("adamw"),
        augmentation=Augmentation(brightness=0.0),
    )
    network = _train(labelled, tmp_path, config)
    scores = network.predict_on_batch(labelled.pixels[24:])[:, FINDINGS.index("Mass")]
    assert scores[::2].min() > scores[1::2].max()


def test_train_network_state_of_another_training_is_refused(
    small, labelled, uninterrupted, tmp_path
):
    _, folder = uninterrupted
    with pytest.raises(InputError, match="must not hold the state .* Go on with it by --resume"):
        _train(labelled, folder)
    other = dataclasses.replace(_CONFIG, seed=1)
    with pytest.raises(InputError, match="--resume must go on with the same images and conf"):
        _train(labelled, folder, other, resume=True)


def test_train_network_nothing_to_measure_is_refused(small, labelled, tmp_path):
    bare = dataclasses.replace(labelled, labels=np.zeros_like(labelled.labels))
    with pytest.raises(InputError, match="Received: 16 images without such a finding"):
        _train(bare, tmp_path)


@pytest.mark.slow
def test_train_network_memorises_64_real_images(nih_images, nih_labels, tmp_path):
    import pandas as pd

    from model.image_cache import label_matrix
    from model.preprocessing import prepare

    table = pd.read_csv(nih_labels, index_col="Image Index")
    chosen = nih_images[:64]
    pixels = np.stack([prepare(path.read_bytes()).pixels for path in chosen])
    labels = label_matrix(table.loc[[path.name for path in chosen], "Finding Labels"].tolist())
    names = np.array([path.stem for path in chosen])
    images = LabelledImages(pixels, np.arange(64), labels, names, names, np.array([""] * 64))
    # Steps enough in each stage for the moving averages of batch norm to arrive: a network
    # that has learnt its images still fails in use until they have.
    config = TrainingConfig(
        stages=(Stage(96, 60, 2e-3, "cosine", 60), Stage(224, 40, 1e-3, "cosine", 40)),
        batch_size=8,
        balance=Balance(0, 0.0),
        augmentation=Augmentation(False, 0.0, 0.0, 1.0),
        loss=Loss("bce"),
    )
    network = train_network(plan_epoch(images, config), images, config, tmp_path)
    assert mean_auc(network.predict(pixels, verbose=0), labels) > 0.99
