"""Pictures as latents, made once and kept in a run's folder: every node of a tree then reads them in any order, without the autoencoder.

Shapes: N pictures of a part, B of a batch, C latent channels, h × w latent positions, S side of a prepared picture.
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
from PIL import Image
from torch import Tensor

from syzygy import artifact
from syzygy.data.decode import quiet
from syzygy.data.files import mapped, remove_unfinished, write_tensors
from syzygy.data.pair import Bad, Shard, Skipped
from syzygy.data.prefetch import Prepared, prepared
from syzygy.data.sources import Source
from syzygy.errors import UserError
from syzygy.rng import generator

ABOUT_FILE = "latents.json"
PART = 2048
"""Pictures of a file."""
BATCH = 8
"""Pictures that are encoded together."""
MOST_THREADS = 8
"""That decode pictures."""
EARLY = 1000
"""Samples after which too many bad ones end the work before its end."""
SECONDS = 10.0
"""Between two lines of progress."""
Encode = Callable[[Float[Tensor, "B 3 S S"]], tuple[Float[Tensor, "B C h w"], Float[Tensor, "B C h w"]]]
"""Prepared pictures → mean and standard deviation of their latents."""


class Latents:
    """The pictures of a folder that `encoded` filled, with their captions. The files are mapped into memory, not read."""

    def __init__(self, folder: Path, records: Sequence[Mapping[str, Any]]) -> None:
        files = [part["file"] for record in records for part in record["parts"]]
        self._parts = [mapped(folder / file["name"], file["size"]) for file in files]
        self._starts = [0, *accumulate(len(part["mean"]) for part in self._parts)]
        self.captions: list[tuple[str, ...]] = [
            tuple(captions) for record in records for part in record["parts"] for captions in part["captions"]
        ]
        self.fingerprint = _hash(records)
        """Of latents and captions."""

    def __len__(self) -> int:
        return len(self.captions)

    def sampled(self, pictures: Sequence[int], *key: int | str) -> Float[Tensor, "B C h w"]:
        """Latents of these pictures, drawn around their means with the standard deviations that the autoencoder gives; fp32, on the CPU."""
        means, stds = zip(*(self._row(picture) for picture in pictures), strict=True)
        mean = torch.stack(means).float()
        return mean + torch.stack(stds).float() * torch.randn(mean.shape, generator=generator(0, "latents", *key))

    def _row(self, picture: int) -> tuple[Tensor, Tensor]:
        place = bisect_right(self._starts, picture) - 1
        part, row = self._parts[place], picture - self._starts[place]
        return part["mean"][row], part["std"][row]


def encoded(
    source: Source,
    prepare: Callable[[Image.Image], Float[Tensor, "3 S S"]],
    encode: Encode,
    folder: Path,
    about: Mapping[str, Any],
    *,
    max_bad: float,
    say: Callable[[str], None],
) -> Latents:
    """The latents of a source's pictures in `folder`; those of shards that were finished before are not made again.

    Args:
        about: plain JSON values that tell how pictures become latents (autoencoder, size); it must not change.
        max_bad: the part of the samples that may be unusable. They are left out, and listed in the shards' records.
        say: told now and then how far it is.

    Raises:
        UserError: the folder holds latents made otherwise, or of other pictures; no picture, too many that cannot be used; a source without
            pictures.
    """
    if source.kind == "embeddings":
        raise UserError(f"{source.text} holds ready-made embeddings; a U-Net is trained on the pictures themselves.")
    _claim(folder, {**about, "shards": [[shard.name, shard.fingerprint] for shard in source.shards]}, source.text)
    remove_unfinished(folder)
    records = []
    with quiet():
        for number, shard in enumerate(source.shards):
            path = folder / f"{number:05}.json"
            if not path.is_file():
                tell = _paced(say, f"latents, part {number + 1} of {len(source.shards)}")
                artifact.write_json(path, _shard(shard, number, prepare, encode, folder, tell))
            records.append(artifact.read_json(path))
            _check_bad(records, source.text, max_bad, at_end=number + 1 == len(source.shards))
    found = Latents(folder, records)
    if not len(found):
        raise UserError(f"{source.text} holds no picture with a caption.")
    say(f"latents of {len(found):,} pictures in {folder}")
    return found


def _paced(say: Callable[[str], None], title: str) -> Callable[[int], None]:
    """Told of pictures that are done, it tells of them every few seconds."""
    last, done = time.monotonic(), 0

    def tell(more: int) -> None:
        nonlocal last, done
        done += more
        if time.monotonic() - last > SECONDS:
            last = time.monotonic()
            say(f"{title}: {done:,} pictures")

    return tell


def _claim(folder: Path, about: Mapping[str, Any], source: str) -> None:
    """Begin the folder, or see that it was begun in the same way."""
    values = json.loads(json.dumps({"schema_version": artifact.SCHEMA_VERSION, **about}))
    path = folder / ABOUT_FILE
    if not path.is_file():
        artifact.write_json(path, values)
        return
    before = artifact.read_json(path)
    other = [name for name in {**values, **before} if values.get(name) != before.get(name)]
    if other:
        raise UserError(
            f"{folder} holds latents of other pictures than those of {source}, or made otherwise ({', '.join(other)} differ). "
            "Choose another --out."
        )


def _shard(
    shard: Shard, number: int, prepare: Any, encode: Encode, folder: Path, tell: Callable[[int], None]
) -> dict[str, Any]:
    """Make the files of one shard; the value is its record, which makes them count."""
    bad: list[dict[str, str]] = []
    seen = 0

    def usable() -> Iterator[Prepared]:
        nonlocal seen
        threads = min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1, MOST_THREADS)
        for sample in prepared(shard.read(), prepare, threads, BATCH + 2 * threads):
            seen += not isinstance(sample, Skipped)
            if isinstance(sample, Bad):
                bad.append({"key": sample.key, "reason": sample.reason})
            elif isinstance(sample, Prepared):
                yield sample

    parts, waiting = [], usable()
    while samples := _part(waiting, encode, tell):
        means, stds, captions = zip(*samples, strict=True)
        tensors = {"mean": torch.stack(means), "std": torch.stack(stds)}
        file = write_tensors(folder / f"{number:05}-{len(parts):05}.safetensors", tensors)
        parts.append({"file": file.to_config(), "captions": captions})
    return {"source": shard.name, "seen": seen, "bad": bad, "parts": parts}


def _part(
    waiting: Iterator[Prepared], encode: Encode, tell: Callable[[int], None]
) -> list[tuple[Tensor, Tensor, tuple[str, ...]]]:
    """The next part's pictures: mean and standard deviation in fp16, captions."""
    found: list[tuple[Tensor, Tensor, tuple[str, ...]]] = []
    while len(found) < PART and (batch := list(islice(waiting, BATCH))):
        mean, std = (x.half().cpu() for x in encode(torch.stack([sample.image for sample in batch])))
        found += [(mean[row], std[row], sample.captions) for row, sample in enumerate(batch)]
        tell(len(batch))
    return found


def _check_bad(records: Sequence[Mapping[str, Any]], source: str, max_bad: float, *, at_end: bool) -> None:
    """Refuse a source with too many unusable samples; before its end once many were seen."""
    seen = sum(record["seen"] for record in records)
    bad = [f"{fault['key']}: {fault['reason']}" for record in records for fault in record["bad"]]
    if len(bad) > max_bad * seen and (at_end or seen >= EARLY):
        raise UserError(
            f"{len(bad):,} of {seen:,} samples of {source} cannot be used, more than max_bad={max_bad:g} allows: "
            f"{'; '.join(bad[:5])}. Mend the source and choose another --out, or allow more."
        )


def _hash(values: Any) -> str:
    return hashlib.blake2b(json.dumps(values).encode(), digest_size=8).hexdigest()
