"""Everything that changes a row, so that a run is only ever resumed under the same."""

import dataclasses
import typing
from importlib import metadata

from model.bundle import short_digest
from schemas.quality import Gate

if typing.TYPE_CHECKING:
    from model.serving import ScorerSettings

_NOT_OF_SCORES = ("carried", "gradcam_top", "software_version")
"""What changes a row, and neither its scores nor its flags."""

_OF_GATED = ("gate", "feature_distance")
"""What decides which images are scored at all, and that only where a gate rejects some."""


@dataclasses.dataclass(frozen=True)
class RowSettings:
    """What decides the content of a row beside the image.

    The manifest is not in it, nor is what only changes how fast rows are made.

    Attributes:
      model_id: Of the bundle: network, input contract, calibration.
      thresholds_id: Of the thresholds applied.
      tta: Test-time augmentation mode.
      borderline: Digest of what is borderline; None in other modes.
      precision: Arithmetic of the network.
      redact_uris: Whether uris are kept out of the output.
      carried: Manifest columns copied to the scores, in their order.
      gradcam_top: Findings drawn an image.
      gate: `reject` where images whose scores are not to be believed are rejected, else
        None: flagged or not, they have the same rows.
      feature_distance: Digest of what distances from the training data are measured with;
        None where the bundle has none.
      software_version: Of this project.
    """

    model_id: str
    thresholds_id: str
    tta: str
    borderline: str | None
    precision: str
    redact_uris: bool
    carried: tuple[str, ...]
    gradcam_top: int
    gate: str | None
    feature_distance: str | None
    software_version: str

    @property
    def digest(self) -> str:
        """12 hex digits; a run is resumed under an equal one only."""
        return short_digest(self.to_json())

    @property
    def scoring_digest(self) -> str:
        """12 hex digits; what was scored under an equal one need not be scored again."""
        content = self.to_json()
        # Left out, not None: runs from before there was a gate go on holding their images.
        left_out = _NOT_OF_SCORES if self.gate else (*_NOT_OF_SCORES, *_OF_GATED)
        return short_digest({name: content[name] for name in content if name not in left_out})

    def to_json(self) -> dict:
        """Returns the settings as JSON has them."""
        return {**dataclasses.asdict(self), "carried": list(self.carried)}


def current_version() -> str:
    """Returns the version of this software."""
    return metadata.version("prescreen")


def row_settings(
    scorer: "ScorerSettings",
    thresholds_id: str,
    *,
    redact_uris: bool,
    carried: tuple[str, ...],
    gradcam_top: int,
    gate: Gate,
) -> RowSettings:
    """Returns the settings of a run with this version of the software; see `RowSettings`."""
    borderline = None
    if scorer.borderline_thresholds is not None:
        borderline = short_digest([*scorer.borderline_thresholds, scorer.borderline_band])
    return RowSettings(
        model_id=scorer.model_id,
        thresholds_id=thresholds_id,
        tta=scorer.tta,
        borderline=borderline,
        precision=scorer.precision,
        redact_uris=redact_uris,
        carried=carried,
        gradcam_top=gradcam_top,
        gate=gate.value if gate == Gate.REJECT else None,
        feature_distance=scorer.feature_distance and short_digest(list(scorer.feature_distance)),
        software_version=current_version(),
    )


def describe_difference(then: dict, now: dict) -> str:
    """Returns in words which settings differ, as `RowSettings.to_json` gives them."""
    names = [name for name in now if now[name] != then.get(name)]
    return ", ".join(f"{name} {then.get(name)} then and {now[name]} now" for name in names)
