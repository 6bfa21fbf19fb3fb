"""Training CLIP from nothing: symmetric contrastive loss (Radford et al. 2021, figure 3) with extra hard negatives."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field, model_validator
from torch import Tensor, nn

from syzygy.config import Config
from syzygy.train.precision import autocast


@dataclass(frozen=True)
class ClipBatch:
    """Pictures in [0, 1], their captions' token ids, and what the pictures show."""

    images: Float[Tensor, "B 3 H W"]
    ids: Int[Tensor, "B T"]
    mask: Bool[Tensor, "B T"]
    labels: Bool[Tensor, "B K"]
    """Which of K things each picture shows, told or not."""


class ClipTaskConfig(Config):
    """What a step sees."""

    batch_size: int = 256
    """Pairs a step."""
    family: int = Field(default=4, ge=1)
    """Pairs that differ in one told fact (a scene and its counterfactuals) and so test binding in each batch; 1: all independent."""
    medium_captions: float = 0.1
    """Part of the batches whose captions open with other sentences, so that all positions are trained."""
    label_weight: float = Field(default=0.2, ge=0)
    """Weight of finding, linearly in the image embedding, what the picture shows (binary cross entropy, summed over labels).

    Captions alone teach shapes slowly: colours and numbers tell most pictures of a batch apart. What a CLIP learns from 400
    million captions, this one must learn from a million. 0: captions alone.
    """
    max_logit_scale: float = 100.0
    """Bound of the learned inverse temperature."""

    @model_validator(mode="after")
    def _divides(self) -> "ClipTaskConfig":
        if self.batch_size % self.family:
            raise ValueError(f"family={self.family} must divide batch_size={self.batch_size}")
        return self


def duplicates(ids: Int[Tensor, "B T"]) -> Bool[Tensor, "B B"]:
    """True where two different texts are equal: such a pair is no negative."""
    return (ids[:, None] == ids[None]).all(-1).fill_diagonal_(False)


def clip_loss(
    image: Float[Tensor, "B D"], text: Float[Tensor, "B D"], logit_scale: Float[Tensor, ""], same: Bool[Tensor, "B B"]
) -> Float[Tensor, ""]:
    """Mean of both directions' cross entropy over cosines; equal captions are not negatives of each other."""
    image, text = nn.functional.normalize(image, dim=-1), nn.functional.normalize(text, dim=-1)
    logits = (logit_scale * image @ text.T).masked_fill(same, float("-inf"))
    target = torch.arange(len(image), device=image.device)
    return (nn.functional.cross_entropy(logits, target) + nn.functional.cross_entropy(logits.T, target)) / 2


class ClipTask:
    """CLIP's training as a task of the loop. `batches(step)` gives the batch of a step, whatever was run before."""

    def __init__(
        self,
        clip: nn.Module,
        labelled: nn.Linear,
        batches: Callable[[int], ClipBatch],
        validation: ClipBatch,
        config: ClipTaskConfig,
        *,
        precision: torch.dtype | None = None,
    ) -> None:
        """`labelled` reads the batch's labels off the image embedding; it is trained beside the towers and not kept."""
        self.modules: Mapping[str, nn.Module] = {"clip": clip, "labelled": labelled}
        self.batches, self.validation, self.config, self.precision = batches, validation, config, precision

    def _losses(self, batch: ClipBatch) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """Losses and the scale; image and text embeddings."""
        with autocast(batch.images.device, self.precision):
            image, text, scale = self.modules["clip"](batch.images, batch.ids, batch.mask)
        scale = scale.clamp(max=self.config.max_logit_scale)
        image, text = image.float(), text.float()
        contrastive = clip_loss(image, text, scale, duplicates(batch.ids))
        evidence = self.modules["labelled"](image)
        labels = nn.functional.binary_cross_entropy_with_logits(evidence, batch.labels.float(), reduction="none")
        labels = labels.sum(1).mean()
        total = contrastive + self.config.label_weight * labels
        losses = {"loss": total, "contrastive": contrastive, "labels": labels, "logit_scale": scale.detach()}
        return losses, image, text

    def loss(self, step: int) -> dict[str, Tensor]:
        """Losses of this step's batch."""
        return self._losses(self.batches(step))[0]

    def validate(self) -> dict[str, float]:
        """Losses, and `alignment`, of unseen pairs with full, distinct captions."""
        losses, image, text = self._losses(self.validation)
        return {name: float(value) for name, value in losses.items()} | alignment(image, text)


def alignment(image: Float[Tensor, "B D"], text: Float[Tensor, "B D"]) -> dict[str, float]:
    """How two towers meet: mean cosine of matched pairs, distance of the two means (of unit vectors), R@1 text → image."""
    image, text = nn.functional.normalize(image, dim=-1), nn.functional.normalize(text, dim=-1)
    best = (text @ image.T).argmax(1)
    return {
        "matched_cosine": float((image * text).sum(1).mean()),
        "mean_distance": float((image.mean(0) - text.mean(0)).norm()),
        "recall_at_1": float((best == torch.arange(len(text), device=best.device)).float().mean()),
    }
