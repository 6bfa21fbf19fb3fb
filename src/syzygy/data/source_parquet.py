"""Parquet as Hugging Face publishes it: encoded pictures in one column, captions in others. Needs the extra `parquet`."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from syzygy.core.errors import UserError
from syzygy.data.fingerprints import file_fingerprint
from syzygy.data.pair import CAPTION_NAMES, WHOLE_FILE, Bad, Sample, Skipped, clean, listed, pair_of

IMAGE_NAMES = ("image", "img", "jpg", "jpeg", "png", "webp", "picture")
STATUS = "status"
"""img2dataset's column: "success", or why a row has no picture."""
ROWS = 64
"""Read at once."""
SHARD = 512
"""Rows that a shard has at least, if the file has so many: whole row groups, which several workers share out."""


@dataclass(frozen=True)
class Columns:
    """Which columns of a table are read, and what for."""

    captions: tuple[str, ...]
    image: str | None = None
    """None where the pictures' embeddings are elsewhere."""
    keep: tuple[str, ...] = ()
    left: tuple[str, ...] = ()
    """Other columns with text, which are not read."""


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

    def read(self) -> Iterator[Sample]:
        """Streams it, a few rows at a time. What a damaged row group lost is one `Bad`.

        Raises:
            UserError: the file is gone, or lacks a column.
        """
        for number, row in rows(self.path, self.columns, self.groups):
            yield Bad(WHOLE_FILE, row) if isinstance(row, str) else self._sample(f"{number:08}", row)

    def _sample(self, key: str, row: Mapping[str, Any]) -> Sample:
        assert self.columns.image is not None, "it was opened for its pictures"
        cell = row[self.columns.image]
        picture = cell.get("bytes") if isinstance(cell, Mapping) else cell
        if not picture:
            if row.get(STATUS, b"success") != b"success":
                return Skipped(key)
            by_path = isinstance(cell, Mapping) and cell.get("path")
            return Bad(key, "it has a picture's path, not its bytes" if by_path else "there is no picture")
        columns, captions = self.columns, captions_of(row, self.columns)
        return pair_of(
            key,
            captions,
            metadata_of(row, columns),
            columns.keep,
            picture=picture,
            taken=columns.captions,
            left=columns.left,
        )


def parquet_shards(path: Path, name: str, columns: Columns) -> list[ParquetShard]:
    """A file in shards of some hundred rows, as far as its row groups allow; one that is damaged is one shard.

    Raises:
        UserError: it cannot be read.
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


def captions_of(row: Mapping[str, Any], columns: Columns) -> list[Any]:
    """All captions of a row, as bytes."""
    return [caption for name in columns.captions for caption in listed(row[name])]


def metadata_of(row: Mapping[str, Any], columns: Columns) -> dict[str, Any]:
    """The other columns of a row."""
    used = (columns.image, *columns.captions)
    found = {
        name: value for name, value in row.items() if name not in used and (name != STATUS or name in columns.keep)
    }
    return {name: clean(x.decode(errors="surrogateescape")) if isinstance(x, bytes) else x for name, x in found.items()}


def rows(path: Path, columns: Columns, groups: Groups | None = None) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """(number, row), streamed; text comes as bytes. In place of rows that cannot be read, why.

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
    """What is named, and all numbers and booleans."""
    named = [name for name in (columns.image, *columns.captions, *columns.keep) if name is not None]
    missing = [name for name in named if name not in schema.names]
    if missing:
        raise UserError(f"{path} has no column {missing[0]!r}. It has: {_described(schema)}.")
    also = [STATUS] if STATUS in schema.names else []
    numbers = [field.name for field in schema if _is_number(field.type)]
    return list(dict.fromkeys([*named, *also, *numbers]))


def _as_bytes(array: Any) -> Any:
    """Text as bytes, also in lists: Arrow does not check that it is UTF-8, and fails on a whole batch when it is not."""
    arrow, _ = _pyarrow()
    types = arrow.types
    if types.is_dictionary(array.type):
        array = array.dictionary_decode()
    kind = array.type
    if types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind):
        return array.cast(arrow.large_binary())
    if _is_list(kind) and _is_text(kind.value_type):
        return array.cast(arrow.large_list(arrow.large_binary()))
    return array


def first_readable(paths: Sequence[Path]) -> Path:
    """The first of these files whose columns can be read; damaged ones become `Bad` later.

    Raises:
        UserError: there is none.
    """
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
    path: Path, image: str | None, captions: Sequence[str], keep: tuple[str, ...], *, pictures: bool
) -> Columns:
    """Find the columns that are not named, by their usual names or as the only ones of a fitting type.

    Args:
        pictures: whether the table must hold pictures.

    Raises:
        UserError: the file cannot be read; or a column is missing, of another type, or not clear: names those there are.
    """
    schema = _pyarrow()[1].read_schema(first_readable([path]))
    found = (
        _chosen(schema, (image,) if image else (), IMAGE_NAMES, _is_picture, "--image-column", path) if pictures else ()
    )
    if len(found) > 1:
        raise UserError(_unclear("--image-column", found, schema, path))
    texts = _chosen(schema, captions, CAPTION_NAMES, _is_caption, "--caption-column", path)
    if len(texts) > 1 and not captions:
        raise UserError(_unclear("--caption-column", texts, schema, path))
    used = (*texts, *found, *keep, STATUS)
    left = tuple(field.name for field in schema if _is_caption(field.type) and field.name not in used)
    columns = Columns(tuple(texts), found[0] if found else None, keep, left)
    _wanted(schema, columns, path)
    return columns


def _chosen(
    schema: Any, named: Sequence[str], usual: Sequence[str], fits: Any, option: str, path: Path
) -> Sequence[str]:
    for name in named:
        if name not in schema.names:
            raise UserError(f"{path} has no column {name!r} ({option}). It has: {_described(schema)}.")
        if not fits(schema.field(name).type):
            kind = schema.field(name).type
            raise UserError(
                f"column {name!r} of {path} is {kind}, which {option} cannot use. It has: {_described(schema)}."
            )
    if named:
        return named
    fitting = [field.name for field in schema if fits(field.type)]
    found = [name for name in fitting if name.lower() in usual]
    if not found and usual is IMAGE_NAMES and len(fitting) == 1:  # encoded pictures are known by their type
        found = fitting
    if not found:
        several = next((field.name for field in schema if _is_pictures(field.type)), None)
        if usual is IMAGE_NAMES and several:
            raise UserError(
                f"column {several!r} of {path} holds a list of pictures. A pair has one picture: write a row for each of them."
            )
        raise UserError(
            f"{path} has no column that is clearly the right one: name it with {option}. It has: {_described(schema)}."
        )
    return found


def _unclear(option: str, found: Sequence[str], schema: Any, path: Path) -> str:
    names = " and ".join(map(repr, found))
    return f"{path} has several columns to choose from, {names}: name one with {option}. It has: {_described(schema)}."


def _described(schema: Any) -> str:
    return ", ".join(f"{field.name} ({field.type})" for field in schema)


def _is_picture(kind: Any) -> bool:
    types = _pyarrow()[0].types
    if types.is_struct(kind):
        return any(field.name == "bytes" and _is_binary(field.type) for field in kind)
    return _is_binary(kind)


def _is_pictures(kind: Any) -> bool:
    """A list of them."""
    return _is_list(kind) and _is_picture(kind.value_type)


def _is_binary(kind: Any) -> bool:
    types = _pyarrow()[0].types
    return types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind)


def _is_caption(kind: Any) -> bool:
    return _is_text(kind) or (_is_list(kind) and _is_text(kind.value_type))


def _is_text(kind: Any) -> bool:
    types = _pyarrow()[0].types
    if types.is_dictionary(kind):
        kind = kind.value_type
    return types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)


def _is_list(kind: Any) -> bool:
    types = _pyarrow()[0].types
    return types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)


def _is_number(kind: Any) -> bool:
    types = _pyarrow()[0].types
    return types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind)


def _pyarrow() -> tuple[Any, Any]:
    """The modules `pyarrow` and `pyarrow.parquet`.

    Raises:
        UserError: they are not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise UserError("reading parquet needs pyarrow: pip install 'syzygy[parquet]' (or pyarrow).") from None
    return pyarrow, pyarrow.parquet
