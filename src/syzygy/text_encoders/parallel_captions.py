"""Parallel captions that an adapter is aligned on, and the corpus of them in JSON Lines."""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from syzygy.clip.tokenization import encoded
from syzygy.core.errors import UserError
from syzygy.core.registry import imported
from syzygy.core.wording import counted
from syzygy.training.shuffled import Shuffled

PIVOT = "en"
"""Every line has English: the adapter learns the other languages from CLIP's embedding of it."""
CHUNK = 1000
CODE = re.compile(r"[a-z]{2,3}(-[A-Za-z0-9]{2,8})*")
"""A language code, after BCP 47."""
EXAMPLE = '{"texts": {"en": "a red ring", "de": "ein roter Ring"}}'
HELD_OUT = "syzygy.lab.starter.world_captions:describes_unseen"
"""Recognises descriptions of the embedded world that no training may see; `syzygy world corpus` writes them into its lines."""


@runtime_checkable
class English(Protocol):
    """What reads the English of a line: a CLIP, or the text encoders of a Stable Diffusion."""

    @property
    def tokenizer(self) -> Any: ...

    @property
    def positions(self) -> int:
        """The most tokens of a text that it reads, start and end token included."""
        ...


@dataclass(frozen=True)
class Line:
    """A text, and its English translation."""

    text: str
    english: str


@runtime_checkable
class Captions(Protocol):
    """Parallel captions to align on: a corpus of the user's own, or the lab's embedded world."""

    @property
    def languages(self) -> tuple[str, ...]:
        """Codes of the languages that are learned, English among them."""
        ...

    @property
    def record(self) -> Any:
        """A JSON value that identifies these captions."""
        ...

    def line(self, language: str, place: int, step: int) -> Line:
        """The line at this place of an endless stream of those that have the language; `step` is the one that reads it."""
        ...

    def unseen(self, language: str, number: int) -> list[Line]:
        """At most this many lines that are in no stream; the same at each call."""
        ...


class CorpusCaptions:
    """The captions of a JSON Lines file with `texts` in each line; only the lines' positions are held in memory.

    A line whose English is longer than CLIP reads is left out, because the embedding of a cut text is no target.
    """

    def __init__(self, path: Path, clip: English, seed: int, languages: Sequence[str] | None, validation: int) -> None:
        """
        Args:
            languages: those to learn; None is those of the first line.
            validation: how many of the first lines are kept for validation.

        Raises:
            UserError: names the first line that is no JSON object with texts, lacks English, has an empty text or an unknown language, or
                describes an unseen composition of the embedded world; or a language that no line has; or there are too few lines.
        """
        self.path = path
        self.left_out = 0
        """Lines that were left out."""
        self.not_learned = Counter[str]()
        """Number of lines by language, for languages that are not learned."""
        self._offsets: list[int] = []
        digest = hashlib.blake2b(digest_size=8)
        numbers: dict[str, list[int]] = {}
        known = None if languages is None else tuple(languages)
        lines = _lines(path, digest.update)
        while chunk := list(islice(lines, CHUNK)):
            fits = _within_context(clip, [row["texts"][PIVOT] for _, _, row in chunk])
            for (number, offset, row), fit in zip(chunk, fits, strict=True):
                codes = row["texts"].keys()
                known = known or tuple(codes)
                other = codes - set(known)
                if languages is None and other:
                    raise _wrong(
                        path,
                        number,
                        f"has an unknown language {min(other)!r}; the first line has {', '.join(known)}. Correct the line, or list the "
                        f"languages to learn: languages={json.dumps([*known, *sorted(other)])}",
                    )
                self.not_learned.update(other)
                if not fit:
                    self.left_out += 1
                    continue
                if len(self._offsets) >= validation:
                    for code in codes & set(known):
                        numbers.setdefault(code, []).append(len(self._offsets))
                self._offsets.append(offset)
        self._validation = min(validation, len(self._offsets))
        self.languages = self._checked(known or (), numbers)
        self.record = digest.hexdigest()
        self._numbers = {code: numbers[code] for code in self.languages}
        self._streams = {code: Shuffled(len(found), seed, "corpus", code) for code, found in self._numbers.items()}
        self._row = lru_cache(maxsize=4096)(self._read)

    def _checked(self, known: tuple[str, ...], numbers: dict[str, list[int]]) -> tuple[str, ...]:
        if not numbers:
            why = f", and {self.left_out} whose English CLIP would cut" if self.left_out else ""
            raise UserError(
                f"{self.path} has {counted(len(self._offsets), 'usable line')}{why}; "
                f"{self._validation} are for validation, none is left to learn from."
            )
        for code in known:
            if code not in numbers:
                raise UserError(
                    f"no line of {self.path} that is learned from has the language {code!r}. It has: {', '.join(sorted(numbers))}."
                )
        if PIVOT not in known:
            raise UserError(
                f"languages={list(known)} lacks English, from which the others are learned. Add {PIVOT!r} to the list."
            )
        return known

    def line(self, language: str, place: int, step: int) -> Line:
        return self._line(self._numbers[language][self._streams[language][place]], language)

    def unseen(self, language: str, number: int) -> list[Line]:
        rows = range(min(number, self._validation))
        return [self._line(row, language) for row in rows if language in self._row(row)]

    def every(self) -> Iterator[Line]:
        """All lines in all languages that are learned, those for validation included."""
        for row in range(len(self._offsets)):
            texts = self._row(row)
            yield from (self._line(row, code) for code in self.languages if code in texts)

    def _line(self, row: int, language: str) -> Line:
        texts = self._row(row)
        return Line(texts[language], texts[PIVOT])

    def _read(self, row: int) -> dict[str, str]:
        with self.path.open("rb") as file:
            file.seek(self._offsets[row])
            return json.loads(file.readline())["texts"]


def number_of_lines(path: Path) -> int:
    """How many lines of a corpus are not blank.

    Raises:
        UserError: the file cannot be read, or a line is wrong, as in `CorpusCaptions`.
    """
    return sum(1 for _ in _lines(path, lambda line: None))


def _lines(path: Path, watch: Callable[[bytes], None]) -> Iterator[tuple[int, int, dict[str, Any]]]:
    """(number from 1, offset, JSON object) of each line that is not blank."""
    try:
        with path.open("rb") as file:
            offset = 0
            for number, line in enumerate(file, 1):
                watch(line)
                if line.strip():
                    yield number, offset, _checked_line(path, number, line)
                offset += len(line)
    except OSError as error:
        raise UserError(
            f"the corpus {path} cannot be read: {error.strerror}. Check the path, or make a corpus with syzygy world corpus."
        ) from None


def _checked_line(path: Path, number: int, line: bytes) -> dict[str, Any]:
    row: Any = None
    with suppress(ValueError):
        row = json.loads(line)
    texts = row.get("texts") if isinstance(row, dict) else None
    if not isinstance(texts, dict):
        raise _wrong(path, number, f"is no JSON object with texts. An example: {EXAMPLE}")
    for code, text in texts.items():
        if not CODE.fullmatch(code):
            raise _wrong(path, number, f"has an unknown language {code!r}: write a code such as en, de or zh-Hant")
        if not isinstance(text, str) or not text.strip():
            raise _wrong(path, number, f"has no text in {code!r}. Leave the language out of the line, or fill it in")
    if PIVOT not in texts:
        found = ", ".join(texts) or "nothing"
        raise _wrong(path, number, f"lacks English ({PIVOT!r}), from which the others are learned; it has {found}")
    if "description" in row and imported(HELD_OUT)(row["description"]):
        raise _wrong(
            path,
            number,
            "describes an unseen composition, which no training may see. Write the corpus with --no-unseen",
        )
    return row


def _wrong(path: Path, number: int, what: str) -> UserError:
    return UserError(f"line {number} of {path} {what}.")


def _within_context(clip: English, texts: list[str]) -> list[bool]:
    """Whether CLIP reads each of these texts to its end."""
    return [len(ids) + 2 <= clip.positions for ids, _ in encoded(clip.tokenizer, texts)]
