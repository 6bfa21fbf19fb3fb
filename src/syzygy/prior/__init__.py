"""From text features to a CLIP image embedding in one forward pass: ECLIPSE, other priors, training."""

from syzygy.prior.baselines import TextIdentity
from syzygy.prior.eclipse import (
    EclipseLoss,
    EclipsePrior,
    EclipsePriorConfig,
    contrastive_loss,
    eclipse_loss,
    projection_loss,
)
from syzygy.prior.embedding_statistics import EmbeddingStatistics
from syzygy.prior.lambda_eclipse import LambdaEclipsePrior, LambdaEclipsePriorConfig
from syzygy.prior.lambda_residual import LambdaResidualPrior, LambdaResidualPriorConfig
from syzygy.prior.linear_prior import LinearPrior
from syzygy.prior.residual_prior import ResidualPrior, ResidualPriorConfig

__all__ = [
    "EclipseLoss",
    "EclipsePrior",
    "EclipsePriorConfig",
    "EmbeddingStatistics",
    "LambdaEclipsePrior",
    "LambdaEclipsePriorConfig",
    "LambdaResidualPrior",
    "LambdaResidualPriorConfig",
    "LinearPrior",
    "ResidualPrior",
    "ResidualPriorConfig",
    "TextIdentity",
    "contrastive_loss",
    "eclipse_loss",
    "projection_loss",
]
