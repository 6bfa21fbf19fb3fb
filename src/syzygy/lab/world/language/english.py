"""English: words, phrasings and a parser that reads all of them back.

Grammar of the decisive sentence (filler sentences may stand before it):

    sentence  := opening? body ("," style-tail)? "."?
    opening   := "there is" | "there are" | "a picture of" | "a night picture of" | …
    body      := group (("," | "and") group)*
    group     := mention ("is"? RELATION mention)* | RELATION mention "is" mention
    mention   := (the | number)? adjective* NOUN (("that is" | "is") adjective ("and" adjective)*)?

A plural without a number is read as two. Models are trained on these captions: `caption` must give the same for the same
description and draw.
"""

from collections.abc import Sequence

from syzygy.core.randomness import Draw
from syzygy.lab.world.description import Description, Mention
from syzygy.lab.world.language.definition import Language
from syzygy.lab.world.language.fillers import Fillers, sentences
from syzygy.lab.world.language.parsing import CONTENT_ROLES, Lexicon, meaning
from syzygy.lab.world.language.sentence import Link, Opening, Phrase, Slot, StyleWording, Turned
from syzygy.lab.world.scene import COLOURS, Relation, Shape, Style, Texture

NOUNS: dict[Shape, tuple[str, str]] = {
    "circle": ("circle", "circles"),
    "square": ("square", "squares"),
    "triangle": ("triangle", "triangles"),
    "star": ("star", "stars"),
    "heart": ("heart", "hearts"),
    "cross": ("cross", "crosses"),
    "ring": ("ring", "rings"),
    "moon": ("moon", "moons"),
}
NUMBERS = {
    1: ("a", "an", "one", "1"),
    **dict(
        enumerate(zip(("two", "three", "four", "five", "six", "seven", "eight", "nine"), "23456789", strict=True), 2)
    ),
}
"""More than a scene can hold, so that "five circles" is an error and not a misunderstanding."""
TEXTURE_WORDS: dict[Texture, tuple[str, ...]] = {
    "plain": ("plain", "solid"),
    "striped": ("striped", "stripy"),
    "dotted": ("dotted", "spotted"),
}
RELATION_WORDS: dict[Relation, tuple[str, ...]] = {
    "left of": ("left of", "to the left of"),
    "right of": ("right of", "to the right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
}
STYLE_WORDS: dict[Style, tuple[str, ...]] = {
    "flat": ("flat",),
    "outline": ("outline", "outlined"),
    "pastel": ("pastel",),
    "night": ("night",),
}
PICTURE_WORDS = ("picture", "drawing", "image")
PRONOUNS, COPULAS = ("that", "which"), ("is", "are")
BEFORE_NOUNS = ("the", "there")
GLUE = ("and", "with", "of", "in", "style", "on", "showing", "it")


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


def _wording(word: str) -> StyleWording:
    openings = [Opening(f"{_article(word)} {word} {picture} of ") for picture in PICTURE_WORDS]
    return StyleWording(openings, openings, f", in {word} style")


_STYLE_WORDINGS = {style: tuple(map(_wording, words)) for style, words in STYLE_WORDS.items()}


class English:
    """`Grammar` of the world's English."""

    def style_wordings(self, style: Style) -> Sequence[StyleWording]:
        return _STYLE_WORDINGS[style]

    def openings(self, description: Description, draw: Draw) -> Sequence[Opening]:
        there = "there are " if description.mentions[0].count > 1 else "there is "
        picture = f"a {draw.pick(('picture', 'drawing'))} of "
        return Opening(""), Opening(""), Opening(there), Opening(picture)

    def mention(self, mention: Mention, slot: Slot, draw: Draw) -> Phrase:
        texture = draw.pick(TEXTURE_WORDS[mention.texture]) if mention.texture else None
        adjectives = draw.order([a for a in (texture, mention.colour) if a])
        noun = NOUNS[mention.shape][mention.count > 1]
        after = bool(adjectives) and slot.article != "none" and draw.chance(0.12)
        phrase = noun if after else " ".join([*adjectives, noun])
        if mention.count > 1:
            phrase = f"{NUMBERS[mention.count][0]} {phrase}"
        elif slot.article != "none":
            phrase = f"{_article(phrase)} {phrase}"
        if after:
            phrase += f" that {'are' if mention.count > 1 else 'is'} {' and '.join(adjectives)}"
        return Phrase(phrase)

    def joined(self, text: str, phrase: str) -> tuple[str, str]:
        return text, phrase

    def link(self, relation: Relation, subject: Mention, slot: Slot, again: bool, draw: Draw) -> Link:
        return Link(f" {draw.pick(RELATION_WORDS[relation])} ", slot)

    def turned(self, relation: Relation, subject: Mention, slot: Slot, alone: bool, draw: Draw) -> Turned:
        return Turned(f"{draw.pick(RELATION_WORDS[relation])} ", slot, " is ", slot)

    def joint(self, slot: Slot, last: bool, clauses: bool) -> str:
        return " and " if last and slot.article != "none" else ", "

    def finished(self, text: str, alone: bool, draw: Draw) -> str:
        return f"{text}." if draw.chance(0.3) else text


_WORDS = {
    **meaning("noun", {shape: (one,) for shape, (one, _) in NOUNS.items()}),
    **meaning("noun", {shape: (many,) for shape, (_, many) in NOUNS.items()}, plural=True),
    **meaning("colour", {colour: (colour,) for colour in COLOURS}),
    **meaning("texture", TEXTURE_WORDS),
    **meaning("style", STYLE_WORDS),
    **meaning("relation", RELATION_WORDS),
    **meaning("number", NUMBERS),
    **meaning("picture", {None: PICTURE_WORDS}),
    **meaning("that", {None: PRONOUNS}),
    **meaning("is", {None: COPULAS}),
    **meaning("the", {None: BEFORE_NOUNS}),
    **meaning("glue", {None: GLUE}),
}
KNOWN_WORDS = tuple(spelled for spelled, word in _WORDS.items() if word.role in CONTENT_ROLES)
"""Words that say something of a scene."""

ENGLISH = Language(
    "English", "a red circle left of a blue star", English(), Lexicon(_WORDS, tuple(NOUNS)), Fillers(sentences("en"))
)
