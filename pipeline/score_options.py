"""The options of `score`, as a run is made of them."""

import dataclasses
from pathlib import Path

from schemas.quality import Gate

_PATHS = ("manifest", "output", "bundle", "thresholds", "urgency", "dicom_out")
"""Options that can tell what nobody is to know."""


@dataclasses.dataclass(frozen=True)
class ScoreOptions:
    """The options of `score`, one attribute each; see its help for their meaning.

    `batch_size` is None for what suits the device, `run_id` for the start in UTC,
    `thresholds` for the bundle's, `review_budget` for all that are flagged,
    `urgency` for the table that comes with the software, `dicom_out` for no DICOM objects.
    `decode_threads` are those of each worker.
    """

    manifest: str
    output: str
    bundle: str
    run_id: str | None = None
    resume: bool = False
    only_new: bool = False
    retry_rejects: str | None = None
    retry_reasons: tuple[str, ...] = ()
    thresholds: str | None = None
    tta: str = "none"
    gradcam_top: int = 3
    gradcam_limit: int = 1000
    batch_size: int | None = None
    precision: str = "auto"
    decode_threads: int = 2
    workers: int = 1
    reject_limit: float = 0.01
    review_budget: float | int | None = None
    urgency: str | None = None
    urgent_first: bool = False
    carry: tuple[str, ...] = ()
    gate: str = Gate.FLAG.value
    redact_uris: bool = False
    no_report: bool = False
    dicom_out: str | None = None
    preset: str | None = None
    beam_args: tuple[str, ...] = ()

    def to_json(self) -> dict:
        """Returns the options for the run's record, without paths where those are redacted."""
        options = self.to_state()
        if self.redact_uris:
            options |= dict.fromkeys(_PATHS)
            options["retry_rejects"] = self.retry_rejects and Path(self.retry_rejects).name
        return options

    def to_state(self) -> dict:
        """Returns the options for a later start of the same run."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in dataclasses.asdict(self).items()
        }

    @classmethod
    def from_state(cls, options: dict) -> "ScoreOptions":
        """Returns what `to_state` was called on."""
        return cls(
            **{
                name: tuple(value) if isinstance(value, list) else value
                for name, value in options.items()
            }
        )
