"""Filters over the columns of a store's pictures, or of other rows: `width >= 512 and (aesthetic > 5.5 or source == 'photo')`.

A filter compares columns with values and joins comparisons by `and`, `or`, `not` and brackets:

- The comparisons are `<`, `<=`, `>`, `>=`, `==`, `!=`, and `in` or `not in` with a list: `style in ('flat', 'night')`.
- A column is a name, or a name with any characters between backquotes.
- A value is a number, `true`, `false`, or a text in single or double quotes.

Python's own parser reads the structure, and nothing is ever run: all names and values are masked before it sees them, and only the
nodes of the syntax tree that the list above needs are accepted.
"""

import ast
import operator
import re
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool
from torch import Tensor

from syzygy.core.errors import UserError, unknown
from syzygy.data.store_part import BOOLEAN, NUMBER, TEXT

EXAMPLE = "width >= 512 and (aesthetic > 5.5 or source == 'photo')"
COMPARISONS: dict[type[ast.cmpop], tuple[Callable[[Any, Any], Any], type[ast.cmpop]]] = {
    ast.Lt: (operator.lt, ast.GtE),
    ast.LtE: (operator.le, ast.Gt),
    ast.Gt: (operator.gt, ast.LtE),
    ast.GtE: (operator.ge, ast.Lt),
    ast.Eq: (operator.eq, ast.NotEq),
    ast.NotEq: (operator.ne, ast.Eq),
}
"""What each comparison does, and its opposite."""
MEMBERSHIP: dict[type[ast.cmpop], type[ast.cmpop]] = {ast.In: ast.NotIn, ast.NotIn: ast.In}
_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?(?![\w.])"
_NAME = r"[^\W\d][\w.]*"
_TEXT = r"'[^']*'|\"[^\"]*\""
_TOKEN = re.compile(rf"(?P<operand>{_NUMBER}|{_NAME}|`[^`]+`|{_TEXT})|(?P<space>\s+)|<=|>=|==|!=|[<>(),]")
_WORDS = ("and", "or", "not", "in")
"""Words of the language; every other name is masked."""
_SIGNS = ("<", "<=", ">", ">=", "==", "!=")
_VALUE = "a number, true, false, or a text in quotes"


@runtime_checkable
class Table(Protocol):
    """N rows with named columns. An `EmbeddingStore` is one, and so are the scenes of the embedded world."""

    @property
    def path(self) -> Any:
        """The name in messages."""
        ...

    @property
    def columns(self) -> dict[str, str]:
        """Name → "number", "boolean" or "text"."""
        ...

    def column(self, name: str) -> Tensor | list[str]:
        """All N values: float64 with NaN where one is missing, bool, or texts."""
        ...


def passing(table: Table, text: str) -> Bool[Tensor, "N"]:
    """Which of the N rows pass the filter. A missing number passes no comparison, not even a negated one; a missing text is empty.

    Raises:
        UserError: it cannot be read, names a column that the table does not have (the message lists those it has), or compares a column
            with a value of another type.
    """
    return _Filter(table, text).passing()


class _Filter:
    """One filter over one table."""

    def __init__(self, table: Table, text: str) -> None:
        self.table, self.text = table, text
        self.bytes = text.strip().encode()  # nodes of the tree have places in bytes
        self.tokens: list[tuple[str, int]] = []
        """Each token, and its place in bytes; without spaces."""
        self.masked = self._read()

    def passing(self) -> Bool[Tensor, "N"]:
        try:
            tree = ast.parse(self.masked, mode="eval")
        except (SyntaxError, MemoryError, RecursionError) as error:
            raise self._syntax_error(error) from None
        return self._of(tree.body, negated=False)

    def _read(self) -> str:
        """The filter in ASCII with the same places: underscores for names and values, so that Python's keywords and literals mean nothing."""
        text, at, masked = self.bytes.decode(), 0, ""
        while at < len(text):
            found = _TOKEN.match(text, at)
            if found is None:
                raise UserError(f"filter {self.text!r} cannot be read from {text[at:]!r} on. Such as: {EXAMPLE}")
            token, mask = found[0], {"operand": "_", "space": " "}.get(found.lastgroup or "")
            if mask != " ":
                self.tokens.append((token, len(masked)))
            masked += token if mask is None or token in _WORDS else mask * len(token.encode())
            at = found.end()
        return masked

    def _said(self, node: ast.AST) -> str:
        """The part of the filter that a node stands for."""
        return self.bytes[node.col_offset : node.end_col_offset].decode()  # pyright: ignore[reportAttributeAccessIssue]

    def _lacks(self, what: str, place: int) -> UserError:
        rest = self.bytes[place:].decode().lstrip()
        where = f"before {rest!r}" if rest else "at its end"
        return UserError(f"filter {self.text!r} lacks {what} {where}. Such as: {EXAMPLE}")

    def _syntax_error(self, error: Exception) -> UserError:
        """Find the first token that cannot stand where it is: Python's own messages are about Python, and differ between its versions."""
        last, brackets = "and", 0
        for token, place in [*self.tokens, ("", len(self.bytes))]:
            ended = last == ")" or last not in (
                *_WORDS,
                *_SIGNS,
                "(",
                ",",
            )  # an operand, or brackets, before this token
            begins = token == "(" or token not in ("", ")", ",", "and", "or", "in", *_SIGNS)  # also "not"
            if ended and begins and token != "not":
                return self._lacks("and, or, or the end", place)
            if not ended and (not begins or (token == "not" and last in _SIGNS)) and (last, token) != ("not", "in"):
                return self._lacks(_VALUE if last in ("in", ",", *_SIGNS) else "a column", place)
            brackets += {"(": 1, ")": -1}.get(token, 0)
            if brackets < 0:
                return self._lacks("and, or, or the end", place)
            last = token
        if brackets:
            return self._lacks("a closing bracket", len(self.bytes))
        return UserError(f"filter {self.text!r} cannot be read: {error}. Such as: {EXAMPLE}")

    def _of(self, node: ast.expr, *, negated: bool) -> Bool[Tensor, "N"]:
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            return self._of(node.operand, negated=not negated)
        if isinstance(node, ast.BoolOp):
            found = torch.stack([self._of(part, negated=negated) for part in node.values])
            return found.all(0) if isinstance(node.op, ast.And) != negated else found.any(0)
        if isinstance(node, ast.Compare) and len(node.ops) == 1:
            return self._compared(node.left, type(node.ops[0]), node.comparators[0], negated)
        if isinstance(node, ast.Compare):
            raise self._lacks("and, or, or the end", node.comparators[0].end_col_offset or 0)
        raise self._lacks(f"one of {' '.join(_SIGNS)} in", node.end_col_offset or 0)

    def _compared(self, left: ast.expr, kind: type[ast.cmpop], right: ast.expr, negated: bool) -> Bool[Tensor, "N"]:
        name = self._column(left)
        if kind in MEMBERSHIP:
            if not isinstance(right, ast.Tuple):
                raise self._lacks("a list such as ('a', 'b')", right.col_offset)
            kind, negated = (MEMBERSHIP[kind], False) if negated else (kind, False)
            sign = ast.Eq if kind is ast.In else ast.NotEq
            found = torch.stack([self._one(name, sign, self._value(part)) for part in right.elts])
            return found.any(0) if kind is ast.In else found.all(0)
        if kind not in COMPARISONS:
            raise self._lacks(f"one of {' '.join(_SIGNS)} in", left.end_col_offset or 0)
        return self._one(name, COMPARISONS[kind][1] if negated else kind, self._value(right))

    def _one(self, name: str, kind: type[ast.cmpop], value: float | bool | str) -> Bool[Tensor, "N"]:
        """One column against one value."""
        holds, own = self.table.columns[name], _kind(value)
        column = f"column {name!r} of {self.table.path}"
        if holds != own:
            raise UserError(f"{column} holds {holds}; it cannot be compared with a {own}.")
        if holds != NUMBER and kind not in (ast.Eq, ast.NotEq):
            raise UserError(f"{column} holds {holds}: compare it by == or !=.")
        compare, found = COMPARISONS[kind][0], self.table.column(name)
        if isinstance(found, list):
            return torch.tensor([compare(text, value) for text in found], dtype=torch.bool)
        return compare(found, value) & ~found.isnan() if holds == NUMBER else compare(found, value)

    def _column(self, node: ast.expr) -> str:
        said = self._said(node)
        if not isinstance(node, ast.Name) or not re.fullmatch(rf"{_NAME}|`[^`]+`", said) or said in ("true", "false"):
            raise self._lacks("a column", node.col_offset)
        name = said.strip("`")
        if not self.table.columns:
            raise UserError(f"{self.table.path} has no metadata columns, so nothing can be chosen by {name!r}.")
        if name not in self.table.columns:
            raise unknown(f"column of {self.table.path}", name, self.table.columns)
        return name

    def _value(self, node: ast.expr) -> float | bool | str:
        said = self._said(node)
        if isinstance(node, ast.Name):
            if said in ("true", "false"):
                return said == "true"
            if re.fullmatch(_NUMBER, said):
                return float(said)
            if re.fullmatch(_TEXT, said):
                return said[1:-1]
        raise self._lacks(_VALUE, node.col_offset)


def _kind(value: float | bool | str) -> str:
    return BOOLEAN if isinstance(value, bool) else TEXT if isinstance(value, str) else NUMBER
