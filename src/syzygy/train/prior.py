"""Training of a prior against frozen CLIP embeddings, all in memory: which captions a step sees, and what validation measures."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from syzygy.errors import UserError
from syzygy.prior.model import check_features
from syzygy.prior.statistics import EmbeddingStatistics
from syzygy.rng import generator
from syzygy.types import PackedText, TextFeatures


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

    @cached_property
    def text(self) -> PackedText:
        """The captions without padding, as a step reads them."""
        return PackedText.of(self.captions)

    def first(self, number: int) -> "PriorData":
        """The first captions, with all images."""
        return PriorData(
            self.image_embeddings, self.captions[:number], self.image_of_caption[:number], self.caption_ids[:number]
        )


def caption_ids(captions: Sequence[str]) -> Int[Tensor, "M"]:
    """One integer a caption, equal where the captions are."""
    first: dict[str, int] = {}
    return torch.tensor([first.setdefault(caption, len(first)) for caption in captions], dtype=torch.long)


@dataclass(frozen=True)
class PriorBatch:
    """Captions of one step with their images, on the prior's device and in its dtype."""

    text: PackedText
    image: Float[Tensor, "B D"]
    """Raw image embeddings."""
    caption_ids: Int[Tensor, "B"]
    """Equal where the words of two captions are equal."""

    def __len__(self) -> int:
        return len(self.image)


@runtime_checkable
class Objective(Protocol):
    """What a prior is trained to do (`train/objectives.py`)."""

    @property
    def prior(self) -> nn.Module:
        """The network; its `config` tells `embedding_dim` and `num_embeddings`, and it has `set_statistics`."""
        ...

    def losses(self, batch: PriorBatch, noise: Float[Tensor, "B D"], random: torch.Generator) -> dict[str, Tensor]:
        """`loss` and its parts; `noise` is standard normal, further draws come from `random` (on the CPU)."""
        ...

    def predict(self, batch: PriorBatch, noise: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        """Raw image embeddings, as the trained prior would predict them."""
        ...


class PriorTask:
    """The task that a training loop runs: a pure function of the step, so a run resumes exactly from the step alone.

    Captions come as one endless stream of permutations, one an epoch, cut into batches: every caption is seen once an
    epoch whatever the batch size. Each step draws fresh noise (eq. 3).
    """

    def __init__(
        self, objective: Objective, data: PriorData, validation: PriorData, batch_size: int, seed: int
    ) -> None:
        """Sets the prior's statistics to those of the training images."""
        prior: Any = objective.prior
        for name, part in (("training", data), ("validation", validation)):
            if part.image_embeddings.shape[1] != prior.config.embedding_dim:
                raise UserError(
                    f"{name} embeddings are {part.image_embeddings.shape[1]} wide; the prior has embedding_dim "
                    f"{prior.config.embedding_dim}. Make the prior for the CLIP that embedded the data."
                )
            longest = int(part.text.lengths.max())
            if longest > prior.config.num_embeddings:
                raise UserError(
                    f"a {name} caption has {longest} tokens; the prior reads {prior.config.num_embeddings}."
                )
        prior.set_statistics(EmbeddingStatistics.of(data.image_embeddings))
        self.objective, self.data, self.validation, self.batch_size, self.seed = (
            objective,
            data,
            validation,
            batch_size,
            seed,
        )
        self.modules = {"prior": objective.prior}
        # Two epochs meet in a batch; a batch of more than an epoch only draws a permutation twice.
        self._order = lru_cache(maxsize=2)(self._permutation)

    def _permutation(self, epoch: int) -> Int[Tensor, "M"]:
        return torch.randperm(len(self.data), generator=generator(self.seed, "prior", "epoch", epoch))

    def captions_at(self, step: int) -> Int[Tensor, "B"]:
        """Which captions this step (from 0) trains on."""
        position, end = step * self.batch_size, (step + 1) * self.batch_size
        parts = []
        while position < end:
            epoch, offset = divmod(position, len(self.data))
            parts.append(self._order(epoch)[offset : offset + end - position])
            position += len(parts[-1])
        return torch.cat(parts)

    def loss(self, step: int) -> dict[str, Tensor]:
        """The objective's losses on this step's captions."""
        index = self.captions_at(step)
        batch = self._gather(self.data, index)
        noise = self._noise(len(index), "noise", step)
        return self.objective.losses(batch, noise.to(batch.image), generator(self.seed, "prior", "draws", step))

    def validate(self) -> dict[str, float]:
        """Means over the validation captions, with the same noise each time.

        `cosine` of the predicted to the true image embedding; `recall_at_1`, how often the true image is the nearest
        of all validation images (by cosine; in [0, 1]); the losses as in training.
        """
        noise = self._noise(len(self.validation), "validation")
        sums: dict[str, float] = {}
        for index in torch.arange(len(self.validation)).split(self.batch_size):
            batch = self._gather(self.validation, index)
            part = noise[index].to(batch.image)
            means = self.objective.losses(batch, part, generator(self.seed, "prior", "validation", int(index[0])))
            predicted = self.objective.predict(batch, part)
            images = F.normalize(self.validation.image_embeddings.to(batch.image), dim=-1)
            nearest = (F.normalize(predicted, dim=-1) @ images.T).argmax(-1).cpu()
            right = nearest == self.validation.image_of_caption[index]
            means |= {"cosine": F.cosine_similarity(predicted, batch.image).mean(), "recall_at_1": right.float().mean()}
            for name, mean in means.items():
                sums[name] = sums.get(name, 0.0) + mean.item() * len(index)
        return {name: total / len(self.validation) for name, total in sums.items()}

    def _noise(self, count: int, *key: str | int) -> Float[Tensor, "count D"]:
        width = self.data.image_embeddings.shape[1]
        return torch.randn(count, width, generator=generator(self.seed, "prior", *key))

    def _gather(self, data: PriorData, index: Int[Tensor, "B"]) -> PriorBatch:
        weight = self.objective.prior.get_parameter("proj_in.weight")
        return PriorBatch(
            data.text[index].to(weight.device, weight.dtype),
            data.image_embeddings[data.image_of_caption[index]].to(weight),
            data.caption_ids[index].to(weight.device),
        )
