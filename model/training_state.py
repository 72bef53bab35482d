"""What a training run needs to go on after a kill, written at the end of each epoch."""

import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

_STATE_FILE = "state.npz"
_BEST_FILE = "best.npz"
_FACTS = "facts"


@dataclasses.dataclass
class TrainingProgress:
    """How far a run is; everything but the variables.

    Attributes:
      digest: Of the data and the configuration; another one is another run.
      stage: Index of the stage under way.
      epoch: Epochs of it that are complete.
      stopped: Whether it was ended before its last epoch.
      best_auc: Highest validation mean AUC of the stage; None before the first.
      callbacks: Attributes of Keras' callbacks, by their class.
      history: A row an epoch, of all stages.
    """

    digest: str
    stage: int = 0
    epoch: int = 0
    stopped: bool = False
    best_auc: float | None = None
    callbacks: dict[str, dict] = dataclasses.field(default_factory=dict)
    history: list[dict] = dataclasses.field(default_factory=list)

    def next_stage(self) -> "TrainingProgress":
        """Returns the progress at the start of the stage after this one."""
        return TrainingProgress(self.digest, stage=self.stage + 1, history=self.history)


class StateFolder:
    """The folder in which a run keeps its state; each file is there whole or not at all."""

    def __init__(self, path: Path):
        """Names the folder; nothing is read or made."""
        self.path = path

    def load(self) -> tuple[TrainingProgress, list[np.ndarray]] | None:
        """Returns the progress and the variables of the last epoch, None without any."""
        if not (self.path / _STATE_FILE).exists():
            return None
        arrays = _read(self.path / _STATE_FILE)
        facts = json.loads(str(arrays.pop(_FACTS)))
        return TrainingProgress(**facts), list(arrays.values())

    def save(self, progress: TrainingProgress, variables: Sequence) -> None:
        """Replaces the state; `variables` are Keras' or arrays, in an order of their own."""
        facts = np.array(json.dumps(dataclasses.asdict(progress)))
        self._write(_STATE_FILE, {_FACTS: facts, **_numbered(variables)})

    def load_best(self) -> list[np.ndarray]:
        """Returns the weights that `save_best` kept."""
        return list(_read(self.path / _BEST_FILE).values())

    def save_best(self, weights: Sequence[np.ndarray]) -> None:
        """Keeps the weights of the best epoch of a stage."""
        self._write(_BEST_FILE, _numbered(weights))

    def _write(self, name: str, arrays: dict[str, np.ndarray]) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        temporary = self.path / f".{name}.tmp"
        with open(temporary, "wb") as file:
            np.savez(file, **arrays)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, self.path / name)


def _numbered(variables: Sequence) -> dict[str, np.ndarray]:
    return {f"{index:05d}": np.asarray(variable) for index, variable in enumerate(variables)}


def _read(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}
