"""Checks of the arguments of Python calls.

Each returns the value as a plain Python type, or raises a `UserError` that names the argument, the value and what is allowed.
"""

import math
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

from syzygy.core.errors import UserError


def whole(value: Any, name: str, least: int | None = None, most: int | None = None) -> int:
    """A whole number: an `int`, or an integer of numpy, from `least` to `most`. `True` and 2.0 are refused."""
    found = int(value) if isinstance(value, Integral) and not isinstance(value, bool) else None
    if found is None or (least is not None and found < least) or (most is not None and found > most):
        raise UserError(f"{name} must be a whole number{_range(least, most)}, got {shown(value)}.")
    return found


def number(value: Any, name: str, least: float | None = None) -> float:
    """A finite number of at least `least`: a `float` or an `int`, or one of numpy."""
    found = float(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan
    if not math.isfinite(found) or (least is not None and found < least):
        raise UserError(f"{name} must be a finite number{_range(least, None)}, got {shown(value)}.")
    return found


def texts(value: Any, name: str = "prompt") -> list[str]:
    """One text, or a list of texts, as a list. Empty texts are not refused here."""
    found = [value] if isinstance(value, str) else value
    if not isinstance(found, list | tuple):
        raise UserError(f"{name} must be a text (str) or a list of texts, got {shown(value)}.")
    for place, one in enumerate(found):
        if not isinstance(one, str):
            raise UserError(
                f"{name} must be a text (str) or a list of texts; item {place} of the list is {shown(one)}."
            )
    return list(found)


def optional(value: Any, name: str, kind: type | tuple[type, ...], wanted: str) -> Any:
    """None, or a value of this type."""
    if value is not None and not isinstance(value, kind):
        raise UserError(f"{name} must be {wanted}, got {shown(value)}.")
    return value


def _range(least: float | None, most: float | None) -> str:
    if least is not None and most is not None:
        return f" from {least} to {most}"
    return "" if least is None else f" of at least {least}"


def shown(value: Any) -> str:
    """A value for a message: short, and with its type."""
    if isinstance(value, Sequence) and not isinstance(value, str | bytes | bytearray):
        return f"a {type(value).__name__} of {len(value)}"
    text = repr(value)
    return f"{text if len(text) <= 40 else text[:37] + '...'} ({type(value).__name__})"
