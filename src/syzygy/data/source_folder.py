"""An image folder with `metadata.jsonl`, as Hugging Face's datasets and `syzygy world sample` write it."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from syzygy.data.pair import Bad, Sample, captions_in, pair_of, without_captions
from syzygy.errors import UserError

METADATA = "metadata.jsonl"
ROWS = 10_000
"""Of a shard."""
NAME = "file_name"


@dataclass(frozen=True)
class FolderShard:
    """Some lines of the metadata, with the pictures that they name."""

    folder: Path
    name: str
    fingerprint: int
    """Bytes of the lines."""
    start: int
    """Where the lines begin in the file, in bytes."""
    first_line: int
    keep: tuple[str, ...] = ()
    caption_fields: tuple[str, ...] = ()

    def read(self) -> Iterator[Sample]:
        """Its pictures are named, and opened by whoever decodes them."""
        path = self.folder / METADATA
        try:
            with path.open("rb") as file:
                file.seek(self.start)
                number = self.first_line
                while file.tell() < self.start + self.fingerprint:
                    line = file.readline()
                    if line.strip():
                        yield self._sample(number, line)
                    number += 1
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror or error}.") from None

    def _sample(self, number: int, line: bytes) -> Sample:
        try:
            metadata = json.loads(line)
        except (ValueError, RecursionError):
            return Bad(f"line {number}", "it is not JSON in UTF-8")
        if not isinstance(metadata, Mapping):
            return Bad(f"line {number}", "it is not a JSON object")
        name = metadata.get(NAME)
        if not isinstance(name, str) or not name:
            return Bad(f"line {number}", f"it has no {NAME}")
        return self._pair(name, metadata)

    def _pair(self, name: str, metadata: Mapping[str, Any]) -> Sample:
        parts = PurePosixPath(name).parts
        if PurePosixPath(name).is_absolute() or ".." in parts or "\0" in name:
            return Bad(name, f"its {NAME} leads out of the folder")
        captions = captions_in(metadata, self.caption_fields)
        rest = without_captions(metadata, (NAME, *self.caption_fields))
        return pair_of(name, captions, rest, self.keep, picture=self.folder.joinpath(*parts))


def folder_shards(folder: Path, keep: tuple[str, ...], caption_fields: tuple[str, ...]) -> list[FolderShard]:
    """The folder's metadata in pieces of 10,000 lines."""
    starts, number, position = [0], 0, 0
    with (folder / METADATA).open("rb") as file:
        for line in file:
            if number and number % ROWS == 0:
                starts.append(position)
            number += 1
            position += len(line)
    ends = [*starts[1:], position]
    return [
        FolderShard(folder, f"{METADATA} {i:05}", end - start, start, i * ROWS + 1, keep, caption_fields)
        for i, (start, end) in enumerate(zip(starts, ends, strict=True))
    ]
