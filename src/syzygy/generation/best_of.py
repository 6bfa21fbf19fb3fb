"""Choose the best of several candidates for an image by its CLIP score."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from syzygy.core.contracts import ImageEncoder
from syzygy.core.errors import HALF_PRECISION, UserError
from syzygy.generation.image_files import to_tensor
from syzygy.generation.pipeline import PipelineOutput


def best(outputs: Sequence[PipelineOutput], scores: Float[Tensor, "K N"]) -> PipelineOutput:
    """Of K candidates for each of N images the one with the highest score.

    Raises:
        UserError: a score is not finite.
    """
    if not torch.isfinite(scores).all():
        raise UserError(
            f"the CLIP scores that choose the best of {len(outputs)} are not finite (NaN or infinity). {HALF_PRECISION}"
        )
    highest, kept = scores.max(0)
    chosen = [(outputs[candidate], row) for row, candidate in enumerate(kept.tolist())]
    return PipelineOutput(
        [output.images[row] for output, row in chosen],
        torch.stack([output.image_embeddings[row] for output, row in chosen]),
        [output.seeds[row] for output, row in chosen],
        highest,
    )


def clip_scores(
    images: Sequence[Image.Image], embeddings: Float[Tensor, "N D"], encoder: ImageEncoder
) -> Float[Tensor, "N"]:
    """Cosine of each image's own embedding with that of a text or a picture (Hessel et al. 2021, unscaled), on the CPU."""
    return pixel_scores(torch.stack([to_tensor(image) for image in images]), embeddings, encoder)


def pixel_scores(
    pixels: Float[Tensor, "N 3 H W"], embeddings: Float[Tensor, "N D"], encoder: ImageEncoder
) -> Float[Tensor, "N"]:
    """`clip_scores` of images in [0, 1]."""
    return torch.nn.functional.cosine_similarity(encoder.encode_image(pixels).cpu(), embeddings.cpu())
