"""Kandinsky's unconditional embedding: the image encoder's output for an all-zero normalised image, computed once and cached.

The image encoder has 1.8B parameters; it is never loaded again just for this one vector.
"""

import hashlib
import os
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from syzygy.clip.clip_loading import TextFirst
from syzygy.clip.clip_model import Clip
from syzygy.core import artifacts
from syzygy.core.errors import UserError
from syzygy.core.pixels import check_finite

FOLDER_VARIABLE = "SYZYGY_CACHE"
NAME = "embedding"


def cache_folder() -> Path:
    """Where expensive results are cached: `SYZYGY_CACHE`, or `syzygy` in the user's cache folder."""
    if own := os.environ.get(FOLDER_VARIABLE):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "syzygy"


@dataclass(frozen=True)
class ZeroImage:
    """Gives that embedding when it is called."""

    clip: Clip
    identity: str
    """Of the CLIP's files; with the precision, the key of what is kept."""

    def __call__(self) -> Float[Tensor, "1 D"]:
        """In fp32, on the CPU.

        Raises:
            UserError: it is not kept, and the image encoder is missing or broken.
            NonFiniteError: the image encoder computes NaN or infinity.
        """
        path = self.path
        if path.is_file():
            try:
                kept = artifacts.read_tensors(path).get(NAME)
            except UserError:
                kept = None  # half a file, or not ours: it is made again
            if kept is not None and kept.shape == (1, self.clip.width) and torch.isfinite(kept).all():
                return kept
        made = self._computed()
        check_finite(made, "image embeddings")  # half precision may overflow; then nothing is kept
        try:
            artifacts.write_tensors(path, {NAME: made})
        except UserError as error:
            warnings.warn(f"{error} (Without it the image encoder is loaded again next time.)", stacklevel=2)
        return made

    @property
    def path(self) -> Path:
        """Where it is kept."""
        key = hashlib.blake2b(f"{self.identity} {self.clip.dtype}".encode(), digest_size=16).hexdigest()
        return cache_folder() / "zero-image" / f"{key}.safetensors"

    def _computed(self) -> Float[Tensor, "1 D"]:
        towers = self.clip.model
        already = not isinstance(towers, TextFirst) or towers.has_images
        side = self.clip.image_size
        made = self.clip.encode_pixels(torch.zeros(1, 3, side, side)).cpu()
        if not already:
            towers.forget_images()
        return made
