"""Scores: intervals, pairing, rows; and that a right picture is scored right, a wrong one wrong."""

import pytest
import torch

from syzygy.errors import UserError
from syzygy.evals import composition
from syzygy.evals.composition import Painted
from syzygy.rng import Draw
from syzygy.world.description import Description, Mention, judge
from syzygy.world.prompts import Prompt, prompts
from syzygy.world.sample import scene_for


def painted(candidate: str, prompt: Prompt, right: bool) -> Painted:
    scene = scene_for(prompt.description, Draw(1, prompt.text))
    wrong = Description(tuple(Mention("star" if m.shape != "star" else "ring") for m in prompt.description.mentions))
    other = scene_for(wrong, Draw(1, "other"))
    atoms = judge(prompt.description, scene if right else other)
    return Painted(candidate, prompt, torch.zeros(3, 8, 8), atoms)


def test_interval_of_a_known_share() -> None:
    found = composition.interval([1.0] * 80 + [0.0] * 20)
    assert found.mean == pytest.approx(0.8)
    spread = (0.8 * 0.2 / 100) ** 0.5  # of the mean of 100 Bernoulli draws
    assert found.low == pytest.approx(0.8 - 1.96 * spread, abs=0.02)
    assert found.high == pytest.approx(0.8 + 1.96 * spread, abs=0.02)


def test_paired_difference_is_narrower_than_the_scores() -> None:
    asked = prompts("colour", 40, 0, False)
    first = [painted("a", p, i % 2 == 0) for i, p in enumerate(asked)]
    second = [painted("b", p, i % 2 == 0 and i != 0) for i, p in enumerate(asked)]
    found = composition.difference(first, second)
    assert found.mean == pytest.approx(1 / 40)
    assert found.high - found.low < 0.12  # unpaired it would be about 0.4
    with pytest.raises(AssertionError, match="same prompts"):
        composition.difference(first, second[1:] + second[:1])


def test_table_keeps_seen_and_held_out_apart() -> None:
    seen, unseen = prompts("colour", 4, 0, False), prompts("colour", 4, 0, True)
    rows = composition.table([painted("a", p, True) for p in seen] + [painted("a", p, False) for p in unseen])
    shares = {(r["category"], r["held_out"]): r["agreement"] for r in rows}
    assert shares == {("colour", False): 1.0, ("colour", True): 0.0, ("all", False): 1.0, ("all", True): 0.0}
    assert all(r["prompts"] == 4 for r in rows)


def test_nothing_to_score_is_said() -> None:
    with pytest.raises(UserError, match="nothing to score"):
        composition.interval([])
