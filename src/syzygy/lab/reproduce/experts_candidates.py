"""Experts (eDiff-I, arXiv 2211.01324, section 4) and the models of equal total samples to compare them with: settings, trainings, measures.

One of these models is a control that the paper lacks: it sees each noise level as often as the experts do together.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Literal

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor, nn

from syzygy.core import artifacts
from syzygy.core.config import Config
from syzygy.core.contracts import Conditioning, Sampling, image_condition, text_condition
from syzygy.core.errors import UserError
from syzygy.core.lora import Lora
from syzygy.core.randomness import generator, seed_of
from syzygy.decoder.autoencoder import Autoencoder
from syzygy.decoder.backbone import load_decoder
from syzygy.decoder.latent_decoder import LatentDecoder
from syzygy.decoder.network import Decoder
from syzygy.decoder.preconditioning import Preconditioned
from syzygy.decoder.training import DecoderBatch, DecoderTask
from syzygy.experts.expert_folders import TRUNK, load_experts, load_loras
from syzygy.experts.routing import Experts
from syzygy.experts.training import EXPERT, NodeTraining, node_trainings
from syzygy.generation.request import GenerationRequest
from syzygy.generation.text_to_image import TextToImage
from syzygy.lab.evaluate import composition
from syzygy.lab.evaluate.composition import REFERENCE
from syzygy.lab.evaluate.harness import Candidate, evaluation_prompts, tensors
from syzygy.lab.reproduce.experiment import CATEGORIES, ExperimentFolder, generate_and_score
from syzygy.lab.starter import experts_training
from syzygy.lab.starter.decoder_data import Encoding
from syzygy.lab.starter.experts_training import ExpertsRun
from syzygy.lab.world.prompts import Prompt
from syzygy.prior.embedding_statistics import frechet_distance
from syzygy.text_encoders.t5 import T5Text
from syzygy.training.precision import precision_on
from syzygy.training.run_records import Bar, no_bar

START, SHARED, REWEIGHTED, FULL, LORA = "start", "shared", "re-weighted", "full experts", "LoRA experts"
FORMS: dict[str, Literal["full", "lora"]] = {FULL: "full", LORA: "lora"}
WHOLE_NODE = "whole"
"""The name of the training of one model among those of a tree."""
TRAINED = (SHARED, REWEIGHTED, FULL, LORA)
LOSS_BATCH = 64
"""Images in a batch when losses are measured."""
FEATURE_BATCH = 256
TIMED_BATCH, TIMED = 32, 15
"""Images in a batch, and evaluations of each candidate, when times are measured."""


class ReproduceExpertsRun(Config):
    """Settings of the comparison."""

    experts: ExpertsRun
    """The tree, and the length and learning rate of each of its trainings. One model is trained for the sum of their steps."""
    lora_lr: float = Field(default=3e-4, gt=0, allow_inf_nan=False)
    """Peak learning rate of low-rank experts, which start from zero."""
    seeds: int = Field(default=2, ge=1)
    """Trainings of each candidate."""
    prompts: int = Field(default=50, gt=0)
    """Prompts of each category, seen and unseen each, or as many as exist."""
    steps: int = Field(default=25, gt=0)
    """Sampling steps."""
    guidance_scale: float = Field(default=2.0, ge=0, allow_inf_nan=False)
    """Guidance; 1 means off."""
    pictures: int = Field(default=1024, ge=LOSS_BATCH, multiple_of=LOSS_BATCH)
    """Unseen images on which the loss at each expert's noise levels is measured."""
    seed: int = 0
    """Seed of prompts, scenes and noise. The seeds of trainings are `experts.seed` plus their number."""

    @model_validator(mode="after")
    def _compares_both_forms(self) -> "ReproduceExpertsRun":
        if self.experts.form != "full":
            raise ValueError("both forms of experts are compared: leave experts.form at full")
        return self


@dataclass(frozen=True)
class Training:
    """One training of a candidate."""

    candidate: str
    seed: int

    @property
    def name(self) -> str:
        """The name of its files."""
        return f"{self.candidate.replace(' ', '-')}-seed{self.seed}"


def all_trainings(run: ReproduceExpertsRun) -> list[Training]:
    """Every training, seed by seed."""
    return [Training(candidate, seed) for seed in range(run.seeds) for candidate in TRAINED]


def settings(training: Training, run: ReproduceExpertsRun) -> ExpertsRun:
    """The settings of a training: for experts those of each node of the tree, for one model all steps of the tree at once.

    All trainings have the same shape: warm-up and half-life of the averaged weights are the same parts of their lengths, and the learning rate
    falls from the same peak to the same end.
    """
    own = run.experts.changed(seed=run.experts.seed + training.seed)
    if training.candidate == FULL:
        return own
    if training.candidate == LORA:
        return own.changed(form="lora", loop={"lr": run.lora_lr})
    times = len(node_trainings(run.experts))
    scaled = {name: times * getattr(own.loop, name) for name in ("steps", "warmup", "ema_half_life", "validate_every")}
    return own.changed(loop=scaled)


def mixture(trainings: Sequence[NodeTraining]) -> tuple[tuple[tuple[float, float], ...], tuple[float, ...]]:
    """How the samples of equally long trainings are distributed together: ranges of noise levels, and how often each is seen."""
    borders = sorted({border for one in trainings for share in one.shares for border in share})
    parts, weights = [], []
    for low, high in pairwise(borders):
        inside = [one for one in trainings if any(a <= low and high <= b for a, b in one.shares)]
        if inside:
            parts.append((low, high))
            weights.append(sum((high - low) / sum(b - a for a, b in one.shares) for one in inside) / len(trainings))
    return tuple(parts), tuple(weights)


def leaves(run: ReproduceExpertsRun) -> list[NodeTraining]:
    """The experts that are kept, from the lowest noise levels."""
    chosen = [one for one in node_trainings(run.experts) if one.name in run.experts.leaves]
    return sorted(chosen, key=lambda one: one.shares)


@dataclass(frozen=True)
class ExpertsContext:
    """What all candidates share."""

    run: ReproduceExpertsRun
    folder: ExperimentFolder
    model: TextToImage
    decoder: LatentDecoder
    autoencoder: Autoencoder
    prompts: list[Prompt]

    @classmethod
    def prepare(cls, run: ReproduceExpertsRun, folder: ExperimentFolder, model: TextToImage) -> "ExpertsContext":
        """Check the model and choose the prompts.

        Raises:
            UserError: the model's decoder is not a latent decoder of the embedded world.
        """
        decoder = model.pipeline.decoder
        if not isinstance(decoder, LatentDecoder) or not isinstance(decoder.autoencoder, Autoencoder):
            raise UserError(f"{model.name} has no decoder from which experts of the embedded world can be trained.")
        return cls(
            run, folder, model, decoder, decoder.autoencoder, evaluation_prompts(CATEGORIES, run.prompts, run.seed)
        )

    @property
    def root(self) -> Path:
        """The folder of the decoder from which all trainings start."""
        return self.model.folder / "decoder"

    @property
    def device(self) -> torch.device:
        """Where everything is computed."""
        return self.model.pipeline.device

    @property
    def t5(self) -> T5Text | None:
        """The T5 that the decoder reads, if it does."""
        found = self.decoder.encoders.get("t5")
        assert found is None or isinstance(found, T5Text)
        return found

    def place(self, training: Training) -> Path:
        """The folder of a training."""
        return self.folder.path / "trained" / training.name

    def weights(self, training: Training) -> Path:
        """The folder of a finished training's decoder, or of its ensemble."""
        where = self.place(training)
        return where / "experts" if training.candidate in FORMS else where / "nodes" / WHOLE_NODE / EXPERT

    def records(self, training: Training) -> list[Path]:
        """The provenance of each of its nodes, inner ones included."""
        return sorted((self.place(training) / "nodes").glob(f"*/{EXPERT}/{artifacts.PROVENANCE_FILE}"))

    def denoiser(self, candidate: str, folder: Path) -> nn.Module:
        """What samples, in evaluation mode."""
        if candidate in FORMS:
            return load_experts(folder, str(self.device))
        decoder = load_decoder(folder)
        return Preconditioned(decoder, decoder.config.sigma_data).to(self.device).eval()


def train(training: Training, context: ExpertsContext, say: Callable[[str], None]) -> Path:
    """The folder of the weights, which are trained unless they exist."""
    folder, run = context.weights(training), settings(training, context.run)
    if folder.is_dir():
        return folder
    shared = (context.root, context.model.clip, context.autoencoder, context.place(training), context.device)
    if training.candidate in FORMS:
        return experts_training.train(run, *shared, say, context.t5)
    uniform = training.candidate == SHARED
    parts, weights = (((0.0, 1.0),), None) if uniform else mixture(node_trainings(context.run.experts))
    return experts_training.train_expert(run, NodeTraining(WHOLE_NODE, None, parts, weights), *shared, context.t5)


def generate_images(context: ExpertsContext, folders: Mapping[Training, Path], bar: Bar = no_bar) -> None:
    """Score renders, and images of the start and of every training from the same noise, unless they exist."""
    if not context.folder.has_images(REFERENCE):
        renders = _renders(context)
        generate(context, REFERENCE, lambda rows: renders[list(rows)], bar)
    everyone = [(START, START, context.root), *((one.name, one.candidate, folder) for one, folder in folders.items())]
    for name, candidate, folder in everyone:
        if not context.folder.has_images(name):
            generate(context, name, _sampler(context, context.denoiser(candidate, folder)), bar)


def generate(context: ExpertsContext, name: str, images: Callable[[Sequence[int]], Tensor], bar: Bar) -> None:
    """Generate, score and keep an image of each prompt."""
    candidate = Candidate(name, len(context.prompts), images)
    with bar(f"generating {name}", candidate.number) as progress:
        scored = generate_and_score(candidate, context.prompts, context.model.reader(), progress)
    distances = {} if name == REFERENCE else _frechet(context, torch.stack([one.image for one in scored]) / 255)
    context.folder.keep_images(name, scored, context.prompts, frechet=distances)


def _sampler(context: ExpertsContext, denoiser: nn.Module) -> Callable[[Sequence[int]], Tensor]:
    """Generates images of some prompts with a denoiser."""
    run = context.run
    pipeline = replace(context.model.pipeline, decoder=replace(context.decoder, denoiser=denoiser))
    sampling = Sampling(steps=run.steps, guidance_scale=run.guidance_scale)

    def images(rows: Sequence[int]) -> Tensor:
        texts = [context.prompts[row].text for row in rows]
        noise = [generator(run.seed, "experts", text) for text in texts]
        return tensors(pipeline(GenerationRequest(texts, sampling=sampling, generator=noise)).images)

    return images


def _renders(context: ExpertsContext) -> Float[Tensor, "P 3 H W"]:
    return composition.reference_images(context.prompts, context.run.seed, context.model.clip.image_size)


@torch.no_grad()
def _frechet(context: ExpertsContext, images: Float[Tensor, "P 3 H W"]) -> dict[str, float]:
    """Distances to renders of the same prompts, in features of the scene classifier and of CLIP, if prompts outnumber the features."""
    renders, found = _renders(context), {}
    for name, features in (("reader", context.model.reader().features), ("CLIP", context.model.clip.encode_image)):
        ours, true = (
            torch.cat([features(part.to(context.device)).cpu() for part in some.split(FEATURE_BATCH)])
            for some in (images, renders)
        )
        if len(ours) > ours.shape[1]:
            found[name] = frechet_distance(ours, true)
    return found


def measure_losses(context: ExpertsContext, training: Training | None, folder: Path) -> None:
    """Write the loss of every unseen image at a noise level of each expert, in batches whose rows rise in σ; None: of the start.

    Images, noise, σ and dropped conditions are drawn as in training, and are the same for every candidate.
    """
    run, file = context.run, context.folder.tensors("losses", START if training is None else training.name)
    if file.is_file():
        return
    task, precision = run.experts.task, precision_on(context.device)
    encode = Encoding(context.model.clip, context.autoencoder, precision, context.t5, painted=task.painted > 0)
    batches = encode.stream(LOSS_BATCH, run.experts, seed_of(run.seed, "experts", "unseen"))
    current: list[DecoderBatch] = []
    tasks: dict[str, DecoderTask] = {}
    for leaf in leaves(run):
        decoder, lora = _serving(folder, leaf.name, None if training is None else training.candidate, context.device)
        config = task.changed(batch_size=LOSS_BATCH, draws=1, noise={"shares": leaf.shares, "weights": None})
        key = seed_of(run.seed, "experts", "loss", leaf.name)
        tasks[leaf.name] = DecoderTask(decoder, lambda _: current[0], [], config, key, precision, lora)
    found: dict[str, list[Tensor]] = {name: [] for name in tasks}
    with torch.no_grad():
        for step in range(run.pictures // LOSS_BATCH):
            current[:] = [batches(step)]
            for name, one in tasks.items():
                found[name].append(one.each(step).float().cpu())
    artifacts.write_tensors(file, {name: torch.cat(parts) for name, parts in found.items()})


def _serving(folder: Path, leaf: str, candidate: str | None, device: torch.device) -> tuple[Decoder, Lora | None]:
    """The network for a leaf's noise levels: the only one, or the expert."""
    if candidate == FULL:
        return load_decoder(folder / leaf).to(device), None
    if candidate == LORA:
        decoder = load_decoder(folder / TRUNK).requires_grad_(False)
        lora = load_loras(folder, [leaf], decoder.backbone)[leaf]
        return decoder.to(device), lora.to(device)
    return load_decoder(folder).to(device), None


def measure_cost(context: ExpertsContext, folders: Mapping[str, Path]) -> None:
    """Write the seconds of one evaluation of each candidate, measured in turn in one session so that they can be compared."""
    file, device = context.folder.path / "cost.json", context.device
    if file.is_file():
        return
    denoisers = {candidate: context.denoiser(candidate, folder) for candidate, folder in folders.items()}
    x = torch.randn((TIMED_BATCH, *context.autoencoder.latent_shape), generator=generator(0, "timed")).to(device)
    conditioning = _all_conditions(context)
    sigmas = [float(one) for one in context.decoder.schedule.sigmas(TIMED)[:-1]]
    times: dict[str, list[float]] = {candidate: [] for candidate in denoisers}
    with torch.inference_mode():
        for sigma in (sigmas[0], *sigmas):  # the first warms up
            for candidate, denoiser in denoisers.items():
                began = time.perf_counter()
                chosen = denoiser.at(sigma) if isinstance(denoiser, Experts) else denoiser
                chosen(x, torch.full((TIMED_BATCH,), sigma, device=device), conditioning)
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
                times[candidate].append(time.perf_counter() - began)
    found = {candidate: median(some[1:]) for candidate, some in times.items()}
    artifacts.write_json(file, {"batch": TIMED_BATCH, "evaluations": TIMED, "seconds": found})


def _all_conditions(context: ExpertsContext) -> Conditioning:
    """All conditions that the decoder reads, of one prompt."""
    texts = [context.prompts[0].text] * TIMED_BATCH
    features = context.model.clip.encode_text(texts)
    conditions = {"image": image_condition(features.pooled), "text": text_condition(features)}
    conditions |= {name: text_condition(one.encode_states(texts)) for name, one in context.decoder.encoders.items()}
    return Conditioning(conditions)
