"""A folder of pictures without captions, such as a few photos of one thing: all of its pictures that can be read, by name."""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from syzygy.core.errors import UserError
from syzygy.core.image_reading import FOREIGN_SUFFIXES, SUFFIXES, as_rgb, loaded, quiet, read_bytes
from syzygy.core.wording import counted, shortlist
from syzygy.data.pair import Bad, RawPair, Sample, file_fingerprint, size_of

SHOWN = 5
"""Skipped pictures, or folders, that a message names."""


@dataclass(frozen=True)
class PicturesShard:
    """The pictures of a folder. Each has the empty caption."""

    folder: Path
    names: tuple[str, ...]
    fingerprint: str
    """Over the names and the contents of the pictures."""
    name: str = "pictures"

    @property
    def size(self) -> int:
        """Bytes of the pictures."""
        return sum(max(size_of(self.folder / name), 0) for name in self.names)

    @property
    def samples(self) -> int:
        return len(self.names)

    def read(self) -> Iterator[Sample]:
        """Its pictures are named, and opened by whoever decodes them."""
        for name in self.names:
            yield RawPair(name, ("",), picture=self.folder / name)


@dataclass(frozen=True)
class PictureFolder:
    """A folder of pictures that were opened once, so that wrong files are known before anything is loaded."""

    shard: PicturesShard
    sizes: Mapping[str, tuple[int, int]]
    """Width and height in pixels of each picture of the shard, upright."""
    skipped: tuple[Bad, ...]
    """Pictures that cannot be read."""

    def notes(self) -> Iterator[str]:
        """What was skipped, as a sentence."""
        if self.skipped:
            found = len(self.sizes) + len(self.skipped)
            yield f"{len(self.skipped)} of {counted(found, 'picture')} skipped: {_reasons(self.skipped)}."


def picture_folder(folder: Path) -> PictureFolder:
    """The pictures directly in a folder. Hidden files, and files that are no pictures by the ending of their name, are ignored.

    Raises:
        UserError: there is no such folder, it has no pictures, or none of them can be read. The message says why for each.
    """
    if not folder.is_dir():
        what = f"{folder} is a file" if folder.exists() else f"there is no folder {folder}"
        raise UserError(f"{what}: name the folder that holds the pictures.")
    names = _pictures(folder)
    if not names:
        inner = [one.name for one in sorted(folder.glob("*/")) if _pictures(one)]
        hint = f" Pictures lie in folders inside: {shortlist(inner, SHOWN)}. Name one of them." if inner else ""
        raise UserError(f"{folder} holds no pictures ({', '.join(SUFFIXES)}).{hint}")
    sizes: dict[str, tuple[int, int]] = {}
    skipped: list[Bad] = []
    with quiet():
        for name in names:
            try:
                sizes[name] = as_rgb(loaded(read_bytes(folder / name), "the picture")).size
            except UserError as error:
                skipped.append(Bad(name, str(error).rstrip(".")))
    if not sizes:
        raise UserError(f"no picture in {folder} can be read; {len(skipped)} skipped: {_reasons(skipped)}.")
    digest = hashlib.blake2b(digest_size=8)
    for name in sizes:
        digest.update(f"{name}\0{file_fingerprint(folder / name)}\0".encode(errors="surrogateescape"))
    return PictureFolder(PicturesShard(folder, tuple(sizes), digest.hexdigest()), sizes, tuple(skipped))


def _pictures(folder: Path) -> list[str]:
    """Names of the picture files in a folder."""
    known = (*SUFFIXES, *FOREIGN_SUFFIXES)
    files = (path for path in folder.iterdir() if path.suffix.lower() in known and not path.name.startswith("."))
    return sorted(path.name for path in files if not path.is_dir())


def _reasons(skipped: tuple[Bad, ...] | list[Bad]) -> str:
    more = f" and {len(skipped) - SHOWN:,} more" if len(skipped) > SHOWN else ""
    return "; ".join(f"{one.key}: {one.reason}" for one in skipped[:SHOWN]) + more
