"""The training data of a prior: captions with the embeddings of their images, in memory or in an embedding store."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor

from syzygy.core.contracts import TextFeatures
from syzygy.core.errors import UserError
from syzygy.core.packed_attention import PackedText
from syzygy.core.randomness import generator
from syzygy.core.wording import counted
from syzygy.data.references import References
from syzygy.data.store import EmbeddingStore
from syzygy.prior.embedding_statistics import EmbeddingStatistics
from syzygy.prior.prior_network import check_features

SUMMED = 4096
"""Pairs that are read at once for sums over all of them."""
FEW_IMAGES = 100
"""Fewer images than this may have equal values in a dimension by chance, because embeddings are stored in 16 bits."""


@dataclass(frozen=True)
class PriorData:
    """Pairs in memory: N images and their M captions. Floating-point tensors may be fp16.

    Raises:
        UserError: no captions, lengths or widths that do not match, an image that does not exist, NaN or infinity.
    """

    image_embeddings: Float[Tensor, "N D"]
    """Raw image embeddings."""
    captions: TextFeatures | PackedText
    """Text features of the M captions; packed, they take no memory for padding."""
    image_of_caption: Int[Tensor, "M"]
    """Which of the N images each caption describes."""
    caption_ids: Int[Tensor, "M"]
    """Equal if the words of two captions are equal; see `caption_ids`."""
    referred: References | None = None
    """Subjects and controls of the M captions, for a λ-ECLIPSE prior."""
    zero_image: Float[Tensor, "1 D"] | None = None
    """The image embedding of an all-zero normalised image: the control of a caption without a layout."""

    def __post_init__(self) -> None:
        lengths = len(self.captions), len(self.image_of_caption), len(self.caption_ids)
        if len(set(lengths)) > 1 or lengths[0] == 0:
            raise UserError(f"captions, their images and their ids must be equally many, at least one; got {lengths}.")
        low, high = int(self.image_of_caption.min()), int(self.image_of_caption.max())
        if low < 0 or high >= len(self.image_embeddings):
            given = counted(len(self.image_embeddings), "image")
            raise UserError(f"captions point to images {low} to {high}, but the data have {given}.")
        check_features(self.captions, self.image_embeddings.shape[1])
        if not torch.isfinite(self.image_embeddings).all():
            raise UserError(
                "image embeddings hold NaN or infinity. Encode the images again, in fp32 if fp16 overflowed."
            )

    def __len__(self) -> int:
        return len(self.captions)

    @property
    def width(self) -> int:
        """D, the width of CLIP's joint space."""
        return self.image_embeddings.shape[1]

    @property
    def longest(self) -> int:
        """Tokens of the longest caption."""
        return int(self._packed.lengths.max())

    @property
    def statistics(self) -> EmbeddingStatistics:
        """Statistics of the image embeddings that have a caption here."""
        return EmbeddingStatistics.of(self.image_embeddings[self.image_of_caption.unique()])

    @cached_property
    def _packed(self) -> PackedText:
        return self.captions if isinstance(self.captions, PackedText) else PackedText.of(self.captions)

    def text(self, index: Int[Tensor, "B"]) -> PackedText:
        """These captions, embedded."""
        return self._packed[index]

    def pooled(self, index: Int[Tensor, "B"]) -> Float[Tensor, "B D"]:
        """Only the pooled embeddings of these captions."""
        return self.captions.pooled[index]

    def images(self, index: Int[Tensor, "B"]) -> Float[Tensor, "B D"]:
        """Raw embeddings of the images that these captions describe."""
        return self.image_embeddings[self.image_of_caption[index]]

    def image_numbers(self, index: Int[Tensor, "B"]) -> Int[Tensor, "B"]:
        """A number for each caption, equal if two describe the same image."""
        return self.image_of_caption[index]

    def ids(self, index: Int[Tensor, "B"]) -> Int[Tensor, "B"]:
        """A number for each caption, equal if the words of two are equal."""
        return self.caption_ids[index]

    def keys(self, index: Int[Tensor, "B"]) -> list[str]:
        """The keys of these samples."""
        return [f"caption {i}" for i in index.tolist()]

    def references(self, index: Int[Tensor, "B"]) -> References | None:
        """What these captions refer to besides their words; None in data without subjects."""
        return None if self.referred is None else self.referred[index]

    def first(self, number: int) -> "PriorData":
        """The first captions, with all images."""
        return replace(
            self,
            captions=self.captions[:number],
            image_of_caption=self.image_of_caption[:number],
            caption_ids=self.caption_ids[:number],
            referred=self.references(torch.arange(number)),
        )


def caption_ids(captions: Sequence[str]) -> Int[Tensor, "M"]:
    """One integer a caption, equal where the captions are."""
    first: dict[str, int] = {}
    return torch.tensor([first.setdefault(caption, len(first)) for caption in captions], dtype=torch.long)


@dataclass(frozen=True)
class StorePairs:
    """Pairs of an embedding store, or of some of its captions, with the methods of `PriorData`. Only their numbers are in memory."""

    store: EmbeddingStore
    chosen: Int[Tensor, "M"]
    """The numbers of the captions."""

    def __len__(self) -> int:
        return len(self.chosen)

    @property
    def width(self) -> int:
        return self.store.width

    @property
    def longest(self) -> int:
        return self.store.longest

    @property
    def statistics(self) -> EmbeddingStatistics:
        """Statistics of all images of the store. In a small store, a dimension without any deviation gets the mean deviation of the others."""
        found = self.store.statistics
        std = found.std.float()
        if found.number < FEW_IMAGES:
            std = torch.where(std > 0, std, std.mean())
        return EmbeddingStatistics(found.mean.float(), std, found.mean_norm)

    def text(self, index: Int[Tensor, "B"]) -> PackedText:
        return self.store.captions(self.chosen[index])

    def pooled(self, index: Int[Tensor, "B"]) -> Float[Tensor, "B D"]:
        return self.store.pooled(self.chosen[index])

    def images(self, index: Int[Tensor, "B"]) -> Float[Tensor, "B D"]:
        return self.store.images_of(self.chosen[index])

    def image_numbers(self, index: Int[Tensor, "B"]) -> Int[Tensor, "B"]:
        return self.store.same_picture[self.store.image_of(self.chosen[index])]

    def ids(self, index: Int[Tensor, "B"]) -> Int[Tensor, "B"]:
        return self.store.ids(self.chosen[index])

    def keys(self, index: Int[Tensor, "B"]) -> list[str]:
        return self.store.keys(self.store.image_of(self.chosen[index]))

    def references(self, index: Int[Tensor, "B"]) -> References | None:
        return self.store.references(self.chosen[index])

    @property
    def zero_image(self) -> Float[Tensor, "1 D"] | None:
        """The image embedding of an all-zero normalised image; None in a store without subjects."""
        return self.store.zero_image

    def first(self, number: int) -> "StorePairs":
        return replace(self, chosen=self.chosen[:number])


Pairs: TypeAlias = PriorData | StorePairs
"""M captions and the embeddings of their images, by one CLIP. Tensors are on the CPU and may be fp16 or bf16."""


def blocks_of(pairs: Pairs) -> Iterator[tuple[Float[Tensor, "b D"], Float[Tensor, "b D"]]]:
    """Pooled text embeddings and image embeddings of all pairs in float64, block by block, for sums over data of any size."""
    for index in torch.arange(len(pairs)).split(SUMMED):
        yield pairs.pooled(index).double(), pairs.images(index).double()


def split(store: EmbeddingStore, validation_images: int) -> tuple[StorePairs, StorePairs]:
    """A store's captions for training, and those of randomly chosen images for validation. The choice is always the same.

    Equal images (`EmbeddingStore.same_picture`) count as one, so that none is both trained and validated on.

    Raises:
        UserError: the store has no more different images than that.
    """
    same = store.same_picture
    different = same.unique()
    if not 0 < validation_images < len(different):
        raise UserError(
            f"validation_images={validation_images} of the {counted(len(different), 'different image')} in {store.path}: "
            "choose at least 1, and fewer than there are."
        )
    chosen = torch.randperm(len(different), generator=generator(0, "validation images"))[:validation_images]
    kept_out = torch.zeros(store.number_of_images, dtype=torch.bool)
    kept_out[different[chosen]] = True
    everything, out = torch.arange(len(store)), kept_out[same[store.all_images_of()]]
    return StorePairs(store, everything[~out]), StorePairs(store, everything[out])


def split_digest(validation: StorePairs) -> str:
    """Sixteen hex digits over the numbers of the validation captions; a run records them, so that its split can be found again."""
    return hashlib.blake2b(validation.chosen.sort().values.numpy().tobytes(), digest_size=8).hexdigest()
