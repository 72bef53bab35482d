"""What loading TensorFlow sets for a run, seen in a process of its own."""

import os
import subprocess
import sys

_ALLOCATE_AGAIN = """
import resource

from jobs.logs import load_tensorflow

load_tensorflow()
import tensorflow as tf

def work():
    tf.ones(32 << 20)

work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    work()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def test_tensorflow_keeps_the_memory_of_a_batch_for_the_next():
    unset = {name: value for name, value in os.environ.items() if not name.startswith("TF_")}
    done = subprocess.run(
        [sys.executable, "-c", _ALLOCATE_AGAIN],
        env=unset,
        capture_output=True,
        text=True,
        check=True,
    )

    # 128 MiB are 32,768 pages; got anew, each of them is a fault.
    assert int(done.stdout) < 1000
    assert done.stderr == ""
