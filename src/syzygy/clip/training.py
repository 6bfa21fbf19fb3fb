"""Training CLIP from nothing: symmetric contrastive loss (Radford et al. 2021, figure 3) with extra hard negatives."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from syzygy.core.config import Config
from syzygy.training.precision import autocast


@dataclass(frozen=True)
class ClipBatch:
    """Images in [0, 1] and token ids; the first B texts are the images' captions, further ones are negatives only."""

    images: Float[Tensor, "B 3 H W"]
    ids: Int[Tensor, "N T"]
    mask: Bool[Tensor, "N T"]


class ClipTaskConfig(Config):
    """What a step sees."""

    batch_size: int = 256
    """Pairs a step."""
    hard_negatives: float = 0.25
    """Captions with swapped attributes, as extra negatives, per pair."""
    medium_captions: float = 0.1
    """Part of the batches whose captions open with other sentences, so that all positions are trained."""
    max_logit_scale: float = 100.0
    """Bound of the learned inverse temperature."""


def duplicates(ids: Int[Tensor, "N T"], number: int) -> Bool[Tensor, "{number} N"]:
    """True where one of the first `number` texts equals another text: such a pair is no negative."""
    same = (ids[:number, None] == ids[None]).all(-1)
    return same & ~torch.eye(number, len(ids), dtype=torch.bool, device=ids.device)


def clip_loss(
    image: Float[Tensor, "B D"],
    text: Float[Tensor, "N D"],
    logit_scale: Float[Tensor, ""],
    same: Bool[Tensor, "B N"],
) -> Float[Tensor, ""]:
    """Mean of both directions' cross entropy over cosines; equal captions are not negatives of each other."""
    number = len(image)
    image, text = nn.functional.normalize(image, dim=-1), nn.functional.normalize(text, dim=-1)
    logits = (logit_scale * image @ text.T).masked_fill(same, float("-inf"))
    target = torch.arange(number, device=image.device)
    to_text = nn.functional.cross_entropy(logits, target)
    to_image = nn.functional.cross_entropy(logits[:, :number].T, target)
    return (to_text + to_image) / 2


class ClipTask:
    """CLIP's training as a task of the loop. `batches(step)` gives the batch of a step, whatever was run before."""

    def __init__(
        self,
        clip: nn.Module,
        batches: Callable[[int], ClipBatch],
        validation: ClipBatch,
        config: ClipTaskConfig,
        *,
        precision: torch.dtype | None = None,
    ) -> None:
        self.clip, self.batches, self.validation, self.config = clip, batches, validation, config
        self.precision = precision

    @property
    def modules(self) -> Mapping[str, nn.Module]:
        return {"clip": self.clip}

    def _loss(self, batch: ClipBatch) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """The scalars of a step, image embeddings and text embeddings."""
        with autocast(batch.images.device, self.precision):
            states, image, text, scale = self.clip(batch.images, batch.ids, batch.mask)
        scale = scale.clamp(max=self.config.max_logit_scale)
        image, text = image.float(), text.float()
        contrastive = clip_loss(image, text, scale, duplicates(batch.ids, len(image)))
        more = self._supervision(batch, states, image)
        total = contrastive + sum(more.values())
        scalars = {"loss": total, "contrastive": contrastive} | more | {"logit_scale": scale}
        return {"loss": total} | {n: x.detach() for n, x in scalars.items() if n != "loss"}, image, text

    def _supervision(
        self, batch: ClipBatch, states: Float[Tensor, "B P W"], embeddings: Float[Tensor, "B D"]
    ) -> dict[str, Float[Tensor, ""]]:
        """Further terms of the loss; none here."""
        return {}

    def loss(self, step: int) -> dict[str, Tensor]:
        """Contrastive loss of this step's batch, and further terms."""
        return self._loss(self.batches(step))[0]

    def validate(self) -> dict[str, float]:
        """Losses, and `alignment` of unseen pairs with full, distinct captions."""
        scalars, image, text = self._loss(self.validation)
        found = {name: float(value) for name, value in scalars.items() if name != "logit_scale"}
        return found | alignment(image, text[: len(image)])


def alignment(image: Float[Tensor, "B D"], text: Float[Tensor, "B D"]) -> dict[str, float]:
    """How two towers meet: mean cosine of matched pairs, distance of the two means (of unit vectors), R@1 text → image."""
    image, text = nn.functional.normalize(image, dim=-1), nn.functional.normalize(text, dim=-1)
    best = (text @ image.T).argmax(1)
    return {
        "matched_cosine": float((image * text).sum(1).mean()),
        "mean_distance": float((image.mean(0) - text.mean(0)).norm()),
        "recall_at_1": float((best == torch.arange(len(text), device=best.device)).float().mean()),
    }
