"""What a run works on: its images, its model, its thresholds, and where it goes."""

import dataclasses
import typing

from model.calibration import Calibration
from model.thresholds import Thresholds
from pipeline.images import Checks
from pipeline.layout import RunPaths
from pipeline.manifest import CheckedManifest
from pipeline.planning import WorkPlan
from schemas.quality import Gate
from schemas.tables import VIEW_POSITION

if typing.TYPE_CHECKING:
    # Loads TensorFlow, which a run that scores nothing does without.
    from model.serving import ScorerSettings
    from pipeline.settings import RowSettings


@dataclasses.dataclass(frozen=True)
class ScoringJob:
    """What to score, with what, and where to put it.

    Attributes:
      paths: Of the run.
      manifest: Checked; all images of the run.
      plan: Which of them are left to score.
      scorer: What decides a score. Of a run that scores nothing its settings, which name
        model, precision and test-time augmentation alike.
      thresholds: What decides a flag, one for each of the 14 findings.
      thresholds_id: Of these.
      calibration: What makes probabilities of scores; None where they stay scores.
      batch_size: Images a batch.
      decode_threads: Images that a worker decodes at once.
      redact_uris: Whether uris are kept out of the rows.
      gate: What becomes of an image whose scores are not to be believed.
    """

    paths: RunPaths
    manifest: CheckedManifest
    plan: WorkPlan
    scorer: "ScorerSettings | RowSettings"
    thresholds: Thresholds
    thresholds_id: str
    calibration: Calibration | None
    batch_size: int
    decode_threads: int
    redact_uris: bool
    gate: Gate = Gate.FLAG

    @property
    def checks(self) -> Checks:
        """How images are judged."""
        carried = self.manifest.carried
        view_at = carried.index(VIEW_POSITION) if VIEW_POSITION in carried else None
        return Checks(view_at, rejects=self.gate == Gate.REJECT)
