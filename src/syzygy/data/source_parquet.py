"""Parquet as Hugging Face publishes it: encoded pictures in one column, captions in others. It needs the extra `parquet`."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from syzygy.core.errors import UserError, install
from syzygy.data.pair import (
    CAPTION_NAMES,
    WHOLE_FILE,
    Bad,
    Sample,
    Skipped,
    Unused,
    clean,
    file_fingerprint,
    listed,
    pair_of,
)
from syzygy.data.source_subjects import subjects_in

IMAGE_NAMES = ("image", "img", "jpg", "jpeg", "png", "webp", "picture")
STATUS = "status"
"""img2dataset's column: "success", or why a row has no picture."""
ROWS = 64
"""Rows that are read at once."""
SHARD = 512
"""Rows that a shard has at least, if the file has so many. A shard consists of whole row groups, which several workers share out."""
TEXT, TEXTS, PICTURE, PICTURES, NUMBER = "text", "texts", "picture", "pictures", "number"
"""What a column can hold, by its type; see `_holds`."""


@dataclass(frozen=True)
class Columns:
    """Which columns of a table are read, and what for."""

    captions: tuple[str, ...]
    image: str | None = None
    """None where the pictures' embeddings are elsewhere."""
    keep: tuple[str, ...] = ()
    left: tuple[str, ...] = ()
    """Other columns with text, which are not read."""
    subjects: str | None = None
    """The column with subjects: a list of structs, or text in JSON."""


@dataclass(frozen=True)
class Groups:
    """Row groups of a file that stand together."""

    first: int
    count: int
    row: int
    """Which row of the file is their first."""
    rows: int


@dataclass(frozen=True)
class ParquetShard:
    """One file, or some row groups of it."""

    path: Path
    name: str
    size: int
    fingerprint: str
    """Of the whole file."""
    columns: Columns
    groups: Groups | None = None
    """None: all."""
    samples: int | None = None
    """None for a damaged file."""
    unused: tuple[Unused, ...] = ()
    """Further files of the source, if this is its last shard."""

    def read(self) -> Iterator[Sample]:
        """Stream it, a few rows at a time. What a damaged row group lost is one `Bad`.

        Raises `UserError` if the file is gone, or lacks a column.
        """
        for number, row in rows(self.path, self.columns, self.groups):
            yield Bad(WHOLE_FILE, row) if isinstance(row, str) else self._sample(f"{number:08}", row)
        yield from self.unused

    def _sample(self, key: str, row: Mapping[str, Any]) -> Sample:
        assert self.columns.image is not None, "it was opened for its pictures"
        cell = row[self.columns.image]
        picture = cell.get("bytes") if isinstance(cell, Mapping) else cell
        if picture:
            return pair_in(key, row, self.columns, picture=picture)
        if row.get(STATUS, b"success") != b"success":
            return Skipped(key)
        by_path = isinstance(cell, Mapping) and cell.get("path")
        return Bad(key, "it has a picture's path, not its bytes" if by_path else "there is no picture")


def pair_in(key: str, row: Mapping[str, Any], columns: Columns, **picture: Any) -> Sample:
    """The pair in a row, with its `picture` or its `embedding`; see `pair_of`."""
    captions = [caption for name in columns.captions for caption in listed(row[name])]
    subjects = subjects_in(row[columns.subjects]) if columns.subjects else ()
    used = {columns.image, columns.subjects, *columns.captions, *({STATUS} - set(columns.keep))}
    metadata = {
        name: clean(value.decode(errors="surrogateescape")) if isinstance(value, bytes) else value
        for name, value in row.items()
        if name not in used
    }
    about: Any = {"taken": columns.captions, "left": columns.left, "subjects": subjects}
    return pair_of(key, captions, metadata, columns.keep, **about, **picture)


def parquet_shards(path: Path, name: str, columns: Columns) -> list[ParquetShard]:
    """A file in shards of some hundred rows, as far as its row groups allow. A damaged file is one shard.

    Raises `UserError` if it cannot be read.
    """
    arrow, parquet = _pyarrow()
    size, fingerprint = path.stat().st_size, file_fingerprint(path)
    try:
        metadata = parquet.read_metadata(path)
        counts = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
    except (arrow.ArrowException, OSError):
        counts = []
    pieces: list[Groups] = []
    first = row = rows_of_piece = 0
    for group, count in enumerate(counts):
        rows_of_piece += count
        if rows_of_piece >= SHARD or group == len(counts) - 1:
            pieces.append(Groups(first, group + 1 - first, row, rows_of_piece))
            first, row, rows_of_piece = group + 1, row + rows_of_piece, 0
    if len(pieces) < 2:
        return [ParquetShard(path, name, size, fingerprint, columns, None, row if counts else None)]
    return [
        ParquetShard(path, f"{name} {i:05}", size // len(pieces), fingerprint, columns, piece, piece.rows)
        for i, piece in enumerate(pieces)
    ]


def rows(path: Path, columns: Columns, groups: Groups | None = None) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """(number, row), streamed; text comes as bytes. A reason replaces rows that cannot be read.

    Args:
        groups: those to read; None for all.

    Raises:
        UserError: the file is gone, or lacks a column.
    """
    arrow, parquet = _pyarrow()
    try:
        with parquet.ParquetFile(path) as file:
            wanted = _wanted(file.schema_arrow, columns, path)
            groups = groups or Groups(0, file.num_row_groups, 0, file.metadata.num_rows)
            first = groups.row
            for group in range(groups.first, groups.first + groups.count):
                count, number = file.metadata.row_group(group).num_rows, first
                try:
                    for batch in file.iter_batches(batch_size=ROWS, row_groups=[group], columns=wanted):
                        table = {name: _as_bytes(batch.column(name)).to_pylist() for name in batch.schema.names}
                        for i in range(batch.num_rows):
                            yield number, {name: values[i] for name, values in table.items()}
                            number += 1
                except (arrow.ArrowException, OSError) as error:
                    lost = f"rows {number} to {first + count - 1} cannot be read"
                    yield number, f"the file is damaged; {lost}: {_first_line(error)}"
                first += count
    except FileNotFoundError:
        raise UserError(f"{path} is gone.") from None
    except (arrow.ArrowException, OSError) as error:
        yield 0, f"the file is damaged and cannot be read: {_first_line(error)}"


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0].rstrip(".")


def _wanted(schema: Any, columns: Columns, path: Path) -> list[str]:
    """The columns that are named, and all numbers and booleans."""
    wanted = (columns.image, *columns.captions, *columns.keep, columns.subjects)
    named = [name for name in wanted if name is not None]
    missing = [name for name in named if name not in schema.names]
    if missing:
        raise UserError(f"{path} has no column {missing[0]!r}. It has: {_described(schema)}.")
    also = [STATUS] if STATUS in schema.names else []
    numbers = [field.name for field in schema if _holds(field.type) == NUMBER]
    return list(dict.fromkeys([*named, *also, *numbers]))


def _as_bytes(array: Any) -> Any:
    """Text as bytes, also in lists: Arrow does not check that it is UTF-8, and fails on a whole batch when it is not."""
    arrow, _ = _pyarrow()
    if arrow.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    binary = {TEXT: arrow.large_binary(), TEXTS: arrow.large_list(arrow.large_binary())}
    kind = _holds(array.type)
    return array.cast(binary[kind]) if kind in binary else array


def first_readable(paths: Sequence[Path]) -> Path:
    """The first of these files whose columns can be read. Damaged ones become `Bad` later. Raises `UserError` if there is none."""
    arrow, parquet = _pyarrow()
    reason = ""
    for path in paths:
        try:
            parquet.read_schema(path)
            return path
        except (arrow.ArrowException, OSError) as error:
            reason = reason or f"{path} cannot be read as parquet: {_first_line(error)}"
    raise UserError(f"{reason}.")


def choose_columns(
    path: Path,
    image: str | None,
    captions: Sequence[str],
    keep: tuple[str, ...],
    *,
    pictures: bool,
    subjects: str | None = None,
) -> Columns:
    """Find the columns that are not named, by their usual names or as the only ones of a fitting type.

    Args:
        pictures: whether the table must hold pictures.
        subjects: the column with subjects, if they are read.

    Raises:
        UserError: the file cannot be read; or a column is missing, of another type, or not clear. The message lists those there are.
    """
    schema = _pyarrow()[1].read_schema(first_readable([path]))
    found: Sequence[str] = ()
    if pictures:
        named = (image,) if image else ()
        found = _chosen(schema, named, IMAGE_NAMES, _is_picture, "--image-column", path)
    texts = _chosen(schema, captions, CAPTION_NAMES, _is_caption, "--caption-column", path)
    for option, several in (("--image-column", found), ("--caption-column", () if captions else texts)):
        if len(several) > 1:
            names = " and ".join(map(repr, several))
            raise UserError(
                f"{path} has several columns to choose from, {names}: name one with {option}. It has: {_described(schema)}."
            )
    used = (*texts, *found, *keep, STATUS, subjects)
    left = tuple(field.name for field in schema if _is_caption(field.type) and field.name not in used)
    columns = Columns(tuple(texts), found[0] if found else None, keep, left, subjects)
    _wanted(schema, columns, path)
    return columns


def _chosen(
    schema: Any, named: Sequence[str], usual: Sequence[str], fits: Callable[[Any], bool], option: str, path: Path
) -> Sequence[str]:
    has = f"It has: {_described(schema)}."
    for name in named:
        if name not in schema.names:
            raise UserError(f"{path} has no column {name!r} ({option}). {has}")
        if not fits(schema.field(name).type):
            kind = schema.field(name).type
            raise UserError(f"column {name!r} of {path} is {kind}, which {option} cannot use. {has}")
    if named:
        return named
    fitting = [field.name for field in schema if fits(field.type)]
    found = [name for name in fitting if name.lower() in usual]
    if found:
        return found
    if usual is IMAGE_NAMES and len(fitting) == 1:  # encoded pictures are recognised by their type
        return fitting
    several = next((field.name for field in schema if _holds(field.type) == PICTURES), None)
    if usual is IMAGE_NAMES and several:
        raise UserError(
            f"column {several!r} of {path} holds a list of pictures. A pair has one picture: write a row for each of them."
        )
    raise UserError(f"{path} has no column that is clearly the right one: name it with {option}. {has}")


def _described(schema: Any) -> str:
    return ", ".join(f"{field.name} ({field.type})" for field in schema)


def _is_picture(kind: Any) -> bool:
    return _holds(kind) == PICTURE


def _is_caption(kind: Any) -> bool:
    return _holds(kind) in (TEXT, TEXTS)


def _holds(kind: Any) -> str | None:
    """What a column of this type of Arrow's can be used as. Binary data, alone or in a struct's field `bytes`, are a picture."""
    types = _pyarrow()[0].types
    if types.is_dictionary(kind):
        return TEXT if _holds(kind.value_type) == TEXT else None
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return {TEXT: TEXTS, PICTURE: PICTURES}.get(_holds(kind.value_type) or "")
    if types.is_struct(kind):
        return next((PICTURE for field in kind if field.name == "bytes" and _holds(field.type) == PICTURE), None)
    if types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind):
        return TEXT
    if types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind):
        return PICTURE
    return NUMBER if types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind) else None


def _pyarrow() -> tuple[Any, Any]:
    """The modules `pyarrow` and `pyarrow.parquet`. Raises `UserError` if they are not installed."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise UserError(f"reading parquet needs pyarrow: {install('parquet')} (or install pyarrow).") from None
    return pyarrow, pyarrow.parquet
