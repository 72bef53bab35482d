"""A run under other thresholds: the same as a fresh one, and in the place of its parent."""

import contextlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from model.bundle import demo_bundle_path, load_bundle_info
from model.thresholds import thresholds_to_json
from pipeline import commit, comparison, publishing, run, scoring
from pipeline.comparison import earlier_run
from pipeline.layout import Output
from pipeline.locking import succession_lock
from pipeline.rethreshold import RethresholdOptions, rethreshold_run
from pipeline.run import commit_scored, score_manifest
from pipeline.run_errors import RunFailedError, RunStoppedError
from pipeline.run_listing import list_runs
from pipeline.score_options import ScoreOptions
from pipeline.stopping import STOP
from pipeline.verification import verify_run
from schemas.errors import InputError
from tests.fakes import FakeScorer, make_thresholds, picture, read_rows, tree, write_picture
from tests.test_pipeline_run import Killed, fail_at

LEVELS = {
    "top": {"Mass": 250, "Edema": 240, "Hernia": 100},
    "second": {"Mass": 200, "Nodule": 140},
    "low": {"Nodule": 129},
    "off": {"Hernia": 110},
    "healthy": {"No Finding": 255},
}
"""What the network sees, in 255ths. At 0.5 the first three are flagged."""

CHANGED = {"Hernia": 0.38, "Nodule": 0.53}
"""Flags `top` and `off` for Hernia, and `low` for nothing any more."""


def quiet(event, **facts):
    pass


def write_thresholds(path, tta="none", **changed):
    values = {name: make_thresholds(changed.get(name, 0.5))[name] for name in make_thresholds()}
    path.write_text(json.dumps({"tta": tta, "findings": thresholds_to_json(values)}))
    return str(path)


def score(folder, run_id="parent", *, bundle=None, output="out", **options):
    defaults = {"gradcam_top": 2, "gradcam_limit": 3, "reject_limit": 1.0, "no_report": True}
    return score_manifest(
        ScoreOptions(
            manifest=str(folder / "manifest.csv"),
            output=str(folder / output),
            bundle=bundle or demo_bundle_path(),
            run_id=run_id,
            **(defaults | options),
        ),
        quiet,
    )


@contextlib.contextmanager
def faked():
    """Gives the fake scorer in every place of a real one."""
    with pytest.MonkeyPatch.context() as patch:
        fake = FakeScorer().install(patch)
        patch.setattr(run, "load_scorer", scoring.load_scorer)
        yield fake


@pytest.fixture(scope="module")
def night(tmp_path_factory):
    """A folder with images, a manifest, and a run of it at 0.5, `out/runs/parent.json`."""
    folder = tmp_path_factory.mktemp("night")
    lines = ["image_id,uri,patient_id"]
    for number, (name, levels) in enumerate(LEVELS.items()):
        write_picture(folder / f"{name}.png", picture(levels))
        lines.append(f"{name},{name}.png,{number}")
    lines.append("gone,gone.png,9")
    (folder / "manifest.csv").write_text("\n".join(lines) + "\n")
    write_thresholds(folder / "half.json")
    with faked():
        score(folder, thresholds=str(folder / "half.json"))
    return folder


class Night:
    """That folder's images, with an OUTPUT that the test has for itself."""

    def __init__(self, folder: Path, images: Path, scorer: FakeScorer):
        self.folder, self.images, self.scorer = folder, images, scorer
        self.output = folder / "out"
        self.new = write_thresholds(folder / "new.json", **CHANGED)

    def rethreshold(self, thresholds=None, *, of="parent", report=quiet, **options):
        options = {"run_id": "child", "no_report": True, **options}
        record = self.output / "runs" / f"{of}.json"
        return rethreshold_run(
            RethresholdOptions(str(record), thresholds or self.new, **options), report
        )

    def rows(self, run_id="child", table="scores"):
        files = sorted((self.output / table / f"run_id={run_id}").glob("*.parquet"))
        return {row["image_id"]: row for row in read_rows(files)}

    def run_ids(self):
        return sorted(path.stem for path in (self.output / "runs").glob("*.json"))

    def record(self, run_id):
        return json.loads((self.output / "runs" / f"{run_id}.json").read_text())

    def problems(self, run_id="child"):
        return verify_run(self.output / "runs" / f"{run_id}.json").problems


@pytest.fixture
def archive(night, tmp_path):
    shutil.copytree(night / "out", tmp_path / "out")
    STOP.reset()
    with faked() as scorer:
        yield Night(tmp_path, night, scorer)
    STOP.reset()


@contextlib.contextmanager
def without(path, instead=None):
    """Takes an image away meanwhile, or puts another in its place."""
    aside = path.rename(path.with_suffix(".aside"))
    if instead is not None:
        write_picture(path, instead)
    yield
    aside.replace(path)


def findings(rows):
    return {name: row["findings"] for name, row in rows.items()}


def grids(row):
    return {cam["finding"]: np.float32(cam["grid"]) for cam in row["cams"]}


def overlays(archive, run_id):
    """Returns the overlays of a run, by their place in it."""
    folder = archive.output / "gradcam" / f"run_id={run_id}"
    return {name: (folder / name).read_bytes() for name in tree(folder)}


# The same as a fresh run


@pytest.fixture(scope="module")
def as_fresh(tmp_path_factory, phantoms, demo_scorer):
    """Phantoms scored by the demonstration network: re-thresholded, and scored at once so."""
    folder = tmp_path_factory.mktemp("fresh")
    lines = (phantoms / "manifest.csv").read_text().splitlines()
    uri = lines[0].split(",").index("uri")
    cells = [line.split(",") for line in lines[1:]]
    lines[1:] = [",".join([*row[:uri], str(phantoms / row[uri]), *row[uri + 1 :]]) for row in cells]
    lost = ["lost.png" if name in ("image_id", "uri") else "" for name in lines[0].split(",")]
    (folder / "manifest.csv").write_text("\n".join([*lines, ",".join(lost)]) + "\n")
    bundle = load_bundle_info(demo_bundle_path()).thresholds["none"]
    low = {name: 0.3 * value.threshold for name, value in list(bundle.items())[::2]}
    high = {name: min(1.2 * value.threshold, 1) for name, value in list(bundle.items())[1::2]}
    thresholds = write_thresholds(folder / "new.json", **low, **high)
    with pytest.MonkeyPatch.context() as patch:
        for module in (run, scoring):
            patch.setattr(module, "load_scorer", lambda settings: demo_scorer)
        score(folder, gradcam_limit=5)
        score(folder, "fresh", output="fresh", gradcam_limit=5, thresholds=thresholds)
        record = folder / "out/runs/parent.json"
        options = RethresholdOptions(str(record), thresholds, run_id="child", no_report=True)
        rethreshold_run(options, quiet)
    return folder


def _of_child(overlay):
    return overlay and overlay.replace("run_id=fresh", "run_id=child")


def test_rethreshold_run_gives_the_rows_of_a_fresh_run(as_fresh):
    fresh = read_rows([as_fresh / "fresh/scores/run_id=fresh/part-00000.parquet"])
    child = read_rows([as_fresh / "out/scores/run_id=child/part-00000.parquet"])
    for row, expected in zip(child, fresh, strict=True):
        assert abs(row.pop("scored_at") - expected.pop("scored_at")).total_seconds() < 600
        cams, expected_cams = row.pop("cams"), expected.pop("cams")
        assert row == expected
        for cam, wanted in zip(cams, expected_cams, strict=True):
            assert cam["finding"] == wanted["finding"]
            assert np.abs(np.subtract(cam["grid"], wanted["grid"])).max() <= 1e-5
            assert cam["overlay"] == _of_child(wanted["overlay"])
    assert read_rows([as_fresh / "out/rejects/run_id=child/part-00000.parquet"]) == read_rows(
        [as_fresh / "fresh/rejects/run_id=fresh/part-00000.parquet"]
    )


def test_rethreshold_run_gives_the_worklist_and_overlays_of_a_fresh_run(as_fresh):
    worklists = [
        read_rows([as_fresh / f"{output}/worklist/run_id={name}.parquet"])
        for output, name in (("out", "child"), ("fresh", "fresh"))
    ]
    for row in worklists[1]:
        row["overlays"] = [_of_child(name) for name in row["overlays"]]
    assert worklists[0] == worklists[1]
    folders = [as_fresh / "out/gradcam/run_id=child", as_fresh / "fresh/gradcam/run_id=fresh"]
    assert tree(folders[0]) == tree(folders[1]) != []
    for name in tree(folders[0]):
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes()


def test_rethreshold_run_record_counts_as_a_fresh_run_and_what_it_took_over(as_fresh):
    child = json.loads((as_fresh / "out/runs/child.json").read_text())
    fresh = json.loads((as_fresh / "fresh/runs/fresh.json").read_text())
    parent = json.loads((as_fresh / "out/runs/parent.json").read_text())
    assert (child["parent_run"], child["supersedes"]) == ("parent", "parent")
    assert child["scoring_started_at"] == parent["started_at"]
    for name in ("thresholds", "thresholds_id", "scoring_digest", "settings_digest"):
        assert child[name] == fresh[name] != parent[name]
    for name in (
        "model_id",
        "flag_rate",
        "calibration",
        "rejected_by_reason",
        "worklist",
        "input_contract",
    ):
        assert child[name] == fresh[name]
    same = {name: child["counts"][name] for name in fresh["counts"] if name != "kept"}
    assert same == {name: value for name, value in fresh["counts"].items() if name != "kept"}
    counts = child["counts"]
    assert counts["flags_added"] == counts["maps_computed"] > 0 and counts["flags_removed"] > 0
    assert counts["maps_missing"] == 0
    assert verify_run(as_fresh / "out/runs/child.json").problems == []


# What is taken over, computed, drawn


def test_rethreshold_run_scores_only_images_with_a_newly_flagged_finding(archive):
    record = archive.rethreshold()
    assert sum(archive.scorer.batches) == 2
    assert findings(archive.rows()) == {
        "top": ["Mass", "Edema", "Hernia"],
        "second": ["Mass", "Nodule"],
        "low": [],
        "off": ["Hernia"],
        "healthy": [],
    }
    counts = record["counts"]
    assert (counts["manifest"], counts["scored"], counts["rejected"]) == (6, 5, 1)
    assert {name: counts[name] for name in counts if name.startswith(("maps", "over"))} == {
        "overlays": 5,
        "overlays_kept": 3,
        "overlays_drawn": 2,
        "overlays_outdated": 0,
        "maps_kept": 4,
        "maps_computed": 2,
        "maps_missing": 0,
        "maps_missing_by_reason": {},
    }
    assert (counts["newly_flagged"], counts["no_longer_flagged"]) == (1, 1)
    old, new = overlays(archive, "parent"), overlays(archive, "child")
    kept = {name for name in old if new.get(name) == old[name]}
    assert {name.split("/")[1] for name in kept} == {
        "top.Mass.jpg",
        "top.Edema.jpg",
        "second.Mass.jpg",
    }
    # Nodule is still drawn, and its caption names the threshold of now.
    assert {name.split("/")[1] for name in new.keys() - kept} == {
        "second.Nodule.jpg",
        "off.Hernia.jpg",
    }
    assert archive.problems() == archive.problems("parent") == []


def test_rethreshold_run_higher_needs_no_network_and_no_image(archive):
    higher = write_thresholds(archive.folder / "higher.json", Nodule=0.6)
    with contextlib.ExitStack() as gone:
        for name in LEVELS:
            gone.enter_context(without(archive.images / f"{name}.png"))
        record = archive.rethreshold(higher)
    assert archive.scorer.batches == []
    assert findings(archive.rows())["second"] == ["Mass"]
    assert record["counts"]["overlays_kept"] == record["counts"]["overlays"] == 3
    assert record["counts"]["not_drawn"] == {}


def test_rethreshold_run_overlay_that_cannot_be_drawn_again_is_kept_and_counted(archive):
    with without(archive.images / "second.png"):
        counts = archive.rethreshold()["counts"]
    assert (counts["overlays_outdated"], counts["overlays"], counts["not_drawn"]) == (1, 5, {})
    old, new = overlays(archive, "parent"), overlays(archive, "child")
    (name,) = (name for name in new if "second.Nodule" in name)
    assert new[name] == old[name]


@pytest.mark.parametrize("instead", [None, picture(7)], ids=["gone", "changed"])
def test_rethreshold_run_map_of_an_image_that_is_gone_or_changed_is_nan_and_counted(
    archive, instead
):
    with without(archive.images / "off.png", instead):
        record = archive.rethreshold()
    reason = "not_found" if instead is None else "source_changed"
    assert record["counts"]["maps_missing_by_reason"] == {reason: 1}
    assert record["counts"]["not_drawn"] == {"map_missing": 1}
    row = archive.rows()["off"]
    assert (row["findings"], row["flagged"]) == (["Hernia"], True)
    assert np.isnan(grids(row)["Hernia"]).all() and row["cams"][0]["overlay"] is None
    assert archive.problems() == []
    if instead is not None:
        return
    # The file is back: whoever re-thresholds the child computes it after all.
    lower = write_thresholds(archive.folder / "lower.json", **CHANGED | {"Mass": 0.45})
    record = archive.rethreshold(lower, of="child", run_id="grandchild")
    assert (record["counts"]["maps_computed"], record["counts"]["maps_missing"]) == (1, 0)
    assert not np.isnan(grids(archive.rows("grandchild")["off"])["Hernia"]).any()
    states = {found.run_id: found.state for found in list_runs(Output(archive.output))}
    assert states == {"grandchild": "published", "child": "superseded", "parent": "superseded"}


def test_rethreshold_run_of_a_run_that_redacts_uris_keeps_what_is_stored(archive):
    score(archive.images, "redacted", output=archive.output, redact_uris=True)
    assert archive.scorer.batches
    del archive.scorer.batches[:]
    old = archive.record("redacted")["thresholds"]
    low = write_thresholds(archive.folder / "low.json", **old | {"Hernia": 0.01})
    record = archive.rethreshold(low, of="redacted")
    assert archive.scorer.batches == []
    assert record["counts"]["maps_missing_by_reason"] == {"source_unknown": 2}
    assert record["options"]["thresholds"] is None


# In the place of its parent


def test_rethreshold_run_supersedes_its_parent_for_later_runs(archive, monkeypatch):
    archive.rethreshold(run_id=None, no_report=False)
    (child,) = (run_id for run_id in archive.run_ids() if run_id != "parent")
    old, new = str(archive.images / "half.json"), archive.new
    later = {"output": archive.output, "only_new": True}
    record = score(archive.images, "next", thresholds=new, **later)
    assert (record["counts"]["scored"], record["counts"]["skipped"]) == (0, 6)
    assert {row["held_by_run"] for row in archive.rows("next", "skipped").values()} == {child}
    # What was skipped is so still, and of that night.
    record = archive.rethreshold(old, of="next", run_id="next-old")
    assert (record["counts"]["manifest"], record["counts"]["skipped"]) == (6, 6)
    assert archive.problems("next-old") == []
    # The parent, whose thresholds these were, holds nothing any more.
    record = score(archive.images, "back", thresholds=old, **later)
    assert (record["counts"]["scored"], record["counts"]["skipped"]) == (5, 0)
    monkeypatch.setattr(comparison, "FEWEST_IMAGES", 1)
    output = Output(archive.output)
    assert earlier_run(output, archive.record("next")).record["run_id"] == child
    assert earlier_run(output, archive.record("back")) is None
    assert earlier_run(output, archive.record(child)) is None


def test_rethreshold_run_of_a_superseded_run_names_the_one_to_use(archive):
    archive.rethreshold()
    with pytest.raises(InputError) as caught:
        archive.rethreshold(write_thresholds(archive.folder / "x.json", Mass=0.4), run_id="other")
    assert str(caught.value) == (
        "RUN must not be superseded yet. Received: parent, which child supersedes. Re-threshold"
        " that one, or remove it first: see OPERATIONS.md."
    )
    assert archive.run_ids() == ["child", "parent"]


# Refused before anything is read


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"of": "none"}, "a run must be named by its record, OUTPUT/runs/ID.json"),
        ({"of": "../parent"}, "RUN must be a record, OUTPUT/runs/ID.json"),
        ({"thresholds": "half"}, "other ones than those of RUN. Received: the same"),
        ({"thresholds": "all"}, "thresholds for --tta all, this run uses --tta none"),
        ({"bundle": "other"}, "of model_id"),
        ({"run_id": "parent"}, "--run-id must be new in --output. Received: parent"),
    ],
    ids=lambda value: "" if isinstance(value, str) else "-".join(value.values()),
)
def test_rethreshold_run_of_bad_input_is_refused(archive, wrong, message):
    before = tree(archive.output)
    for name, tta in (("half", "none"), ("all", "all")):
        write_thresholds(archive.folder / f"{name}.json", tta)
    if "thresholds" in wrong:
        wrong = {"thresholds": str(archive.folder / f"{wrong['thresholds']}.json")}
    if "bundle" in wrong:
        other = archive.folder / "other"
        shutil.copytree(demo_bundle_path(), other)
        facts = json.loads((other / "bundle.json").read_text())
        (other / "bundle.json").write_text(json.dumps({**facts, "borderline_band": 0.25}))
        wrong = {"bundle": str(other)}
        message = f"of model_id {load_bundle_info(str(other)).model_id}."
    with pytest.raises(InputError) as caught:
        archive.rethreshold(**wrong)
    assert message in str(caught.value)
    assert tree(archive.output) == before


def test_rethreshold_run_whose_rows_are_not_those_of_its_record_is_refused(archive):
    path = archive.output / "runs/parent.json"
    record = archive.record("parent")
    record["counts"]["scored"] = 6
    path.write_text(json.dumps(record))
    with pytest.raises(InputError, match="Received: parent, with 5 scored and not 6"):
        archive.rethreshold()
    (archive.output / "scores/run_id=parent/part-00000.parquet").unlink()
    with pytest.raises(InputError, match=r"part-00000\.parquet missing or changed"):
        archive.rethreshold()
    assert list((archive.output / "_staging").iterdir()) == []


def test_rethreshold_run_at_once_with_another_one_is_refused(archive):
    paths = Output(archive.output).run("parent")
    with succession_lock(paths):
        with pytest.raises(InputError, match="by one process at a time. Received: parent"):
            archive.rethreshold()
        assert [found.run_id for found in list_runs(Output(archive.output))] == ["parent"]


# Ended early


def test_rethreshold_run_killed_goes_on_and_computes_no_map_twice(archive, monkeypatch):
    with monkeypatch.context() as patch:
        fail_at(patch, commit, "plan_drawings", 1, Killed())
        with pytest.raises(Killed):
            archive.rethreshold()
    assert sum(archive.scorer.batches) == 2
    (unfinished, _) = list_runs(Output(archive.output))
    assert (unfinished.run_id, unfinished.state) == ("child", "unfinished")
    assert unfinished.advice == (
        "Re-threshold parent by the same command again, or remove _staging/child."
    )
    with pytest.raises(InputError, match="begun to re-threshold parent and not by `prescreen"):
        score(archive.images, "child", output=archive.output, thresholds=archive.new, resume=True)
    with pytest.raises(InputError, match="child, which re-thresholds parent"):
        commit_scored(str(archive.output), "child", quiet)
    record = archive.rethreshold(run_id=None)
    assert (record["run_id"], record["attempts"]) == ("child", 2)
    assert sum(archive.scorer.batches) == 2
    assert record["counts"]["maps_computed"] == 2
    assert archive.problems() == []


def test_rethreshold_run_killed_while_it_publishes_is_published_by_the_next_start(
    archive, monkeypatch
):
    with monkeypatch.context() as patch:
        fail_at(patch, publishing, "publish", 1, Killed())
        with pytest.raises(Killed):
            archive.rethreshold()
    assert archive.run_ids() == ["parent"]
    assert archive.rethreshold(run_id=None)["run_id"] == "child"
    assert archive.run_ids() == ["child", "parent"]
    assert archive.problems() == []


def test_rethreshold_run_that_is_stopped_or_fails_says_how_to_go_on(archive, monkeypatch):
    def stop(event, **facts):
        if event == "scoring":
            STOP.request()

    with pytest.raises(RunStoppedError) as stopped:
        archive.rethreshold(report=stop)
    STOP.reset()
    with monkeypatch.context() as patch:
        fail_at(patch, commit, "plan_drawings", 1, OSError(28, "No space left on device"))
        with pytest.raises(RunFailedError) as failed:
            archive.rethreshold()
    again = "Nothing was published. Give the same command again: it goes on with run child."
    assert str(stopped.value) == f"Run child was stopped. {again}"
    assert str(failed.value) == (
        f"Run child failed: OSError: [Errno 28] No space left on device. {again}"
    )
    assert archive.run_ids() == ["parent"]
