"""Stages 2 and 3 of an adapter: adapter and prior learn from images, which show what CLIP cannot read of a text.

Legend: B captions of a pass, G of a step, D width of CLIP's joint space.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from syzygy.core.config import Config
from syzygy.core.contracts import TextStates
from syzygy.core.errors import UserError
from syzygy.core.packed_attention import PackedText
from syzygy.core.wording import counted
from syzygy.data.filtering import passing
from syzygy.data.store import EmbeddingStore
from syzygy.prior.eclipse import EclipsePrior, eclipse_loss
from syzygy.prior.embedding_pairs import StorePairs, split
from syzygy.prior.embedding_statistics import EmbeddingStatistics
from syzygy.text_encoders.adapter import TextAdapter
from syzygy.text_encoders.adapter_task import StageConfig, draws
from syzygy.text_encoders.align_stage import check_fits
from syzygy.training.schedule import LoopConfig
from syzygy.training.shuffled import Shuffled

VALIDATION_BATCH = 64


class ImageTaskConfig(StageConfig):
    """Loss (ECLIPSE's, arXiv 2312.04655 eq. 5) and batch of a training step on images."""

    frozen: Literal["none", "adapter", "prior"] = "none"
    """Which of the two keeps its weights."""
    batch_size: PositiveInt = 1024
    """Captions per step, and the number of embeddings that each prediction is contrasted with."""
    lambda_contrastive: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.2
    """λ, the weight of the contrastive loss relative to the mean squared error (paper: 0.2)."""
    contrast: Literal["text", "image"] = "text"
    """What a prediction is contrasted with: CLIP's pooled text embeddings, as in ECLIPSE, or the image embeddings, if CLIP cannot read the
    captions because of their language or length."""


class ImageRun(Config):
    """All settings of the stages image and quality."""

    scenes: int | None = Field(default=None, gt=0)
    """Scenes of the embedded world to train on, before the filter; each is embedded once. null with a store."""
    languages: tuple[str, ...] | None = Field(default=None, min_length=1)
    """Codes of the languages of the embedded world's captions; null takes those of the previous stage. A store's captions are read as they
    are."""
    lengths: tuple[Literal["short", "medium", "long"], ...] | None = Field(default=None, min_length=1)
    """Lengths of the embedded world's captions; steps take them in turn. null with a store."""
    validation_images: int = Field(default=512, gt=0)
    """Images for validation, with their captions; no step sees them."""
    filter: str | None = None
    """Which images to use, by a store's columns, such as "width >= 512 and aesthetic > 5.5", or by those of the embedded world (objects,
    unnamed, smallest, style), such as "unnamed == 0 and objects <= 2"; null is all."""
    task: ImageTaskConfig
    """Loss and batch, and what is frozen."""
    loop: LoopConfig
    """Length and learning rate."""
    seed: int = 0
    """Seed of scenes, order and noise."""


@runtime_checkable
class CaptionedImages(Protocol):
    """M captions with embeddings of their images, and a language model's features of the captions: an embedding store, or the lab's
    embedded world."""

    def __len__(self) -> int: ...

    @property
    def width(self) -> int:
        """D."""
        ...

    def text(self, index: Int[Tensor, "B"], first: int, empty: Bool[Tensor, "B"], step: int) -> TextStates:
        """The language model's features of these captions, which a step reads at the places from `first` on of the stream; those of the empty
        text where `empty`."""
        ...

    def images(self, index: Int[Tensor, "B"]) -> Float[Tensor, "B D"]:
        """Raw image embeddings."""
        ...

    def candidates(self, index: Int[Tensor, "B"]) -> Float[Tensor, "B D"]:
        """What predictions are contrasted with."""
        ...

    def ids(self, index: Int[Tensor, "B"]) -> Int[Tensor, "B"]:
        """Equal where two candidates are the same."""
        ...


@dataclass(frozen=True)
class ImageData:
    """What the stages image and quality learn from."""

    training: CaptionedImages
    validation: CaptionedImages
    logit_scale: float
    """1/τ of the CLIP that embedded the images."""
    statistics: Callable[[], EmbeddingStatistics]
    """Measures the statistics of the image embeddings, for a prior that was published without them."""
    record: Mapping[str, Any]
    """Identifies CLIP (`clip`) and data; a run is continued with the same only."""
    languages: tuple[str, ...] = ()
    """Languages of the captions, if they are known."""


@dataclass(frozen=True)
class ImageBatch:
    """B captions of a step with their images, on the adapter's device."""

    text: TextStates
    """The language model's features of the captions."""
    image: Float[Tensor, "B D"]
    """Raw image embeddings."""
    candidates: Float[Tensor, "G D"]
    """What predictions are contrasted with, for the whole step."""
    candidate_ids: Int[Tensor, "G"]
    """Equal where two candidates are the same."""
    first: int
    """The candidate that belongs to the first of the B captions; the others follow."""
    noise: Float[Tensor, "B D"]
    """Standard normal noise, different at each step."""

    def __len__(self) -> int:
        return len(self.image)


class ImageStage:
    """ECLIPSE's projection and contrastive losses, through adapter and prior."""

    def __init__(
        self, adapter: TextAdapter, prior: EclipsePrior, config: ImageTaskConfig, *, logit_scale: float
    ) -> None:
        """Freezes what the configuration names. `logit_scale` is CLIP's 1/τ, for the temperature "clip".

        Raises:
            UserError: the prior cannot read what the adapter gives.
        """
        check_fits(adapter, prior)
        both: dict[str, nn.Module] = {"adapter": adapter, "prior": prior}
        if config.frozen != "none":
            both.pop(config.frozen).requires_grad_(False).eval()
        self.modules, self.adapter, self.prior, self.config = both, adapter, prior, config
        self.logit_scale = logit_scale if config.temperature == "clip" else 1 / config.temperature

    def predict(self, batch: ImageBatch) -> Float[Tensor, "B D"]:
        """Raw image embeddings that the captions describe."""
        found = self.adapter(batch.text.states, batch.text.mask)
        return self.prior(PackedText.of(found), batch.noise)

    def losses(self, batch: ImageBatch) -> dict[str, Tensor]:
        """`loss` and its parts `projection` and `contrastive`."""
        return self._compared(self.predict(batch), batch)

    def _compared(self, predicted: Float[Tensor, "B D"], batch: ImageBatch) -> dict[str, Tensor]:
        loss = eclipse_loss(
            predicted,
            batch.image,
            batch.candidates,
            lambda_contrastive=self.config.lambda_contrastive,
            logit_scale=self.logit_scale,
            caption_ids=batch.candidate_ids,
            first=batch.first,
        )
        return {"loss": loss.total, "projection": loss.projection, "contrastive": loss.contrastive}

    @torch.no_grad()
    def validated(self, batches: Iterable[tuple[str, ImageBatch]]) -> dict[str, float]:
        """The losses; `cosine` of predicted and true image embeddings and `cosine_other` of the predicted and the next one's (if there are
        two); `recall_at_1`, how often the true image is the nearest of all by cosine similarity."""
        sums: dict[str, float] = {}
        predictions, images = [], []
        for _, batch in batches:
            predicted = self.predict(batch).float()
            means = self._compared(predicted, batch)
            means["cosine"] = F.cosine_similarity(predicted, batch.image).mean()
            for name, value in means.items():
                sums[name] = sums.get(name, 0.0) + value.item() * len(batch)
            predictions.append(F.normalize(predicted, dim=-1))
            images.append(F.normalize(batch.image, dim=-1))
        predicted, image = torch.cat(predictions), torch.cat(images)
        own = (predicted * image).sum(-1, keepdim=True)
        nearer = (predicted @ image.T > own + 1e-6).any(1)  # two captions of one image are no error
        found = {name: total / len(image) for name, total in sums.items()}
        if len(image) > 1:
            found["cosine_other"] = (predicted * image.roll(1, 0)).sum(-1).mean().item()
        return found | {"recall_at_1": 1 - nearer.float().mean().item()}


class ImageSource:
    """Batches of captions with their images, in one permutation after another."""

    def __init__(
        self,
        training: CaptionedImages,
        validation: CaptionedImages,
        device: torch.device,
        batch_size: int,
        empty: float,
        seed: int,
    ) -> None:
        self._training, self._validation, self._device = training, validation, device
        self._batch_size, self._empty, self._seed = batch_size, empty, seed
        self._order = Shuffled(len(training), seed, "adapter")

    def read(self, step: int, rows: slice) -> ImageBatch:
        first = step * self._batch_size
        index = self._order.run(first, self._batch_size)
        noise, uniform = draws(self._seed, "adapter", first, self._batch_size, self._training.width)
        empty = uniform < self._empty
        return self._batch(self._training, index, step, rows, noise[rows], empty[rows])

    def _batch(
        self, data: CaptionedImages, index: Int[Tensor, "G"], step: int, rows: slice, noise: Tensor, empty: Tensor
    ) -> ImageBatch:
        def to(x: Tensor) -> Tensor:
            return x.to(self._device, torch.float32)

        own = index[rows]
        return ImageBatch(
            data.text(own, step * len(index) + rows.start, empty, step).to(self._device, torch.float32),
            to(data.images(own)),
            to(data.candidates(index)),
            data.ids(index).to(self._device),
            rows.start,
            to(noise),
        )

    def unseen(self) -> Iterator[tuple[str, ImageBatch]]:
        data = self._validation
        for number, index in enumerate(torch.arange(len(data)).split(VALIDATION_BATCH)):
            noise, _ = draws(self._seed, "adapter validation", number * VALIDATION_BATCH, len(index), data.width)
            none = torch.zeros(len(index), dtype=torch.bool)
            yield "", self._batch(data, index, number, slice(0, len(index)), noise, none)


@dataclass(frozen=True)
class StoreImages:
    """Captions and images of an embedding store, with a language model's features of the captions. Only numbers are held in memory."""

    pairs: StorePairs
    """As CLIP embedded them."""
    features: EmbeddingStore
    """The store opened with the language model's feature set."""
    by_text: bool
    """Whether predictions are contrasted with CLIP's text embeddings, or with the images."""

    def __len__(self) -> int:
        return len(self.pairs)

    @property
    def width(self) -> int:
        return self.pairs.width

    def text(self, index: Int[Tensor, "B"], first: int, empty: Bool[Tensor, "B"], step: int) -> TextStates:
        found = self.features.tokens(self.pairs.chosen[index])
        return with_empty(found, self.features.empty_tokens() if empty.any() else None, empty)

    def images(self, index: Int[Tensor, "B"]) -> Float[Tensor, "B D"]:
        return self.pairs.images(index)

    def candidates(self, index: Int[Tensor, "B"]) -> Float[Tensor, "B D"]:
        return self.pairs.pooled(index) if self.by_text else self.pairs.images(index)

    def ids(self, index: Int[Tensor, "B"]) -> Int[Tensor, "B"]:
        return self.pairs.ids(index) if self.by_text else self.pairs.image_numbers(index)


def with_empty(found: TextStates, instead: Float[Tensor, "T W"] | None, empty: Bool[Tensor, "B"]) -> TextStates:
    """The captions with the token states `instead` where `empty`, padded on the right with zeros."""
    if instead is None:
        return found
    rows = [
        instead if none else states[mask]
        for states, mask, none in zip(found.states, found.mask, empty.tolist(), strict=True)
    ]
    mask = torch.arange(max(map(len, rows))) < torch.tensor([len(row) for row in rows])[:, None]
    states = found.states.new_zeros(*mask.shape, found.states.shape[2])
    states[mask] = torch.cat(rows)
    return TextStates(states, mask)


def split_images(
    store: EmbeddingStore, features: EmbeddingStore, validation_images: int, condition: str | None, *, by_text: bool
) -> tuple[StoreImages, StoreImages]:
    """A store's captions for training and for validation (always of the same images), both without those that fail the filter `condition`.

    Raises:
        UserError: the split or the filter is impossible (`split`, `passing`), or leaves nothing of one of them.
    """
    parts = split(store, validation_images)
    if condition is not None:
        keep = passing(store, condition)[store.all_images_of()]
        parts = tuple(replace(part, chosen=part.chosen[keep[part.chosen]]) for part in parts)
    for name, part in zip(("training", "validation"), parts, strict=True):
        if not len(part):
            raise UserError(
                f"no picture for {name} passes the filter {condition!r} in {store.path} ({counted(store.number_of_images, 'picture')}, "
                f"{validation_images} kept for validation). Loosen the filter, or change validation_images."
            )
    training, validation = (StoreImages(part, features, by_text) for part in parts)
    return training, validation
