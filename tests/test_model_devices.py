"""What a process finds to compute on, and what it sets before TensorFlow is loaded."""

import os
import subprocess
import sys

import pytest
import tensorflow as tf

from model.devices import gpu_ids


@pytest.mark.parametrize(
    ("given", "ids"),
    [
        (None, ("0", "1")),
        ("5,3", ("5", "3")),
        ("GPU-8ab,GPU-9c", ("GPU-8ab", "GPU-9c")),
        # CUDA itself ends the list at a GPU that is not there.
        ("0,1,9", ("0", "1")),
    ],
)
def test_gpu_ids_are_those_that_a_process_may_be_given(monkeypatch, given, ids):
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: ["gpu", "gpu"])
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if given is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
    assert gpu_ids() == ids


def test_gpu_ids_without_a_gpu_are_none(monkeypatch):
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: [])
    assert gpu_ids() == ()


@pytest.mark.parametrize(("given", "found"), [(None, "true"), ("false", "false")])
def test_any_module_of_model_sets_the_allocator_before_tensorflow_is_loaded(given, found):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TF_")}
    if given:
        environment["TF_CPU_ALLOCATOR_USE_BFC"] = given
    code = (
        "import os, sys, model.bundle;"
        "print(os.environ['TF_CPU_ALLOCATOR_USE_BFC'], 'tensorflow' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [found, "False"]
