"""Reading one file: all of its bytes and its version, or the one reason why not."""

import errno
import io
import os

import pytest
from apache_beam.io.filesystem import (
    BeamIOError,
    CompressedFile,
    CompressionTypes,
    FileMetadata,
    FileSystem,
)

from model import reading
from model.reading import FileVersion, SourceFile
from pipeline import source
from pipeline.source import PAUSES_S, read_source, source_version
from pipeline.watch import Watch
from schemas.rejects import ImageError, Reason

_WHEN_NS = 1_700_000_000_123_456_789


def refusal(uri, attempts=1):
    """Returns the reason and detail with which a uri is refused, which must not name it."""
    watch = Watch()
    with pytest.raises(ImageError) as caught:
        read_source(str(uri), watch, sleep=lambda pause_s: None)
    assert str(uri) not in str(caught.value)
    assert watch.attempts == attempts
    return caught.value.reason, caught.value.detail


# Local files


@pytest.mark.parametrize(
    "name", ["scan.png", "scan", "scan.png.gz", "a b[1]*?#%é.png"], ids=lambda name: name
)
def test_read_source_local_file_gives_bytes_and_modification_time(tmp_path, name):
    path = tmp_path / name
    content = bytes(range(256)) * 40
    path.write_bytes(content)
    os.utime(path, ns=(0, _WHEN_NS))
    version = FileVersion(10_240, "1700000000123456789")
    assert version.version == str(os.stat(path).st_mtime_ns)
    assert read_source(str(path)) == SourceFile(content, version)
    assert source_version(str(path)) == version


def test_read_source_empty_file_gives_no_bytes(tmp_path):
    (tmp_path / "empty.png").touch()
    assert read_source(str(tmp_path / "empty.png")).data == b""


def test_read_source_link_gives_the_file_it_leads_to(tmp_path):
    (tmp_path / "scan.png").write_bytes(b"content")
    os.utime(tmp_path / "scan.png", ns=(0, _WHEN_NS))
    (tmp_path / "link.png").symlink_to("scan.png")
    assert read_source(str(tmp_path / "link.png")) == SourceFile(
        b"content", FileVersion(7, str(_WHEN_NS))
    )


def test_read_source_nothing_there_is_not_found(tmp_path):
    (tmp_path / "dangling.png").symlink_to("nothing")
    expected = Reason.NOT_FOUND, "no file at the uri"
    assert refusal(tmp_path / "missing.png") == expected
    assert refusal(tmp_path / "no_folder" / "missing.png") == expected
    assert refusal(tmp_path / "dangling.png") == expected


@pytest.mark.timeout(60)
@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo], ids=["folder", "pipe"])
def test_read_source_no_regular_file_is_refused_without_waiting(tmp_path, make):
    make(tmp_path / "odd.png")
    expected = Reason.NOT_A_FILE, "the uri names a folder, pipe or device"
    assert refusal(tmp_path / "odd.png") == expected


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_read_source_unreadable_file_is_permission_denied(tmp_path):
    (tmp_path / "scan.png").write_bytes(b"content")
    (tmp_path / "scan.png").chmod(0)
    expected = Reason.PERMISSION_DENIED, "the file may not be read"
    assert refusal(tmp_path / "scan.png") == expected


def test_read_source_file_in_a_file_is_a_read_error(tmp_path):
    (tmp_path / "scan.png").write_bytes(b"content")
    expected = Reason.READ_ERROR, os.strerror(errno.ENOTDIR)
    assert refusal(tmp_path / "scan.png" / "inner.png") == expected


class FailingFile(io.BytesIO):
    """A file on a disk that gives an error."""

    def read(self, size=-1):
        raise OSError(errno.EIO, os.strerror(errno.EIO), "/archive/DOE^JANE.png")


def test_read_source_failing_disk_is_a_read_error_without_the_path(tmp_path, monkeypatch):
    (tmp_path / "scan.png").write_bytes(b"content")
    monkeypatch.setattr(reading, "open", lambda path, mode: FailingFile(), raising=False)
    expected = Reason.READ_ERROR, os.strerror(errno.EIO)
    assert refusal(tmp_path / "scan.png", attempts=4) == expected


def test_read_source_at_the_limit_passes_and_one_byte_over_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "MAX_BYTES", 10)
    (tmp_path / "ten.png").write_bytes(b"0123456789")
    (tmp_path / "eleven.png").write_bytes(b"0123456789a")
    assert read_source(str(tmp_path / "ten.png")).data == b"0123456789"
    expected = Reason.TOO_MANY_BYTES, "11 bytes, more than the limit of 10"
    assert refusal(tmp_path / "eleven.png") == expected


def test_read_source_file_that_grows_is_refused_without_reading_it_all(tmp_path, monkeypatch):
    path = tmp_path / "growing.png"
    path.write_bytes(b"0123456789")
    monkeypatch.setattr(reading, "MAX_BYTES", 10)

    def grow_and_open(name, mode):
        path.write_bytes(bytes(5000))
        return open(name, mode)

    monkeypatch.setattr(reading, "open", grow_and_open, raising=False)
    assert refusal(path) == (Reason.TOO_MANY_BYTES, "11 bytes, more than the limit of 10")


# Other file systems


class MemoryFileSystem(FileSystem):
    """Objects in memory as `prescreen-test://…`, with nothing but what reading needs."""

    objects: dict[str, bytes] = {}
    opened: list[str] = []
    error: Exception | None = None

    @classmethod
    def scheme(cls):
        return "prescreen-test"

    def metadata(self, path):
        if self.error:
            raise BeamIOError("metadata", {path: self.error})
        if path not in self.objects:
            raise BeamIOError("metadata", {path: FileNotFoundError()})
        return FileMetadata(path, len(self.objects[path]), 1_700_000_000.25)

    def open(self, path, mime_type="", compression_type=CompressionTypes.AUTO):
        self.opened.append(path)
        file = io.BytesIO(self.objects[path])
        compression_type = self._get_compression_type(path, compression_type)
        if compression_type == CompressionTypes.UNCOMPRESSED:
            return file
        return CompressedFile(file, compression_type)

    def _unused(self, *_):
        raise NotImplementedError

    join = split = mkdirs = has_dirs = create = copy = rename = delete = _unused
    size = last_updated = _list = exists = _unused


@pytest.fixture
def objects(monkeypatch):
    """The objects of `prescreen-test://`, none at first."""
    monkeypatch.setattr(MemoryFileSystem, "objects", {})
    monkeypatch.setattr(MemoryFileSystem, "opened", [])
    return MemoryFileSystem.objects


@pytest.mark.parametrize(
    "name", ["scan.png", "a//scan", "scan.png.gz", "scan[1]*.png"], ids=lambda name: name
)
def test_read_source_remote_object_gives_bytes_and_update_time(objects, name):
    objects[f"prescreen-test://bucket/{name}"] = b"\x1f\x8b is no gzip"
    objects[f"prescreen-test://bucket/{name}.other"] = b"another"
    found = read_source(f"prescreen-test://bucket/{name}")
    version = FileVersion(13, "1700000000250000000")
    assert found == SourceFile(b"\x1f\x8b is no gzip", version)
    assert source_version(f"prescreen-test://bucket/{name}") == version


def test_read_source_remote_nothing_there_is_not_found(objects):
    objects["prescreen-test://bucket/scan.png.other"] = b"another"
    expected = Reason.NOT_FOUND, "no file at the uri"
    assert refusal("prescreen-test://bucket/scan.png") == expected


def test_read_source_remote_over_the_limit_is_refused_unread(objects, monkeypatch):
    monkeypatch.setattr(reading, "MAX_BYTES", 10)
    objects["prescreen-test://bucket/ten.png"] = b"0123456789"
    objects["prescreen-test://bucket/eleven.png"] = b"0123456789a"
    assert read_source("prescreen-test://bucket/ten.png").data == b"0123456789"
    expected = Reason.TOO_MANY_BYTES, "11 bytes, more than the limit of 10"
    assert refusal("prescreen-test://bucket/eleven.png") == expected
    assert MemoryFileSystem.opened == ["prescreen-test://bucket/ten.png"]


class Refusal(Exception):
    """What the library of a store raises, which can quote the uri."""

    def __init__(self, code):
        super().__init__("secret words")
        self.code = code


@pytest.mark.usefixtures("objects")
@pytest.mark.parametrize(
    ("error", "reason", "attempts"),
    [
        (ConnectionResetError(errno.ECONNRESET, "reset"), Reason.READ_ERROR, 4),
        (RuntimeError("secret words"), Reason.READ_ERROR, 4),
        (Refusal(503), Reason.READ_ERROR, 4),
        (Refusal(429), Reason.READ_ERROR, 4),
        (Refusal(408), Reason.READ_ERROR, 4),
        (Refusal("UNAVAILABLE"), Reason.READ_ERROR, 4),
        (Refusal(400), Reason.READ_ERROR, 1),
        (ValueError("secret words"), Reason.READ_ERROR, 1),
        (Refusal(404), Reason.NOT_FOUND, 1),
        (Refusal(403), Reason.PERMISSION_DENIED, 1),
        (Refusal(401), Reason.PERMISSION_DENIED, 1),
        (PermissionError(), Reason.PERMISSION_DENIED, 1),
    ],
    ids=lambda value: getattr(value, "code", None) and f"code_{value.code}",
)
def test_read_source_remote_look_up_fails_has_its_reason_and_attempts(
    monkeypatch, error, reason, attempts
):
    monkeypatch.setattr(MemoryFileSystem, "error", error)
    details = {
        Reason.READ_ERROR: "BeamIOError",
        Reason.NOT_FOUND: "no file at the uri",
        Reason.PERMISSION_DENIED: "the file may not be read",
    }
    uri = "prescreen-test://bucket/scan.png"
    assert refusal(uri, attempts) == (reason, details[reason])
    with pytest.raises(ImageError) as caught:
        source_version(uri, sleep=lambda pause_s: None)
    assert caught.value.reason is reason


def test_read_source_remote_missing_by_the_library_is_not_found(objects, monkeypatch):
    class Gone(Exception):
        code = 404

    def gone(*_, **__):
        raise Gone("secret words")

    objects["prescreen-test://bucket/scan.png"] = b"content"
    monkeypatch.setattr(MemoryFileSystem, "open", gone)
    expected = Reason.NOT_FOUND, "no file at the uri"
    assert refusal("prescreen-test://bucket/scan.png") == expected


def test_read_source_remote_object_that_grows_is_refused(objects, monkeypatch):
    monkeypatch.setattr(reading, "MAX_BYTES", 10)
    objects["prescreen-test://bucket/scan.png"] = b"0123456789"
    whole = MemoryFileSystem.open

    def grow_and_open(self, path, *arguments, **options):
        objects[path] = bytes(5000)
        return whole(self, path, *arguments, **options)

    monkeypatch.setattr(MemoryFileSystem, "open", grow_and_open)
    expected = Reason.TOO_MANY_BYTES, "11 bytes, more than the limit of 10"
    assert refusal("prescreen-test://bucket/scan.png") == expected


@pytest.mark.parametrize("uri", ["no-such-scheme://bucket/a.png", "file:///archive/a.png"])
def test_read_source_unknown_scheme_is_a_read_error(uri):
    assert refusal(uri) == (Reason.READ_ERROR, "ValueError")


# Trying again


class FlakyDisk:
    """Fails to open a file a number of times, in place of `open`."""

    def __init__(self, failures, code=errno.EIO):
        self.failures = failures
        self.code = code

    def __call__(self, path, mode):
        if self.failures:
            self.failures -= 1
            raise OSError(self.code, os.strerror(self.code))
        return open(path, mode)


@pytest.mark.parametrize("failures", [0, 1, 2, 3, 4])
def test_read_source_transient_errors_are_met_by_four_attempts(tmp_path, monkeypatch, failures):
    path, watch, pauses = tmp_path / "scan.png", Watch(), []
    path.write_bytes(b"content")
    monkeypatch.setattr(reading, "open", FlakyDisk(failures), raising=False)
    if failures < 4:
        assert read_source(str(path), watch, sleep=pauses.append).data == b"content"
    else:
        with pytest.raises(ImageError, match="read_error: Input/output error"):
            read_source(str(path), watch, sleep=pauses.append)
    assert watch.attempts == min(failures + 1, 4)
    assert len(pauses) == min(failures, 3)
    assert watch.version == FileVersion(7, str(os.stat(path).st_mtime_ns))


def test_read_source_pauses_are_drawn_from_zero_up_to_twice_the_last(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(source.random, "uniform", lambda low, high: asked.append((low, high)) or 7)
    (tmp_path / "scan.png").write_bytes(b"content")
    monkeypatch.setattr(reading, "open", FlakyDisk(3), raising=False)
    pauses = []
    read_source(str(tmp_path / "scan.png"), sleep=pauses.append)
    assert asked == [(0, 0.5), (0, 1.0), (0, 2.0)] and pauses == [7, 7, 7]
    assert PAUSES_S == (0.5, 1.0, 2.0)


def test_read_source_error_that_stays_is_tried_once(tmp_path, monkeypatch):
    (tmp_path / "scan.png").write_bytes(b"content")
    monkeypatch.setattr(reading, "open", FlakyDisk(1, errno.EACCES), raising=False)
    expected = Reason.PERMISSION_DENIED, "the file may not be read"
    assert refusal(tmp_path / "scan.png", attempts=1) == expected


def test_source_version_transient_errors_are_met_too(tmp_path, monkeypatch):
    path, look_up, failures = tmp_path / "scan.png", os.stat, [1, 1]

    def flaky(name):
        if failures:
            failures.pop()
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return look_up(name)

    path.write_bytes(b"content")
    monkeypatch.setattr(reading.os, "stat", flaky)
    pauses, watch = [], Watch()
    assert source_version(str(path), watch, sleep=pauses.append).size_bytes == 7
    assert (len(pauses), watch.attempts) == (2, 3)


def test_read_source_file_gone_at_the_second_attempt_has_no_version(tmp_path, monkeypatch):
    path, watch = tmp_path / "scan.png", Watch()
    path.write_bytes(b"content")
    monkeypatch.setattr(reading, "open", FlakyDisk(1), raising=False)
    with pytest.raises(ImageError) as caught:
        read_source(str(path), watch, sleep=lambda pause_s: path.unlink())
    assert (caught.value.reason, watch.attempts) == (Reason.NOT_FOUND, 2)
    assert watch.version is None


def test_read_source_reading_is_a_sign_of_life(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "_CHUNK_BYTES", 10)
    (tmp_path / "scan.png").write_bytes(bytes(100))
    now = [0.0]

    def tick():
        now[0] += 1
        return now[0]

    watch = Watch(tick)
    read_source(str(tmp_path / "scan.png"), watch)
    assert watch.moved_s == now[0] >= 11
