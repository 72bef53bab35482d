"""Checking: rows come back as the manifest has them, and a broken rule is one line of error."""

import gzip
import io
import json
import os
import re
import tempfile
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.overlays import overlay_name
from pipeline import manifest_formats
from pipeline.listing import list_images
from pipeline.manifest import CheckedManifest, ManifestRow, check_manifest, read_row_group
from pipeline.manifest_formats import write_rows
from pipeline.source import read_source
from schemas.errors import InputError
from schemas.rejects import ImageError
from schemas.tables import manifest_schema


def write(path, columns, rows):
    write_rows(rows, columns, str(path))
    return str(path)


def read(checked):
    return [row for i in range(checked.row_groups) for row in read_row_group(checked.path, i)]


@pytest.fixture
def into(tmp_path):
    return str(tmp_path / "checked" / "manifest.parquet")


@pytest.fixture
def rejects(into):
    """Returns a function that gives the error of a manifest, which leaves nothing behind."""

    def error_of(uri, **options):
        with pytest.raises(InputError) as caught:
            check_manifest(str(uri), into=into, **options)
        folder = os.path.dirname(into)
        assert not os.path.exists(folder) or os.listdir(folder) == []
        message = str(caught.value)
        assert "\n" not in message
        return message

    return error_of


# Rows


def test_check_manifest_gives_the_rows_in_the_published_schema(tmp_path, into):
    columns = ("image_id", "uri", "site", "labels", "patient_id")
    rows = [
        ("a", "one.png", "north", "Effusion|Mass", "17"),
        (" c ", "gs://bucket/three.png", 'says "no"', None, None),
        (None, "images.tar.gz#four.png", None, "No Finding", " 8 "),
    ]
    checked = check_manifest(write(tmp_path / "m.csv", columns, rows), into=into, carry=["site"])
    assert checked == CheckedManifest(into, 3, 1, ("patient_id", "labels", "site"))
    tar = "images.tar.gz#four.png"
    assert read(checked) == [
        ManifestRow("a", f"{tmp_path}/one.png", ("17", "Effusion|Mass", "north")),
        ManifestRow(" c ", "gs://bucket/three.png", (None, None, 'says "no"')),
        ManifestRow(tar, f"{tmp_path}/{tar}", (" 8 ", "No Finding", None)),
    ]
    assert pq.read_schema(into) == manifest_schema(("patient_id", "labels", "site"))
    assert os.listdir(os.path.dirname(into)) == ["manifest.parquet"]


def test_check_manifest_of_another_scheme_resolves_against_its_folder(into, monkeypatch):
    files = {"mem://bucket/deep/m.csv.gz": gzip.compress(b"uri\na.png\n../b.png\n/c.png\n")}

    def open_file(path, compression_type):
        return io.BytesIO(files[path])

    monkeypatch.setattr(manifest_formats.FileSystems, "open", open_file)
    checked = check_manifest("mem://bucket/deep/m.csv.gz", into=into)
    assert pq.read_table(checked.path).to_pylist() == [
        {"image_id": "a.png", "uri": "mem://bucket/deep/a.png"},
        {"image_id": "../b.png", "uri": "mem://bucket/b.png"},
        {"image_id": "/c.png", "uri": "/c.png"},
    ]


def test_check_manifest_relative_path_and_symlink_are_made_absolute_as_typed(
    tmp_path, into, monkeypatch
):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    write(tmp_path / "real" / "m.csv", ("uri",), [("a.png",)])
    monkeypatch.chdir(tmp_path)
    assert read(check_manifest("link/m.csv", into=into))[0].uri == f"{tmp_path}/link/a.png"


@pytest.mark.parametrize("name", ["*", "[1]", "run_id=7", "image_id=8"])
def test_check_manifest_into_a_folder_named_like_a_pattern_reads_that_alone(tmp_path, name):
    uri = write(tmp_path / "m.csv", ("uri",), [("a",), ("b",)])
    for folder in ("1", name):  # the first is what the second would match
        checked = check_manifest(uri, into=str(tmp_path / folder / "m.parquet"))
        assert [row.image_id for row in read(checked)] == ["a", "b"]


def test_check_manifest_nih_labels_reads_every_row_in_bounded_time(nih_labels, into):
    start = time.monotonic()
    checked = check_manifest(str(nih_labels), into=into)
    assert time.monotonic() - start < 20
    assert checked == CheckedManifest(into, 112_120, 28, ("patient_id", "view_position", "labels"))
    folder = os.path.dirname(os.path.abspath(nih_labels))
    assert read_row_group(into, 0)[:2] == [
        ManifestRow("00000001_000.png", f"{folder}/00000001_000.png", ("1", "PA", "Cardiomegaly")),
        ManifestRow(
            "00000001_001.png",
            f"{folder}/00000001_001.png",
            ("1", "PA", "Cardiomegaly|Emphysema"),
        ),
    ]
    assert len(read_row_group(into, 27)) == 112_120 - 27 * 4096


# Columns


def test_check_manifest_nih_columns_are_understood(tmp_path, into):
    header = ("Image Index", "Finding Labels", "Follow-up #", "Patient ID", "View Position")
    rows = [("00000001_000.png", "Effusion|Mass", "0", "1", "PA")]
    checked = check_manifest(
        write(tmp_path / "nih.csv", header, rows), into=into, carry=["Follow-up #", "labels"]
    )
    assert checked.carried == ("patient_id", "view_position", "labels", "Follow-up #")
    carried = ("1", "PA", "Effusion|Mass", "0")
    assert read(checked) == [
        ManifestRow("00000001_000.png", f"{tmp_path}/00000001_000.png", carried)
    ]


def test_check_manifest_nih_columns_mean_nothing_beside_a_uri(tmp_path, into):
    uri = write(tmp_path / "m.csv", ("uri", "Image Index", "Patient ID"), [("a", "b", "c")])
    checked = check_manifest(uri, into=into)
    assert checked.carried == ()
    assert read(checked) == [ManifestRow("a", f"{tmp_path}/a", ())]


def test_check_manifest_carry_keeps_the_order_given_once_each(tmp_path, into):
    uri = write(tmp_path / "m.csv", ("z", "labels", "uri", "y"), [("1", "2", "a", "3")])
    checked = check_manifest(uri, into=into, carry=["z", "y", "labels", "z"])
    assert checked.carried == ("labels", "z", "y")
    assert read(checked)[0].carried == ("2", "1", "3")


def test_check_manifest_without_uri_lists_the_columns(tmp_path, rejects):
    assert rejects(write(tmp_path / "m.csv", ("path", "Site name"), [("a", "b")])) == (
        "manifest must have a column 'uri', or be the NIH's with 'Image Index'. Received:"
        " columns 'path', 'Site name'. Rename the column that holds the paths."
    )


def test_check_manifest_without_header_does_not_tell_the_first_row(tmp_path, rejects):
    uri = write(tmp_path / "m.csv", ("doe/00000001.png", "DOE^JOHN", "19610203"), [("a", "b", "c")])
    message = rejects(uri)
    assert "Received: columns 3 of other characters. Rename" in message
    assert "doe" not in message.lower()


@pytest.mark.parametrize("carry", ["flagged", "uri", "score_Mass", "run_id", "Flagged", "Labels"])
def test_check_manifest_carry_of_a_scores_column_is_rejected(tmp_path, rejects, carry):
    uri = write(tmp_path / "m.csv", ("uri", carry), [("a", "b")])
    assert rejects(uri, carry=[carry]) == (
        "carry must name a column that the scores table does not have or use already, in any case."
        f" Received: carry={carry!r}. Rename it in the manifest."
    )


def test_check_manifest_carry_of_two_names_apart_by_case_is_rejected(tmp_path, rejects):
    uri = write(tmp_path / "m.csv", ("uri", "site", "Site"), [("a", "b", "c")])
    assert "Received: carry='Site'." in rejects(uri, carry=["site", "Site"])


def test_check_manifest_carry_of_a_missing_column_lists_the_columns(tmp_path, rejects):
    uri = write(tmp_path / "m.csv", ("uri", "site"), [("a", "b")])
    assert rejects(uri, carry=["Site"]) == (
        "carry must name a column of the manifest. Received: carry='Site'."
        " Its columns: 'uri', 'site'."
    )


@pytest.mark.parametrize("extension", ["csv", "parquet"])
def test_check_manifest_column_twice_is_rejected(tmp_path, rejects, extension):
    uri = write(tmp_path / f"m.{extension}", ("uri", "labels", "labels"), [("a", "b", "c")])
    assert rejects(uri) == (
        "manifest must have one column of a name. Received: 2 columns 'labels'."
        " Rename or remove one."
    )


# Ids and uris


def test_check_manifest_ids_apart_by_case_or_normal_form_are_different(tmp_path, into):
    ids = ["a", "A", "\u00e9", "e\u0301", "a "]
    uri = write(tmp_path / "m.csv", ("image_id", "uri"), [(i, f"{n}") for n, i in enumerate(ids)])
    assert [row.image_id for row in read(check_manifest(uri, into=into))] == ids


def test_check_manifest_repeated_ids_names_the_first_three_and_their_number(tmp_path, rejects):
    ids = ["d", "c", "b", "a", "x", "a", "b", "c", "d", "d"]
    uri = write(tmp_path / "m.csv", ("image_id", "uri"), [(i, f"{n}") for n, i in enumerate(ids)])
    assert rejects(uri) == (
        "image_id must be unique. Received: 4 more than once, first 'd' (rows 1 and 10), 'c'"
        " (rows 2 and 8), 'b' (rows 3 and 7). Remove the rows that repeat one, or give each its"
        " own id."
    )


def test_check_manifest_repeated_paths_without_ids_are_named_by_row(tmp_path, rejects):
    (tmp_path / "m.txt").write_text("doe/a.png\nb.png\ndoe/./a.png\n")
    message = rejects(tmp_path / "m.txt")
    assert "Received: 1 more than once, first rows 1 and 3. Remove" in message
    assert "doe" not in message


def test_check_manifest_repeated_id_far_apart_is_found(tmp_path, rejects):
    rows = [(str(n % 9_999), f"{n}.png") for n in range(10_000)]
    uri = write(tmp_path / "m.tsv", ("image_id", "uri"), rows)
    assert "1 more than once, first '0' (rows 1 and 10000)" in rejects(uri)


def test_check_manifest_empty_uris_are_counted(tmp_path, rejects):
    rows = [(str(n), None if n % 3 == 1 else f"{n}.png") for n in range(10_000)]
    assert rejects(write(tmp_path / "m.jsonl", ("image_id", "uri"), rows)) == (
        "uri must not be empty. Received: 3333 empty, first in row 2, 5, 8 (from 1, without the"
        " header). Fill them in or remove the rows."
    )


# Files


@pytest.mark.parametrize(
    "extension, content",
    [("csv", ""), ("csv", "uri\r\n\r\n"), ("csv", "\ufeffuri,id"), ("txt", "\n"), ("jsonl", "\n")],
)
def test_check_manifest_empty_is_rejected(tmp_path, rejects, extension, content):
    path = tmp_path / f"m.{extension}"
    path.write_text(content)
    assert rejects(path) == (
        f"manifest must have at least one row. Received: manifest={str(path)!r}, without any."
    )


def test_check_manifest_empty_parquet_is_rejected(tmp_path, rejects):
    assert "at least one row" in rejects(write(tmp_path / "m.parquet", ("uri",), []))


def test_check_manifest_broken_halfway_leaves_nothing(tmp_path, rejects):
    path = tmp_path / "m.csv"
    path.write_text("uri\n" + "".join(f"{n}\n" for n in range(9_000)) + "a,b\n")
    assert "line 9002 of the manifest must have 1 cells. Received: 2." in rejects(path)


def test_check_manifest_in_a_folder_of_no_utf8_name_is_rejected(tmp_path, rejects):
    folder = os.fsencode(tmp_path) + b"/\xff"
    os.mkdir(folder)
    with open(folder + b"/m.csv", "wb") as file:
        file.write(b"uri\na\n")
    assert "names of files and folders in UTF-8" in rejects(os.fsdecode(folder + b"/m.csv"))


@pytest.mark.parametrize(
    ("column", "values"),
    [
        pytest.param("uri", [1, 2], id="uri of numbers"),
        pytest.param("image_id", [1, 2], id="ids of numbers"),
        pytest.param("image_id", [1.0, 2.0], id="ids of floats"),
        pytest.param("uri", [["a"], ["b"]], id="uri of lists"),
    ],
)
@pytest.mark.parametrize("extension", [".parquet", ".jsonl"])
def test_check_manifest_wrong_type_is_refused(tmp_path, extension, column, values):
    table = {"uri": ["a.png", "b.png"], "image_id": ["1", "2"]} | {column: values}
    path = tmp_path / f"m{extension}"
    if extension == ".parquet":
        pq.write_table(pa.table(table), path)
    else:
        rows = [dict(zip(table, row, strict=True)) for row in zip(*table.values(), strict=True)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(InputError, match=f"must have (a string|strings) in '{column}'"):
        check_manifest(str(path), into=str(tmp_path / "checked.parquet"))
    assert not (tmp_path / "checked.parquet").exists()


# Hostile names


HOSTILE_NAMES = [
    "new\nline.png",
    "return\rcarriage\r\n.png",
    "'single' \"double\".png",
    "=1+1,;\t|.png",
    "..png",
    "...png",
    " .png",
    "-.png",
    "#.png",
    "a.tarball#.png",
    "a.tgz.b#c#d.png",
    "%2e%2e%2f.png",
    "$(doe)`doe`.png",
    "*[0]?.png",
    "\x1b[31m\x7f.png",
    "\u202egnp.png",
    "Case.png",
    "case.png",
    "CASE.png",
    "x" * 251 + ".png",
    "\u80f8" * 83 + "_.png",
]


@pytest.mark.parametrize("extension", ["csv", "tsv", "jsonl", "csv.gz", "parquet"])
def test_check_manifest_of_files_with_hostile_names_names_each_file(tmp_path, extension):
    for name in HOSTILE_NAMES:
        (tmp_path / name).write_bytes(name.encode())
    manifest = str(tmp_path / f"manifest.{extension}")
    assert list_images([str(tmp_path)], output=manifest).rows == len(HOSTILE_NAMES)

    rows = read(check_manifest(manifest, into=str(tmp_path / "checked" / "m.parquet")))

    assert sorted(row.image_id for row in rows) == sorted(HOSTILE_NAMES)
    contents = {row.image_id: read_source(row.uri).data.decode() for row in rows}
    assert contents == {name: name for name in HOSTILE_NAMES}
    overlays = {overlay_name(row.image_id, "Mass") for row in rows}
    assert len({name.casefold() for name in overlays}) == len(HOSTILE_NAMES)
    assert all(re.fullmatch(r"[0-9a-f]{2}/[^/\0]{1,199}", name) for name in overlays)


@pytest.mark.parametrize("name", ["a.tar#.png", "a.tgz#b#c.png"])
def test_file_whose_name_is_that_of_a_member_is_listed_and_not_found(tmp_path, name):
    (tmp_path / name).write_bytes(b"")
    list_images([str(tmp_path)], output=str(tmp_path / "m.csv"))

    [row] = read(check_manifest(str(tmp_path / "m.csv"), into=str(tmp_path / "m.parquet")))

    assert row.image_id == name
    with pytest.raises(ImageError, match="not_found"):
        read_source(row.uri)


NAMES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0/"), min_size=1)


@pytest.mark.parametrize("extension", ["csv", "tsv", "jsonl", "parquet"])
@settings(max_examples=15, deadline=None)
@given(names=st.sets(NAMES, min_size=1))
def test_check_manifest_any_names_are_the_ids_in_any_format(extension, names):
    with tempfile.TemporaryDirectory() as folder:
        uri = write(Path(folder, f"m.{extension}"), ("image_id", "uri"), [(n, n) for n in names])
        rows = read(check_manifest(uri, into=f"{folder}/checked.parquet"))
    assert [row.image_id for row in rows] == list(names)
    assert all(
        os.path.dirname(row.uri) == folder for row in rows if row.image_id not in (".", "..")
    )


@pytest.mark.parametrize(
    "extension, content",
    [
        ("txt", b"doe\xff.png\n"),
        ("csv", b"uri\ndoe\xff.png\n"),
        ("tsv", b"uri\ndoe\xff.png\n"),
        ("csv.gz", gzip.compress(b"uri\ndoe\xff.png\n")),
        ("jsonl", b'{"uri": "doe\xff.png"}\n'),
        ("jsonl", b'{"uri": "doe\\udcff.png"}\n'),
        ("jsonl", b'{"uri": "doe\\ud800.png"}\n'),
    ],
    ids=["text", "CSV", "TSV", "gzip", "JSON bytes", "JSON escape", "JSON surrogate"],
)
def test_check_manifest_name_that_is_no_utf8_is_rejected(tmp_path, rejects, extension, content):
    path = tmp_path / f"m.{extension}"
    path.write_bytes(content)
    message = rejects(path)
    assert "UTF-8" in message
    assert "doe" not in message
