"""The crash tests themselves: what is lost, doubled or changed is found."""

import csv
import dataclasses
import itertools
import json
import shutil
import signal
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from model.bundle import demo_bundle_path
from pipeline import run, scoring
from pipeline.run import score_manifest
from pipeline.score_options import ScoreOptions
from tests.fakes import FakeScorer, varied_picture, write_picture

# The scripts are no package: they are run by path, and so find one another.
sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))

import nothing_lost
import nothing_lost_archive
import nothing_lost_bench
import nothing_lost_checks
import nothing_lost_child
import nothing_lost_faults
import nothing_lost_kills
import nothing_lost_nights
import nothing_lost_process
from nothing_lost_checks import Watcher, check_alone, compare_rows, differences, read_published

IMAGES = 6


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    """Two OUTPUTs with the same run under another id and with another batch size."""
    folder = tmp_path_factory.mktemp("archive")
    uris = [write_picture(folder / f"{k}.png", varied_picture(k)).name for k in range(IMAGES)]
    (folder / "text.png").write_text("no picture")
    rows = "".join(f"i{uri[0]},{uri}\n" for uri in [*uris, "text.png", "missing.png"])
    (folder / "manifest.csv").write_text("image_id,uri\n" + rows)
    with pytest.MonkeyPatch.context() as patch:
        FakeScorer().install(patch)
        patch.setattr(run, "load_scorer", scoring.load_scorer)
        for run_id, batch_size in (("whole", 4), ("night", 3)):
            score_manifest(
                ScoreOptions(
                    manifest=str(folder / "manifest.csv"),
                    output=str(folder / run_id),
                    bundle=demo_bundle_path(),
                    run_id=run_id,
                    batch_size=batch_size,
                    gradcam_top=1,
                    reject_limit=1.0,
                ),
                lambda event, **facts: None,
            )
    return folder


@pytest.fixture
def whole(outputs):
    return read_published(outputs / "whole", "whole")


@pytest.fixture
def night(outputs, tmp_path):
    """A copy of the second run, to be harmed."""
    return Path(shutil.copytree(outputs / "night", tmp_path / "night"))


def rewrite(path, change):
    """Changes the rows of a Parquet file."""
    table = pq.ParquetFile(path).read()
    pq.write_table(pa.Table.from_pylist(change(table.to_pylist()), table.schema), path)


def found(whole, output):
    return list(differences(whole, read_published(output, "night")))


# Whole runs


def test_differences_of_two_runs_over_one_archive_are_none(whole, night):
    assert found(whole, night) == []
    assert len(whole.tables["scores"]) == IMAGES and len(whole.tables["rejects"]) == 2
    assert len(whole.overlays) == IMAGES == len(whole.worklist) - 1
    assert len(whole.tables["worklist"]) == IMAGES


def set_in(name, value):
    def change(rows):
        rows[2][name] = value
        return rows

    return change


@pytest.mark.parametrize(
    ("table", "change", "message"),
    [
        ("scores", lambda rows: rows[1:], "scores: i0 is missing"),
        ("scores", lambda rows: [*rows, rows[3]], "scores: i3 is there twice"),
        (
            "scores",
            lambda rows: [*rows, rows[3] | {"image_id": "i9"}],
            "scores: i9 is not in the other run",
        ),
        ("scores", set_in("source_version", "17"), "scores: i2 has another source_version"),
        ("scores", set_in("score_Mass", 0.123), "scores: i2 has another score_Mass"),
        ("scores", set_in("labels", "Mass"), None),
        ("scores", set_in("cams", []), "scores: i2 has another cams"),
        ("rejects", lambda rows: rows[1:], "rejects: it is missing"),
        (
            "rejects",
            lambda rows: [row | {"attempts": 2} for row in rows[:1]] + rows[1:],
            "rejects: it has another attempts",
        ),
    ],
    ids=["missing", "doubled", "unknown", "version", "score", "no_column", "cam", "reject", "try"],
)
def test_differences_changed_table_is_found(whole, night, table, change, message):
    rewrite(night / f"{table}/run_id=night/part-00000.parquet", change)
    assert found(whole, night) == ([message] if message else [])


def test_differences_changed_worklists_are_found(whole, night):
    rewrite(night / "worklist/run_id=night.parquet", lambda rows: rows[:-1])
    last = whole.tables["worklist"][-1]["image_id"]
    path = night / "worklist/run_id=night.csv"
    lines = list(csv.reader(path.read_text().splitlines()))
    lines[2][2] = "0.5"
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows(lines)
    assert found(whole, night) == [f"worklist: {last} is missing", "worklist differs in line 3"]
    path.write_text(path.read_text().splitlines(keepends=True)[0])
    assert "worklist has 1 lines, not 7" in found(whole, night)


def test_differences_changed_overlays_are_found(whole, night):
    first, second, *_ = sorted(whole.overlays)
    paths = [night / name.replace("gradcam/", "gradcam/run_id=night/") for name in (first, second)]
    paths[0].write_bytes(paths[0].read_bytes()[:-1] + b"!")
    record_path = night / "runs/night.json"
    record = json.loads(record_path.read_text())
    gone = paths[1].relative_to(night).as_posix()
    record["files"] = [file for file in record["files"] if file["path"] != gone]
    record["counts"]["overlays"] -= 1
    record["rejected_by_reason"] = {}
    record_path.write_text(json.dumps(record))
    assert found(whole, night) == [
        f"{first} is of other bytes",
        f"{second} is missing",
        "count overlays is 5, not 6",
        "rejected_by_reason differs",
    ]
    back = list(differences(read_published(night, "night"), whole))
    assert f"{second} is not in the other run" in back


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"score_Mass": 0.5 + 9e-6}, None),
        ({"score_Mass": 0.5 + 2e-5}, "scores: a has another score_Mass"),
        ({"score_Mass": float("nan")}, "scores: a has another score_Mass"),
        ({"mean_intensity": 1.0 + 1e-7}, "scores: a has another mean_intensity"),
        ({"width": 3.0}, "scores: a has another width"),
        ({"cams": [{"grid": [0.1, 0.2 + 9e-6]}]}, None),
        ({"cams": [{"grid": [0.1, 0.2 + 2e-5]}]}, "scores: a has another cams"),
        ({"cams": [{"grid": [0.1]}]}, "scores: a has another cams"),
        ({"more": 1}, "scores: a has no more in one of both"),
    ],
    ids=str,
)
def test_compare_rows_allows_scores_a_tolerance_and_nothing_else(change, message):
    row = {
        "image_id": "a",
        "score_Mass": 0.5,
        "mean_intensity": 1.0,
        "width": 3,
        "cams": [{"grid": [0.1, 0.2]}],
    }
    assert list(compare_rows("scores", [row], [row | change])) == ([message] if message else [])


def test_check_alone_says_what_is_wrong_with_output(whole, night, monkeypatch):
    assert list(check_alone_with(monkeypatch, (0, ""), night, whole)) == []
    (night / "_staging/.check-1").mkdir()
    (night / "runs/other.json").write_text("{}")
    assert list(check_alone_with(monkeypatch, (1, "one flipped byte\n"), night, whole)) == [
        "runs has night, other, not night alone",
        "verify ends with 1: one flipped byte",
        "_staging holds .check-1",
    ]


def check_alone_with(monkeypatch, verified, output, whole):
    monkeypatch.setattr(nothing_lost_checks, "run_command", lambda *arguments: verified)
    return check_alone(output, whole, "night")


# A reader beside


def test_watcher_sees_nothing_or_all_and_no_harm(night, tmp_path):
    for output in (night, tmp_path / "none"):
        watcher = Watcher(output, IMAGES)
        watcher.look()
        assert (watcher.looks, watcher.harm) == (1, [])


def test_watcher_sees_half_a_run(night):
    path = night / "scores/run_id=night/part-00000.parquet"
    shutil.copy(path, path.with_name("part-00001.parquet"))
    with Watcher(night, IMAGES) as watcher:
        pass
    assert watcher.looks >= 1
    assert set(watcher.harm) == {"a reader saw 12 of 6 rows"}


def test_watcher_sees_a_record_before_its_files_once(night):
    (night / "worklist/run_id=night.csv").unlink()
    watcher = Watcher(night, IMAGES)
    watcher.look()
    watcher.look()
    assert watcher.harm == ["a reader saw a record without worklist/run_id=night.csv"]


def test_watcher_sees_a_file_that_is_not_whole(night):
    (night / "scores/run_id=night/part-00001.parquet").write_bytes(b"PAR1")
    watcher = Watcher(night, IMAGES)
    watcher.look()
    assert len(watcher.harm) == 1 and watcher.harm[0].startswith("a reader met ArrowInvalid: ")


def test_staged_rows_counts_whole_parts_and_refuses_others(tmp_path):
    folder = tmp_path / "_staging/night/scores"
    folder.mkdir(parents=True)
    pq.write_table(pa.table({"a": range(7)}), folder / "1.parquet")
    (folder / ".2.parquet.tmp").write_bytes(b"half")
    assert nothing_lost_checks.staged_rows(tmp_path) == 7
    assert nothing_lost_checks.published_files(tmp_path) == []
    (folder / "2.parquet").write_bytes(b"half")
    with pytest.raises(pa.ArrowInvalid):
        nothing_lost_checks.staged_rows(tmp_path)


# Processes


PROGRAM = """#!/bin/sh
echo '{"event": "run_started", "run_id": "a"}' >&2
echo not JSON >&2
echo '{"event": "failed", "message": "disk full"}' >&2
%s
"""


@pytest.fixture
def program(monkeypatch, tmp_path):
    """Lets a shell script take the place of Python."""

    def make(last_line):
        path = tmp_path / "python"
        path.write_text(PROGRAM % last_line)
        path.chmod(0o755)
        monkeypatch.setattr(nothing_lost_process, "sys", SimpleNamespace(executable=str(path)))

    return make


def test_attempt_that_ends_is_told_by_its_events(program):
    program("exit 3")
    seen = []
    attempt = nothing_lost_process.Attempt([], on_event=lambda event: seen.append(event.name))
    assert attempt.wait_for("published") is None
    assert attempt.wait_for("run_started").facts["run_id"] == "a"
    assert (attempt.end(), attempt.last_event, attempt.message) == (3, "failed", "disk full")
    assert seen == ["run_started", "failed"] and attempt.other_lines == ["not JSON"]
    assert attempt.result is None and not attempt.kill()
    assert attempt.began_s < attempt.events[0].at_s <= attempt.ended_s


def test_attempt_that_goes_on_is_killed_with_what_it_started(program):
    program("sleep 600")
    attempt = nothing_lost_process.Attempt([])
    assert attempt.wait_for("failed")
    assert attempt.kill()
    assert attempt.end() == -signal.SIGKILL


# What is changed in a process


def test_fate_of_read_follows_from_its_arguments_in_the_shares_that_it_says():
    fates = [
        nothing_lost_child.fate_of_read(3, f"{name}.png", attempt)
        for name, attempt in itertools.product(range(5000), range(4))
    ]
    assert fates[:8] == [
        nothing_lost_child.fate_of_read(3, f"{name}.png", attempt)
        for name, attempt in itertools.product(range(2), range(4))
    ]
    shares = {fate: count / len(fates) for fate, count in Counter(fates).items()}
    assert shares == pytest.approx({"fail": 0.2, "hang": 0.01, "read": 0.79}, abs=0.005)


def test_counter_counts_images_that_were_scored(tmp_path, monkeypatch):
    from model.scorer import Scorer

    counter = tmp_path / "counter"
    nothing_lost_child.create_counter(counter)
    assert nothing_lost_child.read_counter(counter) == 0
    monkeypatch.setattr(Scorer, "score", lambda self, images: "scores")
    for batch in (32, 9):
        # As the next process would.
        nothing_lost_child.count_images(str(counter))
        assert Scorer.score(None, np.zeros(batch)) == "scores"
        monkeypatch.setattr(Scorer, "score", lambda self, images: "scores")
    assert nothing_lost_child.read_counter(counter) == 41


@pytest.mark.parametrize(
    ("target", "is_step"),
    [
        ("out/scores/run_id=a", True),
        ("out/worklist/run_id=a.csv", True),
        ("out/runs/a.json", True),
        ("out/_staging/a/prepared.json", True),
        ("out/_staging/a/scores/1.parquet", False),
    ],
)
def test_step_of_publishing_is_told_by_where_it_moves_to(target, is_step):
    assert nothing_lost_child.is_step_of_publishing(Path(target)) == is_step


# Kills


def test_spread_is_over_all_phases():
    phases = Counter(phase.name for phase in nothing_lost_kills.spread(25))
    assert phases == {
        "loading": 2,
        "start": 2,
        "scoring": 9,
        "drawing": 5,
        "writing": 3,
        "publishing": 4,
    }
    assert [phase.name for phase in nothing_lost_kills.spread(3)] == [
        "loading",
        "scoring",
        "drawing",
    ]


def make_kill(**changes):
    kill = nothing_lost_kills.Kill(
        number=3,
        phase="drawing",
        moment_s=1.25,
        found="scored",
        staged=604,
        twice=0,
        kills=1,
        resumed_by="`--resume`",
        resumed_s=20,
        looks=100,
        harm=(),
    )
    return dataclasses.replace(kill, **changes)


def test_kill_with_harm_is_said_in_the_table_and_counted(capsys):
    kills = [make_kill(), make_kill(number=4, harm=("scores: a is missing",))]
    assert nothing_lost._print_table("HEADER", kills) == 1
    assert capsys.readouterr().out.splitlines() == [
        "HEADER",
        "| 3 | drawing | 1.25 | scored | 604 | 0 | 1 | `--resume` | 20.0 | 100 | yes |",
        "| 4 | drawing | 1.25 | scored | 604 | 0 | 1 | `--resume` | 20.0 | 100 | NO |",
        "",
        "| 4 | drawing | 1.25 | scored | 604 | 0 | 1 | `--resume` | 20.0 | 100 | NO |",
        "  scores: a is missing",
        "1 went wrong.",
    ]


def test_judge_resumed_run_that_failed_or_scored_too_much_again_is_harm(whole, night, monkeypatch):
    monkeypatch.setattr(nothing_lost_checks, "run_command", lambda *arguments: (0, ""))
    done = SimpleNamespace(
        end=lambda: 0, result=SimpleNamespace(facts={"run_id": "night"}), message=""
    )
    judge = nothing_lost_kills._judge
    assert list(judge(done, night, whole, 1024, 2)) == []
    assert list(judge(done, night, whole, 513, 1)) == [
        "513 images were scored twice, over 512 a kill"
    ]
    failed = SimpleNamespace(end=lambda: 1, result=None, message="disk full")
    assert list(judge(failed, night, whole, 0, 1)) == ["the resumed run ended with 1: disk full"]


# Faults


def test_badly_failed_says_what_a_failure_must_not_do(tmp_path):
    failed = SimpleNamespace(end=lambda: 1, find=lambda name: True, message="full", other_lines=[])
    assert list(nothing_lost_bench.badly_failed(failed, tmp_path)) == []
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/a.json").touch()
    bad = SimpleNamespace(
        end=lambda: -6, find=lambda name: None, message="a\nb", other_lines=["Traceback"]
    )
    assert list(nothing_lost_bench.badly_failed(bad, tmp_path)) == [
        "exit code -6",
        "not one line: a\nb",
        "other output: Traceback",
        "published runs/a.json",
    ]


def test_fault_is_a_line_of_the_table():
    fault = nothing_lost_bench.Fault("disk full", 1, "no\nspace | left", "more space", 0)
    assert str(fault) == "| disk full | 1 | no space \\| left | more space | 0 | yes |"
    assert str(dataclasses.replace(fault, harm=("x",))).endswith("| 0 | NO |")
    assert str(nothing_lost_bench.Fault("disk full")) == "| disk full |  |  |  |  | left out |"


@pytest.fixture
def flaky(whole, monkeypatch):
    """A bench whose store lets i1 hang, i2 fail for good, and i3 and `it` fail once."""
    fates = {"1.png": ["hang"], "2.png": ["fail"] * 4}
    fates |= dict.fromkeys(("3.png", "text.png"), ["fail", "read"])
    monkeypatch.setattr(
        nothing_lost_faults,
        "fate_of_read",
        lambda seed, name, attempt: [*fates.get(name, ()), *["read"] * 4][attempt],
    )
    rows = {row["image_id"]: row for row in whole.tables["scores"]}
    paths = {image_id: Path(row["uri"]) for image_id, row in rows.items()}
    paths |= {"it": Path("text.png"), "missing": Path("missing.png")}
    archive = SimpleNamespace(rows=paths, path=paths.get)
    return SimpleNamespace(archive=archive, seed=1, whole=whole)


def test_expected_rejects_follow_from_the_fates_of_reads(flaky):
    assert nothing_lost_faults._expected_rejects(flaky) == (
        {"i1": ("read_timeout", 1), "i2": ("read_error", 4), "it": ("", 2)},
        0 + 3 + 1 + 1,
    )


def test_compare_flaky_finds_what_does_not_follow(flaky, whole):
    expected, _ = nothing_lost_faults._expected_rejects(flaky)
    rejects = {row["image_id"]: row for row in whole.tables["rejects"]}
    rejects["it"] = rejects["it"] | {"attempts": 2}
    for image_id in ("i1", "i2"):
        reason, attempts = expected[image_id]
        rejects[image_id] = {"image_id": image_id, "reason": reason, "attempts": attempts}
    scores = [row for row in whole.tables["scores"] if row["image_id"] not in ("i1", "i2")]

    def compared(rejects, scores, overlays=whole.overlays):
        tables = {"scores": scores, "rejects": list(rejects.values())}
        found = dataclasses.replace(whole, tables=tables, overlays=overlays)
        return list(nothing_lost_faults._compare_flaky(whole, found, expected))

    assert compared(rejects, scores) == []
    other = rejects | {"i2": rejects["i2"] | {"attempts": 3}}
    assert compared(other, scores) == ["rejects: i2 has 3 attempts, read_error"]
    fewer = {image_id: row for image_id, row in rejects.items() if image_id != "i1"}
    assert compared(fewer, scores) == ["rejects: i1 is missing"]
    assert compared(rejects, scores[1:]) == ["scores: i0 is missing"]
    assert compared(rejects, whole.tables["scores"])[0] == "scores: i1 is not in the other run"
    name = min(whole.overlays)
    assert compared(rejects, scores, {name: b"other"}) == [f"{name} is of other bytes"]


# Nights


@pytest.fixture
def archive(tmp_path):
    return nothing_lost_archive.Archive(tmp_path / "archive", images=3, seed=1)


def test_archive_changes_files_and_the_manifest_says_so(archive):
    first = next(iter(archive.rows))
    before = archive.path(first).read_bytes()
    assert archive.add_bad() == ["cut", "text", "empty", "missing"]
    assert archive.add(2) == ["added-00003", "added-00004"]
    assert archive.change([first]) == [first] and archive.path(first).read_bytes() != before
    archive.remove("text")
    assert archive.path("cut").read_bytes() == before[:2000]
    assert not archive.path("missing").exists()
    with open(archive.manifest, newline="") as file:
        rows = list(csv.DictReader(file))
    ids = [row["image_id"] for row in rows]
    assert ids[3:] == ["cut", "empty", "missing", "added-00003", "added-00004"]
    assert rows == list(archive.rows.values())


def make_nights(archive, output):
    nights = nothing_lost_nights.Nights.__new__(nothing_lost_nights.Nights)
    nights._archive, nights._output = archive, output
    nights._to_do = set(archive.rows)
    return nights


def test_nights_judge_counts_of_a_night(archive, tmp_path):
    nights = make_nights(archive, tmp_path)
    attempt = SimpleNamespace(find=lambda name: None)
    good = {"manifest": 3, "scored": 2, "rejected": 1, "skipped": 0}
    assert list(nights._judge(attempt, good)) == []
    assert list(nights._judge(attempt, good | {"scored": 1})) == [
        "scored, rejected and skipped are not the manifest",
        "2 were scored or rejected, and 3 were to do",
    ]
    assert list(nights._judge(attempt, good | {"manifest": 4, "skipped": 1})) == [
        "the manifest has 3 rows"
    ]


def test_nights_newest_row_of_another_file_is_found(archive, tmp_path):
    nights = make_nights(archive, tmp_path)
    newest = {}
    for image_id in archive.rows:
        status = archive.path(image_id).stat()
        row = {"size_bytes": status.st_size, "source_version": str(status.st_mtime_ns)}
        newest[image_id] = ("scores", row)
    assert list(nights._compare_versions(newest)) == []
    first, second, third = archive.rows
    archive.change([first])
    archive.path(second).unlink()
    del newest[third]
    assert list(nights._compare_versions(newest)) == [
        f"the newest row of {first} is of another file",
        f"the newest row of {second} is of another file",
        f"{third} has no row of the present model",
    ]


# The command


def test_nothing_lost_folder_that_holds_something_is_refused(monkeypatch, tmp_path, capsys):
    (tmp_path / "a").touch()
    monkeypatch.setattr(sys, "argv", ["nothing_lost.py", "nights", "--work", str(tmp_path)])
    with pytest.raises(SystemExit):
        nothing_lost.main()
    assert f"--work must be a new or empty folder. Received: {tmp_path}." in capsys.readouterr().err
