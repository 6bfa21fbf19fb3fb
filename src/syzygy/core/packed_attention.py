"""Sequences of different lengths without padding: their tokens follow one another, and each reads only its own sequence.

The ECLIPSE prior and the text adapters use it.

Legend: B sequences, M tokens of all of them, H heads of width D.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from syzygy.core.contracts import TextFeatures


@dataclass(frozen=True)
class PackedText:
    """`TextFeatures` without padding: the real tokens of B captions one after another.

    Stores keep texts like this, and priors compute with them.

    N counts the tokens of all captions. Positions count the real tokens of a caption from 0.
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
class Packing:
    """Where the tokens of B sequences stand, on the CPU: those of a text, then some that follow each text.

    Sequences are sorted by length, because those of equal length, side by side, are a dense batch: attention needs no padding, no mask
    and no copy. (256 captions of COCO's lengths on one CPU core: 2.2 times as fast as one batch padded to its longest, forward
    and backward; four batches of similar lengths, 1.7 times.)
    """

    order: Int[Tensor, "B"]
    """Which text stands first, second, …: the shortest, and of equal ones the earlier."""
    lengths: Int[Tensor, "B"]
    """Tokens of each sequence, in this order."""
    rows: Int[Tensor, "M"]
    """Where each token is in a table of all text tokens, then B rows of what follows a text first, B of what follows second, …"""
    positions: Int[Tensor, "M"]
    """Position of each token: in its text, or `positions` and more for those that follow, however short the text."""

    @staticmethod
    def of(offsets: Int[Tensor, "B_plus_1"], *, following: int, positions: int) -> "Packing":
        """Texts that begin at `offsets` (int64, on the CPU; the last is the number of tokens), each with so many tokens following."""
        lengths, order = offsets.diff().sort(stable=True)
        lengths = lengths + following
        sequence = torch.repeat_interleave(lengths)
        place = torch.arange(len(sequence)) - (lengths.cumsum(0) - lengths)[sequence]
        follows = place - (lengths - following)[sequence]
        text = order[sequence]
        rows = torch.where(follows < 0, offsets[text] + place, offsets[-1] + follows * len(order) + text)
        return Packing(order, lengths, rows, torch.where(follows < 0, place, positions + follows))


class PackedAttention:
    """Ways in which packed tokens read those of their own sequence (each an `Attend`)."""

    def __init__(self, lengths: Int[Tensor, "B"], device: torch.device) -> None:
        """`lengths` of the sequences in tokens, at least 1, on the CPU; equal ones stand side by side."""
        values, counts = lengths.unique_consecutive(return_counts=True)
        self.runs: list[tuple[int, int]] = list(zip(counts.tolist(), values.tolist(), strict=True))
        """Sequences of one length, side by side: how many, how long."""
        self.ends = F.pad(lengths.cumsum(0), (1, 0)).to(device, torch.int32)

    def causal(
        self, q: Float[Tensor, "M H D"], k: Float[Tensor, "M H D"], v: Float[Tensor, "M H D"]
    ) -> Float[Tensor, "M H D"]:
        """Each token reads up to itself."""
        kernel, longest = kernel_for(q), self.runs[-1][1]
        if kernel is None:
            return self.by_length(q, k, v, causal=True)
        return kernel(q, k, v, self.ends, self.ends, longest, longest, window_size=(-1, 0))

    def whole(
        self, q: Float[Tensor, "Q H D"], k: Float[Tensor, "M H D"], v: Float[Tensor, "M H D"]
    ) -> Float[Tensor, "Q H D"]:
        """Each query reads all of its sequence: as many queries as tokens are these themselves, fewer are equally many of each sequence."""
        kernel, longest = kernel_for(q), self.runs[-1][1]
        if kernel is None:
            return self.by_length(q, k, v, causal=False)
        if len(q) == len(k):
            return kernel(q, k, v, self.ends, self.ends, longest, longest)
        each = len(q) // (len(self.ends) - 1)
        ends = each * torch.arange(len(self.ends), dtype=torch.int32, device=q.device)
        return kernel(q, k, v, ends, self.ends, each, longest)

    def by_length(self, q: Tensor, k: Tensor, v: Tensor, *, causal: bool) -> Tensor:
        """The sequences of one length at a time; on any device, in any precision."""
        keys = [count * length for count, length in self.runs]
        each = len(q) // (len(self.ends) - 1)
        queries = keys if len(q) == len(k) else [count * each for count, _ in self.runs]
        read = []
        # Split, not sliced: the gradient of a slice is as large as the whole.
        for (count, _), *run in zip(self.runs, q.split(queries), k.split(keys), v.split(keys), strict=True):
            q_BHQD, k_BHLD, v_BHLD = (x.unflatten(0, (count, -1)).transpose(1, 2) for x in run)
            read_BHQD = F.scaled_dot_product_attention(q_BHQD, k_BHLD, v_BHLD, is_causal=causal)
            read.append(read_BHQD.transpose(1, 2).flatten(0, 1))
        return torch.cat(read)


def kernel_for(q: Tensor) -> Callable[..., Any] | None:
    """torch's attention over sequences of different lengths, if it takes queries [..., D] like these: half precision, a recent CUDA device."""
    fits = q.dtype in (torch.float16, torch.bfloat16) and q.shape[-1] % 8 == 0 and q.shape[-1] <= 256
    if not (q.is_cuda and fits and torch.cuda.get_device_capability(q.device) >= (8, 0)):
        return None
    return _kernel()


@lru_cache
def _kernel() -> Callable[..., Any] | None:
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:  # torch 2.9
        return None
    # Its first version had another argument for causal attention.
    return varlen_attn if "window_size" in inspect.signature(varlen_attn).parameters else None
