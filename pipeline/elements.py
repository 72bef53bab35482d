"""What flows through the pipeline."""

import dataclasses
from typing import Any

import numpy as np

from model.reading import SourceFile
from pipeline.manifest import ManifestRow
from schemas.quality import Quality
from schemas.rejects import ImageError


@dataclasses.dataclass(frozen=True, slots=True)
class Shard:
    """Images in one archive that is read from its start, by one worker.

    Attributes:
      archive: Its uri.
      rows: Each with an `image_id` and a `uri` that names a member of it.
    """

    archive: str
    rows: tuple


@dataclasses.dataclass(frozen=True, slots=True)
class ReadImage:
    """An image that was read from an archive and not decoded yet.

    Attributes:
      row: Of the shard.
      source: Its bytes, or why there are none.
    """

    row: Any
    source: SourceFile | ImageError


def row_of(item: Any) -> Any:
    """Returns the row of an image, whether it was read already or not."""
    return item.row if isinstance(item, ReadImage) else item


@dataclasses.dataclass(frozen=True, slots=True)
class ImageFacts:
    """What is known of an image file once it was read and decoded.

    Attributes:
      width, height: Of the whole image, in pixels, as displayed.
      size_bytes: Of the file, or of the member of an archive.
      source_version: Which version of the file was read.
      content_sha256: Of the file's bytes, 64 hex digits.
      mean_intensity, std_intensity: Of the network's input, 0 to 255.
      quality: What speaks against believing its scores, as far as it is known.
    """

    width: int
    height: int
    size_bytes: int
    source_version: str
    content_sha256: str
    mean_intensity: float
    std_intensity: float
    quality: tuple[Quality, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True)
class LoadedImage:
    """An image ready for the network.

    Attributes:
      pixels: uint8 `(224, 224)`.
      attempts: Reads that it took.
    """

    row: ManifestRow
    facts: ImageFacts
    pixels: np.ndarray
    attempts: int = 1


@dataclasses.dataclass(frozen=True, slots=True)
class ScoredImage:
    """An image and what the network says of it; the pixels are gone.

    Attributes:
      scores: float32 `(15,)`, finite.
      cams: float32 `(15, 7, 7)`, 0 to 1.
      views: Number of views averaged.
      distance: Of the image from those that the model was trained on, as
        `model.feature_distance` measures it; None where the bundle cannot say.
    """

    row: ManifestRow
    facts: ImageFacts
    scores: np.ndarray
    cams: np.ndarray
    views: int
    distance: float | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class RejectedImage:
    """An image that cannot be scored, and why.

    Attributes:
      size_bytes, source_version: None where there was no file to look at.
      attempts: Reads that were tried.
    """

    row: ManifestRow
    error: ImageError
    size_bytes: int | None
    source_version: str | None
    attempts: int = 1
