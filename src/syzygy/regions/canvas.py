"""Regions from a canvas, an image in which each phrase has a colour, or from one mask for each phrase (paint-with-words)."""

import base64
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, ImageDraw
from torch import Tensor

from syzygy.core.contracts import Region
from syzygy.core.errors import UserError
from syzygy.core.image_reading import as_layers, as_mask, open_file
from syzygy.regions.canvas_labels import OPAQUE, labels
from syzygy.regions.phrases import blurred

COLOURS = ("#e4572e", "#2e86de", "#2a9d57", "#8e5bd0", "#c98a00", "#d1478f")
"""Colours of drawn regions, in turn."""
LETTERING: dict[str, Any] = {"anchor": "mm", "align": "center", "spacing": 1}


class Spec(NamedTuple):
    """A region as it was given: `#ff0000=a red star` or `mask.png=a red star`, perhaps followed by `@weight`."""

    key: str
    phrase: str
    weight: float


def parse(text: str) -> Spec:
    """Parse one region.

    Raises:
        UserError: it has no `=`, nothing on one side of it, or a weight that is not a number.
    """
    key, equals, rest = text.partition("=")
    if not (equals and key.strip() and rest.strip()):
        raise UserError(f"region {text!r} must be COLOUR=PHRASE or MASK=PHRASE, such as '#ff0000=a red star'.")
    phrase, at, weight = rest.rpartition("@")
    if not at:
        return Spec(key.strip(), rest.strip(), 1.0)
    try:
        return Spec(key.strip(), phrase.strip(), float(weight))
    except ValueError:
        raise UserError(f"region {text!r}: the weight {weight!r} after @ is not a number.") from None


def regions_of(specs: Sequence[str], canvas: Path | None, *, blur: float = 0.0) -> list[Region]:
    """Regions as given on a command line.

    Args:
        specs: one for each phrase: its colour on the canvas, or the file of its mask (bright and opaque is here; see `data.decode`).
        canvas: the image in which colours stand for phrases (`canvas_labels` has the rules).
        blur: softness of the borders, as a fraction of the longer side.

    Raises:
        UserError: a colour that is nowhere on the canvas, or on it without a phrase; colours without a canvas, or a canvas without
            colours; masks of different sizes; an empty mask; a file that cannot be read.
    """
    read = [parse(spec) for spec in specs]
    colours = {spec: _colour(spec.key) for spec in read if spec.key.startswith("#")}
    if canvas is None and colours:
        raise UserError(
            f"region {next(iter(colours)).key} is a colour, but there is no canvas: give the image that contains it."
        )
    if canvas is not None and not colours:
        raise UserError(
            f"no region names a colour on {canvas}: add a region for each colour, such as '#ff0000=a red star'."
        )
    masks: dict[Spec, Tensor] = {} if canvas is None else _masks(canvas, colours)
    masks |= {spec: as_mask(open_file(Path(spec.key)), spec.key) for spec in read if spec not in colours}
    for spec, mask in masks.items():
        if not mask.any():
            where = (
                f"the colour {spec.key} of {spec.phrase!r} is nowhere on {canvas}"
                if spec in colours
                else f"{spec.key} is empty"
            )
            raise UserError(f"{where}: mark where {spec.phrase!r} should be{'' if spec in colours else ', in white'}.")
    sizes = {tuple(mask.shape) for mask in masks.values()}
    if len(sizes) > 1:
        raise UserError(f"masks must have one size, got {' and '.join(f'{w} × {h}' for h, w in sorted(sizes))}.")
    return [blurred(Region(spec.phrase, masks[spec], spec.weight), blur) for spec in read]


def recorded(region: Region) -> dict[str, Any]:
    """A region as JSON values with its mask as a PNG in base64, as in the record of an image."""
    data = io.BytesIO()
    Image.fromarray((region.mask * 255).round().to(torch.uint8).numpy()).save(data, "PNG", optimize=True)
    mask = base64.b64encode(data.getvalue()).decode("ascii")
    return {"phrase": region.phrase, "weight": region.weight, "mask": mask}


def _colour(text: str) -> tuple[int, int, int]:
    if not re.fullmatch(r"#[0-9a-fA-F]{6}", text):
        raise UserError(f"colour {text!r} must be #rrggbb in hexadecimal digits, such as #ff0000.")
    return int(text[1:3], 16), int(text[3:5], 16), int(text[5:7], 16)


def _masks(canvas: Path, colours: dict[Spec, tuple[int, int, int]]) -> dict[Spec, Float[Tensor, "H W"]]:
    """The pixels of each region's colour."""
    picture, opacity = as_layers(open_file(canvas), str(canvas))
    found = labels(np.array(picture), (opacity >= OPAQUE).numpy(), list(colours.values()), str(canvas))
    return {spec: torch.from_numpy((found == number).astype(np.float32)) for number, spec in enumerate(colours)}


def drawn(regions: Sequence[Region], side: int = 192) -> Image.Image:
    """An image of the regions, each in a colour and with its phrase."""
    picture = Image.new("RGB", (side, side), "white")
    draw, places = ImageDraw.Draw(picture), []
    for number, region in enumerate(regions):
        mask = Image.fromarray((region.mask.numpy() * 255).astype("uint8")).resize(picture.size)
        picture.paste(COLOURS[number % len(COLOURS)], mask=mask)
        places.append(mask.getbbox() or (0, 0, *picture.size))
    for region, place in zip(regions, places, strict=True):
        words, middle = region.phrase.replace(" ", "\n"), ((place[0] + place[2]) / 2, (place[1] + place[3]) / 2)
        size = next((size for size in range(side // 9, side // 20, -1) if _fits(draw, words, size, place)), side // 20)
        draw.multiline_text(middle, words, fill="white", font_size=size, **LETTERING)
    return picture


def _fits(draw: ImageDraw.ImageDraw, words: str, size: int, place: tuple[int, int, int, int]) -> bool:
    """Whether words of this size fit into a place, even a round one."""
    left, top, right, bottom = draw.multiline_textbbox((0, 0), words, font_size=size, **LETTERING)
    return right - left <= 0.85 * (place[2] - place[0]) and bottom - top <= 0.85 * (place[3] - place[1])
