"""The residual λ prior: an estimate in closed form from text and subjects, plus a correction that λ-ECLIPSE's network learns.

A λ-ECLIPSE prior must learn to bind a subject to the words around it, and avoids what no training image showed. CLIP's space is nearly
additive: the mean of the images, moved along the text embedding and along the embeddings of the subjects, has both. This prior begins as that
and learns what differs from it. (Not from the λ-ECLIPSE paper; docs/results has the comparison.)

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

from syzygy.core import artifacts
from syzygy.core.contracts import TextFeatures
from syzygy.core.errors import UserError
from syzygy.core.packed_attention import PackedText
from syzygy.data.references import References
from syzygy.prior.eclipse import compared, made_or_loaded
from syzygy.prior.embedding_pairs import SUMMED, Pairs
from syzygy.prior.lambda_eclipse import LambdaEclipsePrior, LambdaEclipsePriorConfig
from syzygy.prior.lambda_training import LambdaEclipseObjective, LambdaEclipseTaskConfig
from syzygy.prior.prior_folders import LAMBDA_RESIDUAL, Layout
from syzygy.prior.prior_network import PriorBatch

ALONE, WITH_SUBJECT = 0, 1
"""Rows of the estimate's parameters: captions without a subject, and with one or more."""


class LambdaResidualPriorConfig(LambdaEclipsePriorConfig):
    """The `config.json` of a residual λ prior: the sizes of its network, which is that of a λ-ECLIPSE prior, and what it emphasises."""

    subject_emphasis: float = Field(default=0.1, ge=0, allow_inf_nan=False)
    """How much of s − s̄ is added to what training predicts. Higher values show more of the subject and less of the other words."""
    distance: float = Field(default=1.3, gt=0, allow_inf_nan=False)
    """Distance of predictions from the mean of image embeddings, relative to that of images (in training, 1)."""


class LambdaResidualPrior(LambdaEclipsePrior):
    """Text features, subjects and a control → raw CLIP image embedding in one forward pass: an estimate + a learned correction.

    The estimate is ȳ + a (t − t̄) + b (s − s̄): the mean image embedding, moved along the normalised text embedding t and the mean s of the
    prompt's subjects. Means, and a and b by least squares, are measured on the training pairs (`set_estimate`), apart for captions without
    subjects, where b is 0.

    The network and its inputs are those of `LambdaEclipsePrior`; its last layer starts at zero. The sum is moved to the distance from the
    mean that images have: what minimises a squared error is nearer to the mean than they are, and decoders read less from it. Predictions,
    but not the loss, also emphasise subjects, and are a little farther from the mean (`LambdaResidualPriorConfig`).
    """

    layout: ClassVar[Layout] = LAMBDA_RESIDUAL
    config_class: ClassVar[type[LambdaEclipsePriorConfig]] = LambdaResidualPriorConfig
    config: LambdaResidualPriorConfig
    image_mean: Float[Tensor, "2 D"]
    """ȳ, of the images of captions without subjects, and with."""
    text_mean: Float[Tensor, "2 D"]
    """t̄, of the same captions."""
    text_weight: Float[Tensor, "2"]
    """a."""
    subject_mean: Float[Tensor, "D"]
    """s̄."""
    subject_weight: Float[Tensor, ""]
    """b."""

    def __init__(self, config: LambdaResidualPriorConfig) -> None:
        super().__init__(config)
        nn.init.zeros_(self.proj_to_clip_embeddings.weight)
        nn.init.zeros_(self.proj_to_clip_embeddings.bias)
        D = config.embedding_dim
        for name, shape in {
            "image_mean": (2, D),
            "text_mean": (2, D),
            "text_weight": (2,),
            "subject_mean": (D,),
        }.items():
            self.register_buffer(name, torch.full(shape, float("nan")))
        self.register_buffer("subject_weight", torch.tensor(float("nan")))

    def set_estimate(self, pairs: Pairs) -> None:
        """Measure means and weights on all training pairs, block by block in float64.

        Raises:
            UserError: no caption has a subject.
        """
        self.load_state_dict(_measured(pairs), strict=False)

    def emphasise(self, subject: float, distance: float) -> None:
        """Set what predictions have besides that which is trained: `subject_emphasis` and `distance` of the configuration."""
        self.config = self.config.model_copy(update={"subject_emphasis": subject, "distance": distance})
        self._settings |= {"subject_emphasis": subject, "distance": distance}

    def fingerprint(self) -> str:
        """Sixteen hex digits over all weights, and what predictions emphasise."""
        settings = {"subject_emphasis": self.config.subject_emphasis, "distance": self.config.distance}
        tensors = {name: torch.tensor(value) for name, value in settings.items()}
        return artifacts.fingerprint({**self.state_dict(), **tensors})

    @property
    def has_estimate(self) -> bool:
        """Whether means and weights were measured."""
        return all(bool(torch.isfinite(buffer).all()) for buffer in self.buffers())

    def estimate(self, pooled: Float[Tensor, "B D"], references: References) -> Float[Tensor, "B D"]:
        """What the sum is without a correction, in fp32.

        Raises:
            UserError: it was never measured.
        """
        if not self.has_estimate:
            raise UserError(
                "this residual λ prior has no estimate to add its correction to. Call set_estimate(pairs), or load weights."
            )
        group = references.has_subject.long().to(pooled.device)
        text = F.normalize(pooled.float(), dim=-1) - self.text_mean.float()[group]
        found = self.image_mean.float()[group] + self.text_weight.float()[group, None] * text
        return found + self.subject_weight.float() * self._subjects(references)

    def _subjects(self, references: References) -> Float[Tensor, "B D"]:
        """s − s̄ of each caption; zeros where there is no subject."""
        found = references.mean_subjects().float() - self.subject_mean.float()
        return found * references.has_subject.to(found)[:, None]

    def correction(self, text: PackedText, noise: Float[Tensor, "B D"], references: References) -> Float[Tensor, "B D"]:
        """What the network adds."""
        return super().forward(text, noise, references)

    def spread(self, embeddings: Float[Tensor, "B D"], distance: float = 1.0) -> Float[Tensor, "B D"]:
        """Moved along the line from the mean image embedding, to the root mean square distance that images have from it, or a multiple."""
        mean = self.clip_mean.float()
        return mean + distance * self.clip_std.float().norm() * F.normalize(embeddings.float() - mean, dim=-1)

    def forward(self, text: PackedText, noise: Float[Tensor, "B D"], references: References) -> Float[Tensor, "B D"]:
        """As `LambdaEclipsePrior.forward`."""
        found = self.estimate(text.pooled, references) + self.correction(text, noise, references)
        found = found + self.config.subject_emphasis * self._subjects(references)
        return self.spread(found, self.config.distance).to(noise.dtype)

    def save_pretrained(
        self,
        folder: str | Path,
        provenance: dict[str, Any] | None = None,
        dtype: torch.dtype | None = None,
        *,
        variant: str | None = None,
    ) -> None:
        """As `PriorNetwork.save_pretrained`, in the layout of residual λ priors.

        Raises:
            UserError: as there; the estimate was never measured.
        """
        if not self.has_estimate:
            raise UserError(
                "this residual λ prior has no estimate to add its correction to. Call set_estimate(pairs) before saving."
            )
        super().save_pretrained(folder, provenance, dtype, variant=variant)


class LambdaResidualTaskConfig(LambdaEclipseTaskConfig):
    """The training step of a residual λ prior: the loss of the whole prediction, and a penalty on the correction."""

    lambda_contrastive: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """λ, the weight of the contrastive loss relative to the mean squared error. λ-ECLIPSE has 0.2; the text that it contrasts with does not
    name the subject, so that it takes from the subject what it gives to the words (docs/LOG.md)."""
    subject_emphasis: float = Field(default=0.1, ge=0, allow_inf_nan=False)
    """How much of the subject is added to what training predicts: more of it, and less of the other words. The loss does not have it."""
    distance: float = Field(default=1.3, gt=0, allow_inf_nan=False)
    """Distance of predictions from the mean of the training images, relative to that of these images. In the loss it is 1."""
    penalty: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    """Weight of the mean square of the correction, relative to the mean squared error. Higher values keep predictions nearer to the
    estimate."""

    def objective(
        self,
        sizes: Mapping[str, Any],
        logit_scale: float,
        unconditional: Callable[[], TextFeatures],
        device: torch.device,
        init: str | Path | None,
    ) -> "LambdaResidualObjective":
        """A prior of these sizes with its loss. It is untrained, or the residual λ prior `init`.

        Raises:
            UserError: `init` is not found, is no residual λ prior, or has other sizes.
        """
        prior = made_or_loaded(LambdaResidualPrior, sizes, init)
        prior.emphasise(self.subject_emphasis, self.distance)
        return LambdaResidualObjective(prior.to(device), self, logit_scale=logit_scale)


class LambdaResidualObjective(LambdaEclipseObjective):
    """Projection and contrast of the whole prediction (ECLIPSE, eq. 5), and the penalty on its correction."""

    prior: LambdaResidualPrior
    config: LambdaResidualTaskConfig

    def __init__(self, prior: LambdaResidualPrior, config: LambdaResidualTaskConfig, *, logit_scale: float) -> None:
        super().__init__(prior, config, logit_scale=logit_scale)

    def prepare(self, data: Pairs) -> None:
        """The prior keeps statistics and estimate of the training pairs; one that is trained further keeps the estimate that it has."""
        self.check(data)
        if not self.prior.has_estimate:
            self.prior.set_statistics(data.statistics)
            self.prior.set_estimate(data)

    def losses(self, batch: PriorBatch) -> dict[str, Tensor]:
        """`loss` and its parts `projection`, `contrastive` and `correction`, the mean square of the correction."""
        references = self.controlled(batch)
        correction = self.prior.correction(batch.text, batch.noise, references).float()
        predicted = self.prior.spread(self.prior.estimate(batch.text.pooled, references) + correction)
        found = compared(predicted, batch, self.config.lambda_contrastive, self.logit_scale)
        size = correction.square().mean()
        return found | {"loss": found["loss"] + self.config.penalty * size, "correction": size}


class _Sums:
    """Sums over pairs, from which means and the least squares of centred vectors follow; float64."""

    def __init__(self, width: int) -> None:
        self.number = 0
        self.total = torch.zeros(3, width, dtype=torch.float64)
        self.products = torch.zeros(3, 3, dtype=torch.float64)

    def add(self, rows: Float[Tensor, "3 b D"]) -> None:
        """Texts, subjects and images of b pairs."""
        self.number += rows.shape[1]
        self.total += rows.sum(1)
        self.products += torch.einsum("ibd,jbd->ij", rows, rows)

    @property
    def means(self) -> Float[Tensor, "3 D"]:
        return self.total / self.number

    def weights(self, read: list[int]) -> Float[Tensor, "n"]:
        """Of these of text (0) and subject (1), by least squares of the images (2); 0 where one does not vary."""
        centred = self.products - self.number * self.means @ self.means.T
        return torch.linalg.pinv(centred[read][:, read], rtol=1e-9, hermitian=True) @ centred[read, 2]


def _measured(pairs: Pairs) -> dict[str, Tensor]:
    """Means and weights by their names; captions without subjects are measured on all where there are none."""
    groups, everything = (_Sums(pairs.width), _Sums(pairs.width)), _Sums(pairs.width)
    for index in torch.arange(len(pairs)).split(SUMMED):
        references = pairs.references(index)
        assert references is not None, "data without subjects are refused before"
        text, image = F.normalize(pairs.pooled(index).double(), dim=-1), pairs.images(index).double()
        rows = torch.stack([text, references.to("cpu", torch.float64).mean_subjects(), image])
        everything.add(rows)
        for group, chosen in ((ALONE, ~references.has_subject), (WITH_SUBJECT, references.has_subject)):
            groups[group].add(rows[:, chosen])
    if not groups[WITH_SUBJECT].number:
        raise UserError(
            "no caption to train on has a subject (those of validation images do not count): give `syzygy embed --subjects` captions that "
            "have some."
        )
    alone, subject = groups[ALONE] if groups[ALONE].number else everything, groups[WITH_SUBJECT]
    a, b = subject.weights([0, 1])
    found = {
        "text_mean": torch.stack([alone.means[0], subject.means[0]]),
        "image_mean": torch.stack([alone.means[2], subject.means[2]]),
        "text_weight": torch.stack([alone.weights([0])[0], a]),
        "subject_mean": subject.means[1],
        "subject_weight": b,
    }
    return {name: value.float() for name, value in found.items()}
