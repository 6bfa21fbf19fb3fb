"""A language of the world: its grammar, its words and its filler sentences."""

from dataclasses import dataclass

from syzygy.core.errors import UserError
from syzygy.core.randomness import Draw
from syzygy.lab.world.description import Description
from syzygy.lab.world.language.base import Caption, Length, Parsed, Span
from syzygy.lab.world.language.fillers import Fillers
from syzygy.lab.world.language.parsing import CaptionParser, Lexicon
from syzygy.lab.world.language.sentence import Grammar, write


@dataclass(frozen=True)
class Language:
    """Writes captions of descriptions and parses them; the two are inverses up to phrasing."""

    name: str
    """Its English name."""
    example: str
    """A short caption, for messages."""
    grammar: Grammar
    lexicon: Lexicon
    fillers: Fillers

    def caption(self, description: Description, draw: Draw, length: Length = "short") -> Caption:
        """One of several phrasings of the description; see `Length` for the lengths."""
        text, spans = write(description, self.grammar, draw, alone=length == "short")
        head = self.fillers.head(draw, length)
        spans = tuple(Span(s.mention, s.start + len(head), s.stop + len(head)) for s in spans)
        return Caption(head + text, description, spans)

    def parse(self, text: str) -> Parsed:
        """The description in a text.

        Raises:
            UserError: the text is empty, or names no object of this world in this language, or too many.
        """
        if not text.strip():
            raise UserError(f"the text is empty. Describe one to four objects: {self.example!r}.")
        parser = CaptionParser(self.lexicon.adjectives_follow)
        for token in self.lexicon.tokens(self.fillers.removed(text)):
            parser.take(token)
        return parser.result(text, self.lexicon, self.name)

    def unknown(self, text: str) -> tuple[str, ...]:
        """The words of a text that the language does not know; filler sentences count as known."""
        return tuple(token.text for token in self.lexicon.tokens(self.fillers.removed(text)) if token.word is None)
