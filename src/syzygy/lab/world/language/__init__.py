"""Languages of the world: words and grammar, apart from scenes."""

from syzygy.core.errors import unknown
from syzygy.lab.world.language.base import Caption, Parsed, Span
from syzygy.lab.world.language.chinese import CHINESE
from syzygy.lab.world.language.definition import Language
from syzygy.lab.world.language.english import ENGLISH
from syzygy.lab.world.language.french import FRENCH
from syzygy.lab.world.language.german import GERMAN
from syzygy.lab.world.language.russian import RUSSIAN
from syzygy.lab.world.language.spanish import SPANISH

LANGUAGES: dict[str, Language] = {
    "en": ENGLISH,
    "de": GERMAN,
    "es": SPANISH,
    "fr": FRENCH,
    "ru": RUSSIAN,
    "zh": CHINESE,
}
"""ISO 639-1 code → language."""


def language(code: str) -> Language:
    """The language with this code. Raises UserError for an unknown code."""
    if code not in LANGUAGES:
        raise unknown("language", code, LANGUAGES)
    return LANGUAGES[code]


def detect_language(text: str) -> str:
    """The code of the language that knows most of a text, counted in letters; English if it ties with another."""
    return min(LANGUAGES, key=lambda code: sum(map(len, LANGUAGES[code].unknown(text))))


def parse_caption(text: str) -> Parsed:
    """The description in a text of any language. Raises UserError when it names no object of the world."""
    return LANGUAGES[detect_language(text)].parse(text)


__all__ = ["LANGUAGES", "Caption", "Language", "Parsed", "Span", "detect_language", "language", "parse_caption"]
