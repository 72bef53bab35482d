"""The benchmark of long manifests: what it says of a stage is of that stage."""

import importlib
import sys
import types
from pathlib import Path

import pytest

# The benchmarks are no package: they are run by path.
sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import many_rows

MEGABYTE = 1 << 20


@pytest.mark.parametrize("stage", many_rows.STAGES)
def test_stages_each_begins_at_a_function_that_exists(stage):
    module, function = many_rows.STAGES[stage]
    assert callable(getattr(importlib.import_module(module), function))


def test_stages_id_checks_are_among_them():
    assert set(many_rows.ID_CHECKS) <= set(many_rows.STAGES)


def test_stages_memory_that_is_given_back_counts_in_its_own_stage_alone():
    work = types.ModuleType("work")
    work.fill = lambda megabytes: len(bytearray(megabytes * MEGABYTE))
    work.rest = lambda: "done"
    stages = many_rows.Stages()
    stages.begin_at(work, "fill", "fill")
    stages.begin_at(work, "rest", "rest")

    assert work.fill(200) == 200 * MEGABYTE
    assert work.rest() == "done"

    facts = stages.close()
    assert list(facts) == ["start", "fill", "rest"]
    grown = {name: stage["peak_mb"] - facts["start"]["end_mb"] for name, stage in facts.items()}
    assert grown["fill"] == pytest.approx(200, abs=20)
    assert grown["rest"] < 20


def test_stub_a_tenth_has_one_finding_at_any_batch_size():
    import numpy as np

    scores = many_rows.Stub().score(np.zeros((1000, 224, 224), np.uint8)).scores
    batched = many_rows.Stub()
    parts = [batched.score(np.zeros((8, 224, 224), np.uint8)).scores for _ in range(125)]

    assert (np.concatenate(parts) == scores).all()
    assert set((scores > 0.99).sum(axis=1)) == {0, 1}
    assert (scores > 0.99).sum() == pytest.approx(100, abs=30)
