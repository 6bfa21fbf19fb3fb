"""Parallel captions to align an adapter on: of the embedded world, made on the fly, or a corpus in JSON Lines."""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from syzygy.clip.clip_model import Clip
from syzygy.clip.tokenization import encoded
from syzygy.core.errors import UserError
from syzygy.core.randomness import seed_of
from syzygy.core.wording import counted
from syzygy.lab.world.description import Description, Mention, Placed
from syzygy.lab.world.language import LANGUAGES
from syzygy.lab.world.language.base import Length
from syzygy.lab.world.parallel_corpus import PIVOT, checked_languages, parallel
from syzygy.text_encoders.adapter_task import Shuffled

CHUNK = 1000
CODE = re.compile(r"[a-z]{2,3}(-[A-Za-z0-9]{2,8})*")
"""Of a language, after BCP 47."""
EXAMPLE = '{"texts": {"en": "a red ring", "de": "ein roter Ring"}}'


@dataclass(frozen=True)
class Line:
    """A text, and what it says in English."""

    text: str
    english: str


@runtime_checkable
class Captions(Protocol):
    """Parallel captions."""

    @property
    def languages(self) -> tuple[str, ...]:
        """Codes of the languages that are learned, English among them."""
        ...

    @property
    def record(self) -> Any:
        """Which captions these are, as a JSON value."""
        ...

    def line(self, language: str, place: int, step: int) -> Line:
        """The line at this place of an endless stream of those that have the language; `step` is the one that reads it."""
        ...

    def unseen(self, language: str, number: int) -> list[Line]:
        """So many that no stream has, or fewer; the same at each call."""
        ...


@dataclass(frozen=True)
class WorldCaptions:
    """Captions of the embedded world; none names, nor does its scene show, a held-out composition."""

    seed: int
    languages: tuple[str, ...]
    lengths: tuple[Length, ...]
    """Each as often as it stands here, one for each step: a short caption beside a long one would be mostly padding."""

    def __post_init__(self) -> None:
        checked_languages(self.languages)

    @property
    def record(self) -> Any:
        return "world"

    def line(self, language: str, place: int, step: int) -> Line:
        # Another scene for each language: two captions of one would be no negatives of each other.
        return self._said(self.seed, place * len(self.languages) + self.languages.index(language), language, step)

    def unseen(self, language: str, number: int) -> list[Line]:
        seed = seed_of(self.seed, "validation")
        return [self._said(seed, index, language, index) for index in range(number)]

    def _said(self, seed: int, index: int, language: str, turn: int) -> Line:
        codes = tuple(dict.fromkeys((PIVOT, language)))
        length = self.lengths[turn % len(self.lengths)]
        found = parallel(seed, index, codes, unseen=False, length=length).captions
        return Line(found[language].text, found[PIVOT].text)


class CorpusCaptions:
    """Captions of a JSON Lines file as `syzygy world corpus` writes it, or one with `texts` alone; held by their places in it.

    A line whose English is longer than CLIP reads is left out: cut text is no target.
    """

    def __init__(self, path: Path, clip: Clip, seed: int, languages: Sequence[str] | None, validation: int) -> None:
        """`languages`: those to learn; None is those of the first line. `validation`: lines that are kept out of training.

        Raises:
            UserError: names the first line that is no JSON object with texts, lacks English, has an empty text or an unknown language, or tells
                a held-out composition of the embedded world; a language that no line has; too few lines.
        """
        self.path = path
        self._offsets: list[int] = []
        self.left_out = 0
        self.not_learned = Counter[str]()
        """Lines that have a language which is not among those to learn."""
        digest = hashlib.blake2b(digest_size=8)
        numbers: dict[str, list[int]] = {}
        known = None if languages is None else tuple(languages)
        for chunk in _chunks(_lines(path, digest.update)):
            fits = _read_whole(clip, [row["texts"][PIVOT] for _, _, row in chunk])
            for (number, offset, row), fit in zip(chunk, fits, strict=True):
                known = known or tuple(row["texts"])
                if languages is None and (strange := sorted(row["texts"].keys() - set(known))):
                    raise _wrong(
                        path,
                        number,
                        f"has an unknown language {strange[0]!r}; the first line has {', '.join(known)}. Mend it, or say which are learned: "
                        f"languages={json.dumps([*known, *strange])}",
                    )
                self.not_learned.update(row["texts"].keys() - set(known))
                if not fit:
                    self.left_out += 1
                    continue
                if len(self._offsets) >= validation:  # those before are the validation's
                    for code in row["texts"].keys() & set(known):
                        numbers.setdefault(code, []).append(len(self._offsets))
                self._offsets.append(offset)
        self._validation = min(validation, len(self._offsets))
        self.languages = self._checked(known or (), numbers)
        self._seed, self._digest = seed, digest.hexdigest()
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
            raise UserError(f"languages={list(known)} lacks English: the others are taught by it. Add {PIVOT!r}.")
        return known

    @property
    def record(self) -> Any:
        return self._digest

    def line(self, language: str, place: int, step: int) -> Line:
        return self._line(self._numbers[language][self._streams[language][place]], language)

    def unseen(self, language: str, number: int) -> list[Line]:
        rows = range(min(number, self._validation))
        return [self._line(row, language) for row in rows if language in self._row(row)]

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
        UserError: as `CorpusCaptions` for a file that cannot be read or a line that is wrong.
    """
    return sum(1 for _ in _lines(path, lambda line: None))


def _lines(path: Path, watch: Callable[[bytes], None]) -> Iterator[tuple[int, int, dict[str, Any]]]:
    """(number from 1, offset, what it says) of each line that is not blank."""
    try:
        with path.open("rb") as file:
            offset = 0
            for number, line in enumerate(file, 1):
                watch(line)
                if line.strip():
                    yield number, offset, _checked_line(path, number, line)
                offset += len(line)
    except OSError as error:
        raise UserError(f"the corpus {path} cannot be read: {error.strerror}. Make one: syzygy world corpus") from None


def _checked_line(path: Path, number: int, line: bytes) -> dict[str, Any]:
    row: Any = None
    with suppress(ValueError):
        row = json.loads(line)
    texts = row.get("texts") if isinstance(row, dict) else None
    if not isinstance(texts, dict):
        raise _wrong(path, number, f"is no JSON object with texts. Such as: {EXAMPLE}")
    for code, text in texts.items():
        if not CODE.fullmatch(code):
            raise _wrong(path, number, f"has an unknown language {code!r}: write a code such as {', '.join(LANGUAGES)}")
        if not isinstance(text, str) or not text.strip():
            raise _wrong(path, number, f"has no text in {code!r}. Leave the language out of the line, or fill it in")
    if PIVOT not in texts:
        raise _wrong(
            path, number, f"lacks English ({PIVOT!r}), which teaches the others; it has {', '.join(texts) or 'nothing'}"
        )
    if "description" in row and _held_out(row["description"]):
        raise _wrong(
            path, number, "tells a held-out composition, which no training may see. Write it with --no-held-out"
        )
    return row


def _held_out(told: Any) -> bool:
    """Whether a description as `syzygy world corpus` writes it names a held-out composition; what is none of the world names none."""
    try:
        mentions = tuple(Mention(**mention) for mention in told["mentions"])
        return Description(mentions, tuple(Placed(**one) for one in told["relations"])).unseen
    except (KeyError, TypeError, IndexError):
        return False


def _wrong(path: Path, number: int, what: str) -> UserError:
    return UserError(f"line {number} of {path} {what}.")


def _chunks(lines: Iterator[Any]) -> Iterator[list[Any]]:
    chunk: list[Any] = []
    for line in lines:
        chunk.append(line)
        if len(chunk) == CHUNK:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _read_whole(clip: Clip, texts: list[str]) -> list[bool]:
    """Whether CLIP reads each of them to its end."""
    return [len(ids) + 2 <= clip.positions for ids, _ in encoded(clip.tokenizer, texts)]
