"""Statistics of CLIP embeddings, which are measured on data."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from syzygy.core.errors import UserError


@dataclass(frozen=True)
class EmbeddingStatistics:
    """Mean and standard deviation of each dimension, and the mean L2 norm, of raw CLIP embeddings.

    Raises:
        UserError: NaN or infinity anywhere, or a standard deviation or mean norm that is not positive.
    """

    mean: Float[Tensor, "D"]
    std: Float[Tensor, "D"]
    mean_norm: float

    def __post_init__(self) -> None:
        values = torch.cat([self.mean, self.std, self.mean.new_tensor([self.mean_norm])])
        if not torch.isfinite(values).all():
            raise UserError("embedding statistics hold NaN or infinity. Encode the images again.")
        constant = int((self.std <= 0).sum())
        if constant:
            raise UserError(
                f"{constant} of {len(self.std)} embedding dimensions have a standard deviation of 0; all must vary. "
                "Measure the statistics on more, and different, images."
            )
        if self.mean_norm <= 0:
            raise UserError(f"the mean norm of the embeddings must be positive, got {self.mean_norm}.")

    @staticmethod
    def of(embeddings: Float[Tensor, "N D"]) -> "EmbeddingStatistics":
        """Measured on N ≥ 2 embeddings, in fp32 (standard deviation with Bessel's correction)."""
        if len(embeddings) < 2:
            raise UserError(f"embedding statistics need at least 2 embeddings, got {len(embeddings)}.")
        embeddings = embeddings.float()
        std, mean = torch.std_mean(embeddings, dim=0)
        return EmbeddingStatistics(mean, std, embeddings.norm(dim=-1).mean().item())


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
