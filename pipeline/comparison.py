"""A run beside an earlier one: which one, and what has changed more than is normal."""

import dataclasses
from collections.abc import Mapping, Sequence

import pyarrow as pa

from model.drift import Change, Observations, measure_drift
from pipeline.layout import Output
from pipeline.mirror import fetch
from pipeline.report_tables import RunTables, published_tables, read_scores
from pipeline.run_state import committed_runs, current_runs, scoring_began
from schemas.errors import InputError

FEWEST_IMAGES = 100
"""Runs with fewer scored images are not compared: all would be normal between them."""

_DATE = "study_date"
"""Another one each night, which says nothing."""


@dataclasses.dataclass(frozen=True)
class EarlierRun:
    """A published run to compare with.

    Attributes:
      record: Its record.
      tables: Its files, on this machine.
      named: Whether the user has named it, who then wants to know where it cannot be read.
    """

    record: dict
    tables: RunTables
    named: bool = False


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What was compared, and what came of it.

    Attributes:
      against: Id of the earlier run.
      started_at: When that began.
      images: Scored then and now.
      sampled: Of these, compared.
      changes: All statistics; empty where nothing could be compared.
      left_out: Carried columns that are no categories.
      obstacle: Why nothing could be; None where it was.
    """

    against: str
    started_at: str
    images: tuple[int, int]
    sampled: tuple[int, int]
    changes: list[Change]
    left_out: list[str]
    obstacle: str | None = None

    @property
    def alarms(self) -> list[Change]:
        """What changed more than is normal."""
        return [change for change in self.changes if change.is_alarm]

    def to_json(self) -> dict:
        """Returns what the record says of it."""
        return {
            "against": self.against,
            "compared": self.obstacle is None,
            "obstacle": self.obstacle,
            "alarms": [dataclasses.asdict(change) for change in self.alarms],
        }


def earlier_run(output: Output, record: dict) -> EarlierRun | None:
    """Returns the newest run that began before and has scores comparable to those of `record`.

    That is one of the same model, thresholds, test-time augmentation and precision, with at
    least `FEWEST_IMAGES` scored. A run that retried rejects is no night like others: it is
    neither compared nor compared with. A re-thresholded run takes the place of the run that it
    supersedes. Scores are fetched where OUTPUT is on a store.

    Raises:
      InputError: A record in OUTPUT cannot be read.
    """
    if _retries(record):
        return None
    for other in reversed(current_runs(committed_runs(output.folder))):
        if (
            scoring_began(other) < scoring_began(record)
            and not _retries(other)
            and other.get("scoring_digest") == record["scoring_digest"]
            and other["counts"]["scored"] >= FEWEST_IMAGES
        ):
            paths = output.run(other["run_id"])
            fetch(paths, paths.published("scores"))
            return EarlierRun(other, published_tables(paths, other))
    return None


def _retries(record: dict) -> bool:
    """Returns whether a run retried rejects, or re-thresholds one that did."""
    if record.get("supersedes"):
        return record["options"]["retry_rejects"] is not None
    return record["parent_run"] is not None


def check_comparable(then: dict, now: dict) -> None:
    """Checks that scores of two runs mean the same, as their records tell.

    Raises:
      InputError: Another model scored them, or another way, or they are one run.
    """
    if then["run_id"] == now["run_id"]:
        raise InputError(
            f"--against must be another run. Received: {then['run_id']}, the run itself."
        )
    for name in ("model_id", "tta"):
        if then[name] != now[name]:
            raise InputError(
                f"--against must be a run with the same {name}. Received: {then['run_id']}, with"
                f" {then[name]} and not {now[name]}. `prescreen runs` lists what there is."
            )
    if then["counts"]["scored"] < FEWEST_IMAGES:
        raise InputError(
            f"--against must be a run with {FEWEST_IMAGES} scored images or more. Received:"
            f" {then['run_id']}, with {then['counts']['scored']}."
        )


def compare(earlier: EarlierRun, now: Observations, record: dict) -> Comparison:
    """Returns what has changed since an earlier run.

    Flags of both are those of the thresholds of now, whatever those of then were.

    Args:
      earlier: Comparable, with `FEWEST_IMAGES` or more.
      now: The run, or a sample of it.
      record: Of the run.

    Raises:
      InputError: The user named the earlier run, and its scores cannot be read.
    """
    about = {
        "against": earlier.record["run_id"],
        "started_at": earlier.record["started_at"],
        "images": (earlier.record["counts"]["scored"], record["counts"]["scored"]),
    }
    try:
        then = _read_earlier(earlier, record["thresholds"])
    except InputError:
        if earlier.named:
            raise
        # A night must not fail by what became of an earlier one that nobody asked for.
        lost = f"the scores of run {about['against']} are missing or damaged"
        return Comparison(**about, sampled=(0, 0), changes=[], left_out=[], obstacle=lost)
    shared = [name for name in then.categories if name in now.categories]
    compared = [name for name in shared if name != _DATE and _is_category(then, name)]
    enough = min(record["counts"]["scored"], len(then.patients)) >= FEWEST_IMAGES
    changes = []
    if enough:
        changes = measure_drift(*(_only(run, compared) for run in (then, now)))
    return Comparison(
        **about,
        sampled=(len(then.patients), len(now.patients)),
        changes=changes,
        left_out=sorted((then.categories.keys() | now.categories.keys()) - set(compared)),
        obstacle=None if enough else f"one of them scored fewer than {FEWEST_IMAGES} images",
    )


def _read_earlier(earlier: EarlierRun, thresholds: Mapping[str, float]) -> Observations:
    name = earlier.record["run_id"]
    if missing := [path.name for path in earlier.tables.scores if not path.is_file()]:
        raise InputError(
            "a run to compare with must have the files that its record lists. Received:"
            f" {name} without {missing[0]} of its scores. Restore it, or name another run."
        )
    try:
        return read_scores(earlier.tables.scores, thresholds)[1]
    except (OSError, pa.ArrowException) as error:
        raise InputError(
            "a run to compare with must have scores that can be read. Received:"
            f" {name} ({type(error).__name__}). Restore its files, or name another run."
        ) from error


def _is_category(run: Observations, name: str) -> bool:
    """Returns whether the values of a column recur: those of an identifier do not."""
    values = run.categories[name]
    return len(set(values)) <= len(values) / 2


def _only(run: Observations, columns: Sequence[str]) -> Observations:
    return dataclasses.replace(run, categories={name: run.categories[name] for name in columns})
