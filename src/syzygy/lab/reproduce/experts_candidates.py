"""What experts are compared with: one model of equal total samples, and the control that eDiff-I (arXiv 2211.01324) lacks, one model that
sees each noise level as often as the experts together do. Here are the settings and the trainings.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import nn

from syzygy.core import artifacts
from syzygy.core.config import Config
from syzygy.core.errors import UserError
from syzygy.core.lora import Lora
from syzygy.decoder.autoencoder import Autoencoder
from syzygy.decoder.backbone import load_decoder
from syzygy.decoder.latent_decoder import LatentDecoder
from syzygy.decoder.network import Decoder
from syzygy.decoder.preconditioning import Preconditioned
from syzygy.experts.expert_folders import TRUNK, build_lora, load_experts, load_lora
from syzygy.experts.training import GROWN, Growth, growth
from syzygy.generation.text_to_image import TextToImage
from syzygy.lab.evaluate.harness import evaluation_prompts
from syzygy.lab.reproduce.score_files import CATEGORIES
from syzygy.lab.starter import experts_training as experts_run
from syzygy.lab.starter.experts_training import ExpertsRun
from syzygy.lab.world.prompts import Prompt
from syzygy.text_encoders.t5 import T5Text

START, SHARED, REWEIGHTED, FULL, LORA = "start", "shared", "re-weighted", "full experts", "LoRA experts"
FORMS: dict[str, Literal["full", "lora"]] = {FULL: "full", LORA: "lora"}
WHOLE_NODE = "whole"
"""What the training of one model is called among those of a tree."""
TRAINED = (SHARED, REWEIGHTED, FULL, LORA)
LOSS_BATCH = 64
"""Pictures at a time, when losses are measured."""


class ReproduceExpertsRun(Config):
    """Everything that the comparison does."""

    experts: ExpertsRun
    """The tree, and the length and learning rate of each of its trainings. One model is trained for all of its steps together."""
    lora_lr: float = Field(default=3e-4, gt=0, allow_inf_nan=False)
    """Peak learning rate of low-rank experts, which start from nothing."""
    seeds: int = Field(default=2, ge=1)
    """Trainings of each candidate."""
    prompts: int = Field(default=50, gt=0)
    """Prompts a category, seen and held-out each, or as many as there are."""
    steps: int = Field(default=25, gt=0)
    """Sampling steps."""
    guidance_scale: float = Field(default=2.0, ge=0, allow_inf_nan=False)
    """Guidance; 1 means off."""
    pictures: int = Field(default=1024, ge=LOSS_BATCH, multiple_of=LOSS_BATCH)
    """Unseen pictures on which the loss at each expert's noise levels is measured."""
    seed: int = 0
    """Prompts, scenes and noise follow from it; trainings from `experts.seed` and their number."""

    @model_validator(mode="after")
    def _forms_are_both(self) -> "ReproduceExpertsRun":
        if self.experts.form != "full":
            raise ValueError("both forms of experts are compared: leave experts.form at full")
        return self


@dataclass(frozen=True)
class Job:
    """One training of one candidate."""

    candidate: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.candidate.replace(' ', '-')}-seed{self.seed}"


def jobs(run: ReproduceExpertsRun) -> list[Job]:
    """Every training, seed by seed."""
    return [Job(candidate, seed) for seed in range(run.seeds) for candidate in TRAINED]


def settings(job: Job, run: ReproduceExpertsRun) -> ExpertsRun:
    """The job's training: one of the tree's nodes each for experts, all steps of the tree at a stretch for one model.

    Every training has the same shape: warm-up and half-life of the averaged weights are the same parts of its length, and the learning
    rate falls from the same peak to the same end.
    """
    own = run.experts.model_copy(update={"seed": run.experts.seed + job.seed})
    if job.candidate == FULL:
        return own
    if job.candidate == LORA:
        return own.model_copy(update={"form": "lora", "loop": own.loop.model_copy(update={"lr": run.lora_lr})})
    times = len(growth(run.experts))
    scaled = {name: times * getattr(own.loop, name) for name in ("steps", "warmup", "ema_half_life", "validate_every")}
    return own.model_copy(update={"loop": own.loop.model_copy(update=scaled)})


def mixture(trainings: Sequence[Growth]) -> tuple[tuple[tuple[float, float], ...], tuple[float, ...]]:
    """Where all samples of equally long trainings fall together: parts of the noise levels, and how often each is seen."""
    borders = sorted({border for one in trainings for share in one.shares for border in share})
    parts, weights = [], []
    for low, high in pairwise(borders):
        inside = [one for one in trainings if any(a <= low and high <= b for a, b in one.shares)]
        if inside:
            parts.append((low, high))
            weights.append(sum((high - low) / sum(b - a for a, b in one.shares) for one in inside) / len(trainings))
    return tuple(parts), tuple(weights)


@dataclass(frozen=True)
class Bench:
    """What all candidates share."""

    run: ReproduceExpertsRun
    model: TextToImage
    painter: LatentDecoder
    autoencoder: Autoencoder
    wanted: list[Prompt]
    out: Path

    @property
    def root(self) -> Path:
        """The decoder that everything starts from."""
        return self.model.folder / "decoder"

    @property
    def t5(self) -> T5Text | None:
        """The T5 that it reads, if it does."""
        found = self.painter.encoders.get("t5")
        assert found is None or isinstance(found, T5Text)
        return found

    def folder(self, job: Job) -> Path:
        """Where a training's weights are once it is finished: of one decoder, or of an ensemble."""
        where = self.out / "trained" / job.name
        return where / "experts" if job.candidate in FORMS else where / "nodes" / WHOLE_NODE / GROWN

    def records(self, job: Job) -> list[Path]:
        """How each of its trainings was, those of inner nodes included."""
        return sorted((self.out / "trained" / job.name / "nodes").glob(f"*/{GROWN}/{artifacts.PROVENANCE_FILE}"))


def prepare(run: ReproduceExpertsRun, model: TextToImage, out: Path) -> Bench:
    """Check the model and choose the prompts.

    Raises:
        UserError: the model's decoder is none of ours.
    """
    painter = model.pipeline.decoder
    if not isinstance(painter, LatentDecoder) or not isinstance(painter.autoencoder, Autoencoder):
        raise UserError(f"{model.name} has no decoder that experts of the embedded world can be grown from.")
    return Bench(run, model, painter, painter.autoencoder, evaluation_prompts(CATEGORIES, run.prompts, run.seed), out)


def train(job: Job, bench: Bench, say: Callable[[str], None]) -> Path:
    """The job's weights, trained unless they are there."""
    where, folder, run = bench.out / "trained" / job.name, bench.folder(job), settings(job, bench.run)
    clip, device = bench.model.clip, bench.model.pipeline.device
    if folder.is_dir():
        return folder
    if job.candidate in FORMS:
        return experts_run.train(run, bench.root, clip, bench.autoencoder, where, device, say, bench.t5)
    parts, weights = (((0.0, 1.0),), None) if job.candidate == SHARED else mixture(growth(bench.run.experts))
    one = Growth(WHOLE_NODE, None, parts, weights)
    return experts_run.grow(run, one, bench.root, clip, bench.autoencoder, where, device, bench.t5)


def denoiser_of(bench: Bench, candidate: str, folder: Path) -> nn.Module:
    """What samples, in evaluation mode."""
    device = bench.model.pipeline.device
    if candidate in FORMS:
        return load_experts(folder, str(device))
    decoder = load_decoder(folder)
    return Preconditioned(decoder, decoder.config.sigma_data).to(device).eval()


def leaves(run: ReproduceExpertsRun) -> list[Growth]:
    """The experts that are kept, with what each serves, from the least noise."""
    chosen = [one for one in growth(run.experts) if one.name in run.experts.leaves]
    return sorted(chosen, key=lambda one: one.shares)


def serving(folder: Path, leaf: str, candidate: str | None, device: torch.device) -> tuple[Decoder, Lora | None]:
    """The network that serves a leaf's noise levels: the one there is, or the expert."""
    if candidate == FULL:
        return load_decoder(folder / leaf).to(device), None
    if candidate == LORA:
        decoder = load_decoder(folder / TRUNK).requires_grad_(False)
        config = artifacts.read_json(folder / leaf / artifacts.CONFIG_FILE)
        lora = build_lora(decoder, rank=int(config["rank"]), layers=str(config["layers"]), seed=0)
        load_lora(lora, folder / leaf)
        return decoder.to(device), lora.to(device)
    return load_decoder(folder).to(device), None
