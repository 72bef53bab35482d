"""Drawing: which findings get an overlay, and what is said of those that do not."""

import errno
import functools
import hashlib
import os
import threading
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from model import reading
from model.overlays import draw_overlay, encode_jpeg, overlay_name
from model.preprocessing import decode_grey
from pipeline import drawing, read_ahead
from pipeline import source as reading_source
from pipeline.database import connect
from pipeline.drawing import DRAWN_SCHEMA, DrawingSettings, draw_overlays, plan_drawings
from pipeline.images import READS_RETRIED
from pipeline.layout import RunPaths, staged_parts
from pipeline.ledger import freeze_ledger
from pipeline.manifest import CheckedManifest
from pipeline.planning import WorkPlan
from pipeline.read_ahead import ReadAhead
from pipeline.runner import Runner, counter
from pipeline.stopping import STOP
from schemas.findings import FINDINGS
from tests.fakes import (
    BLANK_CAMS,
    LOCAL,
    make_thresholds,
    picture,
    read_rows,
    scores_of,
    stage,
    staged_rows,
    tree,
    write_picture,
)

NOTE = "Fake network. Not for diagnosis."


@pytest.fixture
def paths(tmp_path):
    return RunPaths(tmp_path / "out", "r1")


@pytest.fixture
def source(tmp_path):
    """Returns a function that writes a picture and gives its row of the scores table."""

    def make(name, levels, mark=0):
        pixels = picture(levels, mark)
        path = write_picture(tmp_path / "images" / f"{name}.png", pixels)
        return scores_of(name, pixels, path, source_version=str(os.stat(path).st_mtime_ns))

    return make


def draw(paths, *, top=3, limit=1000, uris=None, runner=LOCAL):
    """Plans and draws what is staged; returns the outcome as (id, finding, overlay, reason).

    The manifest has the uris given, else those of the staged rows.
    """
    settings = DrawingSettings(top, limit, NOTE)
    plan = paths.commit / "drawings.parquet"
    uris = uris or {row["image_id"]: row["uri"] for row in staged_rows(paths, "scores")}
    paths.staging.mkdir(parents=True, exist_ok=True)
    columns = [pa.array(list(values), pa.string()) for values in (uris, uris.values())]
    pq.write_table(pa.table(columns, ["image_id", "uri"]), paths.manifest)
    manifest = CheckedManifest(str(paths.manifest), len(uris), 1, ())
    with connect(paths.commit) as connection:
        ledger = freeze_ledger(connection, paths, WorkPlan(manifest))
        groups = plan_drawings(connection, ledger, settings, plan, paths.manifest)
    draw_overlays(plan, groups, paths, make_thresholds(), settings, 2, runner)
    rows = read_rows(staged_parts(paths.built("drawn")))
    return sorted(tuple(row.values())[:4] for row in rows)


def overlay_of(image_id, finding):
    return f"gradcam/run_id=r1/{overlay_name(image_id, finding)}"


def drawn(image_id, finding):
    return (image_id, finding, overlay_of(image_id, finding), None)


def drawn_ids(outcome):
    return sorted({image_id for image_id, _, overlay, _ in outcome if overlay})


# Which


def test_draw_overlays_highest_scores_of_an_image_first_up_to_top(paths, source):
    levels = {"Mass": 200, "Edema": 220, "Hernia": 130, "Fibrosis": 210, "Nodule": 100}
    stage(paths, "scores", "1", [source("a", levels)])
    expected = [drawn("a", "Edema"), drawn("a", "Fibrosis")]
    assert draw(paths, top=2) == expected
    names = sorted(overlay_name("a", finding) for finding in ("Edema", "Fibrosis"))
    assert tree(paths.built("gradcam")) == names


def test_draw_overlays_top_beyond_the_flagged_draws_these_alone(paths, source):
    stage(paths, "scores", "1", [source("a", {"Mass": 200, "Edema": 127, "No Finding": 255})])
    assert draw(paths, top=14) == [drawn("a", "Mass")]


def test_draw_overlays_limit_takes_the_highest_ranks_and_ties_by_id(paths, source):
    levels = {"low": 150, "tie_b": 200, "tie_c": 200, "high": 250, "tie_a": 200, "none": 10}
    rows = [source(name, {"Mass": level}) for name, level in levels.items()]
    stage(paths, "scores", "1", rows[:3])
    stage(paths, "scores", "2", rows[3:])
    assert drawn_ids(draw(paths, limit=3)) == ["high", "tie_a", "tie_b"]


def test_draw_overlays_rank_is_of_abnormality_and_not_of_one_score(paths, source):
    many = source("many", dict.fromkeys(("Mass", "Edema", "Hernia"), 200))
    stage(paths, "scores", "1", [source("one", {"Mass": 230}), many])
    assert drawn_ids(draw(paths, limit=1)) == ["many"]


def test_draw_overlays_images_not_to_be_believed_come_behind_all_others(paths, source):
    rows = [source(name, {"Mass": level}) for name, level in (("dim", 150), ("blank", 250))]
    rows[1]["quality"] = ["blank"]
    stage(paths, "scores", "1", rows)
    assert drawn_ids(draw(paths, limit=1)) == ["dim"]


@pytest.mark.parametrize(("top", "limit"), [(0, 10), (3, 0)], ids=["top_0", "limit_0"])
def test_draw_overlays_none_asked_for_draws_none(paths, source, top, limit):
    stage(paths, "scores", "1", [source("a", {"Mass": 200})])
    assert draw(paths, top=top, limit=limit) == []
    assert paths.built("gradcam").is_dir() and tree(paths.built("gradcam")) == []


def test_draw_overlays_nothing_flagged_or_staged_draws_none(paths, source):
    assert draw(paths) == []
    stage(paths, "scores", "1", [source("a", {"Mass": 100})])
    assert draw(paths) == []
    assert tree(paths.built("gradcam")) == []


def test_draw_overlays_image_staged_twice_is_drawn_once(paths, source):
    row = source("a", {"Mass": 200})
    stage(paths, "scores", "1", [row, source("b", {"Mass": 210})])
    stage(paths, "scores", "2", [row, row])
    assert draw(paths) == [drawn("a", "Mass"), drawn("b", "Mass")]


def test_draw_overlays_more_than_a_row_group_of_images_are_all_drawn(paths, source, monkeypatch):
    monkeypatch.setattr(drawing, "_ROWS_A_GROUP", 3)
    rows = [source(f"i{number}", {"Mass": 140 + number}) for number in range(8)]
    stage(paths, "scores", "1", rows)
    assert draw(paths) == [drawn(f"i{number}", "Mass") for number in range(8)]
    plan = pq.ParquetFile(paths.commit / "drawings.parquet")
    assert plan.num_row_groups == 3
    ranked = plan.read(columns=["image_id"])["image_id"].to_pylist()
    assert ranked == [f"i{number}" for number in range(7, -1, -1)]


def test_draw_overlays_uris_are_the_manifests_also_where_the_scores_have_none(paths, source):
    rows = [source(f"i{number}", {"Mass": 140 + number}) for number in range(5)]
    uris = {row["image_id"]: row["uri"] for row in rows} | {"another": "/nowhere.png"}
    stage(paths, "scores", "1", [{**row, "uri": None} for row in rows])
    assert draw(paths, uris=uris) == [drawn(f"i{number}", "Mass") for number in range(5)]
    plan = pq.read_table(paths.commit / "drawings.parquet", columns=["image_id", "uri"])
    expected = [(f"i{k}", uris[f"i{k}"]) for k in range(4, -1, -1)]
    assert [tuple(row.values()) for row in plan.to_pylist()] == expected


# What


def test_draw_overlays_file_is_the_overlay_of_that_image_finding_and_map(paths, source):
    levels = {"Mass": 200, "Edema": 220}
    row = source("a", levels)
    stage(paths, "scores", "1", [row])
    assert draw(paths) == [drawn("a", "Edema"), drawn("a", "Mass")]
    with open(row["uri"], "rb") as file:
        grey = decode_grey(file.read()).image
    for cam in row["cams"]:
        expected = draw_overlay(
            grey,
            np.asarray(cam["grid"]).reshape(7, 7),
            finding=cam["finding"],
            score=float(np.float32(levels[cam["finding"]] / 255)),
            threshold=0.5,
            note=NOTE,
        )
        path = paths.built("gradcam") / overlay_name("a", cam["finding"])
        assert path.read_bytes() == encode_jpeg(expected)


def test_draw_overlays_outcome_names_the_file_where_it_will_be_published(paths, source):
    image_id = "DOE/../../etc #1 é%" + "x" * 200
    stage(paths, "scores", "1", [{**source("a", {"Mass": 200}), "image_id": image_id}])
    [(found, finding, overlay, reason)] = draw(paths)
    assert (found, finding, reason) == (image_id, "Mass", None)
    paths.published("gradcam").parent.mkdir()
    os.rename(paths.built("gradcam"), paths.published("gradcam"))
    assert tree(paths.output / "gradcam") == [overlay.removeprefix("gradcam/")]
    Image.open(paths.output / overlay).load()


def test_draw_overlays_outcome_has_digest_and_size_of_what_was_drawn(paths, source):
    stage(paths, "scores", "1", [source("a", {"Mass": 200})])
    draw(paths)
    [row] = read_rows(staged_parts(paths.built("drawn")))
    jpeg = (paths.built("gradcam") / overlay_name("a", "Mass")).read_bytes()
    assert (row["sha256"], row["size_bytes"]) == (hashlib.sha256(jpeg).hexdigest(), len(jpeg))


def test_draw_overlays_outcome_has_its_schema(paths, source):
    stage(paths, "scores", "1", [source("a", {"Mass": 200})])
    draw(paths)
    [part] = staged_parts(paths.built("drawn"))
    assert pq.read_schema(part).equals(DRAWN_SCHEMA)


# What not, and why


def test_draw_overlays_map_of_zeros_is_not_drawn(paths, source):
    stage(paths, "scores", "1", [source("a", {"Mass": 200, "Edema": 220}, BLANK_CAMS)])
    expected = [("a", finding, None, "no_attention") for finding in ("Edema", "Mass")]
    assert draw(paths) == expected
    assert tree(paths.built("gradcam")) == []


def test_draw_overlays_one_map_of_zeros_costs_that_finding_alone(paths, source):
    row = source("a", {"Mass": 200, "Edema": 220})
    row["cams"][0]["grid"] = [0.0] * 49
    stage(paths, "scores", "1", [row])
    assert draw(paths) == [("a", "Edema", None, "no_attention"), drawn("a", "Mass")]


def rewrite(path):
    """Another picture in the place of the one that was scored."""
    write_picture(path, picture(7))
    os.utime(path, ns=(0, 1))


def damage(path):
    """The same version, which is the time of modification, of something that is no image."""
    status = os.stat(path)
    path.write_bytes(b"no image")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.parametrize(
    ("happens", "reason"),
    [(rewrite, "source_changed"), (os.remove, "not_found"), (damage, "not_an_image")],
    ids=["changed", "missing", "damaged"],
)
def test_draw_overlays_source_not_as_scored_is_not_drawn_and_others_are(
    paths, source, tmp_path, happens, reason
):
    names = ["a", "b", "c"]
    rows = [source(name, {"Mass": 200, "Edema": 220}) for name in names]
    stage(paths, "scores", "1", rows)
    happens(tmp_path / "images" / "b.png")
    lost = [("b", finding, None, reason) for finding in ("Edema", "Mass")]
    kept = [drawn(name, finding) for name in "ac" for finding in ("Edema", "Mass")]
    assert draw(paths) == sorted([*kept, *lost])
    assert len(tree(paths.built("gradcam"))) == 4


def test_draw_overlays_every_finding_but_no_finding_can_be_drawn(paths, source):
    stage(paths, "scores", "1", [source("a", 255)])
    outcome = draw(paths, top=14)
    assert outcome == sorted(drawn("a", name) for name in FINDINGS if name != "No Finding")


# Faults


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("step", "reason"),
    [("read_source", "read_timeout"), ("decode_grey", "decode_timeout")],
    ids=["read", "decode"],
)
def test_draw_overlays_hung_image_is_not_drawn_and_others_are(
    paths, source, monkeypatch, step, reason
):
    rows = [source(name, {"Mass": 200 + k, "Edema": 210}) for k, name in enumerate("abcdef")]
    stage(paths, "scores", "1", rows)
    with open(rows[1]["uri"], "rb") as file:
        content = file.read()
    release, work = threading.Event(), getattr(drawing, step)

    def hang(argument, *others):
        if argument in (rows[1]["uri"], content):
            assert release.wait(30)
        return work(argument, *others)

    impatient = functools.partial(ReadAhead, timeout_s=0.8, late_s=0.1)
    monkeypatch.setattr(drawing, "ReadAhead", impatient)
    monkeypatch.setattr(read_ahead, "_TICK_S", 0.02)
    monkeypatch.setattr(drawing, step, hang)
    outcome = draw(paths, top=2)
    names = tree(paths.built("gradcam"))
    release.set()
    lost = [("b", finding, None, reason) for finding in ("Edema", "Mass")]
    kept = [drawn(name, finding) for name in "acdef" for finding in ("Edema", "Mass")]
    assert outcome == sorted([*kept, *lost])
    # What was given up ends without a file that no row names.
    end = time.monotonic() + 30
    while read_ahead._hung and time.monotonic() < end:
        time.sleep(0.01)
    assert not read_ahead._hung
    assert tree(paths.built("gradcam")) == names and len(names) == 10


def test_draw_overlays_counts_reads_that_were_retried(paths, source, monkeypatch):
    failures, results = ["once", "twice"], []

    def flaky_open(path, mode):
        if failures:
            failures.pop()
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return open(path, mode)

    class Noting(Runner):
        def run(self, build):
            results.append(super().run(build))

    stage(paths, "scores", "1", [source("a", {"Mass": 200})])
    monkeypatch.setattr(reading, "open", flaky_open, raising=False)
    monkeypatch.setattr(reading_source, "PAUSES_S", (0.0, 0.0, 0.0))
    runner = Noting(LOCAL.name, LOCAL.is_local, LOCAL.options)
    assert draw(paths, runner=runner) == [drawn("a", "Mass")]
    assert [counter(result, READS_RETRIED) for result in results] == [2]


def test_draw_overlays_stop_requested_draws_no_more(paths, source):
    stage(paths, "scores", "1", [source("a", {"Mass": 200})])
    STOP.request()
    try:
        assert draw(paths) == []
    finally:
        STOP.reset()
    assert tree(paths.built("gradcam")) == []
