"""Errors that a user can correct.

`UserError` is a `ValueError`. Its message says what was wrong, what is allowed, and what to do next. The command line
prints it without a traceback and exits with 2. Our own bugs are `assert`s, and keep their traceback.
"""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import Any


class UserError(ValueError):
    """Invalid input. The message names the value, what is allowed, and the next step, in one or two lines."""

    exit_code = 2
    """The exit code of the command line."""


def rebuilt(kind: type[Exception], args: tuple[Any, ...], state: dict[str, Any]) -> Exception:
    """An error as another process raised it, for `__reduce__`. Needed where the arguments of `__init__` are not those of `Exception`."""
    error = kind.__new__(kind, *args)
    error.__dict__.update(state)
    return error


def install(extra: str) -> str:
    """How to install one of the optional dependencies. Syzygy is installed from its source code, not from a package index."""
    return f"run pip install -e '.[{extra}]' in the folder of Syzygy's source code"


HALF_PRECISION = (
    "The usual cause is half precision, which overflows beyond 65504: use bf16 or fp32 (--dtype on the command line, dtype in Python). "
    "If that does not help, the weights are damaged, or the sampler diverges at this number of steps."
)
NAMED = 3


class NonFiniteError(UserError):
    """Rows of a batch hold NaN or infinity. As 8-bit images they would be black or white, so they are refused."""

    def __init__(self, what: str, rows: Sequence[int], names: Sequence[str]) -> None:
        """
        Args:
            what: the name of the rows, in the plural, such as "images".
            rows: the positions in the batch that are not finite, counted from 0.
            names: the name of each of these rows in the message.
        """
        self.what, self.rows = what, tuple(rows)
        more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
        super().__init__(
            f"{what} hold values that are not finite (NaN or infinity): {', '.join(names[:NAMED])}{more}. {HALF_PRECISION}"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return rebuilt, (type(self), self.args, self.__dict__)

    def named(self, names: Sequence[str]) -> "NonFiniteError":
        """The same error with a name for each row of the batch."""
        return NonFiniteError(self.what, self.rows, [names[row] for row in self.rows])


def unknown(kind: str, value: str, known: Iterable[str]) -> UserError:
    """The error for a name that is not in a list of known ones. It suggests the nearest one."""
    names = sorted(known)
    near = get_close_matches(value, names, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return UserError(f"unknown {kind} {value!r}.{hint} Known: {', '.join(names)}.")
