"""A folder in which each picture has a caption file of its name: `x.png` with `x.txt` or `x.caption`, as kohya's scripts read it."""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from syzygy.core.errors import UserError
from syzygy.core.image_reading import SUFFIXES
from syzygy.data.pair import Bad, Sample, Unused, pair_of, size_of

CAPTIONS = (".txt", ".caption")
"""Endings of caption files, in any case. Of two, the first is used."""
ROWS = 512
"""Pictures of a shard."""
UTF_16 = (b"\xff\xfe", b"\xfe\xff")
"""The first bytes of texts in UTF-16."""


@dataclass(frozen=True)
class CaptionFilesShard:
    """Some pictures of the folder and of the folders in it."""

    folder: Path
    name: str
    size: int
    """Bytes of the pictures."""
    fingerprint: str
    """Over the names, the captions and the sizes of the pictures."""
    pairs: tuple[tuple[str, str | None], ...]
    """(picture, its caption file), as names within the folder."""
    unused: tuple[Unused, ...] = ()

    @property
    def samples(self) -> int:
        return len(self.pairs)

    def read(self) -> Iterator[Sample]:
        """Its pictures are named, and opened by whoever decodes them."""
        for picture, caption in self.pairs:
            if caption is None:
                yield Bad(picture, "there is no caption file of its name (.txt or .caption)")
                continue
            try:
                text = (self.folder / caption).read_bytes()
            except OSError as error:
                yield Bad(picture, f"its caption file cannot be read: {error.strerror or error}")
                continue
            if text.startswith(UTF_16):
                yield Bad(picture, "its caption file is in UTF-16: save it as UTF-8")
                continue
            yield pair_of(picture, [text], {}, (), picture=self.folder / picture, taken=(Path(caption).suffix.lower(),))
        yield from self.unused


def caption_files_shards(folder: Path) -> list[CaptionFilesShard]:
    """All pictures in the folder and in the folders in it, by name, 512 for each shard. Raises `UserError` if the folder cannot be read."""
    pictures, captions = files_in(folder)
    pairs = [(name, _partner(stem, captions)) for stem, name in pictures]
    used = {caption for _, caption in pairs}
    files = [f"{stem}{ending}" for stem, endings in sorted(captions.items()) for ending in sorted(endings)]
    orphans = [name for name in files if name not in used]
    reason = "no picture has the name of this caption file, or another caption file is used"
    unused = (Unused(orphans[0], reason, len(orphans)),) if orphans else ()
    starts = range(0, len(pairs), ROWS)
    return [
        _shard(folder, number, tuple(pairs[start : start + ROWS]), unused if start == starts[-1] else ())
        for number, start in enumerate(starts)
    ]


def files_in(folder: Path) -> tuple[list[tuple[str, str]], dict[str, list[str]]]:
    """([(name without ending, name)] of the pictures, endings of the caption files by name without ending), without hidden ones."""
    pictures: list[tuple[str, str]] = []
    captions: dict[str, list[str]] = {}
    for inside, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in files:
            stem, ending = os.path.splitext(os.path.relpath(os.path.join(inside, name), folder))
            if name.startswith("."):
                continue
            if ending.lower() in SUFFIXES:
                pictures.append((stem, stem + ending))
            elif ending.lower() in CAPTIONS:
                captions.setdefault(stem, []).append(ending)
    return sorted(pictures, key=lambda found: found[1]), captions


def pairs_in(folder: Path) -> list[str]:
    """The pictures in it that have a caption file."""
    pictures, captions = files_in(folder)
    return [name for stem, name in pictures if stem in captions]


def _partner(stem: str, captions: dict[str, list[str]]) -> str | None:
    endings = sorted(
        captions.get(stem, ()), key=lambda ending: (CAPTIONS.index(ending.lower()), ending.lower() != ending)
    )
    return stem + endings[0] if endings else None


def _shard(
    folder: Path, number: int, pairs: tuple[tuple[str, str | None], ...], unused: tuple[Unused, ...]
) -> CaptionFilesShard:
    digest, size = hashlib.blake2b(digest_size=8), 0
    for picture, caption in pairs:
        bytes_of_picture = size_of(folder / picture)
        size += max(bytes_of_picture, 0)
        try:
            text = (folder / caption).read_bytes() if caption else b""
        except OSError as error:
            raise UserError(f"{folder / str(caption)} cannot be read: {error.strerror or error}.") from None
        digest.update(f"{picture}\0{caption}\0{bytes_of_picture}\0".encode(errors="surrogateescape") + text + b"\0")
    return CaptionFilesShard(folder, f"caption files {number:05}", size, digest.hexdigest(), pairs, unused)
