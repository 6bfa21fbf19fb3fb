"""Pictures and masks from clients: few formats, limited pixels, no paths."""

import base64
import binascii
import io
from typing import Any

from jaxtyping import Float
from PIL import Image
from torch import Tensor

from syzygy.core.contracts import Region
from syzygy.core.errors import UserError
from syzygy.core.image_reading import as_layers, as_mask, as_rgb, loaded, quiet
from syzygy.generation.image_files import record_of
from syzygy.regions.phrases import blurred, places, resized
from syzygy.server.limits import Limits
from syzygy.server.problems import field_errors
from syzygy.server.schema import RegionMask

FORMATS = ("PNG", "JPEG", "WEBP")
"""Fewer than elsewhere in the package, because anyone who reaches the server chooses the files that its decoders read."""
MASK_SIDE = 256
"""Pixels of a mask's longer side. The attention maps that masks are resized to are smaller."""


def unpacked(text: str, name: str) -> bytes:
    """Bytes from base64, with or without the head of a data URL, in one line or in several (as `base64 FILE` writes them).

    Raises:
        UserError: it is not base64.
    """
    head, comma, rest = text.partition(",")
    if comma and head.startswith("data:") and head.endswith(";base64"):
        text = rest
    try:
        return base64.b64decode("".join(text.split()).encode("ascii"), validate=True)
    except (binascii.Error, UnicodeEncodeError, ValueError):
        raise UserError(f"{name} must be a picture's file in base64, or a data URL of it.") from None


def opened(data: bytes, name: str, limits: Limits) -> Image.Image:
    """Decode a client's picture into memory, in its own mode.

    Raises:
        UserError: it is broken, too large, or not in one of `FORMATS`.
    """
    with quiet():
        try:
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                pixels = image.width * image.height
        except Exception:  # `loaded` says what is wrong
            pixels = 0
        if pixels > limits.upload_pixels:
            raise UserError(
                f"{name} has {pixels:,} pixels; at most {limits.upload_pixels:,} are read. Make it smaller."
            )
        return loaded(data, name, FORMATS)


def picture(data: bytes, name: str, limits: Limits) -> Image.Image:
    """A client's picture as RGB, upright, on white. Raises as `opened` and `as_rgb`."""
    return as_rgb(opened(data, name, limits), name)


def recipe(data: bytes, name: str, limits: Limits) -> dict[str, Any]:
    """The record inside an uploaded picture, which is read as by `opened`.

    Raises:
        UserError: it has none.
    """
    return record_of(opened(data, name, limits), name)


def regions(prompt: str, given: list[RegionMask], blur: float, limits: Limits) -> tuple[Region, ...]:
    """The regions of a prompt.

    Raises:
        Problem: a phrase is not in the prompt, a mask is empty or no picture, masks have several sizes.
    """
    found: list[Region] = []
    sizes: set[tuple[int, int]] = set()
    for number, one in enumerate(given):
        with field_errors(f"regions[{number}].phrase"):
            check_phrase(prompt, one.phrase)
        name = f"regions[{number}].mask"
        with field_errors(name):
            mask = as_mask(opened(unpacked(one.mask, name), name, limits), name)
            found.append(drawn(one.phrase, mask, one.weight, blur))
        sizes.add((mask.shape[1], mask.shape[0]))
    if len(sizes) > 1:
        with field_errors("regions"):
            raise UserError(f"masks must have one size, got {' and '.join(f'{w} × {h}' for w, h in sorted(sizes))}.")
    return tuple(found)


def check_phrase(prompt: str, phrase: str) -> None:
    """Raises UserError if the phrase is empty or not in the prompt."""
    if not phrase.strip():
        raise UserError("a region needs a phrase: words of the prompt.")
    places(prompt, phrase)


def drawn(phrase: str, mask: Float[Tensor, "H W"], weight: float, blur: float) -> Region:
    """A region that a record can hold exactly: with a small, blurred mask of whole grey levels.

    Raises:
        UserError: the mask is empty.
    """
    soft = blurred(_fitted(Region(phrase, mask, weight)), blur)
    return Region(phrase, (soft.mask * 255).round() / 255, weight)


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Width and height of an uploaded mask after its orientation is applied, to compare with the picture's."""
    return as_rgb(image, "mask").size


def transparent(image: Image.Image) -> Float[Tensor, "H W"]:
    """A mask from 0 to 1 as in OpenAI's edits, where the transparent part is the region.

    Raises:
        UserError: no part of it is transparent.
    """
    here = 1 - as_layers(image, "mask")[1]
    if not here.any():
        raise UserError("no part of the mask is transparent: make it transparent where the picture should change.")
    return here


def cut_out(data: bytes, limits: Limits) -> bool:
    """Whether a picture has fully transparent parts. OpenAI's edits use them as the mask if none is sent."""
    image = opened(data, "image", limits)
    return image.has_transparency_data and image.convert("RGBA").getchannel("A").getextrema()[0] == 0


def _fitted(region: Region) -> Region:
    """The region with a mask of at most `MASK_SIDE` pixels a side."""
    height, width = region.mask.shape
    scale = MASK_SIDE / max(height, width)
    return region if scale >= 1 else resized(region, (max(round(height * scale), 1), max(round(width * scale), 1)))
