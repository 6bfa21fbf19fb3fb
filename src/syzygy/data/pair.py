"""What a source of pairs gives: pictures with captions as they were found, and what is wrong with the others."""

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from syzygy.core.errors import UserError

Scalar = bool | float | str
CAPTION_NAMES = ("caption", "captions", "text", "texts", "txt")
"""Columns, or fields of metadata, that hold captions by their name, in any case. The user must name others."""
WHOLE_FILE = "(the file)"
"""The key of what is wrong with a shard's file, and not with one of its samples."""
WHOLE = 16 * 2**20
"""Files up to this size are hashed whole."""
BLOCK, BLOCKS = 64 * 2**10, 64
"""Of larger files, the size and number of the blocks that are hashed, evenly spread, including the first and the last: 4 MiB."""


@dataclass(frozen=True)
class RawSubject:
    """A subject as a source names it: a phrase, and its place in the image. See `data.source_subjects`."""

    phrase: str
    """Empty if it has none."""
    box: tuple[float, float, float, float] | None = None
    """Left, top, right and bottom, of the upright image."""
    relative: bool = False
    """Whether the box is in fractions of the image's sides; else in pixels."""
    mask: bytes | Path | None = None
    """An encoded image, or where its file is: white where the subject is."""
    reason: str | None = None
    """Why it cannot be used; then it has no place."""


@dataclass(frozen=True)
class RawPair:
    """One picture, or its ready-made embedding, with one or several captions."""

    key: str
    """What the source calls it; unique in its shard."""
    captions: tuple[str, ...]
    """At least one; all can be written as UTF-8. None is empty, except the only one of a picture from a source without captions."""
    picture: bytes | Path | None = None
    """An encoded picture, or where its file is."""
    embedding: Float[np.ndarray, "D"] | None = None
    """In place of a picture: its raw image embedding."""
    columns: Mapping[str, Scalar] = field(default_factory=dict)
    """Metadata: numbers, booleans, text."""
    unusable: tuple[str, ...] = ()
    """Why further captions of this picture were left out."""
    taken: tuple[str, ...] = ()
    """Where the captions come from: names of columns, of fields, or the ending of a file."""
    left: tuple[str, ...] = ()
    """Names of columns with text that is not kept."""
    subjects: tuple[RawSubject, ...] = ()
    """Empty unless the source is read with subjects."""


@dataclass(frozen=True)
class Bad:
    """A sample that cannot be used, and why."""

    key: str
    reason: str


@dataclass(frozen=True)
class Skipped:
    """A sample without a picture by intent, such as a failed download: no fault of the data."""

    key: str


@dataclass(frozen=True)
class Unused:
    """Files of a source that belong to no sample, such as members of a tar with an unknown ending."""

    key: str
    """The name of the first of them."""
    reason: str
    number: int
    """How many there are."""


Sample = RawPair | Bad | Skipped | Unused


@runtime_checkable
class Shard(Protocol):
    """A part of a source that is read from its beginning to its end: the unit of work. It can be sent to other processes."""

    @property
    def name(self) -> str:
        """Unique in its source, and the same wherever the source is mounted."""
        ...

    @property
    def size(self) -> int:
        """Bytes that it reads: how much work it is, relative to other shards of the source."""
        ...

    @property
    def samples(self) -> int | None:
        """How many it has, if that is known without reading it."""
        ...

    @property
    def fingerprint(self) -> str:
        """Identifies its data: another fingerprint means other data."""
        ...

    def read(self) -> Iterator[Sample]:
        """Its samples, streamed, in an order that never changes.

        Raises:
            UserError: the file is gone, or is not what the source was opened as.
        """
        ...


def pair_of(
    key: str,
    captions: Iterable[Any],
    metadata: Mapping[str, Any],
    keep: tuple[str, ...],
    *,
    picture: bytes | Path | None = None,
    embedding: Float[np.ndarray, "D"] | None = None,
    taken: tuple[str, ...] = (),
    left: tuple[str, ...] = (),
    subjects: tuple[RawSubject, ...] = (),
) -> RawPair | Bad:
    """Make a pair of what was found, or say why none of its captions can be used.

    Args:
        captions: text, bytes or None, in their order.
        metadata: columns by name, without the captions; `keep` names those whose text is kept.
        taken: where the captions come from.
        left: names of columns with text that are not in `metadata` and not kept.
        subjects: those of the picture.
    """
    key = clean(key)
    kept, reasons = usable_captions(captions)
    others = tuple(dict.fromkeys([*left, *(name for name in texts_in(metadata) if name not in keep)]))
    if kept:
        return RawPair(key, kept, picture, embedding, scalars(metadata, keep), reasons, taken, others, subjects)
    hint = f": name its column with --caption-column. Columns with text: {', '.join(others)}" if others else ""
    return Bad(key, reasons[0] if reasons else f"the caption is missing{hint}")


def usable_captions(found: Iterable[Any]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(captions that can be used, reasons against the others)."""
    kept, reasons = [], []
    for caption in found:
        if caption is None:
            reasons.append("the caption is missing")
            continue
        if not isinstance(caption, str | bytes):
            reasons.append(f"the caption is {type(caption).__name__}, not text")
            continue
        try:
            text = (caption.decode("utf-8-sig") if isinstance(caption, bytes) else caption).strip()
            text.encode()
        except UnicodeError:
            reasons.append("the caption is not UTF-8")
            continue
        if text:
            kept.append(text)
        else:
            reasons.append("the caption is empty")
    return tuple(kept), tuple(reasons)


def clean(text: str) -> str:
    """`text` such that it can be written as UTF-8: characters that cannot are spelled out."""
    return text.encode(errors="backslashreplace").decode()


def listed(value: Any) -> list[Any]:
    """Captions from one field: a text alone, or a list of them."""
    return list(value) if isinstance(value, list | tuple) else [value]


def caption_fields(metadata: Mapping[str, Any], named: tuple[str, ...]) -> tuple[str, ...]:
    """The fields of a sample's metadata that hold its captions: those that are named, else the first of `CAPTION_NAMES` that it has."""
    if named:
        return tuple(name for name in named if name in metadata)
    there = {name.lower(): name for name, value in reversed(list(metadata.items())) if value is not None}
    return next(((there[name],) for name in CAPTION_NAMES if name in there), ())


def captions_in(metadata: Mapping[str, Any], fields: tuple[str, ...]) -> list[Any]:
    """The captions in these fields of a sample's metadata."""
    return [caption for name in fields for caption in listed(metadata[name])]


def without(metadata: Mapping[str, Any], fields: tuple[str, ...]) -> dict[str, Any]:
    """The metadata of a sample, without these fields."""
    return {name: value for name, value in metadata.items() if name not in fields}


def texts_in(metadata: Mapping[str, Any]) -> list[str]:
    """The names of the fields that hold text, or a list of texts."""
    return [
        name
        for name, value in metadata.items()
        if isinstance(value, str) or (isinstance(value, list) and value and isinstance(value[0], str))
    ]


def scalars(metadata: Mapping[str, Any], keep: tuple[str, ...]) -> dict[str, Scalar]:
    """Numbers and booleans; as text, whatever `keep` names. Lists, nested values and nulls have no column."""
    found: dict[str, Scalar] = {}
    for name, value in metadata.items():
        if not isinstance(value, bool | int | float | str):
            continue
        if name in keep:
            found[name] = clean(str(value))
        elif isinstance(value, bool):
            found[name] = value
        elif not isinstance(value, str):
            try:
                found[name] = float(value)
            except OverflowError:  # a whole number beyond 1.8e308
                continue
    return found


def file_fingerprint(path: Path) -> str:
    """16 hex digits over a file's size and content; of a large file, over a sample of its content.

    Modification times do not count, so that a copy of a source is the same source. An edit in a large file that keeps its size may
    not be noticed.

    Raises:
        UserError: it cannot be read.
    """
    digest = hashlib.blake2b(digest_size=8)
    try:
        size = path.stat().st_size
        digest.update(size.to_bytes(8, "little"))
        with path.open("rb") as file:
            if size <= WHOLE:
                digest.update(file.read())
            else:
                for block in range(BLOCKS):
                    file.seek(block * (size - BLOCK) // (BLOCKS - 1))
                    digest.update(file.read(BLOCK))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}.") from None
    return digest.hexdigest()


def size_of(path: Path) -> int:
    """Bytes of a file; -1 if there is none."""
    try:
        return os.stat(path).st_size
    except (OSError, ValueError):
        return -1
