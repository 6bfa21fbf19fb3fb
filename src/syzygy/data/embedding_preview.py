"""What an embedding would take, measured on its first pairs: time, memory and disk; and which captions and columns it reads."""

import math
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

import torch

from syzygy.clip.clip_model import Clip
from syzygy.core.image_reading import quiet
from syzygy.data.encoding import DTYPES, EmbedSettings, encode_captions, reproducible
from syzygy.data.pair import Bad, Shard
from syzygy.data.prefetch import Prepared, prepared
from syzygy.data.source_tar import TarShard

PAIRS = 8
"""Pairs that are measured."""
TIMES, ENOUGH_SECONDS = 4, 2.0
"""How often their encoding is timed, of which the fastest counts; once more than these seconds have passed, no more."""
LOOKED_AT = 64
"""Samples that are read to find them."""
SHARDS = 3
"""Shards that are looked into."""
HEADER = 1024
"""Bytes that a picture and its caption take in a tar, apart from their content."""
FILES = 40
"""Bytes of a pair in the store apart from features and texts: numbers of columns, hashes, offsets."""
LIKE_ADDRESS = re.compile(
    r"(\w+://|www\.|[/~\\]|[A-Za-z]:\\)\S*|\S+\.(jpe?g|png|webp|gif|bmp|tiff?|avif|tar|zip)", re.IGNORECASE
)


@dataclass(frozen=True)
class Preview:
    """What the unfinished shards of a source would take; None where it is not known."""

    samples: int | None
    """How many there are."""
    counted: bool
    """Whether `samples` is exact; else it is estimated from the first ones."""
    seconds: float | None
    memory: int
    """Bytes: the encoder's weights, the part that is filled and the pictures that wait, in all workers."""
    bytes: int | None
    """Size of the store."""
    captions_from: tuple[str, ...]
    captions: tuple[str, ...]
    """The first ones."""
    looked_at: int
    """Samples that were read for this."""
    unusable: tuple[str, ...]
    """Why some of them cannot be used: a line each."""
    not_found: tuple[str, ...] = ()
    """Columns to keep that none of the first pairs has."""
    columns: tuple[str, ...] = ()
    """Metadata that the first pairs have."""
    subjects: float | None = None
    """Subjects of a pair that can be used, on average over the first ones; None if they are not embedded."""
    bad_subjects: tuple[str, ...] = ()
    """Why some of these pairs' subjects cannot be used: a line each."""

    @property
    def like_addresses(self) -> bool:
        """Whether most captions look like addresses or names of files."""
        found = sum(LIKE_ADDRESS.fullmatch(caption.strip()) is not None for caption in self.captions)
        return 2 * found > len(self.captions)


def preview(
    shards: Sequence[Shard], clip: Clip, settings: EmbedSettings, workers: int, keep: Sequence[str] = ()
) -> Preview | None:
    """Measure the first usable pairs of these shards. None if none of the first samples can be used.

    Args:
        keep: columns whose text is to be kept.

    Raises:
        UserError: as `Shard.read`.
    """
    with reproducible(settings.threads, settings.device), quiet():
        if not _first_pairs(shards, clip, settings)[0]:
            return None
        began = time.perf_counter()  # the second time, since the first loads decoders and opens files
        found, looked_at, unusable = _first_pairs(shards, clip, settings)
        decoding = (time.perf_counter() - began) * len(found) / looked_at
        encoding, bytes_per_pair = _encoding(found, clip, settings)
    samples, counted = _samples(shards, found)
    per_sample = decoding / len(found) + encoding
    part = min(settings.shard_size, samples or settings.shard_size) * bytes_per_pair
    pixels = [4 * found[0].image.numel() * (1 + len(_further(sample))) + _decoded(sample) for sample in found]
    waiting = (settings.batch_size + 2 * settings.threads) * max(pixels)
    weights = sum(x.numel() * x.element_size() for x in clip.parameters())
    timed = clip.device.type == settings.device
    subjects = [one for sample in found for one in sample.subjects]
    columns = dict.fromkeys(name for sample in found for name in (*sample.columns, *sample.left))
    return Preview(
        samples=samples,
        counted=counted,
        seconds=samples * per_sample / workers if samples is not None and timed else None,
        memory=int(workers * (weights + part + waiting)),
        bytes=int(samples * bytes_per_pair) if samples is not None else None,
        captions_from=found[0].taken,
        captions=tuple(caption for sample in found for caption in sample.captions),
        looked_at=looked_at,
        unusable=tuple(unusable),
        not_found=tuple(name for name in keep if name not in columns),
        columns=tuple(name for name in columns if name not in ("width", "height")),
        subjects=sum(one.image is not None for one in subjects) / len(found) if settings.subjects else None,
        bad_subjects=tuple(
            f"{sample.key}: {one.phrase!r}: {one.reason}" for sample in found for one in sample.subjects if one.reason
        ),
    )


def _first_pairs(shards: Sequence[Shard], clip: Clip, settings: EmbedSettings) -> tuple[list[Prepared], int, list[str]]:
    """(the first usable pairs, samples that were read for them, why some of these cannot be used)."""
    looked_at, unusable = 0, list[str]()
    for shard in shards[:SHARDS]:
        found: list[Prepared] = []
        samples, prepare = islice(shard.read(), LOOKED_AT), clip.preparation.prepare
        for sample in prepared(samples, prepare, settings.threads, PAIRS, edges=settings.edges):
            looked_at += 1
            if isinstance(sample, Prepared):
                found.append(sample)
            elif isinstance(sample, Bad):
                unusable.append(f"{sample.key}: {sample.reason}")
            if len(found) == PAIRS:
                break
        if found:
            return found, looked_at, unusable
    return [], looked_at, unusable


def _encoding(found: Sequence[Prepared], clip: Clip, settings: EmbedSettings) -> tuple[float, float]:
    """(seconds of a pair, bytes of a pair in the store)."""
    texts = [caption for sample in found for caption in sample.captions]
    images = torch.stack([sample.image for sample in found] + [x for sample in found for x in _further(sample)])
    # Workers have their own encoders on the device; timing one on another device would mislead.
    pixels = images if clip.device.type == settings.device and images.ndim > 2 else None
    clip.encode_text(texts[:1])  # what happens only once is not measured
    if pixels is not None:
        clip.encode_pixels(pixels[:1])
    taken: list[float] = []
    while True:  # the first run of a batch size is slow, and so is any while the machine does something else
        began = time.perf_counter()
        encoded = encode_captions(clip.encode_text, texts, DTYPES[settings.dtype], len(texts))
        if pixels is not None:
            clip.encode_pixels(pixels).cpu()
        taken.append(time.perf_counter() - began)
        if len(taken) == TIMES or sum(taken) > ENOUGH_SECONDS:
            break
    values = sum(state.size for state in encoded.states) + clip.width * (len(texts) + len(images))
    strings = sum(len(text.encode()) for text in texts) + sum(len(sample.key.encode()) for sample in found)
    columns = 8 * sum(len(sample.columns) for sample in found)
    return min(taken) / len(found), (2 * values + strings + columns) / len(found) + FILES


def _further(sample: Prepared) -> list[torch.Tensor]:
    """What else is embedded of a pair: its cut-outs, and the edges of its picture."""
    return [x for x in (*(one.image for one in sample.subjects), sample.edges) if x is not None]


def _samples(shards: Sequence[Shard], found: Sequence[Prepared]) -> tuple[int | None, bool]:
    """(samples of these shards, whether that is counted)."""
    known = [shard.samples for shard in shards if shard.samples is not None]
    if len(known) == len(shards):
        return sum(known), True
    size = sum(shard.size for shard in shards)
    if all(isinstance(shard, TarShard) for shard in shards):
        sampled = [shard.picture_density() for shard in shards[:SHARDS] if isinstance(shard, TarShard)]
        if rates := [rate for rate in sampled if rate]:
            return round(size * sum(rates) / len(rates)), False
    sizes = [sample.size for sample in found]
    return round(size / (sum(sizes) / len(sizes) + HEADER)) if all(sizes) else None, False


def _decoded(sample: Prepared) -> int:
    """Bytes of the picture, decoded."""
    sides = sample.columns.get("width", 0.0), sample.columns.get("height", 0.0)
    width, height = (side if isinstance(side, float) and math.isfinite(side) else 0.0 for side in sides)
    return int(3 * width * height)
