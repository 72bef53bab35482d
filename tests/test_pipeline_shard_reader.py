"""Archives read from the start: each row once, whatever happens on the way."""

import contextlib
import errno
import gzip
import os
import threading

import pytest

from model.reading import FileVersion
from pipeline import shard_reader
from pipeline.budget import Budget
from pipeline.elements import Shard
from pipeline.shard_reader import ShardReader
from pipeline.source import PAUSES_S
from schemas.rejects import ImageError, Reason, TransientError
from tests.fakes import manifest_row
from tests.test_pipeline_tar_files import link, tar

MEMBERS = {f"images/{k}.png": bytes([k]) * 1000 for k in range(6)}
_PATIENCE_S = 30.0


@pytest.fixture
def archive(tmp_path):
    path = tmp_path / "a.tar.gz"
    path.write_bytes(gzip.compress(tar(MEMBERS)))
    return path


def shard_of(path, names) -> Shard:
    return Shard(str(path), tuple(manifest_row(name, f"{path}#{name}") for name in names))


def read(shard, **options) -> list[tuple[str, bytes | ImageError, int, FileVersion | None]]:
    """Returns what is given of each row: id, content or error, attempts, version."""
    budget = options.pop("budget", Budget(2**20))
    found = []
    for image, watch in ShardReader(shard, budget, sleep=lambda pause_s: None, **options):
        budget.give_back(watch)
        source = image.source if isinstance(image.source, ImageError) else image.source.data
        found.append((image.row.image_id, source, watch.attempts, watch.version))
    return found


def outcomes(found) -> dict[str, bytes | str]:
    assert len({name for name, *_ in found}) == len(found)
    return {
        name: str(source.reason) if isinstance(source, ImageError) else source
        for name, source, *_ in found
    }


def version_of(path) -> str:
    status = os.stat(path)
    return f"{status.st_mtime_ns}-{status.st_size}"


def test_members_come_in_the_archives_order(archive):
    found = read(shard_of(archive, reversed(MEMBERS)))
    version = FileVersion(1000, version_of(archive))
    assert found == [(name, content, 1, version) for name, content in MEMBERS.items()]


def test_archive_is_opened_once_and_read_no_further_than_needed(archive, monkeypatch):
    opened, asked = [], []
    original = shard_reader.read_members
    monkeypatch.setattr(
        shard_reader,
        "read_members",
        lambda file, gzipped: (asked.append(m.name) or m for m in original(file, gzipped=gzipped)),
    )
    open_source = shard_reader.open_source
    monkeypatch.setattr(
        shard_reader, "open_source", lambda uri: opened.append(uri) or open_source(uri)
    )
    read(shard_of(archive, ["images/3.png", "images/1.png"]))
    assert opened == [str(archive)]
    assert asked == [f"images/{k}.png" for k in range(4)]


def test_missing_member_is_not_found_and_costs_no_other(archive):
    found = read(shard_of(archive, ["images/9.png", "images/2.png"]))
    assert outcomes(found) == {"images/2.png": MEMBERS["images/2.png"], "images/9.png": "not_found"}
    assert found[-1][3] == FileVersion(None, version_of(archive))


def test_two_rows_of_one_member_both_get_it(archive):
    rows = [manifest_row(name, f"{archive}#images/4.png") for name in ("one", "two")]
    found = read(Shard(str(archive), tuple(rows)))
    assert outcomes(found) == dict.fromkeys(("one", "two"), MEMBERS["images/4.png"])


def test_member_that_is_a_link_is_rejected_alone(tmp_path):
    path = tmp_path / "a.tgz"
    path.write_bytes(gzip.compress(tar({"a.png": link("a.png"), "b.png": b"good"})))
    assert outcomes(read(shard_of(path, ["b.png", "a.png"]))) == {
        "a.png": "not_a_file",
        "b.png": b"good",
    }


def test_archive_cut_short_costs_its_tail(tmp_path):
    path = tmp_path / "a.tar.gz"
    data = gzip.compress(tar(MEMBERS), 0)
    path.write_bytes(data[: len(data) // 2])
    found = outcomes(read(shard_of(path, MEMBERS)))
    whole = [name for name, content in found.items() if content == MEMBERS[name]]
    assert whole == list(MEMBERS)[: len(whole)] and 0 < len(whole) < len(MEMBERS)
    assert {found[name] for name in MEMBERS if name not in whole} == {"truncated"}


@pytest.mark.parametrize(
    ("content", "reason"), [(None, "not_found"), (b"no gzip", "corrupt"), (b"", "truncated")]
)
def test_archive_that_is_none_rejects_all_its_rows(tmp_path, content, reason):
    path = tmp_path / "a.tar.gz"
    if content is not None:
        path.write_bytes(content)
    assert outcomes(read(shard_of(path, MEMBERS))) == dict.fromkeys(MEMBERS, reason)


def failing(monkeypatch, failures):
    """Makes reads of the archive break off: after so many members, for each number in turn."""
    original = shard_reader.read_members

    def members(file, gzipped):
        most = failures.pop(0) if failures else None
        for count, member in enumerate(original(file, gzipped=gzipped)):
            if count == most:
                raise TransientError(Reason.READ_ERROR, os.strerror(errno.EIO))
            yield member

    monkeypatch.setattr(shard_reader, "read_members", members)


def test_read_that_breaks_off_is_gone_on_with(archive, monkeypatch):
    failing(monkeypatch, [2, 2, 4])
    found = read(shard_of(archive, MEMBERS))
    assert outcomes(found) == MEMBERS
    assert [attempts for _, _, attempts, _ in found] == [1, 1, 3, 3, 2, 2]


def test_read_that_always_breaks_off_is_given_up(archive, monkeypatch):
    failing(monkeypatch, [2] * 99)
    found = read(shard_of(archive, MEMBERS))
    assert [source for _, source, *_ in found[:2]] == list(MEMBERS.values())[:2]
    assert {str(source) for _, source, *_ in found[2:]} == {"read_error: Input/output error"}
    assert {attempts for _, _, attempts, _ in found[2:]} == {len(PAUSES_S) + 1}


def test_read_that_hangs_is_given_up_and_costs_the_rest(archive, monkeypatch):
    original, go_on = shard_reader.read_members, threading.Event()

    def members(file, gzipped):
        for count, member in enumerate(original(file, gzipped=gzipped)):
            if count == 2:
                go_on.wait(_PATIENCE_S)
            yield member

    monkeypatch.setattr(shard_reader, "read_members", members)
    try:
        found = read(shard_of(archive, MEMBERS), timeout_s=0.5)
    finally:
        go_on.set()
    assert outcomes(found) == {
        name: content if k < 2 else "read_timeout"
        for k, (name, content) in enumerate(MEMBERS.items())
    }


def test_bytes_that_nobody_took_are_bounded_and_given_back(archive):
    budget = Budget(2500)
    images = iter(ShardReader(shard_of(archive, MEMBERS), budget))
    held = [next(images), next(images)]
    assert budget._taken == {watch: 1000 for _, watch in held}  # the third waits for room
    images.close()
    deadline = threading.Event()
    for _ in range(100):
        if len(budget._taken) == 2:
            break
        deadline.wait(0.05)
    assert set(budget._taken) == {watch for _, watch in held}


def test_defect_is_raised_to_whoever_takes_the_images(archive, monkeypatch):
    @contextlib.contextmanager
    def broken(uri):
        raise ZeroDivisionError
        yield

    monkeypatch.setattr(shard_reader, "open_source", broken)
    with pytest.raises(ZeroDivisionError):
        read(shard_of(archive, MEMBERS))
