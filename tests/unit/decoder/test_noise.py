import math

import pytest
import torch

from syzygy.core.config import parse
from syzygy.core.errors import UserError
from syzygy.core.randomness import generator
from syzygy.decoder.noise_levels import KarrasSchedule, LogNormal


def test_schedule_has_the_published_ends_and_middle() -> None:
    sigmas = KarrasSchedule().sigmas(3)
    middle = ((80 ** (1 / 7) + 0.002 ** (1 / 7)) / 2) ** 7
    assert sigmas.tolist() == pytest.approx([80, middle, 0.002, 0], rel=1e-12)


def test_schedule_of_one_step_goes_straight_to_zero() -> None:
    assert KarrasSchedule().sigmas(1).tolist() == pytest.approx([80, 0])


def test_rho_one_is_uniform() -> None:
    sigmas = KarrasSchedule(sigma_min=1, sigma_max=5, rho=1).sigmas(5)
    assert sigmas.tolist() == pytest.approx([5, 4, 3, 2, 1, 0])


@pytest.mark.parametrize("steps", [0, -3, 10_001, 10**12])
def test_schedule_refuses_no_steps_and_too_many(steps: int) -> None:
    with pytest.raises(UserError, match=f"{steps} steps are not possible; allowed are 1 to 10,000"):
        KarrasSchedule().sigmas(steps)


def test_schedule_refuses_a_reversed_range() -> None:
    with pytest.raises(UserError, match="below sigma_max"):
        KarrasSchedule(sigma_min=2, sigma_max=1).sigmas(3)


@pytest.mark.parametrize("setting", [{"p_std": 0}, {"p_std": math.nan}, {"p_mean": math.inf}])
def test_distribution_refuses_what_is_none(setting: dict[str, float]) -> None:
    with pytest.raises(UserError, match="p_"):
        parse(LogNormal, setting, "test")


def test_quantiles_are_ediffi_boundaries() -> None:
    """E^3_0 below 0.0757, the median at 0.301, E^6_63 above 3.99, E^9_511 above 9.61."""
    found = LogNormal().quantile(torch.tensor([1 / 8, 1 / 2, 1 - 1 / 64, 1 - 1 / 512], dtype=torch.float64))
    assert found.tolist() == pytest.approx([0.0757, 0.301, 3.99, 9.61], rel=2e-3)


def test_quantile_inverts_the_distribution_of_samples() -> None:
    noise = LogNormal(p_mean=0.3, p_std=0.7)
    sigma = noise.sample(20_000, generator(0, "noise"))
    for probability in (0.1, 0.5, 0.9):
        below = (sigma < noise.quantile(torch.tensor(probability))).float().mean().item()
        assert below == pytest.approx(probability, abs=0.015)


def test_samples_cover_the_distribution_evenly() -> None:
    noise = LogNormal(p_mean=0.3, p_std=0.7)
    edges = noise.quantile(torch.arange(1, 16) / 16)
    drawn = [noise.sample(16, generator(seed, "noise")) for seed in range(300)]
    for sigma in drawn:
        assert torch.equal(torch.bucketize(sigma, edges), torch.arange(16)), "one in each interval of equal probability"
    first = torch.stack(drawn)[:, 3].log()
    inside = noise.quantile(torch.tensor([3.25, 3.75]) / 16).log()
    share = ((first > inside[0]) & (first < inside[1])).float().mean().item()
    assert share == pytest.approx(0.5, abs=0.1), "anywhere within the interval"


def test_samples_depend_on_the_generator_alone() -> None:
    assert torch.equal(LogNormal().sample(5, generator(1, "a")), LogNormal().sample(5, generator(1, "a")))
    assert not torch.equal(LogNormal().sample(5, generator(1, "a")), LogNormal().sample(5, generator(1, "b")))


def test_an_expert_sees_its_own_stages_alone() -> None:
    noise = LogNormal(p_mean=0.3, p_std=0.7, shares=((0.0, 0.25), (0.5, 0.75)))
    edges = noise.quantile(torch.tensor([0.25, 0.5, 0.75]))
    sigma = noise.sample(1000, generator(0, "noise"))
    counts = torch.histc(torch.bucketize(sigma, edges).float(), 4, 0, 3)
    assert counts.tolist() == [500, 0, 500, 0]
    whole = LogNormal(p_mean=0.3, p_std=0.7)
    levels = torch.tensor([0.0001, 0.4999, 0.5001, 0.9999])
    wanted = whole.quantile(torch.tensor([0.00005, 0.24995, 0.50005, 0.74995]))
    torch.testing.assert_close(noise.spread(levels), wanted, rtol=2e-3, atol=0)


@pytest.mark.parametrize("shares", [(), ((0.5, 0.5),), ((0.5, 0.7), (0.6, 0.9)), ((-0.1, 0.5),), ((0.5, 1.1),)])
def test_shares_must_rise(shares: tuple) -> None:
    with pytest.raises(UserError, match=r"shares|pairs"):
        parse(LogNormal, {"shares": shares}, "test")


def test_a_mixture_sees_each_part_as_often_as_told() -> None:
    noise = LogNormal(p_mean=0.3, p_std=0.7, shares=((0.0, 0.25), (0.25, 0.5), (0.75, 1.0)), weights=(3.0, 1.0, 4.0))
    edges = noise.quantile(torch.tensor([0.25, 0.5, 0.75]))
    sigma = noise.sample(1600, generator(0, "noise"))
    counts = torch.histc(torch.bucketize(sigma, edges).float(), 4, 0, 3)
    assert counts.tolist() == [600, 200, 0, 800]
    # Within a part it is the log-normal still: half of the last part's samples lie below its own median.
    last = sigma[sigma > edges[2]]
    assert (last < noise.quantile(torch.tensor(0.875))).float().mean().item() == pytest.approx(0.5, abs=0.01)
    ends = noise.spread(torch.tensor([0.375, 0.5, 0.75]))
    torch.testing.assert_close(ends, noise.quantile(torch.tensor([0.25, 0.75, 0.875])), rtol=1e-5, atol=0)


@pytest.mark.parametrize("weights", [(1.0,), (1.0, 0.0), (1.0, -1.0), (1.0, math.inf), (1.0, math.nan), ()])
def test_weights_are_one_a_share_and_positive(weights: tuple) -> None:
    with pytest.raises(UserError, match="weights"):
        parse(LogNormal, {"shares": ((0.0, 0.5), (0.5, 1.0)), "weights": weights}, "test")
