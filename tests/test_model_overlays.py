import concurrent.futures
import io
import re
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from model.overlays import (
    LONGEST_SIDE,
    draw_overlay,
    encode_jpeg,
    overlay_jpeg,
    overlay_name,
    overlay_note,
)

GREY_LEVEL = 128
NOTE = "Phantom-trained demonstration. Not for diagnosis."

FOLDER = re.compile(r"[0-9a-f]{2}")
FILE = re.compile(r"[A-Za-z0-9_.~%-]*\.Pleural_Thickening\.jpg")


def make_grey(width, height):
    return Image.new("L", (width, height), GREY_LEVEL)


def make_grid(row=3, column=3):
    grid = np.zeros((7, 7), np.float32)
    grid[max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2] = 0.5
    grid[row, column] = 1
    return grid


def draw(grey, grid=None, **caption):
    values = {"finding": "Mass", "score": 0.8124, "threshold": 0.4312, "note": NOTE, **caption}
    return draw_overlay(grey, make_grid() if grid is None else grid, **values)


def split(overlay):
    """Returns the radiograph's part and the caption, as arrays.

    The background, told from a corner of the caption, frames the radiograph, whose
    grey is another.
    """
    pixels = np.asarray(overlay)
    background = pixels[-1, 0]
    top_row = np.flatnonzero((pixels[0] != background).any(axis=-1))
    left, right = top_row[0], top_row[-1] + 1
    column = (pixels[:, (left + right) // 2] != background).any(axis=-1)
    height = int(np.argmin(column))
    return pixels[:height, left:right], pixels[height:]


@pytest.mark.parametrize(
    ("source", "whole"),
    [
        ((1024, 1024), (512, 512)),
        ((512, 512), (512, 512)),
        ((2000, 2500), (410, 512)),
        ((1000, 1600), (320, 512)),
        ((100, 512), (240, 512)),
        ((1, 3000), (240, 512)),
    ],
    ids=str,
)
def test_overlay_square_or_portrait_has_exact_size(source, whole):
    overlay = draw(make_grey(*source))
    radiograph, _ = split(overlay)
    height, width, _ = radiograph.shape
    assert overlay.mode == "RGB"
    assert overlay.size == whole
    assert width == max(round(height * source[0] / source[1]), 1)


@pytest.mark.parametrize(
    ("source", "part", "whole_width"),
    [
        ((1024, 512), (512, 256), 512),
        ((2500, 2000), (512, 410), 512),
        ((512, 60), (512, 60), 512),
        ((3000, 1), (512, 1), 512),
        ((300, 200), (300, 200), 300),
        ((64, 64), (64, 64), 240),
        ((1, 1), (1, 1), 240),
    ],
    ids=str,
)
def test_overlay_with_room_for_caption_keeps_radiograph_size(source, part, whole_width):
    overlay = draw(make_grey(*source))
    radiograph, caption = split(overlay)
    assert radiograph.shape == (part[1], part[0], 3)
    assert overlay.width == whole_width
    assert overlay.height == part[1] + len(caption) <= LONGEST_SIDE


@pytest.mark.parametrize("size", [(1024, 1024), (100, 512), (512, 60), (1, 1)], ids=str)
@pytest.mark.parametrize("finding", ["Mass", "Pleural_Thickening"])
@pytest.mark.parametrize("note", [NOTE, "", "unbroken" * 20], ids=["note", "no note", "one word"])
def test_caption_any_shape_keeps_its_margins(size, finding, note):
    _, caption = split(draw(make_grey(*size), finding=finding, note=note))
    written = (caption != caption[-1, 0]).any(axis=-1)
    assert written.any()
    for margin in (written[:2], written[-2:], written[:, :4], written[:, -4:]):
        assert not margin.any()


def test_caption_long_note_leaves_half_to_radiograph():
    radiograph, caption = split(draw(make_grey(100, 512), note="many words " * 200))
    _, shorter = split(draw(make_grey(100, 512), note="many words " * 100))
    assert len(radiograph) >= LONGEST_SIDE // 2
    np.testing.assert_array_equal(caption, shorter)


@pytest.mark.parametrize(
    "change",
    [{"score": 0.8134}, {"threshold": 0.4322}, {"finding": "Hernia"}, {"note": "Other."}],
    ids=lambda change: next(iter(change)),
)
def test_caption_other_value_changes_caption_alone(change):
    radiograph, caption = split(draw(make_grey(512, 300)))
    other_radiograph, other_caption = split(draw(make_grey(512, 300), **change))
    np.testing.assert_array_equal(radiograph, other_radiograph)
    assert caption.tobytes() != other_caption.tobytes()


def test_caption_scores_equal_to_three_decimals_are_drawn_alike():
    first, second = (draw(make_grey(512, 300), score=score) for score in (0.81241, 0.81239))
    assert first.tobytes() == second.tobytes()


def test_caption_underscore_is_drawn_as_space():
    first, second = (
        draw(make_grey(512, 300), finding=finding)
        for finding in ("Pleural_Thickening", "Pleural Thickening")
    )
    assert first.tobytes() == second.tobytes()


@pytest.mark.parametrize("size", [(900, 1200), (1200, 900), (300, 100)], ids=str)
@pytest.mark.parametrize("peak", [(1, 5), (5, 1), (0, 6), (6, 0), (3, 2)], ids=str)
def test_overlay_off_centre_peak_is_most_coloured_there(size, peak):
    radiograph, _ = split(draw(make_grey(*size), make_grid(*peak)))
    change = np.abs(radiograph.astype(int) - GREY_LEVEL).sum(axis=-1)
    strongest = np.argwhere(change == change.max()).mean(axis=0)
    cells = (strongest + 0.5) / change.shape * 7 - 0.5
    # At the border the curve's summit lies between the cell and the border.
    np.testing.assert_allclose(cells, peak, atol=0.51 if {0, 6} & set(peak) else 0.1)


def test_overlay_asymmetric_grid_is_neither_turned_nor_mirrored():
    grid = np.zeros((7, 7), np.float32)
    grid[1, 5] = 1
    radiograph, _ = split(draw(make_grey(700, 350), grid))
    coloured = np.ptp(radiograph.astype(int), axis=-1) > 30
    rows, columns = np.nonzero(coloured)
    height, width = coloured.shape
    # The cell, and as far around it as smoothing carries the colour.
    assert rows.min() / height > 1 / 7 - 0.05
    assert rows.max() / height < 2 / 7 + 0.05
    assert columns.min() / width > 5 / 7 - 0.05
    assert columns.max() / width < 6 / 7 + 0.05


def test_overlay_without_activation_leaves_radiograph_grey():
    gradient = Image.linear_gradient("L").rotate(90)
    radiograph, _ = split(draw(gradient, make_grid(0, 0)))
    expected = np.asarray(gradient.convert("RGB"))
    np.testing.assert_array_equal(radiograph[128:, 128:], expected[128:, 128:])


def test_overlay_of_radiograph_leaves_source_as_it_was():
    grey, grid = make_grey(640, 480), make_grid()
    draw(grey, grid)
    assert grey.tobytes() == make_grey(640, 480).tobytes()
    np.testing.assert_array_equal(grid, make_grid())


def test_overlay_values_out_of_range_are_clipped():
    outside = np.where(make_grid() == 1, 2, make_grid() - 1).astype(np.float32)
    inside = np.clip(outside, 0, 1)
    assert draw(make_grey(70, 70), outside).tobytes() == draw(make_grey(70, 70), inside).tobytes()


REMEDY = "Record the finding without an overlay: there is nothing to draw."


@pytest.mark.parametrize(
    ("grid", "received"),
    [
        (np.zeros((7, 7), np.float32), "no value above 0"),
        (np.full((7, 7), -0.5, np.float32), "no value above 0"),
        (np.full((7, 7), np.nan, np.float32), "49 not finite"),
        (np.where(make_grid() == 1, np.nan, make_grid()), "1 not finite"),
        (np.where(make_grid() == 1, np.inf, make_grid()), "1 not finite"),
    ],
    ids=["zeros", "negative", "all nan", "one nan", "one infinity"],
)
def test_overlay_grid_without_evidence_raises(grid, received):
    with pytest.raises(ValueError) as caught:
        draw(make_grey(64, 64), grid)
    assert str(caught.value) == (
        f"grid must be finite with a value above 0. Received: {received}. {REMEDY}"
    )


def test_overlay_grid_of_other_shape_raises():
    with pytest.raises(ValueError) as caught:
        draw(make_grey(64, 64), np.ones(49, np.float32))
    assert str(caught.value) == "grid must be of shape (7, 7). Received: grid.shape=(49,)."


def test_overlay_colour_image_raises():
    with pytest.raises(ValueError) as caught:
        draw(Image.new("RGB", (64, 64)))
    assert str(caught.value) == "grey must be of mode L. Received: grey.mode=RGB."


def test_overlay_in_threads_is_the_same_as_alone():
    cases = [{"finding": name, "score": k / 8} for k, name in enumerate(["Mass", "Edema"] * 4)]
    alone = [draw(make_grey(300, 300), **case).tobytes() for case in cases]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        together = pool.map(lambda case: draw(make_grey(300, 300), **case).tobytes(), cases)
        assert list(together) == alone


def test_jpeg_of_overlay_decodes_to_the_overlay():
    overlay = draw(make_grey(1024, 768), make_grid(1, 5))
    data = encode_jpeg(overlay)
    decoded = Image.open(io.BytesIO(data))
    assert (decoded.format, decoded.mode, decoded.size) == ("JPEG", "RGB", overlay.size)
    difference = np.asarray(decoded, int) - np.asarray(overlay, int)
    assert np.abs(difference).mean() < 2


def test_jpeg_of_overlay_holds_no_metadata_of_the_source():
    grey = make_grey(64, 64)
    grey.info.update(comment=b"SECRET", exif=b"Exif\0\0SECRET", icc_profile=b"SECRET")
    assert b"SECRET" not in encode_jpeg(draw(grey))


def test_name_plain_id_is_exact():
    assert overlay_name("00000001_000.png", "Mass") == "37/00000001_000.png.Mass.jpg"


def test_name_space_in_finding_becomes_underscore():
    assert overlay_name("a", "No Finding") == "ca/a.No_Finding.jpg"


@pytest.mark.parametrize(
    ("image_id", "image"),
    [
        ("a/b.png", "a%2Fb.png"),
        ("a%2Fb.png", "a%252Fb.png"),
        ("..", ".."),
        ("../x", "..%2Fx"),
        ("a\nb\\c:d", "a%0Ab%5Cc%3Ad"),
        ("é", "%C3%A9"),
        ("x" * 150, "x" * 150),
        ("", ""),
    ],
    ids=repr,
)
def test_name_odd_id_is_percent_encoded(image_id, image):
    assert overlay_name(image_id, "Mass")[3:] == f"{image}.Mass.jpg"


def test_name_long_id_is_cut_and_hashed():
    assert overlay_name("x" * 151, "Mass") == f"8e/{'x' * 150}-8eb827e6964db1e2.Mass.jpg"


def test_name_ids_that_differ_in_case_are_distinct_where_case_is_ignored():
    pairs = [("IMG.png", "img.png"), ("X" * 200, "x" * 200)]
    for first, second in pairs:
        names = {overlay_name(image_id, "Mass").lower() for image_id in (first, second)}
        assert len(names) == 2


ANY_ID = st.text(max_size=1000) | st.builds(
    lambda start, length, end: start * length + end,
    st.sampled_from(["x", "/", "é", "%2F"]),
    st.integers(0, 900),
    st.text(max_size=2),
)


@settings(max_examples=200, deadline=None)
@given(ANY_ID)
def test_name_any_id_is_one_folder_and_one_short_file(image_id):
    folder, file = overlay_name(image_id, "Pleural_Thickening").split("/")
    assert FOLDER.fullmatch(folder)
    assert FILE.fullmatch(file)
    assert len(file) <= 200


@settings(max_examples=100, deadline=None)
@given(st.sets(ANY_ID, min_size=2, max_size=6))
def test_name_distinct_ids_are_distinct(image_ids):
    assert len({overlay_name(image_id, "Mass") for image_id in image_ids}) == len(image_ids)


def test_module_when_imported_loads_no_pyplot_keras_or_beam():
    code = (
        "import sys, model.overlays;"
        "print([n for n in ('matplotlib.pyplot', 'keras', 'tensorflow', 'apache_beam')"
        " if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_overlay_last_bits_of_a_map_do_not_change_the_picture():
    grid = np.random.default_rng(4).random((7, 7)).astype(np.float32)
    noise = np.random.default_rng(5).uniform(-1e-6, 1e-6, (7, 7)).astype(np.float32)
    assert (grid + noise != grid).any()
    first, second = (draw(make_grey(600, 500), values) for values in (grid, grid + noise))
    assert first.tobytes() == second.tobytes()


def test_overlay_jpeg_is_the_encoded_overlay_or_none_without_activation():
    caption = {"finding": "Mass", "score": 0.8124, "threshold": 0.4312, "note": NOTE}
    grey = make_grey(300, 200)
    assert overlay_jpeg(grey, make_grid(), **caption) == encode_jpeg(draw(grey))
    assert overlay_jpeg(grey, np.zeros((7, 7), np.float32), **caption) is None


def test_overlay_note_names_the_model_and_its_limit():
    assert overlay_note("Phantom-trained demonstration") == NOTE
