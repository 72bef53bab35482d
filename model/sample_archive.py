"""A synthetic archive on disk: phantoms, their boxes, and a manifest with labels."""

import csv
import dataclasses
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from PIL import Image

from model.phantoms import Phantom, draw_phantom
from schemas.errors import InputError

_JPEG_EVERY = 4
"""Each fourth image is a JPEG, so that both decoders are exercised."""

_IMAGES_A_PATIENT = 2


def write_sample_archive(
    folder: Path,
    *,
    count: int,
    seed: int,
    size: int,
    manifest: Path,
    on_image: Callable[[], None] = lambda: None,
) -> None:
    """Writes `count` phantoms, `boxes.csv` and a manifest.

    The manifest carries `patient_id`, `view_position` and `labels`; two images in
    turn share a made-up patient. Ids name the seed, so that manifests of several
    archives can be joined.

    Args:
      folder: New or empty; images go to `images/` in it.
      count: Number of phantoms.
      seed: Names the archive; the same seed gives the same files.
      size: Height and width in pixels.
      manifest: CSV to write; image paths in it are relative to its folder where
        they lie inside it.
      on_image: Called after each image, for progress.

    Raises:
      InputError: `folder` holds something already, or `manifest` is there.
    """
    _check_free(folder, manifest)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    manifest.parent.mkdir(parents=True, exist_ok=True)
    rows, boxes = [], []
    for index in range(count):
        phantom = draw_phantom(seed, index, size)
        image_id = f"phantom-s{seed}-{index:05d}"
        path = _write_image(folder / "images", image_id, index, phantom)
        patient = f"phantom-s{seed}-p{index // _IMAGES_A_PATIENT:05d}"
        uri = _relative_to(path, manifest.parent)
        rows.append((image_id, uri, patient, "PA", "|".join(phantom.findings)))
        boxes += ((image_id, *dataclasses.astuple(box)) for box in phantom.boxes)
        on_image()
    _write_csv(folder / "boxes.csv", ("image_id", "finding", "x", "y", "width", "height"), boxes)
    # Last, so that an archive with a manifest is a whole one.
    _write_csv(manifest, ("image_id", "uri", "patient_id", "view_position", "labels"), rows)


def _check_free(folder: Path, manifest: Path) -> None:
    if folder.exists() and any(folder.iterdir()):
        raise InputError(
            f"DEST must be a new or empty folder. Received: {folder}, which is not empty."
            " Remove it or name another."
        )
    if manifest.exists() or manifest.resolve() == (folder / "boxes.csv").resolve():
        raise InputError(
            f"--manifest must be a new file, and not DEST/boxes.csv. Received: {manifest}."
            " Remove it or name another."
        )


def _write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence]) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)


def _write_image(folder: Path, image_id: str, index: int, phantom: Phantom) -> Path:
    image = Image.fromarray(phantom.pixels)
    if index % _JPEG_EVERY == _JPEG_EVERY - 1:
        path = folder / f"{image_id}.jpg"
        image.save(path, quality=92)
    else:
        path = folder / f"{image_id}.png"
        # Noise does not compress; a higher level would only take longer.
        image.save(path, compress_level=1)
    return path


def _relative_to(path: Path, folder: Path) -> str:
    path, folder = path.resolve(), folder.resolve()
    inside = path.is_relative_to(folder)
    return (path.relative_to(folder) if inside else path).as_posix()
