"""Noise levels: which σ training sees, and which σ sampling visits."""

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor

from syzygy.core.config import Config
from syzygy.core.errors import UserError

MOST_STEPS = 10_000
"""Far more than any sampler gains from; each is an evaluation of the network."""


class LogNormal(Config):
    """Training distribution of noise levels, ln σ ~ N(p_mean, p_std²) (EDM, Karras et al. 2022, table 1)."""

    p_mean: float = Field(default=-1.2, allow_inf_nan=False)
    """Mean of ln σ."""
    p_std: float = Field(default=1.2, gt=0, allow_inf_nan=False)
    """Standard deviation of ln σ."""

    shares: tuple[tuple[float, float], ...] = ((0.0, 1.0),)
    """The parts of the distribution that are seen, as probabilities (from, to), rising: an expert sees its own stages."""
    weights: tuple[float, ...] | None = None
    """How often each part is seen, in proportion; None is as often as it is wide, which is the distribution itself."""

    @model_validator(mode="after")
    def _rise(self) -> "LogNormal":
        borders = [border for share in self.shares for border in share]
        rising = all(low < high for low, high in self.shares) and all(a <= b for a, b in pairwise(borders))
        if not borders or not rising or borders[0] < 0 or borders[-1] > 1:
            raise ValueError(f"shares must be pairs of probabilities from 0 to 1 that rise, got {self.shares}")
        if self.weights is not None and len(self.weights) != len(self.shares):
            raise ValueError(f"{len(self.weights)} weights for {len(self.shares)} shares: give one for each")
        if self.weights is not None and not all(0 < weight < math.inf for weight in self.weights):
            raise ValueError(
                f"weights must be positive and finite, got {self.weights}; leave out shares that are not seen"
            )
        return self

    def sample(self, size: int, generator: torch.Generator) -> Float[Tensor, "size"]:
        """Noise levels, one in each of `size` equally probable intervals, rising, on the generator's device.

        Each alone is log-normal (the intervals' common offset is random); together they cover the distribution, which
        lowers the variance of a step's loss (Kingma et al. 2021, Variational Diffusion Models, appendix I.1).
        """
        offset = torch.rand((), generator=generator, device=generator.device)
        return self.spread((torch.arange(size, device=generator.device) + offset) / size)

    def spread(self, levels: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """σ of levels from 0 to 1 over what is seen: 0 is its least noise, 1 its most."""
        low, high = torch.tensor(self.shares, dtype=levels.dtype, device=levels.device).unbind(1)
        width = high - low
        weight = width if self.weights is None else torch.tensor(self.weights, dtype=levels.dtype, device=levels.device)
        reached = F.pad(weight.cumsum(0), (1, 0))
        along = levels * reached[-1]
        share = (torch.bucketize(along, reached, right=True) - 1).clamp(0, len(low) - 1)
        within = (along - reached[share]) * (width / weight)[share]
        return self.quantile((low[share] + within).clamp(1e-6, 1 - 1e-6))

    def quantile(self, probability: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """σ below which a share `probability` in (0, 1) of the log-normal lies, whatever parts of it are seen:
        exp(p_mean + p_std·√2·erf⁻¹(2p − 1)).
        """
        return (self.p_mean + self.p_std * math.sqrt(2) * torch.erfinv(2 * probability - 1)).exp()


class KarrasSchedule(Config):
    """Range and spacing of the noise levels visited in sampling (EDM, Karras et al. 2022, eq. 5)."""

    sigma_min: float = Field(default=0.002, gt=0, allow_inf_nan=False)
    """Last noise level before zero."""
    sigma_max: float = Field(default=80.0, gt=0, allow_inf_nan=False)
    """First noise level; far above the data's spread, so that pure noise is a fair start."""
    rho: float = Field(default=7.0, gt=0, allow_inf_nan=False)
    """Warp: larger takes shorter steps near zero; 1 is uniform."""

    def sigmas(self, steps: int) -> Float[Tensor, "levels"]:
        """`steps` falling noise levels from sigma_max to sigma_min, then 0 (so steps + 1); float64, on the host."""
        if not 1 <= steps <= MOST_STEPS:
            raise UserError(f"{steps} steps are not possible; allowed are 1 to {MOST_STEPS:,} (25 is usual).")
        if self.sigma_min >= self.sigma_max:
            raise UserError(f"sigma_min {self.sigma_min} must lie below sigma_max {self.sigma_max}.")
        ramp = torch.linspace(0, 1, steps, dtype=torch.float64)
        high, low = self.sigma_max ** (1 / self.rho), self.sigma_min ** (1 / self.rho)
        return torch.cat([(high + ramp * (low - high)) ** self.rho, torch.zeros(1, dtype=torch.float64)])
