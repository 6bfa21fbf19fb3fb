"""Which pairs of an embedding store no prior under comparison was trained on.

Legend: M captions of G images, D width of CLIP's joint space.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from syzygy.core import artifacts
from syzygy.core.errors import UserError
from syzygy.core.randomness import generator
from syzygy.core.wording import counted
from syzygy.data.store import EmbeddingStore
from syzygy.prior.embedding_pairs import StorePairs, split, split_digest

MOST = 4096
"""Images, at most, unless the user asks for more."""


@dataclass(frozen=True)
class Past:
    """What is known about the data that a prior was trained on."""

    kind: str
    """`this store`, `this store, split unknown`, `another store`, `embedded world` or `unknown`."""
    held_out: Int[Tensor, "M"] | None = None
    """The captions of this store that it was not trained on; None if that is not known."""

    def warning(self, name: str) -> str:
        """Why the scores of this prior may be too good, as a sentence; empty if there is no reason."""
        if self.held_out is not None:
            return ""
        why = {
            "this store, split unknown": "was trained on this store, with a split that this version cannot repeat",
            "another store": "was trained on another store",
            "embedded world": "was trained on pairs of the embedded world, not on this store",
            "unknown": "has no record of the pairs that it was trained on",
        }[self.kind]
        return (
            f"{name} {why}: make sure that none of them is among the pairs measured here, or its scores are too good."
        )


def past_of(record: Mapping[str, Any], store: EmbeddingStore) -> Past:
    """What a prior's provenance says about its data. An empty record says nothing."""
    data = record.get("data")
    if data is None:
        return Past("embedded world" if record.get("recipe", {}).get("scenes") else "unknown")
    if data == "world":
        return Past("embedded world")
    if data != store.digest:
        return Past("another store")
    images = record.get("recipe", {}).get("validation_images")
    if images is None or "validation" not in record:
        return Past("this store, split unknown")
    held_out = split(store, images)[1]
    if split_digest(held_out) != record["validation"]:
        return Past("this store, split unknown")
    return Past("this store", held_out.chosen)


def record_of(folder: Path) -> dict[str, Any]:
    """The provenance in a prior's folder; empty if there is none."""
    path = folder / artifacts.PROVENANCE_FILE
    return artifacts.read_json(path) if path.is_file() else {}


def common(store: EmbeddingStore, pasts: Sequence[Past], number: int | None, seed: int) -> StorePairs:
    """The captions of images that every prior trained on this store held out; `number` of the images, chosen by `seed`.

    If no prior was trained on the store, every image may be chosen. Without a `number` there are 4,096 images at most.

    Raises:
        UserError: the priors held out no image in common, or fewer than `number`.
    """
    kept = torch.ones(len(store), dtype=torch.bool)
    for past in pasts:
        if past.held_out is not None:
            own = torch.zeros(len(store), dtype=torch.bool)
            own[past.held_out] = True
            kept &= own
    captions = kept.nonzero()[:, 0]
    numbers = StorePairs(store, captions).image_numbers(torch.arange(len(captions))) if len(captions) else captions
    images = numbers.unique()
    which = "The priors held out" if any(past.held_out is not None for past in pasts) else "There are"
    if not len(images):
        raise UserError(f"the priors held out no image of {store.path} in common. Evaluate them one by one.")
    if number is not None and number > len(images):
        raise UserError(
            f"--images {number:,} is more than there are to measure on: {which.lower()} "
            f"{counted(len(images), 'image')} of {store.path}. Ask for fewer, or omit --images."
        )
    size = min(len(images), number or MOST)
    if size == len(images):
        return StorePairs(store, captions)
    order = torch.randperm(len(images), generator=generator(seed, "evaluated pictures"))
    chosen = images[order[:size]]
    return StorePairs(store, captions[torch.isin(numbers, chosen)])


def rest_of(store: EmbeddingStore, measured: StorePairs, number: int = MOST) -> StorePairs:
    """Captions of other images than the measured ones, `number` at most, to fit controls on; the measured ones if there are no others."""
    images = measured.image_numbers(torch.arange(len(measured)))
    others = (~torch.isin(store.same_picture[store.all_images_of()], images)).nonzero()[:, 0]
    if not len(others):
        return measured
    order = torch.randperm(len(others), generator=generator(0, "captions for controls"))
    return StorePairs(store, others[order[:number]])


@dataclass(frozen=True)
class Truth:
    """The held-out pairs."""

    pairs: StorePairs

    def __len__(self) -> int:
        """M."""
        return len(self.pairs)

    @cached_property
    def everything(self) -> Int[Tensor, "M"]:
        return torch.arange(len(self.pairs))

    @cached_property
    def images(self) -> Float[Tensor, "M D"]:
        """Of each caption's image, raw."""
        return self.pairs.images(self.everything).float()

    @cached_property
    def texts(self) -> Float[Tensor, "M D"]:
        """Pooled text embeddings, raw."""
        return self.pairs.pooled(self.everything).float()

    @cached_property
    def image_numbers(self) -> Int[Tensor, "G"]:
        """Their numbers in the store."""
        return self.pairs.image_numbers(self.everything).unique()

    @cached_property
    def image_of(self) -> Int[Tensor, "M"]:
        """For each caption its image's place among `image_numbers`."""
        return torch.searchsorted(self.image_numbers, self.pairs.image_numbers(self.everything))

    @cached_property
    def ids(self) -> Int[Tensor, "M"]:
        """Equal where the words of two captions are equal, from 0."""
        return self.pairs.ids(self.everything).unique(return_inverse=True)[1]

    @cached_property
    def right(self) -> Bool[Tensor, "M G"]:
        """Which images a caption describes: its own, and those that have a caption with the same words."""
        described = torch.zeros(int(self.ids.max()) + 1, len(self.image_numbers), dtype=torch.bool)
        described[self.ids, self.image_of] = True
        return described[self.ids]

    @cached_property
    def gallery(self) -> Float[Tensor, "G D"]:
        return self.pairs.store.images(self.image_numbers).float()

    @cached_property
    def other(self) -> Int[Tensor, "M"] | None:
        """For each caption another one with other words; None if some have none."""
        most = int(self.ids.bincount().max())
        if 2 * most > len(self):
            return None
        order = self.ids.argsort(stable=True)
        return torch.empty_like(order).scatter_(0, order, order.roll(most))

    def by_image(self, values: Float[Tensor, "M"]) -> list[list[float]]:
        """Means over the captions of each image, as rows for the bootstrap."""
        sums = torch.zeros(len(self.image_numbers), dtype=torch.float64).index_add_(0, self.image_of, values.double())
        return [[value] for value in (sums / self.image_of.bincount()).tolist()]
