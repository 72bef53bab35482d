"""Reading a local file; what else can go wrong is in test_pipeline_source."""

import io
import os

import pytest

from model import reading
from model.reading import SourceFile, read_file, read_whole
from schemas.rejects import ImageError, Reason


def test_read_file_gives_bytes_and_modification_time_by_path_or_text(tmp_path):
    path = tmp_path / "a b[1]*?#é.png"
    path.write_bytes(b"content")
    os.utime(path, ns=(0, 1_700_000_000_123_456_789))
    expected = SourceFile(b"content", "1700000000123456789")
    assert read_file(path) == read_file(str(path)) == expected


@pytest.mark.parametrize(
    ("make", "reason", "detail"),
    [
        (lambda path: None, Reason.NOT_FOUND, "no file at the uri"),
        (os.mkdir, Reason.NOT_A_FILE, "the uri names a folder, pipe or device"),
        (os.mkfifo, Reason.NOT_A_FILE, "the uri names a folder, pipe or device"),
    ],
    ids=["missing", "folder", "pipe"],
)
def test_read_file_what_is_no_file_has_its_reason_and_no_path(tmp_path, make, reason, detail):
    make(tmp_path / "odd.png")
    with pytest.raises(ImageError) as caught:
        read_file(tmp_path / "odd.png")
    assert (caught.value.reason, caught.value.detail) == (reason, detail)


def test_read_whole_stops_a_byte_over_the_limit(monkeypatch):
    monkeypatch.setattr(reading, "MAX_BYTES", 10)
    assert read_whole(io.BytesIO(bytes(10))) == bytes(10)
    endless = io.BytesIO(bytes(5000))
    with pytest.raises(ImageError) as caught:
        read_whole(endless)
    assert caught.value.reason is Reason.TOO_MANY_BYTES
    assert caught.value.detail == "11 bytes, more than the limit of 10"
    assert endless.tell() == 11
