"""German: three genders, cases, three declensions of adjectives.

Prepositions of place put their mention in the dative, as does "ein Bild von"; "man sieht" wants the accusative. A relative clause
("ein Kreis, der rot ist, …") ends with a comma. All nouns of a shape have one gender, as a pronoun may take it up.
"""

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from syzygy.core.randomness import Draw
from syzygy.lab.world.description import Description, Mention
from syzygy.lab.world.language.definition import Language
from syzygy.lab.world.language.fillers import Fillers, sentences
from syzygy.lab.world.language.parsing import Lexicon, meaning
from syzygy.lab.world.language.sentence import Case, Link, Opening, Phrase, Slot, StyleWording, Turned, sentence_case
from syzygy.lab.world.scene import Colour, Relation, Shape, Style, Texture

M, F, N, PLURAL = range(4)


class Noun(NamedTuple):
    """A noun in the forms that a caption needs."""

    gender: int
    one: str
    many: str
    dative: str = ""
    """Of one with an article, where it differs."""

    def form(self, slot: Slot, plural: bool) -> str:
        if plural:
            return self.many + "n" * (slot.case == "dative" and not self.many.endswith("n"))
        return self.dative if self.dative and slot.case == "dative" and slot.article != "none" else self.one


NOUNS: dict[Shape, tuple[Noun, ...]] = {
    "circle": (Noun(M, "Kreis", "Kreise"),),
    "square": (Noun(N, "Quadrat", "Quadrate"),),
    "triangle": (Noun(N, "Dreieck", "Dreiecke"),),
    "star": (Noun(M, "Stern", "Sterne"),),
    "heart": (Noun(N, "Herz", "Herzen", "Herzen"),),
    "cross": (Noun(N, "Kreuz", "Kreuze"),),
    "ring": (Noun(M, "Ring", "Ringe"),),
    "moon": (Noun(M, "Mond", "Monde"), Noun(M, "Halbmond", "Halbmonde")),
}
COLOURS: dict[Colour, tuple[str, ...]] = {
    "red": ("rot",),
    "orange": ("orange", "orangefarben"),
    "yellow": ("gelb",),
    "green": ("grün",),
    "cyan": ("cyanfarben", "türkisfarben"),
    "blue": ("blau",),
    "purple": ("violett", "lila"),
    "pink": ("rosa", "rosafarben"),
}
INVARIABLE = {"orange", "lila", "rosa"}
IN_COLOUR: dict[Colour, tuple[str, ...]] = {
    "red": ("in Rot",),
    "orange": ("in Orange",),
    "yellow": ("in Gelb",),
    "green": ("in Grün",),
    "cyan": ("in Türkis", "in Cyan"),
    "blue": ("in Blau",),
    "purple": ("in Violett", "in Lila"),
    "pink": ("in Rosa",),
}
TEXTURES: dict[Texture, tuple[str, ...]] = {
    "plain": ("einfarbig", "ungemustert"),
    "striped": ("gestreift",),
    "dotted": ("gepunktet", "getupft"),
}
WITH_TEXTURE: dict[Texture, tuple[str, ...]] = {
    "plain": ("ohne Muster",),
    "striped": ("mit Streifen",),
    "dotted": ("mit Punkten", "mit Tupfen"),
}
RELATIONS: dict[Relation, tuple[str, ...]] = {
    "left of": ("links von", "links neben"),
    "right of": ("rechts von", "rechts neben"),
    "above": ("über", "oberhalb von"),
    "below": ("unter", "unterhalb von"),
}
NUMBERS = ("ein", "zwei", "drei", "vier", "fünf", "sechs", "sieben", "acht", "neun")
INDEFINITE: Mapping[Case, str] = {
    "nominative": "ein eine ein",
    "accusative": "einen eine ein",
    "dative": "einem einer einem",
}
DEFINITE: Mapping[Case, str] = {
    "nominative": "der die das die",
    "accusative": "den die das die",
    "dative": "dem der dem den",
}
STRONG: Mapping[Case, str] = {"nominative": "er e es e", "accusative": "en e es e", "dative": "em er em en"}
MIXED: Mapping[Case, str] = {"nominative": "er e es", "accusative": "en e es", "dative": "en en en"}
WEAK: Mapping[Case, str] = {"nominative": "e e e en", "accusative": "en e e en", "dative": "en en en en"}
"""Endings and articles by case: masculine, feminine, neuter, plural."""


def _wording(openings: Sequence[str], heading: str, tail: str) -> StyleWording:
    return StyleWording([Opening(f"{text} ", "dative") for text in openings], [Opening(f"{heading}: ")], f", {tail}")


STYLE_WORDINGS: dict[Style, tuple[StyleWording, ...]] = {
    "flat": (
        _wording(("ein flaches Bild von", "eine flache Zeichnung von"), "flaches Bild", "in flachem Stil"),
        _wording(("ein Bild im flachen Stil mit",), "flache Zeichnung", "im flachen Stil"),
    ),
    "outline": (
        _wording(("eine Umrisszeichnung von",), "Umrisszeichnung", "im Umrissstil"),
        _wording(("eine Konturzeichnung von",), "Konturzeichnung", "nur in Konturen"),
    ),
    "pastel": (
        _wording(("ein Pastellbild von", "eine Pastellzeichnung von"), "Pastellbild", "in Pastelltönen"),
        _wording(("ein Bild in Pastelltönen mit",), "Pastellzeichnung", "in Pastell"),
    ),
    "night": (
        _wording(("ein Nachtbild von", "eine nächtliche Zeichnung von"), "Nachtbild", "im Nachtstil"),
        _wording(("ein nächtliches Bild von",), "nächtliches Bild", "bei Nacht"),
    ),
}
STYLE_WORDS: dict[Style, tuple[str, ...]] = {
    "flat": ("flach", "flache", "flachen", "flacher", "flaches", "flachem"),
    "outline": (
        *("Umriss", "Umrisse", "Umrissen", "Umrisszeichnung", "Umrissbild", "Umrissstil"),
        *("Konturzeichnung", "Kontur", "Konturen"),
    ),
    "pastel": ("Pastell", "Pastellbild", "Pastellzeichnung", "Pastelltönen", "Pastellfarben", "Pastellstil"),
    "night": (
        *("Nacht", "Nachtbild", "Nachtstil", "nachts"),
        *("nächtlich", "nächtliche", "nächtlichen", "nächtlicher", "nächtliches", "nächtlichem"),
    ),
}
PICTURES = [Opening(text, "dative") for text in ("ein Bild von ", "eine Zeichnung von ", "ein Bild mit ")]
THERE = [
    Opening("es gibt ", "accusative"),
    Opening("man sieht ", "accusative"),
    Opening("hier sieht man ", "accusative"),
]


def _of(forms: str, gender: int) -> str:
    return forms.split()[gender]


def declined(adjective: str, ending: str) -> str:
    """The adjective before its noun; some colours never change."""
    return adjective if adjective in INVARIABLE else adjective + ending


class German:
    """`Grammar` of German."""

    def style_wordings(self, style: Style) -> Sequence[StyleWording]:
        return STYLE_WORDINGS[style]

    def openings(self, description: Description, draw: Draw) -> Sequence[Opening]:
        return Opening(""), Opening(""), draw.pick(THERE), draw.pick(PICTURES)

    def mention(self, mention: Mention, slot: Slot, draw: Draw) -> Phrase:
        noun = draw.pick(NOUNS[mention.shape])
        colour = draw.pick(COLOURS[mention.colour]) if mention.colour else None
        texture = draw.pick(TEXTURES[mention.texture]) if mention.texture else None
        adjectives = [a for a in draw.order([a for a in (texture, colour) if a])]
        form, behind = draw.random(), ""
        if form < 0.1 and adjectives and slot.article != "none" and not slot.chained:
            behind = f", {_relative(mention)} {' und '.join(adjectives)} {'sind' if mention.count > 1 else 'ist'}"
            adjectives = []
        elif form < 0.18 and mention.colour:
            behind, adjectives = f" {draw.pick(IN_COLOUR[mention.colour])}", [texture] if texture else []
        elif form < 0.26 and mention.texture:
            behind, adjectives = f" {draw.pick(WITH_TEXTURE[mention.texture])}", [colour] if colour else []
        before = _before(noun.gender, adjectives, mention.count, slot)
        phrase = " ".join([*before, noun.form(slot, mention.count > 1)]) + behind
        return Phrase(phrase, "," if behind.startswith(",") else "")

    def joined(self, text: str, phrase: str) -> tuple[str, str]:
        # "Herzen" is one or many: by "dem", which belongs to the phrase, it is one.
        if text.endswith("von ") and phrase.startswith("dem ") and "Herzen" not in phrase:
            return f"{text[:-4]}vom ", phrase[4:]
        return text, phrase

    def link(self, relation: Relation, subject: Mention, slot: Slot, again: bool, draw: Draw) -> Link:
        words = draw.pick(RELATIONS[relation])
        if slot.article == "none":
            return Link(f" {words} ", Slot("dative", "none"))
        target = Slot("dative", "definite" if draw.chance(0.2) else "indefinite")
        if again:
            verb = "liegen" if subject.count > 1 else "liegt"
            return Link(f", {_relative(subject)} {words} ", target, f" {verb}", ",")
        return Link(f" {words} ", target)

    def turned(self, relation: Relation, subject: Mention, slot: Slot, alone: bool, draw: Draw) -> Turned | None:
        if not alone:
            return None
        verbs = ("sind", "liegen", "befinden sich") if subject.count > 1 else ("ist", "liegt", "befindet sich")
        target = Slot("dative", "definite" if draw.chance(0.2) else "indefinite")
        return Turned(f"{draw.pick(RELATIONS[relation])} ", target, f" {draw.pick(verbs)} ", Slot())

    def joint(self, slot: Slot, last: bool, clauses: bool) -> str:
        return " und " if last and slot.article != "none" else ", "

    def finished(self, text: str, alone: bool, draw: Draw) -> str:
        return sentence_case(text, alone, draw)


def _relative(mention: Mention) -> str:
    """The pronoun that takes up the mention, nominative."""
    return _of(DEFINITE["nominative"], PLURAL if mention.count > 1 else NOUNS[mention.shape][0].gender)


def _before(gender: int, adjectives: Sequence[str], count: int, slot: Slot) -> list[str]:
    """Article, number and declined adjectives; a colour that never changes stands next to its noun."""
    gender = PLURAL if count > 1 else gender
    article, endings = [], STRONG
    if slot.article == "definite":
        article, endings = [_of(DEFINITE[slot.case], gender)], WEAK
    elif slot.article == "indefinite" and count == 1:
        article, endings = [_of(INDEFINITE[slot.case], gender)], MIXED
    number = [NUMBERS[count - 1]] if count > 1 else []
    ordered = sorted(adjectives, key=INVARIABLE.__contains__)
    return [*article, *number, *(declined(a, _of(endings[slot.case], gender)) for a in ordered)]


def _forms(adjective: str) -> list[str]:
    return [adjective, *(declined(adjective, ending) for ending in ("e", "en", "er", "es", "em"))]


READ_ONLY: dict[Colour, tuple[str, ...]] = {
    "orange": ("orangen",),
    "cyan": ("türkis", "cyan"),
    "purple": ("purpurn", "purpurfarben"),
    "pink": ("pink", "pinkfarben"),
}
_ADJECTIVES = {
    **meaning(
        "colour",
        {c: [f for word in (*words, *READ_ONLY.get(c, ())) for f in _forms(word)] for c, words in COLOURS.items()},
    ),
    **meaning("texture", {t: [f for word in words for f in _forms(word)] for t, words in TEXTURES.items()}),
}
_WORDS = {
    **meaning("noun", {s: [n.one for n in found] for s, found in NOUNS.items()}),
    **meaning(
        "noun", {s: [f for n in found for f in (n.many, f"{n.many}n")] for s, found in NOUNS.items()}, plural=True
    ),
    **_ADJECTIVES,
    **meaning("colour", IN_COLOUR, after=True),
    **meaning("texture", WITH_TEXTURE, after=True),
    **meaning("style", STYLE_WORDS),
    **meaning("relation", RELATIONS),
    **meaning("number", {n: (word, str(n)) for n, word in enumerate(NUMBERS, 1)}),
    **meaning("number", {1: ("eins", "eine", "einen", "einem", "einer", "eines")}),
    **meaning("picture", {None: ("Bild", "Zeichnung")}),
    **meaning("that", {None: ("welcher", "welche", "welches")}),
    **meaning("is", {None: ("ist", "sind")}),
    **meaning("the", {None: ("der", "die", "das", "den")}),
    **meaning("the", {1: ("dem", "des")}),
    **meaning("glue", {None: ("und", "von", "mit", "in", "im", "bei", "es", "gibt", "man", "sieht", "hier", "nur")}),
    **meaning("glue", {None: ("liegt", "liegen", "befindet", "befinden", "sich", "Stil")}),
}
_RELATIVE = re.compile(
    rf"(?<=, )(?:der|die|das)(?= (?:(?:{'|'.join(sorted(_ADJECTIVES, key=len, reverse=True))}|und) )+(?:ist|sind)\b)"
)


def _prepared(text: str) -> str:
    """With "von dem" for "vom", and "welcher" for a pronoun that looks like an article."""
    return _RELATIVE.sub("welcher", re.sub(r"\bvom\b", "von dem", text))


GERMAN = Language(
    "German",
    "ein roter Kreis links von einem blauen Stern",
    German(),
    Lexicon(_WORDS, [found[0].one for found in NOUNS.values()], prepared=_prepared),
    Fillers(sentences("de"), medium=(8.0, 30.0), long=(90.0, 180.0)),
)
