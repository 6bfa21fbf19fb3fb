"""Checks of what a call asks of a decoder, before anything is computed: the same for all published decoders."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from syzygy.core import arguments
from syzygy.core.capabilities import check_pixels
from syzygy.core.contracts import Guide, Sampling
from syzygy.core.errors import UserError
from syzygy.pretrained.families import PretrainedDecoder

CLIPS = {
    768: "CLIP ViT-L/14, such as openai/clip-vit-large-patch14",
    1024: "CLIP ViT-H/14, such as laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
    1280: "CLIP ViT-bigG/14, such as that of kandinsky-community/kandinsky-2-2-prior",
}
"""CLIPs by the width of their embeddings."""


def which_clip(width: int) -> str:
    """The width, and the CLIP whose embeddings have it where one is known."""
    return f"{width} wide ({CLIPS[width]})" if width in CLIPS else f"{width} wide"


@dataclass(frozen=True, kw_only=True)
class DecoderRequest:
    """What a call asks of a decoder, checked and completed with the decoder's defaults."""

    positive: Guide
    negative: Guide | None
    generators: Sequence[torch.Generator]
    """One for each of the N images."""
    sampling: Sampling
    steps: int
    guidance_scale: float
    """At least 1; 1 is off."""
    options: Mapping[str, Any]
    """A value for each option that has a default, or that the call sets."""

    @property
    def number(self) -> int:
        """N."""
        return len(self.generators)

    @property
    def guided(self) -> bool:
        """Whether the network is evaluated for the negative guide as well; its rows come first in a batch."""
        return self.guidance_scale != 1

    @property
    def negative_rows(self) -> int:
        """Rows of a batch before those of the positive guide."""
        return self.number if self.guided else 0

    def size(self, default: tuple[int, int] | None, multiple: int) -> tuple[int, int]:
        """Height and width in pixels.

        Raises:
            UserError: they are not positive multiples of `multiple`.
        """
        size = default if self.sampling.size is None else self.sampling.size
        assert size is not None
        if any(side < multiple or side % multiple for side in size):
            raise UserError(
                f"images of {size[0]} × {size[1]} pixels are not possible; both sides must be multiples of {multiple}."
            )
        return size

    def texts(self, guide: Guide | None) -> list[str]:
        """The guide's text for each image; the empty one where the guide has none.

        Raises:
            UserError: their number is neither one nor that of the images.
        """
        texts = [""] if guide is None or guide.texts is None else list(guide.texts)
        if len(texts) not in (1, self.number):
            raise UserError(f"{len(texts)} texts for {self.number} images: give one for all, or one each.")
        return texts * self.number if len(texts) == 1 else texts

    def embeddings(self, guide: Guide, width: int, device: torch.device) -> Float[Tensor, "N D"]:
        """The guide's image embeddings, a row for each image, on the device in fp32.

        Raises:
            UserError: there are none, their number is neither one nor that of the images, or another CLIP made them.
        """
        found = guide.embeddings
        if found is None:
            raise UserError("this decoder needs image embeddings: leave image among the conditions.")
        if found.shape[1] != width:
            raise UserError(
                f"this decoder reads image embeddings {which_clip(width)}; these are {which_clip(found.shape[1])}."
            )
        if len(found) not in (1, self.number):
            raise UserError(f"{len(found)} embeddings for {self.number} images: give one for all, or one each.")
        return found.to(device, torch.float32).expand(self.number, -1)


def checked_request(
    decoder: PretrainedDecoder,
    positive: Guide,
    negative: Guide | None,
    generators: Sequence[torch.Generator],
    sampling: Sampling,
) -> DecoderRequest:
    """The request, completed with the decoder's defaults.

    Raises:
        UserError: the decoder has no such option or cannot do what is asked, or a setting is out of range or has no effect.
    """
    _check_capabilities(decoder, positive, sampling)
    check_pixels(decoder, positive.pixels.names, sampling.strength)
    options = decoder.options
    if unknown := sorted(set(sampling.options) - {option.name for option in options}):
        names = ", ".join(sorted(option.name for option in options))
        allowed = f"its own are {names}" if options else "it has none"
        raise UserError(f"this decoder has no option {', '.join(unknown)}; {allowed}.")
    values = {
        option.name: option.checked(sampling.options[option.name])
        for option in options
        if option.name in sampling.options
    }
    steps = decoder.defaults.steps if sampling.steps is None else sampling.steps
    scale = decoder.defaults.guidance_scale if sampling.guidance_scale is None else sampling.guidance_scale
    steps, scale = arguments.whole(steps, "the number of steps"), arguments.number(scale, "guidance scale")
    if scale < 1:
        raise UserError(f"guidance scale must be a finite number of at least 1, got {scale} (1 is off).")
    if scale == 1 and negative is not None:
        raise UserError(
            "a negative prompt has no effect at guidance scale 1: raise the scale, or leave the prompt out."
        )
    return DecoderRequest(
        positive=positive,
        negative=negative,
        generators=generators,
        sampling=sampling,
        steps=steps,
        guidance_scale=scale,
        options={**decoder.defaults.options, **values},
    )


def _check_capabilities(decoder: PretrainedDecoder, positive: Guide, sampling: Sampling) -> None:
    if not decoder.takes_regions and (sampling.region_strength is not None or positive.regions is not None):
        raise UserError("this decoder cannot take regions: leave them and their strength out.")
    if sampling.region_strength is not None and positive.regions is None:
        raise UserError("a region strength has no effect without regions: give regions, or leave the strength out.")
    if sampling.style_guidance is not None and not decoder.takes_style_guidance:
        raise UserError("this decoder has no guidance for a style apart from the text: leave it out.")
    if sampling.size is not None and (size := decoder.fixed_size) is not None:
        raise UserError(f"this decoder generates images of {size[0]} × {size[1]} pixels only: leave the size out.")
    if sampling.sampler is not None and not decoder.samplers:
        raise UserError("this decoder has no choice of samplers: leave the sampler out.")
