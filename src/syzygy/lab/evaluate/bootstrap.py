"""Means with intervals: a percentile bootstrap over prompts and the images of each, and Student's t over trainings."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from syzygy.core.errors import UserError
from syzygy.core.randomness import generator

RESAMPLES = 2000
STUDENT = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}
"""97.5 % quantile of Student's t for the mean of n values, n − 1 degrees of freedom."""
NORMAL = 1.959964
"""The same of the normal distribution."""


def student(number: int) -> float:
    """97.5 % quantile of Student's t for the mean of `number` values, at least 2; right to 0.001."""
    if number in STUDENT:
        return STUDENT[number]
    z, degrees = NORMAL, number - 1
    series = (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96, (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + sum(term / degrees**power for power, term in enumerate(series, 1))


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float
    number: int
    """The number of prompts."""

    def __str__(self) -> str:
        return f"{100 * self.mean:.0f} % [{100 * self.low:.0f}, {100 * self.high:.0f}]"


@dataclass(frozen=True)
class Difference(Interval):
    """A mean difference of two shares."""

    def __str__(self) -> str:
        """In points, with its sign."""
        return f"{100 * self.mean:+.0f} [{100 * self.low:+.0f}, {100 * self.high:+.0f}]"


def interval(values: Sequence[Sequence[float]], seed: int = 0, *, trainings: bool = False) -> Interval:
    """Mean over prompts (rows) and the images of each, equally many; both are drawn with replacement, prompts first.

    Args:
        trainings: a column is one training, the same for all prompts. What a training does to all images widens the interval: by Student's t
            over the trainings' means, because a bootstrap of two or three trainings never leaves their range. It is combined with the
            bootstrap over prompts as independent errors are, and stays within the lowest and the highest value.

    Raises:
        UserError: no values.
    """
    if not values or not values[0]:
        raise UserError("there is nothing to score: ask for at least one prompt.")
    x = torch.tensor(values, dtype=torch.float64)
    prompts, pictures = x.shape
    random = generator(seed, "bootstrap", prompts, pictures)
    row = torch.randint(prompts, (RESAMPLES, prompts, 1), generator=random)
    quantiles = torch.tensor([0.025, 0.975], dtype=torch.float64)
    mean = x.mean()
    if not trainings:
        column = torch.randint(pictures, (RESAMPLES, prompts, pictures), generator=random)
        low, high = x[row, column].mean((1, 2)).quantile(quantiles)
        return Interval(float(mean), float(low), float(high), prompts)
    low, high = x.mean(1)[row[..., 0]].mean(1).quantile(quantiles)
    spread = student(pictures) * x.mean(0).std() / pictures**0.5 if pictures > 1 else torch.zeros(())
    low, high = mean - (mean - low).hypot(spread), mean + (high - mean).hypot(spread)
    return Interval(float(mean), float(low.clamp_min(x.min())), float(high.clamp_max(x.max())), prompts)


def difference(
    first: Sequence[Sequence[float]], second: Sequence[Sequence[float]], seed: int = 0, *, trainings: bool = False
) -> Difference:
    """Mean of first − second on the same prompts and noise, with a paired interval."""
    pairs = zip(first, second, strict=True)
    found = interval([[a - b for a, b in zip(*rows, strict=True)] for rows in pairs], seed, trainings=trainings)
    return Difference(**vars(found))


def win_rate(
    first: Sequence[Sequence[float]], second: Sequence[Sequence[float]], seed: int = 0, *, trainings: bool = False
) -> Interval:
    """How often an image of `first` scores above `second`'s of the same prompt and noise; a tie counts half."""
    won = [
        [1.0 if a > b else 0.5 if a == b else 0.0 for a, b in zip(*rows, strict=True)]
        for rows in zip(first, second, strict=True)
    ]
    return interval(won, seed, trainings=trainings)


def share(first: Sequence[Sequence[float]], second: Sequence[Sequence[float]], seed: int = 0) -> Interval | None:
    """The mean of `first` divided by that of `second` on the same prompts, with a paired interval; None if the second's is 0.

    Resamples in which the second's mean is 0 are omitted.

    Raises:
        UserError: no values.
    """
    if not first or not first[0]:
        raise UserError("there is nothing to score: ask for at least one prompt.")
    above, below = (torch.tensor(values, dtype=torch.float64).mean(1) for values in (first, second))
    if not below.any():
        return None
    rows = torch.randint(len(below), (RESAMPLES, len(below)), generator=generator(seed, "share", len(below)))
    means = below[rows].mean(1)
    defined = means != 0
    low, high = (above[rows].mean(1)[defined] / means[defined]).quantile(
        torch.tensor([0.025, 0.975], dtype=torch.float64)
    )
    return Interval(float(above.mean() / below.mean()), float(low), float(high), len(below))
