"""The training loop, its configuration, and splits by patient."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.training import (
    Stage,
    TrainingConfig,
    load_training_config,
    split_by_patient,
    train_network,
)
from schemas.errors import InputError

_SHARES = {"train": 0.7, "validation": 0.15, "test": 0.15}


@pytest.mark.slow
def test_train_network_same_seed_gives_the_same_network(squares):
    labels = np.random.default_rng(0).random((32, 15)) < 0.3
    config = TrainingConfig(stages=(Stage(224, 1, 1e-3),), batch_size=16, seed=4)
    one, other = (train_network(squares[:32], labels, config) for _ in range(2))
    for weights, same in zip(one.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(weights, same)


@given(
    st.lists(st.integers(0, 30), min_size=1, max_size=80).map(lambda p: [f"p{n}" for n in p]),
    st.integers(0, 5),
)
@settings(deadline=None)
def test_split_by_patient_keeps_patients_whole_and_loses_no_image(patients, seed):
    parts = split_by_patient(patients, seed, _SHARES)
    assert sorted(np.concatenate(list(parts.values())).tolist()) == list(range(len(patients)))
    owners = [{patients[k] for k in part} for part in parts.values()]
    assert sum(map(len, owners)) == len(set(patients))


def test_split_by_patient_shares_are_of_patients():
    parts = split_by_patient([f"p{n}" for n in range(100)], 0, _SHARES)
    assert {name: len(part) for name, part in parts.items()} == {
        "train": 70,
        "validation": 15,
        "test": 15,
    }


def test_load_training_config_reads_all_fields(tmp_path):
    path = tmp_path / "c.toml"
    path.write_text(
        'title = "T"\nseed = 7\n[[stages]]\nsize = 96\nepochs = 2\nlearning_rate = 1e-3\n'
        "[[stages]]\nsize = 224\nepochs = 1\nlearning_rate = 1e-4\n"
    )
    assert load_training_config(str(path)) == TrainingConfig(
        title="T", seed=7, stages=(Stage(96, 2, 1e-3), Stage(224, 1, 1e-4))
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("epoch = 3", "unexpected keyword argument 'epoch'"),
        ("[[stages]]\nsize = 224", "missing 2 required positional arguments"),
        ("title", "must be a TOML file"),
        (
            "[[stages]]\nsize = 96\nepochs = 1\nlearning_rate = 1.0",
            r"stages must end at size 224.*\[96\]",
        ),
    ],
    ids=["unknown field", "half a stage", "no TOML", "another size"],
)
def test_load_training_config_mistake_is_refused(tmp_path, content, message):
    path = tmp_path / "c.toml"
    path.write_text(content)
    with pytest.raises(InputError, match=message):
        load_training_config(str(path))


def test_load_training_config_missing_file_is_refused(tmp_path):
    with pytest.raises(InputError, match="must be a TOML file"):
        load_training_config(str(tmp_path / "none.toml"))
