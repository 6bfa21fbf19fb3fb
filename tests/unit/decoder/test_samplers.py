"""Order of the samplers on Gaussian data, where the ideal denoiser and the ODE have closed forms:
for N(0, s²), D(x; σ) = s²/(s² + σ²)·x and x(σ) = x(σ₀)·√((s² + σ²)/(s² + σ₀²)).
"""

import math

import pytest
import torch
from torch import Tensor

from syzygy.core.contracts import Conditioning
from syzygy.core.errors import UserError
from syzygy.core.randomness import generator, per_sample_noise
from syzygy.decoder.noise_levels import KarrasSchedule
from syzygy.decoder.samplers import SAMPLERS, Progress, sample
from tests.closeness import assert_close

NOTHING = Conditioning({})
SPREAD = torch.tensor([0.1, 0.5, 2.0], dtype=torch.float64)[:, None, None]  # anisotropic: one s a channel


def gaussian_denoiser(x: Tensor, sigma: Tensor, conditioning: Conditioning) -> Tensor:
    return SPREAD**2 / (SPREAD**2 + sigma[:, None, None, None] ** 2) * x


def noise(batch: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return per_sample_noise((3, 4, 4), [generator(0, "x", i) for i in range(batch)], "cpu").to(dtype)


def error(sampler: str, steps: int) -> float:
    """Largest relative error from σ = 10 to 0.05: without the last step to 0, which is of first order."""
    sigmas = KarrasSchedule(sigma_min=0.05, sigma_max=10).sigmas(steps + 1)[:-1]
    start = noise(2)
    exact = start * 10 * ((SPREAD**2 + 0.05**2) / (SPREAD**2 + 10**2)).sqrt()
    found = sample(gaussian_denoiser, start, sigmas, NOTHING, sampler=sampler)
    return ((found - exact).abs() / exact.abs()).max().item()


@pytest.mark.parametrize(("sampler", "order"), [("euler", 1), ("heun", 2), ("dpm++2m", 2)])
def test_error_falls_with_the_order(sampler: str, order: int) -> None:
    coarse, fine = error(sampler, 128), error(sampler, 256)
    assert math.log2(coarse / fine) == pytest.approx(order, abs=0.12)


@pytest.mark.parametrize("sampler", ["heun", "dpm++2m"])
def test_second_order_is_worth_it_at_25_steps(sampler: str) -> None:
    assert error(sampler, 25) < error("euler", 25) / 5


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_pictures_have_the_spread_of_the_data(sampler: str) -> None:
    found = sample(gaussian_denoiser, noise(64), KarrasSchedule().sigmas(200), NOTHING, sampler=sampler)
    start = noise(64).std((0, 2, 3))
    assert (found.std((0, 2, 3)) / start / SPREAD.flatten()).tolist() == pytest.approx([1, 1, 1], rel=0.05)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_last_picture_is_the_last_denoised_one(sampler: str) -> None:
    seen: list[Progress] = []
    sigmas = KarrasSchedule().sigmas(5)
    found = sample(gaussian_denoiser, noise(2), sigmas, NOTHING, sampler=sampler, on_step=seen.append)
    assert [(p.step, p.steps, p.sigma) for p in seen] == [(i + 1, 5, sigmas[i].item()) for i in range(5)]
    assert_close(found, seen[-1].denoised)


def test_dpm_solver_is_exact_where_the_denoiser_is_constant() -> None:
    target = torch.full((2, 3, 4, 4), 0.3, dtype=torch.float64)
    found = sample(lambda x, sigma, c: target, noise(2), torch.tensor([9.0, 4.0, 0.5]), NOTHING, sampler="dpm++2m")
    assert_close(found, target + 0.5 / 9 * (9 * noise(2) - target))


@pytest.mark.parametrize(("sampler", "evaluations"), [("euler", 6), ("heun", 11), ("dpm++2m", 6)])
def test_number_of_evaluations(sampler: str, evaluations: int) -> None:
    calls: list[float] = []

    def counted(x: Tensor, sigma: Tensor, conditioning: Conditioning) -> Tensor:
        calls.append(sigma[0].item())
        return gaussian_denoiser(x, sigma, conditioning)

    sample(counted, noise(1), KarrasSchedule().sigmas(6), NOTHING, sampler=sampler)
    assert len(calls) == evaluations
    assert min(calls) > 0


def test_pictures_keep_the_dtype_of_the_noise() -> None:
    found = sample(lambda x, sigma, c: x / 2, noise(1, torch.float32), KarrasSchedule().sigmas(3), NOTHING)
    assert found.dtype == torch.float32


def test_unknown_sampler_names_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"'heum'. Did you mean 'heun'"):
        sample(gaussian_denoiser, noise(1), KarrasSchedule().sigmas(2), NOTHING, sampler="heum")


@pytest.mark.parametrize("sigmas", [[1.0], [1.0, 1.0], [1.0, 2.0], [1.0, -0.1], [math.inf, 1.0], [1.0, math.nan]])
def test_noise_levels_must_fall(sigmas: list[float]) -> None:
    with pytest.raises(UserError, match="must fall"):
        sample(gaussian_denoiser, noise(1), torch.tensor(sigmas), NOTHING)
