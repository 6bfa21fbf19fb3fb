"""Training of a λ-ECLIPSE prior: ECLIPSE's loss on captions whose subjects are image embeddings (arXiv 2402.05195, section 3).

The authors released no training code. What is ours: which share of the captions is trained with the edges of its image as the control.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from syzygy.core.contracts import TextFeatures
from syzygy.core.errors import UserError
from syzygy.data.references import References
from syzygy.prior.eclipse import ContrastiveTaskConfig, compared, made_or_loaded
from syzygy.prior.embedding_pairs import Pairs
from syzygy.prior.lambda_eclipse import LambdaEclipsePrior
from syzygy.prior.prior_network import PriorBatch


class LambdaEclipseTaskConfig(ContrastiveTaskConfig):
    """The training step of λ-ECLIPSE."""

    controlled: float = Field(default=0.5, ge=0, le=1)
    """Share of the captions that are trained with the edges of their image as the control; the others have that of an image of zeros, as
    prompts without a layout."""

    def objective(
        self,
        sizes: Mapping[str, Any],
        logit_scale: float,
        unconditional: Callable[[], TextFeatures],
        device: torch.device,
        init: str | Path | None,
    ) -> "LambdaEclipseObjective":
        """As of `EclipseTaskConfig`, with a λ-ECLIPSE prior."""
        prior = made_or_loaded(LambdaEclipsePrior, sizes, init)
        return LambdaEclipseObjective(prior.to(device), self, logit_scale=logit_scale)


class LambdaEclipseObjective:
    """Projection and contrast (ECLIPSE eq. 5) of predictions from texts with subjects, and a control."""

    reads_references = True
    """The task reads subjects and controls for it."""

    def __init__(self, prior: LambdaEclipsePrior, config: LambdaEclipseTaskConfig, *, logit_scale: float) -> None:
        """`logit_scale` is the frozen CLIP's (1/τ), used where the temperature is "clip"."""
        self.prior, self.config = prior, config
        self.logit_scale = config.scale(logit_scale)
        self._zero: Float[Tensor, "1 D"] | None = None

    def prepare(self, data: Pairs) -> None:
        """The prior keeps the statistics of the training images.

        Raises:
            UserError: as `check`.
        """
        self.check(data)
        self.prior.set_statistics(data.statistics)

    def check(self, data: Pairs) -> None:
        """Check that the data are for this task, and keep the embedding of their image of zeros.

        Raises:
            UserError: the data hold no subjects, or no edges where some captions are to be trained with them.
        """
        found = data.references(torch.arange(1))
        self._zero = data.zero_image
        if found is None or self._zero is None:
            raise UserError(
                "a λ-ECLIPSE prior is trained on captions with subjects, and these data have none. `syzygy embed --subjects` embeds them."
            )
        if self.config.controlled and found.control is None:
            raise UserError(
                f"task.controlled={self.config.controlled:g} trains on the edges of images, and these data have none: embed with --edges, or "
                "set task.controlled=0."
            )

    def losses(self, batch: PriorBatch) -> dict[str, Tensor]:
        """`loss` and its parts `projection` and `contrastive`."""
        return compared(self.predict(batch), batch, self.config.lambda_contrastive, self.logit_scale)

    def predict(self, batch: PriorBatch) -> Float[Tensor, "B D"]:
        """One pass, with the controls that are drawn for the batch."""
        return self.prior(batch.text, batch.noise, self.controlled(batch))

    def controlled(self, batch: PriorBatch) -> References:
        """The batch's subjects with its controls: edges in the drawn share of the captions, that of an image of zeros in the others."""
        assert batch.references is not None and self._zero is not None, "`prepare` has checked it"
        control = self._zero.to(batch.noise).expand(len(batch), -1)
        if batch.references.control is not None:
            drawn = (batch.uniform[:, :1] < self.config.controlled).to(batch.noise.device)
            control = torch.where(drawn, batch.references.control, control)
        return replace(batch.references, control=control)
