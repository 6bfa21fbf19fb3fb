"""Syzygy's own image decoder: a sampler denoises latents, and an autoencoder turns them into images."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import adaptive_max_pool2d

from syzygy.core import arguments
from syzygy.core.capabilities import check_pixels
from syzygy.core.contracts import (
    Conditioning,
    Denoiser,
    Guide,
    ImageAutoencoder,
    ImageDecoder,
    Progress,
    Sampling,
    StatesEncoder,
    TextFeatures,
    TextStates,
    image_condition,
    text_condition,
)
from syzygy.core.errors import UserError
from syzygy.core.known_latents import KnownLatents
from syzygy.core.options import PLACEMENT_STRENGTH, Option
from syzygy.core.randomness import per_sample_noise
from syzygy.core.registry import SAMPLERS
from syzygy.decoder.guidance import Guided, StyleGuided
from syzygy.decoder.noise_levels import KarrasSchedule
from syzygy.decoder.placement import STRENGTH, PlacementPredictor
from syzygy.decoder.samplers import sample
from syzygy.regions.phrases import check_read, region_maps
from syzygy.regions.region_bias import REGION_STRENGTH

NOTHING = "this decoder needs image embeddings or text features; the guide has neither."
NO_WORDS = (
    "The states of an adapter do not belong to single words: leave the text encoder out, or let a decoder with T5 read words by "
    "T5 alone (conditions image,t5)."
)


IMAGE_STRENGTH = 0.6
"""Of image-to-image, where a call gives none."""


@dataclass(frozen=True)
class LatentDecoder(ImageDecoder):
    """An `ImageDecoder` that reads any subset of image embeddings, text features and texts; what a guide does not provide is absent."""

    denoiser: Denoiser
    autoencoder: ImageAutoencoder
    device: torch.device
    defaults: Sampling = field(default_factory=lambda: Sampling(steps=25, guidance_scale=2.0, sampler="dpm++2m"))
    schedule: KarrasSchedule = field(default_factory=KarrasSchedule)
    encoders: Mapping[str, StatesEncoder] = field(default_factory=dict)
    """Its own text encoders, by the name of the condition that they provide: `t5`."""
    placement: PlacementPredictor | None = None
    """Gives the words of images without regions the regions where it expects their objects."""

    reads_text = takes_regions = takes_style_guidance = takes_image = takes_mask = True

    @property
    def conditions(self) -> tuple[str, ...]:
        return ("image", "text", *self.encoders)

    @property
    def options(self) -> tuple[Option, ...]:
        return () if self.placement is None else (PLACEMENT_STRENGTH,)

    @property
    def samplers(self) -> tuple[str, ...]:
        return tuple(SAMPLERS)

    @property
    def fixed_size(self) -> tuple[int, int]:
        """The autoencoder's."""
        height, width = self.preview(torch.zeros(1, *self.autoencoder.latent_shape, device=self.device)).shape[2:]
        return height, width

    @torch.inference_mode()
    def preview(self, denoised: Float[Tensor, "B C h w"]) -> Float[Tensor, "B 3 H W"]:
        return self.autoencoder.decode(denoised)

    def weights(self) -> dict[str, nn.Module]:
        parts = {"decoder": self.denoiser, "autoencoder": self.autoencoder, "placement": self.placement}
        return {name: part for name, part in parts.items() if isinstance(part, nn.Module)}

    @torch.inference_mode()
    def generate(
        self,
        positive: Guide,
        generators: Sequence[torch.Generator],
        *,
        negative: Guide | None = None,
        sampling: Sampling = Sampling(),  # noqa: B008 (frozen)
        on_step: Callable[[Progress], None] | None = None,
    ) -> Float[Tensor, "N 3 H W"]:
        """See `ImageDecoder`. Images have the autoencoder's size."""
        check_pixels(self, positive.pixels.names, sampling.strength)
        placement = self._checked_placement(sampling)
        own = self.defaults
        steps = own.steps if sampling.steps is None else sampling.steps
        assert own.sampler is not None
        negative_conditioning = None if negative is None else self._conditioning(negative)
        latents = sample(
            self._guided(positive, negative_conditioning, sampling),
            per_sample_noise(self.autoencoder.latent_shape, generators, self.device),
            self.schedule.sigmas(arguments.whole(steps, "the number of steps")),
            self._conditioning(positive, self._strength(positive, sampling), placement),
            sampler=sampling.sampler or own.sampler,
            on_step=on_step,
            known=self._known(positive, sampling),
        )
        return self.autoencoder.decode(latents)

    def _known(self, positive: Guide, sampling: Sampling) -> KnownLatents | None:
        """The latents of a given picture. Latent positions are kept where the mask covers none of their pixels.

        With a mask, what it covers starts from noise alone unless the call gives a strength.
        """
        pixels = positive.pixels
        if pixels.image is None:
            return None
        latents = self.autoencoder.encode(pixels.image[None].to(self.device))
        if pixels.mask is None:
            strength = sampling.strength or self.defaults.strength or IMAGE_STRENGTH
            return KnownLatents(latents=latents, strength=strength)
        repainted = adaptive_max_pool2d(pixels.mask[None, None].to(self.device), self.autoencoder.latent_shape[1:])
        return KnownLatents(latents=latents, strength=sampling.strength, keep=1 - repainted)

    def _conditioning(self, guide: Guide, region_strength: float = 0.0, placement: float = 0.0) -> Conditioning:
        """The conditions in a guide, and those that the decoder's own text encoders provide.

        Args:
            placement: strength of the regions that are predicted for images without regions.
        """
        wanted = self.conditions if guide.conditions is None else guide.conditions
        guide, texts = self._wanted(guide, wanted), guide.texts
        own = {
            name: encoder.encode_states(list(texts))
            for name, encoder in self.encoders.items()
            if texts is not None and name in wanted
        }
        conditioning = conditioning_of(guide, self.device, region_strength, own)
        read = [*own.values()] + ([] if guide.features is None else [guide.features])
        if self.placement is None or any(states.spans is None for states in read):
            return conditioning  # states of learned queries belong to no words
        drawn = [] if guide.regions is None else [row for row, regions in enumerate(guide.regions) if regions]
        return self.placement.placed(conditioning, placement, drawn)

    @staticmethod
    def _wanted(guide: Guide, names: Sequence[str]) -> Guide:
        """The guide without an embedding or features that are not among the conditions to read."""
        embeddings, features = (
            guide.embeddings if "image" in names else None,
            guide.features if "text" in names else None,
        )
        if embeddings is None and features is None and guide.texts is None:
            raise UserError(NOTHING)
        return replace(guide, embeddings=embeddings, features=features)

    def _guided(
        self, positive: Guide, negative_conditioning: Conditioning | None, sampling: Sampling
    ) -> Guided | StyleGuided:
        scale = self.defaults.guidance_scale if sampling.guidance_scale is None else sampling.guidance_scale
        assert scale is not None
        if sampling.style_guidance is None:
            return Guided(self.denoiser, scale, negative_conditioning)
        if positive.embeddings is None or positive.features is None:
            raise UserError(
                "style guidance weighs a style reference against the text: let the decoder read both (conditions image,text)."
            )
        return StyleGuided(self.denoiser, scale, sampling.style_guidance, negative_conditioning)

    def _strength(self, positive: Guide, sampling: Sampling) -> float:
        """The region strength w' of this call."""
        if sampling.region_strength is not None and positive.regions is None:
            raise UserError("a region strength has no effect without regions: give regions, or leave the strength out.")
        own = REGION_STRENGTH if self.defaults.region_strength is None else self.defaults.region_strength
        return own if sampling.region_strength is None else sampling.region_strength

    def _checked_placement(self, sampling: Sampling) -> float:
        """The strength of predicted regions, after a check of the settings."""
        given = dict(sampling.options)
        value = given.pop(PLACEMENT_STRENGTH.name, STRENGTH) if self.placement is not None else STRENGTH
        if given:
            own = f"its own are {', '.join(option.name for option in self.options)}" if self.options else "it has none"
            raise UserError(f"this decoder has no option {', '.join(given)}; {own}.")
        if sampling.size is not None:
            raise UserError("this decoder generates images of one size: leave the size out.")
        return PLACEMENT_STRENGTH.checked(value)


def conditioning_of(
    guide: Guide, device: torch.device, region_strength: float = 0.0, states: Mapping[str, TextStates] | None = None
) -> Conditioning:
    """The conditions of a guide for our decoder; its regions become maps of the tokens, times the strength `region_strength` (w').

    Args:
        states: the token states of the guide's texts, by the name of the condition.

    Raises:
        UserError: the guide provides nothing that is read; regions without text, or for states that do not belong to single words.
    """
    read: dict[str, TextFeatures | TextStates] = dict(states or {})
    if guide.features is not None:
        read = {"text": guide.features, **read}
    conditions = {name: text_condition(found.to(device)) for name, found in read.items()}
    if guide.embeddings is not None:
        conditions = {"image": image_condition(guide.embeddings.to(device)), **conditions}
    if not conditions:
        raise UserError(NOTHING)
    if guide.regions is not None and any(guide.regions):
        if not read or guide.texts is None:
            raise UserError(
                f"regions need words that the decoder reads: let it read the text (conditions image,text). {NO_WORDS}"
            )
        spans = {name: found.spans for name, found in read.items() if found.spans is not None}
        if len(spans) < len(read):
            raise UserError(f"regions need a text encoder with a state for each word. {NO_WORDS}")
        check_read(guide.texts, list(spans.values()), guide.regions)
        for name, own in spans.items():
            maps = region_maps(guide.texts, own, guide.regions, region_strength).to(device)
            if maps.any():  # without strength or weight the result is the same to the bit
                conditions[name] = replace(conditions[name], region_maps=maps)
    return Conditioning(conditions)
