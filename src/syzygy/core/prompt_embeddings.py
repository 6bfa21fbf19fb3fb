"""What a U-Net of Stable Diffusion reads of texts, whichever text encoder reads them: its own, or a language model with an adapter."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, Real
from torch import Tensor


@dataclass(frozen=True)
class PromptEmbeddings:
    """Texts as a U-Net reads them: diffusers' `prompt_embeds` and `pooled_prompt_embeds`.

    U-Nets attend to all T states without a mask, those of padding included.
    """

    states: Float[Tensor, "N T C"]
    pooled: Float[Tensor, "N E"] | None
    """Only the U-Net of Stable Diffusion XL reads it."""
    spans: Sequence[Int[Tensor, "N T 2"] | None]
    """For each text encoder, the characters [from, to) that each state stands for, on the CPU; None where states do not stand for words."""

    def __len__(self) -> int:
        return len(self.states)

    def __getitem__(self, rows: list[int] | slice) -> "PromptEmbeddings":
        pooled = None if self.pooled is None else self.pooled[rows]
        return PromptEmbeddings(self.states[rows], pooled, [None if x is None else x[rows] for x in self.spans])

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> "PromptEmbeddings":
        pooled = None if self.pooled is None else self.pooled.to(device, dtype)
        return PromptEmbeddings(self.states.to(device, dtype), pooled, self.spans)

    def zeros(self) -> "PromptEmbeddings":
        """What Stable Diffusion XL reads in place of no text."""
        pooled = None if self.pooled is None else torch.zeros_like(self.pooled)
        return PromptEmbeddings(torch.zeros_like(self.states), pooled, self.spans)


@dataclass(frozen=True)
class TimedPrompts:
    """Texts that a U-Net reads differently at each timestep, from a timestep-aware adapter."""

    at: Callable[[Real[Tensor, ""]], PromptEmbeddings]
    """Timestep of the U-Net, on its device → what it reads then."""
    spans: Sequence[None] = (None,)
    """As of `PromptEmbeddings`: the states of an adapter do not stand for words."""
