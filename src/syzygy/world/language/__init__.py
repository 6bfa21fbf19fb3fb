"""Languages of the world: words and grammar, apart from scenes."""

from syzygy.errors import unknown
from syzygy.world.language.base import Caption, Language, Parsed, Span
from syzygy.world.language.english import English

LANGUAGES: dict[str, Language] = {"en": English()}
"""ISO 639-1 code → language."""


def language(code: str) -> Language:
    """The language with this code; unknown codes are an error that lists the known ones."""
    if code not in LANGUAGES:
        raise unknown("language", code, LANGUAGES)
    return LANGUAGES[code]


__all__ = ["LANGUAGES", "Caption", "Language", "Parsed", "Span", "language"]
