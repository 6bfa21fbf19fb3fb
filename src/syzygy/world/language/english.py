"""English: words, phrasings and a parser that reads all of them back.

Grammar of the decisive sentence (filler sentences may stand before it):

    sentence  := opening? body ("," style-tail)? "."?
    opening   := "there is" | "there are" | "a picture of" | "a night picture of" | …
    body      := group (("," | "and") group)*
    group     := mention ("is"? RELATION mention)* | RELATION mention "is" mention
    mention   := (the | number)? adjective* NOUN (("that is" | "is") adjective ("and" adjective)*)?

A plural without a number is read as two.
"""

import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import NamedTuple, TypeVar

from syzygy.errors import UserError
from syzygy.rng import Draw
from syzygy.world.description import Description, Mention, Placed
from syzygy.world.language.base import Caption, Length, Parsed, Span
from syzygy.world.scene import COLOURS, INVERSE, MAX_OBJECTS, Colour, Relation, Shape, Style, Texture

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

FILLERS = (
    "My aunt kept this sheet of paper in a wooden box for many years.",
    "Nobody remembers who made it or when it was sent to us.",
    "The corners are worn because so many children have held it.",
    "We found it on a rainy afternoon while we were looking for something else.",
    "Some people say that it belongs in a museum far from here.",
    "Others think that it should stay with the family that loved it.",
    "It has travelled by train and by ship and once by bicycle.",
    "A friend of ours wrote a long letter about what it means to her.",
    "If you listen to the old stories you will hear it mentioned again and again.",
    "The teacher asked every pupil to describe it as well as they could.",
    "Before you go on please take a deep breath and look closely.",
    "None of this matters much for what can be seen here.",
)
"""Sentences without any word of the world that a parser could mistake; read back by exact match."""

Word = TypeVar("Word")


def _read_as(table: Mapping[Word, Sequence[str]]) -> dict[str, Word]:
    return {spelled: value for value, spellings in table.items() for spelled in spellings}


_SHAPE, _TEXTURE, _STYLE = _read_as(NOUNS), _read_as(TEXTURE_WORDS), _read_as(STYLE_WORDS)
_NUMBER, _RELATION = _read_as(NUMBERS), _read_as(RELATION_WORDS)
_COLOUR: dict[str, Colour] = {colour: colour for colour in COLOURS}
KNOWN_WORDS = (*_SHAPE, *_COLOUR, *_TEXTURE, *_STYLE, *_RELATION, *_NUMBER)
"""Words that say something of a scene."""

_TOKEN = re.compile(r"(?:to the )?(?:left|right) of\b|[\w'-]+")


class English:
    """The world's English. `say` and `read` are inverses up to phrasing."""

    def say(self, description: Description, draw: Draw, length: Length = "short") -> Caption:
        """One of several phrasings of the description; see `Length` for the lengths."""
        text, spans = _Sentence(description, draw).written()
        head = _filler(draw, length)
        spans = tuple(Span(s.mention, s.start + len(head), s.stop + len(head)) for s in spans)
        return Caption(head + text, description, spans)

    def read(self, text: str) -> Parsed:
        """The description in a text.

        Raises:
            UserError: the text is empty or names no object of this world.
        """
        if not text.strip():
            raise UserError("the text is empty. Describe one to four objects: 'a red circle left of a blue star'.")
        rest = " ".join(s for s in re.split(r"(?<=[.!?])\s+", text.strip()) if s not in FILLERS)
        reader = _Reader()
        for word in _TOKEN.findall(" ".join(rest.lower().split())):
            reader.take(word)
        return reader.result(text)


def _filler(draw: Draw, length: Length) -> str:
    if length == "short":
        return ""
    words, wanted = 0, draw.between(100.0, 220.0) if length == "long" else draw.between(10.0, 34.0)
    sentences: list[str] = []
    order: list[str] = []
    while words < wanted:
        if len(sentences) % len(FILLERS) == 0:
            order = draw.order(FILLERS)
        sentence = order[len(sentences) % len(FILLERS)]
        if length == "medium" and words + len(sentence.split()) > 34:
            break
        sentences.append(sentence)
        words += len(sentence.split())
    return " ".join(sentences) + " " if sentences else ""


class _Sentence:
    """Writes one description, keeping account of where each mention stands."""

    def __init__(self, description: Description, draw: Draw) -> None:
        self.description, self.draw = description, draw
        self.text = ""
        self.spans: list[Span] = []

    def written(self) -> tuple[str, tuple[Span, ...]]:
        described, draw = self.description, self.draw
        style = described.style and draw.pick(STYLE_WORDS[described.style])
        tail = bool(style) and draw.chance(0.4)
        telegram = draw.chance(0.2)  # "red circle, blue star"
        plural = described.mentions[0].count > 1
        if style and not tail:
            article = "an" if style[0] in "aeiou" else "a"
            self.text = f"{article} {style} {draw.pick(PICTURE_WORDS)} of "
        elif not telegram:
            self.text = draw.pick(
                ("", "", "there are " if plural else "there is ", f"a {draw.pick(('picture', 'drawing'))} of ")
            )
        self._body(telegram)
        assert len(self.spans) == len(described.mentions), f"relations must form chains: {described.relations}"
        if tail:
            self.text += f", in {style} style"
        if draw.chance(0.3):
            self.text += "."
        return self.text, tuple(self.spans)

    def _body(self, telegram: bool) -> None:
        placed = {p.subject: p for p in self.description.relations}
        targets = {p.target for p in self.description.relations}
        order = [i for i in range(len(self.description.mentions)) if i not in targets]
        for n, i in enumerate(order):
            if n:
                self.text += ", " if telegram or n < len(order) - 1 else " and "
            if i not in placed:
                self._mention(i, telegram)
            elif placed[i].target in placed:
                self._chain(i, placed, telegram)
            elif self.draw.chance(0.2) and not self.text:
                self.text += self.draw.pick(RELATION_WORDS[placed[i].relation]) + " "
                self._mention(placed[i].target, telegram)
                self.text += " is "
                self._mention(i, telegram)
            else:
                self._related(placed[i], telegram)

    def _chain(self, index: int, placed: Mapping[int, Placed], telegram: bool) -> None:
        self._mention(index, telegram)
        while index in placed:
            self.text += " " + self.draw.pick(RELATION_WORDS[placed[index].relation]) + " "
            index = placed[index].target
            self._mention(index, telegram)

    def _related(self, placed: Placed, telegram: bool) -> None:
        first, relation, second = placed.subject, placed.relation, placed.target
        if self.draw.chance(0.25):  # the same fact from the other side
            first, relation, second = second, INVERSE[relation], first
        self._mention(first, telegram)
        self.text += " " + self.draw.pick(RELATION_WORDS[relation]) + " "
        self._mention(second, telegram)

    def _mention(self, index: int, telegram: bool) -> None:
        mention, draw = self.description.mentions[index], self.draw
        texture = draw.pick(TEXTURE_WORDS[mention.texture]) if mention.texture else None
        adjectives = draw.order([a for a in (texture, mention.colour) if a])
        noun = NOUNS[mention.shape][mention.count > 1]
        after = bool(adjectives) and not telegram and draw.chance(0.12)
        phrase = noun if after else " ".join([*adjectives, noun])
        if mention.count > 1:
            phrase = f"{NUMBERS[mention.count][0]} {phrase}"
        elif not telegram:
            phrase = f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"
        if after:
            phrase += f" that {'are' if mention.count > 1 else 'is'} {' and '.join(adjectives)}"
        self.spans.append(Span(index, len(self.text), len(self.text) + len(phrase)))
        self.text += phrase


class _Adjectives(NamedTuple):
    colour: Colour | None = None
    texture: Texture | None = None


class _Reader:
    """Takes words one by one; adjectives wait for their noun, relations for their second mention."""

    def __init__(self) -> None:
        self.mentions: list[Mention] = []
        self.relations: list[Placed] = []
        self.style: Style | None = None
        self.unknown: dict[str, tuple[str, ...]] = {}
        self.unused: list[str] = []
        self.count: int | None = None
        self.waiting = _Adjectives()
        self.relation: Relation | None = None
        """Waits for its second mention, or, at the beginning of a text, for its target."""
        self.inverse: Relation | None = None
        """Of "left of B is A", once B is read: waits for A."""
        self.after = False
        """Adjectives belong to the last mention ("that is red"), not to the next."""

    def take(self, word: str) -> None:
        if word in _SHAPE:
            self._noun(_SHAPE[word], plural=word == NOUNS[_SHAPE[word]][1])
        elif word in _COLOUR or word in _TEXTURE:
            self._adjective(word)
        elif word in _RELATION:
            self._drop(self.relation)
            self.relation, self.after = _RELATION[word], False
        elif word in _STYLE:
            self._drop(self.style)
            self.style = _STYLE[word]
        elif word in _NUMBER:
            self.count, self.after = _NUMBER[word], False
        elif word in PICTURE_WORDS:
            self.count = None  # "a picture of"
        elif word in PRONOUNS:
            self.after = True
        elif word in COPULAS:  # "A is red", but "left of B is red A"
            self.after = self.after or self.inverse is None
        elif word in BEFORE_NOUNS:
            self.after = False
        elif word not in GLUE:
            self.unknown[word] = tuple(get_close_matches(word, KNOWN_WORDS, n=3, cutoff=0.0))

    def _drop(self, word: str | None) -> None:
        self.unused += [word] if word else []

    def _adjective(self, word: str) -> None:
        last = self.mentions[-1] if self.after and self.mentions else None
        told = _Adjectives(last.colour, last.texture) if last else self.waiting
        if word in _COLOUR:
            self._drop(told.colour)
            told = told._replace(colour=_COLOUR[word])
        else:
            self._drop(told.texture)
            told = told._replace(texture=_TEXTURE[word])
        if last:
            self.mentions[-1] = Mention(last.shape, *told, last.count)
        else:
            self.waiting = told

    def _noun(self, shape: Shape, plural: bool) -> None:
        here = len(self.mentions)
        self.mentions.append(Mention(shape, *self.waiting, self.count or (2 if plural else 1)))
        self.waiting, self.count, self.after = _Adjectives(), None, False
        if self.inverse:
            self.relations.append(Placed(here, self.inverse, here - 1))
            self.inverse = None
        elif self.relation and here:
            self.relations.append(Placed(here - 1, self.relation, here))
            self.relation = None
        else:
            self.inverse, self.relation = self.relation, None

    def result(self, text: str) -> Parsed:
        named = text.strip()[:80]
        if not self.mentions:
            nouns = [noun for word in self.unknown for noun in get_close_matches(word, _SHAPE, n=1)]
            hint = f" Did you mean {nouns[0]!r}?" if nouns else ""
            raise UserError(f"{named!r} names no object of this world.{hint} Objects: {', '.join(NOUNS)}.")
        if sum(m.count for m in self.mentions) > MAX_OBJECTS:
            raise UserError(f"{named!r} names more than {MAX_OBJECTS} objects. Name fewer.")
        for word in (*self.waiting, self.relation, self.inverse):
            self._drop(word)
        description = Description(tuple(self.mentions), tuple(self.relations), self.style)
        return Parsed(description, self.unknown, tuple(self.unused))
