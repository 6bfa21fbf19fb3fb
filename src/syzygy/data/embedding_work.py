"""What the runners of embedding share: the work as a value, the count of what is done, and who is told of it."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch

from syzygy.clip.clip_model import Clip
from syzygy.data import building
from syzygy.data.embed_shard import Progress
from syzygy.data.embedding_preview import Preview
from syzygy.data.pair import Shard
from syzygy.data.pair_encoder import EmbedSettings


@dataclass(frozen=True)
class EncoderSpec:
    """How any process loads the encoder."""

    source: str
    """A folder or a hub id."""
    revision: str | None
    compute: torch.dtype
    device: str

    def load(self, worker: int = 0, *, local_files_only: bool = False) -> Clip:
        """The encoder, on this worker's device: workers share out the GPUs.

        Raises:
            UserError: it cannot be loaded.
        """
        clip = Clip.from_pretrained(
            self.source, revision=self.revision, dtype=self.compute, local_files_only=local_files_only
        )
        device = f"cuda:{worker % torch.cuda.device_count()}" if self.device == "cuda" else self.device
        return clip.to(device)


@dataclass(frozen=True)
class Job:
    """All that a worker needs to embed any shard. Can be sent to other processes."""

    store: Path
    shards: Sequence[Shard]
    spec: EncoderSpec
    settings: EmbedSettings


class Tally:
    """What is done, over all shards: finished ones, and what is known of those in work."""

    def __init__(self, shards: Sequence[Shard], records: Sequence[Mapping[str, Any]], max_bad: float) -> None:
        """`records` are those of shards that were finished before.

        Raises:
            TooManyBad: these alone have too many bad samples.
        """
        self._sizes = [shard.size for shard in shards]
        known = [shard.samples for shard in shards]
        self._known = None if None in known else float(sum(number for number in known if number is not None))
        self._names = [shard.name for shard in shards]
        self._max_bad = max_bad
        self._finished: dict[int, Progress] = {}
        self._working: dict[int, Progress] = {}
        self.shards = len(shards)
        for record in records:
            self._take(record)
        self.seen_before = self.seen
        self._check()

    @property
    def shards_done(self) -> int:
        return len(self._finished)

    @property
    def seen(self) -> int:
        """Samples, bad ones included."""
        return sum(progress.seen for progress in self._all)

    @property
    def bad(self) -> int:
        """Bad samples."""
        return sum(progress.bad for progress in self._all)

    @property
    def _all(self) -> list[Progress]:
        return [*self._finished.values(), *self._working.values()]

    @property
    def expected(self) -> float | None:
        """Samples of all shards: counted where the source knows them, else estimated from the finished ones; None before there is one."""
        if self._known is not None:
            return self._known
        size = sum(self._sizes[number] for number in self._finished)
        return sum(progress.seen for progress in self._finished.values()) * sum(self._sizes) / size if size else None

    def update(self, progress: Progress) -> None:
        """A batch of a shard is done.

        Raises:
            TooManyBad: see `building.check_bad`.
        """
        self._working[progress.number] = progress
        self._check()

    def finish(self, record: Mapping[str, Any]) -> None:
        """A shard is done. Raises as `update`."""
        self._working.pop(record["number"], None)
        self._take(record)
        self._check()

    def _take(self, record: Mapping[str, Any]) -> None:
        progress = Progress(record["number"], record["seen"])
        for fault in building.lost_pairs(record):
            progress.lose(fault["key"], fault["reason"])
        self._finished[record["number"]] = progress

    def _check(self) -> None:
        first = [f"{self._names[progress.number]} {line}" for progress in self._all for line in progress.first]
        building.check_bad(self.seen, self.bad, first, self._max_bad, at_end=False)


@runtime_checkable
class Report(Protocol):
    """Shows how the work goes."""

    def running(self, tally: Tally) -> AbstractContextManager[None]:
        """Within: the work is under way."""
        ...

    def expects(self, preview: Preview | None) -> None:
        """What the work will take, as far as it can be measured. Called before it begins, if there is any."""
        ...

    def update(self) -> None:
        """The tally has changed. Called often."""
        ...


class SilentReport:
    """Shows nothing."""

    @contextmanager
    def running(self, tally: Tally) -> Iterator[None]:
        yield

    def expects(self, preview: Preview | None) -> None: ...

    def update(self) -> None: ...
