"""Images decoded once: a memory-mapped file of network inputs, and what they show.

A folder of `pixels.npy`, `images.parquet`, `rejects.parquet` and `cache.json`.
`pipeline.preparation` writes it with the same code that prepares images for scoring.
"""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from schemas.contract import STANDARD_CONTRACT
from schemas.errors import InputError
from schemas.findings import FINDINGS, parse_labels

PIXELS_FILE = "pixels.npy"
IMAGES_FILE = "images.parquet"
REJECTS_FILE = "rejects.parquet"
FACTS_FILE = "cache.json"
FORMAT_VERSION = 1


@dataclasses.dataclass(frozen=True, eq=False)
class LabelledImages:
    """Network inputs and what they show; a part of the data, or all of it.

    Attributes:
      pixels: uint8 `(slots, 224, 224)`, memory-mapped; shared by all parts.
      slots: intp `(images,)`: where each image lies in `pixels`.
      labels: bool `(images, 15)` in the order of `FINDINGS`.
      image_ids: str `(images,)`.
      patients: str `(images,)`.
      view_positions: str `(images,)`, empty where unknown.
    """

    pixels: np.ndarray
    slots: np.ndarray
    labels: np.ndarray
    image_ids: np.ndarray
    patients: np.ndarray
    view_positions: np.ndarray

    def __len__(self) -> int:
        return len(self.slots)

    def take(self, chosen: np.ndarray) -> "LabelledImages":
        """Returns the images at the indices `chosen`, in that order."""
        return LabelledImages(
            self.pixels,
            *(
                getattr(self, field.name)[chosen]
                for field in dataclasses.fields(self)
                if field.name != "pixels"
            ),
        )

    def squares(self, chosen: np.ndarray | slice) -> np.ndarray:
        """Returns uint8 `(chosen, 224, 224)`, read from the disk where it must be."""
        return self.pixels[self.slots[chosen]]


@dataclasses.dataclass(frozen=True, eq=False)
class ImageCache:
    """A prepared archive.

    Attributes:
      images: All that could be decoded.
      split: The manifest's column `split`, if it has one; one value an image.
      facts: What `cache.json` holds.
    """

    images: LabelledImages
    split: Sequence[str | None] | None
    facts: dict


def read_facts(folder: Path) -> dict | None:
    """Returns what a finished cache says of itself, None where there is no such cache.

    Raises:
      InputError: It was made under another input contract or format.
    """
    try:
        facts = json.loads((folder / FACTS_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise InputError(
            f"{folder}/{FACTS_FILE} must be readable JSON. Received: {error}. Remove the cache."
        ) from error
    contract = STANDARD_CONTRACT.to_json()
    received = {name: facts.get(name) for name in ("format_version", "input_contract")}
    if received != {"format_version": FORMAT_VERSION, "input_contract": contract}:
        raise InputError(
            f"{folder} must be made by this version, under the contract {contract['name']}."
            " Received: another. Remove the cache and prepare it again."
        )
    return facts


def open_cache(folder: Path) -> ImageCache:
    """Opens what `prescreen prepare` wrote; pixels stay on the disk until they are used.

    Raises:
      InputError: There is no finished cache of this version.
    """
    facts = read_facts(folder)
    if facts is None:
        raise InputError(
            f"{folder} must be a finished cache. Received: no {FACTS_FILE} in it."
            " Make it with: prescreen prepare."
        )
    table = pq.read_table(folder / IMAGES_FILE)
    columns = {name: table[name].to_pylist() for name in table.column_names}
    images = LabelledImages(
        pixels=np.load(folder / PIXELS_FILE, mmap_mode="r"),
        slots=np.array(columns["slot"], np.intp),
        labels=label_matrix(columns["labels"]),
        image_ids=np.array(columns["image_id"], str),
        patients=np.array(columns["patient_id"], str),
        view_positions=np.array(
            [view or "" for view in columns.get("view_position", [None] * len(table))], str
        ),
    )
    return ImageCache(images, columns.get("split"), facts)


def label_matrix(labels: Sequence[str]) -> np.ndarray:
    """Returns bool `(images, 15)` in the order of `FINDINGS`.

    Args:
      labels: Names joined by `|`, one string an image.

    Raises:
      ValueError: A name is unknown; see `schemas.findings.parse_labels`.
    """
    named = [parse_labels(names) for names in labels]
    return np.array([[finding in names for finding in FINDINGS] for names in named])
