"""diffusers' schedulers as samplers: which numbers of steps they take, and that each sample_with_scheduler goes from end to end."""

import warnings
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from syzygy.core import diffusers_schedulers
from syzygy.core.diffusers_schedulers import SCHEDULERS, planned, sample_with_scheduler
from syzygy.core.errors import UserError

pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation:DeprecationWarning"
)  # diffusers' own arithmetic
ANY = [name for name in SCHEDULERS if name not in ("ddim", "pndm")]
COUNTS = (1, 2, 7, 25, 50, 143, 150, 201, 333, 400, 501, 600, 998, 999, 1000)


def own(**changes: Any) -> Any:
    """Stable Diffusion's noise schedule."""
    values = {
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "steps_offset": 1,
        "clip_sample": False,
    }
    return diffusers.DDIMScheduler(**values | {"set_alpha_to_one": True, "timestep_spacing": "leading"} | changes)


def towards(target: Tensor, kept: Tensor) -> diffusers_schedulers.Predict:
    """The noise as a perfect network sees it that knows one image only; between two timesteps ln σ is linear."""
    logs = ((1 - kept) / kept).log() / 2

    def predict(x: Tensor, t: Tensor) -> Tensor:
        low = int(t)
        high, part = min(low + 1, len(logs) - 1), float(t) - low
        sigma = ((1 - part) * logs[low] + part * logs[high]).exp()
        return (x - target / (1 + sigma**2).sqrt()) * (1 + sigma**2).sqrt() / sigma

    return predict


@pytest.mark.filterwarnings("ignore:.*timesteps are spaced:UserWarning")
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_walk_of_any_allowed_length_goes_from_end_to_end(name: str, spacing: str) -> None:
    scheduler = diffusers_schedulers.fresh(own(timestep_spacing=spacing), name)
    for steps in COUNTS:
        if name not in ANY and steps in (143, 201, 400, 501, 600):
            with pytest.raises(
                UserError, match=f"{steps} steps are not possible .* Nearest possible: [0-9]+ and [0-9]+"
            ):
                planned(scheduler, steps)
            continue
        times = planned(scheduler, steps).timesteps.double()
        assert times.min() >= 0
        assert times.max() <= 999
        gap = -times.diff().min() if len(times) > 1 else 0
        assert times[0] + gap >= 899, (steps, times[0])
        if steps >= 10:
            assert times[0] >= 890


@pytest.mark.filterwarnings("ignore:.*timesteps are spaced:UserWarning")
@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_perfect_network_arrives_at_its_image(name: str) -> None:
    scheduler = diffusers_schedulers.fresh(own(), name)
    target, noise = torch.full((1, 1, 2, 2), 0.5), torch.randn(1, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    for steps in (1, 3, 50, 999):
        predict = towards(target, scheduler.alphas_cumprod)
        found = sample_with_scheduler(scheduler, predict, noise, steps, [torch.Generator().manual_seed(1)])
        assert (found - target).abs().max() < 0.1, steps


def test_usual_counts_are_spaced_as_the_model_says() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in SCHEDULERS:
            scheduler = diffusers_schedulers.fresh(own(), name)
            for steps in (2, 4, 20, 25, 30, 50, 100, 150):
                assert planned(scheduler, steps) is scheduler


def test_another_spacing_is_said() -> None:
    scheduler = diffusers_schedulers.fresh(own(), "euler")
    with pytest.warns(UserWarning, match=r"600 steps: timesteps are spaced by 'linspace' instead of 'leading'"):
        assert planned(scheduler, 600).timesteps[0] == 999
    with pytest.warns(UserWarning, match="1 step: timesteps are spaced by 'trailing'"):
        assert planned(scheduler, 1).timesteps.tolist() == [999]


def test_a_spacing_that_the_file_does_not_name_is_replaced_too() -> None:
    """diffusers drops what a configuration counts among its default values."""
    scheduler = diffusers.DDPMScheduler()
    with pytest.warns(UserWarning, match="spaced by 'linspace'"):
        assert planned(scheduler, 600).timesteps[0] == 999


@pytest.mark.parametrize("settings", [{"use_karras_sigmas": True}, {"final_sigmas_type": "sigma_min"}], ids=str)
@pytest.mark.parametrize("kind", ["DPMSolverMultistepScheduler", "EulerDiscreteScheduler", "UniPCMultistepScheduler"])
def test_noise_levels_of_other_spacings_are_taken(kind: str, settings: dict[str, Any]) -> None:
    scheduler = getattr(diffusers, kind)(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", **settings)
    for steps in (5, 20, 50, 100):
        assert planned(scheduler, steps) is scheduler


@pytest.mark.filterwarnings("ignore:.*timesteps are spaced:UserWarning")
@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_schedule_that_ends_at_its_least_noise_gives_finite_latents_at_every_count(name: str) -> None:
    found = diffusers.UniPCMultistepScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", final_sigmas_type="sigma_min"
    )
    for steps in (1, 2, 50, 999, 1000):
        try:
            scheduler = planned(diffusers_schedulers.fresh(found, name), steps)
        except UserError:  # such as 1000 with DPM-Solver, whose last step would have no length
            assert name in ("ddim", "pndm") or (name, steps) == ("dpm++2m", 1000)
            continue
        noise = torch.randn(1, 1, 2, 2, generator=torch.Generator().manual_seed(0))
        latents = sample_with_scheduler(
            scheduler, lambda x, _: x * 0.1, noise, steps, [torch.Generator().manual_seed(1)]
        )
        assert torch.isfinite(latents).all(), steps


def test_what_is_not_possible_is_refused() -> None:
    for steps in (0, -1, 1001):
        with pytest.raises(UserError, match=f"{steps} steps are not possible; allowed are 1 to 1000"):
            planned(own(), steps)
    with pytest.raises(
        UserError, match=r"600 steps are not possible with DDIMScheduler.*possible: 500 and 900; .* euler"
    ):
        planned(own(), 600)
    runge_kutta = diffusers.PNDMScheduler()
    with pytest.raises(UserError, match=r"2 steps are not possible with PNDMScheduler.*possible: 4;"):
        planned(runge_kutta, 2)
