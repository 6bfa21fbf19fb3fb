"""Which pairs of an embedding store no prior under comparison was trained on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
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
