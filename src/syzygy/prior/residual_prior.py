"""The residual prior: text identity, shifted to the mean of the images, plus a correction that ECLIPSE's network learns.

An ECLIPSE prior that never sees some compositions learns to avoid them, while the shifted text embedding, which needs no training, has them.
This prior begins as that and learns only what differs from it. (Not from the ECLIPSE paper; docs/results has the comparison.)

Legend: B captions, D width of CLIP's joint space, in which text and image embeddings lie.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from syzygy.core.contracts import TextFeatures
from syzygy.core.errors import UserError
from syzygy.core.packed_attention import PackedText
from syzygy.prior.baselines import TextIdentity
from syzygy.prior.eclipse import (
    EclipseObjective,
    EclipsePrior,
    EclipsePriorConfig,
    EclipseTaskConfig,
    made_or_loaded,
)
from syzygy.prior.embedding_pairs import Pairs
from syzygy.prior.prior_folders import RESIDUAL, Layout
from syzygy.prior.prior_network import PriorBatch


class ResidualPriorConfig(EclipsePriorConfig):
    """The `config.json` of a residual prior: the sizes of its network, which is that of an ECLIPSE prior."""


class ResidualPrior(EclipsePrior):
    """Text features → raw CLIP image embedding in one forward pass: shifted text identity + a learned correction.

    The network and its inputs are those of `EclipsePrior`. Its last layer starts at zero, so that the untrained prior is the text identity.
    Norm and shift of the identity are measured on the training pairs (`set_identity`) and saved with the weights, in a layout of Syzygy's
    own, because the published one has no place for them.

    The pooled text embedding itself becomes a part of the prediction, so it must lie in the same space as the image embeddings, as CLIP's
    projected embeddings do in Karlo (D = 768) and Kandinsky 2.2 (D = 1280). Features of another width are refused.
    """

    layout: ClassVar[Layout] = RESIDUAL
    config_class: ClassVar[type[EclipsePriorConfig]] = ResidualPriorConfig
    identity_norm: Float[Tensor, ""]
    """Mean norm of image embeddings, to which text embeddings are rescaled."""
    identity_shift: Float[Tensor, "D"]
    """From the mean of the rescaled text embeddings to the mean of image embeddings."""

    def __init__(self, config: EclipsePriorConfig) -> None:
        super().__init__(config)
        nn.init.zeros_(self.proj_to_clip_embeddings.weight)
        nn.init.zeros_(self.proj_to_clip_embeddings.bias)
        self.register_buffer("identity_norm", torch.tensor(float("nan")))
        self.register_buffer("identity_shift", torch.full((config.embedding_dim,), float("nan")))

    def set_identity(self, identity: TextIdentity) -> None:
        """Keep a shifted text identity, fitted on the training pairs, with the weights.

        Raises:
            UserError: it is not shifted, or of another width.
        """
        if identity.shift is None or len(identity.shift) != len(self.identity_shift):
            width = "no shift" if identity.shift is None else f"a shift {len(identity.shift)} wide"
            raise UserError(
                f"the text identity has {width}; this prior needs one {len(self.identity_shift)} wide. "
                "Fit it with TextIdentity.fit(…, shifted=True) on embeddings of the prior's CLIP."
            )
        self.identity_norm.fill_(identity.mean_norm)
        self.identity_shift.copy_(identity.shift)

    @property
    def has_identity(self) -> bool:
        """Whether the text identity was measured."""
        return bool(torch.isfinite(self.identity_norm) & torch.isfinite(self.identity_shift).all())

    def identity(self, pooled: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        """What an untrained prior predicts: `TextIdentity`, in fp32."""
        return self.identity_norm.float() * F.normalize(pooled.float(), dim=-1) + self.identity_shift.float()

    def correction(self, text: PackedText, noise: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        """What the network adds."""
        return super().forward(text, noise)

    def forward(self, text: PackedText, noise: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        """As `EclipsePrior.forward`."""
        return (self.identity(text.pooled) + self.correction(text, noise)).to(noise.dtype)

    def save_pretrained(
        self,
        folder: str | Path,
        provenance: dict[str, Any] | None = None,
        dtype: torch.dtype | None = None,
        *,
        variant: str | None = None,
    ) -> None:
        """As `PriorNetwork.save_pretrained`, in the layout of residual priors.

        Raises:
            UserError: as there; the text identity was never set.
        """
        if not self.has_identity:
            raise UserError(
                "this residual prior has no text identity to add its correction to. Call set_identity(TextIdentity.fit(text_embeddings, "
                "image_embeddings, shifted=True)) before saving."
            )
        super().save_pretrained(folder, provenance, dtype, variant=variant)


class ResidualTaskConfig(EclipseTaskConfig):
    """The loss and the batch of a training step of a residual prior: ECLIPSE's loss, and a penalty on the correction."""

    lambda_contrastive: float = Field(default=0.8, ge=0, allow_inf_nan=False)
    """λ, the weight of the contrastive loss relative to the mean squared error (ECLIPSE: 0.2)."""
    penalty: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    """Weight of the mean square of the correction, relative to the mean squared error. Higher values keep predictions nearer to the text
    identity."""

    def objective(
        self,
        sizes: Mapping[str, Any],
        logit_scale: float,
        unconditional: Callable[[], TextFeatures],
        device: torch.device,
        init: str | Path | None,
    ) -> "ResidualObjective":
        """A prior of these sizes with its loss. It is untrained, or the residual prior `init`.

        Raises:
            UserError: `init` is not found, is no residual prior, or has other sizes.
        """
        prior = made_or_loaded(ResidualPrior, sizes, init)
        return ResidualObjective(prior.to(device), self, logit_scale=logit_scale)


class ResidualObjective(EclipseObjective):
    """Projection and contrast of the whole prediction (ECLIPSE, eq. 5), and the penalty on its correction."""

    prior: ResidualPrior
    config: ResidualTaskConfig

    def __init__(self, prior: ResidualPrior, config: ResidualTaskConfig, *, logit_scale: float) -> None:
        super().__init__(prior, config, logit_scale=logit_scale)

    def prepare(self, data: Pairs) -> None:
        """The prior keeps the statistics of the training images, and the text identity of the training pairs.

        A prior that is trained further keeps the text identity that it has: its correction belongs to that one.
        """
        super().prepare(data)
        if not self.prior.has_identity:
            self.prior.set_identity(TextIdentity.of_pairs(data))

    def losses(self, batch: PriorBatch) -> dict[str, Tensor]:
        """`loss` and its parts `projection`, `contrastive` and `correction`, the mean square of the correction."""
        correction = self.prior.correction(batch.text, batch.noise).float()
        found = self._compared(self.prior.identity(batch.text.pooled) + correction, batch)
        size = correction.square().mean()
        return found | {"loss": found["loss"] + self.config.penalty * size, "correction": size}
