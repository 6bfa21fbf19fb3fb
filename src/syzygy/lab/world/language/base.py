"""Captions and parsed captions, the values that all languages share."""

from dataclasses import dataclass
from typing import Literal

from syzygy.lab.world.description import Description

Length = Literal["short", "medium", "long"]
"""Short: the description alone. Medium: one or two filler sentences before it, within CLIP's 77 tokens in English. Long: a
paragraph before it, 100 to 300 tokens. The description comes last."""


@dataclass(frozen=True)
class Span:
    """Characters [start, stop) of a caption that name mention number `mention`."""

    mention: int
    start: int
    stop: int


@dataclass(frozen=True)
class Caption:
    """A text, the description that it expresses, and where it names each mention."""

    text: str
    description: Description
    spans: tuple[Span, ...]


@dataclass(frozen=True)
class Parsed:
    """The description in a text, and the words that did not enter it."""

    description: Description
    unknown: dict[str, tuple[str, ...]]
    """Unknown words, each with the most similar known ones."""
    unused: tuple[str, ...] = ()
    """Known words that belong to no object: a relation without a second object, the first of two colours of one object, …"""
