"""A sample is from all over the manifest, and the same in whatever order that is."""

import random

import pytest

from pipeline import sampling
from pipeline.manifest import check_manifest
from pipeline.sampling import choose_sample, sample_size, steady_pace
from pipeline.score_options import ScoreOptions


def sampled(folder, uris, size):
    """Returns the rows of a sample of a manifest of these uris, and how many are distinct."""
    folder.mkdir()
    (folder / "m.csv").write_text("\n".join(["uri", *uris]))
    work = check_manifest(str(folder / "m.csv"), into=str(folder / "m.parquet"))
    sample = choose_sample(work, size, folder / "choice")
    return [row.image_id for row in sample.rows], sample.distinct


def test_choose_sample_is_spread_over_the_manifest_whatever_its_order(tmp_path):
    uris = [f"{k:04d}.png" for k in range(2000)]
    found, distinct = sampled(tmp_path / "a", uris, 100)
    places = sorted(int(name[:4]) for name in found)

    assert distinct == len(set(found)) == 100
    quarters = [sum(place // 500 == quarter for place in places) for quarter in range(4)]
    assert min(quarters) >= 15
    random.Random(3).shuffle(uris)
    assert sampled(tmp_path / "b", uris, 100) == (found, 100)


def test_choose_sample_too_few_images_come_again_under_other_ids(tmp_path):
    found, distinct = sampled(tmp_path / "a", ["a.png", "b.png", "c.png"], 8)

    assert (len(found), len(set(found)), distinct) == (8, 8, 3)
    assert sorted(found[:3]) == ["a.png", "b.png", "c.png"]


def test_choose_sample_of_archives_takes_the_first_members_of_few(tmp_path):
    files = [f"{k:03d}.png" for k in range(300)]
    members = [f"{tar}.tar.gz#{k:03d}.png" for tar in "abc" for k in range(100)]
    found, distinct = sampled(tmp_path / "a", [*files, *members], 40)

    in_archives = [name for name in found if "#" in name]
    assert (distinct, len(in_archives)) == (40, 20)
    (archive,) = {name.partition("#")[0] for name in in_archives}
    assert in_archives == [f"{archive}#{k:03d}.png" for k in range(20)]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, (32, 128)),
        ({"batch_size": 512}, (32, 128)),
        ({"tta": "all"}, (32, 64)),
        ({"workers": 3}, (96, 384)),
    ],
)
def test_sample_size_on_a_cpu_is_some_batches_of_each_worker(monkeypatch, given, expected):
    monkeypatch.setattr(sampling, "prepare_gpus", lambda: False)
    assert sample_size(ScoreOptions("m", "o", "b", **given)) == expected


def test_sample_size_on_a_gpu_is_some_of_its_batches(monkeypatch):
    monkeypatch.setattr(sampling, "prepare_gpus", lambda: True)
    assert sample_size(ScoreOptions("m", "o", "b", batch_size=256)) == (256, 1024)


@pytest.mark.parametrize(
    ("times", "first", "expected"),
    [
        ([9.0, 9.0, 10.0, 12.0, 14.0, 16.0], 2, 7 / 4),
        ([14.0, 9.0, 16.0, 9.0, 12.0, 10.0], 2, 7 / 4),
        ([1.0, 3.0, 4.0, 6.0], 9, 3 / 2),
        ([5.0], 4, 0.0),
    ],
    ids=["in order", "in any order", "more than half", "one"],
)
def test_steady_pace_leaves_out_what_was_scored_first(times, first, expected):
    assert steady_pace(times, first) == pytest.approx(expected)
