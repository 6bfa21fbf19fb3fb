"""Training of the ECLIPSE prior against frozen CLIP embeddings (arXiv 2312.04655, section 3.2), all in memory."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from pydantic import Field, PositiveInt
from torch import Tensor

from syzygy.config import Config
from syzygy.errors import UserError
from syzygy.prior.losses import EclipseLoss, eclipse_loss
from syzygy.prior.model import EclipsePrior, check_features
from syzygy.prior.statistics import EmbeddingStatistics
from syzygy.rng import generator
from syzygy.types import TextFeatures


class PriorTaskConfig(Config):
    """What one step of training minimises, and over how many captions."""

    lambda_contrastive: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.2
    """λ, the weight of the contrastive loss beside the mean squared error (paper: 0.2). 0 trains projection-only."""
    batch_size: PositiveInt = 1024
    """Captions a step, and the number of texts each prediction is contrasted with (paper: 4 GPUs × 256)."""
    temperature: Literal["clip"] | Annotated[float, Field(gt=0, allow_inf_nan=False)] = "clip"
    """τ of the contrastive loss: "clip" takes the frozen CLIP's own (the paper does not tell), a number replaces it."""


@dataclass(frozen=True)
class PriorData:
    """N images and their M captions, embedded by one CLIP. Floating-point tensors may be fp16.

    Raises:
        UserError: no captions, lengths or widths that do not match, an image that does not exist, NaN or infinity.
    """

    image_embeddings: Float[Tensor, "N D"]
    """Raw image embeddings."""
    captions: TextFeatures
    """Text features of the M captions."""
    image_of_caption: Int[Tensor, "M"]
    """Which of the N images each caption describes."""
    caption_ids: Int[Tensor, "M"]
    """Equal where the words of two captions are equal; see `caption_ids`."""

    def __post_init__(self) -> None:
        lengths = len(self.captions), len(self.image_of_caption), len(self.caption_ids)
        if len(set(lengths)) > 1 or lengths[0] == 0:
            raise UserError(f"captions, their images and their ids must be equally many, at least one; got {lengths}.")
        low, high = int(self.image_of_caption.min()), int(self.image_of_caption.max())
        if low < 0 or high >= len(self.image_embeddings):
            raise UserError(f"captions point to images {low} to {high}; there are {len(self.image_embeddings)} images.")
        check_features(self.captions, self.image_embeddings.shape[1])
        if not torch.isfinite(self.image_embeddings).all():
            raise UserError(
                "image embeddings hold NaN or infinity. Encode the images again, in fp32 if fp16 overflowed."
            )

    def __len__(self) -> int:
        return len(self.captions)


def caption_ids(captions: Sequence[str]) -> Int[Tensor, "M"]:
    """One integer a caption, equal where the captions are."""
    first: dict[str, int] = {}
    return torch.tensor([first.setdefault(caption, len(first)) for caption in captions], dtype=torch.long)


@dataclass(frozen=True)
class _Batch:
    features: TextFeatures
    image: Float[Tensor, "B D"]
    image_index: Int[Tensor, "B"]
    caption_ids: Int[Tensor, "B"]


class PriorTask:
    """The task that a training loop runs: a pure function of the step, so a run resumes exactly from the step alone.

    Captions come as one endless stream of permutations, one an epoch, cut into batches: every caption is seen once an
    epoch whatever the batch size. Each step draws fresh noise (eq. 3).
    """

    def __init__(
        self,
        prior: EclipsePrior,
        data: PriorData,
        validation: PriorData,
        config: PriorTaskConfig,
        seed: int,
        *,
        logit_scale: float,
    ) -> None:
        """`logit_scale` is the frozen CLIP's (1/τ, 100 for the published ones), used where the temperature is "clip".

        Sets the prior's statistics to those of the training images.
        """
        for name, part in (("training", data), ("validation", validation)):
            if part.image_embeddings.shape[1] != prior.config.embedding_dim:
                raise UserError(
                    f"{name} embeddings are {part.image_embeddings.shape[1]} wide; the prior has embedding_dim "
                    f"{prior.config.embedding_dim}. Make the prior for the CLIP that embedded the data."
                )
            longest = part.captions.trimmed().mask.shape[1]
            if longest > prior.config.num_embeddings:
                raise UserError(
                    f"a {name} caption has {longest} tokens; the prior reads {prior.config.num_embeddings}."
                )
        prior.set_statistics(EmbeddingStatistics.of(data.image_embeddings))
        self.prior, self.data, self.validation, self.config, self.seed = prior, data, validation, config, seed
        self.modules = {"prior": prior}
        self.logit_scale = logit_scale if config.temperature == "clip" else 1 / config.temperature
        # Two epochs meet in a batch; a batch of more than an epoch only draws a permutation twice.
        self._order = lru_cache(maxsize=2)(self._permutation)

    def _permutation(self, epoch: int) -> Int[Tensor, "M"]:
        return torch.randperm(len(self.data), generator=generator(self.seed, "prior", "epoch", epoch))

    def captions_at(self, step: int) -> Int[Tensor, "B"]:
        """Which captions this step (from 0) trains on."""
        position, end = step * self.config.batch_size, (step + 1) * self.config.batch_size
        parts = []
        while position < end:
            epoch, offset = divmod(position, len(self.data))
            parts.append(self._order(epoch)[offset : offset + end - position])
            position += len(parts[-1])
        return torch.cat(parts)

    def loss(self, step: int) -> dict[str, Tensor]:
        """ECLIPSE's loss (eq. 5) on this step's captions: `loss` and its parts `projection` and `contrastive`."""
        index = self.captions_at(step)
        noise = self._noise(len(index), "noise", step)
        batch = self._gather(self.data, index)
        loss = self._eclipse_loss(self.prior(batch.features, noise), batch)
        return {"loss": loss.total, "projection": loss.projection, "contrastive": loss.contrastive}

    def validate(self) -> dict[str, float]:
        """Means over the validation captions, with the same noise each time.

        `cosine` of the predicted to the true image embedding; `recall_at_1`, how often the true image is the nearest
        of all validation images (by cosine; in [0, 1]); `loss` and its parts as in training.
        """
        noise = self._noise(len(self.validation), "validation")
        images = F.normalize(self.validation.image_embeddings.to(noise), dim=-1)
        sums: dict[str, float] = {}
        for index in torch.arange(len(self.validation)).split(self.config.batch_size):
            batch = self._gather(self.validation, index)
            predicted = self.prior(batch.features, noise[index.to(noise.device)])
            loss = self._eclipse_loss(predicted, batch)
            nearest = (F.normalize(predicted, dim=-1) @ images.T).argmax(-1)
            means = {
                "loss": loss.total,
                "projection": loss.projection,
                "contrastive": loss.contrastive,
                "cosine": F.cosine_similarity(predicted, batch.image).mean(),
                "recall_at_1": (nearest == batch.image_index).float().mean(),
            }
            for name, mean in means.items():
                sums[name] = sums.get(name, 0.0) + mean.item() * len(index)
        return {name: total / len(self.validation) for name, total in sums.items()}

    def _noise(self, count: int, *key: str | int) -> Float[Tensor, "count D"]:
        drawn = torch.randn(count, self.prior.config.embedding_dim, generator=generator(self.seed, "prior", *key))
        return drawn.to(self.prior.proj_in.weight)

    def _gather(self, data: PriorData, index: Int[Tensor, "B"]) -> _Batch:
        weight = self.prior.proj_in.weight
        image_index = data.image_of_caption[index]
        return _Batch(
            data.captions[index].trimmed().to(weight.device, weight.dtype),
            data.image_embeddings[image_index].to(weight),
            image_index.to(weight.device),
            data.caption_ids[index].to(weight.device),
        )

    def _eclipse_loss(self, predicted: Float[Tensor, "B D"], batch: _Batch) -> EclipseLoss:
        return eclipse_loss(
            predicted,
            batch.image,
            batch.features.pooled,
            lambda_contrastive=self.config.lambda_contrastive,
            logit_scale=self.logit_scale,
            caption_ids=batch.caption_ids,
        )
