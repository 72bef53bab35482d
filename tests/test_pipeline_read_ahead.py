"""Working ahead in threads: the results are those of a loop, in order, and memory is bounded."""

import random
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from model.reading import FileVersion
from pipeline import read_ahead as module
from pipeline.read_ahead import ReadAhead, StoreError, TimedOut
from pipeline.watch import GivenUp, Watch
from schemas.rejects import Reason, Stage

_ROOT = Path(__file__).parents[1]
_PATIENCE_S = 30.0
"""How long a test waits for what should come at once, on a busy machine."""


@pytest.fixture
def read_ahead():
    """Returns a function that makes a ReadAhead which ends with the test."""
    made = []

    def make(function, threads, depth):
        # No item is late, however busy the machine is.
        ahead = ReadAhead(
            lambda item, _: function(item), threads=threads, depth=depth, late_s=_PATIENCE_S
        )
        made.append(ahead)
        return made[-1]

    yield make
    for ahead in made:
        ahead.close()


def wait_until(condition):
    """Waits for what another thread is about to do."""
    end = time.monotonic() + _PATIENCE_S
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.002)


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


def test_read_ahead_closed_ends_its_threads_and_lets_go_of_what_waits():
    release, begun = threading.Event(), []

    def function(item, _):
        begun.append(item)
        release.wait(_PATIENCE_S)

    before = set(threading.enumerate())
    ahead = ReadAhead(function, threads=3, depth=8)
    mine = set(threading.enumerate()) - before
    assert len(mine) == 3
    for item in range(8):
        assert list(ahead.put(item)) == []
    wait_until(lambda: len(begun) == 3)
    ahead.close()
    release.set()
    for thread in mine:
        thread.join(_PATIENCE_S)
    assert not any(thread.is_alive() for thread in mine)
    assert sorted(begun) == [0, 1, 2] and list(ahead.drain()) == []


_HANGING = """
import threading
from pipeline.read_ahead import ReadAhead

begun = threading.Event()

def hang(item, watch):
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


# Hung and slow items, by a clock that stands still unless told


class Store:
    """Gives every item back at once, but for those that it was told to hold up.

    Its clock is that of the watches. Items of another stage than READ are in it when
    they are held up.
    """

    def __init__(self):
        self.now_s = 1000.0
        self.held: dict[str, threading.Event] = {}
        self.stages: dict[str, Stage | None] = {}
        self.begun: list[str] = []
        self.ended: list[str] = []

    def hold(self, *items, stage=Stage.READ):
        for item in items:
            self.held[item] = threading.Event()
            self.stages[item] = stage

    def release(self, *items):
        for item in items or self.held:
            self.held[item].set()

    def watch(self):
        return Watch(lambda: self.now_s)

    def read(self, item, watch):
        watch.begin_attempt()
        watch.version = FileVersion(len(item), "17")
        if self.stages.get(item, Stage.READ) is not Stage.READ:
            watch.begin(self.stages[item])
        self.begun.append(item)
        if item in self.held:
            assert self.held[item].wait(_PATIENCE_S)
        self.ended.append(item)
        return item.upper()


@pytest.fixture
def store():
    """A Store; what it still holds up goes on at the end of the test, and all of it ends."""
    store = Store()
    yield store
    store.release()
    wait_until(lambda: not module._hung)


@pytest.fixture
def ahead_of(store, monkeypatch):
    """Returns a function that makes a ReadAhead of the store which ends with the test."""
    monkeypatch.setattr(module, "_TICK_S", 0.005)
    made = []

    def make(threads, depth=8):
        made.append(ReadAhead(store.read, threads=threads, depth=depth))
        return made[-1]

    yield make
    for ahead in made:
        ahead.close()


def put(ahead, store, *items):
    """Puts items in and returns what that gave."""
    return [result for item in items for result in ahead.put(item, store.watch())]


def timed_out(result):
    """Returns what a TimedOut says, for comparing."""
    assert isinstance(result, TimedOut)
    return (result.item, result.error.reason, result.error.detail, result.watch.attempts)


def test_read_ahead_late_item_is_set_aside_and_given_when_it_is_done(store, ahead_of):
    store.hold("b")
    ahead = ahead_of(threads=2, depth=2)
    assert put(ahead, store, "a", "b", "c") == ["A"]
    wait_until(lambda: sorted(store.begun) == ["a", "b", "c"])
    store.now_s += 2.5
    # No other waits for it, and it takes no place among them.
    assert put(ahead, store, "d", "e") == ["C"]
    assert put(ahead, store, "f") == ["D"]
    store.release("b")
    wait_until(lambda: "b" in store.ended and not module._hung)
    assert put(ahead, store, "g") == ["B", "E"]
    assert list(ahead.drain()) == ["F", "G"]


def test_read_ahead_item_below_the_limit_of_lateness_is_waited_for(store, ahead_of):
    store.hold("a")
    ahead, given = ahead_of(threads=2, depth=1), []
    put(ahead, store, "a")
    wait_until(lambda: store.begun == ["a"])
    store.now_s += 2.0
    taker = threading.Thread(target=lambda: given.extend(put(ahead, store, "b")), daemon=True)
    taker.start()
    taker.join(0.1)
    assert taker.is_alive() and store.begun == ["a"]
    store.release("a")
    taker.join(_PATIENCE_S)
    assert given == ["A"]


@pytest.mark.parametrize(
    ("stage", "reason"),
    [(Stage.READ, Reason.READ_TIMEOUT), (Stage.DECODE, Reason.DECODE_TIMEOUT)],
    ids=["read", "decode"],
)
def test_read_ahead_hung_item_is_given_up_after_a_minute_by_its_stage(
    store, ahead_of, stage, reason
):
    store.hold("hung", stage=stage)
    ahead = ahead_of(threads=2)
    put(ahead, store, "hung", "a", "b")
    wait_until(lambda: "hung" in store.begun)
    store.now_s += 60.0
    assert put(ahead, store, "c") == []
    store.now_s += 0.5
    results = list(ahead.drain())
    assert timed_out(results[0]) == ("hung", reason, "not done within 60 s", 1)
    assert results[0].watch.version == FileVersion(4, "17")
    assert results[1:] == ["A", "B", "C"]


def test_read_ahead_late_result_of_a_given_up_item_is_dropped(store, ahead_of):
    store.hold("hung")
    ahead = ahead_of(threads=1)
    put(ahead, store, "hung")
    wait_until(lambda: store.begun == ["hung"])
    store.now_s += 61
    # It is given up now, and given later: there is room.
    assert put(ahead, store, "a") == []
    store.release("hung")
    wait_until(lambda: "hung" in store.ended and not module._hung)
    result, *others = ahead.drain()
    assert timed_out(result)[:2] == ("hung", Reason.READ_TIMEOUT) and others == ["A"]


def test_read_ahead_hung_reads_leave_the_others_as_many_threads(store, ahead_of):
    before = set(threading.enumerate())

    def threads():
        return len(set(threading.enumerate()) - before)

    store.hold("h1", "h2", "h3")
    ahead = ahead_of(threads=2)
    put(ahead, store, "h1", "h2", "h3")
    # Two threads take two each: which of them begins first is theirs.
    wait_until(lambda: sorted(store.begun) == ["h1", "h2"])
    store.now_s += 3
    put(ahead, store, "x")
    wait_until(lambda: sorted(store.begun) == ["h1", "h2", "h3", "x"])
    store.now_s += 3
    # Two threads are left: these two need each other.
    store.hold("y", "z")
    put(ahead, store, "y", "z")
    wait_until(lambda: {"y", "z"} <= set(store.begun))
    assert threads() == 5
    store.release()
    assert sorted(ahead.drain()) == ["H1", "H2", "H3", "X", "Y", "Z"]
    # Those that have been replaced end, and two go on.
    wait_until(lambda: threads() == 2)


def test_read_ahead_slow_store_gets_no_more_threads_than_the_spare_ones(store, ahead_of):
    names = [f"s{number}" for number in range(12)]
    store.hold(*names)
    ahead = ahead_of(threads=1, depth=30)
    put(ahead, store, *names)
    for count in (1, 2, 3, 4, 5):
        wait_until(lambda count=count: len(store.begun) == count)
        store.now_s += 3
        put(ahead, store)
        next(ahead.put("looks after the threads", store.watch()), None)
    time.sleep(0.05)
    assert store.begun == names[:5]


def test_read_ahead_items_in_time_earn_spare_threads_again(store, ahead_of):
    ahead = ahead_of(threads=1, depth=30)
    for number in range(10):
        store.hold(f"h{number}")
        put(ahead, store, f"h{number}")
        wait_until(lambda number=number: f"h{number}" in store.begun)
        store.now_s += 3
        quick = [f"q{number}.{k}" for k in range(11)]
        put(ahead, store, *quick)
        wait_until(lambda quick=quick: set(quick) <= set(store.ended))
    store.release()
    assert len(list(ahead.drain())) <= 120


def test_read_ahead_late_decode_gets_no_other_thread_before_it_is_given_up(store, ahead_of):
    store.hold("heavy", stage=Stage.DECODE)
    ahead = ahead_of(threads=1)
    put(ahead, store, "heavy")
    wait_until(lambda: store.begun == ["heavy"])
    store.now_s += 30
    put(ahead, store, "a")
    time.sleep(0.05)
    assert store.begun == ["heavy"]
    store.now_s += 31
    put(ahead, store, "b")
    wait_until(lambda: sorted(store.begun) == ["a", "b", "heavy"])
    assert [getattr(result, "item", result) for result in ahead.drain()] == ["heavy", "A", "B"]


def test_read_ahead_what_is_not_to_be_given_up_never_is(store, ahead_of):
    store.hold("writing", stage=None)
    ahead = ahead_of(threads=1)
    put(ahead, store, "writing")
    wait_until(lambda: store.begun == ["writing"])
    store.now_s += 10_000
    put(ahead, store, "a")
    store.release("writing")
    assert sorted(ahead.drain()) == ["A", "WRITING"]


def test_read_ahead_error_of_an_item_set_aside_is_raised(store):
    store.hold("bad")

    def fail(item, watch):
        if store.read(item, watch) == "BAD":
            raise KeyError("a defect")

    ahead = ReadAhead(fail, threads=2, depth=1)
    put(ahead, store, "bad")
    wait_until(lambda: store.begun == ["bad"])
    store.now_s += 3
    assert put(ahead, store, "a") == []
    store.release("bad")
    with pytest.raises(KeyError, match="a defect"):
        list(ahead.drain())
    ahead.close()


@pytest.mark.timeout(60)
def test_read_ahead_store_that_hangs_altogether_is_an_error_and_no_end_of_threads(
    store, ahead_of, monkeypatch
):
    monkeypatch.setattr(module, "MAX_HUNG", 3)
    first, second = ahead_of(threads=2), ahead_of(threads=2)
    names = ["a1", "a2", "b1", "b2"]
    store.hold(*names, "b3")
    put(first, store, "a1", "a2")
    put(second, store, "b1", "b2", "b3")
    wait_until(lambda: sorted(store.begun) == names)
    store.now_s += 61
    # Three of them would be endured; that of another wave counts too.
    assert [timed_out(result)[0] for result in first.drain()] == ["a1", "a2"]
    with pytest.raises(StoreError) as caught:
        list(second.drain())
    assert str(caught.value) == (
        "The store that holds the images must answer. Received: no answer to 4 reads at once."
        " See to it, then go on with --resume."
    )


@pytest.mark.parametrize("seed", range(3))
def test_read_ahead_some_items_hang_each_is_given_once_and_the_rest_in_order(store, ahead_of, seed):
    names = [f"i{number:03d}" for number in range(200)]
    hung = random.Random(seed).sample(names, 6)
    store.hold(*hung)
    ahead, given = ahead_of(threads=3, depth=10), []
    done = threading.Event()

    def run_the_clock():
        while not done.wait(0.002):
            store.now_s += 0.5

    threading.Thread(target=run_the_clock, daemon=True).start()
    for name in names:
        given.extend(put(ahead, store, name))
    given.extend(ahead.drain())
    done.set()
    lost = [result.item for result in given if isinstance(result, TimedOut)]
    assert set(hung) <= set(lost)
    found = [result for result in given if not isinstance(result, TimedOut)]
    assert sorted([*lost, *map(str.lower, found)]) == names


# The watch


def test_watch_signs_of_life_keep_a_read_from_being_late_but_not_from_its_end():
    now = [0.0]
    watch = Watch(lambda: now[0])
    for now[0] in range(2, 62, 2):
        assert not watch.is_late(2.0) and not watch.give_up(60.0)
        watch.moved()
    now[0] = 60.5
    assert not watch.is_late(2.0) and watch.give_up(60.0)


def test_watch_without_a_sign_of_life_is_late():
    now = [0.0]
    watch = Watch(lambda: now[0])
    now[0] = 2.5
    assert watch.is_late(2.0)


def test_watch_each_stage_has_its_own_time():
    now = [0.0]
    watch = Watch(lambda: now[0])
    now[0] = 59.0
    watch.begin(Stage.DECODE)
    now[0] = 118.0
    assert not watch.give_up(60.0)
    now[0] = 119.5
    assert watch.give_up(60.0) and watch.stage is Stage.DECODE


@pytest.mark.parametrize(
    "goes_on",
    [Watch.moved, Watch.begin_attempt, lambda watch: watch.begin(None)],
    ids=["moves", "tries_again", "begins"],
)
def test_watch_given_up_tells_its_thread_at_the_next_sign_of_life(goes_on):
    now = [0.0]
    watch = Watch(lambda: now[0])
    watch.begin_attempt()
    now[0] = 61.0
    assert watch.give_up(60.0)
    with pytest.raises(GivenUp):
        goes_on(watch)
    assert (watch.stage, watch.attempts) == (Stage.READ, 1)
    assert watch.give_up(60.0)
