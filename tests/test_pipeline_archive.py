"""The scoring pipeline: fused behind one small shuffle, in waves, every row once."""

import dataclasses
import hashlib
import os
import threading
from collections import Counter
from pathlib import Path

import apache_beam as beam
import pytest
from apache_beam.runners.portability.fn_api_runner import FnApiRunner

from model.quality import image_quality
from pipeline import archive, scoring
from pipeline.archive import ReadManifest, ScoreArchive, score_archive
from pipeline.manifest import ManifestRow, read_row_group
from pipeline.planning import divide_work
from pipeline.runner import Runner
from tests.bad_files import write_bad_files
from tests.fakes import (
    LOCAL,
    NAN_SCORE,
    POISON,
    FakeScorer,
    collect,
    make_job,
    manifest_row,
    picture,
    read_rows,
    scores_of,
    staged_rows,
    varied_picture,
    write_picture,
)

_SINK = "beam:runner:sink:v1"
"""Where a stage hands its elements to the runner, to be stored for the next."""


@pytest.fixture
def scorer(monkeypatch):
    return FakeScorer().install(monkeypatch)


@pytest.fixture
def rows(tmp_path):
    """Manifest rows of eight good pictures."""
    return [
        manifest_row(f"i{k}", write_picture(tmp_path / f"{k}.png", varied_picture(k)))
        for k in range(8)
    ]


@dataclasses.dataclass(frozen=True)
class CountingRunner(Runner):
    """Runs here whatever it says of itself; counts the pipelines."""

    runs: list = dataclasses.field(default_factory=list)

    def run(self, build):
        self.runs.append(build)
        return LOCAL.run(build)


def here():
    return CountingRunner(LOCAL.name, True, LOCAL.options)


def elsewhere():
    return CountingRunner("SparkRunner", False, LOCAL.options)


# The graph


def stages_of(transform):
    """Returns the stages that a pipeline is fused into: the names in each, in order."""
    runner = FnApiRunner()
    pipeline = beam.Pipeline(runner=runner, options=LOCAL.options)
    pipeline | transform
    graph = pipeline.to_runner_api(default_environment=runner._default_environment)
    _, stages = runner.create_stages(graph)
    return [
        [(step.unique_name, step.spec.urn == _SINK) for step in stage.transforms]
        for stage in stages
    ]


def check_fused(transform):
    """Fails unless rows are shuffled once and all that follows is one stage without an end."""
    stages = stages_of(transform)
    assert len(stages) == 2, "the rows must be shuffled, and nothing else"
    before, after = stages
    assert all("/ReadManifest/" in name for name, _ in before)
    assert [name for name, is_sink in before if is_sink] == [
        "ScoreArchive/ReadManifest/ShuffleRows/ReshufflePerKey/GroupByKey/Write"
    ]
    steps = [name.split("/") for name, _ in after]
    for step in (
        "LoadImages",
        "RunInference",
        "ApplyThresholds",
        "StageScores",
        "Stage_rejected_at_load",
        "Stage_rejected_at_inference",
    ):
        assert any(step in names for names in steps), f"{step} is in another stage"
    assert not any(is_sink for _, is_sink in after), "elements leave the stage that scores"


class ReshuffledScoring(beam.PTransform):
    """Scoring behind a second shuffle, of pixels."""

    def __init__(self, *arguments):
        super().__init__()
        self._scoring = scoring.ScoreImages(*arguments)

    def expand(self, images):
        return images | beam.Reshuffle() | self._scoring


class HintedScoring(ReshuffledScoring):
    """Scoring alone on a machine with much memory, so in another environment."""

    def expand(self, images):
        return images | self._scoring.with_resource_hints(min_ram="64GB")


def test_score_archive_all_after_the_shuffle_of_rows_is_one_stage(tmp_path, rows):
    job = make_job(tmp_path / "out", rows, rows_a_group=3)
    check_fused(ScoreArchive(job, range(3)))


@pytest.mark.parametrize("variant", [ReshuffledScoring, HintedScoring])
def test_score_archive_shuffle_of_pixels_would_be_noticed(tmp_path, rows, monkeypatch, variant):
    job = make_job(tmp_path / "out", rows)
    monkeypatch.setattr(archive, "ScoreImages", variant)
    with pytest.raises(AssertionError, match="and nothing else"):
        check_fused(ScoreArchive(job, [0]))


def test_score_archive_with_resource_hints_stays_one_stage(tmp_path, rows):
    job = make_job(tmp_path / "out", rows)
    *_, last = stages_of(ScoreArchive(job, [0], {"min_ram": "64GB"}))
    names = " ".join(name for name, _ in last)
    assert all(step in names for step in ("LoadImages", "RunInference", "StageScores"))
    assert not any(is_sink for _, is_sink in last)


def test_read_manifest_what_is_shuffled_is_the_rows_of_the_groups_asked_for(tmp_path, rows):
    job = make_job(tmp_path / "out", rows, rows_a_group=3)
    for groups, expected in (([0], rows[:3]), ([2, 1], rows[3:]), (range(3), rows)):
        found = collect(
            lambda pipeline, groups=groups: {
                "rows": pipeline | ReadManifest(job.manifest.path, groups)
            }
        )["rows"]
        assert {type(row) for row in found} == {ManifestRow}
        assert sorted(found, key=lambda row: row.image_id) == expected


# Row groups for several workers


@pytest.mark.parametrize(
    ("batch_size", "sizes"),
    # Of 70 rows for 2 workers: 16 groups or more for each, in whole batches.
    [(1, [3] * 13 + [1] + [3] * 10), (4, [4] * 10 + [4] * 7 + [2]), (32, [32, 8, 30])],
)
def test_divide_work_groups_are_small_and_hold_every_row_in_order(tmp_path, batch_size, sizes):
    rows = [manifest_row(f"i{k:02d}", f"/{k}.png", (f"p{k}",)) for k in range(70)]
    job = make_job(tmp_path, rows, carried=("patient_id",), rows_a_group=40)
    work = divide_work(job.paths, job.plan, 2, batch_size).work
    groups = [read_row_group(work.path, group) for group in range(work.row_groups)]
    assert [len(group) for group in groups] == sizes
    assert sum(groups, []) == rows
    assert (work.rows, work.carried) == (70, ("patient_id",))


def test_divide_work_leaves_a_shard_whole(tmp_path):
    uris = [*(f"/{k}.png" for k in range(100)), *(f"/a.tar.gz#{k}.png" for k in range(100))]
    rows = [manifest_row(str(k), uri) for k, uri in enumerate(uris)]
    job = make_job(tmp_path, rows, rows_a_group=100)
    work = divide_work(job.paths, job.plan, 2, 4).work
    groups = [read_row_group(work.path, group) for group in range(work.row_groups)]
    assert [row for group in groups for row in group] == rows
    assert [len(group) for group in groups] == [8] * 12 + [4, 100]


def test_divide_work_groups_of_a_wave_are_left_as_they_are(tmp_path, rows):
    job = make_job(tmp_path, rows)
    assert divide_work(job.paths, job.plan, 2, 4096) is job.plan


# What is staged


def ids(rows):
    return sorted(row["image_id"] for row in rows)


def test_score_archive_local_run_takes_a_wave_for_each_row_group(tmp_path, rows, scorer):
    job = make_job(tmp_path / "out", rows, rows_a_group=3, batch_size=2)
    runner = here()
    score_archive(job, runner)
    assert len(runner.runs) == 3
    assert scorer.batches == [2, 1, 2, 1, 2]
    parts = sorted(job.paths.parts("scores").iterdir())
    waves = [["i0", "i1", "i2"], ["i3", "i4", "i5"], ["i6", "i7"]]
    assert [ids(read_rows([part])) for part in parts] == waves
    assert staged_rows(job.paths, "rejects") == []


def test_score_archive_run_elsewhere_is_one_pipeline(tmp_path, rows, scorer):
    job = make_job(tmp_path / "out", rows, rows_a_group=3)
    runner = elsewhere()
    score_archive(job, runner)
    assert len(runner.runs) == 1
    assert ids(staged_rows(job.paths, "scores")) == [f"i{k}" for k in range(8)]


@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_score_archive_rows_are_those_of_each_image_alone(tmp_path, rows, scorer, batch_size):
    rows = [dataclasses.replace(row, carried=(f"p{k}", None)) for k, row in enumerate(rows)]
    carried = ("patient_id", "site")
    job = make_job(tmp_path / "out", rows, carried=carried, batch_size=batch_size)
    score_archive(job, here())
    found = {row["image_id"]: row for row in staged_rows(job.paths, "scores")}
    assert sorted(found) == [f"i{k}" for k in range(8)]
    for index, row in enumerate(rows):
        pixels, content = varied_picture(index), Path(row.uri).read_bytes()
        expected = scores_of(row.image_id, pixels, row.uri) | {
            "size_bytes": len(content),
            "source_version": str(os.stat(row.uri).st_mtime_ns),
            "content_sha256": hashlib.sha256(content).hexdigest(),
            "mean_intensity": pytest.approx(float(pixels.mean()), rel=1e-6),
            "std_intensity": pytest.approx(float(pixels.std()), rel=1e-6),
            "quality": list(image_quality(pixels, 224, 224)),
            "scored_at": found[row.image_id]["scored_at"],
            "patient_id": f"p{index}",
            "site": None,
        }
        for cam in expected["cams"]:
            cam["grid"] = cam["grid"].tolist()
        assert found[row.image_id] == expected


def test_score_archive_rejects_of_both_kinds_are_staged_each_once(tmp_path, rows, scorer):
    folder = tmp_path / "bad"
    folder.mkdir()
    expected = {name: reason.value for name, reason in write_bad_files(folder).items()}
    bad = [manifest_row(name, folder / name) for name in expected]
    for name, mark, reason in (
        ("poison", POISON, "inference_error"),
        ("nan", NAN_SCORE, "non_finite_score"),
    ):
        path = write_picture(tmp_path / f"{name}.png", picture(9, mark))
        bad.append(manifest_row(name, path))
        expected[name] = reason
    mixed = [row for pair in zip(bad, rows, strict=False) for row in pair] + bad[len(rows) :]
    job = make_job(tmp_path / "out", mixed, rows_a_group=10)
    score_archive(job, here())
    assert ids(staged_rows(job.paths, "scores")) == [f"i{k}" for k in range(8)]
    rejected = staged_rows(job.paths, "rejects")
    assert Counter(row["image_id"] for row in rejected) == Counter(list(expected))
    assert {row["image_id"]: row["reason"] for row in rejected} == expected


def test_score_archive_again_stages_every_row_again_and_overwrites_none(tmp_path, rows, scorer):
    job = make_job(tmp_path / "out", rows)
    for _ in range(2):
        score_archive(job, here())
    assert ids(staged_rows(job.paths, "scores")) == sorted([f"i{k}" for k in range(8)] * 2)


def test_score_archive_error_in_a_wave_keeps_what_waves_before_it_staged(
    tmp_path, rows, scorer, monkeypatch
):
    job = make_job(tmp_path / "out", rows, rows_a_group=3)
    score = scorer.score

    def fail_late(images):
        if sum(scorer.batches) >= 6:
            raise RuntimeError("power cut")
        return score(images)

    monkeypatch.setattr(scorer, "score", fail_late)
    with pytest.raises(Exception, match="power cut"):
        score_archive(job, here())
    assert ids(staged_rows(job.paths, "scores")) == [f"i{k}" for k in range(6)]


def test_score_archive_waves_leave_no_thread_behind(tmp_path, rows, scorer):
    before = set(threading.enumerate())
    score_archive(make_job(tmp_path / "out", rows[:4], rows_a_group=1), here())
    for thread in set(threading.enumerate()) - before:
        if thread.name == "read-ahead":
            thread.join(30)
            assert not thread.is_alive()
