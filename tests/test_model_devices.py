"""What a process sets before TensorFlow is loaded."""

import os
import subprocess
import sys

import pytest


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
