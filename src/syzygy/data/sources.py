"""`open_source`: from what a user writes to a list of shards in a stable order."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from os.path import commonpath
from pathlib import Path

from pydantic import Field

from syzygy.core.config import Config
from syzygy.core.errors import UserError
from syzygy.data.pair import Shard
from syzygy.data.source_captions import caption_files_shards
from syzygy.data.source_embeddings import embedding_shards
from syzygy.data.source_folder import folder_shards
from syzygy.data.source_kinds import ADDRESS, KINDS, inside, kind_of
from syzygy.data.source_parquet import choose_columns, first_readable, parquet_shards
from syzygy.data.source_tar import tar_shard

RANGE = re.compile(r"(-?\d+)\.\.(-?\d+)")
MOST_FILES = 1_000_000


class SourceOptions(Config):
    """What a user may say about a source. Names of columns are those of parquet, or fields of JSON."""

    caption_columns: tuple[str, ...] = ()
    """Where the captions are; empty: found by their usual names."""
    image_column: str | None = None
    """Where the pictures are, in parquet; None: found."""
    keep: tuple[str, ...] = ()
    """Columns whose text is kept; numbers and booleans are anyway."""
    image_norm: float | None = Field(default=None, gt=0)
    """What brings ready-made embeddings of unit length to raw scale: the mean norm of the encoder's raw image embeddings."""


@dataclass(frozen=True)
class Source:
    """A source that was opened."""

    text: str
    """As the user wrote it."""
    kind: str
    """tar, parquet, folder, caption files or embeddings."""
    shards: Sequence[Shard]
    """In the order that they are numbered in."""


def open_source(text: str, options: SourceOptions) -> Source:
    """Find out what `text` names, without reading the samples.

    Args:
        text: a file or a folder; `{00000..00099}` stands for a range and `{a,b}` for each of a list.

    Raises:
        UserError: nothing is there, a file of a range is missing, or an option has no effect on such a source.
    """
    if ADDRESS.match(text):
        raise UserError(
            f"{text} is an address. A source is on this machine: download it first, then name the file or folder. It is {KINDS}."
        )
    paths = [Path(one) for one in expand(text)]
    missing = [path for path in paths if not path.exists()]
    if missing:
        of = f" ({len(missing)} of {len(paths)} are missing)" if len(paths) > 1 else ""
        raise UserError(f"there is no {missing[0]}{of}. A source is {KINDS}; {{00000..00099}} stands for a range.")
    kinds = {kind_of(path) for path in paths}
    if len(kinds) > 1:
        raise UserError(
            f"{text} names sources of several kinds ({', '.join(sorted(kinds))}). Embed each into its own store."
        )
    kind = kinds.pop()
    _check_options(kind, options)
    if kind in ("folder", "caption files", "embeddings") and len(paths) > 1:
        raise UserError(f"{text} names {len(paths)} folders. Embed each into its own store, then `syzygy store merge`.")
    return Source(text, kind, _OPEN[kind](paths, options))


def _check_options(kind: str, options: SourceOptions) -> None:
    """An option without effect is an error."""
    if options.image_column is not None and kind != "parquet":
        raise UserError(f"--image-column is for parquet; this source is of kind {kind}. Leave it out.")
    if options.image_norm is not None and kind != "embeddings":
        raise UserError(f"--image-norm is for ready-made embeddings; this source is of kind {kind}. Leave it out.")
    if kind == "caption files" and (options.caption_columns or options.keep):
        name = "--caption-column" if options.caption_columns else "--keep"
        raise UserError(f"{name} is for metadata; here each picture has a caption file. Leave it out.")


def _tars(paths: list[Path], options: SourceOptions) -> list[Shard]:
    return [
        tar_shard(path, name, options.keep, options.caption_columns) for path, name in _named(_files(paths, ".tar"))
    ]


def _parquet(paths: list[Path], options: SourceOptions) -> list[Shard]:
    files = _named(_files(paths, ".parquet"))
    readable = first_readable([path for path, _ in files])
    columns = choose_columns(readable, options.image_column, options.caption_columns, options.keep, pictures=True)
    return [shard for path, name in files for shard in parquet_shards(path, name, columns)]


def _folder(paths: list[Path], options: SourceOptions) -> list[Shard]:
    return [*folder_shards(paths[0], options.keep, options.caption_columns)]


def _caption_files(paths: list[Path], options: SourceOptions) -> list[Shard]:
    return [*caption_files_shards(paths[0])]


def _embeddings(paths: list[Path], options: SourceOptions) -> list[Shard]:
    return [*embedding_shards(paths[0], options.caption_columns, options.keep, options.image_norm)]


_OPEN: dict[str, Callable[[list[Path], SourceOptions], list[Shard]]] = {
    "tar": _tars,
    "parquet": _parquet,
    "folder": _folder,
    "caption files": _caption_files,
    "embeddings": _embeddings,
}


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


def _files(paths: list[Path], ending: str) -> list[Path]:
    """The files themselves, and those of each folder."""
    return [file for path in paths for file in (inside(path, ending) if path.is_dir() else [path])]


def _named(files: list[Path]) -> list[tuple[Path, str]]:
    """Each with its name: the path from the folder that all have in common, so that it is the same wherever that is."""
    absolute = [path.absolute() for path in files]
    root = Path(commonpath([path.parent for path in absolute]))
    names = [path.relative_to(root).as_posix() for path in absolute]
    twice = next((name for name in names if names.count(name) > 1), None) if len(set(names)) < len(names) else None
    if twice is not None:
        raise UserError(f"{twice} is named twice. Name each file once.")
    return list(zip(files, names, strict=True))
