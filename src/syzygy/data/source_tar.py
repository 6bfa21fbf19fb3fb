"""img2dataset's tar shards (WebDataset): members of one key, a picture and its caption, next to each other."""

import json
import posixpath
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from syzygy.data.decode import MAX_BYTES, too_large
from syzygy.data.pair import WHOLE_FILE, Bad, RawPair, Sample, Skipped, captions_in, clean, pair_of, without_captions
from syzygy.errors import UserError

PICTURES = ("jpg", "jpeg", "png", "webp")
TEXTS = ("txt", "json")
MAX_TEXT_BYTES = 16 * 2**20


@dataclass(frozen=True)
class TarShard:
    """One tar."""

    path: Path
    name: str
    fingerprint: int
    """Bytes of the file."""
    keep: tuple[str, ...] = ()
    caption_fields: tuple[str, ...] = ()
    """Fields of `.json` that hold captions, in place of `.txt`; empty: `.txt`, else one of `CAPTION_FIELDS`."""

    def read(self) -> Iterator[Sample]:
        """Streams it: one sample is in memory at a time. What a truncated tar lost is one `Bad` at its end.

        Raises:
            UserError: the file is gone or cannot be read.
        """
        seen: set[str] = set()
        try:
            with self.path.open("rb") as file:
                for key, members in _groups(file):
                    if key in seen:
                        yield Bad(key, "its members do not stand together: write the tar with --sort=name")
                    else:
                        yield self._sample(key, members) if isinstance(members, dict) else Bad(key, members)
                    seen.add(key)
        except _Cut as cut:
            if cut.key is not None and cut.key not in seen and isinstance(cut.members, dict):
                last = self._sample(cut.key, cut.members)
                if isinstance(last, RawPair):  # it was whole; if not, it is part of what was lost
                    yield last
            yield Bad(WHOLE_FILE, f"the tar is truncated or damaged: {cut}")
        except OSError as error:
            raise UserError(f"{self.path} cannot be read: {error.strerror or error}.") from None

    def _sample(self, key: str, members: Mapping[str, bytes]) -> Sample:
        try:
            metadata = json.loads(members["json"]) if "json" in members else {}
        except (ValueError, RecursionError):
            return Bad(key, "its .json cannot be read")
        if not isinstance(metadata, dict):
            return Bad(key, "its .json is not an object")
        picture = next((members[name] for name in PICTURES if name in members), None)
        if picture is None:
            failed = metadata.get("status", "success") != "success"
            return Skipped(key) if failed else Bad(key, "there is no picture beside the caption")
        captions = self._captions(members, metadata)
        return pair_of(key, captions, without_captions(metadata, self.caption_fields), self.keep, picture=picture)

    def _captions(self, members: Mapping[str, bytes], metadata: Mapping[str, Any]) -> list[Any]:
        if not self.caption_fields and "txt" in members:
            return [members["txt"]]
        return captions_in(metadata, self.caption_fields)


class _Cut(Exception):
    """A tar that stops before its end, with the members read last."""

    def __init__(self, reason: str, key: str | None, members: dict[str, bytes] | str) -> None:
        super().__init__(reason)
        self.key, self.members = key, members


def _groups(file: BinaryIO) -> Iterator[tuple[str, dict[str, bytes] | str]]:
    """(key, members by their ending), or what forbids reading one of them; members that stand together have one key.

    Raises:
        _Cut: the tar is not whole.
    """
    key: str | None = None
    members: dict[str, bytes] | str = {}
    try:
        for found, ending, content in _members(file):
            if found != key:
                if key is not None:
                    yield key, members
                key, members = found, {}
            if isinstance(content, str):
                members = content
            elif isinstance(members, dict):
                members[ending] = content
    except (tarfile.TarError, EOFError) as error:
        raise _Cut(str(error), key, members) from None
    if key is not None:
        yield key, members


def _members(file: BinaryIO) -> Iterator[tuple[str, str, bytes | str]]:
    """(key, ending, content) of each picture, caption and metadata; in place of a content that is too large, the reason.

    Raises:
        tarfile.TarError: the tar is not whole.
    """
    with tarfile.open(fileobj=file, mode="r:") as tar:
        while (info := tar.next()) is not None:
            tar.members = []  # pyright: ignore[reportAttributeAccessIssue]  (it would remember all of them)
            key, ending = _parted(info.name)
            if not info.isreg() or ending not in (*PICTURES, *TEXTS):
                continue
            if ending in PICTURES and info.size > MAX_BYTES:
                yield key, ending, too_large(info.size)
            elif ending in TEXTS and info.size > MAX_TEXT_BYTES:
                yield key, ending, f"its .{ending} has {info.size:,} bytes; at most {MAX_TEXT_BYTES:,} are read"
            else:
                content = tar.extractfile(info)
                assert content is not None, "ordinary members have contents"
                yield key, ending, content.read()
        # At a broken header tarfile stops as if the tar ended there.
        file.seek(tar.offset)
        if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError("it has no end mark")


def _parted(name: str) -> tuple[str, str]:
    """(folder and base name up to its first dot, the rest in lower case); hidden files have no ending."""
    folder, base = posixpath.split(clean(name))
    stem, _, ending = base.partition(".")
    return posixpath.join(folder, stem), ending.lower() if stem else ""
