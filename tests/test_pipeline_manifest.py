"""Manifests: every format reads alike, and what breaks a rule is said in one line."""

import csv
import datetime
import decimal
import gzip
import io
import json
import os
import re
import tempfile
import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import manifest
from pipeline.manifest import (
    CheckedManifest,
    ManifestRow,
    check_manifest,
    image_id_of,
    manifest_columns,
    manifest_format,
    read_row_group,
    resolve_uri,
)
from schemas.errors import InputError
from schemas.tables import manifest_schema

COLUMNS = ("image_id", "uri", "site", "labels", "patient_id")
TABLE = [
    ("a", "one.png", "north", "Effusion|Mass", "17"),
    ("b", "deep/two.png", None, None, "007"),
    (" c ", "gs://bucket/three.png", 'says "no"', "No Finding", None),
    ("é, n°1", "/archive/four,4.png", "two\nlines", None, " 8 "),
    (None, "images.tar.gz#five.png", "naïve", None, "9"),
]
FORMATS = ["csv", "tsv", "jsonl", "ndjson", "parquet", "csv.gz", "tsv.gz", "jsonl.gz", "CSV.GZ"]


def write(path, columns, rows):
    """Writes a table in the format of the path's extension, by other code than the project's."""
    name = str(path).lower()
    if name.endswith("parquet"):
        arrays = [pa.array(values, pa.string()) for values in zip(*rows, strict=True)]
        pq.write_table(pa.table(arrays, columns), path, row_group_size=3)
        return str(path)
    opener = gzip.open if name.endswith(".gz") else open
    with opener(path, "wt", encoding="utf-8", newline="") as file:
        if "json" in name:
            file.writelines(json.dumps(dict(zip(columns, row, strict=True))) + "\n" for row in rows)
        else:
            writer = csv.writer(file, delimiter="\t" if "tsv" in name else ",")
            writer.writerows([columns, *rows])
    return str(path)


def write_bytes(path, content):
    path.write_bytes(content)
    return str(path)


def read(checked):
    return [row for i in range(checked.row_groups) for row in read_row_group(checked.path, i)]


@pytest.fixture
def into(tmp_path):
    return str(tmp_path / "checked" / "manifest.parquet")


@pytest.fixture
def rejects(tmp_path, into):
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


# Formats


@pytest.mark.parametrize("extension", FORMATS)
def test_check_manifest_one_table_in_any_format_gives_the_same_rows(tmp_path, into, extension):
    uri = write(tmp_path / f"manifest.{extension}", COLUMNS, TABLE)
    checked = check_manifest(uri, into=into, carry=["site"])
    assert checked == CheckedManifest(into, 5, 1, ("patient_id", "labels", "site"))
    assert read(checked) == [
        ManifestRow("a", f"{tmp_path}/one.png", ("17", "Effusion|Mass", "north")),
        ManifestRow("b", f"{tmp_path}/deep/two.png", ("007", None, None)),
        ManifestRow(" c ", "gs://bucket/three.png", (None, "No Finding", 'says "no"')),
        ManifestRow("é, n°1", "/archive/four,4.png", (" 8 ", None, "two\nlines")),
        ManifestRow(
            "images.tar.gz#five.png", f"{tmp_path}/images.tar.gz#five.png", ("9", None, "naïve")
        ),
    ]
    assert os.listdir(os.path.dirname(into)) == ["manifest.parquet"]


@pytest.mark.parametrize("extension", ["txt", "lst", "txt.gz"])
def test_check_manifest_text_takes_one_path_a_line(tmp_path, into, extension):
    content = '\ufeffa.png\r\n\n  \n b,"c".png \ngs://bucket/d.png'.encode()
    path = tmp_path / f"m.{extension}"
    path.write_bytes(gzip.compress(content) if extension.endswith("gz") else content)
    checked = check_manifest(str(path), into=into)
    assert read(checked) == [
        ManifestRow("a.png", f"{tmp_path}/a.png", ()),
        ManifestRow(' b,"c".png ', f'{tmp_path}/ b,"c".png ', ()),
        ManifestRow("gs://bucket/d.png", "gs://bucket/d.png", ()),
    ]


def test_check_manifest_writes_the_published_schema(tmp_path, into):
    check_manifest(write(tmp_path / "m.csv", COLUMNS, TABLE), into=into, carry=["site"])
    assert pq.read_schema(into) == manifest_schema(("patient_id", "labels", "site"))


def test_check_manifest_ten_thousand_rows_gives_row_groups_of_4096(tmp_path, into):
    rows = [(f"id{n}", f"{n}.png") for n in range(10_000)]
    uri = write(tmp_path / "m.parquet", ("image_id", "uri"), rows)  # in row groups of 3
    checked = check_manifest(uri, into=into)
    file = pq.ParquetFile(into)
    sizes = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
    assert sizes == [4096, 4096, 1808]
    assert (checked.rows, checked.row_groups) == (10_000, 3)
    assert [row.image_id for row in read(checked)] == [row[0] for row in rows]


def test_check_manifest_csv_byte_order_mark_and_quoted_newlines_are_understood(tmp_path, into):
    content = '\ufeffuri,labels\r\n"a\r\nb.png",x\r\n\r\nc.png,"y\n"\r\n'.encode()
    checked = check_manifest(write_bytes(tmp_path / "m.csv", content), into=into)
    assert [(row.image_id, row.carried) for row in read(checked)] == [
        ("a\r\nb.png", ("x",)),
        ("c.png", ("y\n",)),
    ]


def test_check_manifest_json_lines_a_key_of_the_last_line_is_a_column(tmp_path, into):
    content = b'{"uri": "a"}\n\n{"uri": "b", "image_id": 12, "labels": null}\n'
    content += b'{"uri": "c", "study_date": true, "labels": 1.5}\n'
    checked = check_manifest(write_bytes(tmp_path / "m.jsonl", content), into=into)
    assert checked.carried == ("study_date", "labels")
    assert read(checked) == [
        ManifestRow("a", f"{tmp_path}/a", (None, None)),
        ManifestRow("12", f"{tmp_path}/b", (None, None)),
        ManifestRow("c", f"{tmp_path}/c", ("True", "1.5")),
    ]


STRINGS = [
    pa.string(),
    pa.large_string(),
    pa.string_view(),
    pa.dictionary(pa.int32(), pa.string()),
]


@pytest.mark.parametrize("kind", STRINGS, ids=str)
def test_check_manifest_parquet_any_kind_of_string_is_a_string(tmp_path, into, kind):
    texts = pa.array(["b", "a", "c"])
    texts = texts.dictionary_encode() if pa.types.is_dictionary(kind) else texts.cast(kind)
    path = str(tmp_path / "m.parquet")
    pq.write_table(pa.table({"uri": texts, "image_id": texts, "labels": texts}), path)
    assert read(check_manifest(path, into=into)) == [
        ManifestRow(text, f"{tmp_path}/{text}", (text,)) for text in ("b", "a", "c")
    ]


CARRIED = {
    "int64": (pa.array([17, None]), "17"),
    "uint8": (pa.array([17, None], pa.uint8()), "17"),
    "float": (pa.array([17.0, None]), "17.0"),
    "bool": (pa.array([True, None]), "True"),
    "date": (pa.array([datetime.date(2017, 2, 3), None]), "2017-02-03"),
    "timestamp": (
        pa.array([datetime.datetime(2017, 2, 3, 4, 5), None], pa.timestamp("ns")),
        "2017-02-03 04:05:00",
    ),
    "decimal": (pa.array([decimal.Decimal("1.50"), None]), "1.50"),
    "null": (pa.nulls(2), None),
    "empty string": (pa.array(["", None]), None),
}


@pytest.mark.parametrize("array, text", CARRIED.values(), ids=CARRIED)
def test_check_manifest_parquet_carries_values_as_text(tmp_path, into, array, text):
    path = str(tmp_path / "m.parquet")
    pq.write_table(pa.table({"uri": ["a", "b"], "study_date": array}), path)
    rows = read(check_manifest(path, into=into))
    assert [row.carried for row in rows] == [(text,), (None,)]


def test_check_manifest_parquet_integer_ids_become_decimal_strings(tmp_path, into):
    path = str(tmp_path / "m.parquet")
    pq.write_table(pa.table({"uri": ["a", "b"], "image_id": pa.array([17, None])}), path)
    assert [row.image_id for row in read(check_manifest(path, into=into))] == ["17", "b"]


def test_check_manifest_of_another_scheme_resolves_against_its_folder(into, monkeypatch):
    files = {"mem://bucket/deep/m.csv.gz": gzip.compress(b"uri\na.png\n../b.png\n/c.png\n")}

    def open_file(path, compression_type):
        assert compression_type == "uncompressed"
        return io.BytesIO(files[path])

    monkeypatch.setattr(manifest.FileSystems, "open", open_file)
    checked = check_manifest("mem://bucket/deep/m.csv.gz", into=into)
    assert pq.read_table(checked.path).to_pylist() == [
        {"image_id": "a.png", "uri": "mem://bucket/deep/a.png"},
        {"image_id": "../b.png", "uri": "mem://bucket/b.png"},
        {"image_id": "/c.png", "uri": "/c.png"},
    ]


# Columns


def test_check_manifest_nih_columns_are_understood(tmp_path, into):
    header = ("Image Index", "Finding Labels", "Follow-up #", "Patient ID", "View Position")
    rows = [("00000001_000.png", "Effusion|Mass", "0", "1", "PA")]
    checked = check_manifest(
        write(tmp_path / "nih.csv", header, rows), into=into, carry=["Follow-up #", "labels"]
    )
    assert checked.carried == ("patient_id", "view_position", "labels", "Follow-up #")
    assert read(checked) == [
        ManifestRow(
            "00000001_000.png",
            f"{tmp_path}/00000001_000.png",
            ("1", "PA", "Effusion|Mass", "0"),
        )
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


@pytest.mark.parametrize("extension", ["csv", "jsonl", "parquet"])
def test_check_manifest_without_uri_lists_the_columns(tmp_path, rejects, extension):
    uri = write(tmp_path / f"m.{extension}", ("path", "id"), [("a", "b")])
    assert rejects(uri) == (
        "manifest must have a column 'uri', or be the NIH's with 'Image Index'. Received:"
        " columns 'path', 'id'. Rename the column that holds the paths."
    )


def test_check_manifest_without_header_does_not_tell_the_first_row(tmp_path, rejects):
    uri = write(tmp_path / "m.csv", ("doe/00000001.png", "DOE^JOHN", "19610203"), [("a", "b", "c")])
    message = rejects(uri)
    assert "Received: columns 3 not shown" in message
    assert "doe" not in message.lower()


@pytest.mark.parametrize("name", ["flagged", "uri", "score_Mass", "run_id", "Flagged", ""])
def test_check_manifest_carry_of_a_scores_column_is_rejected(tmp_path, rejects, name):
    uri = write(tmp_path / "m.csv", ("uri", name), [("a", "b")])
    message = rejects(uri, carry=[name])
    assert message.startswith("carry must name a column that the scores table does not have")
    assert f"Received: carry={name!r}" in message


def test_check_manifest_carry_of_a_missing_column_lists_the_columns(tmp_path, rejects):
    uri = write(tmp_path / "m.csv", ("uri", "site"), [("a", "b")])
    assert rejects(uri, carry=["Site"]) == (
        "carry must name a column of the manifest. Received: carry='Site'."
        " Its columns: 'uri', 'site'."
    )


def test_check_manifest_carried_names_apart_by_case_are_rejected(tmp_path, rejects):
    uri = write(tmp_path / "m.csv", ("uri", "labels", "Labels"), [("a", "b", "c")])
    assert "Received: carry='Labels' beside 'labels'" in rejects(uri, carry=["Labels"])


def test_check_manifest_column_twice_is_rejected(tmp_path, rejects):
    uri = write(tmp_path / "m.csv", ("uri", "labels", "labels"), [("a", "b", "c")])
    assert "one column of a name. Received: 2 columns 'labels'" in rejects(uri)


# Uris and ids


@pytest.mark.parametrize(
    "uri, resolved, image_id",
    [
        ("a.png", "/m/a.png", "a.png"),
        ("./x/../a//b.png", "/m/a/b.png", "a/b.png"),
        ("../a.png", "/a.png", "../a.png"),
        ("/m/x/a.png", "/m/x/a.png", "x/a.png"),
        ("/mm/a.png", "/mm/a.png", "/mm/a.png"),
        ("gs://b/x/../a.png", "gs://b/x/../a.png", "gs://b/x/../a.png"),
        ("a%20b#c?.png", "/m/a%20b#c?.png", "a%20b#c?.png"),
        ("x/../t.tar#a//../b.png", "/m/t.tar#a//../b.png", "t.tar#a//../b.png"),
        ("t.TGZ#a//b#c", "/m/t.TGZ#a//b#c", "t.TGZ#a//b#c"),
        ("..", "/", ".."),
        (" a.png ", "/m/ a.png ", " a.png "),
    ],
)
def test_resolve_uri_local_folder(uri, resolved, image_id):
    assert (resolve_uri(uri, "/m"), image_id_of(uri, "/m")) == (resolved, image_id)


@pytest.mark.parametrize(
    "uri, resolved, image_id",
    [
        ("a.png", "gs://b/f/a.png", "a.png"),
        ("./x/../a.png", "gs://b/f/a.png", "a.png"),
        ("../../../a.png", "gs://b/a.png", "../../../a.png"),
        ("x//a.png", "gs://b/f/x//a.png", "x//a.png"),
        ("gs://b/f/g/a.png", "gs://b/f/g/a.png", "g/a.png"),
        ("/local/../a.png", "/a.png", "/local/../a.png"),
        ("t.tar.gz#../a.png", "gs://b/f/t.tar.gz#../a.png", "t.tar.gz#../a.png"),
    ],
)
def test_resolve_uri_remote_folder(uri, resolved, image_id):
    assert resolve_uri(uri, "gs://b/f") == resolved
    assert image_id_of(uri, "gs://b/f") == image_id


def test_check_manifest_relative_path_and_symlink_are_made_absolute_as_typed(
    tmp_path, into, monkeypatch
):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    write(tmp_path / "real" / "m.csv", ("uri",), [("a.png",)])
    monkeypatch.chdir(tmp_path)
    assert read(check_manifest("link/m.csv", into=into))[0].uri == f"{tmp_path}/link/a.png"


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
    uri = write_bytes(tmp_path / "m.txt", b"doe/a.png\nb.png\ndoe/./a.png\n")
    message = rejects(uri)
    assert "Received: 1 more than once, first rows 1 and 3. Remove" in message
    assert "doe" not in message


def test_check_manifest_repeated_id_of_an_empty_cell_is_named_by_row(tmp_path, rejects):
    rows = [("x", "a.png"), ("x", "b.png"), ("", "../doe.png"), ("", "../doe.png")]
    message = rejects(write(tmp_path / "m.csv", ("image_id", "uri"), rows))
    assert "Received: 2 more than once, first 'x' (rows 1 and 2), rows 3 and 4." in message


def test_check_manifest_repeated_nih_image_is_named(tmp_path, rejects):
    uri = write(tmp_path / "m.csv", ("Image Index",), [("1.png",), ("2.png",), ("1.png",)])
    assert "first '1.png' (rows 1 and 3)." in rejects(uri)


def test_check_manifest_repeated_id_far_apart_is_found(tmp_path, rejects):
    rows = [(str(n % 9_999), f"{n}.png") for n in range(10_000)]
    uri = write(tmp_path / "m.tsv", ("image_id", "uri"), rows)
    assert "1 more than once, first '0' (rows 1 and 10000)" in rejects(uri)


@pytest.mark.parametrize("name", ["*", "[1]", "?", "run_id=7", "image_id=8"])
def test_check_manifest_into_a_folder_named_like_a_pattern_reads_that_alone(tmp_path, name):
    uri = write(tmp_path / "m.csv", ("uri",), [("a",), ("b",)])
    for folder in ("1", name):  # the first is what the second would match
        checked = check_manifest(uri, into=str(tmp_path / folder / "m.parquet"))
        assert [row.image_id for row in read(checked)] == ["a", "b"]


@pytest.mark.parametrize("extension", ["csv", "jsonl", "parquet"])
def test_check_manifest_empty_uris_are_counted(tmp_path, rejects, extension):
    rows = [(str(n), None if n % 3 == 1 else f"{n}.png") for n in range(10_000)]
    uri = write(tmp_path / f"m.{extension}", ("image_id", "uri"), rows)
    assert rejects(uri) == (
        "uri must not be empty. Received: 3333 empty, first in row 2, 5, 8 (from 1, without the"
        " header). Fill them in or remove the rows."
    )


# Files that cannot be read as they say


@pytest.mark.parametrize("name", ["m.csv", "m.tsv.gz", "m.jsonl", "m.txt", "m.parquet"])
def test_check_manifest_empty_is_rejected(tmp_path, rejects, name):
    path = tmp_path / name
    if name.endswith("parquet"):
        pq.write_table(pa.table({"uri": pa.array([], pa.string())}), path)
    else:
        path.write_bytes(gzip.compress(b"") if name.endswith("gz") else b"")
    assert rejects(path) == (
        f"manifest must have at least one row. Received: manifest={str(path)!r}, without any."
    )


@pytest.mark.parametrize("content", [b"uri\n", b"uri\r\n\r\n", b"\xef\xbb\xbfuri,image_id"])
def test_check_manifest_header_alone_is_rejected(tmp_path, rejects, content):
    assert "at least one row" in rejects(write_bytes(tmp_path / "m.csv", content))


@pytest.mark.parametrize("name", ["m.xlsx", "m", "m.gz", "m.csv.zip"])
def test_check_manifest_unknown_extension_names_the_known(tmp_path, rejects, name):
    assert rejects(tmp_path / name) == (
        "manifest must end in one of .csv, .tsv, .jsonl, .ndjson, .parquet, .txt, .lst, or these"
        f" with .gz. Received: manifest={str(tmp_path / name)!r}."
    )


def test_manifest_format_gzipped_parquet_is_rejected():
    with pytest.raises(InputError, match=r"Parquet without gzip around it.*'m\.parquet\.gz'"):
        manifest_format("m.parquet.gz")


@pytest.mark.parametrize("name", ["missing.csv", "missing.parquet", "nosuch://bucket/m.csv"])
def test_check_manifest_missing_file_is_rejected(tmp_path, rejects, name, monkeypatch):
    monkeypatch.chdir(tmp_path)
    message = rejects(name)
    assert message.startswith("manifest must be a file that can be read. Received: manifest=")
    assert name in message


def test_check_manifest_folder_is_rejected(tmp_path, rejects):
    (tmp_path / "m.csv").mkdir()
    assert "IsADirectoryError" in rejects(tmp_path / "m.csv")


def test_check_manifest_folder_of_no_utf8_name_is_rejected(tmp_path, rejects):
    folder = os.fsencode(tmp_path) + b"/\xff"
    os.mkdir(folder)
    with open(folder + b"/m.csv", "wb") as file:
        file.write(b"uri\na\n")
    assert "folder whose name is UTF-8" in rejects(os.fsdecode(folder + b"/m.csv"))


def test_check_manifest_onto_itself_is_refused(tmp_path):
    uri = write(tmp_path / "m.parquet", ("uri",), [("a",)])
    with pytest.raises(ValueError, match="into must not be the manifest itself"):
        check_manifest(uri, into=uri)
    assert manifest_columns(uri) == ["uri"]


BAD_TEXT = {
    "too many cells": ("csv", b"uri,x\na,b\ndoe,c,d\n", "line 3 .* must have 2 cells.*: 3"),
    "too few cells": ("csv", b'uri,x\n"a\nb",b\ndoe\n', "line 4 .* must have 2 cells.*: 1"),
    "tsv cells": ("tsv", b"uri\tx\ndoe\n", "line 2 .* must have 2 cells.*: 1"),
    "open quote": ("csv", b'uri\na\n"doe\nb\n', "line 3 .* quoted as CSV.*unexpected end"),
    "text after quote": ("csv", b'uri\n"a"doe\n', "line 2 .* quoted as CSV"),
    "lone carriage return": ("csv", b"uri\rdoe\ra\r", "line 1 .* quoted as CSV.*new-line"),
    "NUL": ("csv", b"uri\na\ndo\0e\n", "line 3 .* must be text. Received: a NUL byte"),
    "NUL in text": ("txt", b"a\ndo\0e\n", "line 2 .* must be text. Received: a NUL byte"),
    "Latin-1": ("csv", b"uri\na\ndoe\xe9\n", "line 3 .* must be UTF-8. Received: byte 0xe9"),
    "UTF-16": ("csv", "uri\na\n".encode("utf-16"), "line 1 .* Save the file as UTF-8"),
    "no JSON": ("jsonl", b'{"uri": "a"}\n{"uri": doe}\n', "line 2 .* must be JSON"),
    "deep JSON": ("jsonl", b"[" * 200_000, "line 1 .* must be JSON. Received: Recursion"),
    "JSON list": ("jsonl", b'\n["doe"]\n', "line 2 .* must be a JSON object. Received: a list"),
    "JSON uri": ("jsonl", b'{"uri": 17}', "line 1 .* wrong type: 'uri' must be a string. .* int"),
    "JSON id float": ("jsonl", b'{"uri": "a", "image_id": 1.0}', "'image_id' must be .* float"),
    "JSON id bool": ("jsonl", b'{"uri": "a", "image_id": true}', "'image_id' must be .* bool"),
    "JSON labels": ("jsonl", b'{"uri": "a", "labels": ["doe"]}', "'labels' must be .* a list"),
    "JSON NUL": ("jsonl", rb'{"uri": "doe\u0000"}', "line 1 .* must hold text in 'uri'"),
    "JSON surrogate": ("jsonl", rb'{"uri": "doe\ud800"}', "line 1 .* must hold text in 'uri'"),
}


@pytest.mark.parametrize("extension, content, match", BAD_TEXT.values(), ids=BAD_TEXT)
def test_check_manifest_bad_line_is_named_by_number(tmp_path, rejects, extension, content, match):
    message = rejects(write_bytes(tmp_path / f"m.{extension}", content))
    assert re.search(match, message), message
    assert "doe" not in message


def test_check_manifest_line_without_end_is_rejected(tmp_path, rejects, monkeypatch):
    monkeypatch.setattr(manifest, "_MAX_LINE_BYTES", 100)
    uri = write_bytes(tmp_path / "m.txt", b"a\n" + b"x" * 101)
    assert "line 2 of the manifest must be shorter than 100 bytes" in rejects(uri)


def test_check_manifest_cell_of_a_million_characters_is_read(tmp_path, into):
    uri = write(tmp_path / "m.csv", ("uri", "labels"), [("a", "x" * 1_000_000)])
    assert len(read(check_manifest(uri, into=into))[0].carried[0]) == 1_000_000


@pytest.mark.parametrize("damage", ["cut", "flipped", "no gzip"])
def test_check_manifest_damaged_gzip_is_rejected(tmp_path, rejects, damage):
    content = gzip.compress(b"uri\n" + b"".join(b"%d.png\n" % n for n in range(5_000)))
    damaged = {
        "cut": content[:-20],
        "flipped": content[:-6] + b"\0\0" + content[-4:],
        "no gzip": b"uri\na\n",
    }
    message = rejects(write_bytes(tmp_path / "m.csv.gz", damaged[damage]))
    assert "must be a whole gzip file. Received: damaged or cut short after line" in message


def test_check_manifest_two_gzip_members_are_read_both(tmp_path, into):
    content = gzip.compress(b"uri\na\n") + gzip.compress(b"b\n")
    checked = check_manifest(write_bytes(tmp_path / "m.csv.gz", content), into=into)
    assert [row.image_id for row in read(checked)] == ["a", "b"]


@pytest.mark.parametrize("damage", ["junk", "cut"])
def test_check_manifest_damaged_parquet_is_rejected(tmp_path, rejects, damage):
    path = tmp_path / "m.parquet"
    write(path, ("uri",), [("a",)])
    path.write_bytes(b"uri\na\n" if damage == "junk" else path.read_bytes()[:-10])
    assert "must be whole, valid Parquet. Received: manifest=" in rejects(path)


BAD_TYPES = {
    "uri int": ("uri", pa.array([1]), "'uri' must be a string. Received: int64"),
    "uri binary": ("uri", pa.array([b"a"]), "'uri' must be a string. Received: binary"),
    "id float": ("image_id", pa.array([1.0]), "must be a string or an integer. Received: double"),
    "id list": ("image_id", pa.array([["a"]]), "must be a string or an integer. Received: list"),
    "labels list": ("labels", pa.array([["a"]]), "a boolean or a date. Received: list"),
    "labels struct": ("labels", pa.array([{"a": 1}]), "a boolean or a date. Received: struct"),
}


@pytest.mark.parametrize("column, array, match", BAD_TYPES.values(), ids=BAD_TYPES)
def test_check_manifest_parquet_wrong_type_is_rejected(tmp_path, rejects, column, array, match):
    path = tmp_path / "m.parquet"
    pq.write_table(pa.table({"uri": ["a"]} | {column: array}), path)
    message = rejects(path)
    assert message.startswith("manifest has a column of the wrong type")
    assert match in message


@pytest.mark.parametrize("cell", [b"doe\0", b"doe\xff"], ids=["NUL", "no UTF-8"])
def test_check_manifest_parquet_cell_that_is_no_text_is_rejected(tmp_path, rejects, cell):
    offsets = pa.py_buffer(b"".join(n.to_bytes(4, "little") for n in (0, 1, 1 + len(cell))))
    array = pa.StringArray.from_buffers(2, offsets, pa.py_buffer(b"a" + cell))
    path = tmp_path / "m.parquet"
    pq.write_table(pa.table({"uri": array}), path)
    message = rejects(path)
    assert message.startswith("manifest must hold text in column 'uri'. Received:")
    assert "doe" not in message


# Whatever the text


TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)
WORDS = TEXT.filter(bool)
ROWS = st.lists(st.tuples(WORDS, WORDS, TEXT), min_size=1, unique_by=lambda row: row[0])


@pytest.mark.parametrize("extension", ["csv", "tsv", "jsonl", "parquet"])
@settings(max_examples=25, deadline=None)
@given(rows=ROWS)
def test_check_manifest_any_text_reads_back_exactly(extension, rows):
    with tempfile.TemporaryDirectory() as folder:
        uri = write(f"{folder}/m.{extension}", ("image_id", "uri", "labels"), rows)
        checked = check_manifest(uri, into=f"{folder}/into.parquet")
        assert read(checked) == [
            ManifestRow(image_id, resolve_uri(uri, folder), (labels or None,))
            for image_id, uri, labels in rows
        ]


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
