"""Reading a local file; what else can go wrong is in test_pipeline_source."""

import errno
import io
import os

import pytest

from model import reading
from model.reading import FileVersion, SourceFile, file_version, read_file, read_whole
from schemas.rejects import ImageError, Reason, TransientError


def test_read_file_gives_bytes_and_modification_time_by_path_or_text(tmp_path):
    path = tmp_path / "a b[1]*?#é.png"
    path.write_bytes(b"content")
    os.utime(path, ns=(0, 1_700_000_000_123_456_789))
    version = FileVersion(7, "1700000000123456789")
    assert file_version(path) == file_version(str(path)) == version
    assert read_file(path) == read_file(str(path)) == SourceFile(b"content", version)


def test_file_version_asks_for_the_status_and_reads_nothing(tmp_path, monkeypatch):
    def read(*_):
        raise AssertionError("a file was opened")

    (tmp_path / "scan.png").write_bytes(b"content")
    monkeypatch.setattr(reading, "MAX_BYTES", 3)
    monkeypatch.setattr(reading, "open", read, raising=False)
    assert file_version(tmp_path / "scan.png").size_bytes == 7


def test_file_version_another_content_of_the_same_size_is_another_version(tmp_path):
    path = tmp_path / "scan.png"
    path.write_bytes(b"content")
    os.utime(path, ns=(0, 1))
    before = file_version(path)
    path.write_bytes(b"CONTENT")
    os.utime(path, ns=(0, 2))
    assert (before, file_version(path)) == (FileVersion(7, "1"), FileVersion(7, "2"))


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
    for look in (read_file, file_version):
        with pytest.raises(ImageError) as caught:
            look(tmp_path / "odd.png")
        assert (caught.value.reason, caught.value.detail) == (reason, detail)
        assert not isinstance(caught.value, TransientError)


def test_read_file_name_that_no_file_can_have_is_not_found():
    with pytest.raises(ImageError) as caught:
        read_file("/archive/a\0b.png")
    assert caught.value.reason is Reason.NOT_FOUND
    assert caught.value.detail == "no file can have such a name"


_PASSING = [OSError(getattr(errno, name), "") for name in ("EIO", "ESTALE", "ETIMEDOUT", "EAGAIN")]
_PASSING += [OSError(getattr(errno, name), "") for name in ("EINTR", "ECONNRESET", "ENETUNREACH")]
_PASSING += [TimeoutError(), ConnectionError()]
_LASTING = [OSError(getattr(errno, name), "") for name in ("ENOTDIR", "ELOOP", "ENAMETOOLONG")]


@pytest.mark.parametrize("look", [read_file, file_version])
@pytest.mark.parametrize("error", [*_PASSING, *_LASTING], ids=repr)
def test_read_file_error_that_a_moment_may_mend_is_transient(monkeypatch, look, error):
    def fail(path):
        raise error

    monkeypatch.setattr(reading.os, "stat", fail)
    with pytest.raises(ImageError) as caught:
        look("/archive/DOE^JANE.png")
    monkeypatch.undo()
    assert caught.value.reason is Reason.READ_ERROR
    assert isinstance(caught.value, TransientError) == any(error is one for one in _PASSING)
    known = os.strerror(error.errno) if error.errno else type(error).__name__
    assert caught.value.detail == known


def test_read_whole_tells_of_each_piece(monkeypatch):
    monkeypatch.setattr(reading, "_CHUNK_BYTES", 4)
    told = []
    assert read_whole(io.BytesIO(bytes(range(10))), lambda: told.append(1)) == bytes(range(10))
    assert len(told) == 3


def test_read_whole_stops_a_byte_over_the_limit(monkeypatch):
    monkeypatch.setattr(reading, "MAX_BYTES", 10)
    assert read_whole(io.BytesIO(bytes(10))) == bytes(10)
    endless = io.BytesIO(bytes(5000))
    with pytest.raises(ImageError) as caught:
        read_whole(endless)
    assert caught.value.reason is Reason.TOO_MANY_BYTES
    assert caught.value.detail == "11 bytes, more than the limit of 10"
    assert endless.tell() == 11
