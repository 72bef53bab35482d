"""The training configuration and its TOML file."""

import pytest

from model.training_config import (
    Augmentation,
    Balance,
    Loss,
    Optimizer,
    Split,
    Stage,
    TrainingConfig,
    load_training_config,
)
from schemas.errors import InputError


def _load(tmp_path, content):
    path = tmp_path / "c.toml"
    path.write_text(content)
    return load_training_config(str(path))


def test_load_training_config_reads_all_fields(tmp_path):
    content = """
        title = "T"
        statement = "S"
        data = "D"
        seed = 7
        batch_size = 8
        precision = "float32"
        target_recall = 1
        threshold_policy = "conservative"
        borderline_band = 0.1
        [split]
        kind = "official"
        validation_share = 0.2
        train_val_list = "a"
        test_list = "b"
        [balance]
        minimum_positives = 0
        class_weight_strength = 0
        [augmentation]
        flip = false
        zoom = 0.8
        [loss]
        kind = "focal"
        gamma = 1.5
        alpha = 0.3
        class_balancing = true
        [optimizer]
        kind = "adamw"
        weight_decay = 0.01
        clip_norm = 2
        [[stages]]
        size = 96
        epochs = 2
        learning_rate = 1e-3
        schedule = "cosine"
        [[stages]]
        size = 224
        epochs = 1
        learning_rate = 1e-4
        stop_after = 3
    """
    assert _load(tmp_path, content) == TrainingConfig(
        title="T",
        statement="S",
        data="D",
        seed=7,
        batch_size=8,
        precision="float32",
        target_recall=1.0,
        threshold_policy="conservative",
        borderline_band=0.1,
        split=Split("official", 0.2, train_val_list="a", test_list="b"),
        balance=Balance(0, 0.0),
        augmentation=Augmentation(flip=False, zoom=0.8),
        loss=Loss("focal", 1.5, 0.3, True),
        optimizer=Optimizer("adamw", 0.01, 2.0),
        stages=(Stage(96, 2, 1e-3, "cosine"), Stage(224, 1, 1e-4, stop_after=3)),
    )


def test_load_training_config_empty_file_is_the_default(tmp_path):
    assert _load(tmp_path, "") == TrainingConfig()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("epoch = 3", "has no field epoch. Known: title, "),
        ("[balance]\nminimum = 3", "has no field balance.minimum. Known: minimum_positives"),
        ("[[stages]]\nsize = 224", "stages.epochs must be given. Received: size"),
        ("[stages]\nsize = 224", "stages must be an array of tables"),
        ("split = 3", "split must be a table. Received: 3"),
        ("title", "must be a readable TOML file"),
        ("seed = 1.5", "seed must be of type int. Received: 1.5"),
        ("seed = true", "seed must be of type int. Received: True"),
        ("seed = -1", "seed must be 0 or more. Received: seed=-1"),
        ("[loss]\nkind = 'mse'", "loss.kind must be one of focal, bce, weighted_bce"),
        ("[loss]\nalpha = 1.0", "loss.alpha must be over 0 and under 1"),
        ("[optimizer]\nkind = 'sgd'", "optimizer.kind must be one of adam, adamw"),
        ("[augmentation]\nzoom = 0.0", "augmentation.zoom must be over 0 and up to 1"),
        ("[balance]\nclass_weight_strength = 2", "class_weight_strength must be from 0 to 1"),
        ("[split]\nkind = 'official'", "must be given for kind 'official', and only then"),
        ("[split]\ntest_list = 'x'", "must be given for kind 'official', and only then"),
        ("[split]\ntest_share = 1", "split.test_share must be over 0 and under 1"),
        ("precision = 'half'", "precision must be one of auto, float32"),
        (
            "[[stages]]\nsize = 96\nepochs = 1\nlearning_rate = 1.0",
            r"stages must end at size 224.*\[96\]",
        ),
    ],
)
def test_load_training_config_mistake_is_refused(tmp_path, content, message):
    with pytest.raises(InputError, match=message):
        _load(tmp_path, content)


def test_load_training_config_missing_file_is_refused(tmp_path):
    with pytest.raises(InputError, match="must be a readable TOML file"):
        load_training_config(str(tmp_path / "none.toml"))
