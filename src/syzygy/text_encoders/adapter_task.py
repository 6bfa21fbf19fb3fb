"""Training of an adapter between a language model and a CLIP: what its stages share. See `train/align.py` and `train/image.py`."""

from collections.abc import Iterable, Iterator, Mapping, Sized
from functools import lru_cache
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from syzygy.core.randomness import generator
from syzygy.training.parallel import World, apart
from syzygy.training.precision import autocast

BLOCK = 64
"""Samples whose randomness is drawn at once. It belongs to their places in the stream, so neither batch, part nor process changes it."""


B = TypeVar("B", bound=Sized)
B_contra = TypeVar("B_contra", bound=Sized, contravariant=True)
B_co = TypeVar("B_co", bound=Sized, covariant=True)


@runtime_checkable
class Stage(Protocol[B_contra]):
    """What a stage minimises."""

    @property
    def modules(self) -> Mapping[str, nn.Module]:
        """Those that are trained."""
        ...

    def losses(self, batch: B_contra) -> dict[str, Tensor]:
        """`loss` and its parts, means over the batch's captions."""
        ...

    def validated(self, batches: Iterable[tuple[str, B_contra]]) -> dict[str, float]:
        """Metrics on unseen captions, each batch with its name."""
        ...


@runtime_checkable
class Source(Protocol[B_co]):
    """Where a stage's captions come from: all of a step depends on its number alone."""

    def read(self, step: int, rows: slice) -> B_co:
        """These rows of the step's batch, on the device that trains."""
        ...

    def unseen(self) -> Iterator[tuple[str, B_co]]:
        """Captions that no step sees, with a name for each batch of them; the same at each call."""
        ...


class _Losses(nn.Module):
    """A stage as a module, as torch's data parallelism wants it."""

    def __init__(self, stage: Stage[Any], device: torch.device, precision: torch.dtype | None) -> None:
        super().__init__()
        self.trained = nn.ModuleDict(dict(stage.modules))
        self.stage, self._device, self._precision = stage, device, precision

    def forward(self, batch: Sized) -> dict[str, Tensor]:
        with autocast(self._device, self._precision):
            return self.stage.losses(batch)


class AdapterTask(Generic[B]):
    """The training loop's `Task` for a stage. Of a batch each process takes its share, in parts that fit its memory."""

    def __init__(
        self,
        stage: Stage[B],
        source: Source[B],
        batch_size: int,
        *,
        micro_batch: int = 0,
        precision: torch.dtype | None = None,
        world: World,
    ) -> None:
        """`micro_batch` 0 takes a process's share at once."""
        self.modules = dict(stage.modules)
        self.stage, self.source = stage, source
        self._share = world.share(batch_size)
        self._micro = micro_batch or self._share.stop - self._share.start
        self._losses = world.wrapped(_Losses(stage, world.device, precision))

    def loss(self, step: int) -> dict[str, Tensor]:
        """The stage's losses on this process's share of the step."""
        sums: dict[str, Tensor] = {}
        for part in self.parts(step):
            sums = {name: sums.get(name, 0) + value for name, value in part.items()}
        return sums

    def parts(self, step: int) -> Iterator[dict[str, Tensor]]:
        """The same, as parts that sum to it."""
        first, stop = self._share.start, self._share.stop
        for start in range(first, stop, self._micro):
            rows = slice(start, min(start + self._micro, stop))
            if rows.stop == stop:
                yield self._part(step, rows)
                return
            with apart(self._losses):  # left only after the part's gradient is there: the caller takes it inside
                yield self._part(step, rows)

    def _part(self, step: int, rows: slice) -> dict[str, Tensor]:
        weight = (rows.stop - rows.start) / (self._share.stop - self._share.start)
        return {name: value * weight for name, value in self._losses(self.source.read(step, rows)).items()}

    def validate(self) -> dict[str, float]:
        """Metrics on unseen captions; every process computes the same."""
        return self.stage.validated(self.source.unseen())


class Shuffled:
    """The numbers below `length` in an endless stream: one permutation after another."""

    def __init__(self, length: int, seed: int, *key: int | str) -> None:
        self._length, self._seed, self._key = length, seed, key
        self._order = lru_cache(maxsize=2)(self._permutation)

    def _permutation(self, epoch: int) -> Int[Tensor, "M"]:
        return torch.randperm(self._length, generator=generator(self._seed, *self._key, "epoch", epoch))

    def __getitem__(self, place: int) -> int:
        epoch, offset = divmod(place, self._length)
        return int(self._order(epoch)[offset])

    def run(self, start: int, number: int) -> Int[Tensor, "n"]:
        """Those at the places `start` …."""
        return torch.tensor([self[place] for place in range(start, start + number)])


def draws(seed: int, what: str, start: int, number: int, width: int) -> tuple[Float[Tensor, "n D"], Float[Tensor, "n"]]:
    """Normal noise and a number in [0, 1) for each of the places `start` … of the stream."""
    noise, uniform = [], []
    for block in range(start // BLOCK, (start + number - 1) // BLOCK + 1):
        random = generator(seed, what, block)
        noise.append(torch.randn(BLOCK, width, generator=random))
        uniform.append(torch.rand(BLOCK, generator=random))
    own = slice(start % BLOCK, start % BLOCK + number)
    return torch.cat(noise)[own], torch.cat(uniform)[own]
