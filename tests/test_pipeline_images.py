"""Loading images: facts and pixels of a good file, one reject of a bad one, and no mixing."""

import errno
import functools
import hashlib
import os
import threading
import time

import numpy as np
import pytest
from apache_beam import Create, Pipeline
from apache_beam.metrics import MetricsFilter
from PIL import Image

from model import reading
from model.phantoms import draw_phantom
from pipeline import images, read_ahead, source
from pipeline.elements import ImageFacts, LoadedImage, RejectedImage
from pipeline.images import (
    LOADED,
    READS_RETRIED,
    REJECTED,
    Checks,
    ImageLoader,
    LoadImageDoFn,
    LoadImages,
    load_image,
)
from pipeline.read_ahead import ReadAhead
from pipeline.runner import counter
from pipeline.stopping import STOP
from pipeline.watch import Watch
from schemas.quality import Quality
from schemas.rejects import Reason, Stage
from scripts.dicom_files import dicom_file
from tests.bad_files import grey_picture, write_bad_files, write_odd_files
from tests.fakes import LOCAL, collect, manifest_row, varied_picture, write_picture

_WHEN_NS = 1_700_000_000_123_456_789
_NO_FILE = {"missing.png", "folder.png", "pipe.png"}
_PATIENCE_S = 30.0

CHEST = draw_phantom(21, 0, size=224).pixels
"""Nothing is amiss with it."""


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
        version = (image.size_bytes, image.source_version)
        return (image.row, image.error.reason, *version, image.attempts)
    digest = hashlib.sha256(image.pixels.tobytes()).hexdigest()
    shape = (image.pixels.shape, str(image.pixels.dtype))
    return (image.row, image.facts, *shape, digest, image.attempts)


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
        quality=(Quality.LOW_RESOLUTION, Quality.ODD_ASPECT),
    )


@pytest.mark.parametrize(
    ("view", "codes"), [("LATERAL", (Quality.LATERAL,)), ("PA", ()), (None, ())]
)
def test_load_image_view_of_the_manifest_is_among_what_is_amiss(tmp_path, view, codes):
    row = manifest_row("a", write_picture(tmp_path / "a.png", CHEST), ("17", view))
    assert ImageLoader(1, Checks(view_at=1))(row, Watch()).facts.quality == codes
    assert load_image(row).facts.quality == ()


@pytest.mark.parametrize(
    ("listed", "header", "expected"),
    [
        ("PA", "LL", (Quality.LATERAL, Quality.BURNED_IN_ANNOTATION)),
        ("LL", "PA", (Quality.LATERAL, Quality.BURNED_IN_ANNOTATION)),
        (None, "AP", (Quality.BURNED_IN_ANNOTATION,)),
    ],
)
def test_load_image_view_of_the_dicom_header_counts_as_the_manifests(
    tmp_path, listed, header, expected
):
    path = tmp_path / "a.dcm"
    path.write_bytes(dicom_file(CHEST, ViewPosition=header, BurnedInAnnotation="YES"))
    row = manifest_row("a", path, (listed,))
    assert ImageLoader(1, Checks(view_at=0))(row, Watch()).facts.quality == expected
    rejected = ImageLoader(1, Checks(view_at=0, rejects=True))(row, Watch())
    if Quality.LATERAL in expected:
        assert str(rejected.error) == "lateral: quality: lateral, burned_in_annotation"
    else:
        assert isinstance(rejected, LoadedImage)


def test_load_image_not_to_be_believed_is_rejected_where_that_is_asked_for(tmp_path):
    path = write_picture(tmp_path / "a.png", 255 - CHEST)
    row = manifest_row("a", path, ("LL",))
    rejected = ImageLoader(1, Checks(view_at=0, rejects=True))(row, Watch())
    assert (rejected.row, rejected.size_bytes) == (row, path.stat().st_size)
    assert (rejected.error.reason, rejected.error.reason.stage) == ("inverted_suspect", "gate")
    assert rejected.error.detail == "quality: inverted_suspect, clipped, lateral"
    assert isinstance(ImageLoader(1, Checks(view_at=0))(row, Watch()), LoadedImage)


def test_load_image_amiss_in_what_does_not_gate_is_loaded(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(CHEST).resize((100, 100)).save(path)
    loaded = ImageLoader(1, Checks(rejects=True))(manifest_row("a", path), Watch())
    assert loaded.facts.quality == (Quality.LOW_RESOLUTION,)


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


def test_load_image_bad_files_have_a_size_and_version_where_there_is_a_file(bad_files):
    folder, expected = bad_files
    for name in expected:
        image = load_image(manifest_row(name, folder / name))
        if name in _NO_FILE:
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


class FlakyDisk:
    """Fails to open a file a number of times, by its name, in place of `open`."""

    def __init__(self, monkeypatch, failures):
        self.failures = dict(failures)
        monkeypatch.setattr(reading, "open", self, raising=False)
        monkeypatch.setattr(source, "PAUSES_S", (0.0, 0.0, 0.0))

    def __call__(self, path, mode):
        name = os.path.basename(path)
        if self.failures.get(name):
            self.failures[name] -= 1
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return open(path, mode)


@pytest.mark.parametrize("failures", [0, 1, 3, 4], ids=str)
def test_load_image_transient_errors_are_counted(good_rows, monkeypatch, failures):
    FlakyDisk(monkeypatch, {"0.png": failures})
    image = load_image(good_rows[0])
    assert image.attempts == min(failures + 1, 4)
    if failures < 4:
        assert image.facts == load_image(good_rows[0]).facts
    else:
        status = os.stat(good_rows[0].uri)
        assert image.error.reason is Reason.READ_ERROR
        assert image.error.detail == os.strerror(errno.EIO)
        assert image.size_bytes == status.st_size
        assert image.source_version == str(status.st_mtime_ns)


def test_load_image_tells_when_it_decodes(good_rows, monkeypatch):
    stages, watch = [], Watch()

    def noting(step):
        def note_and_do(*arguments):
            stages.append((step.__name__, watch.stage))
            return step(*arguments)

        return note_and_do

    for name in ("read_source", "prepare"):
        monkeypatch.setattr(images, name, noting(getattr(images, name)))
    ImageLoader(1)(good_rows[0], watch)
    assert stages == [("read_source", Stage.READ), ("prepare", Stage.DECODE)]


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
        "reads_retried": 0,
    }


def test_load_images_error_of_the_program_ends_the_run(good_rows, monkeypatch):
    def broken(data):
        raise RuntimeError("a defect in decoding")

    monkeypatch.setattr(images, "prepare", broken)
    with pytest.raises(Exception, match="a defect in decoding"):
        load(good_rows)


def test_load_images_counts_reads_that_were_retried(good_rows, monkeypatch):
    FlakyDisk(monkeypatch, {"1.png": 1, "4.png": 3, "7.png": 9})
    result = LOCAL.run(
        lambda pipeline: pipeline | Create(good_rows) | LoadImages(threads=2, read_ahead=4)
    )
    counted = {name: counter(result, name) for name in ("images_loaded", READS_RETRIED)}
    assert counted == {"images_loaded": 9, READS_RETRIED: 1 + 3 + 3}


@pytest.fixture
def hung(monkeypatch):
    """Returns a function that makes a step of loading hang for some rows; they go on at the end.

    The time-outs are short.
    """
    release = threading.Event()
    impatient = functools.partial(ReadAhead, timeout_s=0.6, late_s=0.1)
    monkeypatch.setattr(images, "ReadAhead", impatient)
    monkeypatch.setattr(read_ahead, "_TICK_S", 0.02)

    def make(module, name, hangs):
        step = getattr(module, name)

        def hang(argument, *others):
            if hangs(argument):
                assert release.wait(_PATIENCE_S)
            return step(argument, *others)

        monkeypatch.setattr(module, name, hang)

    yield make
    release.set()


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("module", "step", "reason", "is_found"),
    [
        (source, "look_up", Reason.READ_TIMEOUT, False),
        (source, "read_content", Reason.READ_TIMEOUT, True),
        (images, "prepare", Reason.DECODE_TIMEOUT, True),
    ],
    ids=["look_up", "read", "decode"],
)
def test_load_images_hung_image_is_rejected_and_costs_no_neighbour(
    good_rows, hung, module, step, reason, is_found
):
    alone = [summary(load_image(row)) for row in good_rows]
    with open(good_rows[3].uri, "rb") as file:
        content = file.read()
    hung(module, step, lambda argument: argument in (good_rows[3].uri, content))
    loaded, rejected = load(good_rows, threads=2, read_ahead=4)
    # On a busy machine a good one may have come late.
    assert sorted(loaded, key=str) == sorted(alone[:3] + alone[4:], key=str)
    status = os.stat(good_rows[3].uri)
    version = (status.st_size, str(status.st_mtime_ns)) if is_found else (None, None)
    assert rejected == [(good_rows[3], reason, *version, 1)]


class Gauge:
    """Counts how many calls are under way at once, and how many there were at most."""

    def __init__(self, step, lasts_s=0.0):
        self._step, self._lasts_s = step, lasts_s
        self._lock, self._now = threading.Lock(), 0
        self.most = 0

    def __call__(self, *arguments):
        with self._lock:
            self._now += 1
            self.most = max(self.most, self._now)
        time.sleep(self._lasts_s)
        try:
            return self._step(*arguments)
        finally:
            with self._lock:
                self._now -= 1


def test_load_images_many_are_read_at_once_and_few_decoded(good_rows, monkeypatch):
    reads = Gauge(source.read_content, lasts_s=0.2)
    decodes = Gauge(images.prepare, lasts_s=0.01)
    monkeypatch.setattr(source, "read_content", reads)
    monkeypatch.setattr(images, "prepare", decodes)
    loaded, _ = load(good_rows * 4, threads=2, read_ahead=64)
    assert len(loaded) == 40
    assert 16 < reads.most <= images.READS_AT_ONCE
    assert decodes.most == 2


def test_load_images_holds_no_more_bytes_than_it_may(good_rows, monkeypatch):
    largest = max(os.path.getsize(row.uri) for row in good_rows)
    monkeypatch.setattr(images, "MOST_READ_BYTES", 3 * largest)
    reads = Gauge(source.read_content, lasts_s=0.02)
    monkeypatch.setattr(source, "read_content", reads)
    alone = [summary(load_image(row)) for row in good_rows]
    assert load(good_rows, threads=2, read_ahead=64) == [alone, []]
    assert 1 <= reads.most <= 3 * largest // min(os.path.getsize(row.uri) for row in good_rows)


# Stopping


@pytest.fixture
def stop():
    """The request to stop, not made before nor after."""
    STOP.reset()
    yield STOP
    STOP.reset()


def test_load_images_stop_requested_before_reads_and_gives_nothing(good_rows, stop, monkeypatch):
    def read(*_):
        raise AssertionError("an image was read")

    monkeypatch.setattr(images, "read_source", read)
    stop.request()
    assert load(good_rows) == [[], []]


def test_load_images_stop_requested_meanwhile_gives_no_more(good_rows, stop):
    dofn, given = LoadImageDoFn(threads=1, read_ahead=2), []
    dofn.setup()
    for number, row in enumerate(good_rows):
        if number == 5:
            stop.request()
        given += [image.row.image_id for image in dofn.process(row)]
    given += list(dofn.finish_bundle())
    dofn.teardown()
    assert given == ["good-0", "good-1", "good-2"]
