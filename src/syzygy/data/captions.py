"""Captions through a text encoder, and what of an encoder's output can be stored.

Legend: B batch, M captions, T tokens, W width of token states, D width of pooled embeddings.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Int16
from torch import Tensor

from syzygy.core.contracts import TextFeatures

FAULTS = (None, "is not finite", "does not fit into fp16 (beyond ±65504): store it as bf16")
"""What may be wrong with a vector, by the codes of `fault_codes`."""


@dataclass(frozen=True)
class CaptionFeatures:
    """What a text encoder gives that need not speak CLIP's space: `TextFeatures` with other widths, or without pooled embeddings."""

    states: Float[Tensor, "B T W"]
    mask: Bool[Tensor, "B T"]
    """True on real tokens."""
    pooled: Float[Tensor, "B D"] | None


@dataclass(frozen=True)
class TokenStates:
    """Token states of M captions without padding."""

    states: Float[Tensor, "N W"]
    offsets: Int[Tensor, "M_plus_1"]
    """Where each caption begins in `states`, and at last N."""


def joined(captions: "Sequence[Int16[np.ndarray, '_ W']]", dtype: torch.dtype) -> TokenStates:
    """The states of captions, given as 16-bit patterns (numpy knows no bf16), one after another in one copy."""
    offsets = np.cumsum([0, *map(len, captions)])
    return TokenStates(torch.from_numpy(np.concatenate(captions)).view(dtype), torch.from_numpy(offsets))


@dataclass(frozen=True)
class EncodedCaptions:
    """M captions in the order that they were given in, in the store's precision."""

    states: "list[Int16[np.ndarray, '_ W']]"
    """Of each, as 16-bit patterns."""
    pooled: Float[Tensor, "M D"] | None
    faults: list[str | None]
    """Why a caption's features must not be stored, or None."""


def fault_codes(x: Float[Tensor, "B *rest"], dtype: torch.dtype) -> Int[Tensor, "B"]:
    """For each row, which of `FAULTS` storing it as `dtype` would have. `x` is fp32."""

    def all_finite(values: Tensor) -> Tensor:
        return torch.isfinite(values).flatten(1).all(1)

    return torch.where(all_finite(x), torch.where(all_finite(x.to(dtype)), 0, 2), 1)


def encode_captions(
    encode: Callable[[list[str]], TextFeatures | CaptionFeatures],
    texts: list[str],
    dtype: torch.dtype,
    batch_size: int,
) -> EncodedCaptions:
    """Encode at least one caption. Those of like length go together, always `batch_size` of them: hardly any padding, few shapes."""
    order = sorted(range(len(texts)), key=lambda i: len(texts[i].encode()))
    states: list[Int16[np.ndarray, "_ W"]] = []
    pooled: list[Tensor] = []
    codes: list[Tensor] = []
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".* tokens, this encoder reads")  # the store says how many were cut
        for start in range(0, len(order), batch_size):
            chunk = [texts[i] for i in order[start : start + batch_size]]
            features = encode(chunk + chunk[-1:] * (batch_size - len(chunk)))
            real = len(chunk)
            codes.append(_codes(features, dtype)[:real].cpu())
            packed = features.states[:real][features.mask[:real]].to(dtype).cpu().view(torch.int16).numpy()
            states += np.split(packed, features.mask[:real].sum(1).cumsum(0)[:-1].cpu().numpy())
            if features.pooled is not None:
                pooled.append(features.pooled[:real].to(dtype).cpu())
    back = torch.tensor(order).argsort()
    return EncodedCaptions(
        [states[i] for i in back.tolist()],
        torch.cat(pooled)[back] if pooled else None,
        [FAULTS[code] for code in torch.cat(codes)[back].tolist()],
    )


def _codes(features: TextFeatures | CaptionFeatures, dtype: torch.dtype) -> Int[Tensor, "B"]:
    states = fault_codes(features.states.masked_fill(~features.mask[..., None], 0), dtype)
    return states if features.pooled is None else torch.where(states == 0, fault_codes(features.pooled, dtype), states)
