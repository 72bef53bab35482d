"""A synthetic archive on disk: phantoms, their boxes, and a manifest with labels."""

import csv
import dataclasses
import functools
import io
import tarfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
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
    as_tar: bool = False,
    on_image: Callable[[], None] = lambda: None,
) -> None:
    """Writes `count` phantoms, `boxes.csv` and a manifest.

    The manifest carries `patient_id`, `view_position` and `labels`; two images in
    turn share a made-up patient. Ids name the seed, so that manifests of several
    archives can be joined.

    Args:
      folder: New or empty; images go to `images/` in it, or in its `images.tar`.
      count: Number of phantoms.
      seed: Names the archive; the same seed gives the same files.
      size: Height and width in pixels.
      manifest: CSV to write; image paths in it are relative to its folder where
        they lie inside it.
      as_tar: Whether all images are in `images.tar`, and not a file each.
      on_image: Called after each image, for progress.

    Raises:
      InputError: `folder` holds something already, or `manifest` is there.
    """
    _check_free(folder, manifest)
    folder.mkdir(parents=True, exist_ok=True)
    manifest.parent.mkdir(parents=True, exist_ok=True)
    rows, boxes = [], []
    with _writer(folder, as_tar) as write:
        for index in range(count):
            phantom = draw_phantom(seed, index, size)
            image_id = f"phantom-s{seed}-{index:05d}"
            path = write(*_encoded(image_id, index, phantom))
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


@contextmanager
def _writer(folder: Path, as_tar: bool) -> Iterator[Callable[[str, bytes], Path]]:
    """Gives what writes an image by its name and bytes, and returns where it is."""
    if as_tar:
        with tarfile.open(folder / "images.tar", "w") as tar:
            yield functools.partial(_add_member, folder, tar)
    else:
        (folder / "images").mkdir()
        yield functools.partial(_write_file, folder / "images")


def _add_member(folder: Path, tar: tarfile.TarFile, name: str, data: bytes) -> Path:
    member = tarfile.TarInfo(f"images/{name}")  # of 1970, so that the same seed is the same file
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))
    return folder / f"images.tar#{member.name}"


def _write_file(folder: Path, name: str, data: bytes) -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


def _encoded(image_id: str, index: int, phantom: Phantom) -> tuple[str, bytes]:
    """Returns the file name and bytes of a phantom."""
    image, buffer = Image.fromarray(phantom.pixels), io.BytesIO()
    if index % _JPEG_EVERY == _JPEG_EVERY - 1:
        image.save(buffer, "JPEG", quality=92)
        return f"{image_id}.jpg", buffer.getvalue()
    # Noise does not compress; a higher level would only take longer.
    image.save(buffer, "PNG", compress_level=1)
    return f"{image_id}.png", buffer.getvalue()


def _relative_to(path: Path, folder: Path) -> str:
    path, folder = path.resolve(), folder.resolve()
    inside = path.is_relative_to(folder)
    return (path.relative_to(folder) if inside else path).as_posix()
