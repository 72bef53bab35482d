"""Formats: every one reads alike, writes what it reads, and says which line is bad."""

import csv
import datetime
import decimal
import gzip
import io
import json
import re
import tempfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import manifest_formats
from pipeline.manifest_formats import manifest_columns, manifest_format, read_rows, write_rows
from schemas.errors import InputError

COLUMNS = ["id", "uri", "labels"]
TABLE = [
    ("a", "one.png", "Effusion|Mass"),
    (" c ", "gs://bucket/three.png", 'says "no"'),
    ("é, n°1", "/archive/four,4.png", "two\nlines"),
    (None, "images.tar.gz#five.png", "007"),
]
EXTENSIONS = ["csv", "tsv", "jsonl", "ndjson", "parquet", "csv.gz", "tsv.gz", "jsonl.gz", "CSV.GZ"]


def write_otherwise(path):
    """Writes `TABLE` by other code than the project's."""
    name = str(path).lower()
    if name.endswith("parquet"):
        arrays = [pa.array(values) for values in zip(*TABLE, strict=True)]
        pq.write_table(pa.table(arrays, COLUMNS), path, row_group_size=3)
        return
    opener = gzip.open if name.endswith(".gz") else open
    with opener(path, "wt", encoding="utf-8", newline="") as file:
        if "json" in name:
            file.writelines(json.dumps(dict(zip(COLUMNS, r, strict=True))) + "\n" for r in TABLE)
        else:
            writer = csv.writer(file, delimiter="\t" if "tsv" in name else ",")
            writer.writerows([COLUMNS, *TABLE])


def write_bytes(path, content):
    path.write_bytes(content)
    return str(path)


def write_parquet(path, **columns):
    pq.write_table(pa.table(columns), path)
    return str(path)


def read(uri):
    uri = str(uri)
    return list(read_rows(uri, manifest_columns(uri)))


def error_of(uri):
    with pytest.raises(InputError) as caught:
        read(uri)
    message = str(caught.value)
    assert "\n" not in message
    return message


# Reading


@pytest.mark.parametrize("extension", EXTENSIONS)
def test_read_rows_one_table_in_any_format_gives_the_same_rows(tmp_path, extension):
    path = tmp_path / f"m.{extension}"
    write_otherwise(path)
    assert manifest_columns(str(path)) == COLUMNS
    assert read(path) == TABLE
    expected = [(labels, image_id, labels) for image_id, _, labels in TABLE]
    assert list(read_rows(str(path), ["labels", "id", "labels"])) == expected


@pytest.mark.parametrize("extension", ["txt", "lst", "txt.gz"])
def test_read_rows_text_takes_one_path_a_line(tmp_path, extension):
    content = '\ufeffa.png\r\n\n  \n b,"c".png \ngs://bucket/d.png'.encode()
    content = gzip.compress(content) if extension.endswith("gz") else content
    uri = write_bytes(tmp_path / f"m.{extension}", content)
    assert manifest_columns(uri) == ["uri"]
    assert read(uri) == [("a.png",), (' b,"c".png ',), ("gs://bucket/d.png",)]


def test_read_rows_csv_byte_order_mark_and_quoted_newlines_are_understood(tmp_path):
    content = '\ufeffuri,labels\r\n"a\r\nb.png",x\r\n\r\nc.png,"y\n"\r\n'.encode()
    uri = write_bytes(tmp_path / "m.csv", content)
    assert manifest_columns(uri) == ["uri", "labels"]
    assert read(uri) == [("a\r\nb.png", "x"), ("c.png", "y\n")]


def test_read_rows_json_lines_a_key_of_the_last_line_is_a_column(tmp_path):
    content = b'{"uri": "a"}\n\n{"uri": "", "id": 12}\n{"uri": "c", "date": true, "id": 1.5}\n'
    uri = write_bytes(tmp_path / "m.jsonl", content)
    assert manifest_columns(uri) == ["uri", "id", "date"]
    assert read(uri) == [("a", None, None), (None, "12", None), ("c", "1.5", "true")]


VALUES = {
    "large string": (pa.array(["a", ""], pa.large_string()), "a"),
    "string view": (pa.array(["a", ""], pa.string_view()), "a"),
    "dictionary": (pa.array(["a", None]).dictionary_encode(), "a"),
    "binary": (pa.array([b"a", None]), "a"),
    "int": (pa.array([17, None]), "17"),
    "float": (pa.array([17.0, None]), "17"),
    "bool": (pa.array([True, None]), "true"),
    "date": (pa.array([datetime.date(2017, 2, 3), None]), "2017-02-03"),
    "timestamp": (
        pa.array([datetime.datetime(2017, 2, 3, 4, 5), None]),
        "2017-02-03 04:05:00.000000",
    ),
    "decimal": (pa.array([decimal.Decimal("1.50"), None]), "1.50"),
    "null": (pa.nulls(2), None),
}


@pytest.mark.parametrize("array, text", VALUES.values(), ids=VALUES)
def test_read_rows_parquet_gives_values_as_text(tmp_path, array, text):
    assert read(write_parquet(tmp_path / "m.parquet", x=array)) == [(text,), (None,)]


def test_read_rows_two_gzip_members_are_read_both(tmp_path):
    content = gzip.compress(b"uri\na\n") + gzip.compress(b"b\n")
    assert read(write_bytes(tmp_path / "m.csv.gz", content)) == [("a",), ("b",)]


def test_read_rows_of_another_scheme(monkeypatch):
    files = {"mem://bucket/m.csv.gz": gzip.compress(b"uri\na.png\n")}

    def open_file(path, compression_type):
        assert compression_type == "uncompressed"
        return io.BytesIO(files[path])

    monkeypatch.setattr(manifest_formats.FileSystems, "open", open_file)
    assert read("mem://bucket/m.csv.gz") == [("a.png",)]


@pytest.mark.parametrize("name", ["m.csv", "m.tsv.gz", "m.jsonl"])
def test_manifest_columns_of_an_empty_file_are_none(tmp_path, name):
    content = gzip.compress(b"") if name.endswith("gz") else b""
    assert manifest_columns(write_bytes(tmp_path / name, content)) == []


# What cannot be read


@pytest.mark.parametrize("name", ["m.xlsx", "m", "m.gz", "m.csv.zip", "m.parquet.gz"])
def test_manifest_format_unknown_extension_names_the_known(name):
    with pytest.raises(InputError) as caught:
        manifest_format(name)
    assert str(caught.value) == (
        "manifest must end in one of .csv, .tsv, .jsonl, .ndjson, .parquet, .txt, .lst, or these"
        f" with .gz except Parquet. Received: manifest={name!r}."
    )


@pytest.mark.parametrize("name", ["missing.csv", "missing.parquet", "nosuch://bucket/m.csv"])
def test_read_rows_missing_file_is_rejected(tmp_path, name, monkeypatch):
    monkeypatch.chdir(tmp_path)
    expected = f"manifest must be a file that can be read. Received: manifest={name!r} ("
    assert error_of(name).startswith(expected)


BAD_LINES = {
    "too many cells": ("csv", b"uri,x\na,b\ndoe,c,d\n", "line 3 .* must have 2 cells.*: 3"),
    "too few cells": ("csv", b'uri,x\n"a\nb",b\ndoe\n', "line 4 .* must have 2 cells.*: 1"),
    "tsv cells": ("tsv", b"uri\tx\ndoe\n", "line 2 .* must have 2 cells.*: 1"),
    "open quote": ("csv", b'uri\na\n"doe\nb\n', "line 3 .* quoted as CSV.*unexpected end"),
    "text after quote": ("csv", b'uri\n"a"doe\n', "line 2 .* quoted as CSV"),
    "NUL": ("csv", b"uri\na\ndo\0e\n", "must be UTF-8 text. Received: a NUL byte, after line 2"),
    "Latin-1": ("csv", b"uri\na\ndoe\xe9\n", "must be UTF-8 text. .* byte 0xe9 .*, after line 0"),
    "UTF-16": ("csv", "uri\na\n".encode("utf-16"), "must be UTF-8 text. .*Save it as UTF-8."),
    "no JSON": ("jsonl", b'{"uri": "a"}\n{"uri": doe}\n', "line 2 .* must be JSON. .*Expecting"),
    "JSON list": ("jsonl", b'\n["doe"]\n', "line 2 .* must be a JSON object. Received: a list"),
    "deep JSON": ("jsonl", b'{"uri": "doe"}\n' + b"[" * 9_999, "line 2 .* must be JSON. .* nested"),
    "long number": ("jsonl", b'{"x": ' + b"9" * 9_999 + b"}", "line 1 .* be JSON. .*many digits"),
    "JSON NUL": ("jsonl", b'{"x": "doe\\u0000"}', "line 1 .* without NUL in 'x'. .* a NUL char"),
    "JSON cell": ("jsonl", b'{"x": ["doe"]}', "line 1 .* string, number .* in 'x'. .* a list"),
}


@pytest.mark.parametrize("extension, content, match", BAD_LINES.values(), ids=BAD_LINES)
def test_read_rows_bad_line_is_named_by_number(tmp_path, extension, content, match):
    message = error_of(write_bytes(tmp_path / f"m.{extension}", content))
    assert re.search(match, message), message
    assert "doe" not in message


def test_read_rows_damaged_gzip_is_rejected(tmp_path):
    content = gzip.compress(b"uri\n" + b"".join(b"%d.png\n" % n for n in range(5_000)))
    damaged = {
        "cut": content[:-20],
        "flipped": content[:-6] + b"\0\0" + content[-4:],
        "no gzip": b"uri\na\n",
    }
    for name, content in damaged.items():
        message = error_of(write_bytes(tmp_path / f"{name}.csv.gz", content))
        assert "must be a whole gzip file. Received: damaged or cut short after line" in message


def test_read_rows_damaged_parquet_is_rejected(tmp_path):
    path = tmp_path / "m.parquet"
    write_parquet(path, uri=["a"])
    for content in (b"uri\na\n", path.read_bytes()[:-10]):
        message = error_of(write_bytes(path, content))
        assert "must be whole, valid Parquet. Received: manifest=" in message


def test_read_rows_parquet_nested_column_is_rejected(tmp_path):
    assert error_of(write_parquet(tmp_path / "m.parquet", labels=[["doe"]])) == (
        "manifest must have strings, numbers, booleans or dates in 'labels'. Received:"
        " list<element: string>. Convert the column."
    )


@pytest.mark.parametrize(
    "array",
    [pa.array(["a", None, "doe\0"]), pa.array([b"doe\0"]), pa.array(["\0"]).dictionary_encode()],
    ids=["string", "binary", "dictionary"],
)
def test_read_rows_parquet_cell_with_nul_is_rejected(tmp_path, array):
    assert error_of(write_parquet(tmp_path / "m.parquet", uri=array)) == (
        "manifest must be without NUL in 'uri'. Received: a NUL character. Remove it."
    )


def test_read_rows_parquet_cell_that_is_no_utf8_is_rejected(tmp_path):
    path = write_parquet(tmp_path / "m.parquet", uri=pa.array([b"doe\xff"]))
    assert "must be whole, valid Parquet. Received: manifest=" in error_of(path)


# Writing


TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)
ROWS = st.lists(st.tuples(TEXT.filter(bool), TEXT, TEXT), min_size=1)


@pytest.mark.parametrize("extension", EXTENSIONS)
@settings(max_examples=10, deadline=None)
@given(rows=ROWS)
def test_write_rows_any_text_reads_back_exactly(extension, rows):
    rows = [tuple(cell or None for cell in row) for row in rows]
    with tempfile.TemporaryDirectory() as folder:
        write_rows(rows, COLUMNS, f"{folder}/m.{extension}")
        assert read(f"{folder}/m.{extension}") == rows


@pytest.mark.parametrize(
    "extension, content",
    [
        ("csv", 'id,uri\n"a,b","say ""c"""\nd,\n'),
        ("tsv", 'id\turi\na,b\t"say ""c"""\nd\t\n'),
        ("jsonl", '{"id": "a,b", "uri": "say \\"c\\""}\n{"id": "d", "uri": null}\n'),
    ],
)
def test_write_rows_writes_plain_text(tmp_path, extension, content):
    path = tmp_path / f"m.{extension}"
    write_rows([("a,b", 'say "c"'), ("d", None)], ["id", "uri"], str(path))
    assert path.read_bytes().decode() == content


def test_write_rows_carriage_return_is_quoted(tmp_path):
    path, rows = tmp_path / "m.csv", [("a\rb", None), ("c", "d")]
    write_rows(rows, ["id", "uri"], str(path))
    assert path.read_bytes() == b'id,uri\n"a\rb",""\nc,d\n'
    assert read(path) == rows


def test_write_rows_gzip_holds_neither_name_nor_time(tmp_path):
    path = tmp_path / "m.csv.gz"
    write_rows([("a", "b")], ["id", "uri"], str(path))
    assert path.read_bytes()[3:8] == b"\0\0\0\0\0"
    assert gzip.decompress(path.read_bytes()) == b"id,uri\na,b\n"


def test_write_rows_parquet_has_row_groups_of_4096(tmp_path):
    path = str(tmp_path / "m.parquet")
    write_rows([(str(n),) for n in range(10_000)], ["uri"], path)
    metadata = pq.read_metadata(path)
    sizes = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
    assert sizes == [4096, 4096, 1808]
    assert read(path) == [(str(n),) for n in range(10_000)]


@pytest.mark.parametrize("extension", ["csv", "jsonl", "parquet"])
def test_write_rows_of_no_utf8_name_is_rejected(tmp_path, extension):
    with pytest.raises(InputError, match="names of files and folders in UTF-8. .* Rename it; `fi"):
        write_rows([("\udcff.png",)], ["uri"], str(tmp_path / f"m.{extension}"))
