"""What published decoders check alike before they paint."""

from collections.abc import Collection

import torch
from jaxtyping import Float
from torch import Tensor

from syzygy.core import arguments
from syzygy.core.contracts import Guide, Sampling
from syzygy.core.errors import UserError

CLIPS = {
    768: "CLIP ViT-L/14, such as openai/clip-vit-large-patch14",
    1024: "CLIP ViT-H/14, such as laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
    1280: "CLIP ViT-bigG/14, such as that of kandinsky-community/kandinsky-2-2-prior",
}
"""The CLIPs whose embeddings are so wide."""


def which_clip(width: int) -> str:
    """The width, and the CLIP that makes embeddings of it where that is known."""
    return f"{width} wide ({CLIPS[width]})" if width in CLIPS else f"{width} wide"


def settings(
    positive: Guide,
    sampling: Sampling,
    own: Sampling,
    negative: Guide | None,
    options: Collection[str] = (),
    *,
    paints: bool = False,
) -> tuple[int, float]:
    """Steps and guidance scale, the decoder's `own` where nothing is said.

    Args:
        paints: whether the decoder can be painted with words.

    Raises:
        UserError: regions for one that cannot, or a strength without regions; an unknown option, a scale below 1 or not finite,
            something to move away from without guidance.
    """
    if not paints and (sampling.region_strength is not None or positive.regions is not None):
        raise UserError("this decoder cannot paint with words: leave regions and their strength out.")
    if sampling.region_strength is not None and positive.regions is None:
        raise UserError("painting has a strength, but nothing is painted: give regions, or leave the strength out.")
    if sampling.style_guidance is not None:
        raise UserError("this decoder has no guidance for a style apart from the text: leave it out.")
    if unknown := sorted(set(sampling.options) - set(options)):
        allowed = f"its own are {', '.join(sorted(options))}" if options else "it has none"
        raise UserError(f"this decoder has no option {', '.join(unknown)}; {allowed}.")
    steps = own.steps if sampling.steps is None else sampling.steps
    scale = own.guidance_scale if sampling.guidance_scale is None else sampling.guidance_scale
    steps, scale = arguments.whole(steps, "the number of steps"), arguments.number(scale, "guidance scale")
    if scale < 1:
        raise UserError(f"guidance scale must be a finite number of at least 1, got {scale} (1 is off).")
    if scale == 1 and negative is not None:
        raise UserError(
            "a negative prompt has no effect at guidance scale 1: raise the scale, or leave the prompt out."
        )
    return steps, scale


def size_of(sampling: Sampling, own: Sampling, multiple: int) -> tuple[int, int]:
    """Height and width in pixels.

    Raises:
        UserError: not positive multiples of `multiple`.
    """
    size = own.size if sampling.size is None else sampling.size
    assert size is not None
    if any(side < multiple or side % multiple for side in size):
        raise UserError(
            f"a size of {size[0]} × {size[1]} pixels cannot be painted; both must be multiples of {multiple}."
        )
    return size


def texts_of(guide: Guide | None, pictures: int) -> list[str]:
    """The text of each picture; the empty one, where none is told.

    Raises:
        UserError: their number is neither one nor that of the pictures.
    """
    texts = [""] if guide is None or guide.texts is None else list(guide.texts)
    if len(texts) not in (1, pictures):
        raise UserError(f"{len(texts)} texts for {pictures} pictures: give one for all, or one each.")
    return texts * pictures if len(texts) == 1 else texts


def embeddings_of(guide: Guide, pictures: int, width: int, device: torch.device) -> Float[Tensor, "N D"]:
    """The image embeddings of a guide, a row a picture, on the device in fp32.

    Raises:
        UserError: there are none, their number is neither one nor that of the pictures, or another CLIP made them.
    """
    found = guide.embeddings
    if found is None:
        raise UserError("this decoder needs image embeddings to paint: leave image among the conditions.")
    if found.shape[1] != width:
        raise UserError(
            f"this decoder reads image embeddings {which_clip(width)}; these are {which_clip(found.shape[1])}."
        )
    if len(found) not in (1, pictures):
        raise UserError(f"{len(found)} embeddings for {pictures} pictures: give one for all, or one each.")
    return found.to(device, torch.float32).expand(pictures, -1)
