"""A budget is never overdrawn, nobody starves, and what hangs does not keep its share."""

import threading
import time

import pytest

from pipeline import budget
from pipeline.budget import Budget
from pipeline.watch import GivenUp, Watch
from schemas.rejects import Stage

PATIENCE_S = 20.0


class Taker:
    """A thread that takes an amount and says when it has it."""

    def __init__(self, shared: Budget, amount: int):
        self.watch, self.has_it = Watch(), threading.Event()
        self._shared, self._amount = shared, amount
        threading.Thread(target=self._take, daemon=True).start()

    def _take(self) -> None:
        self._shared.take(self.watch, self._amount)
        self.has_it.set()

    def waits(self) -> bool:
        return not self.has_it.wait(0.05)

    def has(self) -> bool:
        return self.has_it.wait(PATIENCE_S)


def test_budget_what_fits_is_taken_at_once():
    shared = Budget(10)
    assert all(Taker(shared, amount).has() for amount in (4, 6))


def test_budget_what_does_not_fit_waits_until_enough_is_given_back():
    shared, first, second = Budget(10), Watch(), Watch()
    shared.take(first, 4)
    shared.take(second, 4)
    third = Taker(shared, 6)
    assert third.waits()
    shared.give_back(first)
    assert third.has()


def test_budget_takers_come_in_order_also_where_a_later_one_would_fit():
    shared, first = Budget(10), Watch()
    shared.take(first, 8)
    large = Taker(shared, 9)
    assert large.waits()
    small = Taker(shared, 1)
    assert small.waits()
    shared.give_back(first)
    assert large.has() and small.has()


def test_budget_more_than_all_of_it_comes_alone():
    shared, first = Budget(10), Watch()
    shared.take(first, 1)
    huge = Taker(shared, 1000)
    assert huge.waits()
    shared.give_back(first)
    assert huge.has()
    after = Taker(shared, 1)
    assert after.waits()
    shared.give_back(huge.watch)
    assert after.has()


def test_budget_share_of_what_was_given_up_is_free_again(monkeypatch):
    monkeypatch.setattr(budget, "_TICK_S", 0.05)
    shared, hung = Budget(10), Watch()
    shared.take(hung, 10)
    hung.begin(Stage.READ)
    waiting = Taker(shared, 10)
    assert waiting.waits()
    assert hung.give_up(0.0)
    assert waiting.has()
    shared.give_back(hung)  # its thread came to life
    assert Taker(shared, 1).waits()


def test_budget_image_that_waits_is_neither_late_nor_given_up():
    shared = Budget(1)
    shared.take(Watch(), 1)
    waiting = Taker(shared, 1)
    assert waiting.waits()
    assert not waiting.watch.is_late(0.0)
    assert not waiting.watch.give_up(0.0)


def test_budget_image_that_was_given_up_takes_nothing():
    shared, watch = Budget(1), Watch()
    watch.begin(Stage.READ)
    assert watch.give_up(0.0)
    with pytest.raises(GivenUp):
        shared.take(watch, 1)
    shared.take(Watch(), 1)


def test_budget_many_threads_never_hold_more_than_there_is():
    shared, lock = Budget(7), threading.Lock()
    held, most = 0, 0

    def take_and_give_back(amount):
        nonlocal held, most
        for _ in range(50):
            watch = Watch()
            shared.take(watch, amount)
            with lock:
                held += amount
                most = max(most, held)
            time.sleep(0.0001)
            with lock:
                held -= amount
            shared.give_back(watch)

    threads = [
        threading.Thread(target=take_and_give_back, args=(1 + number % 4,), daemon=True)
        for number in range(12)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert not any(thread.is_alive() for thread in threads)
    assert (held, most <= 7) == (0, True)
