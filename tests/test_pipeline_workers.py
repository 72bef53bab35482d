"""Workers: each task once, none of them left behind, and the same rows as one process.

Workers import this module for the work that it defines, so it loads nothing heavy.
"""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from pipeline import workers as workers_module
from pipeline.progress import PROGRESS
from pipeline.stopping import STOP
from pipeline.workers import WorkerError, Workers, cause, cores_a_worker, hand_out
from schemas.errors import InputError

_ROOT = Path(__file__).parents[1]
_ENDS_WITHIN_S = 30.0

needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")


@pytest.fixture(autouse=True)
def fresh():
    STOP.reset()
    PROGRESS.reset()
    yield
    STOP.reset()
    PROGRESS.reset()


# Work that a worker does


def report_itself(task):
    time.sleep(0.02)
    return task, os.getpid()


def gpu_of_worker(task):
    return task, os.environ["CUDA_VISIBLE_DEVICES"]


def count_rows(task):
    for _ in range(task):
        PROGRESS.add("scores")
    return task


def refuse(task):
    raise InputError("a bundle must be whole. Received: half of one.")


def fail(task):
    raise RuntimeError(f"a trace\n  of Beam\npower cut at {task}\n")


def exit_at_2(task):
    if task == 2:
        os._exit(7)
    return task


def kill_itself_at_2(task):
    """Task 2 kills its worker; the others end on a request to stop alone."""
    if task == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return wait_for_stop(task)


def wait_for_stop(task):
    PROGRESS.add("begun")
    while not STOP.requested:
        time.sleep(0.01)
    return task


def wait_for_ever(task):
    PROGRESS.add("begun")
    time.sleep(3600)


def see_threads(task):
    return os.environ["TF_NUM_INTRAOP_THREADS"], os.environ.get("PREPARED")


def prepare():
    os.environ["PREPARED"] = os.environ["TF_NUM_INTRAOP_THREADS"]


def _stop_once_begun(tasks):
    """Asks for a stop, from another thread, as soon as so many tasks are under way."""

    def request():
        _wait_until(lambda: PROGRESS.counts().get("begun") == tasks)
        STOP.request()

    threading.Thread(target=request, daemon=True).start()


def _wait_until(condition):
    """Returns what `condition` gives as soon as that is true."""
    ends = time.monotonic() + 300
    while not (found := condition()):
        assert time.monotonic() < ends, "it never came"
        time.sleep(0.02)
    return found


# Handing out


def test_hand_out_does_every_task_once_in_as_many_processes_as_asked_for():
    results = hand_out(range(20), report_itself, Workers(2))
    assert sorted(task for task, _ in results) == list(range(20))
    processes = {process for _, process in results}
    assert len(processes) == 2 and os.getpid() not in processes


def test_hand_out_starts_no_more_workers_than_tasks():
    results = hand_out([1], report_itself, Workers(3))
    assert [task for task, _ in results] == [1]
    assert hand_out([], report_itself, Workers(3)) == []


@pytest.mark.parametrize(
    ("gpus", "seen"), [(("4", "GPU-b"), ["4", "GPU-b", "4"]), ((), ["given"] * 3)]
)
def test_hand_out_each_worker_sees_one_gpu_in_turn(monkeypatch, gpus, seen):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "given")
    # As many tasks as workers: each is given one, in order.
    results = hand_out(range(3), gpu_of_worker, Workers(3, gpus=gpus))
    assert [gpu for _, gpu in sorted(results)] == seen


def test_hand_out_counts_what_workers_count():
    assert sorted(hand_out([3, 4, 5], count_rows, Workers(2))) == [3, 4, 5]
    assert PROGRESS.counts() == {"scores": 12}


def test_hand_out_gives_each_worker_its_share_of_cores_before_it_is_prepared(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 12)
    monkeypatch.delenv("PREPARED", raising=False)
    assert hand_out([0, 1], see_threads, Workers(3, prepare)) == [("4", "4")] * 2
    assert "PREPARED" not in os.environ


@pytest.mark.parametrize(("cores", "workers", "share"), [(16, 3, 5), (2, 8, 1), (None, 1, 1)])
def test_cores_a_worker_is_its_share_and_at_least_one(monkeypatch, cores, workers, share):
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    assert cores_a_worker(workers) == share


def test_cause_is_the_last_line():
    assert cause(RuntimeError("a trace\n of Beam\ndisk full\n")) == "RuntimeError: disk full"
    assert cause(KeyError()) == "KeyError"


def test_cause_is_the_workers_last_line_below_which_java_says_where_it_was():
    trace = (
        "Pipeline p failed in state FAILED: org.apache.spark.SparkException: Job aborted\n"
        "Traceback (most recent call last):\n"
        '  File "staging.py", line 7, in _flush\n'
        "OSError: [Errno 28] No space left on device [while running 'StageScores']\n"
        "\n"
        "\tat org.apache.beam.Control.accept(Control.java:94)\n"
        "\tat java.base/java.lang.Thread.run(Thread.java:840)\n"
        "\t... 3 more\n"
        "\n"
        "Driver stacktrace:"
    )
    assert cause(RuntimeError(trace)) == (
        "RuntimeError: OSError: [Errno 28] No space left on device [while running 'StageScores']"
    )


# Failing


def test_hand_out_failure_says_which_worker_and_of_what():
    with pytest.raises(WorkerError) as caught:
        hand_out([5], fail, Workers(2))
    text = str(caught.value)
    assert text.startswith("worker 1 of 1 (process ")
    assert text.endswith(") failed: RuntimeError: power cut at 5")
    assert "in fail" in caught.value.__notes__[0]


def test_hand_out_bad_input_is_raised_as_it_is():
    with pytest.raises(InputError, match="^a bundle must be whole. Received: half of one.$"):
        hand_out([1, 2], refuse, Workers(2))


def test_hand_out_worker_that_exits_is_named_with_its_code():
    with pytest.raises(WorkerError, match=r"worker \d of 2 \(process \d+\) ended with exit code 7"):
        hand_out(range(10), exit_at_2, Workers(2))


def test_hand_out_worker_that_is_killed_stops_the_others_in_good_order():
    began = time.monotonic()
    with pytest.raises(WorkerError) as caught:
        hand_out([2, 1, 3, 4], kill_itself_at_2, Workers(2))
    assert time.monotonic() - began < _ENDS_WITHIN_S
    text = str(caught.value)
    assert text.startswith("worker 1 of 2 (process ")
    assert text.endswith(") was ended by SIGKILL, as the system does where memory is short")


def test_hand_out_worker_that_does_not_stop_is_ended(monkeypatch):
    monkeypatch.setattr(workers_module, "_PATIENCE_S", 1.0)
    _stop_once_begun(2)
    began = time.monotonic()
    assert hand_out([1, 2], wait_for_ever, Workers(2)) == []
    assert time.monotonic() - began < _ENDS_WITHIN_S


# Stopping, and the parent's death


def test_hand_out_asked_to_stop_ends_tasks_and_begins_none():
    # That the request comes at all also shows that progress is told within a task.
    _stop_once_begun(2)
    assert sorted(hand_out(range(10), wait_for_stop, Workers(2))) == [0, 1]
    assert PROGRESS.counts() == {"begun": 2}


def test_hand_out_asked_to_stop_before_ends_at_once():
    STOP.request()
    assert hand_out(range(10), wait_for_ever, Workers(2)) == []
    assert PROGRESS.counts() == {}


def _session(leader):
    """Returns the command lines of the processes of a session that have not ended."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            state, _, _, session = (path / "stat").read_text().rpartition(")")[2].split()[:4]
            command = (path / "cmdline").read_text()
        except OSError:
            continue  # it ended just now
        if int(session) == leader and state != "Z":
            found.append(command)
    return found


def be_parent(work):
    """Hands work out, stops on signals, and says what it is at."""
    from jobs.signals import stop_on_signals

    def tell_once_begun():
        _wait_until(lambda: PROGRESS.counts() == {"begun": 2})
        print("busy", flush=True)

    threading.Thread(target=tell_once_begun, daemon=True).start()
    with stop_on_signals(lambda event, **facts: print(event, flush=True)):
        print(sorted(hand_out(range(9), work, Workers(2))))


def _parent(work, until_busy):
    """Starts a process that hands work out; returns it once its workers are there, or at it."""
    code = f"""
        from tests import test_pipeline_workers as this
        if __name__ == "__main__":
            this.be_parent(this.{work})
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        cwd=_ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    if until_busy:
        assert process.stdout.readline() == "busy\n"
    _wait_until(lambda: sum("spawn_main" in command for command in _session(process.pid)) == 2)
    return process


@needs_proc
@pytest.mark.parametrize("until_busy", [True, False], ids=["busy", "starting"])
@pytest.mark.parametrize(
    ("number", "send"),
    [(signal.SIGTERM, os.kill), (signal.SIGINT, os.killpg), (signal.SIGTERM, os.killpg)],
    ids=["terminated", "interrupted", "all_terminated"],
)
def test_hand_out_signal_to_the_parent_or_to_all_stops_in_good_order(number, send, until_busy):
    process = _parent("wait_for_stop", until_busy)
    send(process.pid, number)
    output, errors = process.communicate(timeout=_ENDS_WITHIN_S)
    assert (process.returncode, errors) == (0, "")
    assert "stopping\n" in output
    if until_busy:
        assert output == "stopping\n[0, 1]\n"
    _wait_until(lambda: not _session(process.pid))


@needs_proc
@pytest.mark.parametrize("until_busy", [True, False], ids=["busy", "starting"])
def test_hand_out_parent_killed_leaves_no_process_behind(until_busy):
    process = _parent("wait_for_ever", until_busy)
    process.kill()
    process.communicate()
    began = time.monotonic()
    _wait_until(lambda: not _session(process.pid))
    assert time.monotonic() - began < 5


# Scoring

_IMAGES = 24


class Night:
    """Pictures that a scorer without a network knows how to score, and runs over them."""

    def __init__(self, folder):
        from tests.fakes import varied_picture, write_picture

        self.manifest, self.output = folder / "manifest.csv", folder / "out"
        rows = ["image_id,uri", "missing,missing.png"]
        for number in range(_IMAGES):
            write_picture(folder / f"{number}.png", varied_picture(number))
            rows.append(f"i{number},{number}.png")
        self.manifest.write_text("\n".join(rows))

    def score(self, **options):
        from model.bundle import demo_bundle_path
        from pipeline.run import score_manifest
        from pipeline.score_options import ScoreOptions

        options = {"run_id": "night", "gradcam_top": 0, "batch_size": 2, **options}
        return score_manifest(
            ScoreOptions(
                manifest=str(self.manifest),
                output=str(self.output),
                bundle=demo_bundle_path(),
                reject_limit=0.5,
                **options,
            ),
            lambda event, **facts: None,
            score_slowly_without_a_network,
        )

    def staged(self):
        return list((self.output / "_staging" / "night" / "scores").glob("[!.]*.parquet"))

    def published(self, run_id):
        """Returns the rows of a run by id, without what differs between runs."""
        from tests.fakes import read_rows

        rows = {}
        for table in ("scores", "rejects"):
            files = (self.output / table / f"run_id={run_id}").glob("*.parquet")
            for row in read_rows(sorted(files)):
                row.pop("scored_at", None)
                assert rows.setdefault(row["image_id"], row) is row, "an image is there twice"
        return rows

    def check_resumed(self):
        """Fails unless a resume publishes what one process publishes that nothing disturbs."""
        STOP.reset()
        record = self.score(resume=True)
        assert 0 < record["counts"]["kept"] < _IMAGES
        self.score(run_id="alone")
        rows = self.published("night")
        assert len(rows) == _IMAGES + 1
        assert rows == self.published("alone")


def score_slowly_without_a_network():
    """Prepares a worker: its runs have a middle."""
    from jobs.logs import load_tensorflow

    load_tensorflow()
    from pipeline import scoring
    from tests.fakes import FakeScorer

    class Scorer(FakeScorer):
        def score(self, images):
            time.sleep(0.3)
            return super().score(images)

    scorer = Scorer()
    scoring.load_scorer = lambda settings: scorer


def score_until_killed(folder):
    """Scores with two workers: the main function of a process."""
    Night(Path(folder)).score(workers=2)


@pytest.fixture
def night(tmp_path, monkeypatch):
    from pipeline import run, scoring
    from tests.fakes import FakeScorer

    FakeScorer().install(monkeypatch)
    monkeypatch.setattr(run, "load_scorer", scoring.load_scorer)
    return Night(tmp_path)


def test_score_manifest_killed_worker_ends_the_run_which_is_resumed(night):
    from pipeline.run_errors import RunFailedError

    killed = []

    def kill_one():
        _wait_until(night.staged)
        multiprocessing.active_children()[0].kill()
        killed.append(time.monotonic())

    threading.Thread(target=kill_one, daemon=True).start()
    with pytest.raises(RunFailedError) as caught:
        night.score(workers=2)
    assert time.monotonic() - killed[0] < _ENDS_WITHIN_S
    text = str(caught.value)
    assert text.startswith("Run night failed: WorkerError: worker ")
    assert text.endswith(
        " was ended by SIGKILL, as the system does where memory is short. Nothing was published;"
        " what was scored is kept. Go on with --resume --run-id night."
    )
    assert sorted(path.name for path in night.output.iterdir()) == ["_staging"]
    assert multiprocessing.active_children() == []
    night.check_resumed()


def test_score_manifest_stopped_workers_stage_what_they_scored_and_the_run_is_resumed(night):
    from pipeline.run_errors import RunStoppedError

    def stop():
        _wait_until(night.staged)
        STOP.request()

    threading.Thread(target=stop, daemon=True).start()
    with pytest.raises(RunStoppedError):
        night.score(workers=2)
    assert sorted(path.name for path in night.output.iterdir()) == ["_staging"]
    assert multiprocessing.active_children() == []
    night.check_resumed()


@needs_proc
def test_score_manifest_parent_killed_leaves_no_process_behind_and_is_resumed(night, tmp_path):
    code = f"""
        from tests import test_pipeline_workers as this
        if __name__ == "__main__":
            this.score_until_killed({str(tmp_path)!r})
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], cwd=_ROOT, start_new_session=True
    )
    _wait_until(night.staged)
    process.kill()
    process.wait()
    began = time.monotonic()
    _wait_until(lambda: not _session(process.pid))
    assert time.monotonic() - began < 5
    night.check_resumed()


def test_score_manifest_workers_with_another_runner_are_refused(night):
    with pytest.raises(InputError) as caught:
        night.score(workers=2, beam_args=("--runner=SparkRunner",))
    assert str(caught.value) == (
        "--workers must be 1 with --runner=SparkRunner, where Beam spreads the work. Received:"
        " --workers 2. Leave one of them out."
    )
    assert not night.output.exists()


def test_score_two_workers_publish_the_rows_of_one(phantoms, tmp_path):
    import numpy as np
    import pandas as pd
    from click.testing import CliRunner

    from jobs.cli import cli

    tables = []
    for workers in ("1", "2"):
        options = ["--output", str(tmp_path / workers), "--batch-size", "2", "--gradcam-top", "0"]
        result = CliRunner().invoke(
            cli,
            ["score", "--manifest", str(phantoms / "manifest.csv"), "--run-id", "night", "--debug"]
            + ["--workers", workers, *options],
        )
        assert result.exit_code == 0, result.output
        assert PROGRESS.counts() == {"scores": 12}
        table = pd.read_parquet(tmp_path / workers / "scores")
        tables.append(table.sort_values("image_id", ignore_index=True))
        record = json.loads((tmp_path / workers / "runs" / "night.json").read_text())
        assert record["options"]["workers"] == int(workers)
    one, two = tables
    for name in one:
        if name.startswith("score_") or name == "abnormality":
            np.testing.assert_allclose(one[name], two[name], rtol=0, atol=1e-5)
        elif name in ("image_id", "uri", "content_sha256", "findings", "labels"):
            assert one[name].map(str).tolist() == two[name].map(str).tolist()
