"""An ECLIPSE prior beside a frozen CLIP, on pairs of the embedded world without its held-out compositions."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from pydantic import Field

from syzygy.config import Config
from syzygy.hub.clip import Clip
from syzygy.prior.diffusion import DiffusionPrior, DiffusionPriorConfig
from syzygy.prior.model import EclipsePrior, EclipsePriorConfig
from syzygy.rng import seed_of
from syzygy.runs.common import Bar, RunResult, no_bar, provenance, reporter
from syzygy.train.loop import fit
from syzygy.train.objectives import DiffusionObjective, DiffusionTaskConfig, EclipseObjective, PriorTaskConfig
from syzygy.train.prior import PriorData, PriorTask, caption_ids
from syzygy.train.progress import Reporter
from syzygy.train.schedule import LoopConfig
from syzygy.types import TextFeatures
from syzygy.world import source

CHUNK = 512


class PriorRun(Config):
    """Everything that makes a prior of the embedded world."""

    num_layers: int = Field(default=3, gt=0)
    """Transformer blocks (the paper's prior has 10)."""
    num_attention_heads: int = Field(default=4, gt=0)
    """Attention heads (paper: 16)."""
    attention_head_dim: int = Field(default=32, gt=0)
    """Width of a head (paper: 32)."""
    scenes: int = Field(default=20_000, gt=0)
    """Pairs of a picture and a caption to train on, embedded once."""
    validation_scenes: int = Field(default=512, gt=0)
    """Unseen pairs for validation."""
    task: PriorTaskConfig | DiffusionTaskConfig
    """Loss and batch; which of the two decides which prior is trained."""
    loop: LoopConfig
    """Length and learning rate."""
    seed: int = 0
    """Weights, scenes and noise follow from it."""


def embed(clip: Clip, seed: int, number: int, progress: Callable[[int], None] = lambda done: None) -> PriorData:
    """Embed `number` pairs without held-out compositions, with CLIP's two towers, in memory."""
    images, features, texts = [], [], []
    for start in range(0, number, CHUNK):
        found = source.pairs(seed, start, min(CHUNK, number - start), held_out=False)
        images.append(clip.encode_image(source.pictures(found, clip.image_size, clip.device)).cpu())
        captions = [p.caption.text for p in found]
        features.append(clip.encode_text(captions).to("cpu"))
        texts += captions
        progress(len(found))
    return PriorData(torch.cat(images), TextFeatures.cat(features), torch.arange(number), caption_ids(texts))


def train(
    run: PriorRun,
    clip: Clip,
    out: Path,
    device: torch.device,
    *,
    data: tuple[PriorData, PriorData] | None = None,
    bar: Bar = no_bar,
    report: Reporter | None = None,
) -> RunResult:
    """Train (or resume) in `out` beside the frozen CLIP; the finished prior is `out/prior`, in the published layout, fp16.

    `data` = (training, validation) spares embedding them again when several priors learn from the same pairs.
    """
    objective = _objective(run, clip, device)
    training, validation = data or embedded(run, clip, bar)
    task = PriorTask(objective, training, validation, run.task.batch_size, run.seed)
    settings = run.model_dump(mode="json") | {"clip": clip.fingerprint()}
    result = fit(task, run.loop, out, reporter=report or reporter("prior", run.task.batch_size), run=settings)
    last = result.history[-1]
    metrics = {key.removeprefix("validation/"): value for key, value in last.items() if key.startswith("validation/")}
    record = provenance("prior", run, result, result.steps * run.task.batch_size, metrics)
    objective.prior.save_pretrained(out / "prior", record | {"clip": clip.fingerprint()}, torch.float16)
    return RunResult(out / "prior", metrics, result.history)


def _objective(run: PriorRun, clip: Clip, device: torch.device) -> EclipseObjective | DiffusionObjective:
    """The run's prior with fresh weights, and what it is trained to do."""
    sizes: dict[str, Any] = {
        "embedding_dim": clip.width,
        "num_layers": run.num_layers,
        "num_attention_heads": run.num_attention_heads,
        "attention_head_dim": run.attention_head_dim,
        "num_embeddings": clip.positions,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(run.seed, "prior weights"))
        if isinstance(run.task, PriorTaskConfig):
            prior = EclipsePrior(EclipsePriorConfig(**sizes)).to(device)
            return EclipseObjective(prior, run.task, logit_scale=clip.logit_scale)
        network = DiffusionPrior(DiffusionPriorConfig(**sizes)).to(device)
        return DiffusionObjective(network, run.task, clip.encode_text([""]))


def embedded(run: PriorRun, clip: Clip, bar: Bar = no_bar) -> tuple[PriorData, PriorData]:
    """The run's training and validation pairs."""
    with bar("embedding", run.scenes + run.validation_scenes) as progress:
        return (
            embed(clip, seed_of(run.seed, "prior data"), run.scenes, progress),
            embed(clip, seed_of(run.seed, "prior validation"), run.validation_scenes, progress),
        )
