"""Training task of a diffusers U-Net: predict what its own scheduler's parametrisation asks for, on timesteps of a part of the noise.

Shapes: B images of a step, C latent channels, h × w latent positions, T timesteps of the scheduler's training.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from syzygy.core import artifacts
from syzygy.core.config import Config
from syzygy.core.errors import UserError
from syzygy.core.lora import Adapted, Lora
from syzygy.core.randomness import generator
from syzygy.core.wording import counted
from syzygy.training.precision import autocast

PREDICTIONS = ("epsilon", "v_prediction", "sample")
"""What a network may be trained to predict, by diffusers' names."""
LEAST_KEPT = 1e-12
"""Schedules with zero terminal SNR keep nothing of the image at their last timestep; its σ would be infinite."""


class UNetTaskConfig(Config):
    """What one training step of a U-Net sees."""

    batch_size: int = Field(default=8, ge=1)
    """Noisy images in each step."""
    dropped: float = Field(default=0.1, ge=0, le=1)
    """Fraction of the samples that train guidance's unconditional branch: the empty prompt (XL: zeros), or the embedding of a zero image."""
    checkpointing: bool = False
    """Compute activations again in the backward pass: less memory, more time."""


@dataclass(frozen=True)
class DiscreteNoise:
    """A scheduler's training noise, uniform over its T timesteps: timestep t has the probabilities from t/T to (t + 1)/T.

    A part of it, as probabilities, holds the timesteps whose middle lies within; so each has one place in a tree of experts.
    """

    kept: Float[Tensor, "T"]
    """ᾱ, the share of the image's variance that is kept; float64, falling, on the CPU."""
    prediction: str
    """One of `PREDICTIONS`."""

    def __post_init__(self) -> None:
        if self.prediction not in PREDICTIONS:
            raise UserError(
                f"the scheduler's prediction_type is {self.prediction!r}; known are {', '.join(PREDICTIONS)}."
            )
        assert self.kept.dtype == torch.float64
        if not (len(self.kept) > 1 and (self.kept.diff() < 0).all() and self.kept[-1] >= 0 and self.kept[0] < 1):
            raise UserError(
                "the scheduler's noise does not rise with its timesteps: its betas must lie between 0 and 1."
            )

    def fingerprint(self) -> str:
        """Identifies schedule and prediction type."""
        return f"{self.prediction} {artifacts.fingerprint({'kept': self.kept})}"

    def _first(self, probability: float) -> int:
        """The first timestep whose middle does not lie below."""
        return math.ceil(probability * len(self.kept) - 0.5)

    def quantile(self, probability: float) -> float:
        """σ = √((1 − ᾱ) / ᾱ) between the timesteps below this share of training and those above.

        The geometric mean of the nearest two, so that no rounding of σ moves a timestep to the other side.
        """
        above = self._first(probability)
        assert 0 < above < len(self.kept), "a tree so fine has parts without timesteps"
        logs = (1 / self.kept[above - 1 : above + 1].clamp_min(LEAST_KEPT) - 1).log()
        return math.exp(logs.mean().item() / 2)

    def timesteps(self, shares: tuple[tuple[float, float], ...]) -> Int[Tensor, "n"]:
        """Those within parts of the noise, (from, to) as probabilities, rising.

        Raises:
            UserError: a part is so narrow that it has none.
        """
        parts = [torch.arange(self._first(low), self._first(high)) for low, high in shares]
        if not all(map(len, parts)):
            raise UserError(
                f"an expert's part of the noise holds none of the scheduler's {counted(len(self.kept), 'timestep')}: name leaves of a"
                " lower level."
            )
        return torch.cat(parts)

    def noisy(
        self, x: Float[Tensor, "B C h w"], noise: Float[Tensor, "B C h w"], timesteps: Int[Tensor, "B"]
    ) -> Float[Tensor, "B C h w"]:
        """√ᾱ·x + √(1 − ᾱ)·noise (DDPM, Ho et al. 2020, eq. 4)."""
        signal, spread = self._scales(x, timesteps)
        return signal * x + spread * noise

    def target(
        self, x: Float[Tensor, "B C h w"], noise: Float[Tensor, "B C h w"], timesteps: Int[Tensor, "B"]
    ) -> Float[Tensor, "B C h w"]:
        """What the network should predict: the noise, the image, or v = √ᾱ·noise − √(1 − ᾱ)·x (Salimans and Ho 2022, appendix D)."""
        if self.prediction == "epsilon":
            return noise
        if self.prediction == "sample":
            return x
        signal, spread = self._scales(x, timesteps)
        return signal * noise - spread * x

    def _scales(self, x: Tensor, timesteps: Int[Tensor, "B"]) -> tuple[Tensor, Tensor]:
        kept = self.kept[timesteps.cpu()][:, None, None, None]
        return kept.sqrt().to(x), (1 - kept).sqrt().to(x)


@dataclass(frozen=True)
class LatentBatch:
    """Latents of images, with what else the U-Net reads, on the device that trains."""

    latents: Float[Tensor, "B C h w"]
    """Scaled for the U-Net."""
    conditions: Mapping[str, Any]
    """Further arguments of the U-Net, such as `encoder_hidden_states`."""

    def __len__(self) -> int:
        return len(self.latents)


class UNetTask:
    """The training loop's `Task` for a network that is called as diffusers' U-Nets are: `unet(x, timesteps, …, return_dict=False)[0]`.

    `batches(step)` gives a step's images; timesteps and noise depend on (seed, step) alone. With `lora`, an adaptation of the network, that
    alone is trained. What a network predicts beyond the latents' channels, a variance, is not trained.
    """

    def __init__(
        self,
        unet: nn.Module,
        batches: Callable[[int], LatentBatch],
        validation: list[LatentBatch],
        noise: DiscreteNoise,
        shares: tuple[tuple[float, float], ...],
        seed: int,
        *,
        precision: torch.dtype | None = None,
        lora: Lora | None = None,
    ) -> None:
        """
        Args:
            shares: the part of the noise that is seen, as probabilities from 0 (least) to 1.
            precision: what the network runs in; weights and loss stay fp32.

        Raises:
            UserError: a part of the noise holds no timestep.
        """
        self.modules: dict[str, nn.Module] = {"unet": unet} if lora is None else {"lora": lora}
        self._network: nn.Module = unet if lora is None else Adapted(unet, lora)
        self._batches, self._validation = batches, validation
        self._noise, self._timesteps = noise, noise.timesteps(shares)
        self._seed, self._precision = seed, precision

    def loss(self, step: int) -> dict[str, Tensor]:
        """The mean squared error of one batch's predictions."""
        batch = self._batches(step)
        random = generator(self._seed, "unet", step, device=batch.latents.device)
        noise = torch.randn(batch.latents.shape, generator=random, device=random.device)
        offset = torch.rand((), generator=generator(self._seed, "unet", step, "timesteps"))
        return {"loss": self._losses(batch, noise, self.spread(len(batch), offset)).mean()}

    def spread(self, number: int, offset: float | Float[Tensor, ""]) -> Int[Tensor, "number"]:
        """Timesteps of what is seen, as of the function `spread`."""
        return spread(self._timesteps, number, offset)

    def validate(self) -> dict[str, float]:
        """The loss on unseen images, at fixed noise and at timesteps spread evenly over what is seen."""
        total = 0.0
        for index, batch in enumerate(self._validation):
            random = generator(self._seed, "unet", "validation", index, device=batch.latents.device)
            noise = torch.randn(batch.latents.shape, generator=random, device=random.device)
            total += self._losses(batch, noise, self.spread(len(batch), 0.5)).sum().item()
        return {"loss": total / sum(map(len, self._validation))}

    def _losses(
        self, batch: LatentBatch, noise: Float[Tensor, "B C h w"], timesteps: Int[Tensor, "B"]
    ) -> Float[Tensor, "B"]:
        x, device = batch.latents, batch.latents.device
        noisy = self._noise.noisy(x, noise, timesteps)
        with autocast(device, self._precision):
            found = self._network(noisy, timesteps.to(device), **batch.conditions, return_dict=False)[0]
        predicted = found[:, : x.shape[1]].float()
        return (predicted - self._noise.target(x, noise, timesteps)).square().flatten(1).mean(1)


def spread(timesteps: Int[Tensor, "n"], number: int, offset: float | Float[Tensor, ""]) -> Int[Tensor, "number"]:
    """One of the timesteps in each of `number` equally probable parts of them, rising; `offset`, from 0 to 1, is their place within.

    Where it is random, each timestep alone is uniform, and together they cover the noise, which lowers the variance of a step's loss
    (Kingma et al. 2021, Variational Diffusion Models, appendix I.1).
    """
    levels = (torch.arange(number) + offset) / number
    return timesteps[(levels * len(timesteps)).long().clamp_max(len(timesteps) - 1)]


def recomputed(lora: Lora | None, device: torch.device, precision: torch.dtype | None) -> Callable[..., Any]:
    """For diffusers' `enable_gradient_checkpointing`: how to run a block whose activations are computed again in the backward pass.

    The backward pass runs outside the adaptation's `active()` and the step's autocast; what is computed again must be the same.
    """

    @contextmanager
    def again() -> Iterator[None]:
        with autocast(device, precision), nullcontext() if lora is None else lora.active():
            yield

    def contexts() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
        return nullcontext(), again()

    def run(block: Callable[..., Any], *inputs: Any) -> Any:
        return checkpoint(block, *inputs, use_reentrant=False, context_fn=contexts)

    return run
