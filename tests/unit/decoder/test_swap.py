"""Prompts that change places below a noise level: who reads what, when, inside guidance and out."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from syzygy.core.contracts import Condition, Conditioning, Denoiser
from syzygy.decoder.guidance import Guided, StyleGuided
from syzygy.decoder.noise_levels import KarrasSchedule
from syzygy.decoder.prompt_swap import Swapped, level_after
from syzygy.decoder.samplers import sample

PAIRS = torch.tensor([1, 0, 3, 2])


def told(batch: int = 4) -> Conditioning:
    values = torch.arange(1.0, batch + 1)[:, None]
    present = torch.ones(batch, dtype=torch.bool)
    return Conditioning({"text": Condition(present, pooled=values), "image": Condition(present, pooled=10 * values)})


def echo(x: Tensor, sigma: Tensor, conditioning: Conditioning) -> Tensor:
    """Denoises to what it is told; to 0 where nothing is."""
    read = sum(c.pooled[:, 0] * c.present for c in conditioning.conditions.values())
    return x * 0 + read[:, None, None, None]


def noise(batch: int = 4) -> Tensor:
    return torch.randn(batch, 1, 2, 2, generator=torch.Generator().manual_seed(0))


def test_neighbours_change_places_below_the_level() -> None:
    swapped = Swapped(echo, 1.0)
    read = swapped(noise(), torch.tensor([2.0, 1.0, 0.5, 0.5]), told())[:, 0, 0, 0]
    assert read.tolist() == [11.0, 22.0, 44.0, 33.0]


@settings(max_examples=25)
@given(st.integers(0, 12), st.sampled_from(["euler", "dpm++2m"]))
def test_it_changes_after_so_many_steps(steps: int, sampler: str) -> None:
    sigmas = KarrasSchedule().sigmas(12)
    seen: list[float] = []

    def recording(x: Tensor, sigma: Tensor, conditioning: Conditioning) -> Tensor:
        seen.append(conditioning.conditions["text"].pooled[0].item())
        return echo(x, sigma, conditioning)

    sample(Swapped(recording, level_after(sigmas, steps)), noise(), sigmas, told(), sampler=sampler)
    assert seen == [1.0] * steps + [2.0] * (12 - steps)


def test_no_step_is_the_neighbours_picture_and_all_steps_are_ones_own() -> None:
    sigmas = KarrasSchedule().sigmas(6)
    assert (level_after(sigmas, 0), level_after(sigmas, 6)) == (math.inf, 0.0)
    for steps, conditioning in ((0, told()[PAIRS]), (6, told())):
        found = sample(Swapped(echo, level_after(sigmas, steps)), noise(), sigmas, told())
        assert torch.equal(found, sample(echo, noise(), sigmas, conditioning))


@pytest.mark.parametrize(
    "wrap", [lambda d: Guided(d, 3.0), lambda d: StyleGuided(d, 3.0, 2.0)], ids=["guided", "style"]
)
def test_inside_guidance_and_around_it_are_the_same(wrap) -> None:
    inside, around = wrap(Swapped(echo, 1.0)), Swapped(wrap(echo), 1.0)
    for level in (2.0, 0.5):
        sigma = torch.full((4,), level)
        expected = wrap(echo)(noise(), sigma, told()[PAIRS] if level < 1 else told())
        for one in (inside, around, inside.at(level), around.at(level)):
            assert torch.equal(one(noise(), sigma, told()), expected)


def test_experts_inside_serve_their_own_levels() -> None:
    class ByLevel:
        """Experts that say who they are."""

        def at(self, sigma: float) -> Denoiser:
            return lambda x, s, c: echo(x, s, c) + (100 if sigma < 5 else 200)

        def __call__(self, x: Tensor, sigma: Tensor, conditioning: Conditioning) -> Tensor:
            raise AssertionError("samplers ask by level")

    swapped = Guided(Swapped(ByLevel(), 1.0), 1.0)
    read = [swapped.at(level)(noise(), torch.full((4,), level), told())[0, 0, 0, 0].item() for level in (9.0, 2.0, 0.5)]
    assert read == [211.0, 111.0, 122.0]


def test_a_lone_picture_has_no_neighbour() -> None:
    with pytest.raises(AssertionError, match="in pairs"):
        Swapped(echo, 1.0)(noise(3), torch.ones(3), told(3))
