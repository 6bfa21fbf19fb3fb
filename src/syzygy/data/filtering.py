"""Which pictures of a store, or other rows, pass a filter over their columns: `width >= 512 and (aesthetic > 5.5 or source == 'photo')`.

Grammar, read by hand and never evaluated as code:

    any        = all {"or" all}
    all        = one {"and" one}
    one        = "(" any ")" | comparison
    comparison = column ("<" | "<=" | ">" | ">=" | "==" | "!=") value
    column     = a name | `a name with any characters`
    value      = a number | true | false | 'text' | "text"
"""

import operator
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool
from torch import Tensor

from syzygy.core.errors import UserError, unknown
from syzygy.data.store_part import BOOLEAN, NUMBER, TEXT

EXAMPLE = "width >= 512 and (aesthetic > 5.5 or source == 'photo')"
COMPARISONS: dict[str, Callable[[Any, Any], Any]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
}
_TOKEN = re.compile(
    r"""\s*(?:(?P<number>[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)(?![\w.])"""
    r"""|(?P<sign><=|>=|==|!=|<|>|\(|\))|(?P<name>[^\W\d][\w.]*)|`(?P<quoted>[^`]+)`"""
    r"""|'(?P<single>[^']*)'|"(?P<double>[^"]*)")"""
)
_NAME, _TEXT, _NUMBER, _SIGN = "name", "text", "number", "sign"


@runtime_checkable
class Table(Protocol):
    """N rows with named columns, such as an embedding store's pictures."""

    @property
    def path(self) -> Any:
        """What it is called in messages."""
        ...

    @property
    def columns(self) -> dict[str, str]:
        """Name → "number", "boolean" or "text"."""
        ...

    def column(self, name: str) -> Tensor | list[str]:
        """All N values: float64 with NaN where one is missing, bool, or texts."""
        ...


@dataclass(frozen=True)
class Comparison:
    """One column against one value."""

    column: str
    sign: str
    value: float | bool | str

    def columns(self) -> set[str]:
        return {self.column}

    def passing(self, store: Table) -> Bool[Tensor, "N"]:
        """A missing number passes nothing; a missing text is empty."""
        kind, own = store.columns[self.column], _kind(self.value)
        if kind != own:
            raise UserError(f"column {self.column!r} of {store.path} holds {kind}; it cannot be compared with a {own}.")
        if kind != NUMBER and self.sign not in ("==", "!="):
            raise UserError(f"column {self.column!r} of {store.path} holds {kind}: compare it by == or !=.")
        compare, found = COMPARISONS[self.sign], store.column(self.column)
        if isinstance(found, list):
            return torch.tensor([compare(text, self.value) for text in found], dtype=torch.bool)
        return compare(found, self.value) & ~found.isnan() if kind == NUMBER else compare(found, self.value)


@dataclass(frozen=True)
class Joined:
    """Several conditions, all or any of which must hold."""

    parts: "tuple[Comparison | Joined, ...]"
    every: bool

    def columns(self) -> set[str]:
        return {column for part in self.parts for column in part.columns()}

    def passing(self, store: Table) -> Bool[Tensor, "N"]:
        found = torch.stack([part.passing(store) for part in self.parts])
        return found.all(0) if self.every else found.any(0)


def passing(store: Table, text: str) -> Bool[Tensor, "N"]:
    """Which of the N rows pass the filter.

    Raises:
        UserError: it cannot be read, names a column that the table does not have (those that it has are listed), or compares a column with
            what it cannot hold.
    """
    condition = parse_filter(text)
    for name in sorted(condition.columns()):
        if name not in store.columns:
            if not store.columns:
                raise UserError(f"{store.path} has no metadata columns, so nothing can be chosen by {name!r}.")
            raise unknown(f"column of {store.path}", name, store.columns)
    return condition.passing(store)


def parse_filter(text: str) -> Comparison | Joined:
    """The condition that a filter says.

    Raises:
        UserError: it cannot be read: says where.
    """
    reader = _Reader(text)
    found = reader.any()
    if reader.tokens[reader.at][1]:
        raise reader.wrong("and, or, or the end")
    return found


def _kind(value: float | bool | str) -> str:
    return BOOLEAN if isinstance(value, bool) else TEXT if isinstance(value, str) else NUMBER


def _tokens(text: str) -> Iterable[tuple[str, str, int]]:
    """(kind, what it says, where) of each token, and an empty one at the end."""
    at, end = 0, len(text.rstrip())
    while at < end:
        found = _TOKEN.match(text, at)
        if found is None:
            raise UserError(f"filter {text!r} cannot be read from {text[at:].strip()!r} on. Such as: {EXAMPLE}")
        kind = str(found.lastgroup)
        yield {"quoted": "column", "single": _TEXT, "double": _TEXT}.get(kind, kind), found[kind], found.start(kind)
        at = found.end()
    yield "end", "", end


class _Reader:
    """Recursive descent over the tokens."""

    def __init__(self, text: str) -> None:
        self.text, self.tokens, self.at = text, list(_tokens(text)), 0

    def wrong(self, wanted: str) -> UserError:
        rest = self.text[self.tokens[self.at][2] :]
        where = f"before {rest!r}" if rest else "at its end"
        return UserError(f"filter {self.text!r} lacks {wanted} {where}. Such as: {EXAMPLE}")

    def any(self) -> Comparison | Joined:
        return self._joined("or", self._all, every=False)

    def _all(self) -> Comparison | Joined:
        return self._joined("and", self._one, every=True)

    def _joined(self, word: str, read: Callable[[], Comparison | Joined], *, every: bool) -> Comparison | Joined:
        parts = [read()]
        while self.tokens[self.at][:2] == (_NAME, word):
            self.at += 1
            parts.append(read())
        return parts[0] if len(parts) == 1 else Joined(tuple(parts), every)

    def _one(self) -> Comparison | Joined:
        if self.tokens[self.at][:2] == (_SIGN, "("):
            self.at += 1
            found = self.any()
            self._take("a closing bracket", lambda kind, said: said == ")" and kind == _SIGN)
            return found
        column = self._take("a column", lambda kind, said: kind == "column" or (kind == _NAME and not _reserved(said)))
        sign = self._take(f"one of {' '.join(COMPARISONS)}", lambda kind, said: kind == _SIGN and said in COMPARISONS)
        return Comparison(column, sign, self._value())

    def _value(self) -> float | bool | str:
        kind = self.tokens[self.at][0]
        said = self._take(
            "a number, true, false, or a text in quotes",
            lambda kind, said: kind in (_NUMBER, _TEXT) or (kind == _NAME and said in ("true", "false")),
        )
        return float(said) if kind == _NUMBER else said if kind == _TEXT else said == "true"

    def _take(self, wanted: str, fits: Callable[[str, str], bool]) -> str:
        kind, said, _ = self.tokens[self.at]
        if not fits(kind, said):
            raise self.wrong(wanted)
        self.at += 1
        return said


def _reserved(word: str) -> bool:
    return word in ("and", "or", "true", "false")
