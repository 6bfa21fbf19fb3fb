"""The linear map from text to image embeddings, in closed form (ridge regression): a control that every trained prior must beat.

It reads the pooled text embedding alone, needs no steps, and is fitted in one pass over the pairs. Legend: B captions, n pairs, D width of
CLIP's joint space.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from syzygy.core import artifacts
from syzygy.core.artifacts import CONFIG_FILE, load_strictly
from syzygy.core.config import Config, parse
from syzygy.core.contracts import TextFeatures
from syzygy.core.errors import UserError
from syzygy.prior.embedding_pairs import Pairs, blocks_of
from syzygy.prior.prior_folders import LINEAR, Layout, find_prior, read_prior, write_prior
from syzygy.prior.prior_network import PriorBatch, check_request

RIDGE = 1e-3
"""Regularisation of the linear map where none is given."""


class LinearPriorConfig(Config):
    """The `config.json` of a linear map."""

    embedding_dim: PositiveInt
    """Width of CLIP's joint space: 768 for ViT-L/14 (Karlo), 1280 for ViT-bigG/14 (Kandinsky 2.2)."""


class LinearRun(Config):
    """All settings of a linear map, except the store that it may be fitted on."""

    embedding_dim: int | None = Field(default=None, gt=0)
    """Required width of the data's embeddings, that of CLIP's joint space (Karlo 768, Kandinsky 2.2 1280); null accepts any."""
    scenes: int | None = Field(default=20_000, gt=0)
    """Number of pairs of the embedded world to fit on; null for fitting on a store."""
    validation_images: int = Field(default=512, gt=0)
    """Number of images for validation, with their captions; the fit omits them."""
    ridge: float = Field(default=RIDGE, gt=0, allow_inf_nan=False)
    """Regularisation relative to the mean variance of a text embedding's dimensions. Fewer pairs need more."""
    seed: int = 0
    """Seed of the embedded world's scenes."""


class LinearPrior(nn.Module):
    """Pooled text embedding → raw CLIP image embedding by one matrix; noise has no influence."""

    layout: ClassVar[Layout] = LINEAR
    weight: Float[Tensor, "D D"]
    """Row: a dimension of the image embedding; column: of the text embedding."""
    bias: Float[Tensor, "D"]

    def __init__(self, config: LinearPriorConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("weight", torch.full((config.embedding_dim, config.embedding_dim), float("nan")))
        self.register_buffer("bias", torch.full((config.embedding_dim,), float("nan")))

    @staticmethod
    def fit(pairs: Pairs, ridge: float = RIDGE) -> "LinearPrior":
        """The W and b that minimise Σ ‖y − W x − b‖² + n · ridge · v · ‖W‖² over all pairs, with v the mean variance of x's dimensions.

        Only sums over the pairs are kept (2 D² numbers in float64), so a store may be larger than the memory.

        Raises:
            UserError: fewer than two pairs, or text embeddings that are all equal.
        """
        D, number = pairs.width, len(pairs)
        if number < 2:
            raise UserError(f"a linear map needs at least 2 pairs, got {number}.")
        zeros = torch.zeros(D, dtype=torch.float64)
        x_sum, y_sum, xx_DD, xy_DD = zeros, zeros.clone(), zeros.new_zeros(D, D), zeros.new_zeros(D, D)
        for x_bD, y_bD in blocks_of(pairs):
            x_sum, y_sum = x_sum + x_bD.sum(0), y_sum + y_bD.sum(0)
            xx_DD.addmm_(x_bD.T, x_bD)
            xy_DD.addmm_(x_bD.T, y_bD)
        x_mean, y_mean = x_sum / number, y_sum / number
        xx_DD -= number * torch.outer(x_mean, x_mean)
        xy_DD -= number * torch.outer(x_mean, y_mean)
        variance = xx_DD.trace() / (number * D)
        if not variance > 0:
            raise UserError("all text embeddings are equal: a linear map needs different captions.")
        xx_DD.diagonal().add_(number * ridge * variance)
        weight = torch.linalg.solve(xx_DD, xy_DD).T
        prior = LinearPrior(LinearPriorConfig(embedding_dim=D))
        prior.weight.copy_(weight)
        prior.bias.copy_(y_mean - weight @ x_mean)
        return prior

    def forward(self, pooled: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        """The map itself."""
        return F.linear(pooled, self.weight, self.bias)

    @torch.no_grad()
    def predict(
        self,
        features: TextFeatures,
        *,
        noise: Float[Tensor, "B D"] | None = None,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "B D"]:
        """Raw CLIP image embeddings, on the prior's device and in its dtype. Noise is checked and not used.

        Raises:
            UserError: as `EclipsePrior.predict`.
        """
        check_request(features, self.config.embedding_dim, noise, generator)
        return self(features.pooled.to(self.weight))

    @property
    def device(self) -> torch.device:
        return self.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """What the map computes in."""
        return self.weight.dtype

    def fingerprint(self) -> str:
        """Sixteen hex digits over all weights."""
        return artifacts.fingerprint(self.state_dict())

    def save_pretrained(
        self,
        folder: str | Path,
        provenance: dict[str, Any] | None = None,
        dtype: torch.dtype | None = None,
        *,
        variant: str | None = None,
    ) -> None:
        """Write the layout of linear maps atomically; arguments as of `PriorNetwork.save_pretrained`.

        Raises:
            UserError: the folder cannot be written.
        """
        write_prior(Path(folder), LINEAR, self.config.model_dump(), self.state_dict(), provenance, dtype, variant)

    @staticmethod
    def from_pretrained(
        source: str | Path, *, local_files_only: bool = True, variant: str | None = None
    ) -> "LinearPrior":
        """Read a linear map strictly, into fp32; arguments as of `EclipsePrior.from_pretrained`.

        Raises:
            UserError: it is not found; missing, truncated or mismatched files; a prior of another kind.
        """
        folder = find_prior(source, local_files_only=local_files_only, variant=variant)
        values, tensors = read_prior(folder, LINEAR, variant)
        prior = LinearPrior(parse(LinearPriorConfig, values, str(folder / CONFIG_FILE)))
        load_strictly(prior, tensors, folder)
        return prior


@dataclass(frozen=True)
class LinearMeasured:
    """A linear map as the validation of priors measures it."""

    prior: LinearPrior

    def losses(self, batch: PriorBatch) -> dict[str, Tensor]:
        """`loss`, the mean squared error to the true image embedding."""
        return {"loss": F.mse_loss(self.predict(batch).float(), batch.image.float())}

    def predict(self, batch: PriorBatch) -> Float[Tensor, "B D"]:
        """Raw image embeddings."""
        return self.prior(batch.text.pooled)
