"""The edges of a layout picture, whose CLIP embedding controls a λ-ECLIPSE prior (arXiv 2402.05195).

Shapes: H × W pixels.
"""

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from syzygy.core.edge_maps import edges_of
from syzygy.core.errors import UserError
from syzygy.core.pixels import to_uint8
from syzygy.generation.mixing import Picture, checked, image_of


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
    edges = edges_of(levels)
    if not edges.any():
        raise UserError("the layout picture has no edges: give one that shows outlines, or leave the layout out.")
    return Image.fromarray(edges)


def _levels(picture: Float[Tensor, "3 H W"]) -> UInt8[np.ndarray, "H W 3"]:
    return to_uint8(picture[None])[0].permute(1, 2, 0).numpy()
