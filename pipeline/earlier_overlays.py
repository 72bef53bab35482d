"""Overlays of a run that another one takes over, because scores and maps are the same."""

import dataclasses
from collections.abc import Iterable, Mapping

from pipeline.layout import RunPaths
from pipeline.shared_files import open_shared


@dataclasses.dataclass(frozen=True)
class EarlierOverlays:
    """Where overlays of an earlier run are, and what stands below them.

    Attributes:
      paths: Of the run that takes them over, in the same OUTPUT.
      captions: By finding, the threshold that an overlay names.
    """

    paths: RunPaths
    captions: Mapping[str, float]

    def all_stay(self, cams: Iterable[dict], thresholds: Mapping[str, float]) -> bool:
        """Returns whether all findings have an overlay that need not be drawn again."""
        return all(cam["overlay"] and self.is_right(cam["finding"], thresholds) for cam in cams)

    def is_right(self, finding: str, thresholds: Mapping[str, float]) -> bool:
        """Returns whether the caption of a finding's overlay names the threshold of now."""
        return f"{self.captions[finding]:.3f}" == f"{thresholds[finding]:.3f}"

    def read(self, cams: Iterable[dict]) -> dict[str, bytes]:
        """Returns the JPEG of each finding that has an overlay which is still there."""
        found = {}
        for cam in cams:
            if cam["overlay"]:
                try:
                    with open_shared(self.paths.shared(self.paths.output / cam["overlay"])) as file:
                        found[cam["finding"]] = file.read()
                except FileNotFoundError:
                    continue
        return found
