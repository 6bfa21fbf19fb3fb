"""Are predicted embeddings where true ones are? Distances between distributions of embeddings, and between pairs."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from syzygy.errors import UserError


def frechet_distance(first: Float[Tensor, "N D"], second: Float[Tensor, "M D"]) -> float:
    """Squared Fréchet distance of the Gaussians fitted to two sets: ‖μ₁ − μ₂‖² + tr(Σ₁ + Σ₂ − 2(Σ₁Σ₂)^½) (Heusel et al. 2017).

    It shrinks as sets grow, so compare sets of equal size only, of many more rows than columns.

    Raises:
        UserError: fewer rows than columns + 1, or NaN.
    """
    for x in (first, second):
        if len(x) <= x.shape[1]:
            raise UserError(f"{len(x)} embeddings of width {x.shape[1]} have no covariance of full rank: take more.")
        if not torch.isfinite(x).all():
            raise UserError("embeddings hold NaN or infinity.")
    a, b = first.double(), second.double()
    cov_a, cov_b = torch.cov(a.T), torch.cov(b.T)
    # tr (ΣaΣb)^½ = Σ √λ(Σa^½ Σb Σa^½): symmetric, so its eigenvalues are real and can be trusted.
    values, vectors = torch.linalg.eigh(cov_a)
    root = (vectors * values.clamp_min(0).sqrt()) @ vectors.T
    cross = torch.linalg.eigvalsh(root @ cov_b @ root).clamp_min(0).sqrt().sum()
    return float((a.mean(0) - b.mean(0)).square().sum() + cov_a.trace() + cov_b.trace() - 2 * cross)


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
    """How often image i is the nearest (by cosine) to prediction i, of all images; in [0, 1]."""
    nearest = (F.normalize(predicted.double(), dim=1) @ F.normalize(images.double(), dim=1).T).argmax(1)
    return float((nearest == torch.arange(len(predicted), device=nearest.device)).double().mean())
