"""Working ahead in threads: the results are those of a loop, in order, and memory is bounded."""

import random
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from pipeline.read_ahead import ReadAhead

_ROOT = Path(__file__).parents[1]
_PATIENCE_S = 30.0
"""How long a test waits for what should come at once, on a busy machine."""


@pytest.fixture
def read_ahead():
    """Returns a function that makes a ReadAhead which ends with the test."""
    made = []

    def make(function, threads, depth):
        made.append(ReadAhead(function, threads=threads, depth=depth))
        return made[-1]

    yield make
    for ahead in made:
        ahead.close()


def consume(ahead, items):
    return [result for item in items for result in ahead.put(item)] + list(ahead.drain())


@pytest.mark.parametrize(
    ("threads", "depth"), [(1, 1), (2, 2), (4, 16), (8, 100)], ids=lambda value: str(value)
)
def test_read_ahead_random_delays_keep_the_order(read_ahead, threads, depth):
    delays = [random.Random(7).random() / 500 for _ in range(60)]

    def slow_square(item):
        time.sleep(delays[item])
        return item * item

    ahead = read_ahead(slow_square, threads, depth)
    assert consume(ahead, range(60)) == [item * item for item in range(60)]


@pytest.mark.parametrize("depth", [1, 3, 8])
def test_read_ahead_full_gives_one_result_for_each_item_put(read_ahead, depth):
    ahead = read_ahead(str, 1, depth)
    given = [list(ahead.put(item)) for item in range(12)]
    assert given == [[] for _ in range(depth)] + [[str(item)] for item in range(12 - depth)]
    assert list(ahead.drain()) == [str(item) for item in range(12 - depth, 12)]


def test_read_ahead_first_item_stuck_stops_the_consumer_at_depth(read_ahead):
    release, worked = threading.Event(), []

    def function(item):
        if item == 0:
            release.wait(_PATIENCE_S)
        worked.append(item)
        return item

    ahead = read_ahead(function, 3, 4)
    put = []

    def produce():
        for item in range(50):
            put.append(item)
            results.extend(ahead.put(item))

    results = []
    producer = threading.Thread(target=produce, daemon=True)
    producer.start()
    producer.join(0.3)
    # The fifth asks for the first result, so no sixth is taken in.
    assert producer.is_alive() and put == [0, 1, 2, 3, 4] and results == []
    release.set()
    producer.join(_PATIENCE_S)
    assert results == list(range(46))
    assert list(ahead.drain()) == [46, 47, 48, 49]


def test_read_ahead_threads_work_at_once_and_never_more_of_them(read_ahead):
    lock, busy, most = threading.Lock(), 0, 0
    together = threading.Barrier(3)

    def function(item):
        nonlocal busy, most
        with lock:
            busy += 1
            most = max(most, busy)
        together.wait(_PATIENCE_S)
        with lock:
            busy -= 1
        return item

    ahead = read_ahead(function, 3, 9)
    assert consume(ahead, range(12)) == list(range(12))
    assert most == 3


class Interrupted(BaseException):
    """Not an Exception, as KeyboardInterrupt is not."""


@pytest.mark.timeout(60)
@pytest.mark.parametrize("error", [KeyError("seven"), Interrupted()], ids=["error", "interrupt"])
def test_read_ahead_function_raises_the_consumer_gets_it_in_place(read_ahead, error):
    def function(item):
        if item == 7:
            raise error
        return item

    ahead, results = read_ahead(function, 2, 4), []
    with pytest.raises(type(error)) as caught:
        for item in range(20):
            results.extend(ahead.put(item))
    assert caught.value is error
    assert results == [0, 1, 2, 3, 4, 5, 6]
    assert list(ahead.drain()) == [8, 9, 10]


def test_read_ahead_function_raises_at_the_end_drain_raises_it(read_ahead):
    ahead = read_ahead(lambda item: 1 // item, 2, 4)
    assert [list(ahead.put(item)) for item in (1, 0)] == [[], []]
    with pytest.raises(ZeroDivisionError):
        list(ahead.drain())
    assert list(ahead.drain()) == []


def test_read_ahead_drained_takes_items_again(read_ahead):
    ahead = read_ahead(str, 2, 4)
    assert consume(ahead, range(3)) == ["0", "1", "2"]
    assert list(ahead.drain()) == []
    assert consume(ahead, range(3, 9)) == ["3", "4", "5", "6", "7", "8"]


def test_read_ahead_closed_ends_its_threads_after_their_work():
    before = set(threading.enumerate())
    ahead = ReadAhead(str, threads=3, depth=8)
    mine = set(threading.enumerate()) - before
    assert len(mine) == 3
    for item in range(8):
        assert list(ahead.put(item)) == []
    ahead.close()
    for thread in mine:
        thread.join(_PATIENCE_S)
    assert not any(thread.is_alive() for thread in mine)
    assert list(ahead.drain()) == [str(item) for item in range(8)]


_HANGING = """
import threading
from pipeline.read_ahead import ReadAhead

begun = threading.Event()

def hang(item):
    begun.set()
    threading.Event().wait()

list(ReadAhead(hang, threads=2, depth=2).put("image"))
begun.wait()
print("done", flush=True)
"""


def test_read_ahead_hanging_function_does_not_keep_the_process():
    done = subprocess.run(
        [sys.executable, "-c", _HANGING],
        cwd=_ROOT,
        capture_output=True,
        text=True,
        timeout=_PATIENCE_S,
    )
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr


def test_read_ahead_full_begins_nothing_before_a_result_is_taken(read_ahead):
    begun, second = [], threading.Event()

    def function(item):
        begun.append(item)
        if item == 0:
            second.wait(10)
        return item

    ahead = read_ahead(function, 2, 2)
    assert list(ahead.put(0)) == list(ahead.put(1)) == []
    taker = threading.Thread(target=lambda: list(ahead.put(2)), daemon=True)
    taker.start()
    taker.join(0.2)
    seen = list(begun)
    second.set()
    taker.join()
    assert seen == [0, 1]
