"""The last step of every decoder: from what its network gives to images, with a check that all values are finite.

Shapes: N rows of a batch, H × W pixels.
"""

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from syzygy.core.errors import NonFiniteError


def check_finite(values: Float[Tensor, "N *rest"], what: str = "images") -> None:
    """Refuse rows that hold NaN or infinity.

    Raises:
        NonFiniteError: it names the rows by their position, from 1; a caller that knows more names them again (`named`).
    """
    finite = torch.isfinite(values).flatten(1).all(1)
    if not finite.all():
        rows = [row for row, whole in enumerate(finite.tolist()) if not whole]
        raise NonFiniteError(what, rows, [f"number {row + 1} of {len(finite)}" for row in rows])


def to_unit(decoded: Float[Tensor, "N 3 H W"]) -> Float[Tensor, "N 3 H W"]:
    """What a decoder's last network gives, around [-1, 1], as images in [0, 1].

    The check comes before clamping, which would turn infinity into white.

    Raises:
        NonFiniteError: an image holds NaN or infinity.
    """
    check_finite(decoded)
    return (decoded / 2 + 0.5).clamp(0, 1)


def to_uint8(images: Float[Tensor, "N 3 H W"]) -> UInt8[Tensor, "N 3 H W"]:
    """Images in [0, 1] as 8-bit values, on the CPU.

    Raises:
        NonFiniteError: an image holds NaN or infinity. A decoder of someone else may not have checked.
    """
    check_finite(images)
    return (images * 255).round().to("cpu", torch.uint8)
