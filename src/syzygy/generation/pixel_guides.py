"""The pictures of a request that a decoder reads pixel by pixel, as tensors of the images' size.

Shapes: H × W pixels of the images.
"""

from pathlib import Path

from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from syzygy.core.arguments import shown
from syzygy.core.capabilities import check_pixels
from syzygy.core.contracts import ImageDecoder
from syzygy.core.errors import UserError
from syzygy.core.image_reading import as_mask, open_file
from syzygy.core.spatial_guides import PixelGuide
from syzygy.generation.image_files import to_tensor
from syzygy.generation.mixing import Picture, checked, image_of
from syzygy.generation.request import GenerationRequest

REPAINTED = 0.5
"""The brightness from which a mask counts as white, as in diffusers."""


def pixel_guide(decoder: ImageDecoder, request: GenerationRequest) -> PixelGuide:
    """Image, mask and depth map of a request.

    Raises:
        UserError: the decoder does not take them; one cannot be read, or is a tensor of another shape or range; the mask is black.
    """
    given = {name: one for name in ("image", "mask", "depth") if (one := getattr(request, name)) is not None}
    check_pixels(decoder, [*given], request.sampling.strength)
    if not given:
        return PixelGuide()
    size = request.sampling.size or decoder.fixed_size or decoder.defaults.size
    assert size is not None, "a decoder that takes pictures has a size of its own"
    return PixelGuide(**{name: (fitted_mask if name == "mask" else fitted)(one, size) for name, one in given.items()})


def fitted(picture: Picture, size: tuple[int, int]) -> Float[Tensor, "3 H W"]:
    """A picture in [0, 1], resized to height and width as in diffusers (bicubic).

    Raises:
        UserError: it cannot be read, or is a tensor of another shape or range.
    """
    if isinstance(picture, Tensor):
        found = checked(picture).float()
        if found.shape[1:] == size:
            return found
        return F.interpolate(found[None], size, mode="bicubic", antialias=True)[0].clamp(0, 1)
    height, width = size
    return to_tensor(image_of(picture).resize((width, height), Image.Resampling.BICUBIC, reducing_gap=1))


def fitted_mask(mask: object, size: tuple[int, int]) -> Float[Tensor, "H W"]:
    """A mask of ones and zeros, resized to height and width.

    Raises:
        UserError: it cannot be read, is a tensor of another shape or range, or is nowhere white.
    """
    if isinstance(mask, Tensor):
        if mask.ndim != 2 or not mask.is_floating_point() or not ((mask >= 0) & (mask <= 1)).all():
            raise UserError("the mask must be a tensor [height, width] of numbers from 0 to 1.")
        grey = mask.float()
    elif isinstance(mask, (str, Path, Image.Image)):
        grey = as_mask(mask if isinstance(mask, Image.Image) else open_file(Path(mask)))
    else:
        raise UserError(f"a mask is a file's name, a Pillow image or a tensor [height, width], not {shown(mask)}.")
    found = F.interpolate(grey[None, None], size, mode="bilinear", antialias=True)[0, 0] >= REPAINTED
    if not found.any():
        raise UserError("the mask is nowhere white: make it white where the image should be repainted.")
    return found.float()
