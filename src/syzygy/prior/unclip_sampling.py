"""The noise and the ancestral steps of unCLIP's diffusion models: priors, and Karlo's decoders.

There are 1000 timesteps, of which a short run visits some. The steps are those of diffusers' `UnCLIPScheduler`, which is deprecated. Its
successor, `DDPMScheduler`, visits other timesteps and bounds a learned variance otherwise. They are therefore written here, and tested
against `UnCLIPScheduler` as long as it exists.

Legend: N images, C channels, H × W pixels; ᾱ is the share of signal in the variance.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from syzygy.core import artifacts
from syzygy.core.errors import UserError
from syzygy.core.randomness import per_sample_noise

TIMESTEPS = 1000
BETA_FIRST, BETA_LAST = 1e-4, 0.02
BETA_MOST = 0.999

Schedule: TypeAlias = Literal["linear", "cosine", "flow"]
"""`linear` is that of ECLIPSE's diffusion baseline (Ho et al. 2020, section 4), `cosine` that of the published priors and of Karlo, `flow`
that of flow matching."""


def alphas_bar(schedule: Schedule = "linear") -> Float[Tensor, "1000"]:
    """ᾱ, the share of signal in the variance, of each timestep, in float64."""
    if schedule == "flow":
        t = flow_times()
        return (1 - t) ** 2 / ((1 - t) ** 2 + t**2)
    betas = {"linear": _linear, "cosine": _cosine}
    return torch.cumprod(1 - betas[schedule](), 0)


def flow_times() -> Float[Tensor, "1000"]:
    """Flow matching's time t of each timestep, in float64: the place on the straight line (1 − t) clean + t noise.

    (Lipman et al. 2023, eq. 22; Liu et al. 2023, eq. 1.) Divided by its standard deviation, that is a noisy embedding as any other here, and
    a step of DDIM without added noise is an Euler step along the line.
    """
    return torch.arange(1, TIMESTEPS + 1, dtype=torch.float64) / TIMESTEPS


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


KIND = "UnCLIPScheduler"
DEFAULTS: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "variance_type": "fixed_small_log",
    "clip_sample": True,
    "clip_sample_range": 1.0,
    "prediction_type": "epsilon",
    "beta_schedule": "squaredcos_cap_v2",
}
"""The settings of a `scheduler_config.json` that omits them."""
SMALLEST = 1e-20
"""Lower bound of a fixed variance, whose logarithm is taken."""
Predict = Callable[[Float[Tensor, "N C H W"], int, bool], Float[Tensor, "N K H W"]]
"""Noisy images, a timestep, whether it is the last → the noise in them, and with K = 2 C the position of its variance."""


def scheduler_settings(provided: Mapping[str, Any], source: str, **needed: Any) -> dict[str, Any]:
    """The settings of an `UnCLIPScheduler`, with the defaults of those that its file omits.

    Args:
        provided: what its `scheduler_config.json` holds, or its `config`.
        source: what errors call the settings, such as the path.
        needed: values that some of them must have, besides those that all of unCLIP shares.

    Raises:
        UserError: they are another scheduler's, or have other values.
    """
    needed |= {"_class_name": KIND, "num_train_timesteps": TIMESTEPS, "beta_schedule": DEFAULTS["beta_schedule"]}
    values = DEFAULTS | dict(provided)
    for name, value in needed.items():
        if values.get(name) != value:
            raise UserError(f"{source}: {name} is {values.get(name)!r}; only {value!r} can be sampled here.")
    return values


@dataclass(frozen=True)
class Ancestral:
    """One kind of ancestral step, for networks that predict noise."""

    learned: bool
    """Whether the network predicts where between its bounds the variance lies (Nichol and Dhariwal 2021, eq. 15)."""
    bound: float
    """Bound of the clean image's values; infinity for none."""

    @staticmethod
    def from_config(path: Path) -> "Ancestral":
        """As a `scheduler_config.json` says.

        Raises:
            UserError: the file is missing; as `from_settings`.
        """
        return Ancestral.from_settings(artifacts.read_json(path), str(path))

    @staticmethod
    def from_settings(settings: Mapping[str, Any], source: str) -> "Ancestral":
        """As the settings of an `UnCLIPScheduler` say; arguments as of `scheduler_settings`.

        Raises:
            UserError: as `scheduler_settings`; a kind of variance that is not known.
        """
        values = scheduler_settings(settings, source, prediction_type="epsilon")
        kind = values["variance_type"]
        if kind not in ("fixed_small_log", "learned_range"):
            raise UserError(f"{source}: variance_type is {kind!r}; known are 'fixed_small_log' and 'learned_range'.")
        return Ancestral(kind == "learned_range", values["clip_sample_range"] if values["clip_sample"] else math.inf)

    def step(
        self,
        x: Float[Tensor, "N C H W"],
        predicted: Float[Tensor, "N K H W"],
        now: float,
        later: float,
        noise: Float[Tensor, "N C H W"] | None,
    ) -> tuple[Float[Tensor, "N C H W"], Float[Tensor, "N C H W"]]:
        """From ᾱ `now` to ᾱ `later` (Ho et al. 2020, eq. 7): the less noisy images, and the clean ones as predicted here."""
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


def sample_unclip(
    steps: Ancestral,
    predict: Predict,
    shape: tuple[int, int, int],
    times: Sequence[int],
    generators: Sequence[torch.Generator],
    device: torch.device,
    on_step: Callable[[float, Tensor], None] = lambda sigma, clean: None,
    start: Tensor | None = None,
) -> Float[Tensor, "N C H W"]:
    """Denoise standard normal noise through `times`, in fp32 whatever the network computes in.

    All noise of an image comes from its own generator: the initial noise, then what each step but the last adds. `on_step` gets
    σ = √((1 − ᾱ) / ᾱ) before the step, and the clean images as predicted there. An image for which the network returned NaN or
    infinity in any step is NaN: the bound of the clean image would hide it.

    Args:
        start: the initial noise [N, C, H, W], which is drawn otherwise.

    Raises:
        UserError: `start` has another shape.
    """
    signal = alphas_bar("cosine")
    x = (
        per_sample_noise(shape, generators, device)
        if start is None
        else _checked(start, (len(generators), *shape)).to(device)
    )
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


def _checked(start: Tensor, shape: tuple[int, ...]) -> Tensor:
    if tuple(start.shape) != shape:
        raise UserError(f"latents have shape {tuple(start.shape)}; {shape} is needed.")
    if not torch.isfinite(start).all():
        raise UserError("latents hold NaN or infinity.")
    return start.float()


def sigma_of(t: int) -> float:
    """√((1 − ᾱ) / ᾱ) of a timestep."""
    share = float(alphas_bar("cosine")[t])
    return math.sqrt((1 - share) / share)
