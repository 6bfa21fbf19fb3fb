"""Decoding and preparation of pictures ahead of the encoder, in threads, without changing their order."""

import hashlib
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from PIL import Image

from syzygy.core.edge_maps import edges_of
from syzygy.core.errors import UserError
from syzygy.core.image_reading import as_rgb, loaded, read_bytes
from syzygy.core.phrase_places import places
from syzygy.data.pair import Bad, RawPair, RawSubject, Sample, Scalar, Skipped, Unused
from syzygy.data.source_subjects import cut_out

P = TypeVar("P")


@dataclass(frozen=True)
class CutOut(Generic[P]):
    """A subject of a pair, cut out on white and ready for the encoder."""

    phrase: str
    image: P | None
    """What `prepare` returned for the cut-out; None if it cannot be used."""
    content: int = 0
    """64 bits with sign, equal where cut-outs are."""
    reason: str | None = None
    """Why it cannot be used."""


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
    subjects: tuple[CutOut[P], ...] = ()
    """In the source's order."""
    edges: P | None = None
    """What `prepare` returned for the edges of the picture; None if they were not wanted, and for a ready-made embedding."""


def content_hash(data: bytes) -> int:
    """64 bits with sign, equal where the bytes are."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little", signed=True)


def prepared(
    samples: Iterator[Sample], prepare: Callable[[Image.Image], P], threads: int, ahead: int, *, edges: bool = False
) -> Iterator[Prepared[P] | Bad | Skipped | Unused]:
    """The samples in their order. Up to `ahead` of them are being prepared or wait, and are in memory.

    `edges` asks for the edges of each picture too, which need OpenCV.
    """
    pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")
    waiting: deque[Future[Prepared[P] | Bad] | Bad | Skipped | Unused] = deque()

    def first() -> Prepared[P] | Bad | Skipped | Unused:
        found = waiting.popleft()
        return found.result() if isinstance(found, Future) else found

    try:
        for sample in samples:
            waiting.append(pool.submit(_prepared, sample, prepare, edges) if isinstance(sample, RawPair) else sample)
            if len(waiting) > ahead:
                yield first()
        while waiting:
            yield first()
    finally:
        pool.shutdown(cancel_futures=True)


def _prepared(pair: RawPair, prepare: Callable[[Image.Image], P], edges: bool) -> Prepared[P] | Bad:
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
        ready = prepare(image)
        outlines = prepare(Image.fromarray(edges_of(np.asarray(image)))) if edges else None
        subjects = tuple(_cut_outs(pair, image, prepare))
        return _with(pair, ready, columns, content_hash(data), size, subjects, outlines)
    except UserError as error:
        return Bad(pair.key, str(error).rstrip("."))
    except MemoryError:
        raise
    except Exception as error:  # one picture of millions must not end the run
        return Bad(pair.key, f"the picture cannot be prepared ({type(error).__name__})")


def _cut_outs(pair: RawPair, image: Image.Image, prepare: Callable[[Image.Image], P]) -> Iterator[CutOut[P]]:
    """The pair's subjects. What is wrong with one of them does not affect the pair."""
    before: set[str] = set()
    for subject in pair.subjects:
        words = " ".join(subject.phrase.casefold().split())
        reason = subject.reason or _phrase_fault(subject, pair.captions)
        if reason is None and words in before:
            reason = "another subject of the image has the same phrase"
        if reason is not None:
            yield CutOut(subject.phrase, None, reason=reason)
            continue
        try:
            found = cut_out(subject, image)
            ready = prepare(found)
        except MemoryError:
            raise
        except Exception as error:  # a mask may be anything
            reason = str(error).rstrip(".") if isinstance(error, UserError) else type(error).__name__
            yield CutOut(subject.phrase, None, reason=reason)
            continue
        before.add(words)
        content = content_hash(b"%d %d " % found.size + found.tobytes())
        yield CutOut(subject.phrase, ready, content)


def _phrase_fault(subject: RawSubject, captions: Iterable[str]) -> str | None:
    held = any(places(caption, subject.phrase) for caption in captions)
    return None if held else "its phrase is in none of the captions"


def picture_data(picture: bytes | Path) -> bytes:
    """The encoded picture itself, or that in a file. Raises `UserError` if the file cannot be read."""
    return read_bytes(picture) if isinstance(picture, Path) else picture


def _with(
    pair: RawPair,
    image: P,
    columns: dict[str, Scalar],
    content: int,
    size: int,
    subjects: tuple[CutOut[P], ...] = (),
    edges: P | None = None,
) -> Prepared[P]:
    about = (pair.key, pair.captions, image, columns, pair.unusable, content, size, pair.taken, pair.left)
    return Prepared(*about, subjects, edges)
