"""From what was measured of a sample to what a run takes: arithmetic, and nothing else."""

import dataclasses
from collections.abc import Callable, Sequence

from model.tuning import wilson_interval
from pipeline.commit import share_of
from pipeline.cost_model import COST_UNIT, Rates, estimate, rates_for
from pipeline.prices import Price
from pipeline.sampling import Measured, SampleRun
from pipeline.score_options import ScoreOptions
from schemas.errors import InputError


@dataclasses.dataclass(frozen=True)
class PlanOptions:
    """What `plan` is asked beside what `score` would be.

    Attributes:
      score: The options of the run.
      deadline_hours: In which it is to be done; None for any time.
      prices: Of machines as fast as this one.
      load_s: Seconds that this process took to load what a run loads, too.
    """

    score: ScoreOptions
    deadline_hours: float | None
    prices: Sequence[Price]
    load_s: float


@dataclasses.dataclass(frozen=True)
class WorkCounts:
    """Images of a manifest by what a run would do with them.

    Attributes:
      manifest: All.
      new: To score; no published run has them.
      changed: To score, since their file has changed since a run of the same model and
        settings.
      other_settings: To score, since runs of other models or settings alone have them.
      again: To score although a run of the same model and settings has them, since
        `--only-new` is not given; whether their file has changed is not looked at.
      skipped: Held by such a run, with `--only-new`.
      kept: Scored or rejected by earlier attempts at the run.
    """

    manifest: int
    new: int
    changed: int
    other_settings: int
    again: int
    skipped: int
    kept: int

    @property
    def to_score(self) -> int:
        """How many are to be scored."""
        return self.new + self.changed + self.other_settings + self.again

    def to_json(self) -> dict:
        """Returns the counts as JSON has them."""
        stale = self.changed + self.other_settings
        return {**dataclasses.asdict(self), "stale": stale, "to_score": self.to_score}


@dataclasses.dataclass(frozen=True)
class Line:
    """What grows with a number, from two measurements of it."""

    fixed: float
    each: float

    @classmethod
    def through(cls, small: tuple[float, float], large: tuple[float, float]) -> "Line":
        """Returns the line through two points; from zero where they do not differ in number."""
        (few, low), (many, high) = small, large
        if many > few:
            each = max(0.0, (high - low) / (many - few))
            return cls(max(0.0, high - each * many), each)
        return cls(0.0, high / many) if many else cls(high, 0.0)

    def at(self, number: float) -> float:
        """Returns the value for a number."""
        return self.fixed + self.each * number


def reckon(
    options: PlanOptions,
    counts: WorkCounts,
    sampled: int,
    measured: Measured,
    prepare_s: float,
    skipped_bytes: int,
) -> dict:
    """Returns what a run takes, from what was measured, as JSON values.

    Args:
      options: Of the command.
      counts: Some images are to be scored.
      sampled: Distinct images in the sample.
      measured: Of the sample.
      prepare_s: Seconds that this process took to find out what is to be done.
      skipped_bytes: Of the table of skipped images.

    Raises:
      InputError: The deadline is over before the first image.
    """
    expected = expect(options.score, counts, sampled, measured)
    begun, small, large = measured.begun, measured.small, measured.large
    score = _line(small, large, "images", lambda run: run.seconds("score"))
    draw = _line(small, large, "drawn", lambda run: run.seconds("draw"))
    image_s = score.each if measured.steady_s is None else measured.steady_s
    if measured.steady_s is None or not image_s:
        # No faster than files come that were not read before; the job found them in memory.
        image_s = max(image_s, 1 / measured.decode)
    steps = {
        "start": options.load_s + prepare_s + begun.seconds("start"),
        "score": max(0.0, begun.seconds("score") - image_s * begun.images),
        "draw": max(0.0, begun.seconds("draw") - draw.each * begun.record["counts"]["drawn"]),
        "write": begun.seconds("write"),
        "report": begun.seconds("report"),
    }
    rates = rates_for(
        measured.decode,
        measured.inference,
        shares_cores=measured.shares_cores,
        image_s=image_s,
        draw_s=draw.each,
        start_s=sum(steps.values()),
    )
    steps["score"] += counts.to_score * rates.image_s
    steps["draw"] += expected["drawn"] * rates.draw_s
    return {
        "expected": expected,
        "rates": {
            "decode": rates.decode,
            "inference": rates.inference,
            "score": 1 / rates.image_s,
            "draw": 1 / draw.each if draw.each else None,
            "bottleneck": rates.bottleneck,
        },
        "seconds": {"all": sum(steps.values()), **steps},
        "disk_bytes": disk_bytes(expected, small, large, skipped_bytes),
        **_costs(options, rates, counts.to_score, expected["drawn"]),
    }


def expect(
    options: ScoreOptions, counts: WorkCounts, sampled: int, measured: Measured
) -> dict[str, int | list[float]]:
    """Returns how many images are expected to come to what, by their shares in the sample."""
    large = measured.large.record["counts"]
    rejects = sum(measured.rejected_by_reason.values())
    rejected = round(counts.to_score * rejects / sampled)
    scored = counts.to_score - rejected + counts.kept
    flagged = round(scored * large["flagged"] / large["scored"])
    # Some flagged images have nothing to draw.
    most = min(measured.large.images // 2, large["flagged"])
    is_drawn = options.gradcam_top and most
    drawn = round(min(options.gradcam_limit, flagged) * large["drawn"] / most) if is_drawn else 0
    budget = options.review_budget
    if isinstance(budget, float):
        budget = int(share_of(budget, counts.manifest))
    return {
        "rejected": rejected,
        "rejected_share": rejects / sampled,
        "rejected_share_95": list(wilson_interval(rejects, sampled)),
        "reject_limit": options.reject_limit,
        "scored": scored,
        "flagged": flagged,
        "listed": flagged if budget is None else min(budget, flagged),
        "drawn": drawn,
        "overlays": round(drawn * large["overlays"] / large["drawn"]) if drawn else 0,
    }


def disk_bytes(
    expected: dict, small: SampleRun, large: SampleRun, skipped_bytes: int
) -> dict[str, int]:
    """Returns what each kind of result takes, and what lies staged until it is published."""
    found = {
        "scores": _line(small, large, "scored", _size("scores")).at(expected["scored"]),
        "rejects": _line(small, large, "rejected", _size("rejects")).at(expected["rejected"]),
        "gradcam": _line(small, large, "overlays", _size("gradcam")).at(expected["overlays"]),
        "worklist": _line(small, large, "listed", _size("worklist")).at(expected["listed"]),
        "report": large.size_bytes("report"),
        "skipped": skipped_bytes,
    }
    staged = _line(small, large, "images", lambda run: run.staged_bytes)
    published = sum(found.values())
    found |= {
        "published": published,
        "staged": staged.at(expected["scored"] + expected["rejected"]),
    }
    return {kind: round(size) for kind, size in found.items()}


def _size(kind: str) -> Callable[[SampleRun], int]:
    return lambda run: run.size_bytes(kind)


def _line(
    small: SampleRun, large: SampleRun, per: str, value: Callable[[SampleRun], float]
) -> Line:
    """Returns how a value grows with a count of two runs, or with their images."""

    def point(run: SampleRun) -> tuple[float, float]:
        number = run.images if per == "images" else run.record["counts"][per]
        return number, value(run)

    return Line.through(point(small), point(large))


def _costs(options: PlanOptions, rates: Rates, images: int, drawn: int) -> dict:
    """Returns hours, machines, and what it costs at each price."""
    try:
        found = estimate(rates, images, drawn, within_hours=options.deadline_hours)
    except ValueError as error:
        raise InputError(
            f"--deadline-hours must leave time after the {rates.start_s:.0f} s that a run takes"
            f" beside its images. Received: --deadline-hours {options.deadline_hours}."
        ) from error
    priced = []
    # One run of a million, of which no more is drawn than of any other.
    drawn_of_million = min(options.score.gradcam_limit, round(drawn * COST_UNIT / images))
    for price in options.prices:
        deadline, hourly = options.deadline_hours, price.price_per_hour
        run = estimate(rates, images, drawn, within_hours=deadline, price_per_hour=hourly)
        million = estimate(rates, COST_UNIT, drawn_of_million, price_per_hour=hourly)
        costs = {"cost": run.cost, "cost_per_million": million.cost_per_million}
        priced.append({**price.to_json(), **costs})
    return {
        "hours": found.hours,
        "deadline_hours": options.deadline_hours,
        "machines": found.machines,
        "prices": priced,
    }
