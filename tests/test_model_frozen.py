"""Frozen graphs: all images come back, in order, by either engine; failures have one name."""

import threading

import numpy as np
import pytest
import tensorflow as tf
from keras import ops

from model import frozen
from model.frozen import InferenceError, LiteGraph, TensorFlowGraph, freeze, pad_to_power_of_two


def highest_and_first_row(images):
    return [ops.max(ops.cast(images, "float32"), axis=(1, 2)), images[:, 0]]


@pytest.mark.parametrize("engine", [LiteGraph, TensorFlowGraph])
@pytest.mark.parametrize("count", [1, 8, 9, 37])
def test_graph_of_any_number_of_images_returns_each_in_order(engine, count):
    graph = engine(highest_and_first_row)
    images = np.zeros((count, 224, 224), np.uint8)
    images[:, 0, 5] = np.arange(1, count + 1)
    highest, first_rows = graph(images)
    np.testing.assert_array_equal(highest, np.arange(1, count + 1))
    np.testing.assert_array_equal(first_rows, images[:, 0])


def test_lite_graph_takes_no_more_threads_than_tensorflow_is_granted(monkeypatch):
    monkeypatch.setenv("TF_NUM_INTRAOP_THREADS", "1")
    before = set(threading.enumerate())
    graph = LiteGraph(highest_and_first_row)
    graph(np.zeros((40, 224, 224), np.uint8))
    assert [thread.name for thread in set(threading.enumerate()) - before] == ["LiteRT_0"]


def row_of_a_table(images):
    """The first grey level names one of ten rows: another one is beyond the table."""
    return [ops.take(ops.ones((10, 1)), ops.cast(images[:, 0, 0], "int32"), axis=0)]


@pytest.mark.parametrize("engine", [LiteGraph, TensorFlowGraph])
def test_graph_that_fails_raises_inference_error_and_computes_the_next_batch(engine):
    graph = engine(row_of_a_table)
    images = np.zeros((4, 224, 224), np.uint8)
    with pytest.raises(InferenceError, match="LiteRT|InvalidArgumentError"):
        graph(images + np.uint8(200))
    np.testing.assert_array_equal(graph(images)[0], np.ones((4, 1)))


def test_tensorflow_graph_out_of_memory_raises_memory_error(monkeypatch):
    def exhausted(images):
        raise tf.errors.ResourceExhaustedError(None, None, "OOM")

    graph = TensorFlowGraph(highest_and_first_row)
    monkeypatch.setattr(graph, "_graph", exhausted)
    with pytest.raises(MemoryError, match="^3 images do not fit"):
        graph(np.zeros((3, 224, 224), np.uint8))


@pytest.mark.parametrize(
    ("precision", "has_gpu", "engine"),
    [
        ("float32", False, LiteGraph),
        ("float32", True, TensorFlowGraph),
        ("mixed_bfloat16", False, TensorFlowGraph),
    ],
)
def test_freeze_takes_litert_for_float32_on_a_cpu_alone(precision, has_gpu, engine, monkeypatch):
    monkeypatch.setattr(frozen, "prepare_gpus", lambda: has_gpu)
    assert type(freeze(highest_and_first_row, precision)) is engine


@pytest.mark.parametrize(("count", "padded"), [(1, 1), (2, 2), (3, 4), (5, 8), (32, 32)])
def test_pad_to_power_of_two_appends_black(count, padded):
    images = np.full((count, 224, 224), 9, np.uint8)
    result = pad_to_power_of_two(images)
    assert result.shape == (padded, 224, 224)
    np.testing.assert_array_equal(result[:count], images)
    assert not result[count:].any()
