"""What a source of pairs gives: pictures with captions as they were found, and what is wrong with the others."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

Scalar = bool | float | str
CAPTION_NAMES = ("caption", "captions", "text", "texts", "txt")
"""Columns, or fields of metadata, that hold captions by their name, in any case; others must be named by the user."""
WHOLE_FILE = "(the file)"
"""The key of what is wrong with a shard's file, not with one of its samples."""


@dataclass(frozen=True)
class RawPair:
    """One picture, or its ready-made embedding, with one or several captions."""

    key: str
    """What the source calls it; unique in its shard."""
    captions: tuple[str, ...]
    """At least one; none is empty, all can be written as UTF-8."""
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


@dataclass(frozen=True)
class Bad:
    """A sample that cannot be used, and why."""

    key: str
    reason: str


@dataclass(frozen=True)
class Skipped:
    """A sample without a picture by intent, such as a download that failed: no fault of the data."""

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
    """A part of a source that is read from its beginning to its end: the unit of work. Frozen, and can be sent to other processes."""

    @property
    def name(self) -> str:
        """Unique in its source, and the same wherever the source is mounted."""
        ...

    @property
    def size(self) -> int:
        """Bytes of what it reads: how much work it is, in relation to other shards of the source."""
        ...

    @property
    def samples(self) -> int | None:
        """How many it has, if that is known without reading it."""
        ...

    @property
    def fingerprint(self) -> str:
        """What its data are recognised by: another one means other data."""
        ...

    def read(self) -> Iterator[Sample]:
        """Its samples, streamed, in an order that never changes.

        Raises:
            UserError: the file is gone, or is not what the source was opened as.
        """
        ...


def usable_captions(found: Iterable[Any]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(captions that can be used, reasons against the others)."""
    kept, reasons = [], []
    for caption in found:
        try:
            text = _text(caption).strip()
            text.encode()
        except UnicodeError:
            reasons.append("the caption is not UTF-8")
        except TypeError as error:
            reasons.append(str(error))
        else:
            if text:
                kept.append(text)
            else:
                reasons.append("the caption is empty")
    return tuple(kept), tuple(reasons)


def _text(caption: Any) -> str:
    if isinstance(caption, bytes):
        return caption.decode("utf-8-sig")
    if caption is None:
        raise TypeError("the caption is missing")
    if not isinstance(caption, str):
        raise TypeError(f"the caption is {type(caption).__name__}, not text")
    return caption


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
) -> RawPair | Bad:
    """A pair of what was found, or why there is none: no caption can be used.

    Args:
        captions: text, bytes or None, in the order they have.
        metadata: columns by name, without the captions; `keep` names those whose text is kept.
        taken: where the captions come from.
        left: names of columns with text that are not in `metadata` and not kept.
    """
    key = clean(key)
    kept, reasons = usable_captions(captions)
    others = tuple(dict.fromkeys([*left, *(name for name in texts_in(metadata) if name not in keep)]))
    if not kept:
        return Bad(key, reasons[0] if reasons else _missing(others))
    return RawPair(key, kept, picture, embedding, scalars(metadata, keep), reasons, taken, others)


def _missing(texts: tuple[str, ...]) -> str:
    """Why a sample has no caption: perhaps another column holds it."""
    if not texts:
        return "the caption is missing"
    return f"the caption is missing: name its column with --caption-column. Columns with text: {', '.join(texts)}"


def clean(text: str) -> str:
    """`text` such that it can be written as UTF-8: what cannot is spelt out."""
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
    """The metadata of a sample but for these fields."""
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
