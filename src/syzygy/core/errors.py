"""Errors a user can mend.

`UserError` is a `ValueError`: it says what was wrong, what is allowed, and what to do next. The command line
prints it without a traceback and exits with 2. Bugs of ours are `assert`s and keep their traceback.
"""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches


class UserError(ValueError):
    """Bad input: one or two lines that name the value, what is allowed, and the next step."""

    exit_code = 2
    """What the command line exits with."""


HALF_PRECISION = (
    "The usual cause is half precision, which overflows beyond 65504: use bf16 or fp32 (--dtype on the command line, dtype in Python). "
    "If that does not help, the weights are damaged, or the sampler diverges at this number of steps."
)
NAMED = 3


class NonFiniteError(UserError):
    """Rows of a batch hold NaN or infinity. Written as 8-bit images they would be black or white, so they are refused."""

    def __init__(self, what: str, rows: Sequence[int], names: Sequence[str]) -> None:
        """
        Args:
            what: what the rows are, in the plural: "images".
            rows: the positions in the batch that are not finite, from 0.
            names: what each of these rows is called in the message.
        """
        self.what, self.rows = what, tuple(rows)
        more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
        super().__init__(
            f"{what} hold values that are not finite (NaN or infinity): {', '.join(names[:NAMED])}{more}. {HALF_PRECISION}"
        )

    def named(self, names: Sequence[str]) -> "NonFiniteError":
        """The same error with a name for each row of the batch."""
        return NonFiniteError(self.what, self.rows, [names[row] for row in self.rows])


def unknown(kind: str, value: str, known: Iterable[str]) -> UserError:
    """An error for a name that is not in a known list; suggests the nearest one."""
    names = sorted(known)
    near = get_close_matches(value, names, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return UserError(f"unknown {kind} {value!r}.{hint} Known: {', '.join(names)}.")
