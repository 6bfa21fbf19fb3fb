"""`open_source`: from what a user writes to a list of shards in a stable order."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from os.path import commonpath
from pathlib import Path
from typing import Any

from syzygy.data.pair import Shard
from syzygy.data.source_tar import TarShard
from syzygy.errors import UserError

KINDS = "a tar or a folder of tars (img2dataset)"
RANGE = re.compile(r"(-?\d+)\.\.(-?\d+)")
MOST_FILES = 1_000_000


@dataclass(frozen=True, kw_only=True)
class SourceOptions:
    """What a user may say about a source. Names of columns are those of parquet, or fields of JSON."""

    caption_columns: tuple[str, ...] = ()
    """Where the captions are; empty: found by their usual names."""
    keep: tuple[str, ...] = ()
    """Columns whose text is kept; numbers and booleans are anyway."""

    def to_config(self) -> dict[str, Any]:
        """As JSON values."""
        return json.loads(json.dumps(asdict(self)))

    @staticmethod
    def from_config(values: Mapping[str, Any]) -> "SourceOptions":
        """What `to_config` gave."""
        return SourceOptions(**{name: tuple(x) if isinstance(x, list) else x for name, x in values.items()})


@dataclass(frozen=True)
class Source:
    """A source that was opened."""

    text: str
    """As the user wrote it."""
    kind: str
    """`tar`."""
    shards: Sequence[Shard]
    """In the order that they are numbered in."""


def open_source(text: str, options: SourceOptions) -> Source:
    """Find out what `text` names, without reading the samples.

    Args:
        text: a file or a folder; `{00000..00099}` stands for a range and `{a,b}` for each of a list.

    Raises:
        UserError: nothing is there, a file of a range is missing, or an option has no effect on such a source.
    """
    paths = [Path(one) for one in expand(text)]
    missing = [path for path in paths if not path.exists()]
    if missing:
        of = f" ({len(missing)} of {len(paths)} are missing)" if len(paths) > 1 else ""
        raise UserError(f"there is no {missing[0]}{of}. A source is {KINDS}; {{00000..00099}} stands for a range.")
    files = _files(paths, ".tar", text)
    shards = [
        TarShard(path, name, path.stat().st_size, options.keep, options.caption_columns) for path, name in _named(files)
    ]
    return Source(text, "tar", shards)


def expand(text: str) -> list[str]:
    """Braces as shells expand them: ranges with leading zeros, and lists.

    Raises:
        UserError: more than a million files.
    """
    pieces = re.split(r"\{([^{}]*)\}", text)
    choices: list[list[str]] = []
    number = 1
    for i, piece in enumerate(pieces):
        found = [piece] if i % 2 == 0 else _choices(piece)
        number *= len(found)
        if number > MOST_FILES:
            raise UserError(f"{text} stands for more than {MOST_FILES:,} files. Write a smaller range.")
        choices.append(found)
    return ["".join(parts) for parts in product(*choices)]


def _choices(inside: str) -> list[str]:
    if span := RANGE.fullmatch(inside):
        first, last = span.groups()
        width = max(len(first), len(last)) if first.lstrip("-").startswith("0") or last.startswith("0") else 0
        low, high = int(first), int(last)
        if abs(high - low) >= MOST_FILES:
            raise UserError(f"{{{inside}}} stands for more than {MOST_FILES:,} files. Write a smaller range.")
        step = 1 if high >= low else -1
        return [f"{number:0{width}}" for number in range(low, high + step, step)]
    if "," in inside:
        return inside.split(",")
    return [f"{{{inside}}}"]  # as shells do: no range and no list is itself


def _files(paths: list[Path], ending: str, text: str) -> list[Path]:
    """The files themselves, and those of each folder in order of their names."""
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = sorted(p for p in path.iterdir() if p.suffix == ending and not p.name.startswith("."))
            if not inside:
                raise UserError(f"{path} holds no pairs. A source is {KINDS}.")
            found += inside
        elif path.suffix == ending:
            found.append(path)
        else:
            raise UserError(f"{path} is no source of pairs. A source is {KINDS}.")
    return found


def _named(files: list[Path]) -> list[tuple[Path, str]]:
    """Each with its name: the path from the folder that all have in common, so that it is the same wherever that is."""
    absolute = [path.absolute() for path in files]
    root = Path(commonpath([path.parent for path in absolute]))
    names = [path.relative_to(root).as_posix() for path in absolute]
    twice = next((name for name in names if names.count(name) > 1), None) if len(set(names)) < len(names) else None
    if twice is not None:
        raise UserError(f"{twice} is named twice. Name each file once.")
    return list(zip(files, names, strict=True))
