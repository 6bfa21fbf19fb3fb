"""Captions through a text encoder, and what of an encoder's output can be stored. Legend: B batch, T tokens, D width."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from syzygy.types import PackedText, TextFeatures

FAULTS = (None, "is not finite", "does not fit into fp16 (beyond ±65504): store it as bf16")
"""What may be wrong with a vector, by the codes of `fault_codes`."""


def fault_codes(x: Float[Tensor, "B *rest"], dtype: torch.dtype) -> Int[Tensor, "B"]:
    """For each row, which of `FAULTS` storing it as `dtype` would have. `x` is fp32."""

    def all_finite(values: Tensor) -> Tensor:
        return torch.isfinite(values).flatten(1).all(1)

    return torch.where(all_finite(x), torch.where(all_finite(x.to(dtype)), 0, 2), 1)


@dataclass(frozen=True)
class EncodedCaptions:
    """M captions in the order that they were given in, as they are stored."""

    text: PackedText
    faults: list[str | None]
    """Why a caption's features must not be stored, or None."""


def encode_captions(
    encode: Callable[[list[str]], TextFeatures], texts: list[str], dtype: torch.dtype, batch_size: int
) -> EncodedCaptions:
    """Encode at least one caption. Those of like length go together, always `batch_size` of them: hardly any padding, few shapes."""
    order = sorted(range(len(texts)), key=lambda i: len(texts[i].encode()))
    parts: list[PackedText] = []
    codes: list[Tensor] = []
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".* tokens, this encoder reads")  # the store says how many were cut
        for start in range(0, len(order), batch_size):
            chunk = [texts[i] for i in order[start : start + batch_size]]
            features = encode(chunk + chunk[-1:] * (batch_size - len(chunk)))[: len(chunk)]
            codes.append(_codes(features, dtype).cpu())
            parts.append(PackedText.of(features.to(dtype=dtype)).to("cpu"))
    back = torch.tensor(order).argsort()
    return EncodedCaptions(PackedText.cat(parts)[back], [FAULTS[code] for code in torch.cat(codes)[back].tolist()])


def _codes(features: TextFeatures, dtype: torch.dtype) -> Int[Tensor, "B"]:
    states = fault_codes(features.states.masked_fill(~features.mask[..., None], 0), dtype)
    pooled = fault_codes(features.pooled, dtype)
    return torch.where(states == 0, pooled, states)
