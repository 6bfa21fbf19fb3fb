"""The edges of a layout picture, whose CLIP embedding controls a λ-ECLIPSE prior (arXiv 2402.05195).

Shapes: H × W pixels.
"""

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image
from torch import Tensor

from syzygy.core.errors import UserError, install
from syzygy.core.pixels import to_uint8
from syzygy.generation.mixing import Picture, checked, image_of

LOW, HIGH = 100, 200
"""OpenCV's thresholds of Canny in the authors' code."""
THICK = 0.01
"""In an edge map, at most this share of the white pixels has white neighbours on all sides."""


def edge_map(layout: Picture) -> Image.Image:
    """The edges of a picture, white on black, as RGB.

    A picture that is an edge map already, of pure white lines (at most two pixels wide) on pure black, is returned as it is. Otherwise Canny's
    edges are computed, as in the authors' code.

    Args:
        layout: a file, a Pillow image, or a tensor [3, H, W] in [0, 1].

    Raises:
        UserError: it cannot be read, has no edges, or OpenCV is missing.
    """
    levels = _levels(checked(layout)) if isinstance(layout, Tensor) else np.asarray(image_of(layout))
    edges = levels if _is_edge_map(levels) else _canny(levels)
    if not edges.any():
        raise UserError("the layout picture has no edges: give one that shows outlines, or leave the layout out.")
    return Image.fromarray(edges)


def _levels(picture: Float[Tensor, "3 H W"]) -> UInt8[np.ndarray, "H W 3"]:
    return to_uint8(picture[None])[0].permute(1, 2, 0).numpy()


def _is_edge_map(levels: UInt8[np.ndarray, "H W 3"]) -> bool:
    white = (levels == 255).all(-1)
    if not (white | (levels == 0).all(-1)).all():
        return False
    return int(_surrounded(white).sum()) <= THICK * int(white.sum())


def _surrounded(white: Bool[np.ndarray, "H W"]) -> Bool[np.ndarray, "H W"]:
    """Which pixels are white with all eight neighbours; beyond the picture's border it is white."""
    padded = np.pad(white, 1, constant_values=True)
    height, width = white.shape
    inside = np.ones_like(white)
    for down in range(3):
        for right in range(3):
            inside &= padded[down : down + height, right : right + width]
    return inside


def _canny(levels: UInt8[np.ndarray, "H W 3"]) -> UInt8[np.ndarray, "H W 3"]:
    try:
        import cv2
    except ImportError:
        raise UserError(
            f"computing the edges of a layout picture needs OpenCV: {install('edges')} (or install opencv-python-headless). Without it, "
            "give a picture of the edges themselves, white lines on black."
        ) from None
    edges = cv2.Canny(np.ascontiguousarray(levels), LOW, HIGH)
    return np.repeat(np.asarray(edges, np.uint8)[:, :, None], 3, axis=2)
