"""What priors are trained to do: ECLIPSE's loss (arXiv 2312.04655, section 3.2), and the diffusion baseline's (its eq. 1)."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

import torch
from jaxtyping import Bool, Float
from pydantic import Field, PositiveInt
from torch import Tensor

from syzygy.core.config import Config
from syzygy.core.contracts import TextFeatures
from syzygy.prior.diffusion_prior import DiffusionPrior, PriorSampling, SampledPrior
from syzygy.prior.eclipse import EclipsePrior
from syzygy.prior.embedding_pairs import PriorBatch
from syzygy.prior.losses import eclipse_loss
from syzygy.prior.unclip_schedule import TIMESTEPS, alphas_bar


class PriorTaskConfig(Config):
    """What one step of ECLIPSE's training minimises, and over how many captions."""

    lambda_contrastive: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.2
    """λ, the weight of the contrastive loss beside the mean squared error (paper: 0.2). 0 trains projection-only."""
    batch_size: PositiveInt = 1024
    """Captions a step, and the number of texts each prediction is contrasted with (paper: 4 GPUs × 256)."""
    micro_batch: int = Field(ge=0, default=0)
    """Captions a pass, where a process's share of the batch does not fit its memory; 0 takes it whole. Changes no result."""
    precision: Literal["auto", "fp32", "bf16"] = "fp32"
    """What the network computes in (weights and losses stay fp32); "auto" is bf16 on CUDA and fp32 elsewhere."""
    temperature: Literal["clip"] | Annotated[float, Field(gt=0, allow_inf_nan=False)] = "clip"
    """τ of the contrastive loss: "clip" takes the frozen CLIP's own (the paper does not tell), a number replaces it."""


class DiffusionTaskConfig(Config):
    """What one step of a diffusion prior's training sees, and how validation samples it."""

    batch_size: PositiveInt = 1024
    """Captions a step."""
    micro_batch: int = Field(ge=0, default=0)
    """Captions a pass; 0 takes a process's share of the batch whole."""
    precision: Literal["auto", "fp32", "bf16"] = "fp32"
    """What the network computes in (weights and losses stay fp32); "auto" is bf16 on CUDA and fp32 elsewhere."""
    condition_dropout: float = Field(ge=0, lt=1, default=0.1)
    """Share of the captions replaced by the empty text, which makes guidance possible (paper: 0.1)."""
    sampling: PriorSampling = PriorSampling()
    """Steps, guidance and noise of its predictions."""


class EclipseObjective:
    """Projection and contrast (eq. 5)."""

    def __init__(self, prior: EclipsePrior, config: PriorTaskConfig, *, logit_scale: float) -> None:
        """`logit_scale` is the frozen CLIP's (1/τ, 100 for the published ones), used where the temperature is "clip"."""
        self.prior, self.config = prior, config
        self.logit_scale = logit_scale if config.temperature == "clip" else 1 / config.temperature

    def losses(self, batch: PriorBatch) -> dict[str, Tensor]:
        """`loss` and its parts `projection` and `contrastive`."""
        loss = eclipse_loss(
            self.prior(batch.text, batch.noise),
            batch.image,
            batch.candidates,
            lambda_contrastive=self.config.lambda_contrastive,
            logit_scale=self.logit_scale,
            caption_ids=batch.candidate_ids,
            first=batch.first,
        )
        return {"loss": loss.total, "projection": loss.projection, "contrastive": loss.contrastive}

    def predict(self, batch: PriorBatch) -> Float[Tensor, "B D"]:
        """One pass."""
        return self.prior(batch.text, batch.noise)


@dataclass(frozen=True)
class DiffusionObjective:
    """Mean squared error of the clean whitened embedding, at a uniformly drawn time (eq. 1)."""

    prior: DiffusionPrior
    config: DiffusionTaskConfig
    unconditional: TextFeatures
    """Features of the empty text, one row."""
    signal: Tensor = field(default_factory=alphas_bar)

    def losses(self, batch: PriorBatch) -> dict[str, Tensor]:
        """`loss`."""
        timestep = (batch.uniform[:, 0] * TIMESTEPS).long()
        dropped = batch.uniform[:, 1] < self.config.condition_dropout
        signal = self.signal[timestep].to(batch.noise)[:, None]
        clean = self.prior.whitened(batch.image)
        noisy = signal.sqrt() * clean + (1 - signal).sqrt() * batch.noise
        text = self.prior.read(self._with_dropped(batch.text.padded(), dropped))
        predicted = self.prior(noisy, timestep.to(noisy.device), text)
        return {"loss": (predicted - clean).square().mean()}

    def predict(self, batch: PriorBatch) -> Float[Tensor, "B D"]:
        """All steps of sampling."""
        sampled = SampledPrior(self.prior, self.unconditional, self.config.sampling)
        return sampled.predict(batch.text.padded(), noise=batch.noise)

    def _with_dropped(self, features: TextFeatures, dropped: Bool[Tensor, "B"]) -> TextFeatures:
        empty = self.unconditional.to(features.pooled.device, features.pooled.dtype)
        rows = torch.arange(len(features)).masked_fill(dropped, len(features))
        return TextFeatures.cat([features, empty])[rows.to(features.pooled.device)]
