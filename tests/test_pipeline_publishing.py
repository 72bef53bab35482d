"""Publishing: stopped at any step, it is finished later, and never half done for a reader."""

import json
import os
import shutil

import pytest

from pipeline import mirror, publishing
from pipeline.layout import Output, RunPaths
from pipeline.lock import RunLock
from pipeline.publishing import PublishError, finish_commits, prepare, publish
from tests.fakes import tree

BUILT = (
    "gradcam/xx/c",
    "rejects/b",
    "report/run_id=r1.html",
    "scores/a",
    "worklist/run_id=r1.csv",
    "worklist/run_id=r1.parquet",
)
PUBLISHED = [
    "gradcam/run_id=r1/xx/c",
    "rejects/run_id=r1/b",
    "report/run_id=r1.html",
    "scores/run_id=r1/a",
    "worklist/run_id=r1.csv",
    "worklist/run_id=r1.parquet",
]
RECORD = {
    "run_id": "r1",
    "counts": {},
    "files": [
        {"path": path, "size_bytes": len(name)} for path, name in zip(PUBLISHED, BUILT, strict=True)
    ],
}


def built_run(tmp_path):
    """Returns the paths of a run whose files are built and not yet published."""
    paths = RunPaths(tmp_path / "out", "r1")
    for name in BUILT:
        path = paths.commit / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return paths


def is_published(paths):
    return (
        tree(paths.output) == sorted([*PUBLISHED, "runs/r1.json"])
        and json.loads(paths.record.read_text()) == RECORD
    )


class Stopped(BaseException):
    """Stands for the end of the process."""


def stop_at(monkeypatch, step):
    """Lets the process end before the step-th thing that publishing does."""
    done = []

    def stop_or(do, *arguments, **options):
        if len(done) == step:
            raise Stopped
        done.append(arguments)
        return do(*arguments, **options)

    for module, name in (
        (publishing.os, "rename"),
        (publishing, "write_atomically"),
        (mirror.shutil, "rmtree"),
    ):
        original = getattr(module, name)
        monkeypatch.setattr(
            module, name, lambda *a, _do=original, **options: stop_or(_do, *a, **options)
        )


def test_publish_writes_the_record_when_all_else_is_in_place(tmp_path, monkeypatch):
    paths = built_run(tmp_path)
    write, seen = publishing.write_atomically, []

    def write_and_look(path, data):
        seen.append((path, tree(paths.output)))
        write(path, data)

    monkeypatch.setattr(publishing, "write_atomically", write_and_look)
    publish(paths, RECORD)
    assert seen == [(paths.record, PUBLISHED)]
    assert is_published(paths)


def test_publish_scores_come_after_the_overlays_that_they_name(tmp_path, monkeypatch):
    paths, rename, moved = built_run(tmp_path), os.rename, []

    def rename_and_note(source, target):
        moved.append(target.relative_to(paths.output).parts[0])
        rename(source, target)

    monkeypatch.setattr(publishing.os, "rename", rename_and_note)
    publish(paths, RECORD)
    assert moved == ["gradcam", "rejects", "scores", "worklist", "worklist", "report"]


def test_publish_leftovers_that_cannot_be_removed_are_no_failure(tmp_path, monkeypatch):
    paths = built_run(tmp_path)

    def busy(folder):
        raise OSError("busy")

    monkeypatch.setattr(mirror.shutil, "rmtree", busy)
    publish(paths, RECORD)
    assert json.loads(paths.record.read_text()) == RECORD


@pytest.mark.parametrize("step", range(8))
def test_finish_commits_crash_at_any_step_is_finished_by_the_next_start(
    tmp_path, monkeypatch, step
):
    paths = built_run(tmp_path)
    with monkeypatch.context() as crash:
        stop_at(crash, step)
        with pytest.raises(Stopped):
            prepare(paths, RECORD)
            publish(paths, RECORD)
    finished = finish_commits(Output(paths.output))
    if step == 0:  # nothing was prepared: the run is resumed, not finished
        assert finished == [] and sorted(tree(paths.commit)) == sorted(BUILT)
        return
    assert finished == [RECORD]
    assert is_published(paths)
    assert finish_commits(Output(paths.output)) == []


def test_finish_commits_reader_of_scores_sees_all_or_nothing_at_each_step(tmp_path, monkeypatch):
    paths = built_run(tmp_path)
    (paths.commit / "scores" / "z").write_text("another file")
    seen, rename = set(), os.rename

    def rename_and_look(source, target):
        rename(source, target)
        seen.add(
            tuple(sorted(path.name for path in paths.output.glob("scores/**/*") if path.is_file()))
        )

    monkeypatch.setattr(publishing.os, "rename", rename_and_look)
    publish(paths, RECORD)
    assert seen == {(), ("a", "z")}


def test_finish_commits_crashed_twice_is_finished_by_the_third(tmp_path, monkeypatch):
    paths = built_run(tmp_path)
    prepare(paths, RECORD)
    for step in (2, 1):
        with monkeypatch.context() as crash:
            stop_at(crash, step)
            with pytest.raises(Stopped):
                finish_commits(Output(paths.output))
    assert finish_commits(Output(paths.output)) == [RECORD]
    assert is_published(paths)


def test_finish_commits_run_of_a_living_process_is_left_to_it(tmp_path):
    paths = built_run(tmp_path)
    prepare(paths, RECORD)
    with RunLock(paths.lock):
        before = tree(paths.output)
        assert finish_commits(Output(paths.output)) == []
        assert tree(paths.output) == before


def test_finish_commits_staging_left_beside_a_record_is_removed(tmp_path):
    paths = built_run(tmp_path)
    prepare(paths, RECORD)
    shutil.copytree(paths.staging, tmp_path / "kept")
    publish(paths, RECORD)
    shutil.copytree(tmp_path / "kept", paths.staging)
    assert finish_commits(Output(paths.output)) == [RECORD]
    assert is_published(paths)


def test_finish_commits_file_is_missing_writes_no_record(tmp_path):
    paths = built_run(tmp_path)
    prepare(paths, RECORD)
    (paths.commit / "rejects" / "b").unlink()
    with pytest.raises(PublishError) as caught:
        finish_commits(Output(paths.output))
    assert str(caught.value) == (
        "Every file of a prepared run must be there to publish it. Received: run r1 without"
        " rejects/run_id=r1/b. Restore it, or remove _staging/r1 and what run_id=r1 has under"
        " OUTPUT, and score again."
    )
    assert not paths.record.exists()


def test_finish_commits_unfinished_run_stays(tmp_path):
    paths = built_run(tmp_path)
    before = tree(paths.output)
    assert finish_commits(Output(paths.output)) == []
    assert tree(paths.output) == before


def test_prepare_all_is_durable_before_it_says_so(tmp_path, monkeypatch):
    paths, order = built_run(tmp_path), []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: order.append("fsync") or fsync(file))
    write = publishing.write_atomically
    monkeypatch.setattr(
        publishing, "write_atomically", lambda *args: order.append("prepared") or write(*args)
    )
    prepare(paths, RECORD)
    folders = 7  # commit, scores, rejects, gradcam, gradcam/xx, worklist, report
    assert order[: order.index("prepared")] == ["fsync"] * (len(BUILT) + folders)
