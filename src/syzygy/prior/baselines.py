"""Text identity, a baseline with the contract of a prior. (Projection-only is an `EclipsePrior` that is trained with λ = 0.)"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from syzygy.core.contracts import TextFeatures
from syzygy.core.errors import UserError
from syzygy.prior.embedding_pairs import Pairs, blocks_of
from syzygy.prior.embedding_statistics import EmbeddingStatistics
from syzygy.prior.prior_network import check_request


@dataclass(frozen=True)
class TextIdentity:
    """The pooled text embedding itself as the image embedding: a strong control on composition (arXiv 2511.20821).

    It is rescaled to `mean_norm`, the mean norm of image embeddings. `shift` then moves it across the modality gap
    (arXiv 2203.02053), so that the mean over the fitted texts is the mean image embedding.
    """

    mean_norm: float
    shift: Float[Tensor, "D"] | None = None

    @staticmethod
    def fit(
        text_embeddings: Float[Tensor, "M D"], image_embeddings: Float[Tensor, "N D"], *, shifted: bool = False
    ) -> "TextIdentity":
        """Measure norm and shift on raw embeddings of the training data; texts and images need not be paired."""
        statistics = EmbeddingStatistics.of(image_embeddings)
        unshifted = TextIdentity(statistics.mean_norm)
        if not shifted:
            return unshifted
        text_mean = EmbeddingStatistics.of(unshifted._rescaled(text_embeddings)).mean
        return TextIdentity(statistics.mean_norm, statistics.mean - text_mean)

    @staticmethod
    def of_pairs(pairs: Pairs) -> "TextIdentity":
        """As `fit`, shifted, on all pairs: an image counts once for each of its captions. A store is read block by block, in float64.

        Raises:
            UserError: embeddings of zeros only.
        """
        directions = images = torch.zeros(pairs.width, dtype=torch.float64)
        norms = 0.0
        for text, image in blocks_of(pairs):
            directions = directions + F.normalize(text, dim=1).sum(0)
            images = images + image.sum(0)
            norms += float(image.norm(dim=1).sum())
        number, mean_norm = len(pairs), norms / len(pairs)
        if not mean_norm > 0:
            raise UserError("all image embeddings are zeros: encode the images again.")
        return TextIdentity(mean_norm, ((images - mean_norm * directions) / number).float())

    def _rescaled(self, pooled: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        return self.mean_norm * F.normalize(pooled.float(), dim=-1)

    def predict(
        self,
        features: TextFeatures,
        *,
        noise: Float[Tensor, "B D"] | None = None,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "B D"]:
        """The rescaled (and shifted) pooled embeddings, in fp32. The result is deterministic: noise is checked and not used.

        Raises:
            UserError: as `EclipsePrior.predict`.
        """
        width = features.pooled.shape[-1] if self.shift is None else len(self.shift)
        check_request(features, width, noise, generator)
        rescaled = self._rescaled(features.pooled)
        return rescaled if self.shift is None else rescaled + self.shift.to(rescaled.device)
