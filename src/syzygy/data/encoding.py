"""Encoding of captions for a store, and the settings that decide which bytes the store gets.

Legend: B batch, M captions, N tokens of all captions, S side of a prepared picture, T tokens, W width of token states,
D width of the joint space.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int, Int16
from pydantic import Field
from torch import Tensor

from syzygy.core.config import Config
from syzygy.core.contracts import TextFeatures, TextStates

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}
"""How features may be stored."""
FAULTS = (None, "is not finite", "does not fit into fp16 (beyond ±65504): store it as bf16")
"""What may be wrong with a vector, by the codes of `fault_codes`."""

Encode = Callable[[list[str]], TextFeatures | TextStates]
"""A text encoder. Features are in fp32, on any device; pooled embeddings are always there or never."""


@runtime_checkable
class PairEncoder(Protocol):
    """What `embed_shard` needs of a CLIP. A protocol, so that an encoder from elsewhere can fill a store without being a `Clip`."""

    preparation: Any
    """`preparation.prepare(image)` turns a Pillow image into a tensor [3, S, S], or raises `UserError`. Several threads call it at once."""

    @property
    def width(self) -> int:
        """D."""
        ...

    @property
    def positions(self) -> int:
        """The longest text in tokens; longer texts are cut."""
        ...

    def encode_pixels(self, pixels: Float[Tensor, "B 3 S S"]) -> Float[Tensor, "B D"]:
        """Prepared pictures on the CPU → raw image embeddings (projected, not normalised) in fp32, on any device."""
        ...

    def encode_text(self, texts: list[str]) -> TextFeatures:
        """Text features in fp32, on any device."""
        ...

    def identity(self) -> Any:
        """Which encoder this is: `identity().to_config()` gives JSON values. `store_building.FREE` lists what may differ."""
        ...


class EmbedSettings(Config):
    """What decides, besides source and encoder, which bytes a store holds. The store records it."""

    dtype: Literal["fp16", "bf16"] = "fp16"
    """How features are stored."""
    batch_size: int = Field(default=256, gt=0)
    """Pictures, or captions, that are encoded together. The last batch of a part is padded to this size."""
    threads: int = Field(default=1, gt=0)
    """Threads of a process. They decode pictures, and compute if the device is a CPU."""
    device: str = "cpu"
    """Kind of device that computes."""
    shard_size: int = Field(default=10_000, gt=0)
    """Most captions in a part of a shard. One part is in memory at a time."""
    subjects: bool = False
    """Whether the subjects of the source are embedded."""
    edges: bool = False
    """Whether the edges of each picture are embedded too; only with subjects."""

    def recorded(self) -> dict[str, Any]:
        """As JSON values; without `subjects` and `edges` where they are off, so that such a store is as those of older versions."""
        values = self.model_dump(mode="json")
        return {name: value for name, value in values.items() if value or name not in ("subjects", "edges")}


@contextmanager
def reproducible(threads: int, device: str) -> Iterator[None]:
    """Fix the number of threads and, on a GPU, the algorithms and the precision, so that equal inputs give equal bytes."""
    with ExitStack() as stack:
        stack.callback(torch.set_num_threads, torch.get_num_threads())
        torch.set_num_threads(threads)
        if device == "cuda":
            flags = torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)
            stack.enter_context(flags)
        yield


@dataclass(frozen=True)
class EncodedCaptions:
    """M captions in the order in which they were given, in the store's precision.

    Not a `PackedText`, because captions with a fault must be left out before the others are joined.
    """

    states: "list[Int16[np.ndarray, '_ W']]"
    """The token states of each caption as 16-bit patterns, since numpy knows no bf16."""
    pooled: Float[Tensor, "M D"] | None
    faults: list[str | None]
    """Why a caption's features must not be stored, or None."""


def joined(
    captions: "Sequence[Int16[np.ndarray, '_ W']]", dtype: torch.dtype
) -> tuple[Float[Tensor, "N W"], Int[Tensor, "M_plus_1"]]:
    """(token states of all captions in one copy, where each caption begins in them)."""
    offsets = np.cumsum([0, *map(len, captions)])
    return torch.from_numpy(np.concatenate(captions)).view(dtype), torch.from_numpy(offsets)


def fault_codes(x: Float[Tensor, "B *rest"], dtype: torch.dtype) -> Int[Tensor, "B"]:
    """For each row, which of `FAULTS` it would have if it were stored as `dtype`. `x` is in fp32."""

    def all_finite(values: Tensor) -> Tensor:
        return torch.isfinite(values).flatten(1).all(1)

    return torch.where(all_finite(x), torch.where(all_finite(x.to(dtype)), 0, 2), 1)


def encode_captions(encode: Encode, texts: list[str], dtype: torch.dtype, batch_size: int) -> EncodedCaptions:
    """Encode at least one caption.

    Captions of similar length go together, always `batch_size` of them: there is hardly any padding, and there are few shapes.
    """
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
            fault = fault_codes(features.states.masked_fill(~features.mask[..., None], 0), dtype)
            if isinstance(features, TextFeatures):
                fault = torch.where(fault == 0, fault_codes(features.pooled, dtype), fault)
                pooled.append(features.pooled[:real].to(dtype).cpu())
            codes.append(fault[:real].cpu())
            packed = features.states[:real][features.mask[:real]].to(dtype).cpu().view(torch.int16).numpy()
            states += np.split(packed, features.mask[:real].sum(1).cumsum(0)[:-1].cpu().numpy())
    back = torch.tensor(order).argsort()
    return EncodedCaptions(
        [states[i] for i in back.tolist()],
        torch.cat(pooled)[back] if pooled else None,
        [FAULTS[code] for code in torch.cat(codes)[back].tolist()],
    )
