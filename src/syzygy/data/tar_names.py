"""How members of a tar become samples: webdataset splits a name at its first dot, open_clip at its last; see `parting`."""

import posixpath
import tarfile
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from itertools import groupby
from pathlib import Path

from syzygy.core.image_reading import SUFFIXES
from syzygy.data.pair import clean

TEXTS = ("txt", "json")
MOST_MEMBERS = 64
"""Of one key, where names are split at their first dot: a key of more is a mistake, and would have to be kept in memory."""

COUNTED_MEMBERS = 4096
"""Members of a tar that are looked at to estimate how many pictures it has."""

Parting = Callable[[str], tuple[str, str]]
"""A member's name → (key, ending in lower case, "" if there is none)."""


@cache
def pictures() -> tuple[str, ...]:
    """Endings of pictures; of two pictures of a sample, the one whose ending comes first is taken."""
    return tuple(dict.fromkeys(["jpg", "jpeg", "png", "webp", *sorted(suffix[1:] for suffix in SUFFIXES)]))


def at_first_dot(name: str) -> tuple[str, str]:
    """`a/s0.input.jpg` → (`a/s0`, `input.jpg`), as webdataset does."""
    folder, base = posixpath.split(clean(name))
    stem, _, ending = base.partition(".")
    return posixpath.join(folder, stem), ending.lower() if stem else ""


def at_last_dot(name: str) -> tuple[str, str]:
    """`a/j0.5.jpg` → (`a/j0.5`, `jpg`), as open_clip does."""
    folder, base = posixpath.split(clean(name))
    stem, _, ending = base.rpartition(".")
    return posixpath.join(folder, stem or base), ending.lower() if stem.strip(".") and not base.startswith(".") else ""


def has_several_dots(name: str) -> bool:
    """Whether the two ways split this name differently."""
    return posixpath.basename(name).lstrip(".").count(".") > 1


def chosen(endings: Iterable[str], kinds: Sequence[str]) -> str | None:
    """Which ending of a sample's members is of these kinds: exactly, or the only one that is so in its last part."""
    found = list(endings)
    exact = next((kind for kind in kinds if kind in found), None)
    also = [ending for ending in found if ending.rpartition(".")[2] in kinds]
    return exact or (also[0] if len(also) == 1 else None)


def is_known(ending: str) -> bool:
    """Whether a member with this ending may be a picture or hold captions."""
    return ending.rpartition(".")[2] in (*pictures(), *TEXTS)


def parting(tar: Path) -> Parting:
    """How the members of this tar are to be split: in the way that gives more pairs, and of equal ones fewer incomplete samples.

    It reads the headers alone. Tars without a name with several dots need not be looked at: both ways agree there.
    """
    names = []
    try:
        with tarfile.open(tar, mode="r:") as file:
            while (info := file.next()) is not None:
                file.members = []  # pyright: ignore[reportAttributeAccessIssue]  (it would remember all of them)
                if info.isreg() and is_known(at_last_dot(info.name)[1]):
                    names.append(info.name)
    except (tarfile.TarError, EOFError, OSError):
        pass  # whoever reads the members says what is wrong
    first, last = _score(names, at_first_dot), _score(names, at_last_dot)
    return at_first_dot if first > last and first[0] > 0 else at_last_dot


def picture_density(tar: Path) -> float | None:
    """Pictures a byte among the first members of this tar, by their headers alone; None if it cannot be read."""
    number = members = 0
    try:
        with tarfile.open(tar, mode="r:") as file:
            while members < COUNTED_MEMBERS and (info := file.next()) is not None:
                file.members = []  # pyright: ignore[reportAttributeAccessIssue]  (it would remember all of them)
                members += 1
                number += info.isreg() and at_last_dot(info.name)[1] in pictures()
            end = file.offset if members == COUNTED_MEMBERS else tar.stat().st_size
    except (tarfile.TarError, EOFError, OSError):
        return None
    return number / end


def _score(names: list[str], part: Parting) -> tuple[int, int]:
    """(pairs, minus the samples that are incomplete)."""
    pairs = incomplete = 0
    for _, group in groupby(map(part, names), key=lambda parted: parted[0]):
        endings = [ending for _, ending in group]
        if len(endings) > MOST_MEMBERS:
            return 0, 0
        whole = chosen(endings, pictures()) is not None and any(chosen(endings, (text,)) for text in TEXTS)
        pairs, incomplete = pairs + whole, incomplete + (not whole)
    return pairs, -incomplete
