"""Listing: what a source holds is in the manifest, once, and reads back as it was."""

import contextlib
import gzip
import io
import os
import re
import tarfile
import tempfile

import pytest
from apache_beam.io.filesystem import CompressionTypes, FileMetadata, FileSystem
from click.testing import CliRunner

from jobs.manifest import manifest_command
from pipeline.listing import Listing, list_images
from pipeline.manifest import ManifestRow, check_manifest, read_row_group
from schemas.errors import InputError

NIH_HEADER = "Image Index,Finding Labels,Follow-up #,Patient ID,View Position\n"


@pytest.fixture
def archive(tmp_path, monkeypatch):
    """A folder to fill, which is the working directory too."""
    folder = tmp_path / "archive"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def fill(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


def read(manifest):
    with tempfile.TemporaryDirectory() as folder:
        checked = check_manifest(str(manifest), into=f"{folder}/checked.parquet")
        return [row for i in range(checked.row_groups) for row in read_row_group(checked.path, i)]


def ids(manifest):
    return [row.image_id for row in read(manifest)]


@contextlib.contextmanager
def rejected(match):
    """Expects one line of error and nothing written."""
    with pytest.raises(InputError, match=match) as caught:
        yield
    assert "\n" not in str(caught.value)
    assert [name for name in os.listdir(".") if "manifest" in name] == []


class MemoryFileSystem(FileSystem):
    """Objects in a dictionary, under `listing-test://`."""

    objects = {}

    @classmethod
    def scheme(cls):
        return "listing-test"

    def has_dirs(self):
        return False

    def _list(self, dir_or_prefix):
        if dir_or_prefix.startswith("listing-test://forbidden"):
            raise PermissionError("no access\nat all")
        for name in sorted(self.objects, reverse=True):
            if name.startswith(dir_or_prefix):
                yield FileMetadata(name, len(self.objects[name]))

    def exists(self, path):
        return path in self.objects

    def metadata(self, path):
        return FileMetadata(path, len(self.objects[path]))

    def open(self, path, mime_type="", compression_type=CompressionTypes.AUTO):
        assert compression_type == CompressionTypes.UNCOMPRESSED
        return io.BytesIO(self.objects[path])

    def create(self, path, mime_type="", compression_type=CompressionTypes.AUTO):
        assert compression_type == CompressionTypes.UNCOMPRESSED
        objects = self.objects

        class Target(io.BytesIO):
            def close(self):
                objects[path] = self.getvalue()
                super().close()

        return Target()

    def _unused(self, *args):
        raise NotImplementedError

    join = split = mkdirs = copy = rename = size = last_updated = delete = _unused


@pytest.fixture
def objects(monkeypatch):
    """The objects of `listing-test://`, by name."""
    monkeypatch.setattr(MemoryFileSystem, "objects", {})
    return MemoryFileSystem.objects


# Folders


@pytest.mark.parametrize("extension", ["csv", "tsv.gz", "jsonl", "parquet"])
def test_list_images_folder_in_any_format_gives_the_same_rows(archive, extension):
    fill(archive, "b.png", "a/2.JPG", "a/10.jpeg", "a/z/1.Png", "c.dcm", "a/notes.txt", "png")
    output = archive / f"manifest.{extension}"
    assert list_images([str(archive)], output=str(output)) == Listing(5, 2, without_header=1)
    assert read(output) == [
        ManifestRow(name, f"{archive}/{name}", ())
        for name in ("b.png", "c.dcm", "a/10.jpeg", "a/2.JPG", "a/z/1.Png")
    ]
    assert [name for name in os.listdir() if name.startswith(".")] == []


def test_list_images_writes_relative_uris(archive):
    fill(archive, "a,b.png", "c.png")
    list_images(["."], output="manifest.csv")
    text = (archive / "manifest.csv").read_text()
    assert text == 'image_id,uri\n"a,b.png","a,b.png"\nc.png,c.png\n'


def test_list_images_outside_of_the_manifests_folder_writes_absolute_uris(archive, tmp_path):
    fill(archive, "a.png")
    assert list_images(["../archive"], output="../new/folder/m.csv") == Listing(1, 0)
    text = (tmp_path / "new/folder/m.csv").read_text()
    assert text == f"image_id,uri\n{archive}/a.png,{archive}/a.png\n"


def test_list_images_twice_writes_the_same_bytes(archive):
    fill(archive, "a.png", "b.png")
    first, second = (
        (list_images(["."], output="m.csv.gz"), (archive / "m.csv.gz").read_bytes())
        for _ in range(2)
    )
    assert first == second
    assert first[0] == Listing(2, 0)


STRANGE = [
    "new\nline.png",
    'quo"te.png',
    "com,ma.png",
    "tab\tulator.png",
    " spaces .png",
    "ha#sh?.png",
    "100%25.png",
    "a.tar#b/c.png",
    "\ufeffmark.png",
    "naïve-胸部.png",
    "e\u0301.png",
    "line\u2028separator\x85.png",
    "back\\slash.png",
    "st*r[1].png",
    "gs:/x.png",
    "'single'.png",
    "-dash.png",
]


@pytest.mark.parametrize("extension", ["csv", "tsv", "jsonl", "parquet"])
def test_list_images_strange_names_read_back_as_they_are(archive, extension):
    fill(archive, *STRANGE)
    output = archive / f"manifest.{extension}"
    assert list_images(["."], output=str(output)) == Listing(len(STRANGE), 0)
    rows = read(output)
    assert sorted(row.image_id for row in rows) == sorted(STRANGE)
    assert all(row.uri == f"{archive}/{row.image_id}" for row in rows)
    assert all(os.path.exists(row.uri) for row in rows)


def test_list_images_name_that_is_not_utf8_is_rejected(archive):
    fill(archive, "a.png")
    open(os.path.join(os.fsencode(archive), b"doe\xff.png"), "wb").close()
    with rejected("names of files and folders in UTF-8. Received: one of another") as caught:
        list_images(["."], output="manifest.csv")
    assert "doe" not in str(caught)


def test_list_images_linked_folders_are_left_out_and_linked_files_listed(archive, tmp_path):
    fill(tmp_path, "elsewhere/x.png")
    fill(archive, "a/1.png")
    (archive / "link").symlink_to(tmp_path / "elsewhere")
    (archive / "a" / "up").symlink_to(archive)
    (archive / "y.png").symlink_to(tmp_path / "elsewhere" / "x.png")
    assert list_images(["."], output="m.csv") == Listing(2, 2)
    assert ids("m.csv") == ["y.png", "a/1.png"]
    assert list_images(["link"], output="m.csv") == Listing(1, 0)


def test_list_images_folder_that_cannot_be_read_is_rejected(archive, monkeypatch):
    fill(archive, "a.png", "doe/b.png")
    real = os.scandir

    def scandir(path):
        if path.endswith("doe"):
            raise PermissionError(13, "Permission denied", path)
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with rejected(r"/archive', in it a folder that is not \(PermissionError\)") as caught:
        list_images(["."], output="manifest.csv")
    assert "doe" not in str(caught)


# Globs, single images, several sources


@pytest.mark.parametrize(
    "pattern, expected, left_out",
    [
        ("*.png", ["a.png", "b[1].png"], 0),
        ("**/*.p*", ["a.png", "b[1].png", "x1/c.png", "x1/y/d.png", "x2/e.png"], 0),
        ("x*", ["x1/c.png", "x1/y/d.png", "x2/e.png"], 1),
        ("x1/**", ["x1/c.png", "x1/y/d.png"], 1),
        ("b[1].png", ["b[1].png"], 0),
        ("[ab].png", ["a.png"], 0),
    ],
)
def test_list_images_local_glob(archive, pattern, expected, left_out):
    fill(archive, "a.png", "b[1].png", "x1/c.png", "x1/y/d.png", "x1/n.txt", "x2/e.png")
    assert list_images([pattern], output="m.jsonl") == Listing(len(expected), left_out)
    assert ids("m.jsonl") == expected


def test_list_images_single_images_keep_their_order(archive):
    fill(archive, "b.png", "a.jpg")
    assert list_images(["b.png", "./a.jpg"], output="m.csv") == Listing(2, 0)
    assert ids("m.csv") == ["b.png", "a.jpg"]


def test_list_images_overlapping_sources_list_each_file_once(archive):
    fill(archive, "x/b.png", "x/a.png", "x/n.txt", "c.png")
    sources = ["x/b.png", "x", str(archive), "**/*.png", "x/"]
    assert list_images(sources, output="m.csv") == Listing(3, 1)
    assert ids("m.csv") == ["x/b.png", "x/a.png", "c.png"]


BAD_SOURCES = {
    "missing": ("gone", "must be a folder, a glob, .*Received: source='gone', which does not"),
    "empty glob": (
        "gone*",
        r"at least one image \(.png, .jpg, .jpeg, .dcm, .dicom\).*source='gone\*'",
    ),
    "no images": ("texts", "at least one image .*source='texts'"),
    "no image": ("texts/a.txt", "at least one image .*source='texts/a.txt'"),
    "tar": (
        "a.tar",
        r"hold archives that can be read.*source='a.tar', .* \(truncated: ",
    ),
    "tgz": ("a*.tgz", r"at least one image .*source='a\*.tgz'"),
    "scheme": ("nosuch://b/a/", "must be a place that can be listed.*source='nosuch://b/a/'"),
    "forbidden": ("listing-test://forbidden/", r"can be listed.*'listing-test://forbidden/' \("),
    "no prefix": ("listing-test://b/a", "at least one image .* a prefix must end in /"),
}


@pytest.mark.parametrize("source, match", BAD_SOURCES.values(), ids=BAD_SOURCES)
def test_list_images_bad_source_is_rejected(archive, objects, source, match):
    fill(archive, "a.png", "texts/a.txt", "a.tar")
    objects["listing-test://b/a/1.png"] = b""
    with rejected(match):
        list_images(["a.png", source], output="manifest.csv")


def test_list_images_output_as_text_is_rejected(archive):
    fill(archive, "a.png")
    with rejected("output must be CSV, TSV, JSON lines or Parquet, by its extension"):
        list_images(["."], output="manifest.lst.gz")


def test_list_images_output_of_unknown_format_is_rejected(archive):
    with rejected("must end in one of .csv"):
        list_images(["."], output="manifest.xlsx")


def test_list_images_output_over_a_source_is_rejected(archive):
    (archive / "labels.csv").write_text(NIH_HEADER)
    with rejected("output must be a file of its own, neither a folder nor a source"):
        list_images(["./labels.csv"], output="labels.csv", images=".")
    assert (archive / "labels.csv").read_text() == NIH_HEADER


def test_list_images_output_that_cannot_be_written_is_rejected(archive):
    fill(archive, "a.png")
    with rejected(r"folder that can be written to. Received: output='a.png/m.csv' \("):
        list_images(["."], output="a.png/m.csv")


def test_list_images_failure_keeps_the_manifest_of_before(archive):
    fill(archive, "a.png")
    (archive / "m.csv").write_text("before")
    with pytest.raises(InputError):
        list_images([".", "gone*"], output="m.csv")
    assert sorted(os.listdir()) == ["a.png", "m.csv"]
    assert (archive / "m.csv").read_text() == "before"


# Other schemes


@pytest.mark.parametrize(
    "source, expected, left_out",
    [
        ("listing-test://b/a/", ["a/1.png", "a/c/2.JPG"], 1),
        ("listing-test://b/", ["a/1.png", "a/c/2.JPG", "a1.png"], 1),
        ("listing-test://b/a*", ["a1.png"], 0),
        ("listing-test://b/a/1.png", ["a/1.png"], 0),
    ],
)
def test_list_images_of_another_scheme(archive, objects, source, expected, left_out):
    for name in ("a/", "a/1.png", "a/c/2.JPG", "a/c/n.txt", "a1.png"):
        objects[f"listing-test://b/{name}"] = b""
    assert list_images([source], output="m.csv") == Listing(len(expected), left_out)
    assert [row.uri for row in read("m.csv")] == [f"listing-test://b/{name}" for name in expected]


@pytest.mark.parametrize("extension", ["csv.gz", "parquet"])
def test_list_images_into_another_scheme(archive, objects, extension):
    names = ["f/a.png", "f//b.png", "f/x/../c.png", "g/d.png"]
    objects.update({f"listing-test://b/{name}": b"" for name in names})
    output = f"listing-test://b/f/m.{extension}"
    assert list_images(["listing-test://b/"], output=output) == Listing(4, 0)
    assert sorted(row.uri for row in read(output)) == sorted(
        f"listing-test://b/{name}" for name in names
    )
    assert "a.png" in ids(output)


# Archives


def write_tar(path, *names):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w" if path.suffix == ".tar" else "w:gz") as file:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = 4
            file.addfile(info, io.BytesIO(b"data"))


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz", "a.TGZ"])
def test_list_images_archive_is_listed_as_its_members(archive, name):
    write_tar(archive / name, "./images/b.png", "notes.txt", "a.jpg", "./images/b.png")
    assert list_images([name], output="m.csv") == Listing(2, 1)
    assert [(row.image_id, row.uri) for row in read("m.csv")] == [
        (f"{name}#images/b.png", f"{archive}/{name}#images/b.png"),
        (f"{name}#a.jpg", f"{archive}/{name}#a.jpg"),
    ]


def test_list_images_archives_are_found_in_folders_and_globs(archive):
    write_tar(archive / "x/a.tar.gz", "1.png")
    write_tar(archive / "x/b.tar", "2.png")
    fill(archive, "x/c.png")
    for source in ("x", "x/*"):
        assert list_images([source], output="m.csv") == Listing(3, 0)
        assert ids("m.csv") == ["x/a.tar.gz#1.png", "x/b.tar#2.png", "x/c.png"]


def test_list_images_archive_of_another_scheme(archive, objects):
    write_tar(archive / "a.tar", "1.png")
    objects["listing-test://b/x/a.tar"] = (archive / "a.tar").read_bytes()
    for source in ("listing-test://b/x/", "listing-test://b/x/a.tar"):
        assert list_images([source], output="m.csv") == Listing(1, 0)
        assert read("m.csv")[0].uri == "listing-test://b/x/a.tar#1.png"


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz"])
def test_list_images_archive_cut_short_is_listed_so_far_with_a_warning(archive, name, caplog):
    write_tar(archive / name, "1.png", "2.png")
    content = (archive / name).read_bytes()
    if name.endswith(".gz"):
        content = gzip.compress(gzip.decompress(content), 0)
    (archive / name).write_bytes(content[:1600])
    assert list_images([name], output="m.csv") == Listing(2, 0)
    assert caplog.messages == [
        f"source={name!r} holds an archive of which only 2 members can be listed"
        " (truncated: the archive ends before the member does)."
    ]


def test_list_images_archive_without_images_is_rejected(archive):
    write_tar(archive / "a.tar", "notes.txt")
    with rejected("source must hold at least one image .* source='a.tar'"):
        list_images(["a.tar"], output="manifest.csv")


def test_list_images_nih_images_in_archives(archive):
    write_nih(archive, NIH_ROWS)
    write_tar(archive / "nih/images_001.tar.gz", "images/1_001.png", "images/other.png")
    write_tar(archive / "nih/images_002.tar.gz", "1_000.png")
    assert list_images(["labels.csv"], output="m.csv", images="nih") == Listing(2, 1)
    assert [(row.image_id, row.uri) for row in read("m.csv")] == [
        ("1_000.png", f"{archive}/nih/images_002.tar.gz#1_000.png"),
        ("1_001.png", f"{archive}/nih/images_001.tar.gz#images/1_001.png"),
    ]


# The NIH CSV


def write_nih(archive, rows, name="labels.csv"):
    (archive / name).write_text(NIH_HEADER + rows)


NIH_ROWS = "1_000.png,Mass|Effusion,0,1,PA\n1_001.png,No Finding,1,1,\n2_000.png,Mass,0,2,AP\n"


def test_list_images_nih_rows_with_a_file_are_listed(archive):
    write_nih(archive, NIH_ROWS)
    fill(archive, "nih/images_001/images/1_001.png", "nih/images_002/images/1_000.png")
    fill(archive, "nih/other.png", "2_000.png")
    assert list_images(["labels.csv"], output="m.csv", images="nih") == Listing(2, 1)
    folder = f"{archive}/nih"
    assert read("m.csv") == [
        ManifestRow(
            "1_000.png", f"{folder}/images_002/images/1_000.png", ("1", "PA", "Mass|Effusion")
        ),
        ManifestRow(
            "1_001.png", f"{folder}/images_001/images/1_001.png", ("1", None, "No Finding")
        ),
    ]


def test_list_images_nih_images_of_another_scheme(archive, objects):
    write_nih(archive, NIH_ROWS)
    objects["listing-test://b/nih/deep/2_000.png"] = b""
    images = "listing-test://b/nih"
    assert list_images(["labels.csv"], output="m.csv", images=images) == Listing(1, 2)
    assert read("m.csv")[0].uri == "listing-test://b/nih/deep/2_000.png"


def test_list_images_nih_two_files_of_one_name_are_rejected(archive):
    write_nih(archive, NIH_ROWS)
    fill(archive, "nih/a/1_000.png", "nih/b/1_000.png", "nih/a/doe.png", "nih/b/doe.png")
    with rejected("images must hold one file of a name. Received: 1 .*first '1_000.png'. Remove"):
        list_images(["labels.csv"], output="manifest.csv", images="nih")


@pytest.mark.parametrize(
    "sources, images, received",
    [
        (["labels.csv"], None, "images=None, 1 sources, 1 of them CSV"),
        (["labels.csv", "."], "nih", "images='nih', 2 sources, 1 of them CSV"),
        (["."], "nih", "images='nih', 1 sources, 0 of them CSV"),
    ],
)
def test_list_images_nih_goes_with_its_images_alone(archive, sources, images, received):
    write_nih(archive, NIH_ROWS)
    fill(archive, "nih/1_000.png")
    with rejected(f"and that CSV be the one source. Received: {received}"):
        list_images(sources, output="manifest.csv", images=images)


@pytest.mark.parametrize("images", ["gone", "labels.csv"])
def test_list_images_images_that_are_no_folder_are_rejected(archive, images):
    write_nih(archive, NIH_ROWS)
    with rejected(f"images must be a folder. Received: images='{images}'"):
        list_images(["labels.csv"], output="manifest.csv", images=images)


def test_list_images_nih_without_any_file_is_rejected(archive):
    write_nih(archive, NIH_ROWS)
    fill(archive, "nih/other.png")
    with rejected("must hold files that the NIH CSV names. Received: images='nih', without any"):
        list_images(["labels.csv"], output="manifest.csv", images="nih")


@pytest.mark.parametrize("header", ["uri,Image Index", "image_id"])
def test_list_images_other_csv_is_rejected(archive, header):
    (archive / "labels.csv").write_text(f"{header}\n")
    with rejected("must be the NIH Data_Entry CSV with a column 'Image Index'"):
        list_images(["labels.csv"], output="manifest.csv", images=".")


def test_list_images_nih_csv_that_breaks_a_rule_is_rejected(archive):
    write_nih(archive, NIH_ROWS + NIH_ROWS)
    fill(archive, "nih/1_000.png")
    with rejected("image_id must be unique. Received: 3 more than once, first '1_000.png'"):
        list_images(["labels.csv"], output="manifest.csv", images="nih")


def test_list_images_nih_gives_the_two_hundred_images(nih_labels, nih_images, tmp_path):
    output = tmp_path / "m.parquet"
    images = os.path.dirname(nih_images[0])
    listing = list_images([str(nih_labels)], output=str(output), images=images)
    assert listing == Listing(200, 112_120 - 200)
    rows = read(output)
    assert [row.image_id for row in rows] == sorted(path.name for path in nih_images)
    assert sorted(row.uri for row in rows) == sorted(str(path.absolute()) for path in nih_images)
    assert all(
        patient == str(int(row.image_id[:8])) and view in ("PA", "AP") and labels
        for row in rows
        for patient, view, labels in [row.carried]
    )


# The command


def test_manifest_command_says_what_it_listed(archive):
    fill(archive, "a.png", "b.png", "c.txt")
    result = CliRunner().invoke(manifest_command, [".", "--output", "m.csv"])
    assert (result.exit_code, result.output) == (0, "2 images listed in m.csv; 1 left out.\n")
    assert ids("m.csv") == ["a.png", "b.png"]


def test_manifest_command_nih_takes_images(archive):
    write_nih(archive, NIH_ROWS)
    fill(archive, "nih/1_000.png")
    arguments = ["labels.csv", "--images", "nih", "--output", "m.csv"]
    result = CliRunner().invoke(manifest_command, arguments)
    assert (result.exit_code, result.output) == (0, "1 image listed in m.csv; 2 left out.\n")


def test_manifest_command_bad_source_exits_with_two_and_one_line(archive):
    result = CliRunner().invoke(manifest_command, ["gone", "--output", "m.csv"])
    assert (result.exit_code, result.stdout) == (2, "")
    assert "source must be a folder, a glob" in result.stderr
    assert "Traceback" not in result.stderr


def test_manifest_command_help_explains_every_option(archive):
    output = CliRunner().invoke(manifest_command, ["--help"]).output
    assert "--output FILE    Manifest to write" in output
    assert "[required]" in output
    assert "--dicom          Read the headers" in output
    assert "--hash-key FILE  Hash the ids" in output
    assert re.search(r"--images DIR     Folder of the images.*\[default: \(none\)\]", output, re.S)
