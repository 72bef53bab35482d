"""How often each quality code is right and wrong: radiographs as they are, and mutated.

Wants a folder of frontal radiographs. With a bundle also the code `far_from_training`; with a
folder of photographs these, too. Prints a table in Markdown: of each mutation the images that
carry each code.
"""

import argparse
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from model.decoding import decode_grey
from model.preprocessing import to_square
from model.quality import image_quality
from schemas.quality import Quality
from schemas.rejects import ImageError

MUTATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "as it is": lambda pixels: pixels,
    "inverted": lambda pixels: 255 - pixels,
    "one grey level": lambda pixels: np.full_like(pixels, 128),
    "upper left quarter alone": lambda pixels: pixels[: len(pixels) // 2, : pixels.shape[1] // 2],
    "lower right quarter alone": lambda pixels: pixels[len(pixels) // 2 :, pixels.shape[1] // 2 :],
    "in a corner of a black image": lambda pixels: _in_corner(pixels),
    "turned by 90 degrees": lambda pixels: np.rot90(pixels),
    "upside down": lambda pixels: pixels[::-1],
    "levels times 1.5": lambda pixels: _clipped(pixels * 1.5),
    "levels plus 100": lambda pixels: _clipped(pixels + 100.0),
    "levels times 0.2": lambda pixels: _clipped(pixels * 0.2),
    "top third alone": lambda pixels: pixels[: len(pixels) // 3],
}


def _clipped(levels: np.ndarray) -> np.ndarray:
    return np.clip(levels, 0, 255).astype(np.uint8)


def _in_corner(pixels: np.ndarray) -> np.ndarray:
    black = np.zeros_like(pixels)
    black[: len(pixels) // 2, : pixels.shape[1] // 2] = pixels[::2, ::2][
        : len(pixels) // 2, : pixels.shape[1] // 2
    ]
    return black


def read_images(folder: str) -> Iterator[np.ndarray]:
    """Gives the grey levels of all images in a folder, of those that are some."""
    for path in sorted(Path(folder).iterdir()):
        try:
            yield np.asarray(decode_grey(path.read_bytes()).image)
        except (ImageError, IsADirectoryError):
            continue


def codes_of(pixels: np.ndarray, square: np.ndarray) -> tuple[Quality, ...]:
    """Returns the codes of an image of that size with that network input."""
    return image_quality(square, pixels.shape[1], pixels.shape[0])


def far(squares: list[np.ndarray], bundle: str | None) -> list[bool]:
    """Returns which network inputs are far from a bundle's training data; none without one."""
    if bundle is None:
        return [False] * len(squares)
    from model.bundle import load_bundle_info
    from model.serving import build_scorer, scorer_settings

    if bundle not in _SCORERS:
        info = load_bundle_info(bundle)
        settings = scorer_settings(bundle, info, tta="none", precision="float32")
        _SCORERS[bundle] = settings, build_scorer(settings)
    settings, scorer = _SCORERS[bundle]
    distances = [
        distance
        for start in range(0, len(squares), 32)
        for distance in scorer.score(np.stack(squares[start : start + 32])).distances.tolist()
    ]
    return [settings.is_far(distance) for distance in distances]


_SCORERS: dict = {}

_NOT_SEEN = (Quality.LATERAL, Quality.BURNED_IN_ANNOTATION)
"""What a manifest or a header says, and no pixel."""


def print_row(name: str, images: list[np.ndarray], bundle: str | None) -> None:
    """Prints how many of some images carry each code."""
    squares = [to_square(Image.fromarray(np.ascontiguousarray(pixels))) for pixels in images]
    found = [set(codes_of(*pair)) for pair in zip(images, squares, strict=True)]
    for codes, is_far in zip(found, far(squares, bundle), strict=True):
        codes |= {Quality.FAR_FROM_TRAINING} if is_far else set()
    counts = Counter(code for codes in found for code in codes)
    cells = [str(counts[code]) for code in Quality if code not in _NOT_SEEN]
    silent = sum(not codes for codes in found)
    print(f"| {name} | {len(images)} | {' | '.join(cells)} | {silent} |", flush=True)


def main() -> None:
    """Reads the arguments and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("images", metavar="FOLDER", help="frontal radiographs")
    parser.add_argument("--photographs", metavar="FOLDER", help="images of anything else")
    parser.add_argument("--model", metavar="BUNDLE", help="measures the distance")
    arguments = parser.parse_args()
    header = [code for code in Quality if code not in _NOT_SEEN]
    print("| mutation | images |", " | ".join(header), "| none |")
    print("|---|---|" + "---|" * (len(header) + 1))
    radiographs = list(read_images(arguments.images))
    for name, change in MUTATIONS.items():
        print_row(name, [change(pixels) for pixels in radiographs], arguments.model)
    if arguments.photographs:
        print_row("photographs", list(read_images(arguments.photographs)), arguments.model)
    squares = [to_square(Image.fromarray(pixels)) for pixels in radiographs]
    started = time.process_time()
    for square in squares:
        image_quality(square, 1024, 1024, "PA")
    each = (time.process_time() - started) / len(squares)
    print(f"\nThe codes of an image take {each * 1e3:.2f} ms of a core.")


if __name__ == "__main__":
    main()
