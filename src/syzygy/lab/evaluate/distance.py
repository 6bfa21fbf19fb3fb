"""Distances of predicted from true embeddings, as pairs and as distributions."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from syzygy.prior.embedding_statistics import frechet_distance


def mean_cosine(first: Float[Tensor, "N D"], second: Float[Tensor, "N D"]) -> float:
    """Mean cosine of the pairs (row i with row i)."""
    return float(F.cosine_similarity(first.double(), second.double(), dim=1).mean())


def embedding_scores(predicted: Float[Tensor, "N D"], true: Float[Tensor, "N D"]) -> dict[str, float]:
    """`cosine`, `recall_at_1` and `frechet` of predicted against true embeddings."""
    return {
        "cosine": mean_cosine(predicted, true),
        "recall_at_1": recall_at_1(predicted, true),
        "frechet": frechet_distance(predicted, true),
    }


def recall_at_1(predicted: Float[Tensor, "N D"], images: Float[Tensor, "N D"]) -> float:
    """How often image i is the nearest of all images (by cosine) to prediction i; in [0, 1]."""
    nearest = (F.normalize(predicted.double(), dim=1) @ F.normalize(images.double(), dim=1).T).argmax(1)
    return float((nearest == torch.arange(len(predicted), device=nearest.device)).double().mean())
