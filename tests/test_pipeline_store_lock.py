"""The lock of a run on a store: the store decides between two that want it."""

import time

import pytest

from model.object_store import ObjectFolder
from pipeline import store_lock
from pipeline.lock import LockLostError
from pipeline.store_lock import StoreLock, find_store_holder
from schemas.errors import InputError
from tests.gcs import BUCKET

NAME = "_staging/r1/lock"


@pytest.fixture
def folder(store):
    return ObjectFolder(f"gs://{BUCKET}/out")


def lock(folder):
    return StoreLock(folder, NAME, "r1")


def wait_for(condition):
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_lock_held_refuses_a_second_and_is_gone_afterwards(folder):
    with lock(folder):
        assert find_store_holder(folder, NAME).age_s < 60
        with pytest.raises(InputError, match="run r1, held by process"), lock(folder):
            pass
        assert folder.find(NAME)
    assert folder.find(NAME) is None and find_store_holder(folder, NAME) is None
    with lock(folder):
        pass


def test_lock_of_two_at_once_the_one_that_writes_first_gets_it(folder, monkeypatch):
    find = ObjectFolder.find

    def find_and_be_overtaken(self, name):
        found = find(self, name)
        monkeypatch.undo()
        folder.write(name, b'{"host": "rival", "process": 9, "token": "r"}')
        return found

    monkeypatch.setattr(ObjectFolder, "find", find_and_be_overtaken)
    with pytest.raises(InputError, match="held by process 9 on rival"), lock(folder):
        pass
    assert b"rival" in folder.read(NAME)


def test_lock_of_a_dead_process_is_taken_over(folder, monkeypatch):
    folder.write(NAME, b'{"host": "gone", "process": 7, "token": "t"}')
    with pytest.raises(InputError, match="process 7 on gone"), lock(folder):
        pass
    monkeypatch.setattr(store_lock, "DEAD_AFTER_S", 0.0)
    assert find_store_holder(folder, NAME) is None
    with lock(folder):
        assert b"gone" not in folder.read(NAME)


def test_lock_heartbeat_is_seen_and_a_take_over_noticed(folder, monkeypatch):
    monkeypatch.setattr(store_lock, "HEARTBEAT_S", 0.05)
    with lock(folder) as held:
        first = folder.find(NAME).generation
        wait_for(lambda: folder.find(NAME).generation > first)
        held.check()
        folder.write(NAME, b'{"host": "other", "process": 8, "token": "o"}')
        wait_for(lambda: held._lost)
        with pytest.raises(LockLostError, match="Another process took this run over"):
            held.check()
    assert b"other" in folder.read(NAME)


def test_lock_taken_over_unseen_is_left_to_the_other(folder):
    with lock(folder):
        folder.write(NAME, b'{"host": "other", "process": 8, "token": "o"}')
    assert b"other" in folder.read(NAME)


def test_lock_that_cannot_be_removed_is_no_failure(folder, monkeypatch):
    def refuse(*_):
        raise PermissionError("no")

    with lock(folder):
        monkeypatch.setattr(ObjectFolder, "delete_generation", refuse)
    assert folder.find(NAME)


@pytest.mark.parametrize("fault", ["503", "reset", "lost"])
def test_lock_fault_while_it_is_taken_is_survived(store, folder, fault):
    store.fail("POST", NAME, fault)
    with lock(folder) as held:
        held.check()
    assert not store.faults_left()


def test_lock_store_that_does_not_answer_for_long_is_lost(folder, monkeypatch):
    monkeypatch.setattr(store_lock, "HEARTBEAT_S", 0.02)
    with lock(folder) as held:

        def silent(*args, **kwargs):
            raise OSError("no answer")

        monkeypatch.setattr(ObjectFolder, "write", silent)
        time.sleep(0.2)
        held.check()
        monkeypatch.setattr(store_lock, "DEAD_AFTER_S", 0.1)
        wait_for(lambda: held._lost)
