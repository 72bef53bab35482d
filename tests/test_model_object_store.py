"""Objects on a store that pages, refuses, breaks off and forgets to answer."""

import pytest

from model.object_store import ObjectFolder
from tests.gcs import BUCKET


@pytest.fixture
def folder(store):
    return ObjectFolder(f"gs://{BUCKET}/a folder")


@pytest.mark.parametrize("fault", ["503", "reset", "lost"])
def test_write_fault_is_survived(store, folder, fault):
    store.fail("POST", "a folder/", fault)
    folder.write("é #1", b"content")
    assert not store.faults_left()
    assert folder.read("é #1") == b"content"


@pytest.mark.parametrize("fault", ["503", "reset", "cut"])
def test_read_fault_is_survived(store, folder, tmp_path, fault):
    content = bytes(range(256)) * 4096
    folder.write("x", content)
    store.fail("GET", "a folder/x", fault)
    assert folder.read("x") == content
    store.fail("GET", "a folder/x", fault)
    folder.download([("x", tmp_path / "new" / "x")])
    assert not store.faults_left()
    assert (tmp_path / "new" / "x").read_bytes() == content


def test_objects_are_listed_page_by_page_and_not_one_by_one(store, folder):
    names = [f"part-{number:02d}" for number in range(10)]
    for name in [*names, "other", "part-empty/"]:
        folder.write(name, b"12")
    store.page_size = 4
    store.requests.clear()
    found = list(folder.objects("part-"))
    assert [item.name for item in found] == names
    assert {item.size_bytes for item in found} == {2}
    assert len(store.requests) == 3


def test_write_if_generation_other_than_expected_raises_and_keeps_the_object(store, folder):
    generation = folder.write("x", b"first", if_generation=0)
    with pytest.raises(FileExistsError):
        folder.write("x", b"second", if_generation=0)
    assert folder.read("x") == b"first"
    assert folder.find("x").generation == generation
    folder.write("x", b"third", if_generation=generation)
    assert folder.read("x") == b"third"


def test_download_that_fails_leaves_no_file(store, folder, tmp_path):
    with pytest.raises(FileNotFoundError):
        folder.download([("none", tmp_path / "into" / "none")])
    assert list((tmp_path / "into").iterdir()) == []


def test_open_parts_of_an_object_are_read(store, folder):
    folder.write("x", bytes(range(100)))
    with folder.open("x") as file:
        file.seek(-3, 2)
        assert file.read() == bytes([97, 98, 99])
        file.seek(10)
        assert file.read(2) == bytes([10, 11])


def test_delete_is_of_those_named_and_of_those_gone_already(store, folder):
    for name in "abc":
        folder.write(name, b"")
    store.fail("DELETE", "a folder/a", "lost")
    folder.delete(["a", "b", "none"])
    assert [item.name for item in folder.objects()] == ["c"]


def test_bucket_missing_is_told_as_such(store):
    with pytest.raises(FileNotFoundError, match="no such object or bucket"):
        ObjectFolder("gs://none/x").write("a", b"")
    with pytest.raises(FileNotFoundError):
        list(ObjectFolder("gs://none").objects())
