"""The stages of an adapter (arXiv 2405.12914) and the layers of its language model (arXiv 2506.08210): settings and trainings.

Each training runs as `syzygy train adapter` does, in its own folder. Shapes: N captions, D width of CLIP's joint space.
"""

import math
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor

from syzygy.core import artifacts
from syzygy.core.config import Config
from syzygy.core.contracts import StatesEncoder
from syzygy.core.errors import UserError
from syzygy.generation.pipeline import Pipeline
from syzygy.generation.replaced_text_encoder import with_text
from syzygy.generation.text_to_image import TextToImage
from syzygy.lab.evaluate.probe import Probe
from syzygy.lab.evaluate.text_encoder import (
    LENGTHS,
    TextEncoderConfig,
    caption_pairs,
    captions_in,
    long_prompt,
)
from syzygy.lab.evaluate.text_encoder_images import LanguageCase
from syzygy.lab.reproduce.experiment import CHUNK, ExperimentFolder, embedded_images, trained_probe
from syzygy.lab.starter.world_captions import world_images
from syzygy.lab.world import scene_source
from syzygy.lab.world.language import LANGUAGES
from syzygy.lab.world.prompts import Prompt
from syzygy.prior.eclipse import EclipsePrior
from syzygy.text_encoders import training as adapter_training
from syzygy.text_encoders.adapter import AdaptedText, TextAdapter
from syzygy.text_encoders.adapter_folders import PART
from syzygy.text_encoders.llm import COMPUTE, Llm, LlmRecipe, load_llm
from syzygy.text_encoders.training import AlignRun, ImageRun, PreviousStage
from syzygy.training.parallel import Ranks
from syzygy.training.run_records import Bar

ALIGN, IMAGE, QUALITY = "align", "image", "quality"
NUMBERS = {ALIGN: "1", IMAGE: "2", QUALITY: "3"}
MEAN, LAST = "mean", "last"
"""Features of the language model: those of stage 1's recipe, as a rule the mean of the normalised layers; the last layer alone."""
LAST_LAYER = LlmRecipe(layers="last", normalise=False)
UNTRAINED = "untrained"
"""The stage, in the lineage, of an adapter that was not aligned."""
TAIL, CHANGED = "tail", "tail, changed"
"""Long prompts whose decisive sentence comes last; the same with another's last sentence."""
KINDS = (*LENGTHS, TAIL)
SECONDS = {
    ALIGN: 0.0075,
    IMAGE: 0.012,
    QUALITY: 0.012,
    "scene": 0.006,
    "first": 0.02,
    "read": 0.008,
    "image of ten steps": 0.16,
}
"""For a caption of each stage, the embedding of a scene, the first encoding of a text by a language model, a text through an adapter, and an
image: seconds with one thread on one core of the two-core machine on which the starter was trained."""


class ReproduceTextRun(Config):
    """Settings of the comparison."""

    align: AlignRun
    """Stage 1."""
    image: ImageRun
    """Stage 2. Without stage 1 it is longer by the samples of stage 1."""
    untrained_lr: float = Field(default=1e-3, gt=0, allow_inf_nan=False)
    """Peak learning rate of stage 2 without stage 1."""
    quality: ImageRun
    """Stage 3, on those of stage 2's scenes that its filter selects."""
    seeds: int = Field(default=2, ge=1)
    """Trainings of each candidate."""
    probe_scenes: int = Field(default=8000, gt=0)
    """Scenes on which the linear probe is trained."""
    scoring: TextEncoderConfig
    """What is encoded, generated and scored, as by `syzygy evaluate text-encoder`."""

    @model_validator(mode="after")
    def _comparable(self) -> "ReproduceTextRun":
        stages = (self.image, self.quality)
        if self.align.lengths is None or any(one.lengths is None or one.scenes is None for one in stages):
            raise ValueError(
                "all stages are trained on the embedded world: set lengths of each, and scenes of image and quality"
            )
        if self.image.filter is not None or self.quality.filter is None:
            raise ValueError("only stage 3 selects images: set quality.filter, and leave out image.filter")
        if any(one.languages != self.align.languages for one in stages):
            raise ValueError("all stages learn the same languages: set those of align, image and quality alike")
        if (self.align.recipe.layers, self.align.recipe.normalise) == (LAST_LAYER.layers, LAST_LAYER.normalise):
            raise ValueError("align.recipe is compared with the last layer: choose other layers")
        return self

    @property
    def languages(self) -> tuple[str, ...]:
        """Codes of the languages that are learned."""
        return self.align.languages or tuple(LANGUAGES)


@dataclass(frozen=True)
class Candidate:
    """Stages of an adapter, on features of a language model."""

    stages: tuple[str, ...]
    features: str = MEAN

    @property
    def title(self) -> str:
        """Its name in results."""
        numbers = "+".join(NUMBERS[stage] for stage in self.stages)
        return numbers if self.features == MEAN else f"{numbers}, last layer"


ALL_STAGES = (ALIGN, IMAGE, QUALITY)
ALIGNED = tuple(Candidate(ALL_STAGES[:end]) for end in (1, 2, 3))
IMAGES_ALONE = tuple(Candidate(ALL_STAGES[1:end]) for end in (2, 3))
LAST_LAYERS = tuple(Candidate(one.stages, LAST) for one in ALIGNED)
CANDIDATES = (*ALIGNED, *IMAGES_ALONE, *LAST_LAYERS)
AGAINST = (
    (ALIGNED[1], ALIGNED[0]),
    (ALIGNED[2], ALIGNED[1]),
    (ALIGNED[1], IMAGES_ALONE[0]),
    (ALIGNED[2], IMAGES_ALONE[1]),
    *zip(ALIGNED, LAST_LAYERS, strict=True),
)
"""Pairs that are compared: what a stage adds; what stage 1 adds at equal samples; the mean of the layers against the last."""


@dataclass(frozen=True)
class Training:
    """One training of the last stage of a candidate."""

    candidate: Candidate
    seed: int

    @property
    def name(self) -> str:
        """The name of its files."""
        return f"{self.candidate.features}-{'+'.join(self.candidate.stages)}-seed{self.seed}"

    @property
    def stage(self) -> str:
        """The stage that is trained."""
        return self.candidate.stages[-1]

    @property
    def previous(self) -> "Training | None":
        """The training that it continues, which is also a candidate's."""
        stages = self.candidate.stages[:-1]
        return Training(Candidate(stages, self.candidate.features), self.seed) if stages else None


def all_trainings(run: ReproduceTextRun) -> list[Training]:
    """Every training, seed by seed, each after the one that it continues."""
    return [Training(candidate, seed) for seed in range(run.seeds) for candidate in CANDIDATES]


def recipe(run: ReproduceTextRun, features: str) -> LlmRecipe:
    """How the language model's states become features."""
    own = run.align.recipe
    if features == MEAN:
        return own
    return own.changed(layers=LAST_LAYER.layers, normalise=LAST_LAYER.normalise)


def settings(training: Training, run: ReproduceTextRun) -> AlignRun | ImageRun:
    """The settings of a training."""
    if training.stage == ALIGN:
        return run.align.changed(recipe=recipe(run, training.candidate.features), seed=run.align.seed + training.seed)
    chosen = run.image if training.stage == IMAGE else run.quality
    loop = {"lr": run.untrained_lr, **_longer(run)} if training.previous is None else {}
    return chosen.changed(loop=loop, seed=chosen.seed + training.seed)


def _longer(run: ReproduceTextRun) -> dict[str, float | int]:
    """The times of stage 2 including the samples of stage 1, rounded up to whole steps, as the same parts of its length."""
    loop, each = run.image.loop, run.image.task.batch_size
    steps = loop.steps + math.ceil(run.align.loop.steps * run.align.task.batch_size / each)
    times = steps / loop.steps
    whole = {name: round(times * getattr(loop, name)) for name in ("warmup", "validate_every", "checkpoint_every")}
    return {"steps": steps, "ema_half_life": times * loop.ema_half_life, **whole}


def samples(training: Training, run: ReproduceTextRun) -> dict[str, int]:
    """Captions that each stage sees, those of the stages before included."""
    own, before = settings(training, run), {} if training.previous is None else samples(training.previous, run)
    return before | {training.stage: own.loop.steps * own.task.batch_size}


def seconds(training: Training, run: ReproduceTextRun) -> float:
    """An estimate of the time of a training, from `SECONDS`."""
    own = samples(training, run)[training.stage] * SECONDS[training.stage]
    scenes = {ALIGN: 0, IMAGE: run.image.scenes or 0, QUALITY: run.quality.scenes or 0}
    return own + scenes[training.stage] * SECONDS["scene"]


def minutes(run: ReproduceTextRun, prompts: int) -> float:
    """An estimate of the time of the whole experiment, from `SECONDS`, if nothing is there yet."""
    trainings, scoring = all_trainings(run), run.scoring
    texts = scoring.captions * len(scoring.languages) * (len(KINDS) + 1)
    images = prompts * len(scoring.languages) * (len(trainings) + 1) * scoring.steps / 10
    total = sum(seconds(one, run) for one in trainings) + run.probe_scenes * SECONDS["scene"]
    total += texts * (2 * SECONDS["first"] + len(trainings) * SECONDS["read"]) + images * SECONDS["image of ten steps"]
    return total / 60


@dataclass(frozen=True)
class TextEncoderContext:
    """What all trainings and measurements share."""

    run: ReproduceTextRun
    folder: ExperimentFolder
    model: TextToImage
    llm: str
    """Where the language model is."""
    cases: list[LanguageCase]
    """The prompts of images."""

    @cached_property
    def llms(self) -> dict[str, Llm]:
        """The language model with each recipe."""
        align = self.run.align
        how: dict[str, Any] = {"dtype": COMPUTE[align.compute], "bits": align.bits}
        return {name: load_llm(self.llm, recipe=recipe(self.run, name), **how) for name in (MEAN, LAST)}

    @cached_property
    def pairs(self) -> list[scene_source.Pair]:
        """Scenes with the captions that are encoded."""
        return caption_pairs(self.run.scoring.captions, self.run.scoring.seed)

    @cached_property
    def texts(self) -> dict[tuple[str, str], list[str]]:
        """(language, kind) → a text of each pair."""
        scoring, found = self.run.scoring, dict[tuple[str, str], list[str]]()
        for code in scoring.languages:
            found |= {(code, length): captions_in(self.pairs, code, length, scoring.seed) for length in LENGTHS}
            tails = [
                long_prompt(one.caption.description, code, scoring.seed, "tail", i) for i, one in enumerate(self.pairs)
            ]
            found[code, TAIL] = [one.long for one in tails]
            others = [*tails[1:], tails[0]]
            found[code, CHANGED] = [a.long[: a.head] + b.sentence for a, b in zip(tails, others, strict=True)]
        return found

    @cached_property
    def pooled(self) -> Float[Tensor, "N D"]:
        """CLIP's pooled embeddings of the short English captions."""
        english = [one.caption.text for one in self.pairs]
        chunks = [english[i : i + CHUNK] for i in range(0, len(english), CHUNK)]
        return torch.cat([self.model.clip.encode_text(some).pooled.cpu() for some in chunks])

    @cached_property
    def images(self) -> Float[Tensor, "N D"]:
        """CLIP's embeddings of the pairs' images."""
        return embedded_images(self.model.clip, self.pairs)

    @cached_property
    def probe(self) -> Probe:
        """As in ECLIPSE's comparison."""
        return trained_probe(self.model.clip, self.run.probe_scenes, self.run.scoring.seed)

    @property
    def prompts(self) -> list[Prompt]:
        """The prompts of images, in English."""
        return [one.prompt for one in self.cases]

    def place(self, training: Training) -> Path:
        """The folder of a training."""
        return self.folder.path / "trained" / training.name

    def prior(self, training: Training | None) -> EclipsePrior:
        """The prior of a finished training's adapter, on the CPU: the model's own until stage 2 trains it."""
        own = None if training is None else self.place(training)
        source = self.model.folder if own is None or not (own / "prior").is_dir() else own
        return adapter_training.frozen_prior(source, self.model.clip.fingerprint())

    def previous(self, training: Training) -> PreviousStage:
        """What a training continues: an earlier stage, or an untrained adapter."""
        if training.previous is not None:
            return PreviousStage.load(self.place(training.previous), training.stage)
        clip, llm = self.model.clip, self.llms[training.candidate.features]
        run = self.run.align.changed(seed=self.run.align.seed + training.seed)
        untrained = adapter_training.untrained(run, llm.width, clip, adapter_training.captions_of(run, None, clip))
        record = {"stage": UNTRAINED, "clip": clip.fingerprint(), "languages": list(self.run.languages)}
        return PreviousStage(self.place(training), untrained, record, llm.identity().to_config(), training.stage)

    def path(self, training: Training, llm: StatesEncoder) -> Pipeline:
        """The pipeline with a finished training's adapter and prior."""
        path = self.model.pipeline
        adapter = TextAdapter.from_pretrained(self.place(training) / PART).to(path.device).requires_grad_(False)
        prior = self.prior(training).to(path.device).requires_grad_(False)
        return with_text(replace(path, prior=prior), AdaptedText(llm, adapter))

    def clip_path(self) -> Pipeline:
        """The pipeline with CLIP and the model's own prior."""
        return with_text(self.model.pipeline, self.model.clip)


def language_model_of(model: TextToImage, llm: str | None) -> str:
    """The place of the language model: `llm`, or in the model's own folder.

    Raises:
        UserError: the model has none.
    """
    if llm is not None:
        return llm
    if not (model.folder / "llm" / artifacts.CONFIG_FILE).is_file():
        raise UserError(f"{model.name} has no language model: set --llm, for example to a run of syzygy train lm.")
    return str(model.folder / "llm")


def train(training: Training, context: TextEncoderContext, bar: Bar) -> None:
    """Run a training, unless it is finished."""
    out, own, model = context.place(training), settings(training, context.run), context.model
    if (out / PART / artifacts.CONFIG_FILE).is_file():
        return
    llm, world = context.llms[training.candidate.features], Ranks(model.pipeline.device)
    if isinstance(own, AlignRun):
        prior = context.prior(None) if own.task.prior else None
        adapter_training.align(own, llm, model.clip, prior, out, world)
        return
    previous, prior = context.previous(training), context.prior(training.previous)
    data = world_images(own, previous, llm, model.clip, world.device, bar)
    adapter_training.image(own, previous, data, prior, out, world)
