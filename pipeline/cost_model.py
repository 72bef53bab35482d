"""From measured rates to the time, machines and money that an archive takes."""

import dataclasses
import math

SECONDS_AN_HOUR = 3600
COST_UNIT = 1_000_000
"""Images that costs are given for."""


@dataclasses.dataclass(frozen=True)
class Rates:
    """What one machine was measured to do.

    Attributes:
      decode: Images a second, read and decoded on all decode threads.
      inference: Images a second through the network, at the run's batch size,
        precision and test-time augmentation.
      shares_cores: Whether both compute on the same cores: they take turns there, while
        beside an accelerator the slower one sets the pace.
      other_s: Seconds an image for all else that is done for each: elements, rows,
        staging, and writing the final files.
      draw_s: Seconds an image drawn, all of its overlays.
      start_s: Seconds that a run takes beside its images: before the first, and to begin
        and end each step.
    """

    decode: float
    inference: float
    shares_cores: bool
    other_s: float
    draw_s: float
    start_s: float

    @property
    def bottleneck(self) -> str:
        """Returns which of the two takes longer an image: `decode` or `inference`."""
        return "decode" if self.decode < self.inference else "inference"

    @property
    def image_s(self) -> float:
        """Returns the seconds an image that is scored and not drawn takes."""
        decode, inference = 1 / self.decode, 1 / self.inference
        # What is done beside the two is done on the cores that decode.
        if self.shares_cores:
            return decode + inference + self.other_s
        return max(decode + self.other_s, inference)

    def run_s(self, images: int, drawn: int) -> float:
        """Returns the seconds that a run takes, from its start to the published record.

        Args:
          images: To be scored.
          drawn: Of them, to be drawn.
        """
        return self.start_s + images * self.image_s + drawn * self.draw_s


def rates_for(
    decode: float,
    inference: float,
    *,
    shares_cores: bool,
    image_s: float,
    draw_s: float,
    start_s: float,
) -> Rates:
    """Returns rates by which an image takes the seconds that were measured of the whole job.

    Args:
      image_s: Seconds an image that is scored and not drawn; at least `1 / inference` where
        cores are not shared.
      decode, inference, shares_cores, draw_s, start_s: As those of `Rates`.
    """
    # Beside an accelerator its time passes while these cores work, and is not added.
    alone = 1 / decode + (1 / inference if shares_cores else 0)
    return Rates(decode, inference, shares_cores, image_s - alone, draw_s, start_s)


@dataclasses.dataclass(frozen=True)
class Estimate:
    """What an archive takes.

    Attributes:
      hours: On one machine.
      machines: So many finish in the hours that were allowed; 1 where none were given.
      cost: Of all machines, in the unit of the price; None without one.
      cost_per_million: Of a million such images, start-up apart.
    """

    hours: float
    machines: int
    cost: float | None
    cost_per_million: float | None


def estimate(
    rates: Rates,
    images: int,
    drawn: int,
    *,
    within_hours: float | None = None,
    price_per_hour: float | None = None,
) -> Estimate:
    """Returns what it takes to score an archive on machines like the one measured.

    Machines share the images evenly, and each starts up and is paid for on its own.

    Args:
      rates: Of one machine.
      images: To be scored.
      drawn: Of them, to be drawn.
      within_hours: In which all must be done.
      price_per_hour: Of one machine.

    Raises:
      ValueError: A machine would use the hours up before its first image.
    """
    work_s = rates.run_s(images, drawn) - rates.start_s
    machines = 1
    if within_hours is not None:
        left_s = within_hours * SECONDS_AN_HOUR - rates.start_s
        if left_s <= 0:
            raise ValueError(
                f"within_hours must leave time after the start of {rates.start_s:.0f} s."
                f" Received: within_hours={within_hours}."
            )
        machines = max(math.ceil(work_s / left_s), 1)
    cost = per_million = None
    if price_per_hour is not None:
        price_per_s = price_per_hour / SECONDS_AN_HOUR
        cost = (work_s + machines * rates.start_s) * price_per_s
        per_million = COST_UNIT * (work_s / images) * price_per_s
    return Estimate((work_s + rates.start_s) / SECONDS_AN_HOUR, machines, cost, per_million)
