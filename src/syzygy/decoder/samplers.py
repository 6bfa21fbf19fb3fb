"""Samplers: plain functions that walk a denoiser down the noise levels along the probability-flow ODE
dx/dσ = (x − D(x; σ)) / σ (EDM, Karras et al. 2022, eq. 1 and 3). They depend on no model.

A sampler is a function that takes one step, as `euler` does; `core.registry.register_sampler` adds one by name.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

from jaxtyping import Float
from torch import Tensor

from syzygy.core.contracts import Conditioning, Denoiser, Progress, Staged
from syzygy.core.errors import UserError
from syzygy.core.known_latents import KnownLatents
from syzygy.core.registry import SAMPLERS

Denoise = Callable[[Float[Tensor, "B C H W"], float], Float[Tensor, "B C H W"]]
"""(x, σ) → denoised x: a `Denoiser` with its conditioning in place."""


@dataclass(frozen=True)
class Step:
    """One step taken, from `sigma` down to `x`."""

    x: Float[Tensor, "B C H W"]
    """The noisy image at the next noise level."""
    sigma: float
    """The noise level that the step started from."""
    denoised: Float[Tensor, "B C H W"]
    """The denoised estimate at `sigma`: a preview of the result."""


def euler(denoise: Denoise, x: Tensor, sigma: float, sigma_next: float, previous: Step | None) -> Step:
    """First order: follow the slope at `sigma` (EDM, algorithm 1, lines 4-5). One evaluation."""
    denoised = denoise(x, sigma)
    return Step(x + (sigma_next - sigma) / sigma * (x - denoised), sigma, denoised)


def heun(denoise: Denoise, x: Tensor, sigma: float, sigma_next: float, previous: Step | None) -> Step:
    """Second order: the mean of the slopes at both ends (EDM, algorithm 1). Two evaluations; one down to σ = 0."""
    first = euler(denoise, x, sigma, sigma_next, previous)
    if sigma_next == 0:
        return first
    slope = (x - first.denoised) / sigma
    slope_next = (first.x - denoise(first.x, sigma_next)) / sigma_next
    return Step(x + (sigma_next - sigma) * (slope + slope_next) / 2, sigma, first.denoised)


def dpm_solver_2m(denoise: Denoise, x: Tensor, sigma: float, sigma_next: float, previous: Step | None) -> Step:
    """Second order with one evaluation: extrapolates D from the last two (DPM-Solver++, Lu et al. 2022, algorithm 2).

    In λ = −ln σ, with α = 1. The first step, and the last one down to σ = 0, where λ has no end, are of first order.
    """
    denoised = denoise(x, sigma)
    if sigma_next == 0:
        return Step(denoised, sigma, denoised)
    h = math.log(sigma / sigma_next)
    target = denoised
    if previous is not None:
        ratio = h / math.log(previous.sigma / sigma)
        target = denoised + ratio / 2 * (denoised - previous.denoised)
    return Step(sigma_next / sigma * x - math.expm1(-h) * target, sigma, denoised)


def sample(
    denoiser: Denoiser,
    noise_unit: Float[Tensor, "B C H W"],
    sigmas: Float[Tensor, "levels"],
    conditioning: Conditioning,
    *,
    sampler: str = "dpm++2m",
    on_step: Callable[[Progress], None] | None = None,
    known: KnownLatents | None = None,
) -> Float[Tensor, "B C H W"]:
    """Sample images from standard normal noise, in the noise's dtype and on its device.

    `sigmas` are falling noise levels, such as `KarrasSchedule().sigmas(25)`; only the last may be 0 (a clean image).
    `conditioning` holds a condition for each of the B samples. With `known`, sampling starts from the latents of a picture at the noise
    level of its strength, or keeps a part of them at each step (RePaint, Lugmayr et al. 2022, eq. 8). The caller decides about gradients.

    Raises UserError for an unknown sampler, noise levels that do not fall, or a strength that leaves no step.
    """
    take_step = SAMPLERS.get(sampler)
    levels = [float(sigma) for sigma in sigmas.tolist()]
    falling = all(high > low for high, low in pairwise(levels))
    if len(levels) < 2 or not falling or not (levels[-1] >= 0 and math.isfinite(levels[0])):
        raise UserError(f"noise levels must fall strictly, from a finite number to at least 0; got {levels}.")

    def denoise(x: Tensor, sigma: float) -> Tensor:
        chosen = denoiser.at(sigma) if isinstance(denoiser, Staged) else denoiser
        return chosen(x, x.new_full((len(x),), sigma), conditioning)

    if known is not None:
        levels = levels[known.skipped(len(levels) - 1) :]
    x, taken = noise_unit * levels[0], None
    if known is not None and known.strength is not None:
        x = known.latents + x
    for index, (sigma, sigma_next) in enumerate(pairwise(levels)):
        taken = take_step(denoise, x, sigma, sigma_next, taken)
        x = taken.x if known is None else known.kept_in(taken.x, known.latents + sigma_next * noise_unit)
        if on_step is not None:
            on_step(Progress(index + 1, len(levels) - 1, sigma, taken.denoised))
    return x
