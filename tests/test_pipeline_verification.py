"""Verification: whatever is done to a published run is found, and named."""

import csv
import errno
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.run_state import record_digest
from pipeline.verification import Problem, Verification, verify_run
from schemas.errors import InputError
from schemas.tables import (
    REJECTS_SCHEMA,
    SKIPPED_SCHEMA,
    WORKLIST_SCHEMA,
    scores_schema,
    with_metadata,
)

OVERLAY = b"\xff\xd8 not quite a JPEG \xff\xd9"


def publish_run(
    output: Path,
    run_id: str = "r1",
    *,
    scored: Sequence[str] = ("a", "b", "c"),
    flagged: Sequence[str] = ("a",),
    rejected: Sequence[str] = ("d",),
    skipped: Sequence[str] = ("e", "f"),
    overlays: Sequence[str] = ("0a/a.Mass.jpg",),
) -> Path:
    """Writes a published run with these images, without a pipeline; returns its record's path."""
    told = {"run_id": run_id, "model_id": "0123456789ab", "thresholds": {"Mass": 0.1}}
    tables = {
        f"scores/run_id={run_id}/part-00000.parquet": (
            scores_schema(),
            [{"image_id": name, "flagged": name in flagged} for name in scored],
        ),
        f"rejects/run_id={run_id}/part-00000.parquet": (
            REJECTS_SCHEMA,
            [{"image_id": name, "reason": "corrupt"} for name in rejected],
        ),
        f"skipped/run_id={run_id}/part-00000.parquet": (
            SKIPPED_SCHEMA,
            [{"image_id": name, "held_by_run": "r0"} for name in skipped],
        ),
        f"worklist/run_id={run_id}.parquet": (
            WORKLIST_SCHEMA,
            [{"rank": rank, "image_id": name} for rank, name in enumerate(flagged, start=1)],
        ),
    }
    rows = {}
    for name, (schema, content) in tables.items():
        (output / name).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(content, with_metadata(schema, told)), output / name)
        rows[name] = len(content)
    worklist = f"worklist/run_id={run_id}.csv"
    with open(output / worklist, "w", newline="") as file:
        csv.writer(file).writerows([["image_id"], *([name] for name in flagged)])
    drawn = [f"gradcam/run_id={run_id}/{name}" for name in overlays]
    for name in drawn:
        (output / name).parent.mkdir(parents=True, exist_ok=True)
        (output / name).write_bytes(OVERLAY)
    counts = {
        "manifest": len(scored) + len(rejected) + len(skipped),
        "scored": len(scored),
        "rejected": len(rejected),
        "skipped": len(skipped),
        "flagged": len(flagged),
        "listed": len(flagged),
        "overlays": len(overlays),
    }
    record = {
        "record_version": 1,
        **told,
        "thresholds_id": "ba9876543210",
        "tta": "none",
        "precision": "float32",
        "counts": counts,
        "files": [file_entry(output, name, rows.get(name)) for name in [*tables, worklist, *drawn]],
        "started_at": "2026-11-22T04:29:00+00:00",
    }
    path = output / "runs" / f"{run_id}.json"
    path.parent.mkdir(exist_ok=True)
    write_record(path, record)
    return path


def file_entry(output: Path, name: str, rows: int | None) -> dict:
    content = (output / name).read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    return {"path": name, "size_bytes": len(content), "sha256": digest, "rows": rows}


def write_record(path: Path, record: dict) -> None:
    """Writes a record as the commit does, with its digest."""
    record = {**record, "record_sha256": record_digest(record)}
    path.write_text(json.dumps(record, indent=2) + "\n")


def change_record(path: Path, change: Callable[[dict], object]) -> None:
    """Changes a record and gives it the digest that it would have had."""
    record = json.loads(path.read_text())
    change(record)
    write_record(path, record)


def flip(path: Path, position: int, mask: int = 1) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= mask
    path.write_bytes(content)


def found(path: Path) -> list[tuple[str, str]]:
    return [(problem.path, problem.what) for problem in verify_run(path).problems]


SCORES = "scores/run_id=r1/part-00000.parquet"
REJECTS = "rejects/run_id=r1/part-00000.parquet"
SKIPPED = "skipped/run_id=r1/part-00000.parquet"
WORKLIST = "worklist/run_id=r1.parquet"
CSV = "worklist/run_id=r1.csv"
DRAWN = "gradcam/run_id=r1/0a/a.Mass.jpg"
FILES = (SCORES, REJECTS, SKIPPED, WORKLIST, CSV, DRAWN)


@pytest.fixture
def run(tmp_path):
    return publish_run(tmp_path / "out")


@pytest.fixture
def output(run):
    return run.parents[1]


def test_verify_run_as_published_has_no_problems(run, output):
    size_bytes = sum((output / name).stat().st_size for name in FILES)
    counts = {
        "manifest": 6,
        "scored": 3,
        "rejected": 1,
        "skipped": 2,
        "flagged": 1,
        "listed": 1,
        "overlays": 1,
    }
    assert verify_run(run) == Verification("r1", 6, size_bytes, counts, [])


def test_verify_run_of_the_commit_itself_has_no_problems(tmp_path, monkeypatch):
    from pipeline.archive import score_archive
    from pipeline.commit import commit_run
    from tests import fakes

    rows = [
        fakes.manifest_row(f"i{k}", fakes.write_picture(tmp_path / f"{k}.png", picture))
        for k, picture in enumerate(fakes.varied_picture(index) for index in range(5))
    ]
    rows.append(fakes.manifest_row("gone", tmp_path / "gone.png"))
    fakes.FakeScorer().install(monkeypatch)
    job = fakes.make_job(tmp_path / "out", rows)
    score_archive(job, fakes.LOCAL)
    record = commit_run(job, fakes.make_settings(top=2), fakes.LOCAL, fakes.make_facts())
    verification = verify_run(job.paths.record)
    assert verification.problems == []
    assert verification.files == len(record["files"])
    assert (verification.counts["scored"], verification.counts["rejected"]) == (5, 1)


@pytest.mark.parametrize("skipped", [(), ("e",)])
def test_verify_run_without_rows_has_no_problems(tmp_path, skipped):
    run = publish_run(tmp_path, scored=(), flagged=(), rejected=(), overlays=(), skipped=skipped)
    assert verify_run(run).problems == []


def test_verify_run_looks_at_one_run_alone(run, output):
    other = publish_run(output, "r10")
    flip(output / "scores/run_id=r10/part-00000.parquet", 9)
    (output / "worklist/run_id=r10.csv").unlink()
    (output / "_staging" / "r1").mkdir(parents=True)
    (output / "report").mkdir()
    (output / "report" / "run_id=r1.html").write_text("made later")
    assert verify_run(run).problems == []
    assert [problem.path for problem in verify_run(other).problems] == [
        "scores/run_id=r10/part-00000.parquet",
        "worklist/run_id=r10.csv",
    ]


def test_verify_run_writes_nothing_and_leaves_no_temporary_files(
    run, output, tmp_path, monkeypatch
):
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    before = {path: path.stat().st_mtime_ns for path in output.rglob("*")}
    verify_run(run)
    assert {path: path.stat().st_mtime_ns for path in output.rglob("*")} == before
    assert list(temporary.iterdir()) == []


def test_verify_run_named_from_another_folder_is_the_same(run, output, monkeypatch):
    monkeypatch.chdir(run.parent)
    assert verify_run(Path("r1.json")) == verify_run(run)
    monkeypatch.chdir(output)
    assert verify_run(Path("runs/r1.json")) == verify_run(run)


# Files.


@pytest.mark.parametrize("name", FILES)
def test_verify_run_flipped_byte_names_its_file_alone(run, output, name):
    was = hashlib.sha256((output / name).read_bytes()).hexdigest()
    flip(output / name, (output / name).stat().st_size // 2)
    now = hashlib.sha256((output / name).read_bytes()).hexdigest()
    assert found(run) == [(name, f"has changed: its sha256 is {now}, and was {was}")]


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_verify_run_any_flipped_bit_is_found(data):
    with tempfile.TemporaryDirectory() as folder:
        run = publish_run(Path(folder))
        name = data.draw(st.sampled_from([*FILES, "runs/r1.json"]))
        content = (Path(folder) / name).read_bytes()
        position = data.draw(st.integers(0, len(content) - 1))
        if name == "runs/r1.json":
            # A record without a digest is one of 0.1.0.
            key = content.index(b"record_sha256")
            if key <= position < key + len(b"record_sha256"):
                return
        flip(Path(folder) / name, position, 1 << data.draw(st.integers(0, 7)))
        if name == "runs/r1.json":
            try:
                assert "runs/r1.json" in {path for path, _ in found(run)}
            except InputError as error:
                assert str(run) in str(error)
        else:
            assert [path for path, _ in found(run)] == [name]


@pytest.mark.parametrize("name", FILES)
def test_verify_run_missing_file_is_named(run, output, name):
    (output / name).unlink()
    assert found(run) == [(name, "is missing")]


def test_verify_run_missing_folders_are_named_file_by_file(run, output):
    for kind in ("scores", "rejects", "skipped", "gradcam", "worklist"):
        (output / kind).rename(output / f"old_{kind}")
    assert found(run) == [(name, "is missing") for name in FILES]


@pytest.mark.parametrize("change", [lambda content: content[:-1], lambda content: content + b"!"])
@pytest.mark.parametrize("name", FILES)
def test_verify_run_file_of_another_size_says_both(run, output, name, change):
    content = (output / name).read_bytes()
    (output / name).write_bytes(change(content))
    size_bytes = len(change(content))
    expected = f"has {size_bytes} bytes, and had {len(content)} when it was published"
    assert found(run) == [(name, expected)]


@pytest.mark.parametrize(
    "name",
    [
        "scores/run_id=r1/part-00001.parquet",
        "scores/run_id=r1/.part-00000.parquet.tmp",
        "rejects/run_id=r1/_SUCCESS",
        "skipped/run_id=r1/deep/er/x",
        "gradcam/run_id=r1/0a/b.Mass.jpg",
        "gradcam/run_id=r1/x\ny\udcff.jpg",
        "worklist/run_id=r1.csv.bak",
        "worklist/.run_id=r1.csv.tmp",
        "report/.run_id=r1.html.tmp",
    ],
)
def test_verify_run_extra_file_is_named(run, output, name):
    (output / name).parent.mkdir(parents=True, exist_ok=True)
    (output / name).touch()
    assert found(run) == [(name, "is not in the record")]


def test_verify_run_extra_file_of_a_kind_the_run_has_not_is_named(tmp_path):
    run = publish_run(tmp_path, overlays=())
    extra = tmp_path / "gradcam" / "run_id=r1" / "x.jpg"
    extra.parent.mkdir(parents=True)
    extra.touch()
    assert found(run) == [("gradcam/run_id=r1/x.jpg", "is not in the record")]


def test_verify_run_link_to_a_folder_is_extra_and_not_followed(run, output, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "x.jpg").touch()
    (output / "gradcam/run_id=r1/link").symlink_to(tmp_path / "elsewhere")
    assert found(run) == [("gradcam/run_id=r1/link", "is not in the record")]


def test_verify_run_link_to_nowhere_in_place_of_a_file_is_named(run, output):
    (output / DRAWN).unlink()
    (output / DRAWN).symlink_to("nowhere")
    assert found(run) == [(DRAWN, "is not a file")]


def test_verify_run_pipe_in_place_of_a_file_does_not_hang(run, output):
    (output / CSV).unlink()
    os.mkfifo(output / CSV)
    assert found(run) == [(CSV, "is not a file")]


def test_verify_run_file_that_cannot_be_read_is_named_and_hides_no_other(run, output, monkeypatch):
    digest = hashlib.file_digest

    def fail_on_rejects(file, name):
        if file.name == str(output / REJECTS):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return digest(file, name)

    monkeypatch.setattr(hashlib, "file_digest", fail_on_rejects)
    (output / CSV).unlink()
    assert found(run) == [(REJECTS, "cannot be read (Input/output error)"), (CSV, "is missing")]


def test_verify_run_lists_every_problem(run, output):
    (output / SCORES).unlink()
    flip(output / DRAWN, 3)
    (output / "rejects/run_id=r1/more").touch()
    change_record(run, lambda record: record["counts"].update(manifest=7))
    assert [path for path, _ in found(run)] == [
        "runs/r1.json",
        SCORES,
        DRAWN,
        "rejects/run_id=r1/more",
    ]


# Tables, whose digest is that of the record.


def rewrite(output: Path, run: Path, name: str, table: pa.Table, rows: int | None = None) -> None:
    """Puts a table in the place of another, in the record too."""
    pq.write_table(table, output / name)
    entry = file_entry(output, name, table.num_rows if rows is None else rows)
    change_record(
        run,
        lambda record: record.update(
            files=[entry if file["path"] == name else file for file in record["files"]]
        ),
    )


def test_verify_run_table_with_other_rows_than_the_record_says_both(run, output):
    rewrite(output, run, SCORES, pq.ParquetFile(output / SCORES).read()[:2], rows=3)
    assert found(run) == [(SCORES, "has 2 rows, and 3 in the record")]


@pytest.mark.parametrize("name", [SCORES, REJECTS, SKIPPED, WORKLIST])
@pytest.mark.parametrize(
    ("change", "differing"),
    [
        ({"run_id": "r2"}, "run_id"),
        ({"model_id": "ffffffffffff", "run_id": "r0"}, "model_id, run_id"),
        ({"thresholds": {"Mass": 0.1000001}}, "thresholds"),
    ],
)
def test_verify_run_table_of_another_run_says_what_differs(run, output, name, change, differing):
    table = pq.ParquetFile(output / name).read()
    told = json.loads(table.schema.metadata[b"prescreen"])
    schema = with_metadata(table.schema, {**told, **change})
    rewrite(output, run, name, table.cast(schema))
    assert found(run) == [(name, f"is of another run: {differing} not as in the record")]


def test_verify_run_table_that_does_not_name_its_model_is_found(run, output):
    table = pq.ParquetFile(output / SCORES).read()
    rewrite(output, run, SCORES, table.cast(with_metadata(table.schema, {"run_id": "r1"})))
    assert found(run) == [(SCORES, "is of another run: model_id not as in the record")]


def test_verify_run_table_without_metadata_is_found(run, output):
    table = pq.ParquetFile(output / SCORES).read()
    rewrite(output, run, SCORES, table.replace_schema_metadata(None))
    assert found(run) == [(SCORES, "does not say of which run it is")]


def test_verify_run_table_that_is_no_parquet_is_found(run, output):
    (output / SCORES).write_bytes(b"PAR1 but nothing else PAR1")
    entry = file_entry(output, SCORES, 3)
    change_record(run, lambda record: record["files"].__setitem__(0, entry))
    assert found(run) == [(SCORES, "is not Parquet")]


@pytest.mark.parametrize(
    ("images", "named"),
    [
        ({"scored": ("a", "b", "b")}, "1 image ids more than once, such as 'b'"),
        ({"rejected": ("b", "d")}, "1 image ids more than once, such as 'b'"),
        ({"skipped": ("d", "e")}, "1 image ids more than once, such as 'd'"),
        (
            {"scored": ("a", *"vwxyz"), "skipped": tuple("zyxwv")},
            "5 image ids more than once, such as 'v', 'w', 'x'",
        ),
        ({"scored": ("a", "x\ny", "x\ny")}, r"1 image ids more than once, such as 'x\ny'"),
    ],
    ids=["in a table", "scored and rejected", "rejected and skipped", "many", "newline"],
)
def test_verify_run_image_twice_is_found_across_tables(tmp_path, images, named):
    run = publish_run(tmp_path, **images)
    assert found(run) == [("runs/r1.json", f"is of a run that holds {named}")]


def test_verify_run_ids_that_differ_in_case_or_space_are_two(tmp_path):
    run = publish_run(tmp_path, scored=("a", "A", "a "), rejected=("\u00e9",), skipped=("e\u0301",))
    assert verify_run(run).problems == []


def test_verify_run_other_number_flagged_than_counted_is_found(tmp_path):
    run = publish_run(tmp_path, flagged=("a", "b"))
    change_record(run, lambda record: record["counts"].update(flagged=1))
    assert found(run) == [("runs/r1.json", "counts 1 flagged, and 2 are in scores")]


# The record.


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda record: record.update(run_id="r2"), "is the record of run 'r2'"),
        (
            lambda record: record["files"].append(record["files"][0]),
            f"lists {SCORES} 2 times",
        ),
        (
            lambda record: record["counts"].update(manifest=5),
            "counts 3 scored, 1 rejected and 2 skipped, which are not the 5 of the manifest",
        ),
        (
            lambda record: record["counts"].update(scored=2, rejected=2),
            "counts 2 scored, and 3 rows in scores",
        ),
        (
            lambda record: record["counts"].update(rejected=2, manifest=7),
            "counts 2 rejected, and 1 rows in rejects",
        ),
        (
            lambda record: record["counts"].update(skipped=0, manifest=4),
            "counts 0 skipped, and 2 rows in skipped",
        ),
        (
            lambda record: record["counts"].update(listed=2),
            "counts 2 listed, and 1 rows in worklist",
        ),
        (
            lambda record: record["counts"].update(overlays=2),
            "counts 2 overlays, and lists 1",
        ),
    ],
)
def test_verify_run_record_that_contradicts_itself_is_found(run, change, what):
    change_record(run, change)
    assert ("runs/r1.json", what) in found(run)


def test_verify_run_record_that_lists_what_was_not_published_does_not_read_it(run, tmp_path):
    (tmp_path / "secret").write_bytes(b"secret")
    entry = {**file_entry(tmp_path, "secret", None), "path": "../secret"}
    change_record(run, lambda record: record["files"].append(entry))
    assert found(run) == [("../secret", "is missing")]


def test_verify_run_record_changed_after_it_was_written_is_found(run):
    record = json.loads(run.read_text())
    was = record["record_sha256"]
    record["precision"] = "mixed_float16"
    run.write_text(json.dumps(record))
    now = record_digest(record)
    assert found(run) == [("runs/r1.json", f"has changed: its digest is {now}, and was {was}")]


def test_verify_run_record_without_a_digest_of_itself_is_found(run):
    record = json.loads(run.read_text())
    del record["record_sha256"]
    run.write_text(json.dumps(record))
    [problem] = verify_run(run).problems
    assert problem.what == f"has changed: its digest is {record_digest(record)}, and was None"


def test_record_digest_survives_writing_and_order():
    record = {"b": [1, 0.1, None], "a": {"y": "é", "x": True}}
    assert record_digest(json.loads(json.dumps(record))) == record_digest(record)
    assert record_digest(dict(reversed(record.items()))) == record_digest(record)
    assert record_digest({**record, "record_sha256": "any"}) == record_digest(record)
    assert record_digest({**record, "b": []}) != record_digest(record)


def test_verify_run_elsewhere_than_in_runs_is_refused(run, output):
    prepared = output / "_staging" / "r1" / "prepared.json"
    prepared.parent.mkdir(parents=True)
    run.rename(prepared)
    with pytest.raises(InputError) as raised:
        verify_run(prepared)
    assert str(raised.value) == (
        f"RUN must be a record, OUTPUT/runs/ID.json. Received: {prepared}."
    )


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (None, "(No such file or directory)"),
        ("", "(JSONDecodeError)"),
        ("[]", "(TypeError)"),
        ("{}", "(KeyError)"),
        (b"{\xff}", "(UnicodeDecodeError)"),
    ],
)
def test_verify_run_that_is_no_record_is_refused(tmp_path, content, what):
    run = tmp_path / "runs" / "r1.json"
    run.parent.mkdir()
    if content is not None:
        run.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(InputError) as raised:
        verify_run(run)
    assert str(run) in str(raised.value)
    assert what in str(raised.value)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (lambda record: record.update(files=["x"]), "files"),
        (lambda record: record.update(files=7), "files"),
        (lambda record: record["files"][0].pop("sha256"), "files"),
        (lambda record: record["files"][0].update(path=["x"]), "files"),
        (lambda record: record["files"][0].update(size_bytes="1"), "files"),
        (lambda record: record["files"][0].update(rows="1"), "files"),
        (lambda record: record.update(counts=[]), "counts"),
        (lambda record: record["counts"].pop("skipped"), "counts.skipped"),
        (lambda record: record["counts"].update(scored="3"), "counts.scored"),
    ],
)
def test_verify_run_record_that_cannot_be_understood_says_where(run, change, field):
    change_record(run, change)
    with pytest.raises(InputError) as raised:
        verify_run(run)
    assert str(raised.value) == (
        f"a run's record must be as `prescreen score` wrote it. Received: {run}, whose {field}"
        " cannot be understood. Restore it, or remove it and what it published."
    )


def test_problem_is_of_a_path_relative_to_output(run, output):
    (output / CSV).unlink()
    assert verify_run(run).problems == [Problem(CSV, "is missing")]
