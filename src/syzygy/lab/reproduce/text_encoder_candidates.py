"""What the stages of an adapter (arXiv 2405.12914) and the language model's layers are compared by: settings, and the trainings.

Every training goes through `runs/adapter.py`, as `syzygy train adapter` does, each in a folder of its own.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from pydantic import Field, model_validator

from syzygy.core import artifacts
from syzygy.core.config import Config
from syzygy.core.errors import UserError
from syzygy.generation.text_to_image import TextToImage
from syzygy.lab.evaluate.text_encoder import TextEncoderConfig
from syzygy.lab.world.language import LANGUAGES
from syzygy.prior.eclipse import EclipsePrior
from syzygy.text_encoders import training as adapter_run
from syzygy.text_encoders.adapter import TextAdapter
from syzygy.text_encoders.adapter_folders import PART
from syzygy.text_encoders.llm import Llm, LlmRecipe
from syzygy.text_encoders.store_features import COMPUTE, load_llm
from syzygy.text_encoders.training import AlignRun, ImageRun, PreviousStage
from syzygy.training.parallel import World
from syzygy.training.run_records import Bar

ALIGN, IMAGE, QUALITY = "align", "image", "quality"
NUMBERS = {ALIGN: "1", IMAGE: "2", QUALITY: "3"}
MEAN, LAST = "mean", "last"
"""Features: the recipe of stage 1, as a rule the mean of the normalised layers; the last layer alone."""
LAST_LAYER = LlmRecipe(layers="last", normalise=False)
UNTRAINED = "untrained"
"""The stage, in the lineage, of an adapter that begins with pictures."""


class ReproduceTextRun(Config):
    """Everything that the comparison does."""

    align: AlignRun
    """Stage 1."""
    image: ImageRun
    """Stage 2; where it begins with an untrained adapter it is longer by the samples of stage 1."""
    untrained_lr: float = Field(default=1e-3, gt=0, allow_inf_nan=False)
    """Peak learning rate of stage 2 where it begins with an untrained adapter."""
    quality: ImageRun
    """Stage 3, on those of stage 2's scenes that its filter passes."""
    seeds: int = Field(default=2, ge=1)
    """Trainings of each candidate."""
    probe_scenes: int = Field(default=8000, gt=0)
    """Scenes that the probe learns on."""
    scoring: TextEncoderConfig
    """What is read, painted and scored, as by `syzygy evaluate text-encoder`."""

    @model_validator(mode="after")
    def _comparable(self) -> "ReproduceTextRun":
        pictures = (self.image, self.quality)
        if self.align.lengths is None or any(one.lengths is None or one.scenes is None for one in pictures):
            raise ValueError(
                "all stages learn on the embedded world: lengths of each, and scenes of image and quality, are needed"
            )
        if self.image.filter is not None or self.quality.filter is None:
            raise ValueError(
                "stage 3 alone chooses among pictures: quality.filter is needed, image.filter has no effect"
            )
        if any(one.languages != self.align.languages for one in pictures):
            raise ValueError("all stages learn the same languages: set those of align, image and quality alike")
        if (self.align.recipe.layers, self.align.recipe.normalise) == (LAST_LAYER.layers, LAST_LAYER.normalise):
            raise ValueError("the last layer is what align.recipe is compared with: choose others there")
        return self

    @property
    def languages(self) -> tuple[str, ...]:
        """Codes of those that are learned."""
        return self.align.languages or tuple(LANGUAGES)


@dataclass(frozen=True)
class Candidate:
    """Stages on the features of a language model."""

    stages: tuple[str, ...]
    features: str = MEAN

    @property
    def title(self) -> str:
        numbers = "+".join(NUMBERS[stage] for stage in self.stages)
        return numbers if self.features == MEAN else f"{numbers}, last layer"


WHOLE = (ALIGN, IMAGE, QUALITY)
ALIGNED = tuple(Candidate(WHOLE[:end]) for end in (1, 2, 3))
PICTURES_ALONE = tuple(Candidate(WHOLE[1:end]) for end in (2, 3))
LAST_LAYERS = tuple(Candidate(one.stages, LAST) for one in ALIGNED)
CANDIDATES = (*ALIGNED, *PICTURES_ALONE, *LAST_LAYERS)
AGAINST = (
    (ALIGNED[1], ALIGNED[0]),
    (ALIGNED[2], ALIGNED[1]),
    (ALIGNED[1], PICTURES_ALONE[0]),
    (ALIGNED[2], PICTURES_ALONE[1]),
    *zip(ALIGNED, LAST_LAYERS, strict=True),
)
"""Who is compared with whom: what a stage adds; what stage 1 is worth at equal samples; the mean of the layers against the last."""


@dataclass(frozen=True)
class Job:
    """One training: the last stage of a candidate."""

    candidate: Candidate
    seed: int

    @property
    def name(self) -> str:
        return f"{self.candidate.features}-{'+'.join(self.candidate.stages)}-seed{self.seed}"

    @property
    def stage(self) -> str:
        return self.candidate.stages[-1]

    @property
    def former(self) -> "Job | None":
        """The one that it goes on from, itself a candidate's."""
        stages = self.candidate.stages[:-1]
        return Job(Candidate(stages, self.candidate.features), self.seed) if stages else None


def jobs(run: ReproduceTextRun) -> list[Job]:
    """Every training, seed by seed, each after the one that it goes on from."""
    return [Job(candidate, seed) for seed in range(run.seeds) for candidate in CANDIDATES]


def recipe(run: ReproduceTextRun, features: str) -> LlmRecipe:
    """How the language model is read."""
    own = run.align.recipe
    if features == MEAN:
        return own
    return own.model_copy(update={"layers": LAST_LAYER.layers, "normalise": LAST_LAYER.normalise})


def settings(job: Job, run: ReproduceTextRun) -> AlignRun | ImageRun:
    """The job's training."""
    if job.stage == ALIGN:
        own = {"recipe": recipe(run, job.candidate.features), "seed": run.align.seed + job.seed}
        return run.align.model_copy(update=own)
    chosen = run.image if job.stage == IMAGE else run.quality
    loop = chosen.loop
    if job.former is None:
        loop = loop.model_copy(update={"lr": run.untrained_lr, **_longer(run)})
    return chosen.model_copy(update={"loop": loop, "seed": chosen.seed + job.seed})


def _longer(run: ReproduceTextRun) -> dict[str, float | int]:
    """Stage 2's times for the samples of stage 1 as well, rounded up to whole steps, as the same parts of its length."""
    loop, each = run.image.loop, run.image.task.batch_size
    steps = loop.steps + math.ceil(run.align.loop.steps * run.align.task.batch_size / each)
    times = steps / loop.steps
    whole = {name: round(times * getattr(loop, name)) for name in ("warmup", "validate_every", "checkpoint_every")}
    return {"steps": steps, "ema_half_life": times * loop.ema_half_life, **whole}


def samples(job: Job, run: ReproduceTextRun) -> dict[str, int]:
    """Captions that each stage sees, those of the stages before included."""
    own, before = settings(job, run), {} if job.former is None else samples(job.former, run)
    return before | {job.stage: own.loop.steps * own.task.batch_size}


@dataclass(frozen=True)
class Shop:
    """What all trainings share."""

    run: ReproduceTextRun
    model: TextToImage
    llm: str
    """Where the language model is."""
    out: Path

    @cached_property
    def llms(self) -> dict[str, Llm]:
        """The language model, read by each recipe."""
        dtype = COMPUTE[self.run.align.compute]
        return {name: load_llm(self.llm, recipe=recipe(self.run, name), dtype=dtype) for name in (MEAN, LAST)}

    def folder(self, job: Job) -> Path:
        """Where it is trained."""
        return self.out / "trained" / job.name

    def prior(self, job: Job | None) -> EclipsePrior:
        """The prior that a finished job's adapter speaks to, on the CPU: the model's own, before pictures are seen."""
        own = None if job is None else self.folder(job)
        source = self.model.folder if own is None or not (own / "prior").is_dir() else own
        return adapter_run.frozen_prior(source, self.model.clip.fingerprint())

    def former(self, job: Job) -> PreviousStage:
        """What its stage goes on from."""
        if job.former is not None:
            return PreviousStage.load(self.folder(job.former), job.stage)
        clip, llm = self.model.clip, self.llms[job.candidate.features]
        run = self.run.align.model_copy(update={"seed": self.run.align.seed + job.seed})
        untrained = adapter_run.fresh(run, llm.width, clip, adapter_run.captions_of(run, None, clip))
        record = {"stage": UNTRAINED, "clip": clip.fingerprint(), "languages": list(self.run.languages)}
        return PreviousStage(self.folder(job), untrained, record, llm.identity().to_config())


def language_model_of(model: TextToImage, llm: str | None) -> str:
    """Where it is: `llm`, or in the model's own folder.

    Raises:
        UserError: the model holds none.
    """
    if llm is not None:
        return llm
    if not (model.folder / "llm" / artifacts.CONFIG_FILE).is_file():
        raise UserError(f"{model.name} holds no language model: give --llm, such as a run of syzygy train lm.")
    return str(model.folder / "llm")


def train(job: Job, shop: Shop, bar: Bar) -> Path:
    """The job's run, trained unless it is finished."""
    out, own = shop.folder(job), settings(job, shop.run)
    if (out / PART / artifacts.CONFIG_FILE).is_file():
        return out
    model, llm, world = shop.model, shop.llms[job.candidate.features], World(shop.model.pipeline.device)
    if isinstance(own, AlignRun):
        prior = shop.prior(None) if own.task.prior else None
        adapter_run.align(own, llm, model.clip, prior, out, world)
        return out
    former, prior = shop.former(job), shop.prior(job.former)
    adapter_run.image(own, former, llm, model.clip, prior, out, world, stage=job.stage, bar=bar)
    return out


def trained(job: Job, shop: Shop) -> TextAdapter:
    """The finished job's adapter, as whoever loads it will find it."""
    return TextAdapter.from_pretrained(shop.folder(job) / PART)
