"""Errors of single fields, with the codes and sentences of OpenAI's API."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from syzygy.core.config import Config
from syzygy.server.problems import Problem

LONGEST_NAME = 100
"""Characters that are quoted of a field's name or value."""
EXPECTED = {
    "string": "a string",
    "int": "an integer",
    "float": "a number",
    "finite": "a finite number",
    "bool": "a boolean",
    "list": "an array",
    "dict": "an object",
    "model": "an object",
}
"""Start of pydantic's error types (`int_parsing`, `model_type`) → what the field takes."""
A = {"string": "a string", "array": "an array"}
BOUNDS = {
    "greater_than_equal": ("ge", ">=", "below minimum", "below_min_value"),
    "greater_than": ("gt", ">", "below minimum", "below_min_value"),
    "less_than_equal": ("le", "<=", "above maximum", "above_max_value"),
    "less_than": ("lt", "<", "above maximum", "above_max_value"),
}
"""pydantic's error type → name of its bound, sign, words, end of OpenAI's code."""


def check_unused(asked: Config, names: Sequence[str], of: str) -> None:
    """Refuse fields that have no effect because what they belong to is missing."""
    for name in names:
        if getattr(asked, name) != type(asked).model_fields[name].default:
            raise Problem(400, f"{name} is {of}, or leave it out.", param=name)


def invalid_field(error: Mapping[str, Any]) -> Problem:
    """One of pydantic's errors (with input and context) as the answer to a client."""
    kind, value, context = error["type"], error.get("input"), error.get("ctx", {})
    name = _name(error["loc"])
    where = repr(name) if name else "the body"
    if kind in ("missing", "extra_forbidden"):
        text, code = ("Missing required", "missing_required") if kind == "missing" else ("Unknown", "unknown")
        return _problem(f"{text} parameter: {where}.", name, f"{code}_parameter")
    if kind == "literal_error":
        supported = listed(re.findall(r"'([^']*)'", context["expected"]))
        if isinstance(value, str):
            return unsupported(name, value, supported)
        got = f"expected one of {supported}, but got {_kind(value)} instead"
        return _problem(f"Invalid type for {where}: {got}.", name, "invalid_type")
    if kind in BOUNDS:
        bound, sign, words, code = BOUNDS[kind]
        number = "integer" if re.fullmatch(r"[+-]?\d+", str(value).strip()) else "decimal"
        limit = int(context[bound]) if float(context[bound]).is_integer() else context[bound]
        got = f"Expected a value {sign} {limit}, but got {str(value)[:LONGEST_NAME]} instead"
        return _problem(f"Invalid {where}: {number} {words} value. {got}.", name, f"{number}_{code}")
    if kind in ("string_too_short", "too_short"):
        what = "string" if kind == "string_too_short" else "array"
        got = f"Expected {A[what]} with minimum length {context['min_length']}, but got an empty {what} instead"
        return _problem(f"Invalid {where}: empty {what}. {got}.", name, f"empty_{what}")
    if kind == "string_unicode":
        return _problem(f"Invalid {where}: the string is not valid Unicode.", name, "invalid_value")
    expected = EXPECTED.get(kind.partition("_")[0])
    if expected is None:
        return _problem(f"Invalid value for {where}.", name, "invalid_value")
    return _problem(
        f"Invalid type for {where}: expected {expected}, but got {_kind(value)} instead.", name, "invalid_type"
    )


def unsupported(name: str | None, value: str, supported: str) -> Problem:
    """The answer to a value that is not one of the `supported` ones, which are in words."""
    text = f"Invalid value: {value[:LONGEST_NAME]!r}. Supported values are: {supported}."
    return _problem(text, name, "invalid_value")


def above(name: str, value: int, most: int) -> Problem:
    """The answer to a whole number that is too large."""
    return invalid_field({"type": "less_than_equal", "loc": (name,), "input": value, "ctx": {"le": most}})


def too_long(name: str, length: int, most: int, what: str = "string") -> Problem:
    """The answer to a text with too many characters, or to an `array` with too many items."""
    text = f"Expected {A[what]} with maximum length {most}, but got {A[what]} with length {length} instead"
    return _problem(f"Invalid {name!r}: {what} too long. {text}.", name, f"{what}_above_max_length")


def listed(values: list[str]) -> str:
    """'a', 'b', and 'c'."""
    quoted = [repr(value) for value in values]
    if len(quoted) < 3:
        return " and ".join(quoted)
    return f"{', '.join(quoted[:-1])}, and {quoted[-1]}"


def _problem(text: str, name: str | None, code: str) -> Problem:
    return Problem(400, text, param=name, code=code)


def _name(place: tuple[str | int, ...]) -> str | None:
    """`regions[0].phrase`; None for the body itself."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place)
    return text.lstrip(".")[:LONGEST_NAME] or None


def _kind(value: Any) -> str:
    """What a JSON value is, in words."""
    if value is None:
        return "null"
    kinds = {bool: "a boolean", int: "an integer", float: "a decimal number", str: "a string", list: "an array"}
    return kinds.get(type(value), "an object")
