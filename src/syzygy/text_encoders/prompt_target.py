"""The Stable Diffusion models that an adapter can speak to, by what their U-Nets read of texts."""

from pathlib import Path
from typing import Literal

from pydantic import PositiveInt, model_validator

from syzygy.core.config import Config
from syzygy.core.errors import UserError

Family = Literal["stable-diffusion-1", "stable-diffusion-2", "stable-diffusion-xl"]
"""Models of one family have copies of the same text encoders: 1.x CLIP ViT-L/14 after its final normalisation, 2.x OpenCLIP ViT-H/14 without
its last layer, XL the penultimate states of CLIP ViT-L/14 and OpenCLIP ViT-bigG/14 side by side."""


class PromptTarget(Config):
    """The kind of Stable Diffusion model that an adapter gives prompt embeddings to."""

    family: Family
    """Family of the model."""
    widths: tuple[PositiveInt, ...]
    """Widths of the text encoders' token states, which stand side by side: [768] for 1.x, [1024] for 2.x, [768, 1280] for XL."""
    pooled: PositiveInt | None = None
    """Width of the pooled text embedding, which only XL's U-Net reads (1280)."""

    @model_validator(mode="after")
    def _whole(self) -> "PromptTarget":
        is_xl = self.family == "stable-diffusion-xl"
        if len(self.widths) != 1 + is_xl or (self.pooled is not None) != is_xl:
            raise ValueError(
                f"{self.family} has {1 + is_xl} widths of states and {'a' if is_xl else 'no'} pooled embedding"
            )
        return self

    @property
    def states(self) -> int:
        """Width of the states that the U-Net reads."""
        return sum(self.widths)

    def __str__(self) -> str:
        """As errors name it."""
        pooled = "" if self.pooled is None else f" and a pooled embedding {self.pooled} wide"
        return f"{self.family} (token states {self.states} wide{pooled})"


def check_target(found: PromptTarget | int, wanted: PromptTarget | None, adapter: Path, model: str | Path) -> None:
    """Refuse an adapter that speaks to another kind of model.

    Args:
        found: what the adapter in the folder `adapter` speaks to; a number is the width of the CLIP whose prior reads its features.
        wanted: what `model` is; None is any Stable Diffusion.
    """
    if found == wanted or (wanted is None and not isinstance(found, int)):
        return
    what = f"priors that read CLIP's features {found} wide" if isinstance(found, int) else f"a {found}"
    needed = "a Stable Diffusion is needed here" if wanted is None else f"{model} is a {wanted}"
    raise UserError(
        f"the adapter in {adapter} was trained for {what}; {needed}. Give the adapter of such a model "
        "(syzygy train adapter --stage align --model)."
    )


def chunks_for(positions: int, encoder: int = 77) -> tuple[int, bool]:
    """How text encoders with `encoder` positions give `positions` states: the number of chunks of a text, and whether they are stitched.

    Stitched chunks (75 n + 2 states: 77, 152, 227) share one start token and one end (arXiv 2405.12914). Otherwise (77 n: 154, 231) each chunk
    keeps its own, as in most programs that read long prompts.

    Raises:
        UserError: neither.
    """
    room = encoder - 2
    if positions > 2 and (positions - 2) % room == 0:
        return (positions - 2) // room, True
    if positions > 0 and positions % encoder == 0:
        return positions // encoder, False
    raise UserError(
        f"adapter.queries={positions}: the text encoders read {encoder} tokens at a time. Set {encoder} (prompts as long as theirs), "
        f"{2 * encoder}, or {3 * room + 2} (three chunks, as in the paper); or another {encoder} n or {room} n + 2."
    )
