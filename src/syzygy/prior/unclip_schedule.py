"""The noise of unCLIP's diffusion models, of priors and of Karlo's decoders alike: 1000 steps, of which a short run visits some."""

import math
from typing import Literal, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from syzygy.core.errors import UserError

TIMESTEPS = 1000
BETA_FIRST, BETA_LAST = 1e-4, 0.02
BETA_MOST = 0.999

Schedule: TypeAlias = Literal["linear", "cosine"]
"""`linear` is that of ECLIPSE's diffusion baseline (Ho et al. 2020, section 4), `cosine` that of the published priors and of Karlo."""


def alphas_bar(schedule: Schedule = "linear") -> Float[Tensor, "1000"]:
    """ᾱ, the share of signal in the variance, of each timestep, in float64."""
    return torch.cumprod(1 - (_linear() if schedule == "linear" else _cosine()), 0)


def _linear() -> Float[Tensor, "1000"]:
    return torch.linspace(BETA_FIRST, BETA_LAST, TIMESTEPS, dtype=torch.float64)


def _cosine() -> Float[Tensor, "1000"]:
    """β of Nichol and Dhariwal 2021, eq. 17, capped so that the last step leaves a trace of signal."""
    t = torch.arange(TIMESTEPS + 1, dtype=torch.float64) / TIMESTEPS
    signal = ((t + 0.008) / 1.008 * math.pi / 2).cos() ** 2
    return (1 - signal[1:] / signal[:-1]).clamp_max(BETA_MOST)


def visited(steps: int, of: str = "") -> list[int]:
    """The timesteps of a short run, from the noisiest to 0, evenly spread.

    Args:
        of: whose steps they are, for the message: " of the prior".
    """
    if not 1 <= steps <= TIMESTEPS:
        raise UserError(f"{steps} steps{of} are not possible; allowed are 1 to {TIMESTEPS}.")
    if steps == 1:
        return [TIMESTEPS - 1]
    apart = (TIMESTEPS - 1) / (steps - 1)
    return [round(i * apart) for i in reversed(range(steps))]
