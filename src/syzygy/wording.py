"""Words of messages that depend on values, and text from elsewhere in messages."""

from unicodedata import category


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """A number with its noun: "1 pair", "2,983 pairs".

    Args:
        number: how many.
        noun: the singular.
        plural: the plural, where it is not the singular with an "s".
    """
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def printable(text: str) -> str:
    """`text` without control characters, which would act on a terminal: they are spelled out as "\\x1b"."""
    return "".join(repr(c)[1:-1] if category(c) in ("Cc", "Cs") and c not in "\n\t" else c for c in text)
