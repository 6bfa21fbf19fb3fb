"""Freed memory goes back to the system: glibc would keep what the largest uploads took."""

import ctypes
import sys
from functools import cache
from typing import Any


def release() -> None:
    """Give the freed memory back, in milliseconds. Does nothing where the C library is another one."""
    if (trim := _trim()) is not None:
        trim(0)


@cache
def _trim() -> Any:
    """glibc's `malloc_trim`, or None."""
    try:
        return ctypes.CDLL(None).malloc_trim if sys.platform == "linux" else None
    except (OSError, AttributeError):
        return None
