"""Whether a decoder can read the pictures of a guide: one check for all decoders."""

from collections.abc import Sequence

from syzygy.core.contracts import ImageDecoder
from syzygy.core.errors import UserError

MODELS = {
    "image": "starter, kandinsky-2.2, kandinsky-2.2-controlnet-depth",
    "mask": "starter, kandinsky-2.2-inpaint",
    "depth": "kandinsky-2.2-controlnet-depth",
}
"""Models that can start from an image, repaint where a mask is, or follow a depth map."""
CANNOT = {"image": "cannot start from an image", "mask": "cannot inpaint", "depth": "cannot read a depth map"}


def check_pixels(decoder: ImageDecoder, given: Sequence[str], strength: float | None) -> None:
    """Check that the decoder takes the pictures that are provided, and that they have an effect.

    Args:
        given: some of "image", "mask" and "depth".

    Raises:
        UserError: names what has no place, and models that have one.
    """
    for name in reversed(given):
        if not getattr(decoder, f"takes_{name}"):
            raise UserError(
                f"this decoder {CANNOT[name]}: leave the {name} out, or choose another model. Models that can: {MODELS[name]}."
            )
    if "image" not in given and ("mask" in given or strength is not None):
        what = "a mask" if "mask" in given else "strength"
        raise UserError(f"{what} has no effect without an image: give an image, or leave it out.")
