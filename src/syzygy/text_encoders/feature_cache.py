"""Features of texts, computed once and read by text: a training that sees each caption many times then runs no text encoder.

    CACHE/llm-1f0c6a77c0de5eed/encoder.json             the encoder, and how it reads texts
    CACHE/llm-1f0c6a77c0de5eed/8a41….safetensors        at most `PART` texts: hashes of them, token states, offsets
    CACHE/clip-77d2b1a0f00dcafe/…                       the same of CLIP, with pooled embeddings

Another encoder, or the same one with another recipe, has another folder, so several trainings may share a cache. A part is written at once or
not at all; what an interrupted call wrote is kept, and the same call computes the rest.

Legend: M texts, T tokens of the longest, W width of token states, D width of pooled embeddings.
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from heapq import heappush, heappushpop
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from syzygy.core import artifacts
from syzygy.core.contracts import TextFeatures, TextStates
from syzygy.core.errors import UserError
from syzygy.core.wording import counted, duration, size
from syzygy.data.encoding import DTYPES, Encode, encode_captions, joined
from syzygy.data.store_building import FREE, MEASURED, encoder_difference
from syzygy.data.store_files import mapped, write_tensors
from syzygy.data.store_part import text_hash, text_tensors
from syzygy.training.estimate import free_disk, is_dry_run, preparing, rehearsed
from syzygy.training.parallel import Ranks
from syzygy.training.run_records import Bar, no_bar

PART = 1024
"""Most texts of a file; so many features are in memory at once while they are computed."""
BATCH = 32
"""Texts that are encoded together."""
SAMPLE = 64
"""Texts from which size and time are estimated: those with the smallest hashes, which is a random choice."""
ENCODER_FILE = "encoder.json"
ABANDONED = 3600
"""Seconds after which nobody writes to an unfinished file any more."""

Texts = Callable[[], Iterable[str]]
"""Gives all texts, at each call again; a text may come several times."""


@dataclass(frozen=True)
class CachedEncoder:
    """An encoder whose features are kept."""

    name: str
    """What its folder is called: small letters and dashes."""
    identity: Mapping[str, Any]
    """Which encoder it is and how it reads texts, as JSON values; `FREE` fields may differ."""
    encode: Encode
    dtype: Literal["fp16", "bf16"]
    """How its features are kept."""
    texts: Texts
    """What it encodes."""

    def folder(self, cache: Path) -> Path:
        """Its folder in a cache, which its identity names."""
        # What is measured differs a little between machines; it is compared when the folder is opened.
        named = {name: value for name, value in self.identity.items() if name not in (*FREE, MEASURED)}
        key = json.dumps({**named, "stored": self.dtype}, sort_keys=True).encode()
        return cache / f"{self.name}-{hashlib.blake2b(key, digest_size=8).hexdigest()}"


class FeatureSet:
    """Features of M texts, found by their text. The files are mapped into memory: only what is read is loaded."""

    def __init__(self, parts: Sequence[Mapping[str, Tensor]], *, complete: bool = True) -> None:
        """
        Args:
            parts: at least one, each as `text_tensors` with the texts' hashes.
            complete: every text that is asked for must be there. Otherwise another one stands in for it, as a dry run needs.
        """
        self._parts, self._complete = parts, complete
        lengths = torch.tensor([len(part["text_hash"]) for part in parts])
        self._hashes, order = torch.cat([part["text_hash"] for part in parts]).sort()
        part = torch.arange(len(parts)).repeat_interleave(lengths)
        row = torch.arange(len(part)) - (lengths.cumsum(0) - lengths)[part]
        self._part, self._row = part[order], row[order]

    def __len__(self) -> int:
        return len(self._hashes)

    def at_least(self, tokens: int) -> int:
        """How many texts have this many tokens or more."""
        return sum(int((part["offsets"].diff() >= tokens).sum()) for part in self._parts)

    def lacking(self, texts: Iterable[str]) -> list[str]:
        """Those of the texts that have no features, each once."""
        known = set(self._hashes.tolist())
        return list(dict.fromkeys(text for text in texts if text_hash(text) not in known))

    def encode_states(self, texts: list[str]) -> TextStates:
        """As the encoder's: token states in fp32 and their mask, on the CPU, padded on the right with zeros."""
        return _padded(self._rows(texts))

    def encode_text(self, texts: list[str]) -> TextFeatures:
        """As the encoder's, with pooled embeddings; in fp32, on the CPU."""
        rows = self._rows(texts)
        found = _padded(rows)
        return TextFeatures(found.states, found.mask, torch.stack([part["pooled"][row] for part, row in rows]).float())

    def _rows(self, texts: list[str]) -> list[tuple[Mapping[str, Tensor], int]]:
        """The part that has each text, and its row there."""
        wanted = torch.tensor([text_hash(text) for text in texts])
        at = torch.searchsorted(self._hashes, wanted).clamp(max=len(self._hashes) - 1)
        if self._complete and not torch.equal(self._hashes[at], wanted):
            lacking = texts[int((self._hashes[at] != wanted).nonzero()[0])]
            raise AssertionError(f"the cache has no features of {lacking[:100]!r}")
        places = zip(self._part[at].tolist(), self._row[at].tolist(), strict=True)
        return [(self._parts[part], row) for part, row in places]


def _padded(rows: Sequence[tuple[Mapping[str, Tensor], int]]) -> TextStates:
    bounds = [(part["states"], *part["offsets"][row : row + 2].tolist()) for part, row in rows]
    states = [every[a:b].float() for every, a, b in bounds]
    mask = torch.arange(max(map(len, states))) < torch.tensor([len(one) for one in states])[:, None]
    return TextStates(torch.nn.utils.rnn.pad_sequence(states, batch_first=True), mask)


@dataclass(frozen=True)
class CachedCaptions:
    """What stage align reads of its captions and of their English, in place of the encoders."""

    llm: FeatureSet
    clip: FeatureSet
    padded: FeatureSet | None
    """CLIP's states at all positions, if tokens are distilled."""


@dataclass(frozen=True)
class CacheFolder:
    """Where features are kept, and how their computation is shown."""

    path: Path
    """It is made if it is not there."""
    bar: Bar = no_bar


def cached(
    cache: CacheFolder, encoders: Sequence[CachedEncoder], world: Ranks, say: Callable[[str], None]
) -> list[FeatureSet]:
    """The features of the encoders' texts; what is not in the cache is computed first, shared among the ranks.

    Args:
        say: gets a line about the size and the time before anything is computed.

    Raises:
        UserError: the disk is too small; the folder cannot be read or written, or is damaged; a feature does not fit into its precision; the
            encoder's features have changed since (`encoder_difference`).
    """
    works = [_Work.of(encoder, encoder.folder(cache.path)) for encoder in encoders]
    _announce(cache.path, works, world, say)
    if is_dry_run():
        return [work.rehearsal() for work in works]
    for work in works if world.first else ():
        work.begin()
    world.wait()  # every rank has listed the same files, before one adds others
    for work in works:
        work.fill(world, cache.bar)
    world.wait()
    return [FeatureSet(_parts(work.folder)) for work in works]


@dataclass(frozen=True)
class _Work:
    """What is still to be computed of an encoder's features."""

    encoder: CachedEncoder
    folder: Path
    lacking: set[int]
    """Hashes of the texts that have no features yet."""
    present: int
    """How many of the texts have some."""
    sample: list[str]
    """Some of those texts."""

    @staticmethod
    def of(encoder: CachedEncoder, folder: Path) -> "_Work":
        _check_encoder(encoder, folder)
        known = {number for part in _parts(folder) for number in part["text_hash"].tolist()}
        lacking: set[int] = set()
        present: set[int] = set()
        heap: list[tuple[int, str]] = []
        for text in encoder.texts():
            number = text_hash(text)
            if number in known:
                present.add(number)
            elif number not in lacking:
                lacking.add(number)
                if len(heap) < SAMPLE:
                    heappush(heap, (-number, text))
                else:
                    heappushpop(heap, (-number, text))
        return _Work(encoder, folder, lacking, len(present), [text for _, text in heap])

    def cost(self) -> tuple[float, float]:
        """Bytes and seconds of all that is lacking, from the sample."""
        if not self.sample:
            return 0.0, 0.0
        self._encoded(self.sample[:BATCH])  # the first pass of a model takes longer
        began = time.perf_counter()
        tensors = self._encoded(self.sample)
        seconds = time.perf_counter() - began
        each = len(self.lacking) / len(self.sample)
        return each * sum(x.nbytes for x in tensors.values()), each * seconds

    def begin(self) -> None:
        """Record the encoder, and delete what a killed process left half written; another training may be writing just now."""
        if not self.lacking:
            return
        artifacts.write_json(self.folder / ENCODER_FILE, {**self.encoder.identity, "stored": self.encoder.dtype})
        for path in self.folder.glob(f"{artifacts.TEMPORARY}*"):
            with suppress(FileNotFoundError):
                if time.time() - path.stat().st_mtime > ABANDONED:
                    path.unlink()

    def fill(self, world: Ranks, bar: Bar) -> None:
        """Compute this rank's share of what is lacking, and write it."""
        if not self.lacking:
            return
        show = bar if world.first else no_bar
        with show(f"features of {self.encoder.name}", len(self.lacking)) as advance:
            for number, texts in enumerate(self._batches(PART)):
                if number % world.size == world.rank:
                    tensors = self._encoded(texts)
                    name = hashlib.blake2b(tensors["text_hash"].numpy().tobytes(), digest_size=8).hexdigest()
                    write_tensors(self.folder / f"{name}.safetensors", tensors)
                advance(len(texts))

    def rehearsal(self) -> FeatureSet:
        """The features of a few texts, which stand in for the others; nothing is written."""
        parts: list[Mapping[str, Tensor]] = list(_parts(self.folder))
        number = rehearsed(len(self.lacking), PART)
        if number:
            with preparing(len(self.lacking), number):
                parts.append(self._encoded(next(self._batches(number))))
        return FeatureSet(parts, complete=False)

    def _batches(self, most: int) -> Iterator[list[str]]:
        """What is lacking, each text once."""
        left = set(self.lacking)

        def once() -> Iterator[str]:
            for text in self.encoder.texts():
                with suppress(KeyError):
                    left.remove(text_hash(text))
                    yield text

        texts = once()
        while chunk := list(islice(texts, most)):
            yield chunk

    def _encoded(self, texts: list[str]) -> dict[str, Tensor]:
        dtype = DTYPES[self.encoder.dtype]
        found = encode_captions(self.encoder.encode, texts, dtype, BATCH)
        for text, fault in zip(texts, found.faults, strict=True):
            if fault:
                raise UserError(f"what the encoder ({self.encoder.name}) gives for {text[:200]!r} {fault}.")
        hashes = torch.tensor([text_hash(text) for text in texts])
        return {"text_hash": hashes, **text_tensors(*joined(found.states, dtype), found.pooled)}


def _check_encoder(encoder: CachedEncoder, folder: Path) -> None:
    """Refuse a folder whose features were computed with another version of the encoder."""
    path = folder / ENCODER_FILE
    if not path.is_file():
        return
    was = artifacts.read_json(path)
    name = encoder_difference(was, {**encoder.identity, "stored": encoder.dtype})
    if name is not None:
        then, now = (side.get("versions", {}).get("transformers") for side in (was, encoder.identity))
        raise UserError(
            f"the features in {folder} were computed by an encoder whose {name} is {was.get(name)!r}, here {encoder.identity.get(name)!r} "
            f"(transformers {then}, here {now}). Delete the folder, and the features are computed again."
        )


def _parts(folder: Path) -> list[dict[str, Tensor]]:
    parts = []
    for path in sorted(folder.glob("*.safetensors")):
        try:
            parts.append(mapped(path))
        except UserError as error:
            raise UserError(
                f"{str(error).partition(' (')[0]}. Delete the file, and its features are computed again."
            ) from None
    return parts


def _announce(cache: Path, works: Sequence[_Work], world: Ranks, say: Callable[[str], None]) -> None:
    """A line about what is there and what is going to be computed; refuse a disk that is too small."""
    there = sum(work.present for work in works)
    if not any(work.lacking for work in works):
        say(f"All features of {counted(there, 'text')} are in {cache}.")
        return
    if is_dry_run():
        return  # the estimate names the time
    costs = [work.cost() for work in works]
    names = " and ".join(
        f"{counted(len(work.lacking), 'text')} ({work.encoder.name})" for work in works if work.lacking
    )
    total, seconds, free = sum(one for one, _ in costs), sum(one for _, one in costs) / world.size, free_disk(cache)
    if total > free:
        raise UserError(
            f"the features of {names} take about {size(total)}, and {cache} has {size(free)} free. Choose another place "
            "(--cache-folder), or train without."
        )
    more = f"; those of {there:,} are there" if there else ""
    say(
        f"The features of {names} are computed first: about {size(total)} in {cache} ({size(free)} free), {duration(seconds)}{more}."
    )
