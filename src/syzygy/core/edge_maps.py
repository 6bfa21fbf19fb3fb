"""Canny's edges of pictures, whose CLIP embedding controls a λ-ECLIPSE prior (arXiv 2402.05195).

Shapes: H × W pixels.
"""

from typing import Any

import numpy as np
from jaxtyping import Bool, UInt8

from syzygy.core.errors import UserError, install

LOW, HIGH = 100, 200
"""OpenCV's thresholds of Canny in the authors' code."""
THICK = 0.01
"""In an edge map, at most this share of the white pixels has white neighbours on all sides."""


def edges_of(levels: UInt8[np.ndarray, "H W 3"]) -> UInt8[np.ndarray, "H W 3"]:
    """The edges of a picture, white on black, as in the authors' code.

    A picture that is an edge map already, of pure white lines (at most two pixels wide) on pure black, is returned as it is.

    Raises:
        UserError: OpenCV is missing.
    """
    return levels if _is_edge_map(levels) else _canny(levels)


def check_opencv(what: str, remedy: str) -> Any:
    """The module `cv2`.

    Args:
        what: what needs it, for the error.
        remedy: a sentence on what to do without it.

    Raises:
        UserError: it is not installed.
    """
    try:
        import cv2
    except ImportError:
        raise UserError(
            f"computing the edges of {what} needs OpenCV: {install('edges')} (or install opencv-python-headless). {remedy}"
        ) from None
    return cv2


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
    remedy = "Without it, give a picture of the edges themselves, white lines on black."
    cv2 = check_opencv("a layout picture", remedy)
    edges = cv2.Canny(np.ascontiguousarray(levels), LOW, HIGH)
    return np.repeat(np.asarray(edges, np.uint8)[:, :, None], 3, axis=2)
