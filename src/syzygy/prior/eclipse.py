"""The ECLIPSE prior (arXiv 2312.04655): its network, which predicts in one pass, and its training losses (section 3.2).

Legend: B captions, N text tokens of all of them, M = N + 3 B all tokens, C inner width, D width of CLIP's joint space, G captions of a whole
training step.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from pydantic import Field, PositiveInt
from torch import Tensor

from syzygy.core.artifacts import CONFIG_FILE, load_strictly
from syzygy.core.config import Config, parse
from syzygy.core.contracts import TextFeatures
from syzygy.core.errors import UserError
from syzygy.core.packed_attention import PackedText
from syzygy.prior.embedding_pairs import Pairs
from syzygy.prior.lambda_eclipse import LambdaEclipsePrior
from syzygy.prior.prior_folders import find_prior, is_controlled, is_diffusion, read_prior
from syzygy.prior.prior_network import PriorBatch, PriorConfig, PriorNetwork


class EclipsePriorConfig(PriorConfig):
    """The published `config.json` of an ECLIPSE prior."""

    additional_embeddings: Literal[3] = 3
    """Tokens after the text: pooled text embedding, noise, learned output token."""


P = TypeVar("P", bound="EclipsePrior")
M = TypeVar("M", bound="EclipsePrior | LambdaEclipsePrior")


class EclipsePrior(PriorNetwork):
    """Text features → raw CLIP image embedding in one forward pass (ECLIPSE, section 3, and the authors' code).

    The sequence is: text states, pooled text embedding, a noise vector ε ~ N(0, I), a learned token whose output is the
    prediction; a learned position is added to each; attention is causal. Padding would have no influence at all, so none is
    computed, and the result is that of the published code with all its padding: text has the positions from 0, and the last
    three tokens keep `num_embeddings` … `num_embeddings + 2`.

    `clip_mean` and `clip_std` are not used here. They are published with the weights because stock diffusion pipelines apply them.
    """

    config_class: ClassVar[type[EclipsePriorConfig]] = EclipsePriorConfig

    def __init__(self, config: EclipsePriorConfig) -> None:
        super().__init__(config, config.additional_embeddings)
        self.config = config

    def forward(self, text: PackedText, noise: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        """The differentiable pass, for training: inputs are taken as they are, on the prior's device and in its dtype. See `predict`.

        Raises:
            UserError: more tokens than `num_embeddings`.
        """
        return self.one_pass(text, [self.embedding_proj(text.pooled), self.proj_in(noise)])

    @torch.no_grad()
    def predict(
        self,
        features: TextFeatures,
        *,
        noise: Float[Tensor, "B D"] | None = None,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "B D"]:
        """Raw CLIP image embeddings for these texts, on the prior's device and in its dtype, without gradient.

        Args:
            features: CLIP text states, mask and pooled embedding; padding may be anywhere and have any values.
            noise: the ε to use.
            generator: draws ε if there is no `noise`, on the generator's device; None means torch's global generator.

        Raises:
            UserError: both `noise` and `generator`; NaN or infinity; a wrong width; more tokens than `num_embeddings`.
        """
        return self(*self.inputs(features, noise, generator))

    @classmethod
    def from_pretrained(
        cls: type[P], source: str | Path, *, local_files_only: bool = True, variant: str | None = None
    ) -> P:
        """Read the class's own layout (ECLIPSE's: `config.json`, `diffusion_pytorch_model.safetensors`) strictly, into fp32.

        Args:
            source: the folder of a prior, of a finished training run or of a diffusers pipeline, or a hub id such as
                `ECLIPSE-Community/ECLIPSE_KandinskyV22_Prior`, with `@` and a revision to fix that.
            local_files_only: look for hub ids in the hub's cache only; else download what is missing.
            variant: prefer weights of this variant, "fp16" or "bf16"; by default full precision.

        Raises:
            UserError: it is not found; missing, truncated or mismatched files; a setting that the class does not have; a prior of another
                kind.
        """
        folder = find_prior(source, local_files_only=local_files_only, variant=variant)
        values, tensors = read_prior(folder, cls.layout, variant)
        if is_diffusion(tensors):
            raise UserError(
                f"{folder} holds a diffusion prior (it has a time embedding), which needs many steps. "
                "An ECLIPSE prior is needed: one forward pass, no time embedding."
            )
        if is_controlled(tensors):
            raise UserError(
                f"{folder} holds a λ-ECLIPSE prior (it has embedding_control), and an ECLIPSE prior is needed. "
                "LambdaEclipsePrior.from_pretrained reads it; `syzygy generate --prior` takes both."
            )
        prior = cls(parse(cls.config_class, values, str(folder / CONFIG_FILE)))
        load_strictly(prior, tensors, folder)
        return prior


@dataclass(frozen=True)
class EclipseLoss:
    """Equation 5 and its two parts, each a scalar with its gradient."""

    total: Float[Tensor, ""]
    projection: Float[Tensor, ""]
    contrastive: Float[Tensor, ""]


def projection_loss(predicted: Float[Tensor, "B D"], image: Float[Tensor, "B D"]) -> Float[Tensor, ""]:
    """ECLIPSE eq. 3: squared distance of the predicted to the true image embedding.

    The paper leaves open whether dimensions are summed or averaged; here they are *averaged*, and λ in `eclipse_loss`
    has its meaning relative to that.
    """
    return F.mse_loss(predicted.float(), image.float())


def contrastive_loss(
    predicted: Float[Tensor, "B D"],
    text: Float[Tensor, "G D"],
    logit_scale: float,
    caption_ids: Int[Tensor, "G"],
    first: int = 0,
) -> Float[Tensor, ""]:
    """ECLIPSE eq. 4: each predicted image embedding must find its own text embedding among those of the batch.

    The adapter's stages align and image (`text_encoders/`) use it too.

    One direction only, by cosine. Equal `caption_ids` mark equal captions: such a text is a right answer too, so it is
    no negative. Computed in fp32 under any autocast, because `logit_scale` magnifies rounding.

    The texts are frozen, so a process that predicts only some of the batch's embeddings, or a part that fits its memory,
    contrasts them with the whole batch's texts all the same: the mean over the parts is the loss of the whole, exactly.

    Args:
        predicted: predicted image embeddings, any norm; of the captions `first` … `first` + B − 1 of the batch.
        text: pooled text embeddings of the whole batch of G, by the same CLIP, any norm.
        logit_scale: 1/τ > 0; 100 for the published CLIPs.
        caption_ids: one integer a caption of the batch, equal where the captions are equal.
    """
    if not logit_scale > 0:
        raise UserError(f"logit_scale is 1/temperature and must be positive, got {logit_scale}.")
    with torch.autocast(predicted.device.type, enabled=False):
        own_B = first + torch.arange(len(predicted), device=text.device)
        cosine_BG = F.normalize(predicted.float(), dim=-1) @ F.normalize(text.float(), dim=-1).T
        duplicate_BG = (caption_ids[own_B, None] == caption_ids).scatter_(1, own_B[:, None], False)
        logits_BG = (logit_scale * cosine_BG).masked_fill(duplicate_BG, float("-inf"))
        return F.cross_entropy(logits_BG, own_B)


def eclipse_loss(
    predicted: Float[Tensor, "B D"],
    image: Float[Tensor, "B D"],
    text: Float[Tensor, "G D"],
    *,
    lambda_contrastive: float,
    logit_scale: float,
    caption_ids: Int[Tensor, "G"],
    first: int = 0,
) -> EclipseLoss:
    """ECLIPSE eq. 5: L = L_proj + λ·L_cls. In the paper λ = 0.2 (0.2–0.4 is good); 0 is projection-only."""
    projection = projection_loss(predicted, image)
    contrastive = contrastive_loss(predicted, text, logit_scale, caption_ids, first)
    return EclipseLoss(projection + lambda_contrastive * contrastive, projection, contrastive)


class ContrastiveTaskConfig(Config):
    """The loss and the batch of a training step of ECLIPSE and of λ-ECLIPSE."""

    lambda_contrastive: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.2
    """λ, the weight of the contrastive loss relative to the mean squared error (paper: 0.2). 0 trains projection-only."""
    batch_size: PositiveInt = 1024
    """Captions per step, and the number of texts each prediction is contrasted with (paper: 4 GPUs × 256)."""
    micro_batch: int = Field(ge=0, default=0)
    """Captions per pass, for batches that do not fit into memory; 0 takes a process's share of the batch at once. The results stay the same."""
    precision: Literal["auto", "fp32", "bf16"] = "fp32"
    """What the network computes in (weights and losses stay fp32); "auto" is bf16 on CUDA and fp32 elsewhere."""
    temperature: Literal["clip"] | Annotated[float, Field(gt=0, allow_inf_nan=False)] = "clip"
    """τ of the contrastive loss: "clip" takes the frozen CLIP's own (the paper does not say), a number replaces it."""

    def scale(self, logit_scale: float) -> float:
        """1/τ of the contrastive loss, where `logit_scale` is the frozen CLIP's."""
        return logit_scale if self.temperature == "clip" else 1 / self.temperature


class EclipseTaskConfig(ContrastiveTaskConfig):
    """The training step of ECLIPSE."""

    def objective(
        self,
        sizes: Mapping[str, Any],
        logit_scale: float,
        unconditional: Callable[[], TextFeatures],
        device: torch.device,
        init: str | Path | None,
    ) -> "EclipseObjective":
        """A prior of these sizes with its loss. Its weights are random, or those of the prior `init`.

        Raises:
            UserError: `init` is not found, or has other sizes.
        """
        prior = made_or_loaded(EclipsePrior, sizes, init)
        return EclipseObjective(prior.to(device), self, logit_scale=logit_scale)


def made_or_loaded(kind: type[M], sizes: Mapping[str, Any], init: str | Path | None) -> M:
    """A prior of these sizes with random weights, or the prior `init`.

    Raises:
        UserError: `init` is not found, is of another kind, or has other sizes.
    """
    make: Any = kind  # its configuration is its own `config_class`
    wanted = kind.config_class(**sizes)
    prior: Any = make(wanted) if init is None else kind.from_pretrained(init)
    other = [name for name in sizes if getattr(prior.config, name) != getattr(wanted, name)]
    if other:
        differ = ", ".join(f"{n} is {getattr(prior.config, n)} there and {getattr(wanted, n)} here" for n in other)
        raise UserError(f"the prior in {init} has other sizes: {differ}. Set them alike, or choose other data.")
    return prior


def compared(
    predicted: Float[Tensor, "B D"], batch: PriorBatch, lambda_contrastive: float, logit_scale: float
) -> dict[str, Tensor]:
    """`eclipse_loss` of the batch's predictions: `loss` and its parts `projection` and `contrastive`."""
    loss = eclipse_loss(
        predicted,
        batch.image,
        batch.candidates,
        lambda_contrastive=lambda_contrastive,
        logit_scale=logit_scale,
        caption_ids=batch.candidate_ids,
        first=batch.first,
    )
    return {"loss": loss.total, "projection": loss.projection, "contrastive": loss.contrastive}


class EclipseObjective:
    """Projection and contrast (eq. 5)."""

    def __init__(self, prior: EclipsePrior, config: EclipseTaskConfig, *, logit_scale: float) -> None:
        """`logit_scale` is the frozen CLIP's (1/τ, 100 for the published ones), used where the temperature is "clip"."""
        self.prior, self.config, self.logit_scale = prior, config, config.scale(logit_scale)

    def prepare(self, data: Pairs) -> None:
        """The prior keeps the statistics of the training images."""
        self.prior.set_statistics(data.statistics)

    def losses(self, batch: PriorBatch) -> dict[str, Tensor]:
        """`loss` and its parts `projection` and `contrastive`."""
        return self._compared(self.prior(batch.text, batch.noise), batch)

    def _compared(self, predicted: Float[Tensor, "B D"], batch: PriorBatch) -> dict[str, Tensor]:
        return compared(predicted, batch, self.config.lambda_contrastive, self.logit_scale)

    def predict(self, batch: PriorBatch) -> Float[Tensor, "B D"]:
        """One pass."""
        return self.prior(batch.text, batch.noise)
