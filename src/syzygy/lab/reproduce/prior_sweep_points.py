"""What the sweep of priors trains: settings, and the points whose trainings are learning curves and sweeps."""

from dataclasses import dataclass, replace
from typing import Any, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from syzygy.core.config import Config
from syzygy.core.errors import UserError
from syzygy.lab.evaluate.composition import IDENTITY, LINEAR, SHIFTED
from syzygy.lab.reproduce.eclipse_candidates import ECLIPSE, PROJECTION, RESIDUAL
from syzygy.prior.eclipse import EclipseTaskConfig
from syzygy.prior.linear_prior import RIDGE
from syzygy.prior.residual_prior import ResidualTaskConfig
from syzygy.prior.training import PriorRun

METHODS = (PROJECTION, ECLIPSE, RESIDUAL)
CONTROLS = (IDENTITY, SHIFTED, LINEAR)
SWEPT = {
    "contrast": (ECLIPSE, RESIDUAL), "penalty": (RESIDUAL,), "steps": (ECLIPSE, RESIDUAL), "temperature": (ECLIPSE, RESIDUAL),
    "muon_lr": (ECLIPSE, RESIDUAL), "heads": (ECLIPSE, RESIDUAL),
}  # fmt: skip
"""Setting → the methods that it is swept for."""


class PriorSweepRun(Config):
    """Settings of the sweep."""

    prior: PriorRun
    """The ECLIPSE prior; projection is the same with λ = 0. All priors have its size, steps, batch size and learning rate."""
    residual: ResidualTaskConfig
    """λ, temperature and penalty of the residual prior."""
    ridge: float = Field(default=RIDGE, gt=0)
    """Regularisation of the linear map in the learning curves."""
    pairs: tuple[PositiveInt, ...] = Field(default=(200, 1000, 5000, 20_000, 200_000), min_length=1)
    """Numbers of training pairs of the learning curves."""
    at: tuple[PositiveInt, ...] = (1000, 20_000)
    """Numbers of training pairs at which λ, penalty, steps, temperature, optimizer and size are swept, one at a time."""
    lambdas: tuple[NonNegativeFloat, ...] = (0.0, 0.05, 0.2, 0.8, 3.0)
    """Sweep of λ; ECLIPSE with 0 is projection."""
    penalties: tuple[NonNegativeFloat, ...] = (0.0, 0.25, 1.0, 4.0)
    """Sweep of the penalty on the residual prior's correction."""
    steps: tuple[PositiveInt, ...] = (60, 250, 1000)
    """Sweep of the length of the training; warm-up keeps its share."""
    temperatures: tuple[Literal["clip"] | PositiveFloat, ...] = ("clip", 0.2, 0.07, 0.01)
    """Sweep of the contrastive loss's temperature."""
    muon_lrs: tuple[NonNegativeFloat, ...] = (0.0, 1e-3, 3e-3, 1e-2)
    """Sweep of Muon's learning rate, on AdamW's scale; 0 is AdamW for all parameters."""
    heads: tuple[PositiveInt, ...] = (4, 8)
    """Sweep of the prior's size: attention heads of 32 numbers each, whose number is the network's width."""
    ridges: tuple[PositiveFloat, ...] = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
    """Sweep of the linear map's regularisation, at all numbers of pairs."""
    seeds: int = Field(default=5, ge=2)
    """Trainings of each point. Each has its own pairs as long as there are enough of them."""
    prompts: int = Field(default=200, gt=0)
    """Prompts of each category, seen and unseen each, or as many as exist."""
    unseen_pairs: int = Field(default=5000, gt=0)
    """Unseen pairs on which predicted embeddings are compared with true ones."""
    probe_scenes: int = Field(default=20_000, gt=0)
    """Scenes on which the linear probe is trained."""
    images_at: tuple[int, ...] = ()
    """Numbers of pairs, among those of the learning curves, at which the priors and controls also generate images. This, and every list of
    swept values, may be extended afterwards: finished trainings are kept."""
    image_seeds: int = Field(default=3, ge=1)
    """Trainings of each point that generate images."""
    decoder_steps: int = Field(default=10, gt=0)
    """Sampling steps of the decoder, without guidance."""
    seed: int = 0
    """Seed of pairs, prompts and noise."""

    def check(self) -> None:
        """
        Raises:
            UserError: settings that contradict each other.
        """
        task, residual = self.prior.task, self.residual
        eclipse = isinstance(task, EclipseTaskConfig) and not isinstance(task, ResidualTaskConfig)
        if not eclipse or (task.batch_size, task.precision) != (residual.batch_size, residual.precision):
            raise UserError(
                "the sweep has equal budgets: it needs an ECLIPSE and a residual prior of one batch size and precision."
            )
        if missing := sorted({*self.at, *self.images_at} - {*self.pairs}):
            raise UserError(f"at and images_at name {missing}, which are not among pairs={list(self.pairs)}: add them.")
        if min(self.pairs) < 2:
            raise UserError(f"a prior needs at least 2 training pairs; pairs={list(self.pairs)}.")

    def claimed(self) -> dict[str, Any]:
        """The settings that an experiment is continued with: all but its points and images, to which more may be added later.

        The largest number of pairs decides which pairs each training has.
        """
        points = {"pairs", "at", "lambdas", "penalties", "steps", "temperatures", "muon_lrs", "heads", "ridges"}
        fixed = self.model_dump(mode="json", exclude=points | {"images_at", "image_seeds"})
        return fixed | {"most_pairs": max(self.pairs)}


@dataclass(frozen=True)
class Point:
    """A setting that is trained several times."""

    method: str
    pairs: int
    contrast: float
    """λ."""
    penalty: float
    steps: int
    temperature: float | str
    heads: int
    """Attention heads of the network."""
    muon_lr: float = 0.0
    """Muon's learning rate; 0 is AdamW for all parameters."""

    @staticmethod
    def base(run: PriorSweepRun, method: str, pairs: int) -> "Point":
        """A point of the learning curves."""
        task, steps = run.residual if method == RESIDUAL else run.prior.task, run.prior.loop.steps
        heads = run.prior.num_attention_heads
        assert isinstance(task, EclipseTaskConfig)
        if method == PROJECTION:
            return Point(method, pairs, 0.0, 0.0, steps, "clip", heads)
        penalty = task.penalty if isinstance(task, ResidualTaskConfig) else 0.0
        return Point(method, pairs, task.lambda_contrastive, penalty, steps, task.temperature, heads)

    def changed(self, run: PriorSweepRun, key: str, value: float | str) -> "Point":
        """The point with another value of a setting; ECLIPSE with λ = 0 is the point of projection."""
        if (self.method, key, value) == (ECLIPSE, "contrast", 0):
            return Point.base(run, PROJECTION, self.pairs)
        return replace(self, **{key: value})

    def name(self, seed: int) -> str:
        """The name of a training's files."""
        values = (
            f"lambda{self.contrast:g}-penalty{self.penalty:g}-steps{self.steps}-tau{self.temperature}-heads{self.heads}"
        )
        values += f"-muon{self.muon_lr:g}" if self.muon_lr else ""
        return f"{self.method}-{self.pairs}-{values}-seed{seed}"

    def settings(self, run: PriorSweepRun, seed: int) -> PriorRun:
        """The training's settings."""
        task, loop = run.residual if self.method == RESIDUAL else run.prior.task, run.prior.loop
        changes: dict[str, Any] = {"lambda_contrastive": self.contrast, "temperature": self.temperature}
        changes |= {"penalty": self.penalty} if self.method == RESIDUAL else {}
        changes["batch_size"] = min(task.batch_size, self.pairs)  # as `syzygy train prior` does
        length: dict[str, Any] = {
            "steps": self.steps,
            "warmup": min(round(loop.warmup * self.steps / loop.steps), self.steps - 1),
            "validate_every": self.steps,
            "checkpoint_every": min(loop.checkpoint_every or self.steps, self.steps),
        }
        muon = {"optimizer": "muon", "muon_lr": self.muon_lr} if self.muon_lr else {}
        task = task.changed(**changes)
        return run.prior.changed(
            num_attention_heads=self.heads, scenes=self.pairs, seed=seed, task=task, loop=length | muon
        )


def curves(run: PriorSweepRun) -> dict[str, dict[int, Point]]:
    """Method → number of pairs → its point."""
    return {method: {pairs: Point.base(run, method, pairs) for pairs in run.pairs} for method in METHODS}


def sweeps(run: PriorSweepRun) -> dict[str, dict[int, dict[str, dict[float | str, Point]]]]:
    """Setting → number of pairs → method → value → its point."""
    values: dict[str, tuple[float | str, ...]] = {
        "contrast": run.lambdas, "penalty": run.penalties, "steps": run.steps, "temperature": run.temperatures,
        "muon_lr": run.muon_lrs, "heads": run.heads,
    }  # fmt: skip
    return {
        key: {
            pairs: {
                method: {value: Point.base(run, method, pairs).changed(run, key, value) for value in values[key]}
                for method in methods
            }
            for pairs in run.at
        }
        for key, methods in SWEPT.items()
    }


def all_points(run: PriorSweepRun) -> list[Point]:
    """Every point once, those of the learning curves first."""
    found = [point for points in curves(run).values() for point in points.values()]
    found += [
        point
        for by_pairs in sweeps(run).values()
        for methods in by_pairs.values()
        for values in methods.values()
        for point in values.values()
    ]
    return list(dict.fromkeys(found))


def control_name(control: str, pairs: int, seed: int, ridge: float | None = None) -> str:
    """The name of a control's files."""
    return f"{control.replace(', ', '-').replace(' ', '-')}-{pairs}{'' if ridge is None else f'-ridge{ridge:g}'}-seed{seed}"
