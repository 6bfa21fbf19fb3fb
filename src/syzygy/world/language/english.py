"""English: words, phrasings and a parser that reads all of them back.

Grammar of the decisive sentence (filler sentences may stand before it):

    sentence  := opening? body ("," style-tail)? "."?
    opening   := "there is" | "there are" | "a picture of" | "a night picture of" | …
    body      := group (("," | "and") group)*
    group     := mention | mention "is"? RELATION mention | RELATION mention "is" mention
    mention   := (a | an | two | three | four)? adjective* NOUN ("that is" adjective ("and" adjective)*)?
"""

import re
from difflib import get_close_matches

from syzygy.errors import UserError
from syzygy.rng import Draw
from syzygy.world.description import Description, Mention, Placed
from syzygy.world.language.base import Caption, Length, Parsed, Span
from syzygy.world.scene import COLOURS, INVERSE, MAX_OBJECTS, Relation

NOUNS = {
    "circle": ("circle", "circles"),
    "square": ("square", "squares"),
    "triangle": ("triangle", "triangles"),
    "star": ("star", "stars"),
    "heart": ("heart", "hearts"),
    "cross": ("cross", "crosses"),
    "ring": ("ring", "rings"),
    "moon": ("moon", "moons"),
}
NUMBERS = {1: ("a", "an", "one"), 2: ("two",), 3: ("three",), 4: ("four",)}
TEXTURE_WORDS = {"plain": ("plain", "solid"), "striped": ("striped", "stripy"), "dotted": ("dotted", "spotted")}
RELATION_WORDS: dict[Relation, tuple[str, ...]] = {
    "left of": ("left of", "to the left of"),
    "right of": ("right of", "to the right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
}
STYLE_WORDS = {"flat": ("flat",), "outline": ("outline", "outlined"), "pastel": ("pastel",), "night": ("night",)}
PICTURE_WORDS = ("picture", "drawing", "image")
GLUE = {
    *("and", "with", "is", "are", "there", "that", "which", "of", "in", "style", "the", "on", "showing", "it"),
    *PICTURE_WORDS,
}

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

_SPELLED: dict[str, tuple[str, object]] = {}
for _kind, _table in (("texture", TEXTURE_WORDS), ("style", STYLE_WORDS), ("number", NUMBERS)):
    _SPELLED |= {word: (_kind, value) for value, words in _table.items() for word in words}
_SPELLED |= {colour: ("colour", colour) for colour in COLOURS}
_SPELLED |= {word: ("noun", shape) for shape, words in NOUNS.items() for word in words}
_SPELLED |= {words: ("relation", name) for name, spelled in RELATION_WORDS.items() for words in spelled}

_TOKEN = re.compile(
    r"to the left of|to the right of|left of|right of|[\w'-]+|[,;:]",
)


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
            raise UserError(
                "the text is empty: describe one to four objects, such as 'a red circle left of a blue star'."
            )
        rest = " ".join(s for s in re.split(r"(?<=[.!?])\s+", text.strip()) if s not in FILLERS)
        reader = _Reader()
        for word in _TOKEN.findall(rest.lower()):
            reader.take(word)
        return reader.result(text)


def _filler(draw: Draw, length: Length) -> str:
    if length == "short":
        return ""
    words, wanted = 0, draw.between(100, 220) if length == "long" else draw.between(10, 34)
    sentences: list[str] = []
    while words < wanted:
        if not sentences or len(sentences) % len(FILLERS) == 0:
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
        self.text, self.spans = "", []

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
            elif self.draw.chance(0.2) and not self.text:
                self.text += self.draw.pick(RELATION_WORDS[placed[i].relation]) + " "
                self._mention(placed[i].target, telegram)
                self.text += " is "
                self._mention(i, telegram)
            else:
                self._related(placed[i], telegram)

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


class _Reader:
    """Takes words one by one; adjectives wait for their noun, relations for their second mention."""

    def __init__(self) -> None:
        self.mentions: list[Mention] = []
        self.relations: list[Placed] = []
        self.style = None
        self.unknown: dict[str, tuple[str, ...]] = {}
        self.waiting: dict[str, object] = {}
        self.relation: tuple[Relation, int | None] | None = None
        self.inverse: tuple[Relation, int] | None = None
        self.after = False

    def take(self, word: str) -> None:
        kind, value = _SPELLED.get(word, ("", None))
        if kind == "noun":
            self._noun(value, word)
        elif kind == "relation":
            self.relation = (value, len(self.mentions) - 1 if self.mentions else None)  # pyright: ignore
            self.after = False
        elif kind == "style":
            self.style = value
        elif kind in ("colour", "texture"):
            self._adjective(kind, value)
        elif kind == "number":
            self.waiting["count"] = value
            self.after = False
        elif word in ("that", "which"):
            self.after = True
        elif word in PICTURE_WORDS:
            self.waiting.pop("count", None)  # "a picture of"
        elif word not in GLUE and word not in ",;:":
            near = get_close_matches(word, _SPELLED, n=3, cutoff=0.5)
            self.unknown[word] = tuple(near) or ("red", "striped", "circle")

    def _adjective(self, kind: str, value: object) -> None:
        if self.after and self.mentions:
            last = self.mentions[-1]
            self.mentions[-1] = Mention(
                last.shape,
                value if kind == "colour" else last.colour,  # pyright: ignore
                value if kind == "texture" else last.texture,  # pyright: ignore
                last.count,
            )
        else:
            self.waiting[kind] = value

    def _noun(self, shape: object, word: str) -> None:
        count = self.waiting.pop("count", 1)
        assert isinstance(count, int)
        mention = Mention(shape, self.waiting.pop("colour", None), self.waiting.pop("texture", None), count)  # pyright: ignore
        self.mentions.append(mention)
        here = len(self.mentions) - 1
        self.after = False
        if self.inverse:  # "left of B is A": A, just read, stands left of B
            relation, target = self.inverse
            self.relations.append(Placed(here, relation, target))
            self.inverse = None
        elif self.relation:
            relation, subject = self.relation
            if subject is None:
                self.inverse = (relation, here)
            else:
                self.relations.append(Placed(subject, relation, here))
            self.relation = None

    def result(self, text: str) -> Parsed:
        if not self.mentions:
            known = ", ".join(words[0] for words in NOUNS.values())
            raise UserError(f"{text.strip()[:80]!r} names no object of this world. Objects: {known}.")
        if sum(m.count for m in self.mentions) > MAX_OBJECTS:
            raise UserError(f"{text.strip()[:80]!r} names more than {MAX_OBJECTS} objects. Name fewer.")
        return Parsed(Description(tuple(self.mentions), tuple(self.relations), self.style), self.unknown)  # pyright: ignore
