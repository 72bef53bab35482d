"""The fuzzer: damage follows from the seed, and harm that is planted is found."""

import functools
import gzip
import io
import os
import random
import signal
import sys
import time
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from model import preprocessing
from model.decoding import decode_grey
from model.phantoms import draw_phantom
from schemas.rejects import ImageError, Reason

# The scripts are no package: they are run by path, and so find one another.
sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))

import fuzz
import fuzz_checks
import fuzz_mutations
from fuzz_inputs import (
    MutatedImages,
    MutatedManifests,
    Original,
    drawn_images,
    drawn_manifests,
    folder_images,
)

IMAGES = drawn_images()
BY_NAME = {image.name: image for image in IMAGES}
JPEG, DICOM, LOSSLESS = (
    BY_NAME[name] for name in ("restarts.jpg", "modality_lut.dcm", "JPEGLosslessSV1.dcm")
)
MANIFESTS = drawn_manifests()
MAGICS = (b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"PAR1", bytes(128) + b"DICM")
LIMITS = fuzz.Limits(time_s=60, memory_mb=4096)
quick = settings(deadline=None, max_examples=30)
any_bytes = st.builds(bytes.__add__, st.sampled_from(MAGICS), st.binary(max_size=300))


def names_of(originals):
    return [original.name for original in originals]


# What is damaged


def test_drawn_images_decode():
    check = fuzz_checks.CheckImages()
    assert {image.name: check(image) for image in IMAGES} == dict.fromkeys(BY_NAME, "square")


def test_drawn_images_differ_in_encoding():
    assert len({image.data for image in IMAGES}) == 35
    grey = draw_phantom(1, 0, 64).pixels
    (interlaced,) = (image.data for image in IMAGES if image.name == "interlaced.png")
    assert Image.open(io.BytesIO(interlaced)).info["interlace"] == 1
    assert np.array_equal(np.asarray(decode_grey(interlaced).image), grey)


def test_folder_images_are_those_of_known_extensions_without_their_names(tmp_path):
    for name in ("doe.PNG", "doe.dcm", "doe.jpeg", "notes.txt"):
        (tmp_path / name).write_bytes(name.encode())
    assert folder_images([str(tmp_path)]) == [
        Original("folder.png", b"doe.PNG"),
        Original("folder.dcm", b"doe.dcm"),
        Original("folder.jpeg", b"doe.jpeg"),
    ]


# Damage


def test_mutated_inputs_follow_from_seed_and_number(tmp_path):
    (tmp_path / "a.png").write_bytes(IMAGES[0].data)
    made = [MutatedImages((str(tmp_path),), 1), MutatedImages((str(tmp_path),), 1)]
    first, second = ([make(number) for number in range(50)] for make in made)
    assert first == second
    other = [MutatedImages((str(tmp_path),), 2)(number) for number in range(50)]
    assert sum(a == b for a, b in zip(first, other, strict=True)) < 5
    assert 10 < names_of(first).count("folder.png") < 40
    assert [MutatedManifests(1)(n) for n in (3, 4)] == [MutatedManifests(1)(n) for n in (3, 4)]


def test_mutated_images_are_damaged_and_some_still_decode():
    make, whole = MutatedImages((), 1), {image.data for image in IMAGES}
    inputs = [make(number) for number in range(200)]
    assert sum(given.data in whole for given in inputs) < 20
    check = fuzz_checks.CheckImages()
    outcomes = {check(given) for given in inputs}
    assert {"square", "corrupt", "truncated", "not_an_image"} <= outcomes


@pytest.mark.parametrize("mutator", dict.fromkeys(fuzz_mutations.MUTATORS))
@quick
@given(data=any_bytes, other=any_bytes, seed=st.integers(0, 2**32))
def test_mutator_of_any_bytes_gives_bytes(mutator, data, other, seed):
    assert isinstance(mutator(random.Random(seed), data, other), bytes)


@pytest.mark.parametrize("mutator", dict.fromkeys(fuzz_mutations.MUTATORS))
@pytest.mark.parametrize("image", [IMAGES[1], JPEG, DICOM], ids=["PNG", "JPEG", "DICOM"])
def test_mutator_of_an_image_changes_it(image, mutator):
    rng = random.Random(5)
    changed = [mutator(rng, image.data, IMAGES[0].data) != image.data for _ in range(40)]
    assert sum(changed) > 25


def test_change_cell_of_a_table_puts_texts_in_place_of_cells():
    rng = random.Random(1)
    changed = {fuzz_mutations.change_cell(rng, b'uri,"a b"\nc,d\n', b"") for _ in range(600)}
    assert {b'uri,"a b"\n#,d\n', b'uri,"NaN"\nc,d\n', b'uri,"a bgs://"\nc,d\n'} <= changed


@quick
@given(data=any_bytes)
def test_pieces_joined_are_the_file(data):
    assert b"".join(fuzz_mutations.pieces_of(data)) == data


def test_pieces_are_chunks_segments_and_lines():
    png, jpeg = IMAGES[1].data, JPEG.data
    kinds = [piece[4:8] for piece in fuzz_mutations.pieces_of(png)]
    assert kinds[1:3] == [b"IHDR", b"IDAT"]
    assert kinds[-2:] == [b"IDAT", b"IEND"]
    markers = [piece[1] for piece in fuzz_mutations.pieces_of(jpeg)]
    assert (markers[0], markers[-2:]) == (0xD8, [0xDA, 0xD9])
    assert fuzz_mutations.pieces_of(b"a\nb\n\nc") == [b"a\n", b"b\n", b"\n", b"c"]
    elements = fuzz_mutations.pieces_of(DICOM.data)
    assert elements[0] == bytes(128) + b"DICM"
    assert [element[:4] for element in elements[-2:]] == [b"(\0\0\x30", b"\xe0\x7f\x10\0"]


@quick
@given(seed=st.integers(0, 2**32))
def test_change_body_of_a_compressed_dicom_keeps_its_fragment_whole(seed):
    changed = fuzz_mutations.change_body(random.Random(seed), LOSSLESS.data, b"")
    if changed[:-2000] == LOSSLESS.data[:-2000] and changed[-8:] == LOSSLESS.data[-8:]:
        at = changed.index(b"\xfe\xff\x00\xe0\x04") + 12
        assert len(changed) == at + 8 + int.from_bytes(changed[at + 4 : at + 8], "little") + 8


def test_with_checksums_puts_each_chunk_right():
    damaged = bytearray(IMAGES[1].data)
    damaged[50] ^= 1
    mended = fuzz_mutations.with_checksums(bytes(damaged))
    assert mended != damaged
    for chunk in fuzz_mutations.pieces_of(mended)[1:]:
        assert zlib.crc32(chunk[4:-4]) == int.from_bytes(chunk[-4:])
    assert fuzz_mutations.with_checksums(IMAGES[1].data) == IMAGES[1].data


# What must hold of an image


@pytest.fixture
def replaced(monkeypatch):
    """Puts a function in the place of `prepare` that gets it and the bytes."""

    def replace(function):
        real = preprocessing.prepare
        monkeypatch.setattr(preprocessing, "prepare", lambda data: function(real, data))

    return replace


def harm_of(check, given):
    with pytest.raises(fuzz_checks.Harm) as caught:
        check(given)
    return str(caught.value)


def test_check_images_gives_the_reason_of_a_reject():
    assert fuzz_checks.CheckImages()(Original("a.png", IMAGES[0].data[:-5])) == "truncated"


def test_check_images_neighbour_of_one_wrong_pixel_is_found(replaced):
    check = fuzz_checks.CheckImages()
    neighbour = IMAGES[0].data

    def one_pixel_off(real, data):
        prepared = real(data)
        if data != neighbour:
            return prepared
        pixels = prepared.pixels.copy()
        pixels[100, 100] ^= 1
        return preprocessing.PreparedImage(pixels, prepared.width, prepared.height)

    replaced(one_pixel_off)
    assert harm_of(check, Original("a.png", b"damage")) == "a neighbour has other pixels"


def test_check_images_another_outcome_the_second_time_is_found(replaced):
    check = fuzz_checks.CheckImages()
    seen = []

    def once(real, data):
        if data == b"damage" and not seen:
            seen.append(data)
            return real(IMAGES[2].data)
        return real(data)

    replaced(once)
    assert harm_of(check, Original("a.png", b"damage")) == "another outcome the second time"


@pytest.mark.parametrize(
    "pixels, harm",
    [
        (np.zeros((224, 224), np.float32), "a square of shape (224, 224) and type float32"),
        (np.zeros((224, 225), np.uint8), "a square of shape (224, 225) and type uint8"),
    ],
    ids=["type", "shape"],
)
def test_check_images_square_of_another_kind_is_found(replaced, pixels, harm):
    check = fuzz_checks.CheckImages()
    odd = preprocessing.PreparedImage(pixels, 1, 1)
    replaced(lambda real, data: odd if data == b"damage" else real(data))
    assert harm_of(check, Original("a.png", b"damage")) == harm


def test_check_images_reason_of_another_stage_is_found(replaced):
    check = fuzz_checks.CheckImages()

    def not_found(real, data):
        if data == b"damage":
            raise ImageError(Reason.NOT_FOUND, "gone")
        return real(data)

    replaced(not_found)
    expected = "not_found is no reason of decoding"
    assert harm_of(check, Original("a.png", b"damage")) == expected


# What must hold of a manifest


@pytest.fixture
def check_manifests(tmp_path):
    return fuzz_checks.CheckManifests(str(tmp_path))


def test_check_manifests_whole_ones_are_checked_in_every_format(check_manifests):
    assert [check_manifests(manifest) for manifest in MANIFESTS] == ["checked"] * len(MANIFESTS)


def test_check_manifests_gives_the_rule_that_refuses(check_manifests):
    refused = Original("m.csv", b"uri,labels\na\n")
    assert check_manifests(refused) == "line N of the manifest must have N cells."


def test_check_manifests_rows_lost_on_the_way_are_found(check_manifests, monkeypatch):
    from pipeline import manifest

    monkeypatch.setattr(check_manifests, "_read_row_group", lambda into, group: [])
    assert harm_of(check_manifests, MANIFESTS[0]) == "16 rows said, 0 read back"
    monkeypatch.undo()

    def drop_first(into, group):
        return manifest.read_row_group(into, group)[1:]

    def one_less(uri, *, into):
        checked = manifest.check_manifest(uri, into=into)
        return manifest.CheckedManifest(into, checked.rows - 1, 1, checked.carried)

    monkeypatch.setattr(check_manifests, "_read_row_group", drop_first)
    monkeypatch.setattr(check_manifests, "_check_manifest", one_less)
    for original in MANIFESTS:
        assert harm_of(check_manifests, original) == "not as many rows as the file holds"


def test_check_manifests_copy_that_reads_otherwise_is_found(check_manifests, monkeypatch):
    def write_otherwise(rows, columns, path):
        Path(path).write_text("image_id,uri\na,b\n")

    monkeypatch.setattr(check_manifests, "_write_rows", write_otherwise)
    assert harm_of(check_manifests, MANIFESTS[0]) == "another manifest from copy.csv"


# Workers


def number_as_input(number):
    return Original("a.png", bytes([number]))


def make_harmful(scratch):
    """Makes a check that notes the numbers it is called with, and does harm at some."""

    def check(given):
        number = given.data[0]
        (scratch / str(number)).touch()
        if number == 2:
            warnings.warn("planted", stacklevel=1)
        if number == 4:
            os.kill(os.getpid(), signal.SIGSEGV)
        if number == 5:
            np.ones(600 << 20, np.uint8)
        return "even" if number % 2 == 0 else "odd"

    return check


def make_sleeper():
    """Makes a check that never ends at the first number."""
    return lambda given: time.sleep(0 if given.data[0] else 600) or "awake"


def test_feed_planted_harm_is_found_and_the_rest_goes_on(tmp_path):
    tally = fuzz.feed(
        functools.partial(make_harmful, tmp_path),
        number_as_input,
        count=9,
        deadline=time.monotonic() + 300,
        limits=fuzz.Limits(time_s=60, memory_mb=600),
    )

    found = dict(tally.findings)
    assert found.pop(5).endswith(" MiB of memory, over 600")
    assert found == {
        2: "UserWarning: planted",
        4: f"the process died with exit code {-signal.SIGSEGV}",
    }
    assert tally.outcomes == {"even": 3, "odd": 3}
    assert tally.fed == 9
    assert sorted(int(path.name) for path in tmp_path.iterdir()) == list(range(9))
    assert 600 < tally.peak_mb < 1200


def test_feed_planted_hang_is_found_and_the_rest_goes_on():
    tally = fuzz.feed(
        make_sleeper,
        number_as_input,
        count=2,
        deadline=time.monotonic() + 300,
        limits=fuzz.Limits(time_s=4, memory_mb=4096),
    )
    assert tally.findings == [(0, "no end within 4 s")]
    assert tally.outcomes == {"awake": 1}
    assert tally.slowest == (4, 0)


def test_feed_past_the_deadline_feeds_nothing():
    tally = fuzz.feed(
        fuzz_checks.CheckImages, number_as_input, count=5, deadline=time.monotonic(), limits=LIMITS
    )
    assert (tally.fed, tally.findings) == (0, [])


def make_broken():
    raise OSError("planted")


def test_feed_worker_that_does_not_start_ends_it(capfd):
    with pytest.raises(RuntimeError, match="a worker must start. Received: none"):
        fuzz.feed(
            make_broken,
            number_as_input,
            count=5,
            deadline=time.monotonic() + 60,
            limits=LIMITS,
        )
    assert "OSError: planted" in capfd.readouterr().err


# The command


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Returns a function that runs the command and gives its exit code."""

    def main(*arguments):
        findings = ["--findings", str(tmp_path / "found")]
        monkeypatch.setattr(sys, "argv", ["fuzz.py", *map(str, arguments), *findings])
        return fuzz.main()

    return main


def test_fuzz_command_without_findings_exits_with_zero(run, tmp_path, capsys):
    assert run("--inputs", 40, "--manifests", 4, "--seed", 9) == 0
    manifests, images = capsys.readouterr().out.split("\nimages: ")
    assert manifests.startswith("manifests: 4 inputs in ")
    assert images.startswith("40 inputs in ")
    assert "a second; all fed\n" in images
    assert "\n        0 findings\n  slowest " in images
    assert not (tmp_path / "found").exists()


def test_fuzz_command_with_findings_saves_them_and_exits_with_one(
    run, tmp_path, capsys, monkeypatch
):
    def find(make_check, make_input, *, count, **_):
        tally = fuzz.Tally()
        for number in range(count - 1):
            harm = "planted" if number == 1 else None
            tally.add(number, fuzz.Answer(None if harm else "square", harm, 0.5, 70))
        return tally

    monkeypatch.setattr(fuzz, "feed", find)
    assert run("--inputs", 4, "--manifests", 1, "--seed", 3) == 1
    given = MutatedImages((), 3)(1)
    path = tmp_path / "found" / f"images-1-{given.name}"
    assert path.read_bytes() == given.data
    out = capsys.readouterr().out
    assert f"{path}: planted\n" in out
    assert "0 a second; stopped by --seconds, 4 asked for\n" in out
    assert "        2 square\n        1 findings\n" in out
    assert "  slowest 0.50 s, input 2; peak memory 70 MiB\n" in out


def test_fuzz_command_replays_an_image_and_a_manifest(run, tmp_path, capsys):
    image = tmp_path / "images-1-grey.jpg"
    image.write_bytes(IMAGES[0].data[:-5])
    manifest = tmp_path / "manifests-1-manifest.csv.gz"
    manifest.write_bytes(gzip.compress(b"uri\na\n"))
    assert run("--replay", image) == run("--replay", manifest) == 0
    assert capsys.readouterr().out == "truncated\nchecked\n"
