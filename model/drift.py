"""Whether one run's images and scores are like those of another.

Three statistics: the population stability index (PSI) of shares, the largest distance of two
distribution functions (KS), and the change of a flag rate. What is normal for them is taken
from the earlier run alone: two runs as large as these are drawn from its patients many times.
No statistic of any such pair is above its limit, so that few nights alarm by chance.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from enum import StrEnum

import numpy as np

SAMPLES = 500
"""Pairs of runs drawn from the earlier one."""

_BINS, _FINE = 10, 5
"""PSI takes tenths of the earlier run; KS looks at five places within each."""

_MOST_LEVELS = 20
"""Levels of a category, most frequent first; the rest are one more."""

_SMOOTHING = 0.5
"""Added to each count, so that an empty level does not make PSI infinite."""


class Statistic(StrEnum):
    """What is compared."""

    PSI = "PSI"
    KS = "KS"
    FLAG_RATE = "flag rate"


def floors(then: int, now: int) -> dict[Statistic, float]:
    """Returns what no limit is below, for runs of so many images.

    With 100,000 images a change can be certain and mean nothing. With few, what is rare may
    not be in the earlier run at all, and then nothing drawn from that run shows how it varies.
    """
    return {
        Statistic.PSI: max(0.01, 10 / then + 10 / now),
        Statistic.KS: 0.02,
        Statistic.FLAG_RATE: max(0.01, 8 / min(then, now)),
    }


@dataclasses.dataclass(frozen=True)
class Observations:
    """A run, or a sample of it: all arrays have a value an image.

    Attributes:
      numbers: Scores and input statistics, finite, by name.
      flags: bool, by finding.
      categories: Text, by name; missing ones are a text, too.
      patients: Whose image it is, as integers: images of one patient are alike, so patients
        and not images are drawn.
    """

    numbers: Mapping[str, np.ndarray]
    flags: Mapping[str, np.ndarray]
    categories: Mapping[str, np.ndarray]
    patients: np.ndarray


@dataclasses.dataclass(frozen=True)
class Change:
    """One statistic between two runs.

    Attributes:
      name: Of the finding or column.
      statistic: Which one.
      value: Of the two runs; a flag rate as now less then, with its sign.
      limit: What is normal; its absolute value counts.
    """

    name: str
    statistic: Statistic
    value: float
    limit: float

    @property
    def is_alarm(self) -> bool:
        """Whether it is more than normal."""
        return abs(self.value) > self.limit


def measure_drift(
    then: Observations, now: Observations, *, samples: int = SAMPLES, seed: int = 0
) -> list[Change]:
    """Returns all statistics of two runs that have the same columns.

    Costs `samples` times patients times some 1,000 multiplications: a second for 20,000.

    Args:
      then: The earlier run; bins and levels are its, and normal variation.
      now: The other one.
      samples: Pairs to draw.
      seed: Of the drawing.

    Raises:
      ValueError: One of them has no image.
    """
    if not (len(then.patients) and len(now.patients)):
        raise ValueError(
            "runs to compare must have images. Received:"
            f" {len(then.patients)} then and {len(now.patients)} now."
        )
    blocks = list(_blocks(then, now))
    rng = np.random.default_rng(seed)
    drawn = _draw(blocks, then.patients, len(np.unique(now.patients)), samples, rng)
    changes, spread = [], []
    for block, (first, second) in zip(blocks, drawn, strict=True):
        total = [np.bincount(codes, minlength=block.levels)[None] for codes in block.codes]
        for statistic in block.statistics:
            changes.append((block.name, statistic, _COMPARE[statistic](*total)[0]))
            spread.append(_evened(statistic, _COMPARE[statistic](first, second)))
    limits = _limits(np.stack(spread, axis=1))
    least = floors(len(then.patients), len(now.patients))
    return [
        Change(name, statistic, float(value), max(_raw(statistic, limit), least[statistic]))
        for (name, statistic, value), limit in zip(changes, limits, strict=True)
    ]


@dataclasses.dataclass(frozen=True)
class _Block:
    """A column as levels: `codes` of the earlier and of the other run, from 0 to `levels`."""

    name: str
    statistics: tuple[Statistic, ...]
    levels: int
    codes: tuple[np.ndarray, np.ndarray]


def _blocks(then: Observations, now: Observations) -> Iterator[_Block]:
    for name, values in then.numbers.items():
        edges = np.quantile(values, np.linspace(0, 1, _BINS * _FINE + 1)[1:-1])
        codes = tuple(np.searchsorted(edges, of) for of in (values, now.numbers[name]))
        yield _Block(name, (Statistic.PSI, Statistic.KS), _BINS * _FINE, codes)
    for name, values in then.flags.items():
        yield _Block(name, (Statistic.FLAG_RATE,), 2, (values.astype(int), now.flags[name] * 1))
    for name, values in then.categories.items():
        levels, counts = np.unique(values, return_counts=True)
        known = np.sort(levels[np.argsort(-counts, kind="stable")[:_MOST_LEVELS]])
        codes = tuple(_levels_of(of, known) for of in (values, now.categories[name]))
        yield _Block(name, (Statistic.PSI,), len(known) + 1, codes)


def _levels_of(values: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Returns the place of each value in `known`, or the one after the last."""
    places = np.minimum(np.searchsorted(known, values), len(known) - 1)
    return np.where(known[places] == values, places, len(known))


def _draw(
    blocks: list[_Block],
    patients: np.ndarray,
    others: int,
    samples: int,
    rng: np.random.Generator,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Gives for each block the counts by level of both runs drawn, `(samples, levels)` each."""
    _, group = np.unique(patients, return_inverse=True)
    groups = int(group.max()) + 1
    weights = [_times_drawn(groups, size, samples, rng) for size in (groups, others)]
    for block in blocks:
        places = group * block.levels + block.codes[0]
        counts = np.bincount(places, minlength=groups * block.levels)
        counts = counts.reshape(groups, block.levels).astype(np.float32)
        yield tuple(drawn @ counts for drawn in weights)


def _times_drawn(groups: int, size: int, samples: int, rng: np.random.Generator) -> np.ndarray:
    """Returns how often each group is in each sample: float32 `(samples, groups)`."""
    drawn = np.empty((samples, groups), np.float32)
    for row in drawn:
        row[:] = np.bincount(rng.integers(0, groups, size), minlength=groups)
    return drawn


def _psi(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    if first.shape[1] == _BINS * _FINE:  # numbers: no category has as many levels
        first, second = (of.reshape(len(of), _BINS, _FINE).sum(axis=2) for of in (first, second))
    first, second = (_shares(of + _SMOOTHING) for of in (first, second))
    return ((second - first) * np.log(second / first)).sum(axis=1)


def _ks(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    distance = np.cumsum(_shares(second), axis=1) - np.cumsum(_shares(first), axis=1)
    return np.abs(distance).max(axis=1)


def _flag_rate(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return _shares(second)[:, 1] - _shares(first)[:, 1]


def _shares(counts: np.ndarray) -> np.ndarray:
    return counts / counts.sum(axis=1, keepdims=True, dtype=np.float64)


_COMPARE = {Statistic.PSI: _psi, Statistic.KS: _ks, Statistic.FLAG_RATE: _flag_rate}


def _evened(statistic: Statistic, values: np.ndarray) -> np.ndarray:
    """Returns values that spread alike for all statistics: PSI is a square."""
    return np.sqrt(values) if statistic is Statistic.PSI else values


def _raw(statistic: Statistic, value: float) -> float:
    return float(value**2 if statistic is Statistic.PSI else value)


def _limits(spread: np.ndarray) -> np.ndarray:
    """Returns a limit a statistic, such that no sample has any above its limit.

    All are as many standard deviations from their mean as the farthest of any sample is.

    Args:
      spread: `(samples, statistics)`.
    """
    middle, deviation = spread.mean(axis=0), spread.std(axis=0)
    steps = np.abs(spread - middle) / np.where(deviation > 0, deviation, 1)
    return np.abs(middle) + steps.max() * deviation
