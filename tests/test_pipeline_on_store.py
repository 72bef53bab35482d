"""Runs whose manifest, images, bundle and OUTPUT are on a store, and what readers see of them."""

import dataclasses
import datetime
import json
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from jobs.cli import cli
from jobs.scores import local_scores
from model.bundle import bundle_files, demo_bundle_path, load_bundle_info
from model.object_store import ObjectFolder, StoredObject
from model.reading import FileVersion
from model.score_files import read_scores
from model.serving import ScorerSettings
from model.thresholds import thresholds_to_json
from pipeline import publishing, run, scoring, staging
from pipeline.archive import share_bundle
from pipeline.layout import RunPaths
from pipeline.listing import list_images
from pipeline.mirror import OutputError, published_run
from pipeline.reporting import report_run
from pipeline.rethreshold import RethresholdOptions, rethreshold_run
from pipeline.run import score_manifest
from pipeline.run_errors import RunFailedError
from pipeline.score_options import ScoreOptions
from pipeline.source import read_source, source_version
from pipeline.stopping import STOP
from pipeline.store_lock import StoreLock
from pipeline.verification import verify_run
from schemas.errors import InputError
from schemas.rejects import ImageError, Reason
from tests.fakes import (
    MODEL_ID,
    FakeScorer,
    make_thresholds,
    read_rows,
    varied_picture,
    write_picture,
)
from tests.gcs import BUCKET

IMAGES = 20
ROOT = f"gs://{BUCKET}"
OUTPUT = f"{ROOT}/results"


@pytest.fixture
def scorer(monkeypatch):
    fake = FakeScorer().install(monkeypatch)
    monkeypatch.setattr(run, "load_scorer", scoring.load_scorer)
    monkeypatch.setattr(staging, "ROWS_A_PART", 8)
    STOP.reset()
    yield fake
    STOP.reset()


@pytest.fixture
def store(store, tmp_path, scorer, monkeypatch):
    """A store that holds an archive and a bundle; no other folder of this machine is used."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    demo, files = Path(demo_bundle_path()), []
    files += [(demo / name, f"bundle/{name}") for name in bundle_files(demo)]
    for number in range(IMAGES):
        name = f"xrays/images/{number:02d}.png"
        files.append((write_picture(tmp_path / name, varied_picture(number)), name))
    uris = [f"images/{number:02d}.png" for number in range(IMAGES)]
    rows = [*uris, "images/missing.png", "manifest.csv"]
    manifest = tmp_path / "xrays/manifest.csv"
    manifest.write_text("\n".join(["uri", *rows]) + "\n")
    ObjectFolder(ROOT).upload([*files, (manifest, "xrays/manifest.csv")])
    yield store
    assert list(scratch.iterdir()) == []


def score(*, report=lambda event, **facts: None, **options):
    defaults = {
        "manifest": f"{ROOT}/xrays/manifest.csv",
        "output": OUTPUT,
        "bundle": f"{ROOT}/bundle",
        "run_id": "night",
        "reject_limit": 1.0,
        "batch_size": 8,
        "gradcam_limit": 4,
        "gradcam_top": 2,
    }
    return score_manifest(ScoreOptions(**(defaults | options)), report)


def names(prefix=""):
    return [found.name for found in ObjectFolder(OUTPUT).objects(prefix)]


def rows(record, table="scores", folder=OUTPUT):
    """Returns the rows of a run by id, as one who follows its record reads them."""
    files = [file["path"] for file in record["files"] if file["path"].startswith(table)]
    found = [
        row
        for file in files
        for row in pq.read_table(pa.BufferReader(ObjectFolder(folder).read(file))).to_pylist()
    ]
    return {row["image_id"]: row for row in found}


def comparable(found):
    """Returns rows without what differs between a run here and one there."""
    own = ("scored_at", "uri", "source_version")
    return {
        image_id: {name: value for name, value in row.items() if name not in own}
        for image_id, row in found.items()
    }


def test_run_all_on_a_store_with_faults_publishes_what_a_local_run_does(store, tmp_path):
    for method, part, fault in (
        ("GET", "prefix=results/runs/", "503"),
        ("GET", "xrays/images/03.png", "503"),
        ("GET", "xrays/images/04.png", "reset"),
        ("GET", "model.keras", "cut"),
        ("POST", "_staging/night/lock", "lost"),
        ("POST", "_staging/night/scores", "503"),
        ("POST", "_staging/night/scores", "lost"),
        ("GET", "_staging/night/scores", "reset"),
        ("POST", "results/gradcam", "reset"),
        ("POST", "results/scores/run_id=night", "503"),
        ("POST", "results/runs/night.json", "lost"),
        ("DELETE", "_staging/night", "503"),
    ):
        store.fail(method, part, fault)
    record = score()
    assert store.faults_left() == []
    local = score(manifest=str(tmp_path / "xrays/manifest.csv"), output=str(tmp_path / "local"))
    assert record["read_retries"] == 2
    assert record["counts"] == local["counts"]
    assert record["counts"]["scored"] == IMAGES and record["counts"]["drawn"] == 4
    for table in ("scores", "rejects"):
        files = sorted((tmp_path / "local" / table / "run_id=night").glob("*.parquet"))
        expected = {row["image_id"]: row for row in read_rows(files)}
        assert comparable(rows(record, table)) == comparable(expected)
    assert json.loads(ObjectFolder(OUTPUT).read("runs/night.json")) == record
    assert names() == sorted(["runs/night.json", *(file["path"] for file in record["files"])])


@pytest.fixture
def crash_before_the_record(monkeypatch):
    def crash(*_):
        raise RuntimeError("power is gone")

    with monkeypatch.context() as patch:
        patch.setattr(publishing, "_write_record", crash)
        with pytest.raises(RunFailedError, match="Nothing was published"):
            score()


def test_run_without_its_record_is_no_run_and_a_resume_publishes_it(
    store, scorer, crash_before_the_record
):
    # What a crash left where the run is published is in nobody's way.
    ObjectFolder(OUTPUT).write("scores/run_id=night/part-00007.parquet", b"left over")
    ObjectFolder(OUTPUT).write("gradcam/run_id=night/00/x.jpg", b"left over")
    assert names("scores/") and not names("runs/")
    scored = len(scorer.batches)
    record = score(resume=True)
    assert len(scorer.batches) == scored
    assert record["counts"]["kept"] == IMAGES + 1  # what was missing is looked for again
    assert sorted(rows(record)) == [f"images/{number:02d}.png" for number in range(IMAGES)]
    assert names() == sorted(["runs/night.json", *(file["path"] for file in record["files"])])


def test_run_held_by_another_is_refused(store):
    lock = StoreLock(ObjectFolder(OUTPUT), "_staging/night/lock", "night")
    with lock, pytest.raises(InputError, match="held by process"):
        score()


def test_runs_of_the_store_are_found_by_their_id_by_only_new_and_by_retry_rejects(store, tmp_path):
    published = score()
    with pytest.raises(InputError, match="night, which is there already"):
        score()
    assert score(resume=True) == published
    changed = write_picture(tmp_path / "changed.png", varied_picture(99))
    folder = ObjectFolder(ROOT)
    folder.upload([(changed, "xrays/images/05.png"), (changed, "xrays/images/missing.png")])
    record = score(run_id="next", only_new=True)
    assert sorted(rows(record)) == ["images/05.png", "images/missing.png"]
    assert record["counts"]["skipped"] == IMAGES
    retried = score(run_id="retry", retry_rejects=f"{OUTPUT}/runs/night.json")
    assert sorted(rows(retried)) == ["images/missing.png"]
    assert sorted(rows(retried, "rejects")) == ["manifest.csv"]
    with pytest.raises(InputError, match="--retry-rejects must be the record of a run in --output"):
        score(run_id="other", retry_rejects=f"{ROOT}/elsewhere/runs/night.json")


def test_run_on_a_store_has_new_thresholds_as_a_fresh_one_would(store, tmp_path):
    score()
    values = thresholds_to_json(make_thresholds(0.85))
    values["Hernia"] = thresholds_to_json(make_thresholds(0.1))["Hernia"]
    thresholds = tmp_path / "thresholds.json"
    thresholds.write_text(json.dumps({"tta": "none", "findings": values}))
    options = RethresholdOptions(f"{OUTPUT}/runs/night.json", str(thresholds), run_id="new")
    record = rethreshold_run(options, lambda event, **facts: None)
    fresh = score(run_id="new", output=f"{ROOT}/fresh", thresholds=str(thresholds))
    assert record["counts"]["maps_computed"] > 0 and record["counts"]["overlays"] > 0
    assert comparable(rows(record)) == comparable(rows(fresh, folder=f"{ROOT}/fresh"))
    files = [file["path"] for file in record["files"]]
    assert names("gradcam/run_id=new") == sorted(name for name in files if "gradcam" in name)
    assert names("_staging") == []
    with published_run(f"{OUTPUT}/runs/new.json") as path:
        assert verify_run(path).problems == []


def test_report_of_a_run_on_a_store_is_the_one_it_published(store, tmp_path):
    record = score()
    counts = record["counts"]
    path = report_run(f"{OUTPUT}/runs/night.json", str(tmp_path / "report.html"), None)
    published = ObjectFolder(OUTPUT).read("report/run_id=night.html").decode()
    before_times = [
        html.partition('<h2 id="counts">')[2].partition('<h2 id="times">')[0]
        for html in (published, path.read_text())
    ]
    assert before_times[0] == before_times[1]
    assert published.count("data:image/jpeg") == counts["listed"] + counts["drawn"] <= 24
    with pytest.raises(InputError, match="--output must name a file here for a run on gs://"):
        report_run(f"{OUTPUT}/runs/night.json", None, None)
    with local_scores(f"{OUTPUT}/runs/night.json") as place:
        assert sorted(read_scores(place).image_ids) == sorted(rows(record))
        assert not (Path(place).parents[1] / "rejects").exists()
    for other in (f"{OUTPUT}/runs/none.json", f"{ROOT}/xrays/manifest.csv"):
        with pytest.raises(InputError, match="must be those of a run"), local_scores(other):
            pass


def test_bundle_of_this_machine_is_shared_with_workers_elsewhere(store, tmp_path):
    paths = RunPaths(tmp_path, "night", ObjectFolder(OUTPUT))
    settings = ScorerSettings(demo_bundle_path(), MODEL_ID, "float32", "none")
    shared = share_bundle(paths, settings)
    assert shared == dataclasses.replace(settings, bundle=f"{OUTPUT}/_staging/night/bundle")
    assert load_bundle_info(shared.bundle) == load_bundle_info(demo_bundle_path())
    assert share_bundle(paths, shared) == shared
    assert share_bundle(RunPaths(tmp_path, "night"), settings) == settings


def test_runs_and_verify_read_a_store(store, crash_before_the_record, monkeypatch):
    score(run_id="whole")
    listed = CliRunner().invoke(cli, ["runs", OUTPUT])
    assert listed.exit_code == 0
    lines = {line.split()[0]: line for line in listed.output.splitlines()}
    assert "published" in lines["whole"] and f"{IMAGES} scored" in lines["whole"]
    assert "unfinished" in lines["night"] and f"{IMAGES} scored" in lines["night"]
    verified = CliRunner().invoke(cli, ["verify", f"{OUTPUT}/runs/whole.json"])
    assert verified.exit_code == 0 and "is what was published" in verified.output
    overlay = names("gradcam/run_id=whole")[0]
    ObjectFolder(OUTPUT).write(overlay, b"changed")
    ObjectFolder(OUTPUT).write("scores/run_id=whole/part-00009.parquet", b"")
    changed = CliRunner().invoke(cli, ["verify", f"{OUTPUT}/runs/whole.json"])
    assert changed.exit_code == 1
    assert f"{overlay}: has 7 bytes" in changed.output
    assert "part-00009.parquet: is not in the record" in changed.output


def test_image_on_a_store_is_read_by_two_requests_and_known_by_its_generation(store, tmp_path):
    uri = f"{ROOT}/xrays/images/00.png"
    store.requests.clear()
    found = read_source(uri)
    assert len(store.requests) == 2
    assert found.data == (tmp_path / "xrays/images/00.png").read_bytes()
    generation = ObjectFolder(ROOT).find("xrays/images/00.png").generation
    assert found.version == FileVersion(len(found.data), str(generation)) == source_version(uri)
    with pytest.raises(ImageError) as missing:
        read_source(f"{ROOT}/xrays/images/missing.png")
    assert missing.value.reason is Reason.NOT_FOUND


def test_image_replaced_while_it_is_read_is_not_taken_for_the_one_looked_up(store, monkeypatch):
    find, replaced = ObjectFolder.find, []

    def find_and_replace(self, name):
        found = find(self, name)
        if not replaced:
            replaced.append(ObjectFolder(self.uri).write(name, b"another"))
        return found

    monkeypatch.setattr(ObjectFolder, "find", find_and_replace)
    found = read_source(f"{ROOT}/xrays/images/00.png", sleep=lambda pause_s: None)
    assert (found.data, found.version.version) == (b"another", str(*replaced))


def test_manifest_of_a_prefix_asks_for_pages_and_not_for_each_object(store):
    store.page_size = 8
    store.requests.clear()
    listing = list_images([f"{ROOT}/xrays/"], output=f"{ROOT}/listed.csv")
    assert (listing.rows, listing.left_out) == (IMAGES, 1)
    asked = [path for method, path in store.requests if method == "GET"]
    assert len([path for path in asked if "prefix=xrays/" in path]) == 3
    assert not [path for path in asked if ".png" in path.partition("pageToken")[0]]
    lines = ObjectFolder(ROOT).read("listed.csv").decode().splitlines()
    assert lines[:2] == ["image_id,uri", "xrays/images/00.png,xrays/images/00.png"]


@pytest.mark.parametrize("name", ["runs/../../x.json", "runs//x.json", "_staging/../a/run.json"])
def test_object_called_so_that_it_would_leave_the_copy_is_refused(store, monkeypatch, name):
    # The emulator takes no such names; the real store does.
    def objects(self, prefix=""):
        if name.startswith(prefix):
            yield StoredObject(name, 2, 1, datetime.datetime.now(datetime.UTC))

    monkeypatch.setattr(ObjectFolder, "objects", objects)
    with pytest.raises(OutputError, match="Received: an object whose name is no path"):
        score()


def test_output_in_a_bucket_that_is_not_there_fails_before_any_image_is_read(store, scorer):
    with pytest.raises(OutputError, match="no such object or bucket"):
        score(output="gs://none/results")
    assert not scorer.batches
