"""img2dataset's tar shards (WebDataset): members of one key, a picture and its caption, next to each other.

webdataset splits a member's name into key and ending at its first dot, open_clip at its last. Both occur; see `splitting_of`.
"""

import json
import posixpath
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import BinaryIO

from syzygy.core.errors import UserError
from syzygy.core.image_reading import MAX_BYTES, SUFFIXES, too_large
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
    file_fingerprint,
    pair_of,
    without,
)
from syzygy.data.source_subjects import subjects_in

PICTURES = tuple(dict.fromkeys(["jpg", "jpeg", "png", "webp", *sorted(suffix[1:] for suffix in SUFFIXES)]))
"""Endings of pictures. Of two pictures of a sample, the one whose ending comes first is used."""
TEXTS = ("txt", "json")
MAX_TEXT_BYTES = 16 * 2**20
MOST_MEMBERS = 64
"""Members of one key, if names are split at their first dot. A key with more is a mistake, and would have to be kept in memory."""
COUNTED_MEMBERS = 4096
"""Members of a tar that are looked at to estimate how many pictures it has."""
PACKED = {b"\x1f\x8b": ("gzip", "gunzip"), b"BZh": ("bzip2", "bunzip2"), b"\xfd7zXZ": ("xz", "unxz")} | {
    b"\x28\xb5\x2f\xfd": ("zstd", "unzstd")
}
"""The first bytes of compressed files: their format, and the program that unpacks them."""
DAMAGED = (tarfile.TarError, EOFError, OSError)

Splitting = Callable[[str], tuple[str, str]]
"""A member's name → (key, ending in lower case, "" if there is none)."""


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
    samples: int | None = None
    """A tar has no list of them."""
    subject_field: str | None = None
    """The field of `.json` that holds subjects; None: they are not read."""
    unused: tuple[Unused, ...] = ()
    """Further files of the source, if this is its last shard."""

    def read(self) -> Iterator[Sample]:
        """Stream it: one sample is in memory at a time.

        What a truncated tar lost is one `Bad` at its end. Members that were not used follow.

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
        except _TruncatedError as cut:
            if cut.key is not None and cut.key not in seen and isinstance(cut.members, dict):
                last = self._sample(cut.key, cut.members, reading)
                if isinstance(last, RawPair):  # it was whole; if not, it is part of what was lost
                    yield last
            yield Bad(WHOLE_FILE, f"the tar is truncated or damaged: {cut}")
        except OSError as error:
            raise UserError(f"{self.path} cannot be read: {error.strerror or error}.") from None
        yield from (*reading.unused.values(), *self.unused)

    def _sample(self, key: str, members: Mapping[str, bytes], reading: "_Reading") -> Sample:
        picture, text, details = (chosen(members, kinds) for kinds in (PICTURES, ("txt",), ("json",)))
        try:
            metadata = json.loads(members[details]) if details else {}
        except (ValueError, RecursionError):
            return Bad(key, "its .json cannot be read")
        if not isinstance(metadata, dict):
            return Bad(key, "its .json is not an object")
        for ending in (ending for ending in members if ending not in (picture, text, details)):
            reading.leave(f"{key}.{ending}", f"another member of its sample is used instead of .{ending}")
        if picture is None:
            if metadata.get("status", "success") != "success":
                return Skipped(key)
            several = [ending for ending in members if ending.rpartition(".")[2] in PICTURES]
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
        subjects = subjects_in(metadata.get(self.subject_field)) if self.subject_field else ()
        rest = without(metadata, (*fields, self.subject_field) if self.subject_field else fields)
        picture_data = members[picture]
        return pair_of(key, captions, rest, self.keep, picture=picture_data, taken=taken, left=left, subjects=subjects)

    def picture_density(self) -> float | None:
        """Pictures for each byte among the first members, by their headers alone; None if it cannot be read."""
        number = members = 0
        try:
            with tarfile.open(self.path, mode="r:") as file:
                for info in _headers(file):
                    number += info.isreg() and at_last_dot(info.name)[1] in PICTURES
                    members += 1
                    if members == COUNTED_MEMBERS:
                        return number / file.offset
        except DAMAGED:
            return None
        return number / self.size


def tar_shard(
    path: Path, name: str, keep: tuple[str, ...], caption_fields: tuple[str, ...], subject_field: str | None = None
) -> TarShard:
    """Open a tar and check that it is not compressed. Raises `UserError` if it is compressed, or cannot be read."""
    fingerprint = file_fingerprint(path)
    with path.open("rb") as file:
        begins = file.read(max(map(len, PACKED)))
    for mark, (kind, program) in PACKED.items():
        if begins.startswith(mark):
            raise UserError(
                f"{path} is compressed with {kind}, which saves nothing on pictures and prevents resuming in the middle. "
                f"Unpack it and name the result: {program} < {path.name} > unpacked.tar"
            )
    return TarShard(path, name, path.stat().st_size, fingerprint, keep, caption_fields, subject_field=subject_field)


def at_first_dot(name: str) -> tuple[str, str]:
    """`a/s0.input.jpg` → (`a/s0`, `input.jpg`), as webdataset does."""
    folder, base = posixpath.split(clean(name))
    stem, _, ending = base.partition(".")
    return posixpath.join(folder, stem), ending.lower() if stem else ""


def at_last_dot(name: str) -> tuple[str, str]:
    """`a/j0.5.jpg` → (`a/j0.5`, `jpg`), as open_clip does."""
    folder, base = posixpath.split(clean(name))
    stem, _, ending = base.rpartition(".")
    return posixpath.join(folder, stem or base), ending.lower() if stem.strip(".") and not base.startswith(".") else ""


def has_several_dots(name: str) -> bool:
    """Whether the two ways split this name differently."""
    return posixpath.basename(name).lstrip(".").count(".") > 1


def chosen(endings: Iterable[str], kinds: Sequence[str]) -> str | None:
    """The ending of a sample's members that is one of these kinds: exactly, or the only one whose last part is."""
    found = list(endings)
    exact = next((kind for kind in kinds if kind in found), None)
    also = [ending for ending in found if ending.rpartition(".")[2] in kinds]
    return exact or (also[0] if len(also) == 1 else None)


def is_known(ending: str) -> bool:
    """Whether a member with this ending may be a picture or hold captions."""
    return ending.rpartition(".")[2] in (*PICTURES, *TEXTS)


def splitting_of(tar: Path) -> Splitting:
    """How the names in this tar are split: in the way that gives more pairs and, of equal ones, fewer incomplete samples.

    It reads the headers alone. Tars without a name with several dots need no look: both ways agree there.
    """
    names = []
    try:
        with tarfile.open(tar, mode="r:") as file:
            names += [info.name for info in _headers(file) if info.isreg() and is_known(at_last_dot(info.name)[1])]
    except DAMAGED:
        pass  # whoever reads the members says what is wrong
    first, last = _score(names, at_first_dot), _score(names, at_last_dot)
    return at_first_dot if first > last and first[0] > 0 else at_last_dot


def _score(names: list[str], split: Splitting) -> tuple[int, int]:
    """(pairs, minus the samples that are incomplete)."""
    pairs = incomplete = 0
    for _, group in groupby(map(split, names), key=lambda found: found[0]):
        endings = [ending for _, ending in group]
        if len(endings) > MOST_MEMBERS:
            return 0, 0
        whole = chosen(endings, PICTURES) is not None and any(chosen(endings, (text,)) for text in TEXTS)
        pairs, incomplete = pairs + whole, incomplete + (not whole)
    return pairs, -incomplete


def _headers(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """The members one by one, without remembering all of them."""
    while (info := tar.next()) is not None:
        tar.members = []  # pyright: ignore[reportAttributeAccessIssue]
        yield info


class _TruncatedError(Exception):
    """A tar that stops before its end, with the members read last."""

    def __init__(self, reason: str, key: str | None, members: dict[str, bytes] | str) -> None:
        super().__init__(reason)
        self.key, self.members = key, members


@dataclass
class _Reading:
    """A tar that is being read: how its names are split, and which members belong to no sample."""

    path: Path
    split: Splitting | None = None
    """None until it matters."""
    unused: dict[str, Unused] = field(default_factory=dict)
    """By reason."""

    def how(self, name: str) -> str:
        """In words, how this member's name was split, if that matters."""
        if not has_several_dots(name):
            return ""
        return f" (names split at their {'first' if self.split is at_first_dot else 'last'} dot)"

    def parted(self, name: str) -> tuple[str, str]:
        """(key, ending)."""
        if self.split is None and has_several_dots(name):
            self.split = splitting_of(self.path)
        return (self.split or at_last_dot)(name)

    def leave(self, name: str, reason: str) -> None:
        """Count a member that is not used."""
        before = self.unused.get(reason, Unused(clean(name), reason, 0))
        self.unused[reason] = Unused(before.key, reason, before.number + 1)

    def groups(self, file: BinaryIO) -> Iterator[tuple[str, dict[str, bytes] | str]]:
        """(key, members by their ending, or why one of them cannot be read); members that stand together have one key.

        Raises:
            _TruncatedError: the tar is not whole.
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
                        self.leave(f"{key}.{ending}", "a later member has the same name, and is used instead")
                    members[ending] = content
        except (tarfile.TarError, EOFError) as error:
            raise _TruncatedError(str(error), key, members) from None
        if key is not None:
            yield key, members

    def _members(self, file: BinaryIO) -> Iterator[tuple[str, str, bytes | str]]:
        """(key, ending, content) of each picture, caption and metadata; a reason replaces content that is too large.

        Raises:
            tarfile.TarError: the tar is not whole.
        """
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for info in _headers(tar):
                if info.isdir():
                    continue
                key, ending = self.parted(info.name)
                if info.isreg() and is_known(ending):
                    yield key, ending, _content(tar, info, ending.rpartition(".")[2])
                else:
                    self.leave(info.name, _why_unused(info, ending))
            # At a broken header tarfile stops as if the tar ended there.
            file.seek(tar.offset)
            if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise tarfile.ReadError("it has no end mark")


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
