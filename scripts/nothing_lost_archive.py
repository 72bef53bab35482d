"""The archive that is scored: phantoms, files that no network can score, a manifest."""

import csv
from pathlib import Path

from PIL import Image

from model.phantoms import draw_phantom
from model.sample_archive import write_sample_archive

SIZE = 256
"""Of a phantom, in pixels; small, so that the network takes most of the time."""

_CHANGED = 1_000_000
"""Added to the number of a phantom, so that it becomes another one."""


class Archive:
    """Images in a folder and the manifest of them.

    Attributes:
      folder: All of it.
      manifest: The file.
      rows: Of the manifest, by image id.
    """

    def __init__(self, folder: Path, *, images: int, seed: int):
        """Writes an archive of phantoms into a folder that is not there yet."""
        self.folder = folder
        self.manifest = folder / "manifest.csv"
        self._seed = seed
        self._drawn = images
        write_sample_archive(folder, count=images, seed=seed, size=SIZE, manifest=self.manifest)
        with open(self.manifest, newline="", encoding="utf-8") as file:
            self.rows = {row["image_id"]: row for row in csv.DictReader(file)}

    def path(self, image_id: str) -> Path:
        """Returns where an image is."""
        return self.folder / self.rows[image_id]["uri"]

    def add_bad(self) -> list[str]:
        """Adds files of four kinds that are rejected, one of them missing; returns their ids."""
        first = next(iter(self.rows))
        contents = {
            "cut": self.path(first).read_bytes()[:2000],
            "text": b"no picture",
            "empty": b"",
            "missing": None,
        }
        for image_id, content in contents.items():
            self._add(image_id)
            if content is not None:
                self.path(image_id).write_bytes(content)
        self.write_manifest()
        return list(contents)

    def add(self, count: int) -> list[str]:
        """Adds phantoms; returns their ids."""
        ids = [f"added-{self._drawn + k:05d}" for k in range(count)]
        for image_id in ids:
            self._add(image_id)
            self._draw(image_id, self._drawn)
            self._drawn += 1
        self.write_manifest()
        return ids

    def change(self, image_ids: list[str]) -> list[str]:
        """Draws another phantom in place of each of some images; returns their ids."""
        for image_id in image_ids:
            self._draw(image_id, _CHANGED + self._drawn)
            self._drawn += 1
        return image_ids

    def spoil(self, image_ids: list[str]) -> list[str]:
        """Makes some images what no decoder reads; returns their ids."""
        for number, image_id in enumerate(image_ids):
            self.path(image_id).write_bytes(b"no picture %d" % number)
        return image_ids

    def remove(self, image_id: str) -> None:
        """Takes an image out of the archive."""
        self.path(image_id).unlink()
        del self.rows[image_id]
        self.write_manifest()

    def write_manifest(self) -> None:
        """Writes the manifest of all rows."""
        with open(self.manifest, "w", newline="", encoding="utf-8") as file:
            rows = csv.DictWriter(file, next(iter(self.rows.values())))
            rows.writeheader()
            rows.writerows(self.rows.values())

    def _add(self, image_id: str) -> None:
        columns = dict.fromkeys(next(iter(self.rows.values())), "")
        self.rows[image_id] = columns | {"image_id": image_id, "uri": f"images/{image_id}.png"}

    def _draw(self, image_id: str, number: int) -> None:
        Image.fromarray(draw_phantom(self._seed, number, SIZE).pixels).save(self.path(image_id))
