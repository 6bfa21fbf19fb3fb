"""The task of training a prior on frozen CLIP embeddings: the captions of each step, and the metrics of validation."""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from syzygy.core.errors import UserError
from syzygy.core.randomness import generator
from syzygy.data.references import References
from syzygy.prior.embedding_pairs import Pairs
from syzygy.prior.embedding_statistics import frechet_distance
from syzygy.prior.prior_network import PriorBatch
from syzygy.training.parallel import Ranks, apart
from syzygy.training.precision import autocast

BLOCK = 64
"""Samples whose randomness is drawn at once. It depends on their positions in the stream, and not on batch, part or process."""
RETRIEVED = 4096
"""Most images among which validation searches for the true one."""


@runtime_checkable
class Measured(Protocol):
    """What `validated` measures: an `Objective`, or a prior that is fitted without steps."""

    def losses(self, batch: PriorBatch) -> dict[str, Tensor]:
        """`loss` and its parts, means over the batch's own captions."""
        ...

    def predict(self, batch: PriorBatch) -> Float[Tensor, "B D"]:
        """Raw image embeddings, as the trained prior would predict them."""
        ...


@runtime_checkable
class Objective(Measured, Protocol):
    """The loss and the prediction of a prior in training: `EclipseObjective`, `ResidualObjective`, `DiffusionObjective`."""

    @property
    def prior(self) -> nn.Module:
        """The network. Its `config` has `embedding_dim` and `num_embeddings`."""
        ...

    def prepare(self, data: Pairs) -> None:
        """Let the prior keep what it needs to know of all training pairs, before the first step."""
        ...


class _Losses(nn.Module):
    """An objective as a module, which torch's data parallelism needs."""

    def __init__(self, objective: Objective, device: torch.device, precision: torch.dtype | None) -> None:
        super().__init__()
        self.prior, self.objective = objective.prior, objective
        self._device, self._precision = device, precision

    def forward(self, batch: PriorBatch) -> dict[str, Tensor]:
        with autocast(self._device, self._precision):
            return self.objective.losses(batch)


class PriorTask:
    """The task that a training loop runs: a pure function of the step, so a run resumes exactly from the step alone.

    Captions come as one endless stream of permutations, one an epoch, cut into batches: every caption is seen once an
    epoch whatever the batch size. A caption's position in the stream decides its noise. Each process takes its share of a
    batch, in parts that fit into memory. All of them see the texts of the whole batch, so that the loss does not depend on either.
    """

    def __init__(
        self,
        objective: Objective,
        data: Pairs,
        validation: Pairs,
        batch_size: int,
        seed: int,
        *,
        micro_batch: int = 0,
        precision: torch.dtype | None = None,
        world: Ranks | None = None,
    ) -> None:
        """Prepares the objective for the training pairs. With `micro_batch` 0, a share is one part."""
        prior: Any = objective.prior
        for name, part in (("training", data), ("validation", validation)):
            if part.width != prior.config.embedding_dim:
                raise UserError(
                    f"{name} embeddings are {part.width} wide; the prior has embedding_dim "
                    f"{prior.config.embedding_dim}. Make the prior for the CLIP that embedded the data."
                )
            if part.longest > prior.config.num_embeddings:
                raise UserError(
                    f"a {name} caption has {part.longest} tokens; the prior reads {prior.config.num_embeddings}."
                )
        objective.prepare(data)
        self.objective, self.data, self.validation, self.batch_size, self.seed = (
            objective,
            data,
            validation,
            batch_size,
            seed,
        )
        self.modules = {"prior": objective.prior}
        self._device = objective.prior.get_parameter("proj_in.weight").device
        world = world or Ranks(self._device)
        self._share = world.share(batch_size)
        self._micro = micro_batch or self._share.stop - self._share.start
        self._losses = world.wrapped(_Losses(objective, self._device, precision))
        # Two epochs meet in a batch; a batch of more than an epoch only draws a permutation twice.
        self._order = lru_cache(maxsize=2)(self._permutation)
        self._reader = ThreadPoolExecutor(1, "pairs")
        self._next: tuple[int, Future[list[PriorBatch]]] | None = None

    def _permutation(self, epoch: int) -> Int[Tensor, "M"]:
        return torch.randperm(len(self.data), generator=generator(self.seed, "prior", "epoch", epoch))

    def captions_at(self, step: int) -> Int[Tensor, "G"]:
        """The captions of this step (from 0), in all processes together."""
        position, end = step * self.batch_size, (step + 1) * self.batch_size
        parts = []
        while position < end:
            epoch, offset = divmod(position, len(self.data))
            parts.append(self._order(epoch)[offset : offset + end - position])
            position += len(parts[-1])
        return torch.cat(parts)

    def keys(self, step: int) -> list[str]:
        """The keys of this step's samples."""
        return self.data.keys(self.captions_at(step))

    def loss(self, step: int) -> dict[str, Tensor]:
        """The objective's losses on this process's share of the step."""
        sums: dict[str, Tensor] = {}
        for part in self.parts(step):
            sums = {name: sums.get(name, 0) + value for name, value in part.items()}
        return sums

    def parts(self, step: int) -> Iterator[dict[str, Tensor]]:
        """The terms of `loss`, as parts that sum to them."""
        batches = self._batches(step)
        whole = sum(map(len, batches))
        for batch in batches[:-1]:
            with apart(self._losses):  # left only after the part's gradient is there: the caller takes it inside
                yield self._part(batch, whole)
        yield self._part(batches[-1], whole)

    def _part(self, batch: PriorBatch, whole: int) -> dict[str, Tensor]:
        return {name: value * (len(batch) / whole) for name, value in self._losses(batch).items()}

    def _batches(self, step: int) -> list[PriorBatch]:
        """This step's parts on the device; those of the next step are read meanwhile."""
        if self._next is None or self._next[0] != step:
            self._next = step, self._reader.submit(self._read, step)
        batches = self._next[1].result()
        self._next = step + 1, self._reader.submit(self._read, step + 1)
        return [placed(batch, self._device) for batch in batches]

    def _read(self, step: int) -> list[PriorBatch]:
        captions, place = self.captions_at(step), step * self.batch_size
        candidates, ids = self.data.pooled(captions), self.data.ids(captions)
        batches = []
        for first in range(self._share.start, self._share.stop, self._micro):
            own = captions[first : min(first + self._micro, self._share.stop)]
            noise, uniform = draws(self.seed, "train", place + first, len(own), self.data.width)
            text, images = self.data.text(own), self.data.images(own)
            references = read_references(self.objective, self.data, own)
            batches.append(PriorBatch(text, images, candidates, ids, first, noise, uniform, references))
        return batches

    @property
    def unmeasured(self) -> str:
        """As of the function `unmeasured`."""
        return unmeasured(self.validation)

    def validate(self) -> dict[str, float]:
        """The metrics of `validated`, on the validation captions."""
        return validated(self.objective, self.validation, self.batch_size, self.seed, self._device)


def draws(
    seed: int, what: str, start: int, number: int, width: int
) -> tuple[Float[Tensor, "n D"], Float[Tensor, "n 2"]]:
    """Noise and uniform numbers of the positions from `start` in the stream."""
    noise, uniform = [], []
    for block in range(start // BLOCK, (start + number - 1) // BLOCK + 1):
        random = generator(seed, "prior", what, block)
        noise.append(torch.randn(BLOCK, width, generator=random))
        uniform.append(torch.rand(BLOCK, 2, generator=random))
    own = slice(start % BLOCK, start % BLOCK + number)
    return torch.cat(noise)[own], torch.cat(uniform)[own]


def read_references(objective: Measured, data: Pairs, index: Int[Tensor, "B"]) -> References | None:
    """Subjects and controls of these captions, if the objective reads them (its attribute `reads_references`) and the data hold them."""
    return data.references(index) if getattr(objective, "reads_references", False) else None


def placed(batch: PriorBatch, device: torch.device) -> PriorBatch:
    """The batch on a device, in fp32."""

    def to(x: Tensor) -> Tensor:
        return x.to(device, torch.float32)

    text = batch.text.to(device, torch.float32)
    ids = batch.candidate_ids.to(device)
    image, candidates, noise = to(batch.image), to(batch.candidates), to(batch.noise)
    references = None if batch.references is None else batch.references.to(device, torch.float32)
    return PriorBatch(text, image, candidates, ids, batch.first, noise, batch.uniform, references)


def unmeasured(validation: Pairs) -> str:
    """A sentence about the metrics that `validated` does not measure; empty if it measures all."""
    number, width = len(validation), validation.width
    if number > width:
        return ""
    return (
        f"The metric frechet is not measured: it needs more validation captions than the {width:,} dimensions of an "
        f"embedding, and there {'is' if number == 1 else 'are'} {number:,}."
    )


def validated(objective: Measured, data: Pairs, batch_size: int, seed: int, device: torch.device) -> dict[str, float]:
    """Means over the validation captions, with the same noise each time; every process computes the same.

    `cosine` of the predicted to the true image embedding, `cosine_text` to the caption's own text embedding and
    `cosine_other` to the next caption's (where there are two); `recall_at_1`, how often the true image is the nearest of all validation
    images, 4,096 at most (by cosine; in [0, 1]); `frechet`, where there are more captions than dimensions; the losses
    as in training.
    """
    sums: dict[str, float] = {}
    predictions, everything = [], torch.arange(len(data))
    images = data.images(everything[:RETRIEVED]).float()
    numbers = data.image_numbers(everything[:RETRIEVED])
    for index in everything.split(batch_size):
        noise, uniform = draws(seed, "validation", int(index[0]), len(index), data.width)
        candidates, ids = data.pooled(index), data.ids(index)
        text, references = data.text(index), read_references(objective, data, index)
        read = PriorBatch(text, data.images(index), candidates, ids, 0, noise, uniform, references)
        batch = placed(read, device)
        means = objective.losses(batch)
        predicted = objective.predict(batch).float()
        predictions.append(predicted.cpu())
        own = F.cosine_similarity(predicted, batch.candidates).mean()
        means |= {"cosine": F.cosine_similarity(predicted, batch.image).mean(), "cosine_text": own}
        if len(data) > 1:
            others = data.pooled((index + 1) % len(data)).to(predicted)
            means["cosine_other"] = F.cosine_similarity(predicted, others).mean()
        for name, mean in means.items():
            sums[name] = sums.get(name, 0.0) + mean.item() * len(index)
    found = {name: total / len(data) for name, total in sums.items()}
    predicted = torch.cat(predictions)
    nearest = (F.normalize(predicted[:RETRIEVED], dim=-1) @ F.normalize(images, dim=-1).T).argmax(-1)
    found["recall_at_1"] = (numbers[nearest] == numbers).float().mean().item()
    if len(data) > data.width:
        found["frechet"] = frechet_distance(predicted, data.images(everything).float())
    return found
