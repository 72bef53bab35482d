"""Loading images: facts and pixels of a good file, one reject of a bad one, and no mixing."""

import hashlib
import os

import numpy as np
import pytest
from apache_beam import Create, Pipeline
from apache_beam.metrics import MetricsFilter
from PIL import Image

from pipeline import images
from pipeline.elements import ImageFacts, LoadedImage, RejectedImage
from pipeline.images import LOADED, REJECTED, LoadImages, load_image
from tests.bad_files import grey_picture, write_bad_files, write_odd_files
from tests.fakes import LOCAL, collect, manifest_row, varied_picture, write_picture

_WHEN_NS = 1_700_000_000_123_456_789
_NEVER_READ = {"missing.png", "folder.png", "pipe.png", "unreadable.png"}


@pytest.fixture(scope="module")
def bad_files(tmp_path_factory):
    """A folder of bad files and the reason expected of each."""
    folder = tmp_path_factory.mktemp("bad")
    return folder, write_bad_files(folder)


@pytest.fixture(scope="module")
def good_rows(tmp_path_factory):
    """Manifest rows of ten good pictures, all different."""
    folder = tmp_path_factory.mktemp("good")
    return [
        manifest_row(f"good-{index}", write_picture(folder / f"{index}.png", varied_picture(index)))
        for index in range(10)
    ]


def summary(image):
    """Returns all that a loaded or rejected image holds, as something that can be compared."""
    if isinstance(image, RejectedImage):
        return (image.row, image.error.reason, image.size_bytes, image.source_version)
    digest = hashlib.sha256(image.pixels.tobytes()).hexdigest()
    return (image.row, image.facts, image.pixels.shape, str(image.pixels.dtype), digest)


# One image


def test_load_image_good_file_gives_its_facts_and_square(tmp_path):
    path = tmp_path / "scan.png"
    picture = Image.fromarray(grey_picture(height=300, width=180))
    picture.save(path)
    os.utime(path, ns=(0, _WHEN_NS))
    row = manifest_row("a", path, ("17", None))
    loaded = load_image(row)
    square = np.asarray(picture.resize((224, 224), Image.Resampling.BILINEAR))
    assert isinstance(loaded, LoadedImage) and loaded.row is row
    assert loaded.pixels.dtype == np.uint8
    np.testing.assert_array_equal(loaded.pixels, square)
    assert loaded.facts == ImageFacts(
        width=180,
        height=300,
        size_bytes=path.stat().st_size,
        source_version="1700000000123456789",
        content_sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        mean_intensity=pytest.approx(square.astype(float).sum() / 224**2, abs=1e-9),
        std_intensity=pytest.approx(square.astype(float).std(), abs=1e-9),
    )


def test_load_image_square_of_the_networks_size_is_taken_as_it_is(tmp_path):
    path = write_picture(tmp_path / "a.png", varied_picture(3))
    np.testing.assert_array_equal(load_image(manifest_row("a", path)).pixels, varied_picture(3))


def test_load_image_turned_by_exif_has_the_size_it_is_shown_in(tmp_path):
    write_odd_files(tmp_path)
    upright = load_image(manifest_row("a", tmp_path / "grey.png"))
    turned = load_image(manifest_row("b", tmp_path / "turned.png"))
    assert (turned.facts.width, turned.facts.height) == (96, 72)
    np.testing.assert_array_equal(turned.pixels, upright.pixels)


def test_load_image_bad_files_are_rejected_each_for_its_reason(bad_files):
    folder, expected = bad_files
    outcome = {name: load_image(manifest_row(name, folder / name)) for name in expected}
    assert {name: type(image) for name, image in outcome.items()} == dict.fromkeys(
        expected, RejectedImage
    )
    assert {name: image.error.reason for name, image in outcome.items()} == expected


def test_load_image_bad_files_read_have_a_size_and_version_and_others_none(bad_files):
    folder, expected = bad_files
    for name in expected:
        image = load_image(manifest_row(name, folder / name))
        if name in _NEVER_READ:
            assert (name, image.size_bytes, image.source_version) == (name, None, None)
        else:
            status = os.stat(folder / name)
            known = (status.st_size, str(status.st_mtime_ns))
            assert (name, image.size_bytes, image.source_version) == (name, *known)


def test_load_image_reject_detail_is_one_line_without_the_path(bad_files):
    folder, expected = bad_files
    for name in expected:
        detail = load_image(manifest_row(name, folder / name)).error.detail
        assert detail and "\n" not in detail and str(folder) not in detail and name not in detail


def test_load_image_error_of_the_program_is_raised(tmp_path, monkeypatch):
    def broken(data):
        raise RuntimeError("a defect")

    monkeypatch.setattr(images, "prepare", broken)
    path = write_picture(tmp_path / "a.png", varied_picture(0))
    with pytest.raises(RuntimeError, match="a defect"):
        load_image(manifest_row("a", path))


# In a pipeline


def load(rows, *, threads=2, read_ahead=8):
    """Loads rows in a pipeline; returns summaries of the loaded images and of the rejected."""

    def build(pipeline):
        transform = LoadImages(threads=threads, read_ahead=read_ahead)
        loaded = pipeline | Create(rows, reshuffle=False) | transform
        return {tag: loaded[tag] for tag in (LOADED, REJECTED)}

    outputs = collect(build)
    return [[summary(image) for image in outputs[tag]] for tag in (LOADED, REJECTED)]


@pytest.mark.parametrize(
    ("threads", "read_ahead"),
    [(1, 1), (2, 4), (4, 10), (2, 100)],
    ids=["one_by_one", "ahead", "exactly_all", "more_than_there_are"],
)
def test_load_images_any_read_ahead_gives_each_image_once_in_order(good_rows, threads, read_ahead):
    alone = [summary(load_image(row)) for row in good_rows]
    assert load(good_rows, threads=threads, read_ahead=read_ahead) == [alone, []]


def test_load_images_bad_files_between_good_ones_cost_no_neighbour(good_rows, bad_files):
    folder, expected = bad_files
    bad_rows = [manifest_row(name, folder / name) for name in expected]
    mixed = [row for pair in zip(bad_rows, good_rows, strict=False) for row in pair]
    rows = mixed + bad_rows[len(good_rows) :]
    loaded, rejected = load(rows)
    assert loaded == [summary(load_image(row)) for row in good_rows]
    assert rejected == [summary(load_image(row)) for row in bad_rows]


def test_load_images_counts_loaded_and_rejected(good_rows, bad_files):
    folder, expected = bad_files
    rows = [*good_rows, *(manifest_row(name, folder / name) for name in expected)]
    pipeline = Pipeline(runner="FnApiRunner", options=LOCAL.options)
    _ = pipeline | Create(rows) | LoadImages(threads=2, read_ahead=4)
    metrics = pipeline.run().metrics().query(MetricsFilter().with_namespace("prescreen"))
    assert {found.key.metric.name: found.committed for found in metrics["counters"]} == {
        "images_loaded": 10,
        "images_rejected_at_load": len(expected),
    }


def test_load_images_error_of_the_program_ends_the_run(good_rows, monkeypatch):
    def broken(data):
        raise RuntimeError("a defect in decoding")

    monkeypatch.setattr(images, "prepare", broken)
    with pytest.raises(Exception, match="a defect in decoding"):
        load(good_rows)
