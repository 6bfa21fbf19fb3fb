"""Numbers, lists and foreign text in messages."""

from collections.abc import Sequence
from unicodedata import category


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """A number with its noun: "1 pair", "2,983 pairs". `plural` is for nouns whose plural is not the singular with an "s"."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def shortlist(names: Sequence[str], most: int) -> str:
    """The first names of a list, and how many more there are."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def size(number: float) -> str:
    """A number of bytes in decimal units: "12.3 MB"."""
    for unit, scale in (("GB", 10**9), ("MB", 10**6)):
        if number >= scale:
            return f"{number / scale:,.1f} {unit}"
    return f"{number / 1000:.0f} kB"


def duration(seconds: float) -> str:
    """A number of seconds in readable units: "0.21 s", "3 min 20 s", "5 h 3 min", "2 days 4 h"."""
    if seconds < 60:
        return f"{seconds:.2g} s"
    minutes, hours = divmod(round(seconds), 60), divmod(round(seconds / 60), 60)
    if seconds < 3600:
        return f"{minutes[0]} min {minutes[1]} s"
    if seconds < 86400:
        return f"{hours[0]} h {hours[1]} min"
    days, rest = divmod(hours[0], 24)
    return f"{counted(days, 'day')} {rest} h"


def printable(text: str) -> str:
    """`text` with control characters, which would act on a terminal, spelled out as "\\x1b"."""
    return "".join(repr(c)[1:-1] if category(c) in ("Cc", "Cs") and c not in "\n\t" else c for c in text)
