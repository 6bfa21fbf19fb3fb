"""Decoding and preparation of pictures ahead of the encoder, in threads, without changing their order."""

import hashlib
import math
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from PIL import Image

from syzygy.core.errors import UserError
from syzygy.core.image_reading import as_rgb, loaded, read_bytes
from syzygy.data.pair import Bad, RawPair, Sample, Scalar, Skipped, Unused

P = TypeVar("P")


@dataclass(frozen=True)
class Prepared(Generic[P]):
    """A pair that is ready for the encoder."""

    key: str
    captions: tuple[str, ...]
    image: P
    """What `prepare` returned for the picture, such as pixels [3, S, S]; or a ready-made embedding [D]."""
    columns: dict[str, Scalar]
    """With `width` and `height` of the upright picture in pixels, before preparation; NaN for an embedding unless the source has them."""
    unusable: tuple[str, ...]
    content: int
    """64 bits with sign over the picture's file, or the ready-made embedding: equal where they are the same."""
    size: int = 0
    """Bytes of the picture's file and of the captions; 0 for ready-made embeddings."""
    taken: tuple[str, ...] = ()
    """As in `RawPair`."""
    left: tuple[str, ...] = ()


def content_hash(data: bytes) -> int:
    """64 bits with sign, equal where the bytes are."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little", signed=True)


def prepared(
    samples: Iterator[Sample], prepare: Callable[[Image.Image], P], threads: int, ahead: int
) -> Iterator[Prepared[P] | Bad | Skipped | Unused]:
    """The samples in their order. Up to `ahead` of them are being prepared or wait, and are in memory."""
    pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")
    waiting: deque[Future[Prepared[P] | Bad] | Bad | Skipped | Unused] = deque()

    def first() -> Prepared[P] | Bad | Skipped | Unused:
        found = waiting.popleft()
        return found.result() if isinstance(found, Future) else found

    try:
        for sample in samples:
            waiting.append(pool.submit(_prepared, sample, prepare) if isinstance(sample, RawPair) else sample)
            if len(waiting) > ahead:
                yield first()
        while waiting:
            yield first()
    finally:
        pool.shutdown(cancel_futures=True)


def _prepared(pair: RawPair, prepare: Callable[[Image.Image], P]) -> Prepared[P] | Bad:
    if pair.embedding is not None:
        columns = {"width": math.nan, "height": math.nan, **pair.columns}
        ready: Any = torch.from_numpy(pair.embedding)
        return _with(pair, ready, columns, content_hash(pair.embedding.tobytes()), 0)
    assert pair.picture is not None, "a pair has a picture or an embedding"
    try:
        data = picture_data(pair.picture)
        image = as_rgb(loaded(data, "the picture"))
        columns = {**pair.columns, "width": float(image.width), "height": float(image.height)}
        size = len(data) + sum(len(caption.encode()) for caption in pair.captions)
        return _with(pair, prepare(image), columns, content_hash(data), size)
    except UserError as error:
        return Bad(pair.key, str(error).rstrip("."))
    except MemoryError:
        raise
    except Exception as error:  # one picture of millions must not end the run
        return Bad(pair.key, f"the picture cannot be prepared ({type(error).__name__})")


def picture_data(picture: bytes | Path) -> bytes:
    """The encoded picture itself, or that in a file. Raises `UserError` if the file cannot be read."""
    return read_bytes(picture) if isinstance(picture, Path) else picture


def _with(pair: RawPair, image: P, columns: dict[str, Scalar], content: int, size: int) -> Prepared[P]:
    return Prepared(pair.key, pair.captions, image, columns, pair.unusable, content, size, pair.taken, pair.left)
