"""The lock of a run: one process at a time, and a dead one does not keep it."""

import json
import os
import socket
import subprocess
import sys
import textwrap
import time

import pytest

from pipeline import lock
from pipeline.lock import LockLostError, RunLock, find_holder
from schemas.errors import InputError

HOLD = """
    import sys, time
    from pathlib import Path
    from pipeline.lock import RunLock
    with RunLock(Path(sys.argv[1])):
        print("held", flush=True)
        time.sleep(60)
"""


@pytest.fixture
def path(tmp_path):
    return tmp_path / "r1" / "lock"


@pytest.fixture
def other_process(path):
    """A process that holds the lock."""
    path.parent.mkdir()
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(HOLD), str(path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def write_holder(path, host, age_s):
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"host": host, "process": 7, "token": "t"}))
    then = time.time() - age_s
    os.utime(path, (then, then))


def test_run_lock_says_who_holds_it_and_is_gone_afterwards(path):
    path.parent.mkdir()
    with RunLock(path):
        content = json.loads(path.read_text())
        assert (content["host"], content["process"]) == (socket.gethostname(), os.getpid())
        assert find_holder(path).process == os.getpid()
    assert not path.exists()
    assert find_holder(path) is None


def test_run_lock_living_process_is_refused_at_once(path, other_process):
    start = time.monotonic()
    with pytest.raises(InputError) as caught, RunLock(path):
        pass
    assert time.monotonic() - start < 5
    assert str(caught.value).startswith(
        "a run must be worked on by one process at a time. Received: run r1, held by process"
        f" {other_process.pid} on {socket.gethostname()}, last seen "
    )
    assert str(caught.value).endswith(
        " s ago. Wait for it to end, or stop it, then run again with --resume."
    )
    assert find_holder(path).process == other_process.pid


def test_run_lock_of_a_killed_process_is_taken_over_at_once(path, other_process):
    other_process.kill()
    other_process.wait()
    assert path.exists() and find_holder(path) is None
    with RunLock(path):
        assert find_holder(path).process == os.getpid()


def test_run_lock_process_elsewhere_with_a_fresh_heartbeat_is_refused(path):
    write_holder(path, "another-host", 100)
    assert find_holder(path).host == "another-host"
    with pytest.raises(InputError, match="held by process 7 on another-host, last seen 10"):
        RunLock(path).__enter__()
    assert json.loads(path.read_text())["host"] == "another-host"


def test_run_lock_process_elsewhere_without_a_heartbeat_is_taken_over(path):
    write_holder(path, "another-host", 130)
    assert find_holder(path) is None
    with RunLock(path) as held:
        held.check()


@pytest.mark.parametrize("content", ["", "{", '{"host"'])
def test_run_lock_half_written_by_a_dead_process_is_taken_over(path, content):
    path.parent.mkdir()
    path.write_text(content)
    with RunLock(path):
        assert find_holder(path).process == os.getpid()


def test_run_lock_heartbeat_renews_the_time(path, monkeypatch):
    monkeypatch.setattr(lock, "HEARTBEAT_S", 0.02)
    path.parent.mkdir()
    with RunLock(path) as held:
        os.utime(path, (0, 0))
        deadline = time.monotonic() + 10
        while os.stat(path).st_mtime < 1 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert find_holder(path).age_s < 10
        held.check()


def test_run_lock_taken_over_by_another_machine_must_not_publish(path, monkeypatch):
    monkeypatch.setattr(lock, "HEARTBEAT_S", 0.02)
    path.parent.mkdir()
    with RunLock(path) as held:
        write_holder(path, "another-host", 0)
        deadline = time.monotonic() + 10
        while not held._lost and time.monotonic() < deadline:
            time.sleep(0.01)
        with pytest.raises(LockLostError, match="Another process took this run over"):
            held.check()
    assert json.loads(path.read_text())["host"] == "another-host"


def test_run_lock_folder_removed_meanwhile_is_made_again(path):
    with RunLock(path):
        assert path.exists()
