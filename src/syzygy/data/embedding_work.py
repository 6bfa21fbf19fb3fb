"""What the runners of embedding share: the work as a value, and the count of what is done."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from syzygy.clip.clip_model import Clip
from syzygy.data import store_building
from syzygy.data.embed_shard import Progress
from syzygy.data.encoding import EmbedSettings
from syzygy.data.pair import Shard


@dataclass(frozen=True)
class EncoderSpec:
    """How any process loads the encoder."""

    source: str
    """A folder or a hub id."""
    revision: str | None
    compute: torch.dtype
    device: str

    def load(self, worker: int = 0, *, local_files_only: bool = False) -> Clip:
        """The encoder, on this worker's device. Workers share the GPUs of a machine. Raises `UserError` if it cannot be loaded."""
        clip = Clip.from_pretrained(
            self.source, revision=self.revision, dtype=self.compute, local_files_only=local_files_only
        )
        device = f"cuda:{worker % torch.cuda.device_count()}" if self.device == "cuda" else self.device
        return clip.to(device)


@dataclass(frozen=True)
class Job:
    """All that a worker needs to embed any shard. It can be sent to other processes."""

    store: Path
    shards: Sequence[Shard]
    spec: EncoderSpec
    settings: EmbedSettings


class Tally:
    """What is done over all shards: finished ones, and what is known of those in work."""

    def __init__(self, shards: Sequence[Shard], records: Sequence[Mapping[str, Any]], max_bad: float) -> None:
        """`records` are those of shards that were finished before. Raises `TooManyBad` if these have too many bad samples."""
        self._shards, self._max_bad = shards, max_bad
        self._progress: dict[int, Progress] = {}
        self._done: set[int] = set()
        self.on_change: Callable[[], None] = lambda: None
        """Called after every batch and every shard."""
        for record in records:
            self._take(record)
        self.seen_before = self.seen
        self._check()

    @property
    def shards(self) -> int:
        """How many shards there are."""
        return len(self._shards)

    @property
    def shards_done(self) -> int:
        """How many of them are finished."""
        return len(self._done)

    @property
    def seen(self) -> int:
        """Samples, bad ones included."""
        return sum(progress.seen for progress in self._progress.values())

    @property
    def bad(self) -> int:
        """Bad samples."""
        return sum(progress.bad for progress in self._progress.values())

    @property
    def expected(self) -> float | None:
        """Samples of all shards: counted if the source knows them, else estimated from the finished ones; None before there is one."""
        known = [shard.samples for shard in self._shards if shard.samples is not None]
        if len(known) == len(self._shards):
            return float(sum(known))
        size = sum(self._shards[number].size for number in self._done)
        seen = sum(self._progress[number].seen for number in self._done)
        return seen * sum(shard.size for shard in self._shards) / size if size else None

    def update(self, progress: Progress) -> None:
        """Count a batch of a shard. Raises `TooManyBad` if too many samples are bad; see `store_building.check_bad`."""
        self._progress[progress.number] = progress
        self._check()
        self.on_change()

    def finish(self, record: Mapping[str, Any]) -> None:
        """Count a finished shard. Raises as `update`."""
        self._take(record)
        self._check()
        self.on_change()

    def _take(self, record: Mapping[str, Any]) -> None:
        progress = self._progress[record["number"]] = Progress(record["number"], record["seen"])
        for fault in store_building.lost_pairs(record):
            progress.lose(fault["key"], fault["reason"])
        self._done.add(record["number"])

    def _check(self) -> None:
        shown = self._progress.values()
        first = [f"{self._shards[progress.number].name} {line}" for progress in shown for line in progress.first]
        store_building.check_bad(self.seen, self.bad, first, self._max_bad, at_end=False)
