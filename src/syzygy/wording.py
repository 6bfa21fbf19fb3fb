"""Words of messages that depend on values."""


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """A number with its noun: "1 pair", "2,983 pairs".

    Args:
        number: how many.
        noun: the singular.
        plural: the plural, where it is not the singular with an "s".
    """
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"
