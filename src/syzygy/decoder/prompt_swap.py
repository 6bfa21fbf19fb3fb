"""Change the prompt below a noise level, to see which part of sampling reads the text (eDiff-I, arXiv 2211.01324, section 4 and figure 3)."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from syzygy.core.contracts import Conditioning
from syzygy.decoder.guidance import DenoiserWrapper


@dataclass(frozen=True)
class Swapped(DenoiserWrapper):
    """A denoiser to which, below a noise level, neighbours in the batch change their conditions: 0 with 1, 2 with 3, and so on.

    A batch of the prompts A, B, C, D then ends as one of B, A, D, C: every pair is swapped in both directions at once. As the exchange stays
    among neighbours, it may stand inside guidance, whose branches are an even number of samples each.
    """

    below: float
    """σ below which the neighbour's conditions are read: ∞ is always, 0 is never."""

    def __call__(
        self, x: Float[Tensor, "B C H W"], sigma: Float[Tensor, "B"], conditioning: Conditioning
    ) -> Float[Tensor, "B C H W"]:
        """The denoised x, each sample read with its own conditions or with its neighbour's."""
        assert len(x) % 2 == 0, "neighbours come in pairs"
        own = torch.arange(len(x), device=x.device)
        return self.denoiser(x, sigma, conditioning[torch.where(sigma < self.below, own ^ 1, own)])


def level_after(sigmas: Float[Tensor, "levels"], steps: int) -> float:
    """A noise level between the last evaluation of a schedule's first `steps` steps and the next one: `below` for a swap after them.

    ∞ for no step, 0 for all of them. (A sampler of second order evaluates a step's end too, which lies below: it reads the new prompt there.)
    """
    assert 0 <= steps < len(sigmas), f"{steps} of {len(sigmas) - 1} steps"
    return math.inf if steps == 0 else math.sqrt(float(sigmas[steps - 1]) * float(sigmas[steps]))
