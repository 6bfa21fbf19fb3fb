"""An ECLIPSE prior, or its diffusion baseline, on pairs of the embedded world or on an embedding store."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import Field

from syzygy.clip.clip_model import Clip
from syzygy.core import artifacts
from syzygy.core.config import Config
from syzygy.core.contracts import TextEncoder, TextFeatures
from syzygy.core.errors import UserError
from syzygy.core.randomness import seed_of
from syzygy.core.wording import counted
from syzygy.data.store import EmbeddingStore
from syzygy.lab.world import scene_source
from syzygy.prior.diffusion_prior import DiffusionPrior, DiffusionPriorConfig
from syzygy.prior.eclipse import EclipsePrior, EclipsePriorConfig
from syzygy.prior.embedding_pairs import Pairs, PriorData, caption_ids, split
from syzygy.prior.held_out import split_digest
from syzygy.prior.next_steps import (
    ABOUT,
    ENVIRONMENT_FILE,
    EXAMPLE,
    NOT_MEASURED,
    WORLD_SOURCE,
    about_store,
    counts,
    example,
)
from syzygy.prior.objectives import DiffusionObjective, DiffusionTaskConfig, EclipseObjective, PriorTaskConfig
from syzygy.prior.prior_loading import load_eclipse
from syzygy.prior.prior_task import PriorTask
from syzygy.training.estimate import is_dry_run, preparing, rehearsed
from syzygy.training.fitting import AS_GIVEN, Fitting
from syzygy.training.loop import fit
from syzygy.training.parallel import World
from syzygy.training.progress import Reporter
from syzygy.training.run_records import Bar, RunResult, no_bar, provenance, reporter
from syzygy.training.schedule import LoopConfig

CHUNK = 512
PUBLISHED_SCALE = 100.0
"""Inverse temperature of the published CLIPs, for encoders that come without it (a prior's own text and image towers)."""


class PriorRun(Config):
    """Everything that makes a prior, but the store that it may be trained on."""

    num_layers: int = Field(default=3, gt=0)
    """Transformer blocks (the paper's prior has 10)."""
    num_attention_heads: int = Field(default=4, gt=0)
    """Attention heads (paper: 16)."""
    attention_head_dim: int = Field(default=32, gt=0)
    """Width of a head (paper: 32)."""
    embedding_dim: int | None = Field(default=None, gt=0)
    """Width of CLIP's joint space that the data must have (Karlo 768, Kandinsky 2.2 1280); null takes any."""
    scenes: int | None = Field(default=20_000, gt=0)
    """Pairs of the embedded world to train on, embedded once; null where a store is trained on."""
    validation_images: int = Field(default=512, gt=0)
    """Images for validation, with their captions: unseen ones of the world, or some of the store, which training then leaves out."""
    task: PriorTaskConfig | DiffusionTaskConfig
    """Loss and batch; which of the two decides which prior is trained."""
    loop: LoopConfig
    """Length and learning rate."""
    seed: int = 0
    """Weights, scenes, order and noise follow from it."""


@dataclass(frozen=True)
class Material:
    """What a prior is trained on, whoever embedded it."""

    training: Pairs
    validation: Pairs
    positions: int
    """Longest text of the encoder, in tokens."""
    logit_scale: float
    """The encoder's inverse temperature."""
    unconditional: Callable[[], TextFeatures]
    """Features of the empty text."""
    record: dict[str, Any]
    """Which data and which encoder: a run is continued on the same only."""
    about: dict[str, Any]
    """What a reader of the finished prior's record must know of the data: source, numbers."""
    example: str | None = None
    """A held-out caption."""


def embed(
    clip: Clip,
    seed: int,
    number: int,
    progress: Callable[[int], None] = lambda done: None,
    *,
    encoder: TextEncoder | None = None,
) -> PriorData:
    """Embed `number` pairs without held-out compositions in memory, with CLIP's two towers, or captions with another text encoder."""
    images, features, texts = [], [], []
    for start in range(0, number, CHUNK):
        found = scene_source.pairs(seed, start, min(CHUNK, number - start), unseen=False)
        images.append(clip.encode_image(scene_source.pictures(found, clip.image_size, clip.device)).cpu())
        captions = [p.caption.text for p in found]
        features.append((encoder or clip).encode_text(captions).to("cpu"))
        texts += captions
        progress(len(found))
    return PriorData(torch.cat(images), TextFeatures.cat(features), torch.arange(number), caption_ids(texts))


def embedded(run: PriorRun, clip: Clip, bar: Bar = no_bar) -> tuple[PriorData, PriorData]:
    """The run's training and validation pairs of the world.

    Raises:
        UserError: the run is made for a store.
    """
    if run.scenes is None:
        raise UserError("this preset trains on an embedding store: give --data STORE, or set scenes=20000.")
    scenes, unseen = rehearsed(run.scenes, run.task.batch_size), run.validation_images
    with bar("embedding", scenes + unseen) as progress, preparing(run.scenes + unseen, scenes + unseen):
        return (
            embed(clip, seed_of(run.seed, "prior data"), scenes, progress),
            embed(clip, seed_of(run.seed, "prior validation"), run.validation_images, progress),
        )


def train(
    run: PriorRun,
    clip: Clip,
    out: Path,
    world: World | torch.device,
    *,
    data: tuple[PriorData, PriorData] | None = None,
    init: str | Path | None = None,
    bar: Bar = no_bar,
    report: Reporter | None = None,
    fitting: Fitting = AS_GIVEN,
) -> RunResult:
    """Train (or resume) in `out` on the embedded world, beside the frozen CLIP; the finished prior is `out/prior`.

    `data` = (training, validation) spares embedding them again when several priors learn from the same pairs.
    """
    world = World(world) if isinstance(world, torch.device) else world
    clip = clip.to(world.device)
    training, validation = data or embedded(run, clip, bar)
    scale, empty = clip.logit_scale, lambda: clip.encode_text([""])
    about = {"source": WORLD_SOURCE, "world": True, **counts(training, validation)}
    material = Material(training, validation, clip.positions, scale, empty, {"clip": clip.fingerprint()}, about)
    return fit_prior(run, material, out, world, init=init, report=report, fitting=fitting)


def train_on_store(
    run: PriorRun,
    store: Path,
    out: Path,
    world: World,
    *,
    init: str | Path | None = None,
    report: Reporter | None = None,
    fitting: Fitting = AS_GIVEN,
) -> RunResult:
    """Train (or resume) in `out` on the embedding store in this folder; the finished prior is `out/prior`.

    `fitting` adapts the size of the validation and of the batch to the store, where the user did not choose them.

    Raises:
        UserError: the store's embeddings are not of the width that the preset is for; the run asks for scenes too; a diffusion
            prior needs the features of the empty text, and an older store has none.
    """
    if run.scenes is not None:
        raise UserError(f"scenes={run.scenes} has no effect on a store: leave it out, or set scenes=null.")
    opened = EmbeddingStore.open(store)
    _check_width(run, opened.width)
    if opened.different_images < 2:
        raise UserError(
            f"{store} holds {counted(opened.different_images, 'different picture')}: a prior needs at least two, one to train "
            "on and one to validate on."
        )
    run = fitting.validation(run, "validation_images", opened.different_images, str(store))
    training, validation = split(opened, run.validation_images)
    encoder = opened.encoder
    record = {"clip": encoder["fingerprint"], "data": opened.digest, "validation": split_digest(validation)}
    scale = encoder.get("logit_scale") or PUBLISHED_SCALE
    material = Material(
        training, validation, encoder["positions"], scale,
        # Only a diffusion prior asks for the empty text, and only older stores have none.
        lambda: opened.empty_text().padded(),
        record, about_store(opened, training, validation), example(opened, validation),
    )  # fmt: skip
    return fit_prior(run, material, out, world, init=init, report=report, fitting=fitting)


def fit_prior(
    run: PriorRun,
    material: Material,
    out: Path,
    world: World,
    *,
    init: str | Path | None = None,
    report: Reporter | None = None,
    fitting: Fitting = AS_GIVEN,
) -> RunResult:
    """Train (or resume) in `out`; the finished prior is `out/prior`, in the published layout, fp16.

    `init` is an ECLIPSE prior to go on from: a folder, a finished run, or a hub id (see `load_eclipse`).
    """
    _check_width(run, material.training.width)
    run = fitting.batch(run, len(material.training), world.size)
    if run.scenes is None or not is_dry_run():  # a dry run embeds some of the scenes only
        fitting.passes(len(material.training), len(material.validation), run.loop.steps * run.task.batch_size)
    objective = _objective(run, material, world.device, init)
    precision = torch.bfloat16 if run.task.precision == "bf16" or _fast(run, world.device) else None
    task = PriorTask(
        objective,
        material.training,
        material.validation,
        run.task.batch_size,
        run.seed,
        micro_batch=run.task.micro_batch,
        precision=precision,
        world=world,
    )
    if task.unmeasured:
        fitting.say(task.unmeasured)
    beside = material.record | ({} if init is None else {"init": artifacts.fingerprint(objective.prior.state_dict())})
    settings = run.model_dump(mode="json") | beside
    if world.first:
        artifacts.write_json(out / ENVIRONMENT_FILE, _environment(world) | {EXAMPLE: material.example})
    result = fit(
        task,
        run.loop,
        out,
        reporter=report or reporter("prior", run.task.batch_size),
        run=settings,
        world=world,
    )
    record = provenance("prior", run, result, result.steps * run.task.batch_size, result.metrics)
    record |= {ABOUT: material.about, NOT_MEASURED: task.unmeasured}
    if world.first:
        objective.prior.save_pretrained(out / "prior", record | beside, torch.float16)
    world.wait()
    return RunResult(out / "prior", result.metrics, result.history)


def _check_width(run: PriorRun, width: int) -> None:
    if run.embedding_dim not in (None, width):
        raise UserError(
            f"this preset is for embeddings of width {run.embedding_dim}; the data's are {width} wide. "
            "Embed the pairs with the CLIP of the generator, or choose its preset."
        )


def _fast(run: PriorRun, device: torch.device) -> bool:
    return run.task.precision == "auto" and device.type == "cuda"


def _environment(world: World) -> dict[str, Any]:
    """What a run's numbers depend on besides its settings."""
    threads, versions = torch.get_num_threads(), artifacts.versions()
    return {"machine": artifacts.machine(), "processes": world.size, "threads": threads, "versions": versions}


def _objective(
    run: PriorRun, material: Material, device: torch.device, init: str | Path | None
) -> EclipseObjective | DiffusionObjective:
    """The run's prior, with fresh weights or those of `init`, and what it is trained to do."""
    sizes: dict[str, Any] = {
        "embedding_dim": material.training.width,
        "num_layers": run.num_layers,
        "num_attention_heads": run.num_attention_heads,
        "attention_head_dim": run.attention_head_dim,
        "num_embeddings": material.positions,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(run.seed, "prior weights"))
        if isinstance(run.task, PriorTaskConfig):
            prior = _begun(EclipsePriorConfig(**sizes), init).to(device)
            return EclipseObjective(prior, run.task, logit_scale=material.logit_scale)
        if init is not None:
            raise UserError("--init continues an ECLIPSE prior; a diffusion baseline starts from nothing.")
        network = DiffusionPrior(DiffusionPriorConfig(**sizes)).to(device)
        return DiffusionObjective(network, run.task, material.unconditional())


def _begun(wanted: EclipsePriorConfig, init: str | Path | None) -> EclipsePrior:
    if init is None:
        return EclipsePrior(wanted)
    prior = load_eclipse(init)
    other = [n for n in type(wanted).model_fields if getattr(prior.config, n) != getattr(wanted, n)]
    if other:
        differ = ", ".join(f"{n} is {getattr(prior.config, n)} there and {getattr(wanted, n)} here" for n in other)
        raise UserError(f"the prior in {init} has other sizes: {differ}. Set them alike, or choose other data.")
    return prior
