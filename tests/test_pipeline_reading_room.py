"""The folder of the reading room: what is written there, when it shows, and what is left out."""

import dataclasses
import datetime
import errno
import io
import json
import os
import stat
import sys
import tarfile
import types
from contextlib import ExitStack

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from pydicom import dcmread
from pydicom.encaps import generate_frames

from model.bundle import demo_bundle_path
from model.overlays import encode_jpeg, overlay_name
from pipeline import commit, dicom_writing, reading_room, run, sampling, scoring
from pipeline.dicom_writing import write_objects
from pipeline.layout import Output
from pipeline.manifest import ManifestRow
from pipeline.reading_room import (
    ReadingRoomError,
    check_new,
    check_room,
    open_room,
    show,
)
from pipeline.rethreshold import RethresholdOptions, _recorded_options
from pipeline.run import score_manifest
from pipeline.run_errors import RunStoppedError
from pipeline.score_options import ScoreOptions
from pipeline.setting_up import set_up
from pipeline.stopping import STOP
from schemas.errors import InputError
from schemas.tables import scores_schema
from scripts.dicom_files import dicom_file
from tests.fakes import (
    FakeScorer,
    make_bundle,
    make_job,
    manifest_row,
    scores_of,
    tree,
    varied_picture,
)
from tests.gcs import BUCKET

CANARY = "Zephyrine^Anna"
STARTED = datetime.datetime(2026, 11, 27, 1, 2, 3, tzinfo=datetime.UTC)
TOP = 2
"""Findings drawn an image."""


class Killed(BaseException):
    """Stands for the end of the process."""


def killed(*_):
    raise Killed


def file_of(number, **header):
    """Returns a DICOM file that stands alone in its study."""
    uids = {
        "SOPInstanceUID": f"1.2.5.{number}",
        "StudyInstanceUID": f"1.2.3.{number}",
        "SeriesInstanceUID": f"1.2.4.{number}",
    }
    named = {"PatientName": CANARY, "PatientID": "P1"}
    return dicom_file(varied_picture(number), **{**uids, **named, **header})


class Drawn:
    """A run whose scores table is built and whose overlays are drawn, and a reading room."""

    def __init__(self, folder):
        self.folder, self.room, self.rows = folder, folder / "pacs", []
        self.room.mkdir(mode=0o700)

    def add(self, name, data, *, uri=None, quality=(), drawn=True):
        path = self.folder / name
        path.write_bytes(data)
        row = scores_of(name, varied_picture(len(self.rows)), uri or path)
        row["findings"] = row["findings"][: TOP + 1]
        row["quality"] = list(quality)
        row["source_version"] = str(path.stat().st_mtime_ns)
        for cam in row["cams"][: TOP if drawn else 0]:
            cam["overlay"] = overlay_name(name, cam["finding"])
        self.rows.append(row)

    def write(self, *, gated_last=True):
        rows = [manifest_row(row["image_id"], row["uri"]) for row in self.rows]
        job = make_job(self.folder / f"out{len(list(self.folder.glob('out*')))}", rows)
        scores = job.paths.built("scores") / "part.parquet"
        scores.parent.mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(self.rows, scores_schema()), scores)
        for row in self.rows:
            for number, cam in enumerate(row["cams"]):
                if cam["overlay"]:
                    path = job.paths.drawn / cam["overlay"]
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(overlay(number))
        counts = write_objects(
            self.room,
            job,
            [scores],
            make_bundle(),
            gated_last=gated_last,
            started=STARTED,
            go_on="Go on",
        )
        return tuple(counts[f"dicom_{name}"] for name in ("images", "objects", "not_written"))

    @property
    def hidden(self):
        return self.room / ".run_id=r1.tmp"


def overlay(number):
    return encode_jpeg(Image.new("RGB", (64, 48), (0, 50 * number, 0)))


@pytest.fixture
def drawn(tmp_path):
    STOP.reset()
    yield Drawn(tmp_path)
    STOP.reset()


@pytest.fixture
def two(drawn):
    """Two images in DICOM, both flagged and drawn."""
    for number in range(2):
        drawn.add(f"d{number}", file_of(number))
    return drawn


# What is written


def test_written_are_drawn_images_that_are_dicom_for_their_owner_alone(two):
    two.add("beyond the limit", file_of(2), drawn=False)
    stream = io.BytesIO()
    Image.fromarray(varied_picture(3)).save(stream, "PNG")
    two.add("p.png", stream.getvalue())
    assert two.write() == (2, 6, {"not_dicom": 1})
    assert [path.name for path in two.room.iterdir()] == [".run_id=r1.tmp"]
    for path in two.room.rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600)
    assert sorted(path.name for path in two.hidden.iterdir()) == ["1.2.3.0", "1.2.3.1"]
    for number, row in enumerate(two.rows[:2]):
        paths = list((two.hidden / f"1.2.3.{number}").iterdir())
        datasets = [dcmread(path) for path in paths]
        assert [path.name for path in paths] == [f"{one.SOPInstanceUID}.dcm" for one in datasets]
        assert {str(one.PatientName) for one in datasets} == {CANARY}
        assert {one.StudyInstanceUID for one in datasets} == {f"1.2.3.{number}"}
        assert {one.ContentDate for one in datasets} == {f"{STARTED.astimezone():%Y%m%d}"}
        captures = {one.InstanceNumber: one for one in datasets if one.Modality == "OT"}
        for place in range(TOP):
            (frame,) = generate_frames(captures[place + 1].PixelData, number_of_frames=1)
            assert frame[: len(overlay(place))] == overlay(place)
            assert row["findings"][place].replace("_", " ") in captures[place + 1].ImageComments
        (report,) = (one for one in datasets if one.Modality == "SR")
        (groups,) = (
            item.ContentSequence
            for item in report.ContentSequence
            if item.ConceptNameCodeSequence[0].CodeMeaning == "Imaging Measurements"
        )
        assert [group.ContentSequence[0].TextValue for group in groups] == row["findings"]
        assert len(row["findings"]) == TOP + 1


def test_images_kept_apart_and_headers_that_will_not_do_are_counted(two):
    two.add("side", file_of(2), quality=["lateral", "border"])
    two.add("narrow", file_of(3), quality=["border"])
    two.add("nameless", file_of(4, StudyInstanceUID=None))
    two.add("wrong", file_of(5, PatientSex="X"))
    two.add("copy", file_of(0, StudyInstanceUID="1.2.3.6"))
    assert two.write() == (3, 9, {"unusable_header": 2, "gated": 1, "same_instance": 1})
    assert two.write(gated_last=False) == (4, 12, {"unusable_header": 2, "same_instance": 1})


def test_an_image_that_changed_or_is_gone_since_it_was_scored_has_no_objects(two):
    os.utime(two.folder / "d0", ns=(1, 1))
    (two.folder / "d1").unlink()
    assert two.write() == (0, 0, {"source_changed": 1, "not_found": 1})
    assert list(two.room.iterdir()) == []


def test_what_no_object_can_be_made_of_is_counted_and_says_nothing(two, monkeypatch, caplog):
    from model import dicom_out

    def fail(*_):
        raise ValueError(CANARY)

    monkeypatch.setattr(dicom_out, "_report", fail)
    assert two.write() == (0, 0, {"not_built": 2})
    assert CANARY not in caplog.text


def test_members_of_archives_have_objects_too(drawn):
    for name in ("a.tar", "b.tar.gz"):
        path = drawn.folder / name
        number = 0 if name == "a.tar" else 1
        (drawn.folder / "member").write_bytes(file_of(number))
        with tarfile.open(path, "w:gz" if number else "w") as archive:
            archive.add(drawn.folder / "member", "member")
        drawn.add(f"i{number}", b"", uri=f"{path}#member")
        version = path.stat()
        drawn.rows[-1]["source_version"] = f"{version.st_mtime_ns}-{version.st_size}"
    assert drawn.write() == (2, 6, {})


def test_a_second_try_writes_the_same_bytes_and_leaves_nothing_of_the_first(two, monkeypatch):
    original, calls = dicom_writing._write, []

    def write(path, data):
        calls.append(path)
        if len(calls) == 3:
            (path.parent / "left.dcm").write_bytes(b"half")
            raise Killed
        original(path, data)

    with monkeypatch.context() as broken:
        broken.setattr(dicom_writing, "_write", write)
        with pytest.raises(Killed):
            two.write()
    first = {path.name: path.read_bytes() for path in two.room.rglob("2.25.*.dcm")}
    assert len(first) == 2
    assert two.write() == (2, 6, {})
    second = {path.name: path.read_bytes() for path in two.room.rglob("*.dcm")}
    assert len(second) == 6
    assert first.items() <= second.items()


def test_a_stop_ends_the_writing(two, monkeypatch):
    original = dicom_writing._write

    def write(path, data):
        STOP.request()
        original(path, data)

    monkeypatch.setattr(dicom_writing, "_write", write)
    assert two.write() == (1, 3, {})


def test_a_full_disk_is_told_of_without_a_path(two, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), CANARY)

    monkeypatch.setattr(dicom_writing, "_write", full)
    with pytest.raises(ReadingRoomError) as caught:
        two.write()
    assert str(caught.value) == (
        "The DICOM objects of run r1 could not be written to --dicom-out (No space left on"
        " device). Nothing was published; what was scored is kept. Mend it. Go on, or without"
        " --dicom-out to publish without them."
    )


# When it shows


def hide(room, run_id, objects=1):
    folder = room / f".run_id={run_id}.tmp" / "1.2"
    folder.mkdir(parents=True)
    for number in range(objects):
        (folder / f"{number}.dcm").touch()


def test_open_room_shows_what_belongs_to_a_published_run_of_this_output(tmp_path):
    room, output = tmp_path / "pacs", tmp_path / "out"
    (output / "runs").mkdir(parents=True)
    for run_id, counts in (("known", {"dicom_objects": 2}), ("other", {"dicom_objects": 1})):
        record = {"run_id": run_id, "files": [], "counts": counts}
        (output / "runs" / f"{run_id}.json").write_text(json.dumps(record))
        hide(room, run_id, 2)
    hide(room, "unknown")
    events = []
    opened = open_room(str(room), Output(output), lambda event, **facts: events.append(facts))
    assert opened == room
    assert events == [{"run_id": "known"}]
    hide(room, "known", 2)  # by hand
    open_room(str(room), Output(output), lambda event, **facts: events.append(facts))
    assert len(events) == 1
    assert {path.name for path in room.iterdir()} == {
        "run_id=known",
        ".run_id=known.tmp",
        ".run_id=other.tmp",
        ".run_id=unknown.tmp",
    }


def test_show_what_cannot_be_renamed_is_told_of_with_the_run_published(tmp_path):
    hide(tmp_path, "night")
    show(tmp_path, "night")
    show(tmp_path, "night")
    assert tree(tmp_path) == ["run_id=night/1.2/0.dcm"]
    hide(tmp_path, "night")
    with pytest.raises(ReadingRoomError) as caught:
        show(tmp_path, "night")
    assert str(caught.value) == (
        "Run night is published, but its DICOM objects stay hidden, as .run_id=night.tmp in"
        " --dicom-out, which cannot be renamed (Directory not empty). Mend that: the next start"
        " with the same --dicom-out shows them."
    )


@pytest.fixture
def score(tmp_path, monkeypatch):
    """Returns a function that scores two images into the folders `out` and `pacs`."""
    FakeScorer().install(monkeypatch)
    monkeypatch.setattr(run, "load_scorer", scoring.load_scorer)
    for number in range(2):
        (tmp_path / f"d{number}").write_bytes(file_of(number))
    (tmp_path / "m.csv").write_text("uri\nd0\nd1\n")
    options = ScoreOptions(
        manifest=str(tmp_path / "m.csv"),
        output=str(tmp_path / "out"),
        bundle=demo_bundle_path(),
        run_id="night",
        gradcam_top=TOP,
        gate="off",
        no_report=True,
        dicom_out=str(tmp_path / "home" / "pacs"),
    )
    events = []

    def do(**changes):
        note = lambda event, **facts: events.append((event, facts.get("run_id")))  # noqa: E731
        return score_manifest(dataclasses.replace(options, **changes), note)

    do.events = events
    STOP.reset()
    yield do
    STOP.reset()


def test_objects_hidden_by_a_crash_are_shown_by_the_next_start(score, tmp_path, monkeypatch):
    room, output = tmp_path / "home" / "pacs", tmp_path / "out"
    with monkeypatch.context() as broken:
        broken.setattr(commit, "show", killed)
        with pytest.raises(Killed):
            score()
    record = json.loads((output / "runs/night.json").read_bytes())
    assert record["counts"]["dicom_objects"] == 6
    assert record["options"]["dicom_out"] == str(room)
    assert record["timings_s"]["dicom"] > 0
    assert [path.name for path in room.iterdir()] == [".run_id=night.tmp"]
    assert stat.S_IMODE(room.stat().st_mode) == 0o700
    hidden = tree(room / ".run_id=night.tmp")
    assert score(resume=True)["run_id"] == "night"
    assert score.events[-2:] == [("dicom_shown", "night"), ("published_already", "night")]
    assert tree(room / "run_id=night") == hidden
    assert len(hidden) == 6
    assert [path.name for path in room.iterdir()] == ["run_id=night"]
    for name in tree(output):
        content = (output / name).read_bytes()
        if name.endswith(".parquet"):
            content += str(pq.read_table(output / name).to_pylist()).encode()
        assert b"Zephyrine" not in content, name


def test_overlays_of_an_output_on_a_store_are_read_from_there(store, score, tmp_path):
    counts = score(output=f"gs://{BUCKET}/results")["counts"]
    assert (counts["dicom_images"], counts["dicom_objects"]) == (2, 6)
    assert len(tree(tmp_path / "home/pacs/run_id=night")) == 6


def test_a_failure_publishes_nothing_and_the_run_goes_on_without_the_room(
    score, tmp_path, monkeypatch
):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as broken:
        broken.setattr(dicom_writing, "_write", full)
        with pytest.raises(ReadingRoomError, match="Go on with --resume --run-id night, or"):
            score()
    assert not (tmp_path / "out/runs").exists()
    assert (tmp_path / "out/_staging/night/run.json").exists()
    record = score(resume=True, dicom_out=None, gradcam_limit=0)
    assert record["counts"]["kept"] == 2
    assert not [name for name in record["counts"] if name.startswith("dicom")]
    assert "dicom" not in record["timings_s"]


# What is checked first


def test_a_room_that_holds_the_run_already_is_refused_before_any_image_is_read(score, tmp_path):
    (tmp_path / "home/pacs/run_id=night").mkdir(parents=True)
    with pytest.raises(InputError) as caught:
        score()
    assert str(caught.value) == (
        "--dicom-out must not hold a run of that name yet. Received: night, whose objects are"
        " there. Choose another --run-id, or another folder."
    )
    assert not (tmp_path / "out/_staging/night").exists()
    assert score.events == [("run_started", "night")]
    check_new(tmp_path / "home/pacs", "other")


@pytest.mark.parametrize(
    ("folder", "said"),
    [
        ("gs://bucket/pacs", "must be a folder on this machine. Received: --dicom-out gs://bu"),
        ("file", "must be a folder. Received: --dicom-out /.*/file, a file."),
        ("out/pacs", "must lie outside --output, where no file names a patient."),
        ("out", "must lie outside --output"),
    ],
)
def test_check_room_refuses_what_can_be_none(tmp_path, monkeypatch, folder, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=f"--dicom-out {said}"):
        check_room(folder, "out")


def test_check_room_without_highdicom_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "highdicom", None)
    monkeypatch.delitem(sys.modules, "model.dicom_out", raising=False)
    with pytest.raises(InputError, match=r"Install it: pip install 'prescreen\[dicom\]'\."):
        check_room(str(tmp_path / "pacs"), str(tmp_path / "out"))
    assert not (tmp_path / "pacs").exists()


def test_open_room_that_cannot_be_made_or_written_is_refused(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    output = Output(tmp_path / "out")
    with pytest.raises(InputError, match=r"can be made\. Received: .*/file/pacs \(Not a direct"):
        open_room(str(tmp_path / "file/pacs"), output, lambda event, **facts: None)
    monkeypatch.setattr(reading_room.os, "access", lambda *_: False)  # root may write anywhere
    with pytest.raises(InputError, match="must be a folder that can be written"):
        open_room(str(tmp_path / "pacs"), output, lambda event, **facts: None)


def test_options_redacted_tell_of_no_room():
    options = ScoreOptions("m.csv", "out", "bundle", dicom_out="/ward/pacs")
    assert options.to_json()["dicom_out"] == "/ward/pacs"
    assert ScoreOptions.from_state(options.to_state()) == options
    redacted = dataclasses.replace(options, redact_uris=True)
    assert redacted.to_json()["dicom_out"] is None


def test_a_rethresholded_run_records_that_it_wrote_no_objects():
    parent = {"options": ScoreOptions("m.csv", "out", "bundle", dicom_out="/pacs").to_json()}
    settings = types.SimpleNamespace(redact_uris=False)
    given = RethresholdOptions("out/runs/night.json", "new.json")
    setup = types.SimpleNamespace(options=given, parent=parent, settings=settings)
    assert _recorded_options(setup, "new")["dicom_out"] is None


def test_the_sample_of_a_plan_writes_to_no_room(tmp_path, monkeypatch):
    asked = []

    def stop(options, *_):
        asked.append(options)
        raise RunStoppedError("stop")

    monkeypatch.setattr(sampling, "score_manifest", stop)
    (tmp_path / "m.csv").write_text("uri\nd0\n")
    options = ScoreOptions(
        str(tmp_path / "m.csv"),
        str(tmp_path / "out"),
        demo_bundle_path(),
        dicom_out=str(tmp_path / "pacs"),
    )
    with ExitStack() as held, pytest.raises(sampling.MeasureError):
        setup = set_up(options, held)
        sampling._score(setup, [ManifestRow("d0", "d0", ())], tmp_path / "sample")
    assert [options.dicom_out for options in asked] == [None]
    assert not (tmp_path / "pacs").exists()
