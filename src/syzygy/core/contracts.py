"""The contracts between slices: priors, denoisers, text encoders and image decoders, and the values that pass between them.

Token containers, from the text to the denoiser: `TextFeatures` (an encoder in CLIP's space) and `TextStates` (an encoder outside of it) are
what encoders return; `core.packed_attention.PackedText` is how stores and priors hold the former; a `Condition` adds which samples
of a batch read it and the regions of its tokens; a `Conditioning` names the conditions that a denoiser reads.

Shapes: B batch, T tokens, D width of CLIP's joint space, N images, H × W image or latent positions, C channels.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from syzygy.core.errors import UserError
from syzygy.core.spatial_guides import PixelGuide, Region


@dataclass(frozen=True)
class TextFeatures:
    """What a text encoder in CLIP's joint space returns for priors and decoders.

    `states` are the token states after the encoder's final normalisation, `mask` is true on real tokens (start and end
    tokens included), `pooled` is the projected, *not* L2-normalised text embedding.
    """

    states: Float[Tensor, "B T D"]
    mask: Bool[Tensor, "B T"]
    pooled: Float[Tensor, "B D"]
    spans: Int[Tensor, "B T 2"] | None = None
    """The characters [from, to) of its text that each token stands for, on the CPU; from = to means none. None where tokens do not stand for
    parts of the text. Regions find the tokens of their phrases by it."""

    def __len__(self) -> int:
        return self.pooled.shape[0]

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> "TextFeatures":
        states, mask, pooled = self.states.to(device, dtype), self.mask.to(device), self.pooled.to(device, dtype)
        return TextFeatures(states, mask, pooled, self.spans)

    def __getitem__(self, index: slice | Tensor | list[int]) -> "TextFeatures":
        on_cpu = index.cpu() if isinstance(index, Tensor) else index
        spans = None if self.spans is None else self.spans[on_cpu]
        return TextFeatures(self.states[index], self.mask[index], self.pooled[index], spans)

    @staticmethod
    def cat(parts: "list[TextFeatures]") -> "TextFeatures":
        """Concatenate along the batch; shorter parts are padded on the right."""
        length = max(part.states.shape[1] for part in parts)

        def padded(x: Tensor) -> Tensor:
            return torch.nn.functional.pad(x, (0, 0) * (x.ndim - 2) + (0, length - x.shape[1]))

        spans = [padded(part.spans) for part in parts if part.spans is not None]
        return TextFeatures(
            torch.cat([padded(part.states) for part in parts]),
            torch.cat([padded(part.mask) for part in parts]),
            torch.cat([part.pooled for part in parts]),
            torch.cat(spans) if len(spans) == len(parts) else None,
        )


@dataclass(frozen=True)
class TextStates:
    """What a text encoder outside CLIP's space (T5, a language model) returns: token states in its own width D, without a pooled embedding.

    Apart from `TextFeatures`, because no prior can read it.
    """

    states: Float[Tensor, "B T D"]
    mask: Bool[Tensor, "B T"]
    spans: Int[Tensor, "B T 2"] | None = None
    """As of `TextFeatures`."""

    def __len__(self) -> int:
        return self.states.shape[0]

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> "TextStates":
        return TextStates(self.states.to(device, dtype), self.mask.to(device), self.spans)

    def __getitem__(self, index: list[int]) -> "TextStates":
        return TextStates(self.states[index], self.mask[index], None if self.spans is None else self.spans[index])


@dataclass(frozen=True)
class Condition:
    """One embedding that a denoiser can read, for a batch of B: token states [width C], a pooled vector [width E], or both.

    Where `present` is false the sample's values have no influence: the decoder reads its learned null token instead (eDiff-I, section 3).
    So one batch holds samples with and without it, for training and guidance.
    """

    present: Bool[Tensor, "B"]
    states: Float[Tensor, "B T C"] | None = None
    mask: Bool[Tensor, "B T"] | None = None
    pooled: Float[Tensor, "B E"] | None = None
    region_maps: Float[Tensor, "B T H W"] | None = None
    """Where the region of each token lies, and how strongly it counts (w'·A of paint-with-words, ≥ 0), at any resolution H × W; 0 for tokens
    without a region."""

    def __post_init__(self) -> None:
        if self.states is None and self.pooled is None:
            raise UserError("a condition needs token states, a pooled vector, or both; got neither.")
        assert (self.states is None) == (self.mask is None), "token states and their mask come together"
        assert self.region_maps is None or self.mask is not None, "regions belong to tokens, so there must be some"

    def dropped(self) -> "Condition":
        """The same, absent and without regions for every sample: the unconditional branch of guidance."""
        return replace(self, present=torch.zeros_like(self.present), region_maps=None)

    def kept(self, keep: Bool[Tensor, "B"]) -> "Condition":
        """The same, absent where `keep` is false."""
        return replace(self, present=self.present & keep)

    def __getitem__(self, index: slice | Tensor) -> "Condition":
        return Condition(
            self.present[index],
            None if self.states is None else self.states[index],
            None if self.mask is None else self.mask[index],
            None if self.pooled is None else self.pooled[index],
            None if self.region_maps is None else self.region_maps[index],
        )


@dataclass(frozen=True)
class Conditioning:
    """Everything that a denoiser can read besides the noisy image: conditions by name, such as `image`, `text`, `t5`.

    A class, so that guidance can drop, index and join all of them at once.
    """

    conditions: Mapping[str, Condition]

    def dropped(self) -> "Conditioning":
        return Conditioning({name: c.dropped() for name, c in self.conditions.items()})

    def __getitem__(self, index: slice | Tensor) -> "Conditioning":
        return Conditioning({name: c[index] for name, c in self.conditions.items()})


def image_condition(embedding: Float[Tensor, "B D"]) -> Condition:
    """A CLIP image embedding (predicted by a prior, or of a reference image) as a condition."""
    return Condition(torch.ones(len(embedding), dtype=torch.bool, device=embedding.device), pooled=embedding)


def text_condition(features: TextFeatures | TextStates) -> Condition:
    """Text states, and the pooled text embedding where there is one, as a condition."""
    present = torch.ones(len(features), dtype=torch.bool, device=features.states.device)
    pooled = features.pooled if isinstance(features, TextFeatures) else None
    return Condition(present, features.states, features.mask, pooled)


@dataclass(frozen=True)
class Guide:
    """What N images should show, or should avoid (as a negative guide). A decoder uses what it can read of it; None is not provided."""

    embeddings: Float[Tensor, "N D"] | None = None
    """Raw CLIP image embeddings (not normalised): predicted by a prior, of images, or a mixture."""
    features: TextFeatures | None = None
    """The prompts as the prior's text encoder encodes them."""
    texts: Sequence[str] | None = None
    """The prompts themselves: for decoders with a text encoder of their own, and to find the phrases of regions in."""
    regions: Sequence[Sequence[Region]] | None = None
    """The regions of each image; an empty list is none."""
    conditions: Sequence[str] | None = None
    """The names of the conditions that the decoder should read; None is all that it can read of what is provided."""
    pixels: PixelGuide = field(default_factory=PixelGuide)
    """Pictures that the decoder reads pixel by pixel, the same for all images."""

    def __post_init__(self) -> None:
        numbers = {len(x) for x in (self.embeddings, self.features, self.texts, self.regions) if x is not None}
        assert len(numbers) == 1, f"a guide is for one number of images, got {numbers or 'nothing'}"

    def __len__(self) -> int:
        return next(len(x) for x in (self.embeddings, self.features, self.texts) if x is not None)

    def __getitem__(self, rows: list[int]) -> "Guide":
        return Guide(
            None if self.embeddings is None else self.embeddings[rows],
            None if self.features is None else self.features[rows],
            None if self.texts is None else [self.texts[row] for row in rows],
            None if self.regions is None else [self.regions[row] for row in rows],
            self.conditions,
            self.pixels,
        )


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How a decoder samples. None is the decoder's default."""

    steps: int | None = None
    """Sampling steps, at least 1."""
    guidance_scale: float | None = None
    """Scale of classifier-free guidance; 1 is off."""
    style_guidance: float | None = None
    """The guidance scale of a style reference's image embedding; None is the decoder's default, or else `guidance_scale`."""
    sampler: str | None = None
    """Its name in the decoder's registry of samplers or schedulers."""
    size: tuple[int, int] | None = None
    """Height and width in pixels."""
    region_strength: float | None = None
    """How strongly regions pull their phrases, w' of paint-with-words; 0 is not at all."""
    strength: float | None = None
    """How much of a given picture is replaced, in (0, 1]: the share of the steps that are taken. 1 replaces nearly everything."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Options that only this decoder has. A decoder raises UserError for those that it does not know."""


@dataclass(frozen=True)
class Progress:
    """What `on_step` receives after each sampling step."""

    step: int
    """Steps taken."""
    steps: int
    """Steps in all."""
    sigma: float
    """Noise level that the step started from, in EDM's convention."""
    denoised: Float[Tensor, "B C H W"] | None
    """The denoised estimate in the decoder's own space (latents or pixels); None where a scheduler does not provide it."""


@runtime_checkable
class TextEncoder(Protocol):
    """Texts → `TextFeatures` in CLIP's joint space: CLIP itself, or a language model with its adapter."""

    @property
    def width(self) -> int: ...

    def encode_text(self, texts: list[str]) -> TextFeatures: ...


@runtime_checkable
class StatesEncoder(Protocol):
    """Texts → `TextStates` of width `width`: T5, or a language model without an adapter. Apart from `TextEncoder`, as no prior can read it."""

    @property
    def width(self) -> int: ...

    def encode_states(self, texts: list[str]) -> TextStates: ...


@runtime_checkable
class ImageEncoder(Protocol):
    """Images in [0, 1] → raw CLIP image embeddings (projected, not normalised)."""

    @property
    def width(self) -> int: ...

    def encode_image(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B D"]: ...


@runtime_checkable
class ImageAutoencoder(Protocol):
    """Images in [0, 1] ↔ the latents that a decoder denoises, of zero mean and unit variance.

    A contract, so that decoders and their trainings work with any autoencoder of that kind.
    """

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, h, w)."""
        ...

    def encode(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B C h w"]: ...

    def decode(self, latents: Float[Tensor, "B C h w"]) -> Float[Tensor, "B 3 H W"]: ...


@runtime_checkable
class Prior(Protocol):
    """Text features → image embedding in CLIP's raw space (neither whitened nor normalised), in one call.

    `noise` is the prior's ε, one row a sample; without it `generator` draws it.
    """

    def predict(
        self,
        features: TextFeatures,
        *,
        noise: Float[Tensor, "B D"] | None = None,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "B D"]: ...


@runtime_checkable
class Denoiser(Protocol):
    """(x, σ, conditioning) → denoised x, with σ > 0 in EDM's convention (x = clean + σ·noise).

    Guidance wraps one, experts route several of them by σ, and samplers are plain functions over one.
    """

    def __call__(
        self, x: Float[Tensor, "B C H W"], sigma: Float[Tensor, "B"], conditioning: Conditioning
    ) -> Float[Tensor, "B C H W"]: ...


@runtime_checkable
class ImageDecoder(Protocol):
    """Image embedding, text, or both → image: the second half of unCLIP, or a whole text-to-image model. Attributes say what it can do."""

    reads_image_embedding: bool = True
    """Whether it reads CLIP image embeddings, so that it needs a prior and takes images as input (variations, mixtures)."""
    reads_text: bool = False
    """Whether it reads the prompt: features of the CLIP, or the text itself with a text encoder of its own."""
    takes_regions: bool = False
    """Whether it can put phrases of the prompt into regions (paint-with-words)."""
    takes_style_guidance: bool = False
    """Whether the guidance of a style reference can differ from that of the text."""
    takes_image: bool = False
    """Whether it can start from a picture (image-to-image)."""
    takes_mask: bool = False
    """Whether it can repaint a part of a picture and keep the rest (inpainting)."""
    takes_depth: bool = False
    """Whether it follows a depth map."""
    own_text_encoder: str | None = None
    """A sentence about the text encoder that it uses for the prompt besides the image embedding, where it has one of its own."""

    defaults: Sampling
    """Steps, guidance scale and so on that suit it; `sampler` is None where it has no choice of samplers."""

    @property
    def conditions(self) -> tuple[str, ...]:
        """The names of what it reads of a guide: "image" (embeddings), "text" (features or texts), names of text encoders."""
        return ("image",) * self.reads_image_embedding + ("text",) * self.reads_text

    @property
    def samplers(self) -> tuple[str, ...]:
        """The samplers that a call may name; none: there is no choice."""
        return ()

    @property
    def fixed_size(self) -> tuple[int, int] | None:
        """Height and width of all its images, where a call cannot choose them."""
        return None

    def generate(
        self,
        positive: Guide,
        generators: Sequence[torch.Generator],
        *,
        negative: Guide | None = None,
        sampling: Sampling = Sampling(),
        on_step: Callable[[Progress], None] | None = None,
    ) -> Float[Tensor, "N 3 H W"]:
        """N images in [0, 1], on the decoder's device, each from its own generator's noise (drawn where that lives).

        Args:
            positive: what the images should show.
            negative: what they should avoid, one guide for all or one each; None is the decoder's own unconditional branch.

        Raises:
            UserError: the guide lacks what the decoder needs, widths do not fit, a setting is out of range or unknown to it, or has no effect.
        """
        ...

    def preview(self, denoised: Float[Tensor, "B C H W"]) -> Float[Tensor, "B 3 H W"] | None:
        """Images of what `Progress.denoised` shows; None where a decoder has no quick way to make them."""
        return None

    def with_empty_text(self, features: TextFeatures) -> "ImageDecoder":
        """The same decoder for another text encoder, whose features of the empty prompt these are."""
        return self

    def weights(self) -> Mapping[str, nn.Module]:
        """Networks by name whose weights identify a model of ours; empty where its identity is its repository."""
        return {}


@runtime_checkable
class Staged(Protocol):
    """A `Denoiser` that is a different one at each noise level, such as an ensemble of experts. Samplers give σ as a number."""

    def at(self, sigma: float) -> Denoiser: ...
