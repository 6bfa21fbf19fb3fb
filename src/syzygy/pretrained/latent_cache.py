"""Latents of images, encoded once into a run's folder, so that trainings read them in any order and without the autoencoder.

Shapes: B images of a batch, C latent channels, h × w latent positions.
"""

import hashlib
import json
import os
import time
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate, islice
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from syzygy.core import artifacts
from syzygy.core.errors import UserError
from syzygy.core.image_reading import READING, quiet
from syzygy.core.randomness import generator
from syzygy.core.wording import counted
from syzygy.data.pair import Bad, Shard
from syzygy.data.prefetch import Prepared, prepared
from syzygy.data.sources import Source
from syzygy.data.store_files import mapped, remove_unfinished, write_tensors
from syzygy.pretrained.unet_training import MEAN, STD, Pictures

ABOUT_FILE = "latents.json"
PART = 2048
"""Images per file."""
BATCH = 8
"""Images that are encoded together."""
MOST_THREADS = 8
"""The most threads that decode image files."""
EARLY = 1000
"""Number of samples after which too many unusable ones stop the work early."""
SECONDS = 10.0
"""Seconds between two lines of progress."""
Tensors = Mapping[str, Tensor]


class Latents:
    """The latents and captions in a folder that `encoded` filled. The files are mapped into memory, not read."""

    def __init__(self, folder: Path, records: Sequence[Mapping[str, Any]]) -> None:
        files = [part["file"] for record in records for part in record["parts"]]
        self._parts = [mapped(folder / file["name"], file["size"]) for file in files]
        self._starts = [0, *accumulate(len(part[MEAN]) for part in self._parts)]
        self.captions: list[tuple[str, ...]] = [
            tuple(captions) for record in records for part in record["parts"] for captions in part["captions"]
        ]
        contents = [
            content
            for record in records
            for part in record["parts"]
            for content in part.get("contents", [None] * len(part["captions"]))
        ]
        first: dict[int | None, int] = {}
        self.same_picture = [
            row if content is None else first.setdefault(content, row) for row, content in enumerate(contents)
        ]
        """For each image, the first one with the same file content. Records of older versions have no hashes; there, all images differ."""
        self.fingerprint = hashlib.blake2b(json.dumps(records).encode(), digest_size=8).hexdigest()
        """Identifies latents and captions."""

    def __len__(self) -> int:
        return len(self.captions)

    def sampled(self, pictures: Sequence[int], *key: int | str) -> Float[Tensor, "B C h w"]:
        """Latents of these images in fp32, on the CPU, sampled from the autoencoder's means and standard deviations; `key` seeds the noise."""
        mean = self._rows(MEAN, pictures)
        if STD not in self._parts[0]:
            return mean
        noise = torch.randn(mean.shape, generator=generator(0, "latents", *key))
        return mean + self._rows(STD, pictures) * noise

    def extras(self, pictures: Sequence[int]) -> dict[str, Float[Tensor, "B ..."]]:
        """What else was encoded of these images, in fp32, on the CPU."""
        return {name: self._rows(name, pictures) for name in self._parts[0] if name not in (MEAN, STD)}

    def _rows(self, name: str, pictures: Sequence[int]) -> Float[Tensor, "B ..."]:
        def row(picture: int) -> Tensor:
            place = bisect_right(self._starts, picture) - 1
            return self._parts[place][name][picture - self._starts[place]]

        return torch.stack([row(picture) for picture in pictures]).float()


def encoded(
    source: Source,
    pictures: Pictures,
    folder: Path,
    about: Mapping[str, Any],
    *,
    max_bad: float,
    say: Callable[[str], None],
) -> Latents:
    """Encode a source's images into `folder`; shards that were finished before are not encoded again.

    Args:
        about: JSON values that describe how images become latents (autoencoder, size); they must not change.
        max_bad: the share of the samples that may be unusable. They are left out, and listed in the shards' records.
        say: called with a line of progress every few seconds.

    Raises:
        UserError: the folder holds latents of other images, or latents that were made differently; the source has no images, no captions, or
            too many unusable samples.
    """
    if source.kind == "embeddings":
        raise UserError(f"{source.text} holds ready-made embeddings; a U-Net is trained on the pictures themselves.")
    shards = [[shard.name, shard.fingerprint] for shard in source.shards]
    _claim(folder, {**about, "picture_reading": READING, "shards": shards}, source.text)
    remove_unfinished(folder)
    records = []
    with quiet():
        for number, shard in enumerate(source.shards):
            path = folder / f"{number:05}.json"
            if not path.is_file():
                progress = _progress(say, f"latents, part {number + 1} of {len(source.shards)}")
                artifacts.write_json(path, _encode_shard(shard, number, pictures, folder, progress))
            records.append(artifacts.read_json(path))
            _check_bad(records, source.text, max_bad, at_end=number + 1 == len(source.shards))
    found = Latents(folder, records)
    if not len(found):
        raise UserError(f"{source.text} holds no picture with a caption.")
    say(f"latents of {counted(len(found), 'picture')} in {folder}")
    return found


def _progress(say: Callable[[str], None], title: str) -> Callable[[int], None]:
    """A function that takes how many more images are done, and says so every few seconds."""
    last, done = time.monotonic(), 0

    def advance(more: int) -> None:
        nonlocal last, done
        done += more
        if time.monotonic() - last > SECONDS:
            last = time.monotonic()
            say(f"{title}: {counted(done, 'picture')}")

    return advance


def _claim(folder: Path, about: Mapping[str, Any], source: str) -> None:
    """Write down how the folder's latents are made, or check that they were made in the same way."""
    values = json.loads(json.dumps({"schema_version": artifacts.SCHEMA_VERSION, **about}))
    path = folder / ABOUT_FILE
    if not path.is_file():
        artifacts.write_json(path, values)
        return
    before = artifacts.read_json(path)
    if all((folder / f"{number:05}.json").is_file() for number in range(len(values["shards"]))):
        # A finished cache is consistent, whichever version decoded the images.
        values["picture_reading"] = before.get("picture_reading")
    other = [name for name in {**values, **before} if values.get(name) != before.get(name)]
    if other:
        raise UserError(
            f"{folder} holds latents of other pictures than those of {source}, or latents that were made differently "
            f"({', '.join(other)} differ). Choose another --out."
        )


def _encode_shard(
    shard: Shard, number: int, pictures: Pictures, folder: Path, advance: Callable[[int], None]
) -> dict[str, Any]:
    """Write the files of one shard; returns the record that makes them valid."""
    bad: list[dict[str, str]] = []
    seen = 0

    def usable() -> Iterator[Prepared[Tensors]]:
        nonlocal seen
        threads = min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1, MOST_THREADS)
        for sample in prepared(shard.read(), pictures.prepare, threads, BATCH + 2 * threads):
            seen += isinstance(sample, Prepared | Bad)
            if isinstance(sample, Bad):
                bad.append({"key": sample.key, "reason": sample.reason})
            elif isinstance(sample, Prepared):
                yield sample

    parts, waiting = [], usable()
    while samples := _encode_part(waiting, pictures.encode, advance):
        rows, captions, contents = zip(*samples, strict=True)
        tensors = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
        file = write_tensors(folder / f"{number:05}-{len(parts):05}.safetensors", tensors)
        parts.append({"file": file, "captions": captions, "contents": contents})
    return {"source": shard.name, "seen": seen, "bad": bad, "parts": parts}


def _encode_part(
    waiting: Iterator[Prepared[Tensors]], encode: Callable[[Tensors], Tensors], advance: Callable[[int], None]
) -> list[tuple[dict[str, Tensor], tuple[str, ...], int]]:
    """The images of the next part: tensors, captions and the hash of its file for each."""
    found: list[tuple[dict[str, Tensor], tuple[str, ...], int]] = []
    while len(found) < PART and (batch := list(islice(waiting, BATCH))):
        stacked = {name: torch.stack([sample.image[name] for sample in batch]) for name in batch[0].image}
        kept = {name: x.cpu() for name, x in encode(stacked).items()}
        found += [
            ({name: x[row] for name, x in kept.items()}, one.captions, one.content) for row, one in enumerate(batch)
        ]
        advance(len(batch))
    return found


def _check_bad(records: Sequence[Mapping[str, Any]], source: str, max_bad: float, *, at_end: bool) -> None:
    """Refuse a source with too many unusable samples, at its end or after `EARLY` samples."""
    seen = sum(record["seen"] for record in records)
    bad = [f"{fault['key']}: {fault['reason']}" for record in records for fault in record["bad"]]
    if len(bad) > max_bad * seen and (at_end or seen >= EARLY):
        raise UserError(
            f"{len(bad):,} of {counted(seen, 'sample')} in {source} cannot be used, more than max_bad={max_bad:g} allows: "
            f"{'; '.join(bad[:5])}. Correct the source and choose another --out, or allow more."
        )
