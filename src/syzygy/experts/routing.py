"""Routing among expert denoisers (eDiff-I, arXiv 2211.01324, section 4): each noise level σ belongs to one expert.

Experts are leaves of a binary tree over the noise levels of training: at level l the distribution p(σ) is divided into 2^l intervals
of equal probability, from the lowest noise (index 0) to the highest. Boundaries are stored as σ, so that they do not depend on the
schedule, the number of steps or the sampler.
"""

import math
import re
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import pairwise
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from syzygy.core.contracts import Conditioning, Denoiser
from syzygy.core.errors import UserError
from syzygy.core.offload import SequentialOffload
from syzygy.decoder.samplers import sample

COMPLEMENT = "complement"
"""The expert of all noise levels that no other expert serves."""


@dataclass(frozen=True)
class Node:
    """A node of the tree, written `E3_0`: level 3, index 0."""

    level: int
    index: int

    @staticmethod
    def parse(name: str) -> "Node":
        """
        Raises:
            UserError: the name is not `E<level>_<index>` with an index below 2^level.
        """
        found = re.fullmatch(r"E(\d{1,2})_(\d+)", name)
        if found is None:
            raise UserError(
                f"expert {name!r} is not a node of the tree: write E<level>_<index>, such as E3_0, or {COMPLEMENT!r}."
            )
        node = Node(int(found[1]), int(found[2]))
        if node.index >= 2**node.level:
            raise UserError(f"expert {name!r}: level {node.level} has the indices 0 to {2**node.level - 1}.")
        return node

    @property
    def name(self) -> str:
        return f"E{self.level}_{self.index}"

    @property
    def share(self) -> tuple[float, float]:
        """The interval of training's noise levels that it serves, as exact probabilities from 0 (no noise) to 1."""
        return self.index / 2**self.level, (self.index + 1) / 2**self.level

    @property
    def parent(self) -> "Node":
        assert self.level, "the root has no parent"
        return Node(self.level - 1, self.index // 2)

    def lineage(self) -> "list[Node]":
        """The nodes from the root to this one; each is trained from the one before."""
        return [self] if self.level == 0 else [*self.parent.lineage(), self]


@dataclass(frozen=True)
class Stages:
    """The expert of each noise level: `names[i]` serves those from `edges[i - 1]` (or 0) up to, but without, `edges[i]` (or ∞).

    One expert may serve several stages, as the complement does if leaves lie between them.
    """

    names: tuple[str, ...]
    """The expert of each stage, from the lowest noise to the highest."""
    edges: tuple[float, ...]
    """The boundaries between stages, as σ in EDM's convention."""

    def __post_init__(self) -> None:
        if len(self.names) != len(self.edges) + 1:
            raise UserError(
                f"{len(self.names)} stages need {len(self.names) - 1} edges between them, got {len(self.edges)}."
            )
        if not all(0 < edge < math.inf for edge in self.edges) or any(a >= b for a, b in pairwise(self.edges)):
            raise UserError(f"edges of stages must rise and be positive and finite, got {list(self.edges)}.")
        if any(a == b for a, b in pairwise(self.names)):
            raise UserError(f"stages {list(self.names)}: neighbours with the same expert are one stage.")

    @property
    def experts(self) -> tuple[str, ...]:
        """The experts, each once, sorted by the lowest noise that they serve."""
        return tuple(dict.fromkeys(self.names))

    def place(self, sigma: float) -> int:
        """The index of the stage of a noise level."""
        return bisect_right(self.edges, sigma)

    def at(self, sigma: float) -> str:
        """The expert of one noise level."""
        return self.names[self.place(sigma)]

    def index(self, sigma: Float[Tensor, "B"]) -> Int[Tensor, "B"]:
        """The indices in `experts` of the experts of a batch, computed on its device."""
        place = torch.tensor([self.experts.index(name) for name in self.names], device=sigma.device)
        edges = torch.tensor(self.edges, dtype=torch.float64, device=sigma.device)
        return place[torch.bucketize(sigma.double(), edges, right=True)]

    @staticmethod
    def of(leaves: Sequence[str], quantile: Callable[[float], float]) -> "Stages":
        """The stages of the tree's leaves, and of the complement if they leave gaps.

        Args:
            leaves: names such as `E3_0`, and `complement` for everything else.
            quantile: probability in (0, 1) → the σ below which training's noise levels have this probability.

        Raises:
            UserError: leaves overlap; there are gaps without a complement, or a complement without gaps.
        """
        nodes = sorted((Node.parse(name) for name in leaves if name != COMPLEMENT), key=lambda node: node.share)
        cut: list[tuple[str, float]] = []  # names, and the probabilities at which their stages begin
        reached = 0.0
        for node in nodes:
            low, high = node.share
            if low < reached:
                raise UserError(f"expert {node.name} overlaps {cut[-1][0]}: leaves of the tree must lie side by side.")
            if low > reached:
                cut.append((COMPLEMENT, reached))
            cut.append((node.name, low))
            reached = high
        if reached < 1:
            cut.append((COMPLEMENT, reached))
        gaps = any(name == COMPLEMENT for name, _ in cut)
        if gaps and COMPLEMENT not in leaves:
            raise UserError(
                f"experts {list(leaves)} leave gaps in the noise levels: add {COMPLEMENT!r}, or the missing leaves."
            )
        if list(leaves).count(COMPLEMENT) > gaps:
            raise UserError(
                f"experts {list(leaves)} leave nothing for {COMPLEMENT!r} (named once at most): take it out."
            )
        return Stages(tuple(name for name, _ in cut), tuple(quantile(begin) for _, begin in cut[1:]))


class Experts(nn.Module):
    """Several denoisers as one `Denoiser`: each sample goes to the expert of its noise level.

    Samplers call `at(sigma)` once per evaluation instead, with a number on the host, so that they do not wait for the device and only one
    expert runs.
    """

    def __init__(self, stages: Stages, denoisers: Mapping[str, nn.Module] | SequentialOffload) -> None:
        """
        Args:
            denoisers: a denoiser for each expert; all in memory, or one at a time.
        """
        super().__init__()
        self.stages = stages
        self.denoisers = ensemble(stages, denoisers)

    def at(self, sigma: float) -> Denoiser:
        """The denoiser of this noise level."""
        return self.denoisers[self.stages.at(sigma)]

    def forward(
        self, x: Float[Tensor, "B C H W"], sigma: Float[Tensor, "B"], conditioning: Conditioning
    ) -> Float[Tensor, "B C H W"]:
        """Noise levels may differ within the batch, as in training; each expert gets its own samples."""
        chosen = self.stages.index(sigma)
        rows, parts = [], []
        for place, name in enumerate(self.stages.experts):
            own = (chosen == place).nonzero()[:, 0]
            if len(own):
                rows.append(own)
                parts.append(self.denoisers[name](x[own], sigma[own], conditioning[own]))
        return torch.cat(parts)[torch.cat(rows).argsort()]

    @property
    def weights(self) -> Mapping[str, Tensor]:
        """As `state_dict`, but each tensor is fetched at its access, so that experts are loaded one at a time."""
        return _Weights(self.denoisers)


def ensemble(stages: Stages, modules: Mapping[str, nn.Module] | SequentialOffload) -> nn.ModuleDict | SequentialOffload:
    """The experts of the stages, in their order.

    Raises:
        UserError: an expert is missing, or serves no stage.
    """
    if missing := [name for name in stages.experts if name not in tuple(modules)]:
        raise UserError(f"stages name the experts {', '.join(missing)}, which are missing.")
    if unused := [name for name in modules if name not in stages.experts]:
        raise UserError(f"experts {', '.join(unused)} serve no stage.")
    if isinstance(modules, SequentialOffload):
        return modules
    return nn.ModuleDict({name: modules[name] for name in stages.experts})


class _Weights(Mapping[str, Tensor]):
    """The tensors of several modules, under their names in an `Experts`."""

    def __init__(self, modules: nn.ModuleDict | SequentialOffload) -> None:
        self._modules = modules
        self._names = {f"denoisers.{name}.{key}": (name, key) for name in modules for key in modules[name].state_dict()}

    def __getitem__(self, name: str) -> Tensor:
        module, key = self._names[name]
        return reduce(getattr, key.split("."), self._modules[module])

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


class Evaluation(NamedTuple):
    """One call of the denoiser during sampling."""

    step: int
    """Counted from 0."""
    sigma: float
    expert: str


def plan(stages: Stages, sigmas: Float[Tensor, "levels"], sampler: str) -> list[Evaluation]:
    """The expert of each evaluation of a schedule; second-order samplers also evaluate a step's end.

    The sampler itself is run on a single number, so the plan is right for every sampler.
    """
    evaluations: list[tuple[int, float]] = []
    step = 0

    def record(x: Tensor, sigma: Tensor, conditioning: Conditioning) -> Tensor:
        evaluations.append((step, float(sigma[0])))
        return x

    def next_step(_: object) -> None:
        nonlocal step
        step += 1

    nothing = torch.zeros(1, 1, 1, 1, dtype=torch.float64)
    sample(record, nothing, sigmas, Conditioning({}), sampler=sampler, on_step=next_step)
    return [Evaluation(step, sigma, stages.at(sigma)) for step, sigma in evaluations]
