"""The commit: what is published is whole and true, or nothing is."""

import csv
import hashlib
import json
import os
import platform
import shutil

import duckdb
import pandas
import pyarrow.parquet as pq
import pytest

from model.overlays import overlay_name
from pipeline import commit
from pipeline.archive import score_archive
from pipeline.commit import ReconciliationError, RejectLimitError, commit_run
from schemas.rejects import Reason
from schemas.tables import REJECTS_SCHEMA, WORKLIST_SCHEMA, read_metadata, scores_schema
from tests.fakes import (
    BLANK_CAMS,
    LOCAL,
    MODEL_ID,
    NAN_SCORE,
    THRESHOLDS_ID,
    FakeScorer,
    make_facts,
    make_job,
    make_settings,
    manifest_row,
    picture,
    read_rows,
    reject_of,
    scores_of,
    stage,
    tree,
    write_picture,
)

# A whole run, scored and committed once and looked at from all sides.
#
# Two are drawn, one has no attention, one is beyond the limit of 3, one is not flagged; two more
# are rejected.
LEVELS = {
    "top": {"Mass": 250, "Edema": 240, "Hernia": 230},
    "blank": {"Mass": 245},
    "low": {"Nodule": 130},
    "last": {"Nodule": 129},
    "healthy": {"No Finding": 255, "Mass": 20},
}


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """The output folder and the record of a run whose first rows were staged twice."""
    folder = tmp_path_factory.mktemp("published")
    rows = [
        manifest_row(
            name,
            write_picture(
                folder / f"{name}.png", picture(levels, BLANK_CAMS if name == "blank" else 0)
            ),
            (f"site of {name}",),
        )
        for name, levels in LEVELS.items()
    ]
    nan = write_picture(folder / "nan.png", picture(9, NAN_SCORE))
    rows[2:2] = [
        manifest_row("nan", nan, (None,)),
        manifest_row("gone", folder / "no.png", (None,)),
    ]
    job = make_job(folder / "out", rows, carried=("site",), rows_a_group=3)
    settings = make_settings(top=2, limit=3, budget=0.5)
    with pytest.MonkeyPatch.context() as monkeypatch:
        FakeScorer().install(monkeypatch)
        score_archive(job, LOCAL)
        score_archive(job, LOCAL)
        record = commit_run(job, settings, LOCAL, make_facts())
    return folder / "out", record


def test_commit_run_publishes_exactly_the_layout(published):
    output, _ = published
    overlays = [("top", "Mass"), ("top", "Edema"), ("low", "Nodule")]
    assert tree(output) == sorted(
        [
            *(f"gradcam/run_id=r1/{overlay_name(*overlay)}" for overlay in overlays),
            "rejects/run_id=r1/part-00000.parquet",
            "runs/r1.json",
            "scores/run_id=r1/part-00000.parquet",
            "worklist/run_id=r1.csv",
            "worklist/run_id=r1.parquet",
        ]
    )
    assert not (output / "_staging" / "r1").exists()


def test_commit_run_record_is_what_was_returned_and_says_what_happened(published):
    output, record = published
    assert json.loads((output / "runs" / "r1.json").read_text()) == record
    assert record["counts"] == {
        "manifest": 7,
        "scored": 5,
        "rejected": 2,
        "skipped": 0,
        "flagged": 4,
        "listed": 3,
        "drawn": 2,
        "overlays": 3,
        "not_drawn": {"no_attention": 1},
        "kept": 0,
        "duplicates_dropped": 7,
        "outdated_dropped": 0,
        "with_quality_code": 5,
        "gated": 5,
        "quality": {"clipped": 5},
    }
    assert record["rejected_by_reason"] == {"non_finite_score": 1, "not_found": 1}
    assert record["flag_rate"] == {"expected": 0.25, "actual": 0.8}
    worklist = record["worklist"]
    assert (worklist["urgent_first"], worklist["urgency"]["Mass"]) == (False, 2)
    assert worklist["captured"] == {
        "Edema": {"flagged": 1, "listed": 1},
        "Hernia": {"flagged": 1, "listed": 1},
        "Mass": {"flagged": 2, "listed": 2},
        "Nodule": {"flagged": 2, "listed": 1},
    }
    assert sorted(record["timings_s"]) == ["draw", "score", "write"]
    assert record["timings_s"]["score"] == 1.25
    told = (
        "record_version",
        "run_id",
        "model_id",
        "thresholds_id",
        "runner",
        "parent_run",
        "options",
    )
    assert [record[name] for name in told] == [
        1,
        "r1",
        MODEL_ID,
        THRESHOLDS_ID,
        "FnApiRunner",
        None,
        {"manifest": "manifest.csv"},
    ]
    assert record["started_at"] == "2026-11-22T04:29:00+00:00"
    assert record["software"]["python"] == platform.python_version()


def test_commit_run_record_lists_every_file_with_its_digest_and_rows(published):
    output, record = published
    expected = {}
    for name in tree(output):
        if name == "runs/r1.json":
            continue
        path = output / name
        content = path.read_bytes()
        rows = len(read_rows([path])) if name.endswith("parquet") else None
        digest = hashlib.sha256(content).hexdigest()
        expected[name] = {"path": name, "size_bytes": len(content), "sha256": digest, "rows": rows}
    assert {file["path"]: file for file in record["files"]} == expected
    assert len(record["files"]) == len(expected)
    rows = {file["path"].split("/")[0]: file["rows"] for file in record["files"] if file["rows"]}
    assert rows == {"scores": 5, "rejects": 2, "worklist": 3}


def test_commit_run_scores_hold_each_image_once_with_its_overlays(published):
    output, _ = published
    rows = read_rows([output / "scores/run_id=r1/part-00000.parquet"])
    assert sorted(row["image_id"] for row in rows) == sorted(LEVELS)
    by_id = {row["image_id"]: row for row in rows}
    for name in LEVELS:
        assert by_id[name]["site"] == f"site of {name}"
        assert by_id[name]["uri"] == str(output.parent / f"{name}.png")

    def overlay(name, finding):
        return f"gradcam/run_id=r1/{overlay_name(name, finding)}"

    found = {
        name: [(cam["finding"], cam["overlay"]) for cam in row["cams"]]
        for name, row in by_id.items()
    }
    assert found == {
        "top": [
            ("Mass", overlay("top", "Mass")),
            ("Edema", overlay("top", "Edema")),
            ("Hernia", None),
        ],
        "blank": [("Mass", None)],
        "low": [("Nodule", overlay("low", "Nodule"))],
        "last": [("Nodule", None)],
        "healthy": [],
    }
    assert all((output / path).is_file() for row in found.values() for _, path in row if path)


def test_commit_run_rejects_hold_each_image_once(published):
    output, _ = published
    rows = read_rows([output / "rejects/run_id=r1/part-00000.parquet"])
    found = sorted((row["image_id"], row["stage"], row["reason"]) for row in rows)
    assert found == [("gone", "read", "not_found"), ("nan", "infer", "non_finite_score")]


def test_commit_run_worklist_is_ranked_and_within_the_budget(published):
    output, _ = published
    rows = read_rows([output / "worklist/run_id=r1.parquet"])
    assert [(row["rank"], row["image_id"]) for row in rows] == [
        (1, "top"),
        (2, "blank"),
        (3, "low"),
    ]
    with open(output / "worklist/run_id=r1.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["image_id"] for row in table] == ["top", "blank", "low"]
    assert all((output / path).is_file() for path in table[0]["overlays"].split("|")[:2])


def test_commit_run_every_parquet_file_says_which_run_it_is_of(published):
    output, record = published
    schemas = {
        "scores/run_id=r1/part-00000.parquet": scores_schema(("site",)),
        "rejects/run_id=r1/part-00000.parquet": REJECTS_SCHEMA,
        "worklist/run_id=r1.parquet": WORKLIST_SCHEMA,
    }
    assert [name for name in tree(output) if name.endswith(".parquet")] == sorted(schemas)
    for name, expected in schemas.items():
        schema = pq.read_schema(output / name)
        assert schema.remove_metadata().equals(expected), name
        said = read_metadata(schema)
        assert set(said) == {
            "run_id",
            "model_id",
            "model_title",
            "model_statement",
            "thresholds_id",
            "thresholds",
            "calibration",
            "tta",
            "precision",
            "input_contract",
            "software_version",
        }
        assert {key: record[key] for key in said} == said


def test_commit_run_tables_are_read_by_duckdb_and_pandas_as_they_are(published):
    output, _ = published
    rows = duckdb.sql(
        "SELECT image_id, run_id, findings, len(cams)"
        f" FROM read_parquet('{output}/scores/**/*.parquet',"
        " hive_partitioning=true, union_by_name=true) WHERE flagged ORDER BY abnormality DESC"
    ).fetchall()
    assert rows == [
        ("top", "r1", ["Mass", "Edema", "Hernia"], 3),
        ("blank", "r1", ["Mass"], 1),
        ("low", "r1", ["Nodule"], 1),
        ("last", "r1", ["Nodule"], 1),
    ]
    frame = pandas.read_parquet(output / "scores").set_index("image_id")
    assert frame.loc["top", "run_id"] == "r1" and sorted(frame.index) == sorted(LEVELS)
    assert [len(cam["grid"]) for cam in frame.loc["top", "cams"]] == [49, 49, 49]


# Runs whose parts were staged by hand, and nothing is drawn


@pytest.fixture
def staged_job(tmp_path):
    """Returns a function that stages so many scored and rejected images of one manifest."""

    def make(scored, rejected, run_id="r1"):
        names = [f"s{k:03d}" for k in range(scored)] + [f"r{k:03d}" for k in range(rejected)]
        job = make_job(tmp_path / "out", [manifest_row(name) for name in names], run_id=run_id)
        row = scores_of("", picture({"Mass": 200}))
        rows = [{**row, "image_id": name} for name in names[:scored]]
        for number in range(0, scored, 10):
            stage(job.paths, "scores", f"{number:04d}", rows[number : number + 10])
        if rejected:
            rejects = [reject_of(name, Reason.TRUNCATED) for name in names[scored:]]
            stage(job.paths, "rejects", "0000", rejects)
        return job

    return make


def run_commit(job, **settings):
    return commit_run(job, make_settings(**settings), LOCAL, make_facts())


def nothing_is_published(paths):
    """Returns whether the only files are those staged, and all of them are still there."""
    return all(name.startswith(f"_staging/{paths.run_id}/") for name in tree(paths.output))


@pytest.mark.parametrize(
    ("rejected", "limit"),
    [(0, 0.0), (1, 0.05), (2, 0.1), (20, 1.0)],
    ids=["none", "exactly_one", "exactly_two", "all_of_them"],
)
def test_commit_run_rejects_up_to_the_limit_are_published(staged_job, rejected, limit):
    job = staged_job(20 - rejected, rejected)
    record = run_commit(job, reject_limit=limit)
    counts = record["counts"]
    assert (counts["manifest"], counts["scored"], counts["rejected"]) == (
        20,
        20 - rejected,
        rejected,
    )
    assert record["flag_rate"]["actual"] == (1.0 if rejected < 20 else None)
    assert len(read_rows([job.paths.published("scores") / "part-00000.parquet"])) == 20 - rejected
    assert len(read_rows([job.paths.published("rejects") / "part-00000.parquet"])) == rejected


@pytest.mark.parametrize(
    ("rejected", "limit"),
    [(1, 0.0), (2, 0.05), (3, 0.149)],
    ids=["one_and_none_allowed", "one_too_many", "just_over"],
)
def test_commit_run_rejects_over_the_limit_publish_nothing(staged_job, rejected, limit):
    job = staged_job(20 - rejected, rejected)
    before = tree(job.paths.output)
    with pytest.raises(RejectLimitError) as caught:
        run_commit(job, reject_limit=limit, top=3)
    assert str(caught.value) == (
        f"{rejected} of 20 images were rejected (truncated {rejected}), more than --reject-limit"
        f" {limit} allows. Nothing was published. Mend the images, or raise --reject-limit;"
        " then go on with --resume --run-id r1."
    )
    assert nothing_is_published(job.paths)
    assert set(before) <= set(tree(job.paths.output))
    assert not job.paths.built("gradcam").exists()


def test_commit_run_over_the_limit_can_be_committed_with_a_higher_one(staged_job):
    job = staged_job(18, 2)
    with pytest.raises(RejectLimitError):
        run_commit(job, reject_limit=0.01)
    assert run_commit(job, reject_limit=0.1)["counts"]["rejected"] == 2
    assert not job.paths.staging.exists()


def test_commit_run_staged_part_is_lost_publishes_nothing(staged_job):
    job = staged_job(25, 1)
    part = job.paths.parts("scores") / "0010.parquet"
    part.rename(job.paths.output / "lost")
    with pytest.raises(ReconciliationError) as caught:
        run_commit(job)
    assert str(caught.value) == (
        "The files written must hold each of the 26 manifest rows once. Received: 10 missing,"
        " 0 not in the manifest, 0 more than once. Nothing was published. This is a defect:"
        " please report it."
    )
    (job.paths.output / "lost").rename(part)
    assert nothing_is_published(job.paths)
    assert run_commit(job)["counts"]["scored"] == 25


@pytest.mark.parametrize("table", ["scores", "rejects"])
def test_commit_run_foreign_id_is_staged_publishes_nothing(staged_job, table):
    job = staged_job(3, 1)
    row = scores_of("foreign") if table == "scores" else reject_of("foreign")
    stage(job.paths, table, "9999", [row])
    with pytest.raises(ReconciliationError, match="0 missing, 1 not in the manifest, 0 more than"):
        run_commit(job)
    assert nothing_is_published(job.paths)


def test_commit_run_compaction_doubles_a_row_publishes_nothing(staged_job, monkeypatch):
    job = staged_job(12, 0)
    plan = commit.plan_files

    def plan_twice(folder, parts, ledger):
        return plan(folder, parts + parts[:1], ledger)

    monkeypatch.setattr(commit, "plan_files", plan_twice)
    with pytest.raises(ReconciliationError, match="0 missing, 0 not in the manifest, 10 more than"):
        run_commit(job)
    assert nothing_is_published(job.paths)


@pytest.mark.parametrize(
    ("budget", "listed"),
    [(None, 8), (0, 0), (3, 3), (50, 8), (0.25, 2), (1.0, 8), (0.0, 0)],
    ids=["none", "no_image", "number", "more_than_flagged", "share", "all", "no_share"],
)
def test_commit_run_review_budget_limits_the_worklist_and_not_the_flags(staged_job, budget, listed):
    job = staged_job(8, 0)
    counts = run_commit(job, budget=budget)["counts"]
    assert (counts["flagged"], counts["listed"]) == (8, listed)
    rows = read_rows([job.paths.published("worklist") / "run_id=r1.parquet"])
    assert [row["image_id"] for row in rows] == [f"s{k:03d}" for k in range(listed)]


def test_commit_run_leftovers_of_an_earlier_commit_are_not_published(staged_job):
    job = staged_job(4, 0)
    for name in ("scores/part-00007.parquet", "gradcam/aa/old.Mass.jpg", "worklist/old.csv"):
        path = job.paths.commit / name
        path.parent.mkdir(parents=True)
        path.write_bytes(b"of an earlier attempt")
    run_commit(job)
    assert tree(job.paths.output) == [
        "rejects/run_id=r1/part-00000.parquet",
        "runs/r1.json",
        "scores/run_id=r1/part-00000.parquet",
        "worklist/run_id=r1.csv",
        "worklist/run_id=r1.parquet",
    ]


def test_commit_run_second_run_leaves_the_first_as_it_was(staged_job):
    first = staged_job(4, 1, run_id="first")
    run_commit(first)
    before = {name: (first.paths.output / name).read_bytes() for name in tree(first.paths.output)}
    second = staged_job(3, 0, run_id="second")
    run_commit(second)
    after = {name: (first.paths.output / name).read_bytes() for name in tree(first.paths.output)}
    assert {name: after[name] for name in before} == before
    assert sorted(set(after) - set(before)) == [
        "rejects/run_id=second/part-00000.parquet",
        "runs/second.json",
        "scores/run_id=second/part-00000.parquet",
        "worklist/run_id=second.csv",
        "worklist/run_id=second.parquet",
    ]


def test_commit_run_carried_columns_are_published_whatever_their_names(tmp_path):
    carried = (
        "kind",
        "part",
        "number",
        "copy",
        "attempts",
        "reason",
        "copies",
        "m",
        "rank",
        "scores",
    )
    values = {name: f"value of {name}" for name in carried}
    rows = [manifest_row(name, "/no.png", tuple(values.values())) for name in "ab"]
    job = make_job(tmp_path / "out", rows, carried=carried)
    stage(job.paths, "scores", "1", [scores_of("a", picture(200), **values)], carried)
    stage(job.paths, "rejects", "1", [reject_of("b"), reject_of("a")])
    counts = run_commit(job, top=1)["counts"]
    assert (counts["scored"], counts["rejected"], counts["duplicates_dropped"]) == (1, 1, 1)
    [row] = read_rows([job.paths.published("scores") / "part-00000.parquet"])
    assert {name: row[name] for name in carried} == values
    [reject] = read_rows([job.paths.published("rejects") / "part-00000.parquet"])
    assert reject == reject_of("b")


@pytest.mark.parametrize("folder", ["image_id=7", "out[1]", "a*b", "é, #1"], ids=lambda name: name)
def test_commit_run_output_folder_of_any_name_gives_the_same(tmp_path, folder):
    path = write_picture(tmp_path / "a.png", picture(200))
    job = make_job(tmp_path / folder, [manifest_row("a", path), manifest_row("b", "/no.png")])
    version = str(os.stat(path).st_mtime_ns)
    staged = [scores_of("a", picture(200), path, source_version=version)]
    stage(job.paths, "scores", "1", [*staged, scores_of("b", picture(180))])
    counts = run_commit(job, top=1)["counts"]
    assert (counts["scored"], counts["flagged"], counts["drawn"], counts["overlays"]) == (
        2,
        2,
        1,
        1,
    )
    assert counts["not_drawn"] == {"not_found": 1}
    [row, _] = read_rows([job.paths.published("worklist") / "run_id=r1.parquet"])
    assert (row["image_id"], (job.paths.output / row["overlays"][0]).is_file()) == ("a", True)


# Names, shares, retries


@pytest.mark.parametrize("column", ["filename", "Filename", "c", "kind", "part", "reason", "m"])
def test_commit_run_carried_column_named_as_a_query_names_things_is_published(tmp_path, column):
    rows = [manifest_row("a", "/a.png", ("v",)), manifest_row("b", "/b.png", ("v",))]
    job = make_job(tmp_path / "out", rows, carried=(column,))
    stage(job.paths, "scores", "1", [scores_of("a", picture(200), **{column: "v"})], (column,))
    stage(job.paths, "rejects", "1", [reject_of("b")])
    commit_run(job, make_settings(top=1), LOCAL, make_facts())
    [row] = read_rows([job.paths.published("scores") / "part-00000.parquet"])
    assert row[column] == "v"


@pytest.mark.parametrize(("rejected", "limit"), [(29, 0.29), (57, 0.57), (58, 0.58)])
def test_commit_run_rejects_of_exactly_the_limit_are_published(staged_job, rejected, limit):
    job = staged_job(100 - rejected, rejected)
    assert run_commit(job, reject_limit=limit)["counts"]["rejected"] == rejected


def test_commit_run_budget_share_is_as_people_count(staged_job):
    assert run_commit(staged_job(100, 0), budget=0.29)["counts"]["listed"] == 29


def test_commit_run_drawing_retried_counts_each_overlay_once(tmp_path, monkeypatch):
    paths = [write_picture(tmp_path / f"{name}.png", picture(200)) for name in "ab"]
    rows = [manifest_row(name, path) for name, path in zip("ab", paths, strict=True)]
    job = make_job(tmp_path / "out", rows)
    staged = [
        scores_of(name, picture(200), path, source_version=str(os.stat(path).st_mtime_ns))
        for name, path in zip("ab", paths, strict=True)
    ]
    os.remove(paths[1])
    stage(job.paths, "scores", "1", staged)
    draw = commit.draw_overlays

    def draw_and_retry(*arguments):
        draw(*arguments)
        [part] = job.paths.built("drawn").glob("*.parquet")
        shutil.copy(part, part.with_name("again.parquet"))

    monkeypatch.setattr(commit, "draw_overlays", draw_and_retry)
    counts = commit_run(job, make_settings(top=1), LOCAL, make_facts())["counts"]
    assert (counts["drawn"], counts["overlays"], counts["not_drawn"]) == (1, 1, {"not_found": 1})
