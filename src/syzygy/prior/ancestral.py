"""The ancestral steps that Karlo was made for, and the walk from noise to a picture.

They are those of diffusers' `UnCLIPScheduler`, which announces its own removal; its appointed heir, `DDPMScheduler`, visits other
timesteps and bounds a learned variance otherwise. Hence they are written here, and tested against it as long as it lives.

Legend: N pictures, C channels, H × W pixels; ᾱ is the share of signal in the variance.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from syzygy.core import artifacts
from syzygy.core.errors import UserError
from syzygy.core.randomness import per_sample_noise
from syzygy.prior.unclip_schedule import TIMESTEPS, alphas_bar

KIND = "UnCLIPScheduler"
UNTOLD: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "variance_type": "fixed_small_log",
    "clip_sample": True,
    "clip_sample_range": 1.0,
    "prediction_type": "epsilon",
    "beta_schedule": "squaredcos_cap_v2",
}
"""What a `scheduler_config.json` means that does not say it."""
SMALLEST = 1e-20
"""Of a fixed variance, whose logarithm is taken."""
Predict = Callable[[Float[Tensor, "N C H W"], int, bool], Float[Tensor, "N K H W"]]
"""Noisy pictures, a timestep, whether it is the last → the noise in them, and with K = 2 C the place of its variance."""


def scheduler_settings(path: Path, **needed: Any) -> dict[str, Any]:
    """The settings of an `UnCLIPScheduler`, those that are not told with their meaning.

    Args:
        path: its `scheduler_config.json`.
        needed: what some of them must be, besides what all of unCLIP shares.

    Raises:
        UserError: it is missing, another scheduler's, or does not have what is needed.
    """
    told = artifacts.read_json(path)
    needed |= {"_class_name": KIND, "num_train_timesteps": TIMESTEPS, "beta_schedule": UNTOLD["beta_schedule"]}
    values = UNTOLD | told
    for name, value in needed.items():
        if values.get(name) != value:
            raise UserError(f"{path}: {name} is {values.get(name)!r}; only {value!r} can be sampled here.")
    return values


@dataclass(frozen=True)
class Ancestral:
    """One kind of ancestral step, for networks that predict noise."""

    learned: bool
    """Whether the network tells where between its bounds the variance lies (Nichol and Dhariwal 2021, eq. 15)."""
    bound: float
    """Of the clean picture's numbers; infinity for none."""

    @staticmethod
    def from_config(path: Path) -> "Ancestral":
        """As a `scheduler_config.json` says.

        Raises:
            UserError: as `scheduler_settings`; a kind of variance that is not known.
        """
        values = scheduler_settings(path, prediction_type="epsilon")
        kind = values["variance_type"]
        if kind not in ("fixed_small_log", "learned_range"):
            raise UserError(f"{path}: variance_type is {kind!r}; known are 'fixed_small_log' and 'learned_range'.")
        return Ancestral(kind == "learned_range", values["clip_sample_range"] if values["clip_sample"] else math.inf)

    def step(
        self,
        x: Float[Tensor, "N C H W"],
        predicted: Float[Tensor, "N K H W"],
        now: float,
        later: float,
        noise: Float[Tensor, "N C H W"] | None,
    ) -> tuple[Float[Tensor, "N C H W"], Float[Tensor, "N C H W"]]:
        """From ᾱ `now` to ᾱ `later` (Ho et al. 2020, eq. 7): the less noisy pictures, and the clean ones as seen from here."""
        eps, place = predicted.split(x.shape[1], 1) if self.learned else (predicted, None)
        beta = 1 - now / later
        clean = ((x - math.sqrt(1 - now) * eps) / math.sqrt(now)).clamp(-self.bound, self.bound)
        x = math.sqrt(later) * beta / (1 - now) * clean + math.sqrt(now / later) * (1 - later) / (1 - now) * x
        if noise is None:
            return x, clean
        least = math.log(max((1 - later) / (1 - now) * beta, SMALLEST))
        if place is None:
            return x + math.exp(least / 2) * noise, clean
        share = (place + 1) / 2
        return x + (0.5 * (share * math.log(beta) + (1 - share) * least)).exp() * noise, clean


def walk(
    steps: Ancestral,
    predict: Predict,
    shape: tuple[int, int, int],
    times: Sequence[int],
    generators: Sequence[torch.Generator],
    device: torch.device,
    on_step: Callable[[float, Tensor], None] = lambda sigma, clean: None,
) -> Float[Tensor, "N C H W"]:
    """From standard normal noise through `times` to pictures, in fp32 whatever the network computes in.

    All noise of a picture comes from its own generator: where it begins, then what each step but the last adds. `on_step` is
    told σ = √((1 − ᾱ) / ᾱ) before the step, and the clean pictures as seen from there. A picture for which the network gave NaN or
    infinity in any step is NaN: the bound of the clean picture would hide it.
    """
    signal = alphas_bar("cosine")
    x = per_sample_noise(shape, generators, device)
    finite = torch.ones(len(x), dtype=torch.bool, device=device)
    for i, t in enumerate(times):
        last = i + 1 == len(times)
        now, later = float(signal[t]), 1.0 if last else float(signal[times[i + 1]])
        predicted = predict(x, t, last).float()
        finite &= torch.isfinite(predicted).flatten(1).all(1)
        noise = None if last else per_sample_noise(shape, generators, device)
        x, clean = steps.step(x, predicted, now, later, noise)
        on_step(sigma_of(t), clean)
    return x.masked_fill(~finite[:, None, None, None], math.nan)


def sigma_of(t: int) -> float:
    """√((1 − ᾱ) / ᾱ) of a timestep."""
    share = float(alphas_bar("cosine")[t])
    return math.sqrt((1 - share) / share)
