"""Timing stages of the job in turn, and what the times say of a machine.

Each repeat measures every stage once, so that a slow minute of the machine hits all of
them; the median repeat counts.
"""

import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping, Sequence

from model.devices import prepare_gpus
from pipeline.cost_model import Rates, rates_for

DECODE, INFERENCE, OVERLAYS = "decode", "inference", "overlays"
WITHOUT_MAPS, TTA_ALL, TTA_BORDERLINE = "inference, no maps", "--tta all", "--tta borderline"
END_TO_END, PUBLISHED, START = "end to end", "end to end, published", "start"


@dataclasses.dataclass(frozen=True)
class Stage:
    """Something to measure.

    Attributes:
      name: Of what is measured.
      images: Handled by one call.
      work: Called once a repeat. Returns seconds by name where it has a clock of its
        own, None where all of the call counts.
    """

    name: str
    images: int
    work: Callable[[], Mapping[str, float] | None]


@dataclasses.dataclass(frozen=True)
class Measurement:
    """What one stage took.

    Attributes:
      images: Each repeat.
      seconds: By the clock, one a repeat.
      cpu_seconds: Of all cores, one a repeat; empty where the stage has a clock of its own.
    """

    images: int
    seconds: Sequence[float]
    cpu_seconds: Sequence[float] = ()

    @property
    def rate(self) -> float:
        """Images a second of the median repeat."""
        return self.images / statistics.median(self.seconds)

    def to_json(self) -> dict:
        """Returns rates and times as JSON values."""
        values = {
            "images": self.images,
            "images_per_second": self.rate,
            "slowest": self.images / max(self.seconds),
            "fastest": self.images / min(self.seconds),
            "seconds": list(self.seconds),
        }
        if self.cpu_seconds:
            cpu_s = statistics.median(self.cpu_seconds)
            values["cpu_ms_per_image"] = 1000 * cpu_s / self.images
        return values


def measure_in_turn(
    stages: Sequence[Stage], repeats: int, on_done: Callable[[str], None] = lambda name: None
) -> dict[str, Measurement]:
    """Calls every stage once to warm up, then all in turn, `repeats` times.

    Args:
      stages: What to measure.
      repeats: At least 1.
      on_done: Called with the name of each stage after each call.
    """
    images: dict[str, int] = {}
    seconds: dict[str, list[float]] = {}
    cpu_seconds: dict[str, list[float]] = {}
    for repeat in range(repeats + 1):
        for stage in stages:
            start, cpu_start = time.perf_counter(), time.process_time()
            timed = stage.work()
            if timed is None:
                timed = {stage.name: time.perf_counter() - start}
                cpu = {stage.name: time.process_time() - cpu_start}
            else:
                cpu = {}
            on_done(stage.name)
            if repeat == 0:
                continue
            for name, value in timed.items():
                images[name] = stage.images
                seconds.setdefault(name, []).append(value)
            for name, value in cpu.items():
                cpu_seconds.setdefault(name, []).append(value)
    return {
        name: Measurement(images[name], values, cpu_seconds.get(name, ()))
        for name, values in seconds.items()
    }


def rates_of(measured: Mapping[str, Measurement]) -> Rates:
    """Returns what the measured stages say of this machine.

    Args:
      measured: Of the stages of a `Workbench`.
    """
    drawing = measured.get(OVERLAYS)
    return rates_for(
        measured[DECODE].rate,
        measured[INFERENCE].rate,
        shares_cores=not prepare_gpus(),
        image_s=1 / measured[PUBLISHED].rate,
        draw_s=1 / drawing.rate if drawing else 0.0,
        start_s=statistics.median(measured[START].seconds),
    )


def ratios_of(
    measured: Mapping[str, Measurement], borderline_share: float | None
) -> dict[str, float]:
    """Returns how the measured stages relate to each other.

    Args:
      measured: Of the stages of a `Workbench`.
      borderline_share: Of that.
    """
    inference = measured[INFERENCE].rate
    # What a machine can do at best where both take turns on the same cores.
    in_turn = 1 / (1 / measured[DECODE].rate + 1 / inference)
    ratios = {
        "decode and inference in turn, images/s": in_turn,
        "end to end over that": measured[END_TO_END].rate / in_turn,
        "published over that": measured[PUBLISHED].rate / in_turn,
        "cost of the maps": measured[WITHOUT_MAPS].rate / inference - 1,
    }
    if TTA_ALL in measured:
        ratios["cost of --tta all"] = inference / measured[TTA_ALL].rate
    if TTA_BORDERLINE in measured:
        ratios["cost of --tta borderline"] = inference / measured[TTA_BORDERLINE].rate
        ratios["share of images that it looks at twice"] = borderline_share
        ratios["cost by that share"] = 1 + borderline_share * (ratios["cost of --tta all"] - 1)
    return ratios
