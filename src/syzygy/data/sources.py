"""`open_source`: from the text that names a source to a list of shards in a stable order.

A new layout is a file `source_*.py` with a `Shard`. Here, its kind goes into `KINDS`, `kind_of` (or `ENDINGS`), `_check_options`,
`_shards` and, if a folder is one source, `open_source`; its help goes into `cli/embed.py`.
"""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from os.path import commonpath
from pathlib import Path
from typing import Any

from pydantic import Field

from syzygy.core.config import Config
from syzygy.core.errors import UserError
from syzygy.core.wording import shortlist
from syzygy.data.pair import Shard, Unused
from syzygy.data.source_captions import caption_files_shards, files_in, pairs_in
from syzygy.data.source_embeddings import embedding_shards
from syzygy.data.source_folder import CONVERSATIONS, LINES, TABLE, folder_shards
from syzygy.data.source_parquet import ParquetShard, choose_columns, first_readable, parquet_shards
from syzygy.data.source_tar import TarShard, tar_shard

RANGE = re.compile(r"(-?\d+)\.\.(-?\d+)")
MOST_FILES = 1_000_000
ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
"""How an address on the web, or of a cloud's storage, begins."""
ENDINGS = {".tar": "tar", ".parquet": "parquet"}
SPLITS = ("train", "training", "test", "val", "valid", "validation", "dev")
KINDS = (
    "img2dataset's tars, parquet with pictures, a folder with metadata.jsonl or metadata.csv, a folder of pictures with caption "
    "files (x.png, x.txt), or clip-retrieval's folder with img_emb and metadata"
)
SHOWN = 5
PEEKED = 2**16
"""Bytes of a JSON file that are looked at."""


class SourceOptions(Config):
    """How to read a source. Names of columns are those of parquet, or fields of JSON."""

    caption_columns: tuple[str, ...] = ()
    """Columns with captions. Empty: found by their usual names."""
    image_column: str | None = None
    """The column with pictures, in parquet. None: found."""
    keep: tuple[str, ...] = ()
    """Columns whose text is kept. Numbers and booleans always are."""
    subject_column: str | None = None
    """The column with subjects (see `data.source_subjects`). None: they are not read."""
    image_norm: float | None = Field(default=None, gt=0)
    """For ready-made embeddings of unit length: the mean norm of the encoder's raw image embeddings, to which they are scaled."""

    def recorded(self) -> dict[str, Any]:
        """As JSON values; without `subject_column` where there is none, so that such a store is as those of older versions."""
        values = self.model_dump(mode="json")
        return {name: value for name, value in values.items() if value is not None or name != "subject_column"}


@dataclass(frozen=True)
class Source:
    """A source that was opened."""

    text: str
    """As the user wrote it."""
    kind: str
    """tar, parquet, folder, caption files or embeddings."""
    shards: Sequence[Shard]
    """In the order in which they are numbered."""


def open_source(text: str, options: SourceOptions) -> Source:
    """Find out what `text` names, without reading the samples.

    Args:
        text: a file or a folder; `{00000..00099}` stands for a range and `{a,b}` for each of a list.

    Raises:
        UserError: nothing is there, a file of a range is missing, or an option has no effect on such a source.
    """
    if ADDRESS.match(text):
        raise UserError(
            f"{text} is an address, and a source must be on this machine: download it first, then name the file or folder. A source is {KINDS}."
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
    return Source(text, kind, _shards(kind, paths, options))


def _check_options(kind: str, options: SourceOptions) -> None:
    """An option without effect is an error."""
    if options.image_column is not None and kind != "parquet":
        raise UserError(f"--image-column is for parquet; this source is of kind {kind}. Omit it.")
    if options.image_norm is not None and kind != "embeddings":
        raise UserError(f"--image-norm is for ready-made embeddings; this source is of kind {kind}. Omit it.")
    if options.subject_column is not None and kind in ("embeddings", "caption files"):
        lacks = {
            "embeddings": "ready-made embeddings have no pixels to cut subjects from",
            "caption files": "a caption file names no subjects: list the images in metadata.jsonl",
        }
        raise UserError(f"--subjects cannot be used with this source: {lacks[kind]}.")
    if kind == "caption files" and (options.caption_columns or options.keep):
        name = "--caption-column" if options.caption_columns else "--keep"
        raise UserError(f"{name} is for metadata, but here each picture has a caption file. Omit it.")


def _shards(kind: str, paths: list[Path], options: SourceOptions) -> Sequence[Shard]:
    captions, keep = options.caption_columns, options.keep
    if kind == "folder":
        return folder_shards(paths[0], keep, captions, options.subject_column)
    if kind == "caption files":
        return caption_files_shards(paths[0])
    if kind == "embeddings":
        return embedding_shards(paths[0], captions, keep, options.image_norm)
    unused = tuple(found for path in paths if path.is_dir() for found in _unread(path, kind))
    if kind == "tar":
        tars: list[TarShard] = [
            tar_shard(path, name, keep, captions, options.subject_column) for path, name in _files(paths, ".tar")
        ]
        return [*tars[:-1], replace(tars[-1], unused=unused)]
    files = _files(paths, ".parquet")
    readable = first_readable([path for path, _ in files])
    columns = choose_columns(
        readable, options.image_column, captions, keep, pictures=True, subjects=options.subject_column
    )
    tables: list[ParquetShard] = [shard for path, name in files for shard in parquet_shards(path, name, columns)]
    return [*tables[:-1], replace(tables[-1], unused=unused)]


def _unread(folder: Path, kind: str) -> list[Unused]:
    """Further pairs in a folder of which only the tars, or only the parquet files, are read: a source has one layout."""
    other: list[str] = []
    read = {path.stem for ending, name in ENDINGS.items() if name == kind for path in inside(folder, ending)}
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            path, deeper = Path(place, name), Path(place) != folder
            of = ENDINGS.get(path.suffix.lower(), "list" if name in (LINES, TABLE) else None)
            # img2dataset writes tables of metadata, without pictures, next to its tars.
            if of is not None and not name.startswith(".") and (deeper or (of != kind and path.stem not in read)):
                other.append(os.path.relpath(path, folder))
    pictures = pairs_in(folder)
    found: list[Unused] = []
    if other:
        why = f"only the {kind} files directly in the source are read. Embed this into its own store, then merge the stores"
        found.append(Unused(other[0], why, len(other)))
    if pictures:
        why = f"this picture has a caption file, but only {kind} files are read. Embed it into its own store, then merge the stores"
        found.append(Unused(pictures[0], why, len(pictures)))
    return found


def kind_of(path: Path) -> str:
    """What kind of source this file or folder is.

    Raises:
        UserError: none; the message says what is there instead, and what to do.
    """
    if path.is_dir():
        found = _kind_of_folder(path)
        if found is not None:
            return found
        splits = [folder.name for folder in _folders(path) if _is_source(folder)]
        if splits:
            raise UserError(
                f"{path} holds no pairs itself, but folders in it do: {shortlist(splits, SHOWN)}. Name one of them, such as "
                f"{path / splits[0]}; `syzygy store merge` joins the stores of several."
            )
        if pairs_in(path):
            return "caption files"
        raise UserError(f"{path} holds no pairs. {_hint(path)}A source is {KINDS}.")
    kind = ENDINGS.get(path.suffix.lower())
    if kind is not None:
        return kind
    if path.name in (LINES, TABLE):
        raise UserError(f"{path} lists the pictures of a folder. Name the folder: {path.parent}")
    if re.search(r"\.(tgz|tar\.\w+)$", path.name, re.IGNORECASE):
        raise UserError(
            f"{path} is a compressed tar. Compression saves nothing on pictures, and prevents resuming in the middle. "
            "Unpack it (gunzip, unxz, unzstd) and name the .tar."
        )
    raise UserError(f"{path} is not a source of pairs. {_about_json([path])}A source is {KINDS}.")


def _kind_of_folder(folder: Path) -> str | None:
    if (folder / "img_emb").is_dir():
        return "embeddings"
    if any((folder / name).is_file() for name in (LINES, TABLE)):
        return "folder"
    return next((kind for ending, kind in ENDINGS.items() if inside(folder, ending)), None)


def _is_source(folder: Path) -> bool:
    """Whether a folder within a folder is a source of its own: by its files, or as a split with caption files."""
    return _kind_of_folder(folder) is not None or (folder.name.lower() in SPLITS and bool(pairs_in(folder)))


def inside(folder: Path, ending: str) -> list[Path]:
    """Files with this ending, in any case, in the folder, by name."""
    found = (path for path in folder.iterdir() if path.suffix.lower() == ending and not path.name.startswith("."))
    return sorted(found)


def _folders(path: Path) -> list[Path]:
    return sorted(folder for folder in path.glob("*/") if not folder.name.startswith("."))


def _hint(path: Path) -> str:
    """What is there instead of pairs, if it is something known."""
    deeper = next((inner for folder in _folders(path) for inner in _folders(folder) if _kind_of_folder(inner)), None)
    if deeper is not None:
        return f"There are pairs in {deeper}: name that. "
    if any(file.name.lower().endswith((".tar.gz", ".tgz")) for file in path.iterdir()):
        return "Its tars are compressed: unpack them with gunzip. "
    about = _about_json([file for ending in (".json", ".jsonl") for file in inside(path, ending)])
    pictures = [name for _, name in files_in(path)[0]]
    if about or not pictures:
        return about
    return (
        f"It has pictures ({shortlist(pictures, SHOWN)}) without captions: give each a text file of its name, "
        f"or list them in {LINES}. "
    )


def _about_json(files: list[Path]) -> str:
    for file in files:
        if file.suffix not in (".json", ".jsonl") or not file.is_file():
            continue
        with file.open("rb") as opened:
            begins = opened.read(PEEKED)
        if b'"conversations"' in begins:
            return f"{file.name} holds conversations. {CONVERSATIONS} "
        if file.suffix == ".json" and begins.lstrip().startswith(b"["):
            return f"{file.name} is a JSON array. Write one object on each line: jq -c '.[]' {file.name} > {LINES}. "
        return f"{file.name} is not read: the list of a folder's captions is called {LINES}. "
    return ""


def expand(text: str) -> list[str]:
    """Expand braces as shells do: ranges with leading zeros, and lists.

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
    return [f"{{{inside}}}"]  # as in shells, what is neither a range nor a list stays as it is


def _files(paths: list[Path], ending: str) -> list[tuple[Path, str]]:
    """The files themselves, and those of each folder. A name is the path from the folder that all share, so that it does not depend on
    where that folder lies."""
    files = [file for path in paths for file in (inside(path, ending) if path.is_dir() else [path])]
    absolute = [path.absolute() for path in files]
    root = Path(commonpath([path.parent for path in absolute]))
    names = [path.relative_to(root).as_posix() for path in absolute]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"{twice} is named twice. Name each file once.")
    return list(zip(files, names, strict=True))
