import csv
import subprocess
import sys
import tarfile

import numpy as np
import pytest
from click.testing import CliRunner

from jobs.sample import sample_command
from model.decoding import decode_grey
from model.phantoms import draw_phantom

SEED, SIZE, COUNT = 3, 64, 5
NAMES = [f"phantom-s3-0000{index}.{'jpg' if index == 3 else 'png'}" for index in range(COUNT)]


def run(dest, *options, count=COUNT):
    fixed = ["--count", str(count), "--seed", str(SEED), "--size", str(SIZE)]
    return CliRunner().invoke(sample_command, [str(dest), *fixed, *map(str, options)])


def read_rows(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def read_tree(folder):
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    dest = tmp_path_factory.mktemp("sample") / "archive"
    result = run(dest)
    assert result.exit_code == 0, result.output
    return dest


@pytest.fixture(scope="module")
def drawn():
    return [draw_phantom(SEED, index, SIZE) for index in range(COUNT)]


def test_sample_new_folder_holds_images_boxes_and_manifest(archive):
    assert set(read_tree(archive)) == {
        "manifest.csv",
        "boxes.csv",
        *(f"images/{name}" for name in NAMES),
    }


def test_sample_manifest_has_exact_rows(archive, drawn):
    header, *rows = read_rows(archive / "manifest.csv")
    assert header == ["image_id", "uri", "patient_id", "view_position", "labels"]
    assert rows == [
        [
            name.partition(".")[0],
            f"images/{name}",
            f"phantom-s3-p0000{index // 2}",
            "PA",
            "|".join(phantom.findings),
        ]
        for index, (name, phantom) in enumerate(zip(NAMES, drawn, strict=True))
    ]


def test_sample_boxes_has_exact_rows(archive, drawn):
    header, *rows = read_rows(archive / "boxes.csv")
    assert header == ["image_id", "finding", "x", "y", "width", "height"]
    assert rows == [
        [name.partition(".")[0], box.finding, *map(str, (box.x, box.y, box.width, box.height))]
        for name, phantom in zip(NAMES, drawn, strict=True)
        for box in phantom.boxes
    ]
    assert rows


@pytest.mark.parametrize("index", range(COUNT))
def test_sample_image_decodes_to_the_phantom(archive, drawn, index):
    data = (archive / "images" / NAMES[index]).read_bytes()
    pixels = np.asarray(decode_grey(data).image)
    assert pixels.shape == (SIZE, SIZE)
    if NAMES[index].endswith(".png"):
        assert data.startswith(b"\x89PNG")
        np.testing.assert_array_equal(pixels, drawn[index].pixels)
    else:
        assert data.startswith(b"\xff\xd8\xff")
        assert np.abs(pixels.astype(int) - drawn[index].pixels).mean() < 4


def test_sample_same_seed_writes_the_same_bytes(archive, tmp_path):
    run(tmp_path / "again")
    assert read_tree(tmp_path / "again") == read_tree(archive)


def test_sample_in_a_tar_archive_holds_the_same_images(archive, tmp_path):
    dest = tmp_path / "packed"
    result = run(dest, "--layout", "tar")
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in dest.iterdir()) == [
        "boxes.csv",
        "images.tar",
        "manifest.csv",
    ]
    with tarfile.open(dest / "images.tar") as tar:
        found = {member.name: tar.extractfile(member).read() for member in tar}
    images = sorted((archive / "images").iterdir())
    assert found == {f"images/{path.name}": path.read_bytes() for path in images}
    manifest = (archive / "manifest.csv").read_text()
    packed = manifest.replace(",images/", ",images.tar#images/")
    assert (dest / "manifest.csv").read_text() == packed


def test_sample_fewer_images_writes_the_same_first_images(archive, tmp_path):
    run(tmp_path / "fewer", count=2)
    images = read_tree(tmp_path / "fewer" / "images")
    assert images == {name: read_tree(archive / "images")[name] for name in NAMES[:2]}


def test_sample_empty_folder_is_filled(tmp_path):
    result = run(tmp_path, count=1)
    assert result.exit_code == 0
    assert (tmp_path / "manifest.csv").exists()


def test_sample_done_says_what_to_type_next(tmp_path):
    dest = tmp_path / "my archive"
    result = run(dest, count=2)
    manifest = dest / "manifest.csv"
    assert result.stdout == (
        f"Wrote 2 phantoms and {manifest}."
        f" Next: prescreen score --manifest '{manifest}' --output results\n"
    )
    assert result.stderr == ""


def test_sample_manifest_above_images_has_relative_uris(tmp_path):
    result = run(tmp_path / "archive", "--manifest", tmp_path / "all.csv", count=1)
    assert result.stdout.startswith("Wrote 1 phantom and ")
    _, row = read_rows(tmp_path / "all.csv")
    assert row[1] == f"archive/images/{NAMES[0]}"
    assert not (tmp_path / "archive" / "manifest.csv").exists()


def test_sample_manifest_elsewhere_has_absolute_uris(tmp_path):
    run(tmp_path / "archive", "--manifest", tmp_path / "lists" / "all.csv", count=1)
    _, row = read_rows(tmp_path / "lists" / "all.csv")
    assert row[1] == str((tmp_path / "archive" / "images" / NAMES[0]).resolve())


def test_sample_folder_in_use_is_bad_input_and_changes_nothing(tmp_path):
    (tmp_path / "note.txt").write_text("mine")
    result = run(tmp_path)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr == (
        f"Error: DEST must be a new or empty folder. Received: {tmp_path}, which is not empty."
        " Remove it or name another.\n"
    )
    assert read_tree(tmp_path) == {"note.txt": b"mine"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--manifest", "all.txt"], "FILE must end in .csv. Received: all.txt."),
        (["--count", "0"], "0 is not in the range x>=1."),
        (["--seed", "-1"], "-1 is not in the range x>=0."),
        (["--size", "63"], "63 is not in the range x>=64."),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_sample_option_out_of_range_is_bad_usage(tmp_path, options, message):
    result = run(tmp_path / "archive", *options)
    assert result.exit_code == 2
    assert message in result.stderr
    assert not (tmp_path / "archive").exists()


def test_sample_dest_that_is_a_file_is_bad_usage(tmp_path):
    (tmp_path / "archive").touch()
    result = run(tmp_path / "archive")
    assert result.exit_code == 2
    assert "is a file" in result.stderr


def test_sample_options_all_have_help():
    options = {param.name: param for param in sample_command.params}
    for name in ("count", "seed", "size", "manifest"):
        assert options[name].help.endswith(".")
        assert options[name].show_default


def test_module_when_imported_loads_nothing_heavy():
    code = (
        "import sys, jobs.sample;"
        "print([name for name in ('numpy', 'PIL', 'tqdm', 'tensorflow', 'apache_beam')"
        " if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
