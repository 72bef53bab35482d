"""Members of tar archives: what is in them comes out, and damage has a reason."""

import gzip
import io
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.reading import file_version
from pipeline.tar_files import list_members, read_member, read_members
from schemas.rejects import ImageError, Reason

LONG = "deep/" * 60 + "scan.png"
CONTENT = {
    "a.png": b"first",
    "images/b.png": b"",
    LONG: b"long" * 1000,
    "spät.png": b"x" * 512,
    "last.png": b"y" * 513,
}


def tar(members: dict[str, bytes | tarfile.TarInfo], form: int = tarfile.PAX_FORMAT) -> bytes:
    """Returns a plain archive; a TarInfo stands for a member of its own kind."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as archive:
        for name, content in members.items():
            if isinstance(content, tarfile.TarInfo):
                archive.addfile(content)
            else:
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def link(name: str, kind: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, "/etc/passwd"
    return info


def read_all(data: bytes, *, gzipped: bool = False) -> tuple[dict[str, bytes], ImageError | None]:
    """Returns what can be read of an archive, and what ended it."""
    found = {}
    try:
        for member in read_members(io.BytesIO(data), gzipped=gzipped):
            member.check()
            found.setdefault(member.name, member.read())
    except ImageError as error:
        return found, error
    return found, None


def read_alone(path: Path, name: str) -> bytes:
    return read_member(str(path), name, file_version(path), lambda size: None, lambda: None)


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("gzipped", [False, True])
def test_read_members_gives_names_and_bytes_of_any_format(form, gzipped):
    content = dict(CONTENT)
    if form == tarfile.USTAR_FORMAT:
        del content[LONG]  # the format has no room for it
    data = tar(content, form)
    found, damage = read_all(gzip.compress(data) if gzipped else data, gzipped=gzipped)
    assert (found, damage) == (content, None)


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_read_member_finds_each_alone(tmp_path, form):
    path = tmp_path / "a.tar"
    path.write_bytes(tar(CONTENT, form))
    assert {name: read_alone(path, name) for name in reversed(CONTENT)} == CONTENT


def test_read_member_says_its_size_before_it_reads(tmp_path):
    path = tmp_path / "a.tar"
    path.write_bytes(tar(CONTENT))
    sizes = []
    read_member(str(path), "last.png", file_version(path), sizes.append, lambda: None)
    assert sizes == [513]


def test_read_member_that_is_missing_is_not_found(tmp_path):
    path = tmp_path / "a.tar"
    path.write_bytes(tar(CONTENT))
    with pytest.raises(ImageError, match="not_found: no member of that name in the archive"):
        read_alone(path, "b.png")


def test_read_member_archive_written_anew_is_listed_anew(tmp_path):
    path = tmp_path / "a.tar"
    path.write_bytes(tar({"a.png": b"old", "b.png": b"other"}))
    assert read_alone(path, "b.png") == b"other"
    path.write_bytes(tar({"much longer.png": b"z" * 9999, "b.png": b"new"}))
    assert read_alone(path, "b.png") == b"new"


def test_name_with_dot_and_slash_is_the_one_without():
    found, _ = read_all(tar({"./images/a.png": b"1"}))
    assert found == {"images/a.png": b"1"}


def test_name_that_comes_twice_is_its_first_member(tmp_path):
    path = tmp_path / "a.tar"
    data = tar({"a.png": b"first", "./a.png": b"second"})
    path.write_bytes(data)
    assert read_all(data)[0] == {"a.png": b"first"}
    assert read_alone(path, "a.png") == b"first"


@pytest.mark.parametrize(
    ("member", "detail"),
    [
        (link("a.png"), "the member is a folder, link or device"),
        (link("a.png", tarfile.LNKTYPE), "the member is a folder, link or device"),
        (link("a.png", tarfile.CHRTYPE), "the member is a folder, link or device"),
        (link("a.png", tarfile.DIRTYPE), "the member is a folder, link or device"),
        (link("a.png", tarfile.FIFOTYPE), "the member is a folder, link or device"),
    ],
)
def test_member_that_is_no_file_is_refused(tmp_path, member, detail):
    path = tmp_path / "a.tar"
    path.write_bytes(tar({"a.png": member, "b.png": b"good"}))
    with pytest.raises(ImageError) as caught:
        read_alone(path, "a.png")
    assert caught.value.args == (Reason.NOT_A_FILE, detail)
    assert read_alone(path, "b.png") == b"good"


@pytest.mark.parametrize("name", ["../a.png", "x/../../a.png", "/etc/a.png"])
def test_member_outside_the_archive_is_refused(tmp_path, name):
    path = tmp_path / "a.tar"
    path.write_bytes(tar({name: b"1"}))
    with pytest.raises(ImageError, match="not_a_file: the member's name points outside"):
        read_alone(path, name)


@pytest.mark.parametrize("gzipped", [False, True])
def test_archive_cut_short_gives_what_is_before_the_cut(gzipped):
    data = tar(CONTENT, tarfile.GNU_FORMAT)
    whole = gzip.compress(data, 0) if gzipped else data
    complete = len(data.rstrip(b"\0"))
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        ends = [info.offset_data + info.size for info in archive]
    for end in range(0, complete, 97):
        found, damage = read_all(whole[:end], gzipped=gzipped)
        assert list(found.items()) == list(CONTENT.items())[: len(found)]
        assert damage.reason is Reason.TRUNCATED
        if not gzipped:
            assert len(found) == sum(finish <= end for finish in ends)


def test_damaged_header_is_damage_and_not_the_end(tmp_path):
    data = bytearray(tar(CONTENT, tarfile.GNU_FORMAT))
    data[1024 + 10] ^= 0xFF  # in the second header
    found, damage = read_all(bytes(data))
    assert found == {"a.png": b"first"}
    assert damage.args == (Reason.CORRUPT, "the archive is damaged at or before it")
    path = tmp_path / "a.tar"
    path.write_bytes(data)
    offsets, damage = list_members(str(path))
    assert (offsets, damage.reason) == ({"a.png": 0}, Reason.CORRUPT)
    with pytest.raises(ImageError, match="corrupt"):
        read_alone(path, "last.png")


@pytest.mark.parametrize("data", [b"", b"no archive at all" * 100])
def test_file_that_is_no_archive_is_damaged(data):
    for gzipped in (False, True):
        found, damage = read_all(data, gzipped=gzipped)
        assert found == {} and damage.reason in (Reason.TRUNCATED, Reason.CORRUPT)


def test_enormous_name_is_refused_unread():
    header = tarfile.TarInfo("././@LongLink")
    header.type, header.size = tarfile.GNUTYPE_LONGNAME, 2**40
    found, damage = read_all(header.tobuf(tarfile.GNU_FORMAT))
    assert (found, damage.args) == (
        {},
        (Reason.CORRUPT, "the archive holds a name of over a megabyte"),
    )


@settings(deadline=None)
@given(st.data())
def test_any_damage_is_an_image_error(data):
    whole = bytearray(tar(CONTENT, data.draw(st.sampled_from([tarfile.GNU_FORMAT, 2]))))
    gzipped = data.draw(st.booleans())
    if gzipped:
        whole = bytearray(gzip.compress(bytes(whole), 1))
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(whole) - 1))
        whole[place] = data.draw(st.integers(0, 255))
    found, damage = {}, None
    try:
        for member in read_members(io.BytesIO(whole), gzipped=gzipped):
            try:
                member.check()
            except ImageError:
                continue
            found[member.name] = member.read()
    except ImageError as error:
        damage = error
    assert damage is None or damage.reason in (Reason.TRUNCATED, Reason.CORRUPT)
