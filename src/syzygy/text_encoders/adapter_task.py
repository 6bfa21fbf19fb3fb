"""The training task of an adapter between a language model and a CLIP, which its stages on texts and on images share."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from syzygy.core.config import Config
from syzygy.core.randomness import generator
from syzygy.training.parallel import Ranks, apart
from syzygy.training.precision import autocast

BLOCK = 64
"""Samples whose randomness is drawn at once. It depends on their places in the stream, so no batch, micro-batch or process changes it."""
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class StepConfig(Config):
    """What the training steps of every stage have in common."""

    micro_batch: int = Field(default=0, ge=0)
    """Captions per forward pass, if a process's share of the batch does not fit into memory; 0 takes the share at once."""
    precision: Literal["auto", "fp32", "bf16"] = "fp32"
    """What adapter and prior compute in (weights and losses stay fp32); "auto" is bf16 on CUDA and fp32 elsewhere."""
    empty: float = Field(default=0.1, ge=0, lt=1)
    """Share of the captions that are replaced by the empty text, which guidance and negative prompts need."""


class StageConfig(StepConfig):
    """The same for stages with a contrastive loss."""

    temperature: Literal["clip"] | Annotated[float, Field(gt=0, allow_inf_nan=False)] = "clip"
    """Temperature τ of the contrastive loss; "clip" is the frozen CLIP's own."""


@runtime_checkable
class Stage(Protocol):
    """What is minimised: `AlignStage` on texts, `ImageStage` on images."""

    @property
    def modules(self) -> Mapping[str, nn.Module]:
        """The modules that are trained."""
        ...

    def losses(self, batch: Any) -> dict[str, Tensor]:
        """`loss` and its parts, as means over the batch's captions."""
        ...

    def validated(self, batches: Iterable[tuple[str, Any]]) -> dict[str, float]:
        """Metrics on unseen captions; each batch has a name."""
        ...


@runtime_checkable
class Source(Protocol):
    """Where a stage's batches come from; a step's batch depends on the number of the step alone."""

    def read(self, step: int, rows: slice) -> Any:
        """These rows of the step's batch, on the training device."""
        ...

    def unseen(self) -> Iterator[tuple[str, Any]]:
        """Named batches of captions that no step sees; the same at each call."""
        ...


class _Losses(nn.Module):
    """A stage as a module, as torch's data parallelism needs it."""

    def __init__(self, stage: Stage, device: torch.device, precision: torch.dtype | None) -> None:
        super().__init__()
        self.trained = nn.ModuleDict(dict(stage.modules))
        self.stage, self._device, self._precision = stage, device, precision

    def forward(self, batch: Any) -> dict[str, Tensor]:
        with autocast(self._device, self._precision):
            return self.stage.losses(batch)


class AdapterTask:
    """The training loop's `Task` for a stage. Each process takes its share of a batch, in parts that fit into memory."""

    def __init__(
        self,
        stage: Stage,
        source: Source,
        batch_size: int,
        *,
        micro_batch: int = 0,
        precision: torch.dtype | None = None,
        world: Ranks,
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
        """The losses as parts that sum to them."""
        first, stop = self._share.start, self._share.stop
        for start in range(first, stop, self._micro):
            rows = slice(start, min(start + self._micro, stop))
            if rows.stop == stop:
                yield self._part(step, rows)
                return
            with apart(self._losses):  # the caller computes the part's gradient before it asks for the next part
                yield self._part(step, rows)

    def _part(self, step: int, rows: slice) -> dict[str, Tensor]:
        weight = (rows.stop - rows.start) / (self._share.stop - self._share.start)
        return {name: value * weight for name, value in self._losses(self.source.read(step, rows)).items()}

    def validate(self) -> dict[str, float]:
        """Metrics on unseen captions; every process computes the same ones."""
        return self.stage.validated(self.source.unseen())


def draws(seed: int, what: str, start: int, number: int, width: int) -> tuple[Float[Tensor, "n D"], Float[Tensor, "n"]]:
    """Normal noise, and a number in [0, 1), for each of the places of the stream from `start` on."""
    noise, uniform = [], []
    for block in range(start // BLOCK, (start + number - 1) // BLOCK + 1):
        random = generator(seed, what, block)
        noise.append(torch.randn(BLOCK, width, generator=random))
        uniform.append(torch.rand(BLOCK, generator=random))
    own = slice(start % BLOCK, start % BLOCK + number)
    return torch.cat(noise)[own], torch.cat(uniform)[own]
