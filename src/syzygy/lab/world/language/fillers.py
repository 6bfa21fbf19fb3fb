"""Filler sentences, which say nothing about a scene and come before the one that does."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from syzygy.core.randomness import Draw
from syzygy.lab.world.language.base import Length


def sentences(code: str) -> tuple[str, ...]:
    """The filler sentences of a language, by its code."""
    path = Path(__file__).with_name("filler_sentences") / f"{code}.txt"
    return tuple(path.read_text(encoding="utf-8").splitlines())


def _words(sentence: str) -> int:
    return len(sentence.split())


@dataclass(frozen=True)
class Fillers:
    """Sentences without any word that a parser could mistake; recognised by exact match."""

    sentences: Sequence[str]
    medium: tuple[float, float] = (10.0, 34.0)
    """Range of the amount of filler text in a medium caption, in units of `size`; never more than the second."""
    long: tuple[float, float] = (100.0, 220.0)
    """Range of the least amount of filler text in a long caption."""
    size: Callable[[str], int] = _words
    """Size of a sentence in words, or in characters where a language has no spaces."""
    space: str = " "
    """The space between sentences."""
    ends: str = ".!?"
    """The marks that end a sentence."""

    def head(self, draw: Draw, length: Length) -> str:
        """The filler text of a caption, with the space after it; empty for a short caption."""
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
        """The text without filler sentences."""
        parts = re.split(rf"(?<=[{self.ends}])\s{'+' if self.space else '*'}", text.strip())
        return (self.space or " ").join(part for part in parts if part not in self.sentences)
