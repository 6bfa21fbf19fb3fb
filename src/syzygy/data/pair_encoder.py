"""What embedding asks of an encoder, and the settings that decide which bytes come out.

Legend: B batch, S side of a prepared picture, D width of the joint space.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from PIL import Image
from pydantic import Field
from torch import Tensor

from syzygy.core.config import Config
from syzygy.core.contracts import TextFeatures

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}
"""How features may be stored."""


@runtime_checkable
class Preparing(Protocol):
    """How an encoder wants its pictures."""

    def prepare(self, image: Image.Image) -> Float[Tensor, "3 S S"]:
        """A picture of any mode and size → what `encode_pixels` takes. Called in several threads at once.

        Raises:
            UserError: the picture cannot be used.
        """
        ...


@runtime_checkable
class Identity(Protocol):
    """Which encoder made some embeddings."""

    def to_config(self) -> dict[str, Any]:
        """As JSON values. What stands under `source`, `revision` and `versions` may differ between equal encoders."""
        ...


@runtime_checkable
class PairEncoder(Protocol):
    """A CLIP, as `hub.clip.Clip` is one."""

    preparation: Any
    """`Preparing`."""

    @property
    def width(self) -> int:
        """D."""
        ...

    @property
    def positions(self) -> int:
        """Most tokens of a text; what is longer is cut."""
        ...

    def encode_pixels(self, pixels: Float[Tensor, "B 3 S S"]) -> Float[Tensor, "B D"]:
        """Prepared pictures on the CPU → raw image embeddings (projected, not normalised) in fp32, on any device."""
        ...

    def encode_text(self, texts: list[str]) -> TextFeatures:
        """In fp32, on any device."""
        ...

    def identity(self) -> Identity: ...


class EmbedSettings(Config):
    """What decides, beside source and encoder, which bytes a store holds; the store records it."""

    dtype: Literal["fp16", "bf16"] = "fp16"
    """How features are stored."""
    batch_size: int = Field(default=256, gt=0)
    """Pictures, and captions, that go through the encoder together; the last batch of a part is filled up."""
    threads: int = Field(default=1, gt=0)
    """Threads of a process: they decode pictures, and compute where the device is a CPU."""
    device: str = "cpu"
    """Kind of device that computes."""
    shard_size: int = Field(default=10_000, gt=0)
    """Most captions in a part of a shard: so much is in memory at once."""


@contextmanager
def pinned(threads: int, device: str) -> Iterator[None]:
    """Within: so many threads; on a GPU, one way to compute, in the precision that was asked for."""
    with ExitStack() as stack:
        stack.callback(torch.set_num_threads, torch.get_num_threads())
        torch.set_num_threads(threads)
        if device == "cuda":
            flags = torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)
            stack.enter_context(flags)
        yield
