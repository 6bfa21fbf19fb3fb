"""What a language must do: say a description, and read it back."""

from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from syzygy.core.randomness import Draw
from syzygy.lab.world.description import Description

Length = Literal["short", "medium", "long"]
"""Short: the description alone. Medium: a sentence or two before it, within CLIP's 77 tokens in English. Long: a paragraph before it, some 100
to 300 tokens. The decisive words come last."""


@dataclass(frozen=True)
class Span:
    """Characters [start, stop) of a caption that name mention number `mention`."""

    mention: int
    start: int
    stop: int


@dataclass(frozen=True)
class Caption:
    """A text, what it says, and where it says it."""

    text: str
    description: Description
    spans: tuple[Span, ...]


@dataclass(frozen=True)
class Parsed:
    """What was understood of a text, and what was not."""

    description: Description
    unknown: dict[str, tuple[str, ...]]
    """Words that the language does not know, each with the nearest that it does."""
    unused: tuple[str, ...] = ()
    """Known words that went to no object: a relation without a second one, the first of two colours of one, …"""


@runtime_checkable
class Language(Protocol):
    """Words and grammar of one language."""

    @property
    def name(self) -> str:
        """What English calls it."""
        ...

    def caption(self, description: Description, draw: Draw, length: Length = "short") -> Caption:
        """One of several phrasings of the description."""
        ...

    def parse(self, text: str) -> Parsed:
        """The description in a text. Raises UserError when it names no object of the world."""
        ...

    def unknown(self, text: str) -> tuple[str, ...]:
        """The words of a text that the language does not know; filler sentences count as known."""
        ...
