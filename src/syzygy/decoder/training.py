"""Training task of the decoder: denoise images while a random subset of their conditions is present."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import product

import torch
from jaxtyping import Float
from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn

from syzygy.core.config import Config
from syzygy.core.contracts import Condition, Conditioning
from syzygy.core.errors import UserError, unknown
from syzygy.core.lora import Adapted, Lora
from syzygy.core.randomness import generator
from syzygy.decoder.backbone import UNetBackbone
from syzygy.decoder.network import Decoder
from syzygy.decoder.noise_levels import LogNormal
from syzygy.decoder.preconditioning import Preconditioned, denoising_loss
from syzygy.decoder.supervision import (
    PatchClassifier,
    PatchTargets,
    attention_loss,
    classification_loss,
    token_mentions,
)
from syzygy.training.precision import autocast


class DecoderTaskConfig(Config):
    """The data and the noise of a training step."""

    batch_size: int = Field(default=64, ge=1)
    """Noisy images in each step."""
    draws: int = Field(default=1, ge=1)
    """How many of them come from one image, each with its own noise: rendering and encoding then cost less per step."""
    noise: LogNormal = LogNormal()
    """Distribution of the noise levels."""
    subsets: dict[str, float] = {"image": 0.45, "text": 0.2, "image+text": 0.25, "": 0.1}
    """Probability of each subset of conditions, names joined by `+`, "" for none; they sum to 1."""
    painted: float = Field(default=0.0, ge=0, le=1)
    """Fraction of the samples whose words get the regions of their objects (where the batches have regions)."""
    strengths: tuple[float, float] = (0.1, 1.0)
    """The smallest and largest region strength (w') of these samples."""
    attention_weight: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """Weight of the supervision of cross-attention: patches attend to the words for their objects. Needs batches with targets."""
    classification_weight: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """Weight of the supervision of features: those of a patch tell the attributes of its object. Needs batches with targets."""

    @property
    def supervised(self) -> bool:
        """Whether a step needs to know what is where in its images."""
        return self.attention_weight > 0 or self.classification_weight > 0

    @property
    def pictures(self) -> int:
        """Different images in each step."""
        return self.batch_size // self.draws

    @model_validator(mode="after")
    def _divides(self) -> "DecoderTaskConfig":
        if self.batch_size % self.draws:
            raise ValueError(f"draws={self.draws} must divide batch_size={self.batch_size}")
        return self

    @field_validator("strengths")
    @classmethod
    def _is_range(cls, strengths: tuple[float, float]) -> tuple[float, float]:
        if not 0 <= strengths[0] <= strengths[1] < math.inf:
            raise ValueError(f"strengths must be two finite numbers of at least 0, the smaller first; got {strengths}")
        return strengths

    @field_validator("subsets")
    @classmethod
    def _is_distribution(cls, subsets: dict[str, float]) -> dict[str, float]:
        if any(not p >= 0 for p in subsets.values()) or not math.isclose(sum(subsets.values()), 1, abs_tol=1e-6):
            raise ValueError(f"probabilities must be at least 0 and sum to 1; they sum to {sum(subsets.values()):g}")
        members = [frozenset(members_of(subset)) for subset in subsets]
        if len(set(members)) != len(members):
            raise ValueError(f"the same subset is named twice among {list(subsets)}")
        return subsets


def members_of(subset: str) -> list[str]:
    """`"image+text"` → `["image", "text"]`; "" → `[]`."""
    return subset.split("+") if subset else []


def independent_dropout(rates: Mapping[str, float]) -> dict[str, float]:
    """Subset probabilities when each condition is dropped on its own, as in eDiff-I. `rates`: name → drop rate."""
    for name, rate in rates.items():
        if not 0 <= rate <= 1:
            raise UserError(f"drop rate of {name!r} must lie in [0, 1], got {rate}.")
    subsets = {}
    for kept in product((True, False), repeat=len(rates)):
        name = "+".join(name for name, keep in zip(rates, kept, strict=True) if keep)
        subsets[name] = math.prod(1 - rate if keep else rate for rate, keep in zip(rates.values(), kept, strict=True))
    return subsets


@dataclass(frozen=True)
class DecoderBatch:
    """Latents of images with their conditions, on the device that trains."""

    latents: Float[Tensor, "B C H W"]
    conditioning: Conditioning
    targets: PatchTargets | None = None
    """What is where in the images, for the supervision of attention and features."""

    def __len__(self) -> int:
        return len(self.latents)


class DecoderTask:
    """The training loop's `Task` for a decoder.

    `batches(step)` gives the `config.pictures` images of a step; noise level, noise and subset of a step depend on (seed, step) alone.
    `precision` runs the network under autocast; weights, mixing and loss stay fp32. With `lora`, an adaptation of the decoder's network,
    that alone is trained. A `classifier` of the backbone's patches is trained with the decoder, if the configuration has a weight for it.

    Raises:
        UserError: a subset names an unknown condition.
    """

    def __init__(
        self,
        decoder: Decoder,
        batches: Callable[[int], DecoderBatch],
        validation: list[DecoderBatch],
        config: DecoderTaskConfig,
        seed: int,
        precision: torch.dtype | None = None,
        lora: Lora | None = None,
        classifier: PatchClassifier | None = None,
    ) -> None:
        for subset in config.subsets:
            for name in members_of(subset):
                if name not in decoder.slots:
                    raise unknown("condition", name, decoder.slots)
        self.modules: dict[str, nn.Module] = {"decoder": decoder} if lora is None else {"lora": lora}
        network = decoder if lora is None else Adapted(decoder, lora)
        assert (classifier is not None) == (config.classification_weight > 0), (
            "a classifier has a weight, and only then"
        )
        if classifier is not None:
            self.modules["classifier"] = classifier
        self._decoder, self._classifier = decoder, classifier
        self._denoiser = Preconditioned(network, decoder.config.sigma_data)
        self._batches, self._validation = batches, validation
        self._config, self._seed, self._precision = config, seed, precision

    def loss(self, step: int) -> dict[str, Tensor]:
        """The mean weighted denoising loss of one batch (1 for a network that has learned nothing).

        With supervision, `loss` is its weighted sum with the losses `attention` and `classification`, and `denoising` is the former alone.
        """
        drawn = self._draw(step)
        if not self._config.supervised:
            return {"loss": self._losses(*drawn[:-1]).mean()}
        return self._supervised(*drawn)

    def each(self, step: int) -> Float[Tensor, "B"]:
        """The denoising loss of each sample of one batch, in rising order of σ where each comes from its own image."""
        return self._losses(*self._draw(step)[:-1])

    def _draw(self, step: int) -> tuple[Tensor, Tensor, Tensor, Conditioning, PatchTargets | None]:
        """Latents, noise levels, noise, conditions and targets of one batch."""
        batch = self._batches(step)
        assert len(batch) == self._config.pictures, f"{len(batch)} images, configured {self._config.pictures}"
        device = batch.latents.device
        random = generator(self._seed, "decoder", step, device=device)
        sigma = self._config.noise.sample(self._config.batch_size, random)
        # In turn, so that the rising noise levels of one image lie far apart.
        of = torch.arange(len(batch), device=device).repeat(self._config.draws)
        latents = batch.latents[of]
        noise = torch.randn(latents.shape, generator=random, device=device)
        conditioning = self._random_subsets(batch.conditioning[of], len(of), random)
        if self._config.painted:
            conditioning = self._random_regions(conditioning, len(of), random)
        return latents, sigma, noise, conditioning, None if batch.targets is None else batch.targets[of]

    def _supervised(
        self,
        latents: Float[Tensor, "B C H W"],
        sigma: Float[Tensor, "B"],
        noise: Tensor,
        conditioning: Conditioning,
        targets: PatchTargets | None,
    ) -> dict[str, Tensor]:
        config, backbone = self._config, self._decoder.backbone
        assert targets is not None, "supervision needs batches with targets"
        assert isinstance(backbone, UNetBackbone)
        with backbone.recording() as recorded:
            found = {"denoising": self._losses(latents, sigma, noise, conditioning).mean()}
        total = found["denoising"]
        if self._classifier is not None:
            with autocast(latents.device, self._precision):
                loss = classification_loss(self._classifier, recorded, targets, sigma)
            found["classification"] = loss
            total = total + config.classification_weight * loss
        if config.attention_weight:
            words = token_mentions(self._decoder, targets, conditioning, recorded.attention[0].shape[-1])
            found["attention"] = attention_loss(recorded, targets, words, sigma)
            total = total + config.attention_weight * found["attention"]
        return {"loss": total, **found}

    def validate(self) -> dict[str, float]:
        """Loss for each subset of conditions, at fixed noise and at σ spread evenly over the training distribution.

        `loss` weighs the subsets as training does. A condition is used if `loss/<subset>` falls below `loss/none`; where words have regions in
        training, regions are used if `loss/<subset>/painted` falls below `loss/<subset>`.
        """
        losses = dict.fromkeys(self._config.subsets, 0.0)
        painted: dict[str, float] = {}
        pictures = sum(map(len, self._validation))
        assert pictures, "validation needs images"
        for index, batch in enumerate(self._validation):
            random = generator(self._seed, "decoder", "validation", index, device=batch.latents.device)
            noise = torch.randn(batch.latents.shape, generator=random, device=batch.latents.device)
            levels = (torch.arange(len(batch), device=batch.latents.device) + 0.5) / len(batch)
            sigma = self._config.noise.spread(levels)
            for subset in losses:
                shown = only(batch.conditioning, members_of(subset))
                losses[subset] += (
                    self._losses(batch.latents, sigma, noise, without_regions(shown)).sum().item() / pictures
                )
                if self._config.painted and any(c.region_maps is not None for c in shown.conditions.values()):
                    some = with_region_strength(shown, torch.full_like(sigma, sum(self._config.strengths) / 2))
                    part = self._losses(batch.latents, sigma, noise, some).sum().item() / pictures
                    painted[subset] = painted.get(subset, 0.0) + part
        total = sum(probability * losses[subset] for subset, probability in self._config.subsets.items())
        each = {f"loss/{subset or 'none'}": value for subset, value in losses.items()}
        return {"loss": total} | each | {f"loss/{subset}/painted": value for subset, value in painted.items()}

    def _random_subsets(self, conditioning: Conditioning, batch: int, random: torch.Generator) -> Conditioning:
        names, device = list(self._config.subsets), random.device
        probabilities = torch.tensor([self._config.subsets[name] for name in names], device=device)
        chosen = torch.multinomial(probabilities, batch, replacement=True, generator=random)
        kept = {}
        for name, condition in conditioning.conditions.items():
            has = torch.tensor([name in members_of(subset) for subset in names], device=device)
            kept[name] = condition.kept(has[chosen])
        return Conditioning(kept)

    def _random_regions(self, conditioning: Conditioning, batch: int, random: torch.Generator) -> Conditioning:
        """Regions for some samples, each with its own strength."""
        low, high = self._config.strengths
        chosen = torch.rand(batch, generator=random, device=random.device) < self._config.painted
        strengths = low + (high - low) * torch.rand(batch, generator=random, device=random.device)
        return with_region_strength(conditioning, strengths * chosen)

    def _losses(
        self, latents: Float[Tensor, "B C H W"], sigma: Float[Tensor, "B"], noise: Tensor, conditioning: Conditioning
    ) -> Float[Tensor, "B"]:
        with autocast(latents.device, self._precision):
            return denoising_loss(self._denoiser, latents, sigma, noise, conditioning)


def with_region_strength(conditioning: Conditioning, strengths: Float[Tensor, "B"]) -> Conditioning:
    """The region maps of each sample times its strength."""

    def one(condition: Condition) -> Condition:
        if condition.region_maps is None:
            return condition
        return replace(condition, region_maps=condition.region_maps * strengths[:, None, None, None])

    return Conditioning({name: one(condition) for name, condition in conditioning.conditions.items()})


def without_regions(conditioning: Conditioning) -> Conditioning:
    """The same without regions."""
    return Conditioning({name: replace(c, region_maps=None) for name, c in conditioning.conditions.items()})


def only(conditioning: Conditioning, names: list[str]) -> Conditioning:
    """The named conditions; all others dropped."""
    return Conditioning({name: c if name in names else c.dropped() for name, c in conditioning.conditions.items()})
