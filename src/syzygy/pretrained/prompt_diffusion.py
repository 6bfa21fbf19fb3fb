"""Stages image and quality of an adapter for a Stable Diffusion: the diffusion loss on latents (arXiv 2405.12914, stages 2 and 3).

Legend: B images of a pass, C latent channels, h × w latent positions.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor, nn

from syzygy.core.contracts import StatesEncoder, TextStates
from syzygy.core.lora import Adapted, Lora
from syzygy.core.randomness import generator
from syzygy.pretrained.captioned_latents import Steps
from syzygy.pretrained.training_families import PLACE
from syzygy.pretrained.unet_task import DiscreteNoise, UNetTaskConfig, spread
from syzygy.text_encoders.adapter import TextAdapter
from syzygy.text_encoders.feature_cache import FeatureSet
from syzygy.training.precision import autocast, chosen_precision

VALIDATION_BATCH = 8


class PromptImageTaskConfig(UNetTaskConfig):
    """What one training step of an adapter on images sees."""

    batch_size: int = Field(default=64, ge=1)
    """Images per step."""
    micro_batch: int = Field(default=8, ge=0)
    """Images per forward pass; 0 takes the whole batch at once."""
    dropped: float = Field(default=0.1, ge=0, le=1)
    """Fraction of the captions that is replaced by what guidance uses without a negative prompt: the empty text, or zeros for XL. With a
    frozen U-Net it is always the empty text, because zeros would train nothing."""
    perturbation: float = Field(default=0.0, ge=0)
    """Standard deviation of further noise that is added to the latents but not predicted (Ning et al. 2023, arXiv 2301.11706). The paper uses
    0.1, where it trains the U-Net."""
    frozen: Literal["none", "adapter"] = "none"
    """"adapter" keeps the adapter's weights, as the paper's stage quality does. It needs trains=lora or trains=unet."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """What adapter and U-Net compute in (weights and losses stay fp32); "auto" is bf16 on CUDA and fp32 elsewhere."""


@dataclass(frozen=True)
class DescribedLatents:
    """B images of a step with a language model's features of their captions, on the training device."""

    latents: Float[Tensor, "B C h w"]
    """Scaled for the U-Net."""
    noise: Float[Tensor, "B C h w"]
    """What the prediction is computed from."""
    added: Float[Tensor, "B C h w"]
    """What is added to the latents: the noise, perhaps perturbed."""
    timesteps: Int[Tensor, "B"]
    text: TextStates
    given: Bool[Tensor, "B"]
    """False where zeros stand for the caption."""
    place: Float[Tensor, "B 6"] | None
    """XL's time ids: height and width before the image was resized, top and left of the crop, height and width now."""

    def __len__(self) -> int:
        return len(self.latents)


class DiffusionStage:
    """The U-Net should predict the noise of images (or v, as its scheduler says) from what the adapter makes of their captions."""

    def __init__(
        self,
        adapter: TextAdapter,
        unet: nn.Module,
        noise: DiscreteNoise,
        config: PromptImageTaskConfig,
        *,
        lora: Lora | None = None,
    ) -> None:
        """Parameters of the U-Net are trained as their `requires_grad` says, or those of `lora` instead, if it is given."""
        self.adapter, self._noise, self.config = adapter, noise, config
        self._network = unet if lora is None else Adapted(unet, lora)
        self.modules: dict[str, nn.Module] = {"adapter": adapter}
        if lora is not None:
            self.modules["lora"] = lora
        elif any(parameter.requires_grad for parameter in unet.parameters()):
            self.modules["unet"] = unet
        if config.frozen == "adapter":
            self.modules.pop("adapter").requires_grad_(False).eval()

    def losses(self, batch: DescribedLatents) -> dict[str, Tensor]:
        """`loss`, the mean squared error of the prediction."""
        return {"loss": self._errors(batch, batch.text).mean()}

    def _errors(self, batch: DescribedLatents, text: TextStates) -> Float[Tensor, "B"]:
        timesteps, given = batch.timesteps.to(batch.latents.device), batch.given[:, None]
        found = self.adapter.embed_prompts(text.states, text.mask, timesteps if self.adapter.timestep_aware else None)
        more: dict[str, Any] = {"encoder_hidden_states": found.states * given[..., None]}
        if found.pooled is not None:
            more["added_cond_kwargs"] = {"text_embeds": found.pooled * given, "time_ids": batch.place}
        noisy = self._noise.noisy(batch.latents, batch.added, batch.timesteps)
        predicted = self._network(noisy, timesteps, **more, return_dict=False)[0].float()
        expected = self._noise.target(batch.latents, batch.noise, batch.timesteps)
        return (predicted - expected).square().flatten(1).mean(1)

    @torch.no_grad()
    def validated(self, batches: Iterable[tuple[str, DescribedLatents]]) -> dict[str, float]:
        """`loss`, and `loss_other`, the same with the caption of another image, which should be larger."""
        sums, number = {"loss": 0.0, "loss_other": 0.0}, 0
        for _, batch in batches:
            other = TextStates(batch.text.states.roll(1, 0), batch.text.mask.roll(1, 0))
            device = batch.latents.device
            with autocast(device, chosen_precision(self.config.precision, device)):
                for name, text in (("loss", batch.text), ("loss_other", other)):
                    sums[name] += self._errors(batch, text).sum().item()
            number += len(batch)
        return {name: total / number for name, total in sums.items()}


class DescribedLatentsSource:
    """Batches of images with their captions. Timesteps and noise depend on the seed and the step alone."""

    def __init__(
        self,
        steps: Steps,
        unseen: Sequence[int],
        llm: StatesEncoder | FeatureSet,
        timesteps: int,
        device: torch.device,
        config: PromptImageTaskConfig,
        *,
        zeros: bool,
    ) -> None:
        """
        Args:
            unseen: images for validation.
            timesteps: their number in the training of the U-Net.
            zeros: whether zeros, not the empty text, stand for dropped captions.
        """
        self._steps, self._unseen, self._llm = steps, unseen, llm
        self._timesteps, self._device, self._config, self._zeros = torch.arange(timesteps), device, config, zeros
        self._whole = lru_cache(maxsize=1)(self._drawn)  # the parts of a batch share it

    def read(self, step: int, rows: slice) -> DescribedLatents:
        """See `Source`."""
        pictures, captions, *drawn = self._whole(step)
        return self._batch(pictures[rows], captions[rows], *(x[rows] for x in drawn))

    def _drawn(self, step: int) -> tuple[list[int], list[str | None], Tensor, Tensor, Tensor, Tensor]:
        """Images, captions, latents, noise, added noise and timesteps of a step."""
        seed, steps = self._steps.seed, self._steps
        pictures = steps.pictures(step)
        latents = steps.latents.sampled(pictures, seed, step)
        random = generator(seed, "prompt diffusion", step)
        offset = torch.rand((), generator=random)
        noise = torch.randn(latents.shape, generator=random)
        added = noise + self._config.perturbation * torch.randn(latents.shape, generator=random)
        return pictures, steps.captions(step), latents, noise, added, spread(self._timesteps, len(pictures), offset)

    def _batch(
        self,
        pictures: Sequence[int],
        captions: Sequence[str | None],
        latents: Tensor,
        noise: Tensor,
        added: Tensor,
        timesteps: Tensor,
    ) -> DescribedLatents:
        place = self._steps.latents.extras(pictures).get(PLACE)
        given = torch.tensor([caption is not None or not self._zeros for caption in captions])
        text = self._llm.encode_states([caption or "" for caption in captions])
        return DescribedLatents(
            latents.to(self._device),
            noise.to(self._device),
            added.to(self._device),
            timesteps,
            text.to(self._device, torch.float32),
            given.to(self._device),
            None if place is None else place.to(self._device),
        )

    def unseen(self) -> Iterator[tuple[str, DescribedLatents]]:
        """Images for validation, each with its first caption; timesteps are spread over the noise of each batch."""
        latents = self._steps.latents
        for start in range(0, len(self._unseen), VALIDATION_BATCH):
            pictures = self._unseen[start : start + VALIDATION_BATCH]
            x = latents.sampled(pictures, "validation", *pictures)
            noise = torch.randn(x.shape, generator=generator(self._steps.seed, "prompt diffusion validation", start))
            captions = [latents.captions[picture][0] for picture in pictures]
            yield "", self._batch(pictures, captions, x, noise, noise, spread(self._timesteps, len(pictures), 0.5))
