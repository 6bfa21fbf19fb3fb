"""Errors a user can mend.

`UserError` is a `ValueError`: it says what was wrong, what is allowed, and what to do next. The command line
prints it without a traceback and exits with 2. Bugs of ours are `assert`s and keep their traceback.
"""

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(ValueError):
    """Bad input: one or two lines that name the value, what is allowed, and the next step."""

    exit_code = 2
    """What the command line exits with."""


def unknown(kind: str, value: str, known: Iterable[str]) -> UserError:
    """An error for a name that is not in a known list; suggests the nearest one."""
    names = sorted(known)
    near = get_close_matches(value, names, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return UserError(f"unknown {kind} {value!r}.{hint} Known: {', '.join(names)}.")
