"""Classifier-free guidance (Ho & Salimans 2022) as a denoiser around a denoiser.

Published models guide in their own loops: `pretrained/diffusers_decoder.py`, `pretrained/karlo.py`; the diffusion prior in
`prior/diffusion_prior.py`.
"""

import math
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from syzygy.core.contracts import Condition, Conditioning, Denoiser, Staged
from syzygy.core.errors import UserError

W = TypeVar("W", bound="DenoiserWrapper")


@dataclass(frozen=True)
class DenoiserWrapper:
    """A denoiser around another one, which may differ between noise levels (`Staged`)."""

    denoiser: Denoiser

    def at(self: W, sigma: float) -> W:
        """The same around the denoiser of this noise level."""
        return replace(self, denoiser=self.denoiser.at(sigma)) if isinstance(self.denoiser, Staged) else self


@dataclass(frozen=True)
class Guided(DenoiserWrapper):
    """D = D_negative + scale·(D_positive − D_negative), both branches in one batch of twice the size.

    `negative` replaces the negative branch (by default all conditions dropped); it holds one sample for the whole batch, or one each.
    At scale 1 the negative branch cancels out: guidance is off and costs nothing.

    Raises UserError for a scale that is negative or not finite, and for a negative that scale 1 would leave unused.
    """

    scale: float
    negative: Conditioning | None = None

    def __post_init__(self) -> None:
        if not (self.scale >= 0 and math.isfinite(self.scale)):
            raise UserError(f"guidance scale must be a finite number of at least 0, got {self.scale} (1 is off).")
        if self.scale == 1 and self.negative is not None:
            raise UserError(
                "a negative condition has no effect at guidance scale 1 (off): raise the scale or leave it out."
            )

    def __call__(
        self, x: Float[Tensor, "B C H W"], sigma: Float[Tensor, "B"], conditioning: Conditioning
    ) -> Float[Tensor, "B C H W"]:
        """The guided denoised x."""
        if self.scale == 1:
            return self.denoiser(x, sigma, conditioning)
        both = joined(conditioning, _negative(self.negative, conditioning, len(x)), len(x))
        positive, negative = self.denoiser(torch.cat([x, x]), torch.cat([sigma, sigma]), both).chunk(2)
        return negative + self.scale * (positive - negative)


@dataclass(frozen=True)
class StyleGuided(DenoiserWrapper):
    """Separate guidance scales for the text and for a style reference:
    D = D_negative + scale·(D_text − D_negative) + style_scale·(D_both − D_text).

    The style is what the condition `image` holds (eDiff-I, section 4.4, adds it to the text; its own scale is ours). With equal scales this
    is `Guided`. All three branches are one batch of three times the size. Regions belong to the branches that read the text.

    Raises UserError for a scale that is negative or not finite.
    """

    scale: float
    style_scale: float
    negative: Conditioning | None = None

    def __post_init__(self) -> None:
        for name, scale in (("guidance", self.scale), ("style guidance", self.style_scale)):
            if not (scale >= 0 and math.isfinite(scale)):
                raise UserError(f"{name} scale must be a finite number of at least 0, got {scale}.")

    def __call__(
        self, x: Float[Tensor, "B C H W"], sigma: Float[Tensor, "B"], conditioning: Conditioning
    ) -> Float[Tensor, "B C H W"]:
        """The guided denoised x."""
        named = conditioning.conditions
        text = Conditioning({name: c.dropped() if name == "image" else c for name, c in named.items()})
        negative = _negative(self.negative, conditioning, len(x))
        read = joined(joined(conditioning, text, len(x)), joined(negative, negative, len(x)), 2 * len(x))[: 3 * len(x)]
        both, texts, nothing = self.denoiser(torch.cat([x] * 3), torch.cat([sigma] * 3), read).chunk(3)
        return nothing + self.scale * (texts - nothing) + self.style_scale * (both - texts)


def joined(first: Conditioning, second: Conditioning, batch: int) -> Conditioning:
    """Two conditionings of `batch` samples as one of twice as many. What only one holds is absent in the other."""
    names = dict.fromkeys([*first.conditions, *second.conditions])
    pairs = {name: (first.conditions.get(name), second.conditions.get(name)) for name in names}
    return Conditioning({name: _cat(name, a, b, batch) for name, (a, b) in pairs.items()})


def _cat(name: str, first: Condition | None, second: Condition | None, batch: int) -> Condition:
    stand_in = second if first is None else first
    assert stand_in is not None
    a = stand_in.dropped() if first is None else first
    b = stand_in.dropped() if second is None else second
    if len(a.present) != batch or len(b.present) != batch:
        raise UserError(f"condition {name!r} has {len(a.present)} and {len(b.present)} samples, the images {batch}.")
    if (a.states is None) != (b.states is None) or (a.pooled is None) != (b.pooled is None):
        raise UserError(
            f"condition {name!r} and its negative must both have token states, or pooled vectors, or neither."
        )
    present = torch.cat([a.present, b.present])
    pooled = torch.cat([a.pooled, b.pooled]) if a.pooled is not None and b.pooled is not None else None
    if a.states is None or b.states is None or a.mask is None or b.mask is None:
        return Condition(present, pooled=pooled)
    length = max(a.states.shape[1], b.states.shape[1])
    states = torch.cat([F.pad(c, (0, 0, 0, length - c.shape[1])) for c in (a.states, b.states)])
    mask = torch.cat([F.pad(m, (0, length - m.shape[1])) for m in (a.mask, b.mask)])
    return Condition(present, states, mask, pooled, _joined_maps(a, b, length))


def _joined_maps(a: Condition, b: Condition, length: int) -> Float[Tensor, "B T H W"] | None:
    """The region maps of both, with zeros for the one that has none; None where neither has any."""
    found = [c.region_maps for c in (a, b) if c.region_maps is not None]
    if not found:
        return None
    nothing = found[0].new_zeros(len(a.present), length, *found[0].shape[-2:])
    maps = [c.region_maps for c in (a, b)]
    return torch.cat([nothing if m is None else F.pad(m, (0,) * 5 + (length - m.shape[1],)) for m in maps])


def _negative(negative: Conditioning | None, conditioning: Conditioning, batch: int) -> Conditioning:
    """The negative branch, one sample for each of the batch."""
    if negative is None:
        return conditioning.dropped()
    return Conditioning(
        {
            name: c[torch.zeros(batch, dtype=torch.long, device=c.present.device)] if len(c.present) == 1 else c
            for name, c in negative.conditions.items()
        }
    )
