"""img2dataset's tar shards (WebDataset): members of one key, a picture and its caption, next to each other."""

import json
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from syzygy.core.errors import UserError
from syzygy.core.image_reading import MAX_BYTES, too_large
from syzygy.data.fingerprints import file_fingerprint
from syzygy.data.pair import (
    WHOLE_FILE,
    Bad,
    RawPair,
    Sample,
    Skipped,
    Unused,
    caption_fields,
    captions_in,
    clean,
    pair_of,
    without,
)
from syzygy.data.tar_names import (
    TEXTS,
    Parting,
    at_first_dot,
    at_last_dot,
    chosen,
    has_several_dots,
    is_known,
    parting,
    pictures,
)

MAX_TEXT_BYTES = 16 * 2**20
PACKED = {b"\x1f\x8b": ("gzip", "gunzip"), b"BZh": ("bzip2", "bunzip2"), b"\xfd7zXZ": ("xz", "unxz")} | {
    b"\x28\xb5\x2f\xfd": ("zstd", "unzstd")
}
"""What compressed files begin with: their format, and the program that unpacks them."""


@dataclass(frozen=True)
class TarShard:
    """One tar."""

    path: Path
    name: str
    size: int
    fingerprint: str
    keep: tuple[str, ...] = ()
    caption_fields: tuple[str, ...] = ()
    """Fields of `.json` that hold captions, in place of `.txt`; empty: `.txt`, else one of `CAPTION_NAMES`."""

    @property
    def samples(self) -> None:
        """It has no list of them."""

    def read(self) -> Iterator[Sample]:
        """Streams it: one sample is in memory at a time. What a truncated tar lost is one `Bad` at its end, and what was not used follows.

        Raises:
            UserError: the file is gone or cannot be read.
        """
        seen: set[str] = set()
        reading = _Reading(self.path)
        try:
            with self.path.open("rb") as file:
                for key, members in reading.groups(file):
                    if key in seen:
                        yield Bad(key, "its members do not stand together: write the tar with --sort=name")
                    else:
                        yield self._sample(key, members, reading) if isinstance(members, dict) else Bad(key, members)
                    seen.add(key)
        except _Cut as cut:
            if cut.key is not None and cut.key not in seen and isinstance(cut.members, dict):
                last = self._sample(cut.key, cut.members, reading)
                if isinstance(last, RawPair):  # it was whole; if not, it is part of what was lost
                    yield last
            yield Bad(WHOLE_FILE, f"the tar is truncated or damaged: {cut}")
        except OSError as error:
            raise UserError(f"{self.path} cannot be read: {error.strerror or error}.") from None
        yield from reading.unused()

    def _sample(self, key: str, members: Mapping[str, bytes], reading: "_Reading") -> Sample:
        picture, text, details = (chosen(members, kinds) for kinds in (pictures(), ("txt",), ("json",)))
        try:
            metadata = json.loads(members[details]) if details else {}
        except (ValueError, RecursionError):
            return Bad(key, "its .json cannot be read")
        if not isinstance(metadata, dict):
            return Bad(key, "its .json is not an object")
        for ending in (ending for ending in members if ending not in (picture, text, details)):
            reading.leave(f"{key}.{ending}", f"its sample has another member that is taken in place of .{ending}")
        if picture is None:
            if metadata.get("status", "success") != "success":
                return Skipped(key)
            several = [ending for ending in members if ending.rpartition(".")[2] in pictures()]
            return Bad(
                key, f"it has several pictures: {', '.join(several)}" if several else "the caption has no picture"
            )
        named = self.caption_fields
        how = reading.how(f"{key}.{details if named or not text else text}")
        if text and not named:
            captions, fields, taken = [members[text]], (), (f".{text}{how}",)
        else:
            fields = caption_fields(metadata, named)
            captions, taken = captions_in(metadata, fields), tuple(f"{name}{how}" for name in fields)
        left = (f".{text}",) if text and named else ()
        return pair_of(
            key, captions, without(metadata, fields), self.keep, picture=members[picture], taken=taken, left=left
        )


def tar_shard(path: Path, name: str, keep: tuple[str, ...], caption_fields: tuple[str, ...]) -> TarShard:
    """Open a tar and check that it is not compressed.

    Raises:
        UserError: it was compressed, or cannot be read.
    """
    fingerprint = file_fingerprint(path)
    with path.open("rb") as file:
        begins = file.read(max(map(len, PACKED)))
    for mark, (kind, program) in PACKED.items():
        if begins.startswith(mark):
            raise UserError(
                f"{path} is compressed with {kind}, which saves nothing on pictures and cannot be continued in the middle. "
                f"Unpack it and name the result: {program} < {path.name} > unpacked.tar"
            )
    return TarShard(path, name, path.stat().st_size, fingerprint, keep, caption_fields)


class _Cut(Exception):
    """A tar that stops before its end, with the members read last."""

    def __init__(self, reason: str, key: str | None, members: dict[str, bytes] | str) -> None:
        super().__init__(reason)
        self.key, self.members = key, members


@dataclass
class _Reading:
    """A tar that is being read: how its names are split, and what of it belongs to no sample."""

    path: Path
    part: Parting | None = None
    """None until it matters."""
    _unused: dict[str, Unused] = field(default_factory=dict)

    def how(self, name: str) -> str:
        """In words, how this member's name was split, where that matters."""
        if not has_several_dots(name):
            return ""
        return f" (names split at their {'first' if self.part is at_first_dot else 'last'} dot)"

    def parted(self, name: str) -> tuple[str, str]:
        if self.part is None and has_several_dots(name):
            self.part = parting(self.path)
        return (self.part or at_last_dot)(name)

    def leave(self, name: str, reason: str) -> None:
        """A member is not used."""
        before = self._unused.get(reason, Unused(clean(name), reason, 0))
        self._unused[reason] = Unused(before.key, reason, before.number + 1)

    def unused(self) -> list[Unused]:
        return list(self._unused.values())

    def groups(self, file: BinaryIO) -> Iterator[tuple[str, dict[str, bytes] | str]]:
        """(key, members by their ending), or what forbids reading one of them; members that stand together have one key.

        Raises:
            _Cut: the tar is not whole.
        """
        key: str | None = None
        members: dict[str, bytes] | str = {}
        try:
            for found, ending, content in self._members(file):
                if found != key:
                    if key is not None:
                        yield key, members
                    key, members = found, {}
                if isinstance(content, str):
                    members = content
                elif isinstance(members, dict):
                    if ending in members:
                        self.leave(f"{key}.{ending}", "a later member has the same name, and is taken in its place")
                    members[ending] = content
        except (tarfile.TarError, EOFError) as error:
            raise _Cut(str(error), key, members) from None
        if key is not None:
            yield key, members

    def _members(self, file: BinaryIO) -> Iterator[tuple[str, str, bytes | str]]:
        """(key, ending, content) of each picture, caption and metadata; in place of a content that is too large, the reason.

        Raises:
            tarfile.TarError: the tar is not whole.
        """
        with tarfile.open(fileobj=file, mode="r:") as tar:
            while (info := tar.next()) is not None:
                tar.members = []  # pyright: ignore[reportAttributeAccessIssue]  (it would remember all of them)
                if info.isdir():
                    continue
                key, ending = self.parted(info.name)
                if info.isreg() and is_known(ending):
                    yield key, ending, self._content(tar, info, ending.rpartition(".")[2])
                else:
                    self.leave(info.name, _why_unused(info, ending))
            # At a broken header tarfile stops as if the tar ended there.
            file.seek(tar.offset)
            if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise tarfile.ReadError("it has no end mark")

    @staticmethod
    def _content(tar: tarfile.TarFile, info: tarfile.TarInfo, kind: str) -> bytes | str:
        if kind not in TEXTS and info.size > MAX_BYTES:
            return too_large(info.size)
        if kind in TEXTS and info.size > MAX_TEXT_BYTES:
            return f"its .{kind} has {info.size:,} bytes; at most {MAX_TEXT_BYTES:,} are read"
        content = tar.extractfile(info)
        assert content is not None, "ordinary members have contents"
        return content.read()


def _why_unused(info: tarfile.TarInfo, ending: str) -> str:
    if info.islnk():
        return "it is a hard link to another member: write the tar with --hard-dereference"
    if info.issym():
        return "it is a symbolic link: write the tar with --dereference"
    if not info.isreg():
        return "it is not an ordinary file"
    if not ending:
        return "its name has no ending, or begins with a dot"
    return f"its ending .{ending} is neither a picture's nor a caption's"
