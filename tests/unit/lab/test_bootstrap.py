"""Intervals: their width where theory knows it, pairing, prompts as the unit that is drawn."""

import pytest
import torch

from syzygy.core.errors import UserError
from syzygy.lab.evaluate.bootstrap import difference, interval, student, win_rate


def test_interval_of_a_known_share() -> None:
    found = interval([[1.0]] * 80 + [[0.0]] * 20)
    assert found.mean == pytest.approx(0.8)
    spread = (0.8 * 0.2 / 100) ** 0.5  # of the mean of 100 Bernoulli draws
    assert found.low == pytest.approx(0.8 - 1.96 * spread, abs=0.02)
    assert found.high == pytest.approx(0.8 + 1.96 * spread, abs=0.02)
    assert found.number == 100
    assert str(found) == f"80 % [{100 * found.low:.0f}, {100 * found.high:.0f}]"


def test_more_pictures_of_the_same_prompts_are_not_more_prompts() -> None:
    """Prompts that are always right or always wrong: four pictures of each tell no more than one."""
    one, four = interval([[1.0]] * 15 + [[0.0]] * 15), interval([[1.0] * 4] * 15 + [[0.0] * 4] * 15)
    assert four.high - four.low == pytest.approx(one.high - one.low, abs=0.05)
    mixed = interval([[1.0, 0.0, 1.0, 0.0]] * 30)
    assert mixed.high - mixed.low < 0.6 * (one.high - one.low)


def test_what_a_training_does_to_every_prompt_widens_the_interval() -> None:
    """Three trainings, one of which is right everywhere: many prompts do not make it surer what a fourth would do."""
    values = [[1.0, 0.0, 0.0]] * 200
    over, within = interval(values, trainings=True), interval(values)
    assert over.mean == within.mean == pytest.approx(1 / 3)
    assert over.high - over.low == pytest.approx(1, abs=0.35)
    assert within.high - within.low < 0.1
    assert difference(values, [[0.0] * 3] * 200, trainings=True).high == over.high
    assert win_rate(values, [[0.0] * 3] * 200, trainings=True).low == pytest.approx(0.5 + over.low / 2)


@pytest.mark.parametrize("trainings", [2, 3, 5])
def test_intervals_over_few_trainings_cover_what_they_say(trainings: int) -> None:
    """Each training shifts all prompts alike: the interval must hold the mean over all trainings, 0, in 95 % of the cases."""
    random, covered = torch.Generator().manual_seed(trainings), 0
    for _ in range(200):
        shift, noise = torch.randn(trainings, generator=random), torch.randn(40, trainings, generator=random)
        found = interval((shift + 3 * noise).tolist(), trainings=True)
        covered += found.low <= 0 <= found.high
    assert covered >= 0.92 * 200


@pytest.mark.parametrize(("number", "quantile"), [(2, 12.706), (5, 2.776), (11, 2.228), (20, 2.093), (41, 2.021)])
def test_students_t(number: int, quantile: float) -> None:
    assert student(number) == pytest.approx(quantile, abs=0.002)


def test_a_paired_difference_is_narrower_than_the_scores() -> None:
    first = [[float(i % 2 == 0)] for i in range(40)]
    second = [[float(i % 2 == 0 and i != 0)] for i in range(40)]
    found = difference(first, second)
    assert found.mean == pytest.approx(1 / 40)
    assert found.high - found.low < 0.12  # unpaired it would be about 0.4


def test_win_rate_counts_ties_half() -> None:
    assert win_rate([[2.0, 1.0], [0.0, 1.0]], [[1.0, 1.0], [1.0, 1.0]]).mean == pytest.approx((1 + 0.5 + 0 + 0.5) / 4)
    assert win_rate([[1.0]] * 5, [[0.0]] * 5) == win_rate([[3.0]] * 5, [[2.0]] * 5)


def test_unequal_or_empty_input() -> None:
    for nothing in ([], [[]]):
        with pytest.raises(UserError, match="nothing to score"):
            interval(nothing)
    with pytest.raises(ValueError, match="shorter"):
        difference([[1.0], [2.0]], [[1.0]])
