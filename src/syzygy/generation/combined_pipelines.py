"""Diffusers' pipelines of Kandinsky 2.2 from a prompt to an image, with a prior of ours in the place of the stock one.

This module imports diffusers.
"""

from diffusers.pipelines.kandinsky2_2.pipeline_kandinsky2_2 import KandinskyV22Pipeline
from diffusers.pipelines.kandinsky2_2.pipeline_kandinsky2_2_combined import (
    KandinskyV22CombinedPipeline,
    KandinskyV22Img2ImgCombinedPipeline,
    KandinskyV22InpaintCombinedPipeline,
)
from diffusers.pipelines.kandinsky2_2.pipeline_kandinsky2_2_img2img import KandinskyV22Img2ImgPipeline
from diffusers.pipelines.kandinsky2_2.pipeline_kandinsky2_2_inpainting import KandinskyV22InpaintPipeline
from diffusers.pipelines.pipeline_utils import DiffusionPipeline

from syzygy.core.errors import UserError

COMBINED = {
    KandinskyV22Pipeline: KandinskyV22CombinedPipeline,
    KandinskyV22Img2ImgPipeline: KandinskyV22Img2ImgCombinedPipeline,
    KandinskyV22InpaintPipeline: KandinskyV22InpaintCombinedPipeline,
}
"""Decoders' pipelines, and those that combine them with a prior."""


def combine(prior: DiffusionPipeline, decoder: DiffusionPipeline) -> DiffusionPipeline:
    """The combined pipeline of a decoder's kind, with the components of both and `prior` as its prior.

    Raises:
        UserError: the decoder is of no kind that can be combined.
    """
    kind = COMBINED.get(type(decoder))
    if kind is None:
        names = ", ".join(one.__name__ for one in COMBINED)
        raise UserError(f"a {type(decoder).__name__} cannot be combined with a prior. Give one of: {names}.")
    components = {f"prior_{name}": component for name, component in prior.components.items()}
    whole = kind(**decoder.components, **components)
    # It made a stock prior pipeline of these components, which would take steps.
    whole.prior_pipe, whole.decoder_pipe = prior, decoder
    return whole
