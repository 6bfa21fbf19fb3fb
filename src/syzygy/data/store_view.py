"""An overview of an embedding store: sample pairs with their pictures, caption lengths, duplicates, columns."""

import shlex
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from syzygy.core.config import parse
from syzygy.core.errors import UserError
from syzygy.core.image_reading import loaded, quiet
from syzygy.core.randomness import generator
from syzygy.data.pair import RawPair, Shard
from syzygy.data.prefetch import picture_data
from syzygy.data.sources import SourceOptions, open_source
from syzygy.data.store import EmbeddingStore

BINS = 12
"""Of the histogram of caption lengths, at most."""
SHARDS = 4
"""Shards of the source that samples come from. Each is read up to its last sample."""


@dataclass(frozen=True)
class Pair:
    """A picture of a store, with its captions."""

    key: str
    captions: list[str]
    image: Image.Image | None
    """None where it was not found."""


@dataclass(frozen=True)
class View:
    """What `syzygy store show` shows."""

    pairs: list[Pair]
    missing: str | None
    """Why pictures are missing, if some are."""
    lengths: dict[str, Any]
    """Tokens of captions: shortest, median, mean, longest, and a histogram: [first, last, captions]."""
    captions_per_picture: dict[str, Any]
    duplicates: dict[str, int]
    """Pictures that are the same as an earlier one, and captions that have the words of an earlier one."""
    columns: dict[str, dict[str, Any]]
    """Type and values of each."""


def view(store: EmbeddingStore, number: int, seed: int, source: str | None = None) -> View:
    """Summarise a store, and show `number` of its pictures, chosen at random.

    Args:
        source: where the pictures are. None: where they were when they were embedded.

    Raises:
        UserError: a file of the store is damaged; `source` is given and cannot be opened.
    """
    pictures = _chosen(store, number, seed)
    owner, lengths = store.all_images_of(), store.all_lengths()
    images, missing = _pictures(store, pictures, source)
    captions = {image: torch.nonzero(owner == image).flatten().tolist() for image in pictures}
    keys = store.keys(pictures)
    counts = torch.bincount(owner, minlength=store.number_of_images)
    return View(
        pairs=[
            Pair(key, store.texts(captions[image]), images.get(image))
            for key, image in zip(keys, pictures, strict=True)
        ],
        missing=missing,
        lengths=_lengths(lengths),
        captions_per_picture={"mean": round(float(counts.double().mean()), 2), "most": int(counts.max())},
        duplicates={
            "pictures": store.number_of_images - store.different_images,
            "captions": len(store) - len(store.all_ids().unique()),
        },
        columns={name: _column(store, name, kind) for name, kind in store.columns.items()},
    )


def _chosen(store: EmbeddingStore, number: int, seed: int) -> list[int]:
    """Pictures at random, of a few shards, in the store's order."""
    sizes = [sum(part["pictures"] for part in shard["parts"]) for shard in store.manifest["shards"]]
    order = torch.randperm(len(sizes), generator=generator(seed, "shards to show")).tolist()
    shards = sorted([shard for shard in order if sizes[shard]][:SHARDS])
    everything = [image for shard in shards for image in range(sum(sizes[:shard]), sum(sizes[: shard + 1]))]
    rows = torch.randperm(len(everything), generator=generator(seed, "pictures to show"))[:number]
    return sorted(everything[row] for row in rows.tolist())


def _pictures(
    store: EmbeddingStore, wanted: Sequence[int], source: str | None
) -> tuple[dict[int, Image.Image], str | None]:
    """(the pictures that were found, by number, why others were not)."""
    try:
        shards = _source(store, source)
    except UserError as error:
        if source is not None:
            raise
        return {}, str(error)
    images_of: dict[str, dict[str, int]] = {}
    fingerprints: dict[str, str] = {}
    for image, key in zip(wanted, store.keys(wanted), strict=True):
        shard = store.shard_of(image)
        images_of.setdefault(shard["source"], {})[key] = image
        fingerprints[shard["source"]] = shard["fingerprint"]
    found: dict[int, Image.Image] = {}
    changed = False
    for name, images in images_of.items():
        shard = shards.get(name)
        if shard is None or shard.fingerprint != fingerprints[name]:
            changed = True
            continue
        found |= {images[key]: image for key, image in _read(shard, set(images)).items()}
    if changed:
        return found, "the source has changed since it was embedded, or is another one"
    return found, None if len(found) == len(wanted) else "the source holds no pictures for them, or they cannot be read"


def _source(store: EmbeddingStore, source: str | None) -> Mapping[str, Shard]:
    """The shards of what was embedded, by name."""
    source = source or store.source
    if source is None:
        made = " ".join(shlex.split(store.manifest["command"])[:3])
        raise UserError(f"it was made by {made}, which does not name the pictures' place. Name it with --source SOURCE")
    options = parse(SourceOptions, store.manifest["options"] or {}, "store show")
    return {shard.name: shard for shard in open_source(source, options).shards}


def _read(shard: Shard, keys: set[str]) -> dict[str, Image.Image]:
    found: dict[str, Image.Image] = {}
    left = set(keys)
    with quiet():
        for sample in shard.read():
            if not isinstance(sample, RawPair) or sample.key not in left or sample.picture is None:
                continue
            left.discard(sample.key)
            with suppress(UserError):  # it was readable when it was embedded; otherwise its cell stays empty
                found[sample.key] = loaded(picture_data(sample.picture), "the picture")
            if not left:
                break
    return found


def _lengths(lengths: torch.Tensor) -> dict[str, Any]:
    low, high = int(lengths.min()), int(lengths.max())
    width = -(-(high - low + 1) // BINS)
    counts = torch.bincount((lengths - low) // width)
    bins = [[low + i * width, min(low + (i + 1) * width - 1, high), count] for i, count in enumerate(counts.tolist())]
    middle = float(lengths.double().quantile(0.5)) if len(lengths) < 10**7 else float(lengths.median())
    mean = round(float(lengths.double().mean()), 2)
    return {"shortest": low, "median": middle, "mean": mean, "longest": high, "histogram": bins}


def _column(store: EmbeddingStore, name: str, kind: str) -> dict[str, Any]:
    values = store.column(name)
    if isinstance(values, list):
        there = [value for value in values if value]
        examples = list(dict.fromkeys(there))[:3]
        return {"type": kind, "missing": len(values) - len(there), "different": len(set(there)), "examples": examples}
    if values.dtype == torch.bool:
        return {"type": kind, "true": int(values.sum())}
    there = values[~values.isnan()]
    found = {"type": kind, "missing": len(values) - len(there)}
    if len(there) == 0:
        return found
    return found | {"lowest": float(there.min()), "mean": float(there.mean()), "highest": float(there.max())}
