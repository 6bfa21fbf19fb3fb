"""The diffusion prior of unCLIP (arXiv 2204.06125, section 2.2), ECLIPSE's baseline: the same transformer, evaluated many times.

It predicts the clean embedding from a noisy one, both whitened. Legend: B batch, D width of CLIP's joint space, C inner width,
L tokens now, P before them, K all of them, H heads of width E.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Real
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from syzygy.core.artifacts import CONFIG_FILE, load_strictly
from syzygy.core.config import Config, parse
from syzygy.core.contracts import TextFeatures
from syzygy.core.errors import UserError
from syzygy.core.packed_attention import PackedText
from syzygy.core.randomness import generator
from syzygy.prior.embedding_pairs import Pairs
from syzygy.prior.prior_folders import PUBLISHED, is_diffusion, read_prior
from syzygy.prior.prior_network import PriorBatch, PriorConfig, PriorNetwork, check_request
from syzygy.prior.unclip_sampling import TIMESTEPS, Schedule, alphas_bar, flow_times, visited

FLOW_LEAST = 0.05
"""Smallest time that flow matching's loss divides by (Li and He 2025, arXiv 2511.13720, for networks that predict the clean image)."""


class DiffusionPriorConfig(PriorConfig):
    """The published `config.json` of a diffusion prior (Karlo, Kandinsky 2.2)."""

    additional_embeddings: Literal[4] = 4
    """Tokens after the text: pooled text embedding, time, noisy image embedding, learned output token."""
    time_embed_act_fn: Literal["silu"] = "silu"
    """Activation of the time embedding."""
    time_embed_dim: None = None
    """The time embedding is as wide as the tokens."""


def time_features(timestep: Real[Tensor, "B"], width: int) -> Float[Tensor, "B C"]:
    """Cosines, then sines, of the timestep at geometric frequencies from 1 to 1/10,000 (as in diffusers)."""
    half = width // 2
    frequencies = torch.exp(-math.log(10_000) * torch.arange(half, device=timestep.device) / half)
    angles = timestep[:, None].float() * frequencies
    return torch.cat([angles.cos(), angles.sin()], 1)


class _TimeEmbedding(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(width, width)
        self.linear_2 = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_2(F.silu(self.linear_1(x)))


class DiffusionPrior(PriorNetwork):
    """(noisy whitened embedding, timestep, text) → clean whitened embedding. Names as in diffusers' `PriorTransformer`.

    Attention is causal and the text comes first, so its keys and values depend on neither time nor noise: `read` computes them
    once, `forward` uses them at every step. Padding has no influence.
    """

    def __init__(self, config: DiffusionPriorConfig) -> None:
        width = config.num_attention_heads * config.attention_head_dim
        super().__init__(config, config.additional_embeddings, _TimeEmbedding(width))
        self.config, self.width = config, width

    own_sampling: "tuple[PriorSampling, Schedule] | None" = None
    """How it was sampled in its own training's validation, where that is known: a pipeline made of this network samples it so."""

    def read(self, features: TextFeatures) -> "ReadText":
        """Keys and values of text states and pooled embedding in every layer."""
        features = PackedText.of(features).padded()
        length, last = features.mask.shape[1], self.config.num_embeddings
        x = torch.cat(
            [
                self.encoder_hidden_states_proj(features.states) + self.positional_embedding[:, :length],
                self.embedding_proj(features.pooled)[:, None] + self.positional_embedding[:, last : last + 1],
            ],
            1,
        )
        real = F.pad(features.mask, (0, 1), value=True)
        mask, pasts = causal_mask(real), []

        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            pasts.append(Past(k, v))
            return attend_masked(q, k, v, mask)

        for block in self.transformer_blocks:
            x = block(x, attend)
        return ReadText(tuple(pasts), real)

    def forward(
        self, noisy: Float[Tensor, "B D"], timestep: Int[Tensor, "B"], text: "ReadText"
    ) -> Float[Tensor, "B D"]:
        """The clean whitened embedding expected behind a noisy one (unCLIP, eq. 2)."""
        weight = self.proj_in.weight
        tokens = [
            self.time_embedding(time_features(timestep, self.width).to(weight))[:, None],
            self.proj_in(noisy)[:, None],
            self.prd_embedding.expand(len(noisy), -1, -1),
        ]
        x = torch.cat(tokens, 1) + self.positional_embedding[:, self.config.num_embeddings + 1 :]
        before = text.real.shape[1]
        mask = causal_mask(F.pad(text.real, (0, 3), value=True), before)
        for block, past in zip(self.transformer_blocks, text.pasts, strict=True):
            x = block(x, partial(attend_after, past, mask))
        return self.proj_to_clip_embeddings(self.norm_out(x[:, -1]))

    def whitened(self, embeddings: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        """Raw embeddings with the training images' mean and standard deviation taken out."""
        return (embeddings - self.clip_mean) / self.clip_std

    def unwhitened(self, embeddings: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        """The inverse of `whitened`."""
        return embeddings * self.clip_std + self.clip_mean

    @staticmethod
    def from_pretrained(
        folder: str | Path, dtype: torch.dtype = torch.float32, *, variant: str | None = None
    ) -> "DiffusionPrior":
        """Read a diffusion prior in the published layout strictly, into `dtype`; `variant` as of `EclipsePrior.from_pretrained`.

        Raises:
            UserError: missing, truncated or mismatched files; a prior without time embedding.
        """
        values, tensors = read_prior(folder, PUBLISHED, variant)
        if not is_diffusion(tensors):
            raise UserError(f"{folder} holds a prior without time embedding (ECLIPSE), not a diffusion prior.")
        config = parse(DiffusionPriorConfig, values, str(Path(folder) / CONFIG_FILE))
        with torch.device("meta"):  # random weights of the published billion would take long, and be overwritten
            prior = DiffusionPrior(config).to(dtype)
        load_strictly(prior, tensors, folder, assign=True)
        return prior


class Past(NamedTuple):
    """Keys and values of earlier tokens in one layer: computed once, and read by any number of later tokens."""

    keys: Float[Tensor, "B P H E"]
    values: Float[Tensor, "B P H E"]


def attend_masked(
    q: Float[Tensor, "B L H E"], k: Float[Tensor, "B K H E"], v: Float[Tensor, "B K H E"], mask: Bool[Tensor, "B 1 L K"]
) -> Float[Tensor, "B L H E"]:
    """Each query reads the keys where its row of the mask is true."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)


def attend_after(past: Past, mask: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """`attend_masked` with P tokens before."""
    return attend_masked(q, torch.cat([past.keys, k], 1), torch.cat([past.values, v], 1), mask)


def causal_mask(real_BL: Bool[Tensor, "B L"], past: int = 0) -> Bool[Tensor, "B 1 Q L"]:
    """True where a query (row) may read a key (column): real tokens up to itself, and always itself.

    A padded token reading itself leaves no row empty (softmax would give NaN); no real token reads it. Rows begin after
    the first `past` tokens.
    """
    length = real_BL.shape[1]
    causal_LL = torch.ones(length, length, dtype=torch.bool, device=real_BL.device).tril()
    itself_LL = torch.eye(length, dtype=torch.bool, device=real_BL.device)
    return ((causal_LL & real_BL[:, None, None, :]) | itself_LL)[:, :, past:]


@dataclass(frozen=True)
class ReadText:
    """The part of a batch of texts that all steps of a diffusion prior share."""

    pasts: tuple[Past, ...]
    """Keys and values of each layer."""
    real: Tensor
    """[B, T + 1] bool: true for tokens that are not padding."""

    def expanded(self, batch: int) -> "ReadText":
        """One text, repeated for a batch."""
        pasts = tuple(Past(p.keys.expand(batch, -1, -1, -1), p.values.expand(batch, -1, -1, -1)) for p in self.pasts)
        return ReadText(pasts, self.real.expand(batch, -1))


OnStep = Callable[[int, int, Tensor, float], tuple[Tensor, float]]
"""Index of a step, its timestep, the whitened embeddings after it [B, D], and the guidance scale → the latter two to continue with."""


class PriorSampling(Config):
    """How a diffusion prior is sampled."""

    steps: PositiveInt = 25
    """Number of steps, with two evaluations each if guidance is on."""
    guidance_scale: float = Field(default=4.0, ge=0, allow_inf_nan=False)
    """Strength of classifier-free guidance; 1 means off."""
    eta: float = Field(default=1.0, ge=0, le=1)
    """Noise added at each step: 0 is DDIM, 1 is ancestral sampling (Song et al. 2021, eq. 16)."""
    clip_range: float = Field(default=10.0, gt=0)
    """Bound of the predicted whitened embedding, as in Kandinsky's scheduler (Karlo's takes 5)."""


@dataclass(frozen=True)
class SampledPrior:
    """A diffusion prior behind the contract of a prior: `predict` runs all of its steps."""

    network: DiffusionPrior
    unconditional: TextFeatures
    """Features of the empty text, one row; or what each prediction is guided away from, one row each."""
    sampling: PriorSampling = field(default_factory=PriorSampling)
    schedule: Schedule = "linear"
    """The noise that the network was trained on."""

    @property
    def evaluations(self) -> int:
        """Evaluations of the network per prediction."""
        return self.sampling.steps * (1 if self.sampling.guidance_scale == 1 else 2)

    @torch.no_grad()
    def predict(
        self,
        features: TextFeatures,
        *,
        noise: Float[Tensor, "B D"] | None = None,
        generator: torch.Generator | None = None,
        on_step: OnStep | None = None,
    ) -> Float[Tensor, "B D"]:
        """Raw CLIP image embeddings. Sampling starts from `noise`, and the noise of later steps follows from it.

        Args:
            on_step: as of `sample`.

        Raises:
            UserError: as `EclipsePrior.predict`.
        """
        weight = self.network.proj_in.weight
        check_request(features, self.network.config.embedding_dim, noise, generator)
        if noise is None:
            device = weight.device if generator is None else generator.device
            noise = torch.randn(features.pooled.shape, generator=generator, device=device)
        text = self.network.read(features.to(weight.device, weight.dtype))
        negative = None
        if self.sampling.guidance_scale != 1:
            nothing = self.unconditional.to(weight.device, weight.dtype)
            negative = self.network.read(nothing)
            if len(nothing) == 1:
                negative = negative.expanded(len(features))
        x = sample(self.network, noise.to(weight.device), text, negative, self.sampling, self.schedule, on_step)
        return self.network.unwhitened(x.to(weight.dtype))


def sample(
    network: DiffusionPrior,
    noise: Float[Tensor, "B D"],
    text: ReadText,
    unconditional: ReadText | None,
    sampling: PriorSampling,
    schedule: Schedule = "linear",
    on_step: OnStep | None = None,
) -> Float[Tensor, "B D"]:
    """From noise to a whitened embedding: DDIM with η (Song et al. 2021, eq. 12 and 16) on predictions of the clean one.

    η = 1 is the ancestral step of DDPM in another form. The noise of a step follows from a sample's first noise, so
    neither its batch nor any global state changes it. Computed in fp32, whatever the network computes in.

    Args:
        on_step: is called after each step; sampling continues with the latents and the guidance scale that it returns.
    """
    signal, scale = alphas_bar(schedule), sampling.guidance_scale
    times = visited(sampling.steps, " of the prior")
    x, dtype = noise.float(), network.proj_in.weight.dtype
    for i, t in enumerate(times):
        timestep = torch.full((len(x),), t, device=x.device)
        clean = network(x.to(dtype), timestep, text).float()
        if unconditional is not None:
            base = network(x.to(dtype), timestep, unconditional).float()
            clean = base + scale * (clean - base)
        clean = clean.clamp(-sampling.clip_range, sampling.clip_range)
        now = float(signal[t])
        later = float(signal[times[i + 1]]) if i + 1 < len(times) else 1.0
        added = sampling.eta * math.sqrt((1 - later) / (1 - now) * (1 - now / later))
        direction = (x - math.sqrt(now) * clean) / math.sqrt(1 - now)
        x = math.sqrt(later) * clean + math.sqrt(max(1 - later - added**2, 0)) * direction
        if added:
            x = x + added * fresh_noise(noise, i)
        if on_step is not None:
            x, scale = on_step(i, t, x, scale)
    return x


def fresh_noise(noise: Float[Tensor, "B D"], step: int) -> Float[Tensor, "B D"]:
    """Standard normal noise that depends on a sample's first noise and the step alone."""
    keys = (row.numpy().tobytes().hex() for row in noise.float().cpu())
    rows = [torch.randn(noise.shape[1], generator=generator(0, "prior step", key, step)) for key in keys]
    return torch.stack(rows).to(noise)


class DiffusionTaskConfig(Config):
    """The batch of a diffusion prior's training step, and the sampling in validation."""

    batch_size: PositiveInt = 1024
    """Captions per step."""
    micro_batch: int = Field(ge=0, default=0)
    """Captions per pass; 0 takes a process's share of the batch at once."""
    precision: Literal["auto", "fp32", "bf16"] = "fp32"
    """What the network computes in (weights and losses stay fp32); "auto" is bf16 on CUDA and fp32 elsewhere."""
    condition_dropout: float = Field(ge=0, lt=1, default=0.1)
    """Share of the captions that are replaced by the empty text, which guidance needs (paper: 0.1)."""
    schedule: Literal["linear", "flow"] = "linear"
    """Noise: that of ECLIPSE's diffusion baseline, or flow matching, which weights the loss as an error of the velocity."""
    sampling: PriorSampling = PriorSampling()
    """Steps, guidance and noise of its predictions."""

    def objective(
        self,
        sizes: Mapping[str, Any],
        logit_scale: float,
        unconditional: Callable[[], TextFeatures],
        device: torch.device,
        init: str | Path | None,
    ) -> "DiffusionObjective":
        """A diffusion prior of these sizes with random weights, and its loss.

        Raises:
            UserError: there is an `init`.
        """
        if init is not None:
            raise UserError("--init continues an ECLIPSE prior; a diffusion baseline starts from random weights.")
        network = DiffusionPrior(DiffusionPriorConfig(**sizes)).to(device)
        return DiffusionObjective(network, self, unconditional())


@dataclass(frozen=True)
class DiffusionObjective:
    """Mean squared error of the clean whitened embedding, at a uniformly drawn time (eq. 1).

    With flow matching, that of the velocity, noise − clean, which is the error of the clean embedding divided by the time.
    """

    prior: DiffusionPrior
    config: DiffusionTaskConfig
    unconditional: TextFeatures
    """Features of the empty text, one row."""

    def prepare(self, data: Pairs) -> None:
        """The prior keeps the statistics of the training images, which whiten embeddings."""
        self.prior.set_statistics(data.statistics)

    def losses(self, batch: PriorBatch) -> dict[str, Tensor]:
        """`loss`."""
        timestep = (batch.uniform[:, 0] * TIMESTEPS).long()
        dropped = batch.uniform[:, 1] < self.config.condition_dropout
        signal = alphas_bar(self.config.schedule)[timestep].to(batch.noise)[:, None]
        clean = self.prior.whitened(batch.image)
        noisy = signal.sqrt() * clean + (1 - signal).sqrt() * batch.noise
        text = self.prior.read(self._with_dropped(batch.text.padded(), dropped))
        predicted = self.prior(noisy, timestep.to(noisy.device), text)
        errors = (predicted - clean).square().mean(1)
        if self.config.schedule == "flow":
            errors = errors / flow_times()[timestep].clamp_min(FLOW_LEAST).to(errors).square()
        return {"loss": errors.mean()}

    def predict(self, batch: PriorBatch) -> Float[Tensor, "B D"]:
        """All steps of sampling."""
        sampled = SampledPrior(self.prior, self.unconditional, self.config.sampling, self.config.schedule)
        return sampled.predict(batch.text.padded(), noise=batch.noise)

    def _with_dropped(self, features: TextFeatures, dropped: Bool[Tensor, "B"]) -> TextFeatures:
        empty = self.unconditional.to(features.pooled.device, features.pooled.dtype)
        rows = torch.arange(len(features)).masked_fill(dropped, len(features))
        return TextFeatures.cat([features, empty])[rows.to(features.pooled.device)]
