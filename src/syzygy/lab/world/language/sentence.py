"""From a description to a sentence, in any language.

    sentence  := opening? group (joint group)* style-tail? full-stop?
    group     := mention (link mention)* | turned sentence ("left of B is A")

This module decides what is said in which order; a `Grammar` provides the words, and the form of each mention.
"""

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple, Protocol, runtime_checkable

from syzygy.core.randomness import Draw
from syzygy.lab.world.description import Description, Mention, Placed
from syzygy.lab.world.language.base import Span
from syzygy.lab.world.scene import INVERSE, Relation, Style

Case = Literal["nominative", "genitive", "dative", "accusative", "instrumental"]
Article = Literal["indefinite", "definite", "none"]


class Slot(NamedTuple):
    """A mention's place in a sentence, as far as its form depends on it."""

    case: Case = "nominative"
    article: Article = "indefinite"
    """None in telegrams: "red circle, blue star"."""
    chained: bool = False
    """Whether more than two are related in a row, so that a clause of its own would be too much."""


class Opening(NamedTuple):
    """What a sentence begins with, and the case that it puts its mentions in."""

    text: str
    case: Case = "nominative"


class StyleWording(NamedTuple):
    """One wording of a style, at the beginning of a sentence or at its end."""

    openings: Sequence[Opening]
    headings: Sequence[Opening]
    """Openings of telegrams."""
    tail: str


class Phrase(NamedTuple):
    """The words of a mention."""

    text: str
    closing: str = ""
    """What must follow, unless another mark does: the comma behind a relative clause."""


class Link(NamedTuple):
    """The words that lead from a mention to the one that it is placed by."""

    before: str
    slot: Slot
    """Of the second mention."""
    after: str = ""
    closing: str = ""
    """As of a phrase."""


class Turned(NamedTuple):
    """A sentence that begins with the second mention: "left of" B "is" A."""

    before: str
    target: Slot
    between: str
    subject: Slot


@runtime_checkable
class Grammar(Protocol):
    """What a language provides for the writer. Methods take randomness only from `draw`."""

    def style_wordings(self, style: Style) -> Sequence[StyleWording]:
        """Wordings of a style."""
        ...

    def openings(self, description: Description, draw: Draw) -> Sequence[Opening]:
        """Openings that name no style, equally likely; an empty one is one of them."""
        ...

    def mention(self, mention: Mention, slot: Slot, draw: Draw) -> Phrase:
        """The mention in the form that its slot wants."""
        ...

    def joined(self, text: str, phrase: str) -> tuple[str, str]:
        """A text and the phrase that follows it, where they meet: "von dem" is "vom", "de un" is "d'un"."""
        ...

    def link(self, relation: Relation, subject: Mention, slot: Slot, again: bool, draw: Draw) -> Link:
        """From the subject, in its slot, to its target. `again` where the subject is itself the target of a link."""
        ...

    def turned(self, relation: Relation, subject: Mention, slot: Slot, alone: bool, draw: Draw) -> Turned | None:
        """The sentence turned around, or None if it cannot be. `alone` where no other mentions follow."""
        ...

    def joint(self, slot: Slot, last: bool, clauses: bool) -> str:
        """What stands before another group, whose mention has this slot. `clauses` where some mentions are related."""
        ...

    def finished(self, text: str, alone: bool, draw: Draw) -> str:
        """The sentence with its capital and full stop, if it gets them. `alone` where no others precede it."""
        ...


def write(description: Description, grammar: Grammar, draw: Draw, alone: bool) -> tuple[str, tuple[Span, ...]]:
    """One of several sentences that say the description, and where in it each mention stands.

    Args:
        alone: no other sentences will be put before it.
    """
    return _Writer(description, grammar, draw).written(alone)


class _Writer:
    """Writes one sentence, keeping account of where each mention stands."""

    def __init__(self, description: Description, grammar: Grammar, draw: Draw) -> None:
        self.description, self.grammar, self.draw = description, grammar, draw
        self.text, self.closing = "", ""
        self.spans: list[Span] = []

    def written(self, alone: bool) -> tuple[str, tuple[Span, ...]]:
        described, grammar, draw = self.description, self.grammar, self.draw
        wording = draw.pick(grammar.style_wordings(described.style)) if described.style else None
        tail = wording is not None and draw.chance(0.4)
        telegram = draw.chance(0.2)
        opening = Opening("")
        if wording and not tail:
            opening = draw.pick(wording.headings if telegram else wording.openings)
        elif not telegram:
            opening = draw.pick(grammar.openings(described, draw))
        self._add(opening.text)
        self._body(Slot(opening.case, "none" if telegram else "indefinite"))
        assert len(self.spans) == len(described.mentions), f"relations must form chains: {described.relations}"
        if wording and tail:
            self._add(wording.tail)
        text = grammar.finished(self.text, alone, draw)
        assert len(text) - len(self.text) in (0, 1), "a finished sentence has one more character, the last, at most"
        return text, tuple(self.spans)

    def _add(self, text: str) -> None:
        if self.closing and not text.startswith(self.closing):
            self.text += self.closing
        self.text, self.closing = self.text + text, ""

    def _body(self, slot: Slot) -> None:
        placed = {p.subject: p for p in self.description.relations}
        targets = {p.target for p in self.description.relations}
        order = [i for i in range(len(self.description.mentions)) if i not in targets]
        for n, i in enumerate(order):
            if n:
                self._add(self.grammar.joint(slot, n == len(order) - 1, bool(placed)))
            if i not in placed:
                self._mention(i, slot)
            elif placed[i].target in placed:
                self._chain(i, slot, placed)
            elif not (self.draw.chance(0.2) and not self.text and self._turned(placed[i], slot, len(order) == 1)):
                self._related(placed[i], slot)

    def _chain(self, index: int, slot: Slot, placed: Mapping[int, Placed]) -> None:
        slot, again = slot._replace(chained=True), False
        self._mention(index, slot)
        while index in placed:
            slot = self._linked(index, placed[index].relation, placed[index].target, slot, again)
            index, again = placed[index].target, True

    def _related(self, placed: Placed, slot: Slot) -> None:
        if self.draw.chance(0.25):  # the same fact from the other side
            placed = Placed(placed.target, INVERSE[placed.relation], placed.subject)
        self._mention(placed.subject, slot)
        self._linked(placed.subject, placed.relation, placed.target, slot, False)

    def _linked(self, subject: int, relation: Relation, target: int, slot: Slot, again: bool) -> Slot:
        link = self.grammar.link(relation, self.description.mentions[subject], slot, again, self.draw)
        self._add(link.before)
        there = link.slot._replace(chained=slot.chained)
        self._mention(target, there)
        if link.after:
            self._add(link.after)
        self.closing = self.closing or link.closing
        return there

    def _turned(self, placed: Placed, slot: Slot, alone: bool) -> bool:
        subject = self.description.mentions[placed.subject]
        turned = self.grammar.turned(placed.relation, subject, slot, alone, self.draw)
        if turned:
            self._add(turned.before)
            self._mention(placed.target, turned.target)
            self._add(turned.between)
            self._mention(placed.subject, turned.subject)
        return turned is not None

    def _mention(self, index: int, slot: Slot) -> None:
        phrase = self.grammar.mention(self.description.mentions[index], slot, self.draw)
        self.text, words = self.grammar.joined(self.text, phrase.text)
        self.spans.append(Span(index, len(self.text), len(self.text) + len(words)))
        self.text, self.closing = self.text + words, phrase.closing


def sentence_case(text: str, alone: bool, draw: Draw, stop: str = ".") -> str:
    """With capital and full stop behind other sentences; alone, half of the time."""
    if alone and draw.chance(0.5):
        return text
    return text[0].upper() + text[1:] + stop
