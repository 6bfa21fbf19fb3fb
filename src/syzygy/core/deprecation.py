"""Old public names keep working for one release, with a `DeprecationWarning` that names the new one."""

import warnings
from collections.abc import Mapping
from typing import Any

from syzygy.core.errors import UserError


def warn_renamed(old: str, new: str, *, stacklevel: int = 2) -> None:
    """Warn that `old` is now called `new`. With `stacklevel` 2 the warning points to the caller of the function that calls this."""
    warnings.warn(renamed(old, new), DeprecationWarning, stacklevel=stacklevel + 1)


def renamed(old: str, new: str) -> str:
    """The sentence that says so."""
    return f"{old} is now called {new}. The old name stops working in the next release."


def with_new_name(values: Mapping[str, Any], old: str, new: str, *, stacklevel: int = 2) -> dict[str, Any]:
    """`values`, keyword arguments for example, with the entry `old` under its new name.

    Raises:
        UserError: both names are there.
    """
    found = dict(values)
    if old not in found:
        return found
    if new in found:
        raise UserError(f"{old} and {new} are one setting: leave out {old}, its old name.")
    warn_renamed(old, new, stacklevel=stacklevel + 1)
    found[new] = found.pop(old)
    return found
