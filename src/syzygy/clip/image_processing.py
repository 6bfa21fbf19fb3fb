"""What a CLIP's own image processor does to an image, with Pillow and numpy alone.

transformers' `CLIPImageProcessorPil` gives the same bits (a test compares them), but is not used here. It takes 1.4 to 2 times as long
for an image (3.4 against 4.8 ms at 640 × 480, one core), because it rescales and normalises in floating point where a table of 256
values is enough, and preparing images is what bounds embedding on a GPU. It also ignores the EXIF orientation and clips 16-bit
images, and it does not say where it crops, which Stable Diffusion XL's training needs.

Shapes: S side of the prepared image, H × W pixels.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from syzygy.core.errors import UserError
from syzygy.core.image_reading import as_rgb

KINDS = ("CLIPImageProcessor", "CLIPImageProcessorFast", "CLIPImageProcessorPil", "CLIPFeatureExtractor")
"""transformers' names, over the years, for one and the same preparation."""
DEFAULTS: Mapping[str, Any] = {
    "do_resize": True,
    "do_center_crop": True,
    "crop_size": 224,
    "resample": 3,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
}
"""The values of transformers' class for settings that a published file lacks (files of 2022 have neither rescaling nor its factor)."""
FOREIGN = ("do_pad", "use_square_size", "default_to_square")
"""Settings of other families; no published CLIP sets them."""
LONGEST_ASPECT = 100
"""An image that is longer than this many times its short side is refused: enlarged to the tower's size it could fill the memory."""


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """Resize, centre crop, rescale and normalise an image as transformers' `CLIPImageProcessorPil` does, bit for bit."""

    resize: int | tuple[int, int] | None
    """The shortest side after resizing, keeping the aspect; or (height, width), ignoring it; or None: not resized."""
    crop: int | None
    """Side of the square that is cropped from the middle; beyond the image's edges it is black. None: not cropped."""
    resample: int
    """Pillow's number of the filter (`Image.Resampling`); 3 is bicubic."""
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    scale: float = 1 / 255
    """Grey levels are multiplied by this before `mean` is subtracted."""

    def __post_init__(self) -> None:
        if self.crop is None and not (isinstance(self.resize, tuple) and self.resize[0] == self.resize[1]):
            raise UserError(f"images resized to {self.resize} and not cropped would not all be one square.")

    @property
    def side(self) -> int:
        """S."""
        if self.crop is not None:
            return self.crop
        assert isinstance(self.resize, tuple)
        return self.resize[0]

    def prepare(self, image: Image.Image) -> Float[Tensor, "3 S S"]:
        """An image of any mode and size → normalised pixels on the CPU, ready for the image tower.

        `core.image_reading.as_rgb` reads it: upright, on white, 16 bits scaled to 8.

        Raises:
            UserError: a side is more than 100 times the other, or `as_rgb` refuses the image.
        """
        levels = self.squared(image)
        table = _table(self.scale, self.mean, self.std)
        pixels = np.empty((3, *levels.shape[:2]), np.float32)
        for channel in range(3):
            np.take(table[channel], levels[..., channel], out=pixels[channel])
        return torch.from_numpy(pixels)

    def squared(self, image: Image.Image) -> UInt8[np.ndarray, "S S 3"]:
        """The geometry alone: grey levels of the square that the tower will see.

        Raises:
            UserError: a side is more than 100 times the other.
        """
        image = as_rgb(image)
        if self.resize is not None:
            image = image.resize(self._size(image.width, image.height), Image.Resampling(self.resample))
        if self.crop is not None:
            top, left = self._corner(image.width, image.height)
            image = image.crop((left, top, left + self.crop, top + self.crop))
        return np.array(image)

    def corner(self, width: int, height: int) -> tuple[int, int]:
        """(top, left) of the square within the resized image, for an image of these sides before that; negative beyond its edges."""
        return self._corner(*((width, height) if self.resize is None else self._size(width, height)))

    def _corner(self, width: int, height: int) -> tuple[int, int]:
        return (0, 0) if self.crop is None else ((height - self.crop) // 2, (width - self.crop) // 2)

    def _size(self, width: int, height: int) -> tuple[int, int]:
        """(width, height) after resizing."""
        if isinstance(self.resize, tuple):
            return self.resize[1], self.resize[0]
        assert self.resize is not None
        short, long = sorted((width, height))
        if long > LONGEST_ASPECT * short:
            raise UserError(
                f"an image of {width} × {height} pixels is too long: at most {LONGEST_ASPECT} times its short side."
            )
        longer = int(self.resize * long / short)
        return (self.resize, longer) if width <= height else (longer, self.resize)

    def to_config(self) -> dict[str, Any]:
        """As `preprocessor_config.json` says it; `from_config` reads the same back."""
        resize: dict[str, Any] = {"do_resize": self.resize is not None}
        if isinstance(self.resize, tuple):
            resize["size"] = {"height": self.resize[0], "width": self.resize[1]}
        elif self.resize is not None:
            resize["size"] = {"shortest_edge": self.resize}
        crop: dict[str, Any] = {"do_center_crop": self.crop is not None}
        if self.crop is not None:
            crop["crop_size"] = {"height": self.crop, "width": self.crop}
        return {
            "image_processor_type": KINDS[0],
            **resize,
            "resample": self.resample,
            **crop,
            "do_rescale": True,
            "rescale_factor": self.scale,
            "do_normalize": True,
            "image_mean": list(self.mean),
            "image_std": list(self.std),
        }

    @staticmethod
    def from_config(config: Mapping[str, Any], where: Path) -> "Preparation":
        """Read a published `preprocessor_config.json`, with sizes as numbers (2021) or as mappings.

        Raises:
            UserError: it is another family's, lacks a value, or asks for what no CLIP does.
        """
        given = {key: value for key, value in config.items() if value is not None}
        kind = given.get("image_processor_type", given.get("feature_extractor_type", KINDS[0]))
        if kind not in KINDS:
            raise UserError(f"{where} is for {kind}; a CLIP's image processor is one of {', '.join(KINDS)}.")
        foreign = [key for key in FOREIGN if given.get(key)]
        if foreign:
            raise UserError(f"{where} sets {', '.join(foreign)}, which is not supported. Allowed: false or absent.")
        values = {**DEFAULTS, **given}
        needed = ["size"] * bool(values["do_resize"]) + ["image_mean", "image_std"] * bool(values["do_normalize"])
        lacking = [key for key in needed if key not in values]
        if lacking:
            raise UserError(f"{where} lacks {', '.join(lacking)}: it is not a complete CLIP. Copy the published file.")
        try:
            return Preparation(
                resize=_edges(values["size"]) if values["do_resize"] else None,
                crop=_square(values["crop_size"]) if values["do_center_crop"] else None,
                resample=Image.Resampling(values["resample"]).value,
                mean=_three(values["image_mean"]) if values["do_normalize"] else (0.0, 0.0, 0.0),
                std=_three(values["image_std"]) if values["do_normalize"] else (1.0, 1.0, 1.0),
                scale=float(values["rescale_factor"]) if values["do_rescale"] else 1.0,
            )
        except (TypeError, ValueError) as error:
            raise UserError(f"{where} cannot be used: {error}") from None


@lru_cache(maxsize=8)
def _table(
    scale: float, mean: tuple[float, float, float], std: tuple[float, float, float]
) -> Float[np.ndarray, "3 256"]:
    """Each grey level's pixel value; in transformers' precisions, which decide the last bit."""
    rescaled = (np.arange(256).astype(np.float64) * scale).astype(np.float32)
    return (rescaled - np.array(mean, np.float32)[:, None]) / np.array(std, np.float32)[:, None]


def _edges(size: Any) -> int | tuple[int, int]:
    """The shortest side, or (height, width)."""
    if isinstance(size, Mapping):
        size = {key: value for key, value in size.items() if value is not None}
        if size.keys() == {"shortest_edge"}:
            return _positive(size["shortest_edge"])
        if size.keys() == {"height", "width"}:
            return _positive(size["height"]), _positive(size["width"])
    elif isinstance(size, list) and len(size) == 2:
        return _positive(size[0]), _positive(size[1])
    elif isinstance(size, int):
        return _positive(size)
    raise ValueError(f"size is {size}; allowed are a number, shortest_edge, or height and width.")


def _square(size: Any) -> int:
    edges = _edges(size)
    if isinstance(size, Mapping) and "shortest_edge" in size:
        raise ValueError(f"crop_size is {size}; allowed are a number, or height and width.")
    if isinstance(edges, tuple) and edges[0] != edges[1]:
        raise ValueError(f"it crops {edges[0]} × {edges[1]} pixels; only squares are supported.")
    return edges[0] if isinstance(edges, tuple) else edges


def _positive(value: Any) -> int:
    if not isinstance(value, int) or value < 1:
        raise ValueError(f"a size is {value!r}, not a positive whole number.")
    return value


def _three(values: Any) -> tuple[float, float, float]:
    red, green, blue = (float(value) for value in values)
    return red, green, blue
