"""What Spanish and French share: two genders, adjectives behind their nouns in the noun's gender and number, no cases."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

from syzygy.core.randomness import Draw
from syzygy.lab.world.description import Description, Mention
from syzygy.lab.world.language.parsing import Word, meaning
from syzygy.lab.world.language.sentence import Link, Opening, Phrase, Slot, StyleWording, Turned, sentence_case
from syzygy.lab.world.scene import Colour, Relation, Shape, Style, Texture

M, F = range(2)
Forms = tuple[str, str, str, str]
"""Masculine, feminine, masculine plural, feminine plural."""


def invariable(word: str) -> Forms:
    """An adjective that was a noun (orange, naranja) and does not agree."""
    return word, word, word, word


def opening(text: str) -> Opening:
    """With the genitive's slot behind "de"."""
    return Opening(f"{text} ", "genitive" if text.endswith(" de") else "nominative")


class Noun(NamedTuple):
    """A noun; one of each shape, as a pronoun may take it up."""

    gender: int
    one: str
    many: str


@dataclass(frozen=True)
class Romance:
    """`Grammar` of such a language; what differs is data."""

    nouns: Mapping[Shape, Noun]
    colours: Mapping[Colour, Sequence[Forms]]
    textures: Mapping[Texture, Sequence[Forms]]
    """Adjectives."""
    patterns: Mapping[Texture, Sequence[str]]
    """Textures that do not agree ("à rayures"): behind the colour, as they would take it to themselves."""
    relations: Mapping[Relation, Sequence[str]]
    styles: Mapping[Style, Sequence[StyleWording]]
    there: Sequence[str]
    pictures: Sequence[Opening]
    numbers: Sequence[str]
    """From two."""
    indefinite: tuple[str, str]
    definite: Forms
    and_: str
    of_colour: str
    """Between noun and colour ("de couleur")."""
    colour_gender: int
    """Of the word for colour, as the colour then agrees with it."""
    which: tuple[Sequence[str], Sequence[str]]
    """Beginnings of a relative clause of place, of one and of several."""
    stands: tuple[Sequence[str], Sequence[str]]
    """Verbs of a sentence that begins with the place, with what stands before them, of one and of several."""
    repeats_of: bool
    """Whether "de" is said again before each group: "une image d'un cercle et d'une étoile"."""
    joined_by: Callable[[str, str], tuple[str, str]]

    def style_wordings(self, style: Style) -> Sequence[StyleWording]:
        return self.styles[style]

    def openings(self, description: Description, draw: Draw) -> Sequence[Opening]:
        return Opening(""), Opening(""), Opening(draw.pick(self.there)), draw.pick(self.pictures)

    def mention(self, mention: Mention, slot: Slot, draw: Draw) -> Phrase:
        noun, several = self.nouns[mention.shape], mention.count > 1
        form = noun.gender + 2 * several
        colours = draw.pick(self.colours[mention.colour]) if mention.colour else None
        colour = colours and colours[form]
        texture = draw.pick(self.textures[mention.texture])[form] if mention.texture else None
        adjectives = draw.order([a for a in (texture, colour) if a])
        kind = draw.random()
        if kind < 0.15 and colours:
            adjectives = [*([texture] if texture else []), self.of_colour, colours[self.colour_gender]]
        elif kind < 0.6 and mention.texture:
            adjectives = [*([colour] if colour else []), draw.pick(self.patterns[mention.texture])]
        elif kind < 0.7 and slot.article != "none" and colours and len(set(colours)) > 1:
            adjectives = [self.and_.join(adjectives)]
        return Phrase(
            " ".join([*self._before(noun, mention.count, slot), noun.many if several else noun.one, *adjectives])
        )

    def _before(self, noun: Noun, count: int, slot: Slot) -> list[str]:
        number = [self.numbers[count - 2]] if count > 1 else []
        if slot.article == "definite":
            return [self.definite[noun.gender + 2 * (count > 1)], *number]
        return number if number or slot.article == "none" else [self.indefinite[noun.gender]]

    def joined(self, text: str, phrase: str) -> tuple[str, str]:
        return self.joined_by(text, phrase)

    def link(self, relation: Relation, subject: Mention, slot: Slot, again: bool, draw: Draw) -> Link:
        words = draw.pick(self.relations[relation])
        target = Slot(article="definite" if draw.chance(0.2) else "indefinite")
        if again:
            return Link(f"{draw.pick(self.which[subject.count > 1])} {words} ", target, closing=",")
        return Link(f" {words} ", target)

    def turned(self, relation: Relation, subject: Mention, slot: Slot, alone: bool, draw: Draw) -> Turned | None:
        if not alone:
            return None
        target = Slot(article="definite" if draw.chance(0.2) else "indefinite")
        verb = draw.pick(self.stands[subject.count > 1])
        return Turned(f"{draw.pick(self.relations[relation])} ", target, f"{verb} ", Slot())

    def joint(self, slot: Slot, last: bool, clauses: bool) -> str:
        joint = self.and_ if last and slot.article != "none" else ", "
        return f"{joint}de " if self.repeats_of and slot.case == "genitive" else joint

    def finished(self, text: str, alone: bool, draw: Draw) -> str:
        return sentence_case(text, alone, draw)

    def words(self) -> dict[str, Word]:
        """What a reader must know of this; styles, `there`, `which` and `stands` are left to the language."""
        return {
            **meaning("noun", {shape: (noun.one,) for shape, noun in self.nouns.items()}),
            **meaning("noun", {s: (n.many,) for s, n in self.nouns.items() if n.many != n.one}, plural=True),
            **meaning("colour", {c: chain.from_iterable(forms) for c, forms in self.colours.items()}),
            **meaning("texture", {t: chain.from_iterable(forms) for t, forms in self.textures.items()}),
            **meaning("texture", self.patterns),
            **meaning("relation", self.relations),
            **meaning("number", {n: (word, str(n)) for n, word in enumerate(self.numbers, 2)}),
            **meaning("number", {1: ("1", *self.indefinite)}),
            **meaning("the", {None: self.definite[:2]}),
            **meaning("the", {None: self.definite[2:]}, plural=True),
        }
