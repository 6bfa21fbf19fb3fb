"""ECLIPSE's comparison at small scale (arXiv 2312.04655, tables 1–2, figures 2 and 5): the priors, their budgets, how they are scored.

Several trainings of each method, and controls that the paper lacks.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, NonNegativeFloat, PositiveInt

from syzygy.core import artifacts
from syzygy.core.config import Config
from syzygy.core.contracts import Prior
from syzygy.core.errors import UserError
from syzygy.generation.text_to_image import TextToImage
from syzygy.lab.evaluate.composition import (
    LINEAR,
    REFERENCE,
    CompositionConfig,
    control_priors,
)
from syzygy.lab.reproduce.embedding_scores import EmbeddingScorer, generate_once
from syzygy.lab.reproduce.experiment import ExperimentFolder
from syzygy.lab.reproduce.variety import variety
from syzygy.lab.starter import prior_training
from syzygy.lab.world.prompts import Prompt
from syzygy.prior.diffusion_prior import DiffusionTaskConfig, SampledPrior
from syzygy.prior.eclipse import EclipseTaskConfig
from syzygy.prior.embedding_pairs import PriorData
from syzygy.prior.linear_prior import RIDGE, LinearPrior
from syzygy.prior.prior_loading import OnePassPrior, load_prior
from syzygy.prior.residual_prior import ResidualTaskConfig
from syzygy.prior.training import PriorRun
from syzygy.training.run_records import Bar, no_bar, reporter

PROJECTION, DIFFUSION, ECLIPSE, FLOW, RESIDUAL = "projection", "diffusion", "ECLIPSE", "flow matching", "residual"
PAPER = (PROJECTION, DIFFUSION, ECLIPSE)
"""The methods of the paper, which are swept over the share of the pairs; `prior_sweep` has the residual prior's learning curves."""
METHODS = (*PAPER, FLOW, RESIDUAL)


class ReproduceRun(Config):
    """Settings of the comparison."""

    prior: PriorRun
    """The ECLIPSE prior. The other methods have its size, pairs, steps, batch size and learning rate."""
    diffusion: DiffusionTaskConfig
    """Dropout and sampling of the diffusion baseline."""
    flow: DiffusionTaskConfig
    """Dropout and sampling of the flow-matching baseline."""
    residual: ResidualTaskConfig
    """λ and penalty of the residual prior."""
    ridge: float = Field(default=RIDGE, gt=0)
    """Regularisation of the linear map."""
    seeds: int = Field(default=5, ge=2)
    """Trainings of each method, which are scored on embeddings."""
    painted_seeds: int = Field(default=3, ge=1)
    """Trainings of each method that also generate images."""
    prompts: int = Field(default=200, gt=0)
    """Prompts of each category, seen and unseen each, or as many as exist."""
    steps: int = Field(default=10, gt=0)
    """Sampling steps of the decoder, without guidance."""
    varied_prompts: int = Field(default=20, gt=0)
    """Prompts with one object, and as many with two, of which several images are compared with each other."""
    variations: int = Field(default=6, ge=2)
    """Images of each of them."""
    pairs: int = Field(default=5000, gt=0)
    """Unseen pairs on which predicted embeddings are compared with true ones."""
    probe_scenes: int = Field(default=20_000, gt=0)
    """Scenes on which the linear probe is trained."""
    lambdas: tuple[NonNegativeFloat, ...] = (0.0, 0.05, 0.1, 0.2, 0.4, 0.8)
    """Sweep of λ; 0 is projection."""
    fractions: tuple[Annotated[float, Field(gt=0, le=1)], ...] = (0.01, 0.03, 0.1, 0.3, 1.0)
    """Sweep of the share of the training pairs, for the methods of the paper."""
    sampling_steps: tuple[PositiveInt, ...] = (2, 5, 10, 25, 50)
    """Sweep of the baseline's sampling steps."""
    etas: tuple[Annotated[float, Field(ge=0, le=1)], ...] = (0.0, 0.5, 1.0)
    """Sweep of the noise that the baseline adds at each step."""
    sweep_seeds: int = Field(default=2, ge=1)
    """Trainings for each point of a sweep."""
    seed: int = 0
    """Seed of prompts, scenes and noise."""

    @property
    def contrast(self) -> float:
        """The λ of the ECLIPSE prior.

        Raises:
            UserError: the methods would not have equal budgets, or not be what they are called; sweeps with more trainings than there are.
        """
        task, others = self.prior.task, (self.diffusion, self.flow, self.residual)
        budgets = {(one.batch_size, one.precision) for one in (task, *others)}
        if not isinstance(task, EclipseTaskConfig) or isinstance(task, ResidualTaskConfig) or len(budgets) > 1:
            raise UserError(
                "the comparison has equal budgets: it needs an ECLIPSE prior, a residual prior and baselines of one batch size and precision."
            )
        if (self.diffusion.schedule, self.flow.schedule) != ("linear", "flow"):
            raise UserError("diffusion.schedule must be linear and flow.schedule flow: rows are named after them.")
        if self.sweep_seeds > self.seeds:
            raise UserError(
                f"sweep_seeds={self.sweep_seeds} is more than seeds={self.seeds}: sweeps use trainings of the comparison. Give at most as many."
            )
        return task.lambda_contrastive


@dataclass(frozen=True)
class Training:
    """A prior to train."""

    method: str
    seed: int
    contrast: float = 0.2
    fraction: float = 1.0

    @property
    def name(self) -> str:
        """The name of its files."""
        extra = "" if self.method != ECLIPSE else f"-lambda{self.contrast:g}"
        return f"{self.method.replace(' ', '-')}{extra}-data{self.fraction:g}-seed{self.seed}"

    def settings(self, run: ReproduceRun) -> PriorRun:
        """The settings with this seed and objective, everything else equal for all."""
        task = run.prior.task
        assert isinstance(task, EclipseTaskConfig)
        contrast = 0.0 if self.method == PROJECTION else self.contrast
        others = {DIFFUSION: run.diffusion, FLOW: run.flow, RESIDUAL: run.residual}
        chosen = others.get(self.method) or task.changed(lambda_contrastive=contrast)
        return run.prior.changed(task=chosen, seed=self.seed)


def all_trainings(run: ReproduceRun) -> list[Training]:
    """Every training of the comparison and its sweeps, each once, those of the comparison first."""
    contrast = run.contrast
    found = [Training(method, seed, contrast) for seed in range(run.seeds) for method in METHODS]
    for seed in range(run.sweep_seeds):
        found += [Training(ECLIPSE, seed, value) for value in run.lambdas if value > 0]
        found += [Training(method, seed, contrast, fraction) for fraction in run.fractions for method in PAPER]
    return list(dict.fromkeys(found))


def image_trainings(run: ReproduceRun, method: str) -> dict[str, Training]:
    """Name of the images → the training that generates them."""
    seeds = range(min(run.painted_seeds, run.seeds))
    return {f"{method}-seed{seed}": Training(method, seed, run.contrast) for seed in seeds}


@dataclass(frozen=True)
class EclipseContext:
    """What all methods share."""

    run: ReproduceRun
    folder: ExperimentFolder
    model: TextToImage
    data: PriorData
    validation: PriorData
    scorer: EmbeddingScorer

    @classmethod
    def prepare(
        cls, run: ReproduceRun, folder: ExperimentFolder, model: TextToImage, bar: Bar = no_bar
    ) -> "EclipseContext":
        """Embed the pairs, train the probe, choose the prompts."""
        data, validation = prior_training.embedded(run.prior, model.clip, bar)
        sizes = {"prompts": run.prompts, "pairs": run.pairs, "probe_scenes": run.probe_scenes}
        return cls(run, folder, model, data, validation, EmbeddingScorer.prepare(model.clip, **sizes, seed=run.seed))

    def controls(self) -> dict[str, Prior]:
        """Priors without steps: text identity, as it is and shifted, and the linear map on the training pairs."""
        linear = LinearPrior.fit(self.data, self.run.ridge).to(self.model.pipeline.device)
        return control_priors(self.model, self.run.seed) | {LINEAR: linear}

    def prior(self, training: Training) -> OnePassPrior | SampledPrior:
        """A trained prior."""
        return load_prior(self.place(training) / "prior", self.model.clip, str(self.model.pipeline.device))

    def place(self, training: Training) -> Path:
        """The folder of a training."""
        return self.folder.path / "priors" / training.name


def train_and_score(training: Training, context: EclipseContext) -> None:
    """Train a prior, or continue its training, and score its embeddings."""
    run, where = context.run, context.place(training)
    number = max(round(training.fraction * len(context.data)), 2)

    def measure() -> dict[str, float]:
        live = reporter(training.name, run.prior.task.batch_size)
        data = (context.data.first(number), context.validation)
        clip, device = context.model.clip, context.model.pipeline.device
        prior_training.train(training.settings(run), clip, where, device, data=data, report=live)
        prior = context.prior(training)
        network = prior.network if isinstance(prior, SampledPrior) else prior
        return {
            "parameters": sum(p.numel() for p in network.parameters()),
            "samples": run.prior.loop.steps * run.prior.task.batch_size,
            "pairs": number,
            "seconds": artifacts.read_json(where / "prior" / artifacts.PROVENANCE_FILE)["seconds"],
            "evaluations": prior.evaluations if isinstance(prior, SampledPrior) else 1,
        } | context.scorer.scores(prior)

    context.folder.score_once(training.name, measure, of=where / "prior")


def score_controls(context: EclipseContext) -> None:
    """The same scores for the controls, and the probe's for the reference."""
    run, folder = context.run, context.folder
    for name, prior in context.controls().items():
        folder.score_once(name, lambda prior=prior: context.scorer.scores(prior))

    folder.score_once(REFERENCE, lambda: context.scorer.of_reference(context.model, run.seed))


def sampling_name(key: str, value: float, seed: int) -> str:
    """The name of the scores of a trained baseline with another sampling."""
    return f"sampling-{key}{value:g}-seed{seed}"


def sweep_sampling(context: EclipseContext) -> None:
    """Score the trained baselines with other numbers of sampling steps and other amounts of added noise."""
    run = context.run
    for seed in range(run.sweep_seeds):
        prior = context.prior(Training(DIFFUSION, seed, run.contrast))
        assert isinstance(prior, SampledPrior)
        for key, values in (("steps", run.sampling_steps), ("eta", run.etas)):
            for value in values:
                other = replace(prior, sampling=prior.sampling.model_copy(update={key: value}))
                context.folder.score_once(
                    sampling_name(key, value, seed), lambda other=other: context.scorer.scores(other)
                )


def generate_images(context: EclipseContext, bar: Bar = no_bar) -> None:
    """Decode the first trainings of each method and the controls: an image of each prompt, and several of a few."""
    run, model = context.run, context.model
    config = CompositionConfig(prompts=run.prompts, steps=run.steps, guidance_scale=1.0, seed=run.seed)
    several = varied_prompts(run, context.scorer.prompts)
    for name, prior in _to_decode(context):

        def measure(prior: Prior | None, name: str = name) -> dict[str, Any]:
            with bar(f"variety of {name}", len(several) * run.variations) as progress:
                return {"variety": variety(model, prior, several, run.variations, run.steps, run.seed, progress)}

        generate_once(context.folder, model, context.scorer.prompts, name, prior, config, bar, measure=measure)


def varied_prompts(run: ReproduceRun, prompts: Sequence[Prompt]) -> list[Prompt]:
    """The prompts of which several images are compared: of one and of two objects, of seen compositions."""
    kinds = ([p for p in prompts if p.category == kind and not p.unseen] for kind in ("single", "colour"))
    return [prompt for kind in kinds for prompt in kind[: run.varied_prompts]]


def _to_decode(context: EclipseContext) -> Iterator[tuple[str, Callable[[], Prior] | None]]:
    """Names of images and the functions that load their prior (None for the reference)."""
    yield REFERENCE, None
    for name, prior in context.controls().items():
        yield name, lambda prior=prior: prior
    by_method = [image_trainings(context.run, method).items() for method in METHODS]
    for same_seed in zip(*by_method, strict=True):
        for name, training in same_seed:
            yield name, lambda training=training: context.prior(training)
