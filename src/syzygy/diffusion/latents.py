"""Syzygy's own decoder: a denoiser of an autoencoder's latents, walked by a sampler, as one that paints pictures."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float
from torch import Tensor

from syzygy.diffusion.guidance import Guided, StyleGuided
from syzygy.diffusion.noise import KarrasSchedule
from syzygy.diffusion.regions import painted
from syzygy.diffusion.samplers import sample
from syzygy.errors import UserError
from syzygy.rng import per_sample_noise
from syzygy.types import (
    Conditioning,
    Denoiser,
    Guide,
    ImageAutoencoder,
    Progress,
    Sampling,
    image_condition,
    text_condition,
)

PAINTING = 0.4
"""Strength of painted phrases (w') where a model says nothing else; ports of paint-with-words use 0.1 to 0.4."""


@dataclass(frozen=True)
class LatentDecoder:
    """A `PictureDecoder` that reads image embeddings, text features, or both: what a guide does not tell is absent."""

    denoiser: Denoiser
    autoencoder: ImageAutoencoder
    device: torch.device
    defaults: Sampling = field(default_factory=lambda: Sampling(steps=25, guidance_scale=2.0, sampler="dpm++2m"))
    schedule: KarrasSchedule = field(default_factory=KarrasSchedule)

    @property
    def conditions(self) -> tuple[str, ...]:
        return ("image", "text")

    @torch.inference_mode()
    def paint(
        self,
        towards: Guide,
        generators: Sequence[torch.Generator],
        *,
        away: Guide | None = None,
        how: Sampling = Sampling(),  # noqa: B008 (frozen)
        on_step: Callable[[Progress], None] | None = None,
    ) -> Float[Tensor, "N 3 H W"]:
        """See `PictureDecoder`. Pictures have the autoencoder's size."""
        self._check(how)
        own = self.defaults
        steps = own.steps if how.steps is None else how.steps
        assert steps is not None and own.sampler is not None
        negative = None if away is None else conditioning_of(away, self.device)
        latents = sample(
            self._guided(towards, negative, how),
            per_sample_noise(self.autoencoder.latent_shape, generators, self.device),
            self.schedule.sigmas(steps),
            conditioning_of(towards, self.device, self._strength(towards, how)),
            sampler=how.sampler or own.sampler,
            on_step=on_step,
        )
        return self.autoencoder.decode(latents)

    def _guided(self, towards: Guide, negative: Conditioning | None, how: Sampling) -> Guided | StyleGuided:
        scale = self.defaults.guidance_scale if how.guidance_scale is None else how.guidance_scale
        assert scale is not None
        if how.style_guidance is None:
            return Guided(self.denoiser, scale, negative)
        if towards.embeddings is None or towards.features is None:
            raise UserError("style guidance weighs a style beside a text: let the decoder read both, image and text.")
        return StyleGuided(self.denoiser, scale, how.style_guidance, negative)

    def _strength(self, towards: Guide, how: Sampling) -> float:
        """w' of this picture."""
        if how.painting is not None and towards.regions is None:
            raise UserError("painting has a strength, but nothing is painted: give regions, or leave the strength out.")
        own = PAINTING if self.defaults.painting is None else self.defaults.painting
        return own if how.painting is None else how.painting

    def _check(self, how: Sampling) -> None:
        if how.options:
            raise UserError(f"this decoder has no options {', '.join(how.options)}: leave them out.")
        if how.size is not None:
            raise UserError("this decoder paints pictures of one size: leave the size out.")


def conditioning_of(guide: Guide, device: torch.device, painting: float = 0.0) -> Conditioning:
    """What a guide tells, as our decoder's conditions; regions paint the text's tokens with the strength `painting` (w').

    Raises:
        UserError: neither embeddings nor features; regions without text, or for states that have no column a token.
    """
    conditions = {}
    if guide.embeddings is not None:
        conditions["image"] = image_condition(guide.embeddings.to(device))
    if guide.features is not None:
        conditions["text"] = text_condition(guide.features.to(device))
    if not conditions:
        raise UserError("this decoder needs image embeddings or text features to paint; the guide has neither.")
    if guide.regions is not None and any(guide.regions):
        if guide.features is None or guide.texts is None:
            raise UserError(
                "regions are for words that the decoder reads: let it read the text (conditions image,text)."
            )
        if guide.features.spans is None:
            raise UserError("regions need a text encoder with a state for each token; this one tells no words apart.")
        maps = painted(guide.texts, guide.features.spans, guide.regions, painting).to(device)
        if maps.any():  # of no strength, or no weight, it is unpainted to the bit
            conditions["text"] = replace(conditions["text"], painted=maps)
    return Conditioning(conditions)
