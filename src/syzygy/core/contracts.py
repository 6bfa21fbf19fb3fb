"""The values that cross module borders. Shapes: B batch, T tokens, D width of CLIP's joint space."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from numbers import Real
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from syzygy.core.errors import UserError


@dataclass(frozen=True)
class TextFeatures:
    """What a text encoder that speaks CLIP's space gives to a prior and a decoder.

    `states` are the token states after the encoder's final normalisation, `mask` is true on real tokens (start and end
    tokens included), `pooled` is the projected, *not* L2-normalised text embedding.
    """

    states: Float[Tensor, "B T D"]
    mask: Bool[Tensor, "B T"]
    pooled: Float[Tensor, "B D"]
    spans: Int[Tensor, "B T 2"] | None = None
    """Which characters of its text each token stands for (from, to; equal: none), on the CPU; None where tokens are not those of the text."""

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
        """Joined along the batch; shorter ones are padded on the right."""
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
    """What a text encoder that does not speak CLIP's space (T5) gives to a decoder: token states, and no pooled embedding."""

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
class PackedText:
    """The same without padding: the real tokens of B captions one after another, the way to store them and to compute with them.

    A caption's tokens count from 0, wherever padding stood between them.
    """

    states: Float[Tensor, "N D"]
    offsets: Int[Tensor, "B_plus_1"]
    """Where each caption begins in `states`, and at last N. int64, always on the CPU: how many tokens there are and where decides what a
    device is asked to do, so it would have to be fetched from there at every step."""
    pooled: Float[Tensor, "B D"]

    def __post_init__(self) -> None:
        assert self.offsets.device.type == "cpu", "offsets are kept on the CPU"
        assert len(self.offsets) == len(self.pooled) + 1, "an offset for each caption, and one more"
        assert (int(self.offsets[0]), int(self.offsets[-1])) == (0, len(self.states)), "offsets lead through all states"

    def __len__(self) -> int:
        return self.pooled.shape[0]

    @property
    def lengths(self) -> Int[Tensor, "B"]:
        """Tokens of each caption."""
        return self.offsets.diff()

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> "PackedText":
        return replace(self, states=self.states.to(device, dtype), pooled=self.pooled.to(device, dtype))

    def __getitem__(self, index: slice | Tensor | list[int]) -> "PackedText":
        """These captions, in this order; a tensor (integers, or booleans for each caption) must be on the CPU."""
        lengths = self.lengths[index]
        offsets = _offsets(lengths)
        token = torch.arange(int(offsets[-1])) + (self.offsets[:-1][index] - offsets[:-1]).repeat_interleave(lengths)
        return PackedText(self.states[token.to(self.states.device)], offsets, self.pooled[index])

    @staticmethod
    def cat(parts: "list[PackedText]") -> "PackedText":
        """Joined along the batch."""
        return PackedText(
            torch.cat([part.states for part in parts]),
            _offsets(torch.cat([part.lengths for part in parts])),
            torch.cat([part.pooled for part in parts]),
        )

    @staticmethod
    def of(features: TextFeatures) -> "PackedText":
        """The real tokens of each row, in their order."""
        return PackedText(features.states[features.mask], _offsets(features.mask.sum(1).cpu()), features.pooled)

    def padded(self) -> TextFeatures:
        """With zeros on the right, up to the longest caption."""
        lengths = self.lengths
        mask = (torch.arange(int(lengths.max())) < lengths[:, None]).to(self.states.device)
        states = self.states.new_zeros(*mask.shape, self.states.shape[1])
        states[mask] = self.states
        return TextFeatures(states, mask, self.pooled)


def _offsets(lengths: Int[Tensor, "B"]) -> Int[Tensor, "B_plus_1"]:
    return torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])


@dataclass(frozen=True)
class Condition:
    """One embedding a decoder may read, batch of B. Token states, a pooled vector, or both; `present` false means dropped.

    A dropped sample's values have no influence: the decoder reads its learned null token instead (eDiff-I, section 3).
    """

    present: Bool[Tensor, "B"]
    states: Float[Tensor, "B T C"] | None = None
    mask: Bool[Tensor, "B T"] | None = None
    pooled: Float[Tensor, "B E"] | None = None
    region_maps: Float[Tensor, "B T H W"] | None = None
    """Where each token is painted, and how strongly (paint-with-words' w'·A); any resolution, 0 for most tokens."""

    def __post_init__(self) -> None:
        if self.states is None and self.pooled is None:
            raise UserError("a condition needs token states, a pooled vector, or both; got neither.")
        assert (self.states is None) == (self.mask is None), "token states and their mask come together"
        assert self.region_maps is None or self.mask is not None, "tokens are painted, so there must be some"

    def dropped(self) -> "Condition":
        """The same, absent and unpainted for every sample: the unconditional branch of guidance."""
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
    """Everything a denoiser may read besides the noisy picture: named conditions, such as `image`, `text`, `t5`."""

    conditions: Mapping[str, Condition]

    def dropped(self) -> "Conditioning":
        return Conditioning({name: c.dropped() for name, c in self.conditions.items()})

    def __getitem__(self, index: slice | Tensor) -> "Conditioning":
        return Conditioning({name: c[index] for name, c in self.conditions.items()})


def image_condition(embedding: Float[Tensor, "B D"]) -> Condition:
    """The CLIP image embedding (a prior's, or a reference picture's) as a condition."""
    return Condition(torch.ones(len(embedding), dtype=torch.bool, device=embedding.device), pooled=embedding)


def text_condition(features: TextFeatures | TextStates) -> Condition:
    """Text states, and the pooled text embedding where there is one, as a condition."""
    present = torch.ones(len(features), dtype=torch.bool, device=features.states.device)
    pooled = features.pooled if isinstance(features, TextFeatures) else None
    return Condition(present, features.states, features.mask, pooled)


@dataclass(frozen=True)
class Region:
    """A phrase of the prompt, and where it shall be."""

    phrase: str
    """As it stands in the prompt; capitals do not matter. Where it stands several times, each is meant."""
    mask: Float[Tensor, "H W"]
    """From 0 (elsewhere) to 1 (here); its own size and shape do not matter, it covers the whole picture."""
    weight: float = 1.0
    """How strongly, beside other regions."""

    def __post_init__(self) -> None:
        if not isinstance(self.phrase, str) or not self.phrase.strip():
            raise UserError("a region needs the phrase that it is for.")
        if not isinstance(self.mask, Tensor) or self.mask.ndim != 2 or not self.mask.numel() or self.mask.is_complex():
            shape = (
                f", got {[*self.mask.shape]}" if isinstance(self.mask, Tensor) else f", got {type(self.mask).__name__}"
            )
            raise UserError(f"the mask of {self.phrase!r} must be a tensor [height, width]{shape}.")
        if not (torch.isfinite(self.mask).all() and self.mask.min() >= 0 and self.mask.max() <= 1):
            raise UserError(f"the mask of {self.phrase!r} must hold numbers from 0 to 1.")
        if not self.mask.any():
            raise UserError(f"the mask of {self.phrase!r} is empty: paint where it shall be, or leave the region out.")
        if not isinstance(self.weight, Real) or not 0 <= self.weight < float("inf"):
            raise UserError(
                f"the weight of {self.phrase!r} must be a finite number of at least 0, got {self.weight!r}."
            )


@dataclass(frozen=True)
class Guide:
    """What N pictures shall be like, or move away from. A decoder takes of it what it reads; None is not told."""

    embeddings: Float[Tensor, "N D"] | None = None
    """Raw CLIP image embeddings: a prior's, those of pictures, or a mixture."""
    features: TextFeatures | None = None
    """Prompts as the prior's text encoder reads them."""
    texts: Sequence[str] | None = None
    """The prompts themselves, for a decoder with a text encoder of its own, and to find phrases in."""
    regions: Sequence[Sequence[Region]] | None = None
    """Of each picture: where phrases of its text shall be (paint-with-words)."""
    conditions: Sequence[str] | None = None
    """Which of its conditions a decoder shall read; None is all that it can of what is told."""

    def __post_init__(self) -> None:
        told = {len(x) for x in (self.embeddings, self.features, self.texts, self.regions) if x is not None}
        assert len(told) == 1, f"a guide tells one number of pictures, got {told or 'nothing'}"

    def __len__(self) -> int:
        return next(len(x) for x in (self.embeddings, self.features, self.texts) if x is not None)

    def __getitem__(self, rows: list[int]) -> "Guide":
        return Guide(
            None if self.embeddings is None else self.embeddings[rows],
            None if self.features is None else self.features[rows],
            None if self.texts is None else [self.texts[row] for row in rows],
            None if self.regions is None else [self.regions[row] for row in rows],
            self.conditions,
        )


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How a decoder walks from noise to pictures; None is what suits the decoder."""

    steps: int | None = None
    guidance_scale: float | None = None
    """1 is off."""
    style_guidance: float | None = None
    """Of the image embedding apart from the text, where it is a style's; None is the decoder's own, or else `guidance_scale` for all."""
    sampler: str | None = None
    size: tuple[int, int] | None = None
    """Height and width in pixels."""
    region_strength: float | None = None
    """How strongly regions pull their phrases, w' of paint-with-words; 0 is not at all."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """What one decoder alone knows. Others refuse it."""


@dataclass(frozen=True)
class Progress:
    """What is told after each sampling step."""

    step: int
    """Steps taken."""
    steps: int
    """Steps in all."""
    sigma: float
    """Noise level the step started from."""
    denoised: Float[Tensor, "B C H W"] | None
    """What the decoder sees already, in the space it works in; None where a scheduler does not tell."""


@runtime_checkable
class TextEncoder(Protocol):
    """Text → `TextFeatures`. CLIP is one; an LLM through its adapter is another."""

    @property
    def width(self) -> int: ...

    def encode_text(self, texts: list[str]) -> TextFeatures: ...


@runtime_checkable
class StatesEncoder(Protocol):
    """Text → `TextStates`, for a decoder. T5 is one."""

    @property
    def width(self) -> int: ...

    def encode_states(self, texts: list[str]) -> TextStates: ...


@runtime_checkable
class ImageEncoder(Protocol):
    """Pictures in [0, 1] → raw CLIP image embeddings (projected, not normalised)."""

    @property
    def width(self) -> int: ...

    def encode_image(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B D"]: ...


@runtime_checkable
class ImageAutoencoder(Protocol):
    """Pictures in [0, 1] ↔ the latents that a decoder denoises, of zero mean and unit variance."""

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, h, w)."""
        ...

    def encode(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B C h w"]: ...

    def decode(self, latents: Float[Tensor, "B C h w"]) -> Float[Tensor, "B 3 H W"]: ...


@runtime_checkable
class Prior(Protocol):
    """Text → image embedding, in CLIP's raw (un-whitened, un-normalised) space, in one call."""

    def predict(
        self,
        features: TextFeatures,
        *,
        noise: Float[Tensor, "B D"] | None = None,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "B D"]: ...


@runtime_checkable
class Denoiser(Protocol):
    """(x, sigma, conditioning) → denoised x, σ in EDM's convention (x = clean + σ·noise)."""

    def __call__(
        self, x: Float[Tensor, "B C H W"], sigma: Float[Tensor, "B"], conditioning: Conditioning
    ) -> Float[Tensor, "B C H W"]: ...


@runtime_checkable
class ImageDecoder(Protocol):
    """Image embedding (and text, where it reads it) → picture: the second half of unCLIP."""

    @property
    def conditions(self) -> tuple[str, ...]:
        """What it reads of a guide: "image" (embeddings), "text" (features or texts)."""
        ...

    @property
    def defaults(self) -> Sampling:
        """What suits it."""
        ...

    def generate(
        self,
        positive: Guide,
        generators: Sequence[torch.Generator],
        *,
        negative: Guide | None = None,
        sampling: Sampling = Sampling(),
        on_step: Callable[[Progress], None] | None = None,
    ) -> Float[Tensor, "N 3 H W"]:
        """N pictures in [0, 1], on the decoder's device, each from its own generator's noise (drawn where that lives).

        Args:
            negative: one guide for all, or one each, to move away from; None is the decoder's own unconditional branch.

        Raises:
            UserError: the guide lacks what the decoder needs, widths do not fit, a setting is out of range or unknown to it, or has no effect.
        """
        ...


@runtime_checkable
class Staged(Protocol):
    """A `Denoiser` that is another one at another noise level: samplers ask for it with the number that they hold."""

    def at(self, sigma: float) -> Denoiser: ...
