"""A folder of pictures with a list of their captions: `metadata.jsonl` or `metadata.csv`, as Hugging Face's datasets read them.

`syzygy world sample` writes the first. A folder in which each picture has a caption file is `source_captions`.
"""

import csv
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

from syzygy.core.errors import UserError
from syzygy.core.wording import counted
from syzygy.data.pair import (
    Bad,
    RawSubject,
    Sample,
    Unused,
    caption_fields,
    captions_in,
    pair_of,
    size_of,
    texts_in,
    without,
)
from syzygy.data.source_captions import UTF_16, files_in
from syzygy.data.source_subjects import subjects_in

LINES, TABLE = "metadata.jsonl", "metadata.csv"
ROWS = 512
"""Rows of a shard, about. Rows of one picture that follow each other stay together."""
NAME = "file_name"
DELIMITERS = ",;\t"
CONVERSATIONS = (
    "They are for training assistants (LLaVA's format), and are not read. Write one line for each picture into "
    f'{LINES}: {{"{NAME}": "a.jpg", "text": "the caption"}}.'
)

Row = tuple[int, bytes, Mapping[str, Any] | str]
"""(number of the line or row, its bytes, its values or why it cannot be read)."""


@dataclass(frozen=True)
class RowList:
    """The list of a folder: a JSON object on each line or, with a header, a table whose cells may hold several lines."""

    path: Path
    header: tuple[str, ...] | None = None
    delimiter: str = ","

    def read(self, start: int, first: int) -> Iterator[Row]:
        """The rows from the byte `start` on, where row number `first` begins."""
        with self.path.open("rb") as file:
            file.seek(start)
            if self.header is None:
                for number, line in enumerate(file, first):
                    yield number, line, _parsed(line) if line.strip() else {}
                return
            read: list[bytes] = []

            def lines() -> Iterator[str]:
                for line in file:
                    read.append(line)
                    yield line.decode(errors="surrogateescape")

            reader, number = csv.reader(lines(), delimiter=self.delimiter), first
            while True:
                try:
                    cells = next(reader, None)
                except csv.Error as error:
                    cells = str(error)
                if cells is None:
                    return
                data = b"".join(read)
                read.clear()
                if not file.peek(1) and self._is_open(data):
                    raise UserError(
                        f"{self.path}: a quotation mark in row {number} opens a cell that is never closed, so that it holds the "
                        "rest of the file. Close it, or write the mark twice and the cell in quotation marks."
                    )
                yield number, data, self._row(self.header, cells)
                number += 1

    def _is_open(self, data: bytes) -> bool:
        """Whether this row ends within quotation marks, so that what follows would belong to its last cell."""
        text = data.decode(errors="surrogateescape").splitlines(keepends=True)
        try:
            return [*csv.reader([*text, "next"], delimiter=self.delimiter)][-1:] != [["next"]]
        except csv.Error:
            return False

    @staticmethod
    def _row(header: tuple[str, ...], cells: list[str] | str) -> Mapping[str, Any] | str:
        if isinstance(cells, str):
            return f"it cannot be read as CSV: {cells}"
        if not cells:
            return {}
        if len(cells) != len(header):
            return f"it has {counted(len(cells), 'cell')}, and the header {len(header)}"
        return {name: cell for name, cell in zip(header, cells, strict=True) if cell}


@dataclass(frozen=True)
class FolderShard:
    """Some rows of the list, with the pictures that they name."""

    rows: RowList
    name: str
    size: int
    """Bytes of the rows."""
    fingerprint: str
    """Over the rows and the sizes of their pictures."""
    start: int
    """The byte of the file at which the rows begin."""
    first: int
    """The number of the first row."""
    samples: int
    keep: tuple[str, ...] = ()
    caption_fields: tuple[str, ...] = ()
    unused: tuple[Unused, ...] = ()
    subject_field: str | None = None
    """The column with subjects; None: they are not read."""

    def read(self) -> Iterator[Sample]:
        """Its pictures are named, and opened by whoever decodes them."""
        left = self.size
        try:
            for number, data, found in self.rows.read(self.start, self.first):
                if left <= 0:
                    break
                left -= len(data)
                if found:
                    yield self._sample(number, found)
        except OSError as error:
            raise UserError(f"{self.rows.path.parent} cannot be read: {error.strerror or error}.") from None
        yield from self.unused

    def _sample(self, number: int, found: Mapping[str, Any] | str) -> Sample:
        if isinstance(found, str):
            return Bad(f"line {number}", found)
        name = found.get(NAME)
        if not isinstance(name, str) or not name:
            return Bad(f"line {number}", f"it has no {NAME}")
        picture = place_of(self.rows.path.parent, name)
        if picture is None:
            return Bad(name, f"its {NAME} leads out of the folder")
        fields = caption_fields(found, self.caption_fields)
        rest = without(found, (NAME, *fields, *([self.subject_field] if self.subject_field else [])))
        if self.rows.header is not None:
            rest = {column: cell if column in self.keep else _number(cell) for column, cell in rest.items()}
        subjects = subjects_of(self.rows.path.parent, found, self.subject_field)
        captions = captions_in(found, fields)
        return pair_of(name, captions, rest, self.keep, picture=picture, taken=fields, subjects=subjects)


def subjects_of(folder: Path, row: Mapping[str, Any] | str, field: str | None) -> tuple[RawSubject, ...]:
    """The subjects that a row of the list names; none if no field is read."""
    return subjects_in(row.get(field), folder) if field and isinstance(row, Mapping) else ()


def place_of(folder: Path, name: str) -> Path | None:
    """The place of a picture that is named in a folder; None if that is not inside."""
    parts = PurePosixPath(name).parts
    if PurePosixPath(name).is_absolute() or ".." in parts or "\0" in name:
        return None
    return folder.joinpath(*parts)


def _parsed(line: bytes) -> Mapping[str, Any] | str:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return "it is not JSON in UTF-8"
    if not isinstance(found, Mapping):
        return "it is not a JSON object"
    return found or "it is an empty JSON object"


def _number(cell: str) -> float | str:
    """A cell of a table as a number, if it is one."""
    try:
        return float(cell)
    except ValueError:
        return cell


def folder_shards(
    folder: Path, keep: tuple[str, ...], caption_columns: tuple[str, ...], subject_column: str | None = None
) -> list[FolderShard]:
    """The list in pieces of about 512 rows. Each row is read, and each picture's and mask's size.

    Raises:
        UserError: the list is in another encoding or format; no row names a picture, has a caption, or has a column to keep. The message
            lists the columns there are.
    """
    path = folder / LINES if (folder / LINES).is_file() else folder / TABLE
    _check_text(path)
    rows, start, first = (RowList(path), 0, 1) if path.name == LINES else _table(path)
    found: list[FolderShard] = []
    named: set[str] = set()
    piece, look = _Piece(start, first), _Look(path, caption_columns, rows.header or ())

    def close() -> None:
        name, digest = f"{path.name} {len(found):05}", piece.digest.hexdigest()
        place = (piece.start, piece.first, piece.samples)
        found.append(FolderShard(rows, name, piece.size, digest, *place, keep, caption_columns, (), subject_column))

    last: Any = None
    for number, data, row in rows.read(start, first):
        name = row.get(NAME) if isinstance(row, Mapping) else None
        if piece.rows >= ROWS and name != last:
            close()
            piece = _Piece(piece.start + piece.size, number)
        picture = place_of(folder, name) if isinstance(name, str) else None
        if picture is not None:
            named.add(os.path.relpath(picture, folder))
        piece.add(data, -1 if picture is None else size_of(picture), empty=not row)
        for subject in subjects_of(folder, row, subject_column):
            if isinstance(subject.mask, Path):
                named.add(os.path.relpath(subject.mask, folder))
                piece.add_size(size_of(subject.mask))
        look.at(row)
        last = name
    look.check(keep, subject_column)
    close()
    found[-1] = replace(found[-1], unused=_unused(folder, path, named))
    return found


def _unused(folder: Path, path: Path, named: set[str]) -> tuple[Unused, ...]:
    """The pictures in the folder that no row names, and a `metadata.csv` that is not read because there is a `metadata.jsonl`."""
    missed = [name for _, name in files_in(folder)[0] if name not in named]
    unused = [Unused(missed[0], f"no row of {path.name} names this picture", len(missed))] if missed else []
    if path.name == LINES and (folder / TABLE).is_file():
        unused.append(Unused(TABLE, f"{LINES} is read instead", 1))
    return tuple(unused)


@dataclass
class _Piece:
    """A shard that is being measured."""

    start: int
    first: int
    size: int = 0
    rows: int = 0
    samples: int = 0
    digest: Any = field(default_factory=lambda: hashlib.blake2b(digest_size=8))

    def add(self, data: bytes, picture: int, *, empty: bool) -> None:
        self.rows += 1
        self.samples += not empty
        self.size += len(data)
        self.digest.update(data)
        self.add_size(picture)

    def add_size(self, size: int) -> None:
        """Add the size of a file to the fingerprint."""
        self.digest.update(size.to_bytes(8, "little", signed=True))


class _Look:
    """Whether a list names pictures, captions and the columns to keep at all."""

    def __init__(self, path: Path, caption_columns: tuple[str, ...], header: tuple[str, ...]) -> None:
        self.path, self.caption_columns = path, caption_columns
        self.captioned = False
        self.columns: dict[str, None] = dict.fromkeys(header)
        """All columns, in the order in which they occur."""
        self.first: Mapping[str, Any] = {}

    def at(self, row: Mapping[str, Any] | str) -> None:
        if isinstance(row, str) or not row:
            return
        self.first = self.first or row
        self.columns |= dict.fromkeys(row)
        self.captioned = self.captioned or bool(caption_fields(row, self.caption_columns))

    def check(self, keep: tuple[str, ...], subjects: str | None) -> None:
        if not self.first:
            return
        has = f"It has: {', '.join(self.columns)}."
        if NAME not in self.columns:
            several = [
                name for name, value in self.first.items() if isinstance(value, list) and "conversation" not in name
            ]
            if "conversations" in self.first:
                raise UserError(f"{self.path} holds conversations. {CONVERSATIONS}")
            if several:
                raise UserError(
                    f"{self.path} has no column {NAME}, and {several[0]!r} is a list. A pair has one picture: write a row for "
                    f"each, with its name in {NAME}. {has}"
                )
            raise UserError(
                f"{self.path} has no column {NAME}. {has} Rename the one that holds the pictures' names, within {self.path.parent}."
            )
        if not self.captioned:
            named = ", ".join(map(repr, self.caption_columns))
            lacks = f"has no column {named} (--caption-column)" if named else "has no column called caption or text"
            texts = ", ".join(name for name in texts_in(self.first) if name != NAME) or "none"
            hint = "" if named else " Name the one that holds the captions with --caption-column."
            raise UserError(f"{self.path} {lacks}.{hint} Its columns with text: {texts}.")
        missing = [name for name in keep if name not in self.columns]
        if missing:
            raise UserError(f"{self.path} has no column {missing[0]!r} (--keep). {has}")
        if subjects is not None and subjects not in self.columns:
            raise UserError(
                f"{self.path} has no column {subjects!r}, from which --subjects reads. {has} Name another one with --subject-column."
            )


def _check_text(path: Path) -> None:
    """Refuse what is not lines of UTF-8, and name what it is."""
    with path.open("rb") as file:
        begins = file.read(4096)
    if begins.startswith(UTF_16):
        raise UserError(
            f"{path} is in UTF-16. Save it as UTF-8: iconv -f UTF-16 -t UTF-8 {path.name} > new, then rename new to {path.name}."
        )
    if b"\r" in begins and b"\n" not in begins:
        raise UserError(
            f"the lines of {path} end with carriage returns alone, as old programs wrote them. Convert it: "
            f"tr '\\r' '\\n' < {path.name} > new, then rename new to {path.name}."
        )
    if path.name == LINES and begins.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"["):
        what = f"{path} holds one JSON array"
        if b'"conversations"' in begins:
            raise UserError(f"{what} of conversations. {CONVERSATIONS}")
        raise UserError(
            f"{what}. Write one JSON object on each line: jq -c '.[]' {path.name} > new, then rename new to {path.name}."
        )


def _table(path: Path) -> tuple[RowList, int, int]:
    """(the table, the byte at which its first row begins, the number of that row)."""
    with path.open("rb") as file:
        line = file.readline()
    text = line.decode("utf-8-sig", errors="surrogateescape")
    try:
        for delimiter in DELIMITERS:
            header = tuple(cell.strip() for cell in next(csv.reader([text], delimiter=delimiter), []))
            if NAME in header:
                twice = next((name for name in header if name and header.count(name) > 1), None)
                if twice is not None:  # only one of them would be read
                    raise UserError(
                        f"{path} has several columns called {twice!r}. Give each its own name in the first line."
                    )
                return RowList(path, header, delimiter), len(line), 2
        found = ", ".join(next(csv.reader([text]), [])) or "nothing"
    except csv.Error as error:
        raise UserError(f"the first line of {path} cannot be read as CSV: {error}.") from None
    raise UserError(
        f"{path} has no column {NAME} in its first line. It has: {found}. Rename the one with the pictures' names."
    )
