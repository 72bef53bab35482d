"""Runs that are interrupted, repeated, resumed: what is published is whole, and once."""

import contextlib
import errno
import json
import os
import shutil
import tarfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from model.bundle import demo_bundle_path
from pipeline import (
    commit,
    images,
    manifest_formats,
    planning,
    publishing,
    run,
    scoring,
    shard_reader,
    staging,
)
from pipeline.commit import RejectLimitError
from pipeline.layout import RunPaths, staged_parts
from pipeline.lock import RunLock
from pipeline.run import score_manifest
from pipeline.run_errors import RunFailedError, RunStoppedError
from pipeline.run_state import committed_runs
from pipeline.score_options import ScoreOptions
from pipeline.stopping import STOP
from schemas.errors import InputError
from schemas.rejects import ImageError, Reason
from tests.fakes import FakeScorer, picture, read_rows, tree, varied_picture, write_picture

IMAGES = 40


class Killed(BaseException):
    """Stands for the end of the process."""


class Archive:
    """Some images, a manifest of them, and what was scored of it, in a folder of its own."""

    def __init__(self, folder: Path):
        self.folder, self.output = folder, folder / "out"
        self.manifest = folder / "manifest.csv"
        self.uris = {f"i{k:02d}": f"images/{k:02d}.png" for k in range(IMAGES)}
        for number, uri in enumerate(self.uris.values()):
            write_picture(folder / uri, varied_picture(number))
        self.uris |= {"missing": "images/missing.png", "text": "images/text.png"}
        (folder / "images/text.png").write_text("no picture")
        self.write_manifest()

    def write_manifest(self):
        rows = "".join(f"{image_id},{uri}\n" for image_id, uri in self.uris.items())
        self.manifest.write_text("image_id,uri\n" + rows)

    def score(self, *, report=None, manifest=None, **options):
        options = {"gradcam_top": 0, "reject_limit": 1.0, "batch_size": 8, **options}
        return score_manifest(
            ScoreOptions(
                manifest=str(manifest or self.manifest),
                output=str(self.output),
                bundle=demo_bundle_path(),
                **options,
            ),
            report or (lambda event, **facts: None),
        )

    def rows(self, run_id, table="scores"):
        """Returns the published rows of a run by id, without what differs between runs."""
        files = sorted((self.output / table / f"run_id={run_id}").glob("*.parquet"))
        rows = read_rows(files)
        assert len({row["image_id"] for row in rows}) == len(rows)
        return {
            row["image_id"]: {name: row[name] for name in row if name != "scored_at"}
            for row in rows
        }

    def staged(self, run_id):
        """Returns the ids that are staged for a run, those scored and those rejected."""
        paths = RunPaths(self.output, run_id)
        return {
            table: {row["image_id"] for row in read_rows(staged_parts(paths.parts(table)))}
            for table in ("scores", "rejects")
        }


@pytest.fixture
def scorer(monkeypatch):
    fake = FakeScorer().install(monkeypatch)
    monkeypatch.setattr(run, "load_scorer", scoring.load_scorer)
    # A process that writes parts as a long run does.
    monkeypatch.setattr(staging, "ROWS_A_PART", 8)
    STOP.reset()
    yield fake
    STOP.reset()


@pytest.fixture
def archive(tmp_path, scorer):
    return Archive(tmp_path)


@pytest.fixture
def whole(archive):
    """The rows of an uninterrupted run over the archive."""
    archive.score(run_id="whole")
    return {table: archive.rows("whole", table) for table in ("scores", "rejects")}


def scored_images(scorer):
    return sum(scorer.batches)


def fail_at(monkeypatch, module, name, call, error):
    """Makes the call-th call of a function raise."""
    original, calls = getattr(module, name), []

    def function(*args, **options):
        calls.append(args)
        if len(calls) == call:
            raise error
        return original(*args, **options)

    monkeypatch.setattr(module, name, function)


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def interrupt(archive, monkeypatch, call=3, error=FULL, **options):
    """Lets a run fail when it writes its third part."""
    with monkeypatch.context() as broken:
        fail_at(broken, staging, "write_shared", call, error)
        with pytest.raises(RunFailedError) as caught:
            archive.score(**{"run_id": "night", **options})
    return caught.value


# Resume


def test_score_manifest_fails_keeps_what_was_scored_and_publishes_nothing(archive, monkeypatch):
    error = interrupt(archive, monkeypatch)
    assert "Run night failed: " in str(error) and "No space left on device" in str(error)
    assert str(error).endswith(
        "Nothing was published; what was scored is kept. Go on with --resume --run-id night."
    )
    assert "\n" not in str(error)
    assert {name.split("/")[0] for name in tree(archive.output)} == {"_staging"}
    assert 0 < len(archive.staged("night")["scores"]) < IMAGES


def test_score_manifest_resumed_scores_the_rest_only_and_publishes_the_same(
    archive, whole, scorer, monkeypatch
):
    interrupt(archive, monkeypatch)
    staged = archive.staged("night")["scores"]
    scorer.batches.clear()
    record = archive.score(run_id="night", resume=True)
    assert scored_images(scorer) == IMAGES - len(staged)
    assert {table: archive.rows("night", table) for table in whole} == whole
    counts = record["counts"]
    assert (counts["scored"], counts["rejected"], counts["manifest"]) == (40, 2, 42)
    assert (counts["duplicates_dropped"], counts["outdated_dropped"]) == (0, 0)
    assert counts["kept"] >= len(staged) and record["attempts"] == 2
    assert not (archive.output / "_staging" / "night").exists()


def test_score_manifest_resume_without_an_id_takes_the_newest_of_the_same_settings(
    archive, monkeypatch
):
    interrupt(archive, monkeypatch, run_id="older")
    interrupt(archive, monkeypatch, run_id="newer")
    interrupt(archive, monkeypatch, run_id="other", gradcam_top=2)
    assert archive.score(resume=True)["run_id"] == "newer"
    assert archive.score(resume=True)["run_id"] == "older"
    assert sorted(path.name for path in (archive.output / "_staging").iterdir()) == ["other"]


def test_score_manifest_resume_with_nothing_to_resume_starts(archive):
    record = archive.score(resume=True)
    assert record["attempts"] == 1 and record["counts"]["scored"] == IMAGES


def test_score_manifest_unfinished_id_without_resume_is_refused(archive, monkeypatch):
    interrupt(archive, monkeypatch)
    before = tree(archive.output)
    with pytest.raises(InputError) as caught:
        archive.score(run_id="night")
    assert str(caught.value) == (
        "--run-id must be new in --output. Received: night, which was begun and not finished."
        " Go on with it by --resume, or choose another."
    )
    assert tree(archive.output) == before


def test_score_manifest_resume_under_other_settings_is_refused_and_says_which(archive, monkeypatch):
    interrupt(archive, monkeypatch)
    with pytest.raises(InputError) as caught:
        archive.score(run_id="night", resume=True, gradcam_top=2, redact_uris=True)
    assert str(caught.value) == (
        "--resume must go on under the settings that a run was begun under. Received: night, with"
        " redact_uris False then and True now, gradcam_top 0 then and 2 now. Give those again,"
        " or begin another run."
    )
    assert archive.score(run_id="night", resume=True)["counts"]["scored"] == IMAGES


@pytest.mark.parametrize(
    "options", [{"batch_size": 3}, {"decode_threads": 1}, {"reject_limit": 0.5}], ids=str
)
def test_score_manifest_resume_with_other_speed_or_limits_goes_on(archive, monkeypatch, options):
    interrupt(archive, monkeypatch)
    assert archive.score(run_id="night", resume=True, **options)["attempts"] == 2


def test_score_manifest_resume_scores_a_changed_file_again_and_drops_what_is_gone(
    archive, scorer, monkeypatch
):
    interrupt(archive, monkeypatch)
    changed, gone, *kept = sorted(archive.staged("night")["scores"])
    write_picture(archive.folder / archive.uris[changed], varied_picture(777))
    del archive.uris[gone]
    write_picture(archive.folder / "images/new.png", varied_picture(99))
    archive.uris["new"] = "images/new.png"
    archive.write_manifest()
    scorer.batches.clear()
    record = archive.score(run_id="night", resume=True)
    assert scored_images(scorer) == IMAGES - len(kept)  # one gone, one new
    counts = record["counts"]
    assert (counts["manifest"], counts["scored"], counts["outdated_dropped"]) == (42, IMAGES, 2)
    archive.score(run_id="afresh")
    assert archive.rows("night") == archive.rows("afresh")


def test_score_manifest_resume_keeps_rejects_that_lie_in_the_file_and_tries_others_again(
    archive, monkeypatch
):
    with monkeypatch.context() as broken:
        fail_at(broken, commit, "plan_drawings", 1, FULL)
        with pytest.raises(RunFailedError):
            archive.score(run_id="night")
    assert archive.staged("night")["rejects"] == {"missing", "text"}
    planned = {}
    record = archive.score(
        run_id="night",
        resume=True,
        report=lambda event, **facts: planned.update({event: facts}),
    )
    assert planned["planned"] == {"to_score": 1, "kept": IMAGES + 1, "skipped": None}
    assert record["rejected_by_reason"] == {"not_an_image": 1, "not_found": 1}


@pytest.mark.parametrize("options", [{"run_id": "night", "resume": True}, {"only_new": True}])
def test_score_manifest_decoder_that_was_missing_and_is_installed_counts_as_new(
    archive, monkeypatch, options
):
    with monkeypatch.context() as missing:
        refusal = ImageError(Reason.DECODER_MISSING, "the extra is not installed")
        fail_at(missing, images, "prepare", 1, refusal)
        limit = 0 if "resume" in options else 1.0
        with contextlib.suppress(RejectLimitError):
            archive.score(run_id="night", decode_threads=1, reject_limit=limit)
    planned = {}
    archive.score(report=lambda event, **facts: planned.update({event: facts}), **options)
    # The image without its decoder; a resume also looks for what was not found.
    assert planned["planned"]["to_score"] == (2 if "resume" in options else 1)


def test_score_manifest_broken_part_is_discarded_and_its_images_scored_again(
    archive, whole, monkeypatch
):
    interrupt(archive, monkeypatch, call=4)
    paths = RunPaths(archive.output, "night")
    cut, flipped, *_ = map(Path, staged_parts(paths.parts("scores")))
    cut.write_bytes(cut.read_bytes()[:100])
    content = bytearray(flipped.read_bytes())
    content[len(content) // 3] ^= 1
    flipped.write_bytes(content)
    (cut.parent / ".half.parquet.tmp").write_bytes(b"half")
    events = []
    archive.score(
        run_id="night", resume=True, report=lambda event, **facts: events.append((event, facts))
    )
    assert ("parts_discarded", {"table": "scores", "parts": 2}) in events
    assert {table: archive.rows("night", table) for table in whole} == whole


def test_score_manifest_rows_scored_twice_are_published_once(archive, whole, monkeypatch):
    interrupt(archive, monkeypatch)
    folder = RunPaths(archive.output, "night").parts("scores")
    [part, *_] = staged_parts(folder)
    shutil.copy(part, folder / "again.parquet")
    record = archive.score(run_id="night", resume=True)
    assert record["counts"]["duplicates_dropped"] == 8
    assert {table: archive.rows("night", table) for table in whole} == whole


def test_score_manifest_limit_exceeded_is_resumed_with_a_higher_one_without_scoring(
    archive, scorer
):
    with pytest.raises(commit.RejectLimitError, match="go on with --resume --run-id night"):
        archive.score(run_id="night", reject_limit=0.01)
    scorer.batches.clear()
    record = archive.score(run_id="night", resume=True, reject_limit=0.1)
    assert scorer.batches == [] and record["counts"]["scored"] == IMAGES


def test_score_manifest_new_run_with_a_bad_manifest_leaves_nothing(archive):
    archive.manifest.write_text("image_id,uri\na,1.png\na,2.png\n")
    with pytest.raises(InputError, match="image_id must be unique"):
        archive.score(run_id="night")
    assert tree(archive.output) == []
    assert list((archive.output / "_staging").iterdir()) == []


def test_score_manifest_resume_with_a_bad_manifest_keeps_what_was_scored(archive, monkeypatch):
    interrupt(archive, monkeypatch)
    staged, good = archive.staged("night"), archive.manifest.read_text()
    archive.manifest.write_text("image_id,uri\na,1.png\na,2.png\n")
    with pytest.raises(InputError, match="image_id must be unique"):
        archive.score(run_id="night", resume=True)
    assert archive.staged("night") == staged
    archive.manifest.write_text(good)
    assert archive.score(run_id="night", resume=True)["counts"]["scored"] == IMAGES


def test_score_manifest_staged_rows_of_unknown_settings_do_not_count(archive, whole, scorer):
    with pytest.raises(commit.RejectLimitError):
        archive.score(run_id="night", reject_limit=0.01)
    RunPaths(archive.output, "night").state.unlink()
    scorer.batches.clear()
    record = archive.score(run_id="night", resume=True)
    assert scored_images(scorer) == IMAGES and record["attempts"] == 1
    assert {table: archive.rows("night", table) for table in whole} == whole


# Commit


def crash_while_publishing(archive, monkeypatch, call, **options):
    with monkeypatch.context() as broken:
        fail_at(broken, publishing.os, "rename", call, Killed())
        with pytest.raises(Killed):
            archive.score(**options)


@pytest.mark.parametrize("call", [1, 3, 5])
@pytest.mark.parametrize("options", [{"run_id": "night"}, {}], ids=["named", "unnamed"])
def test_score_manifest_crashed_commit_is_finished_by_a_resume_without_scoring(
    archive, whole, scorer, monkeypatch, call, options
):
    crash_while_publishing(archive, monkeypatch, call, **options)
    scorer.batches.clear()
    record = archive.score(resume=True, **options)
    assert scorer.batches == []
    assert {table: archive.rows(record["run_id"], table) for table in whole} == whole
    assert len(committed_runs(archive.output)) == 2
    assert list((archive.output / "_staging").iterdir()) == []


@pytest.mark.parametrize("options", [{"run_id": "night"}, {}], ids=["named", "unnamed"])
def test_score_manifest_killed_after_its_record_is_not_scored_again_by_a_resume(
    archive, scorer, monkeypatch, options
):
    def die(*_, **__):
        raise Killed

    with monkeypatch.context() as broken:
        broken.setattr(publishing, "_tidy_up", die)
        with pytest.raises(Killed):
            archive.score(**options)
    scorer.batches.clear()
    records = committed_runs(archive.output)
    assert archive.score(resume=True, **options) in records
    assert scorer.batches == []
    assert committed_runs(archive.output) == records
    assert list((archive.output / "_staging").iterdir()) == []


def test_score_manifest_crashed_commit_is_finished_by_any_start(archive, monkeypatch):
    crash_while_publishing(archive, monkeypatch, 2, run_id="night")
    events = []
    archive.score(run_id="next", report=lambda event, **facts: events.append((event, facts)))
    assert events[0] == ("run_finished_earlier", {"run_id": "night"})
    assert {run["run_id"] for run in committed_runs(archive.output)} == {"night", "next"}


def test_score_manifest_same_command_twice_is_refused_and_with_resume_has_nothing_to_do(
    archive, scorer
):
    first = archive.score(run_id="night")
    before = {name: (archive.output / name).read_bytes() for name in tree(archive.output)}
    with pytest.raises(InputError, match="night, which is there already"):
        archive.score(run_id="night")
    scorer.batches.clear()
    assert archive.score(run_id="night", resume=True) == first
    assert scorer.batches == []
    assert {name: (archive.output / name).read_bytes() for name in tree(archive.output)} == before


def test_score_manifest_published_id_with_another_manifest_is_refused(archive):
    archive.score(run_id="night")
    archive.uris.pop("i00")
    archive.write_manifest()
    with pytest.raises(InputError, match="night, which is there already"):
        archive.score(run_id="night", resume=True)


def test_score_manifest_run_of_another_process_is_refused_at_once(archive, scorer, monkeypatch):
    interrupt(archive, monkeypatch)
    scorer.batches.clear()
    with RunLock(RunPaths(archive.output, "night").lock):
        for options in ({"run_id": "night"}, {}):
            with pytest.raises(InputError, match="worked on by one process at a time"):
                archive.score(resume=True, **options)
    assert scorer.batches == []


# Only what is new


def test_score_manifest_only_new_skips_what_a_run_holds_scored_or_rejected(archive, scorer):
    archive.score(run_id="first")
    scorer.batches.clear()
    record = archive.score(run_id="second", only_new=True)
    assert scorer.batches == []
    counts = record["counts"]
    assert (counts["manifest"], counts["scored"], counts["rejected"]) == (42, 0, 0)
    assert counts["skipped"] == 42
    skipped = archive.rows("second", "skipped")
    assert list(skipped) == list(archive.uris)
    assert {row["held_by_run"] for row in skipped.values()} == {"first"}
    assert {"skipped/run_id=second/part-00000.parquet"} <= {
        file["path"] for file in record["files"] if file["rows"] == 42
    }


def test_score_manifest_only_new_scores_what_was_added_and_what_changed(archive, scorer):
    archive.score(run_id="first")
    for k in range(5):
        write_picture(archive.folder / archive.uris[f"i{k:02d}"], varied_picture(500 + k))
    for k in range(20):
        archive.uris[f"new{k}"] = f"images/new{k}.png"
        write_picture(archive.folder / archive.uris[f"new{k}"], varied_picture(600 + k))
    archive.write_manifest()
    scorer.batches.clear()
    record = archive.score(run_id="second", only_new=True)
    assert scored_images(scorer) == record["counts"]["scored"] == 25
    assert record["counts"]["skipped"] == 42 - 5
    third = archive.score(run_id="third", only_new=True)
    assert third["counts"]["scored"] == 0
    holders = [row["held_by_run"] for row in archive.rows("third", "skipped").values()]
    assert (holders.count("first"), holders.count("second")) == (37, 25)


def test_score_manifest_only_new_reads_no_file_that_is_held(archive, monkeypatch):
    archive.score(run_id="first")
    monkeypatch.setattr("model.reading.open", None, raising=False)
    assert archive.score(run_id="second", only_new=True)["counts"]["skipped"] == 42


@pytest.mark.parametrize(
    ("options", "skipped"),
    [({"gradcam_top": 1}, 42), ({"redact_uris": True}, 0), ({"precision": "mixed_bfloat16"}, 0)],
    ids=["drawing", "redaction", "precision"],
)
def test_score_manifest_only_new_counts_runs_of_the_same_scoring_settings(
    archive, options, skipped
):
    archive.score(run_id="first")
    record = archive.score(run_id="second", only_new=True, **options)
    assert record["counts"]["skipped"] == skipped


def test_score_manifest_gate_rejects_what_is_not_to_be_believed_and_counts_add_up(archive):
    blank = dict.fromkeys(("i03", "i07"), picture(0))
    for image_id, pixels in blank.items():
        write_picture(archive.folder / archive.uris[image_id], pixels)
    flagging = archive.score(run_id="flagging")
    believed = {name for name, row in archive.rows("flagging").items() if not row["quality"]}
    assert flagging["counts"]["quality"]["blank"] == 2
    counts = archive.score(run_id="rejecting", gate="reject")["counts"]
    rejects = archive.rows("rejecting", "rejects")
    reasons = {name: row["reason"] for name, row in rejects.items() if row["stage"] == "gate"}
    assert {name for name, reason in reasons.items() if reason == "blank"} == set(blank)
    assert reasons.keys() | archive.rows("rejecting").keys() == archive.rows("flagging").keys()
    assert archive.rows("rejecting").keys() >= believed and counts["gated"] == 0
    assert counts["scored"] + counts["rejected"] == counts["manifest"] == IMAGES + 2
    assert counts["rejected"] == len(reasons) + 2
    # What one gate has rejected is not held where another lets it through.
    assert archive.score(run_id="off", gate="off", only_new=True)["counts"]["skipped"] == 42
    again = archive.score(run_id="again", gate="reject", only_new=True)["counts"]
    assert (again["skipped"], again["scored"], again["rejected"]) == (42, 0, 0)
    held = {row["held_by_run"] for row in archive.rows("off", "skipped").values()}
    assert held == {"flagging"}


def test_score_manifest_only_new_resumed_skips_the_same_and_scores_the_rest(
    archive, scorer, monkeypatch
):
    archive.score(run_id="first")
    for k in range(30):
        archive.uris[f"new{k}"] = f"images/new{k}.png"
        write_picture(archive.folder / archive.uris[f"new{k}"], varied_picture(600 + k))
    archive.write_manifest()
    interrupt(archive, monkeypatch, only_new=True)
    scorer.batches.clear()
    record = archive.score(resume=True, only_new=True)
    assert record["run_id"] == "night" and scored_images(scorer) == 30 - 16
    counts = record["counts"]
    assert (counts["scored"], counts["skipped"], counts["kept"]) == (30, 42, 16)


def test_score_manifest_only_new_published_file_is_gone_is_an_error(archive):
    archive.score(run_id="first")
    (archive.output / "scores/run_id=first/part-00000.parquet").unlink()
    with pytest.raises(InputError) as caught:
        archive.score(run_id="second", only_new=True)
    assert str(caught.value) == (
        "published runs must be as they were published for --only-new, --retry-rejects and"
        " rethreshold. Received: run first, with scores/run_id=first/part-00000.parquet missing or"
        " changed. See `prescreen verify`; restore it, or remove that run's record."
    )
    assert not (archive.output / "_staging" / "second").exists()


# Rejects tried again


def test_score_manifest_retry_rejects_scores_only_those(archive, scorer):
    archive.score(run_id="first")
    write_picture(archive.folder / "images/missing.png", varied_picture(1000))
    scorer.batches.clear()
    record = archive.score(
        run_id="again", retry_rejects=str(archive.output / "runs" / "first.json")
    )
    assert scored_images(scorer) == 1
    counts = record["counts"]
    assert (counts["manifest"], counts["scored"], counts["rejected"]) == (2, 1, 1)
    assert record["parent_run"] == "first"
    assert list(archive.rows("again")) == ["missing"]
    assert archive.score(run_id="third", only_new=True)["counts"]["skipped"] == 42


def test_score_manifest_retry_rejects_by_reason(archive):
    archive.score(run_id="first")
    record = archive.score(
        run_id="again",
        retry_rejects=str(archive.output / "runs" / "first.json"),
        retry_reasons=("not_an_image",),
    )
    assert record["counts"]["manifest"] == 1
    assert list(archive.rows("again", "rejects")) == ["text"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"retry_reasons": ("animated",)}, "first, which rejected none of them for animated"),
        ({"only_new": True}, "must not be given with --only-new"),
        ({"retry_rejects": "elsewhere/runs/first.json"}, "must be the record of a run in --output"),
        ({"retry_rejects": "no.json"}, "No such file|must be the record of a run in --output"),
    ],
    ids=["no_such_reject", "only_new", "elsewhere", "missing"],
)
def test_score_manifest_retry_rejects_that_makes_no_sense_is_refused(archive, options, message):
    archive.score(run_id="first")
    options = {"retry_rejects": str(archive.output / "runs" / "first.json"), **options}
    with pytest.raises(InputError, match=message):
        archive.score(run_id="again", **options)
    assert not (archive.output / "_staging" / "again").exists()


def test_score_manifest_retry_does_not_resume_a_night(archive, monkeypatch):
    archive.score(run_id="first")
    interrupt(archive, monkeypatch)
    record = archive.score(resume=True, retry_rejects=str(archive.output / "runs" / "first.json"))
    assert record["run_id"] != "night" and len(archive.staged("night")["scores"]) == 16


# Stopped


def test_score_manifest_stopped_flushes_what_is_scored_and_is_resumed(archive, whole, scorer):
    score = scorer.score

    def score_and_stop(images):
        if len(scorer.batches) == 2:
            STOP.request()
        return score(images)

    scorer.score = score_and_stop
    scorer.batches.clear()
    with pytest.raises(RunStoppedError) as caught:
        archive.score(run_id="night")
    assert str(caught.value) == (
        "Run night was stopped. Nothing was published; what was scored is kept. Go on with"
        " --resume --run-id night."
    )
    staged = len(archive.staged("night")["scores"])
    assert staged == scored_images(scorer) < IMAGES
    STOP.reset()
    scorer.score = score
    archive.score(run_id="night", resume=True)
    assert {table: archive.rows("night", table) for table in whole} == whole


# Redaction


def test_score_manifest_redacted_output_holds_no_uri_and_no_id_made_from_one(tmp_path, scorer):
    secret = "Jane_Canary"
    archive = Archive(tmp_path / secret)
    manifest = archive.folder / f"{secret}.csv"
    manifest.write_text("uri\n" + "".join(f"{uri}\n" for uri in archive.uris.values()))
    archive.output = tmp_path / "out"
    record = archive.score(manifest=manifest, run_id="night", redact_uris=True, gradcam_top=1)
    assert record["counts"]["drawn"] > 0
    rows = [*archive.rows("night").values(), *archive.rows("night", "rejects").values()]
    assert {row["uri"] for row in rows} == {None}
    assert all(len(row["image_id"]) == 16 for row in rows)
    for name in tree(archive.output):
        assert secret not in name and "images" not in name
        path = archive.output / name
        content = path.read_bytes()
        if name.endswith(".parquet"):
            content += json.dumps(pq.read_table(path).to_pylist(), default=str).encode()
        assert secret.encode() not in content and b"images/" not in content, name


# Archives

_OF_ITS_PLACE = ("uri", "source_version", "detail", "overlay")
"""Columns that say where an image is, not what it shows."""


@pytest.fixture
def packed(archive, monkeypatch):
    """The archive's images in two compressed tar files, a plain one, and some still as files."""
    for module in (manifest_formats, planning):
        monkeypatch.setattr(module, "ROW_GROUP_ROWS", 8)  # a shard is longer than that
    names = ["x.tar.gz", "y.tgz", "z.tar", None]
    for number, (image_id, uri) in enumerate(archive.uris.items()):
        packed_in = names[number % 4]
        if packed_in:
            archive.uris[image_id] = f"{packed_in}#./{uri}"
    for name in names[:3]:
        mode = "w" if name.endswith(".tar") else "w:gz"
        with tarfile.open(archive.folder / name, mode) as file:
            for uri in archive.uris.values():
                if uri.startswith(f"{name}#") and "missing" not in uri:
                    file.add(archive.folder / uri.partition("#./")[2], uri.partition("#")[2])
    archive.write_manifest()
    return archive


@pytest.fixture
def opened(monkeypatch):
    """The archives that were opened to be read from their start, in turn."""
    names, open_source = [], shard_reader.open_source

    def counted(uri):
        names.append(Path(uri).name)
        return open_source(uri)

    monkeypatch.setattr(shard_reader, "open_source", counted)
    return names


def of_pictures(rows):
    """Returns rows by id without what says where an image is."""
    for row in rows.values():
        row["cams"] = [{**cam, "overlay": None} for cam in row.get("cams") or ()]
    return {
        image_id: {name: row[name] for name in row if name not in _OF_ITS_PLACE}
        for image_id, row in rows.items()
    }


def overlays(archive, run_id):
    folder = archive.output / "gradcam" / f"run_id={run_id}"
    return {name: (folder / name).read_bytes() for name in tree(folder)}


def test_images_in_archives_are_scored_and_drawn_as_files_are(archive, request, opened):
    archive.score(run_id="files", gradcam_top=1)
    files = {table: of_pictures(archive.rows("files", table)) for table in ("scores", "rejects")}
    packed = request.getfixturevalue("packed")
    packed.score(run_id="packed", gradcam_top=1)

    found = {table: packed.rows("packed", table) for table in ("scores", "rejects")}
    members = [row for row in found["scores"].values() if "#" in row["uri"]]
    assert len(members) == IMAGES * 3 // 4
    assert len({row["source_version"] for row in members}) == 3  # that of their archive
    assert {table: of_pictures(rows) for table, rows in found.items()} == files
    assert overlays(packed, "packed") == overlays(archive, "files") != {}
    assert sorted(opened) == ["x.tar.gz", "x.tar.gz", "y.tgz", "y.tgz"]  # scored, drawn


def test_run_over_archives_that_fails_is_resumed(packed, monkeypatch, scorer):
    packed.score(run_id="whole")
    before = scored_images(scorer)
    interrupt(packed, monkeypatch)
    packed.score(run_id="night", resume=True)
    assert packed.rows("night") == packed.rows("whole")
    assert before < scored_images(scorer) < 3 * before


def test_only_new_reads_an_archive_again_once_it_changed(packed, scorer, opened):
    packed.score(run_id="first")
    scored, _ = scored_images(scorer), opened.clear()
    assert packed.score(run_id="second", only_new=True)["counts"]["skipped"] == IMAGES + 2
    assert (scored_images(scorer), opened) == (scored, [])
    path = packed.folder / "y.tgz"
    os.utime(path, ns=(0, 1_700_000_000_000_000_000))
    record = packed.score(run_id="third", only_new=True)
    assert record["counts"]["skipped"] == IMAGES + 2 - len(
        [uri for uri in packed.uris.values() if uri.startswith("y.tgz")]
    )
    assert opened == ["y.tgz"]
