"""From a text to a description: a language defines what its words mean, and this module what follows from their order."""

import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any, Literal, NamedTuple

from syzygy.core.errors import UserError
from syzygy.lab.world.description import Description, Mention, Placed
from syzygy.lab.world.language.base import Parsed
from syzygy.lab.world.scene import MAX_OBJECTS, Relation, Style

Role = Literal["noun", "colour", "texture", "style", "relation", "number", "picture", "that", "is", "the", "glue"]
CONTENT_ROLES: tuple[Role, ...] = ("noun", "colour", "texture", "style", "relation", "number")
"""Roles of words that describe a scene."""
NEAREST = 3


class Word(NamedTuple):
    """The meaning of a word or of a fixed phrase."""

    role: Role
    value: Any = None
    """The shape, colour, texture, style, relation or number; of an article, the number that it implies if it does."""
    plural: bool = False
    after: bool = False
    """Of an adjective: it belongs to the noun before it even where others precede theirs ("a ring in red")."""
    opens: bool = False
    """Of a relation: its target comes next and its subject then, whatever was named before it."""


class Token(NamedTuple):
    """A word as it is spelled, in lower case, and its meaning if it has one."""

    text: str
    word: Word | None


def meaning(role: Role, table: Mapping[Any, Iterable[str]], **flags: bool) -> dict[str, Word]:
    """Spelling → meaning, from a table of what is meant and how it is spelled."""
    return {spelled.lower(): Word(role, value, **flags) for value, found in table.items() for spelled in found}


@dataclass(frozen=True)
class Lexicon:
    """All words of a language, and how a text is split into them."""

    words: Mapping[str, Word]
    """By spelling, in lower case. A spelling with a space or another mark in it is a fixed phrase."""
    objects: Sequence[str]
    """The objects that error messages list."""
    adjectives_follow: bool = False
    """Whether adjectives belong to the noun before them."""
    word: str = r"[\w'-]+"
    """A regular expression of what is one word, known or not."""
    prepared: Callable[[str], str] = str
    """Applied to a text in lower case before it is split."""
    ordered: Callable[[list[Token]], list[Token]] = list
    """Applied to the words: puts a relation before its target where the language puts it behind."""
    _pattern: re.Pattern[str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        whole = re.compile(self.word)
        phrases = sorted((spelled for spelled in self.words if not whole.fullmatch(spelled)), key=len, reverse=True)
        bounded = [re.escape(p) + (r"\b" if p[-1].isalnum() else "") for p in phrases]
        object.__setattr__(self, "_pattern", re.compile("|".join([*bounded, self.word])))

    def tokens(self, text: str) -> list[Token]:
        """The words of a text in the order that the parser expects."""
        plain = " ".join(unicodedata.normalize("NFC", text).replace("’", "'").lower().split())
        return self.ordered([Token(w, self.words.get(w)) for w in self._pattern.findall(self.prepared(plain))])

    def nearest(self, word: str) -> tuple[str, ...]:
        """The most similar known words, one form of each."""
        known = [spelled for spelled, meant in self.words.items() if meant.role in CONTENT_ROLES]
        forms: dict[object, str] = {}
        for spelled in get_close_matches(word, known, n=16 * NEAREST, cutoff=0.0):
            meant = self.words[spelled]
            forms.setdefault((meant.role, meant.value), spelled)
        return tuple(forms.values())[:NEAREST]

    def noun_like(self, words: Iterable[str]) -> str | None:
        """A noun that looks like one of these words, if there is any."""
        nouns = [spelled for spelled, meant in self.words.items() if meant.role == "noun"]
        return next((noun for word in words for noun in get_close_matches(word, nouns, n=1)), None)


@dataclass
class _Adjectives:
    """Tokens of colour and texture that belong to a noun, or wait for one."""

    colour: Token | None = None
    texture: Token | None = None

    def values(self) -> tuple[Any, Any]:
        return tuple(token.word.value if token and token.word else None for token in (self.colour, self.texture))  # pyright: ignore[reportReturnType]


@dataclass
class _Named:
    shape: Any
    count: int
    adjectives: _Adjectives

    def mention(self) -> Mention:
        return Mention(self.shape, *self.adjectives.values(), self.count)


class CaptionParser:
    """Takes words one by one; adjectives wait for their noun, relations for their second mention."""

    def __init__(self, adjectives_follow: bool) -> None:
        self.adjectives_follow = adjectives_follow
        self.named: list[_Named] = []
        self.relations: list[Placed] = []
        self.style: Token | None = None
        self.unknown: list[str] = []
        self.unused: list[str] = []
        self.count: int | None = None
        self.plural = False
        self.waiting = _Adjectives()
        self.relation: Token | None = None
        """Waits for its second mention, or, at the beginning of a text, for its target."""
        self.inverse: Token | None = None
        """Of "left of B is A", once B is read: waits for A."""
        self.after = False
        """Adjectives belong to the last mention ("that is red"), not to the next."""

    def take(self, token: Token) -> None:
        """The next word of the text."""
        word = token.word
        if word is None:
            self.unknown.append(token.text)
            return
        match word.role:
            case "noun":
                self._noun(word)
            case "colour" | "texture":
                self._adjective(token, word)
            case "relation":
                self._drop(self.relation)
                self.relation, self.after, self.plural = token, False, word.plural
            case "style":
                self._drop(self.style)
                self.style = token
            case "number":
                self.count, self.after = word.value, False
            case "picture":
                self.count = None  # "a picture of"
            case "that":
                self.after = True
            case "is":  # "A is red", but "left of B is red A"
                self.after = self.after or self.inverse is None
            case "the":
                self.after, self.plural, self.count = False, word.plural, word.value
            case "glue":
                pass

    def _drop(self, token: Token | None) -> None:
        self.unused += [token.text] if token else []

    def _adjective(self, token: Token, word: Word) -> None:
        behind = (self.after or word.after) and bool(self.named)
        adjectives = self.named[-1].adjectives if behind else self.waiting
        if word.role == "colour":
            self._drop(adjectives.colour)
            adjectives.colour = token
        else:
            self._drop(adjectives.texture)
            adjectives.texture = token
        self.plural = self.plural or (word.plural and not behind)

    def _noun(self, word: Word) -> None:
        here = len(self.named)
        count = self.count or (2 if word.plural or self.plural else 1)
        self.named.append(_Named(word.value, count, self.waiting))
        self.waiting, self.count, self.plural, self.after = _Adjectives(), None, False, self.adjectives_follow
        opens = bool(self.relation and self.relation.word and self.relation.word.opens)
        if self.inverse:
            self.relations.append(Placed(here, _relation(self.inverse), here - 1))
            self.inverse = None
        elif self.relation and here and not opens:
            self.relations.append(Placed(here - 1, _relation(self.relation), here))
            self.relation = None
        else:
            self.inverse, self.relation = self.relation, None

    def result(self, text: str, lexicon: Lexicon, name: str) -> Parsed:
        """The description that all words make together.

        Raises:
            UserError: they name no object, or too many.
        """
        shown = text.strip()[:80]
        if not self.named:
            noun = lexicon.noun_like(self.unknown)
            hint = f" Did you mean {noun!r}?" if noun else ""
            raise UserError(
                f"{shown!r} names no object of this world in {name}.{hint} Objects: {', '.join(lexicon.objects)}."
            )
        if sum(n.count for n in self.named) > MAX_OBJECTS:
            raise UserError(f"{shown!r} names more than {MAX_OBJECTS} objects. Name fewer.")
        for token in (self.waiting.colour, self.waiting.texture, self.relation, self.inverse):
            self._drop(token)
        style: Style | None = self.style.word.value if self.style and self.style.word else None
        description = Description(tuple(n.mention() for n in self.named), tuple(self.relations), style)
        return Parsed(description, {word: lexicon.nearest(word) for word in self.unknown}, tuple(self.unused))


def _relation(token: Token) -> Relation:
    assert token.word is not None
    return token.word.value
