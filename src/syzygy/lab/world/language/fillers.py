"""Sentences that say nothing of a scene, to stand before the one that does."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from syzygy.core.randomness import Draw
from syzygy.lab.world.language.base import Length


def _words(sentence: str) -> int:
    return len(sentence.split())


@dataclass(frozen=True)
class Fillers:
    """Sentences without any word of the world that a parser could mistake; read back by exact match."""

    sentences: Sequence[str]
    medium: tuple[float, float] = (10.0, 34.0)
    """How much text a medium caption has before the decisive sentence, at most the second; drawn between the two."""
    long: tuple[float, float] = (100.0, 220.0)
    """How much a long one has at least; drawn between the two."""
    size: Callable[[str], int] = _words
    """Measures a sentence: in words, or where no spaces part them, in characters."""
    space: str = " "
    """Stands between sentences."""
    ends: str = ".!?"
    """What sentences end with."""

    def head(self, draw: Draw, length: Length) -> str:
        """Text to put before the decisive sentence, with the space between; empty for a short caption."""
        if length == "short":
            return ""
        said, wanted = 0, draw.between(*(self.long if length == "long" else self.medium))
        chosen: list[str] = []
        order: list[str] = []
        while said < wanted:
            if len(chosen) % len(self.sentences) == 0:
                order = draw.order(self.sentences)
            sentence = order[len(chosen) % len(self.sentences)]
            if length == "medium" and said + self.size(sentence) > self.medium[1]:
                break
            chosen.append(sentence)
            said += self.size(sentence)
        return self.space.join(chosen) + self.space if chosen else ""

    def removed(self, text: str) -> str:
        """The text without such sentences."""
        parts = re.split(rf"(?<=[{self.ends}])\s{'+' if self.space else '*'}", text.strip())
        return (self.space or " ").join(part for part in parts if part not in self.sentences)
