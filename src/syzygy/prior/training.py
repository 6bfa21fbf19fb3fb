"""Training of priors on embedded pairs: those of a store, or others in memory. A task decides which prior; a linear map has no steps."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import Field

from syzygy.core import artifacts
from syzygy.core.config import Config
from syzygy.core.contracts import TextFeatures
from syzygy.core.errors import UserError
from syzygy.core.randomness import seed_of
from syzygy.core.wording import counted
from syzygy.data.store import EmbeddingStore
from syzygy.prior.diffusion_prior import DiffusionTaskConfig
from syzygy.prior.eclipse import EclipseTaskConfig
from syzygy.prior.embedding_pairs import SUMMED, Pairs, split, split_digest
from syzygy.prior.lambda_residual import LambdaResidualTaskConfig
from syzygy.prior.lambda_training import LambdaEclipseTaskConfig
from syzygy.prior.linear_prior import LinearMeasured, LinearPrior, LinearRun
from syzygy.prior.next_steps import (
    ABOUT,
    ENVIRONMENT_FILE,
    EXAMPLE,
    NOT_MEASURED,
    about_store,
)
from syzygy.prior.prior_folders import LINEAR, PART, layout_of
from syzygy.prior.prior_task import PriorTask, unmeasured, validated
from syzygy.prior.residual_prior import ResidualTaskConfig
from syzygy.training import checkpoints
from syzygy.training.estimate import Estimate, Estimated, Footprint, estimated, is_dry_run
from syzygy.training.fitting import AS_GIVEN, Fitting
from syzygy.training.loop import FitResult
from syzygy.training.parallel import Ranks
from syzygy.training.precision import chosen_precision
from syzygy.training.progress import Reporter
from syzygy.training.run_records import RunResult, provenance, train_part
from syzygy.training.schedule import LoopConfig

PUBLISHED_SCALE = 100.0
"""Inverse temperature of the published CLIPs, for encoders that come without it (a prior's own text and image towers)."""


VALIDATED = 256
"""Captions of a linear map's validation that are predicted at once."""
READ_CAPTIONS = 64
"""Validation captions that are read to find a short example, and whether they describe the embedded world."""


class PriorRun(Config):
    """All settings of a prior, except the store that it may be trained on."""

    num_layers: int = Field(default=3, gt=0)
    """Transformer blocks (the paper's prior has 10)."""
    num_attention_heads: int = Field(default=4, gt=0)
    """Attention heads (paper: 16)."""
    attention_head_dim: int = Field(default=32, gt=0)
    """Width of a head (paper: 32)."""
    embedding_dim: int | None = Field(default=None, gt=0)
    """Required width of the data's embeddings, that of CLIP's joint space (Karlo 768, Kandinsky 2.2 1280); null accepts any."""
    scenes: int | None = Field(default=20_000, gt=0)
    """Number of pairs of the embedded world to train on; null for training on a store."""
    validation_images: int = Field(default=512, gt=0)
    """Number of images for validation, with their captions. They come from the store, or are new images of the world; training omits them."""
    task: (
        EclipseTaskConfig
        | ResidualTaskConfig
        | LambdaEclipseTaskConfig
        | LambdaResidualTaskConfig
        | DiffusionTaskConfig
    )
    """Loss and batch; they decide which prior is trained. (A new kind of prior adds its task here, and its preset to `presets.py`.)"""
    loop: LoopConfig
    """Length and learning rate."""
    seed: int = 0
    """Seed of weights, scenes, order and noise."""


@dataclass(frozen=True)
class PriorTrainingData:
    """The embedded pairs that a prior is trained on, and facts about their encoder."""

    training: Pairs
    validation: Pairs
    positions: int
    """Longest text of the encoder, in tokens."""
    logit_scale: float
    """The encoder's inverse temperature."""
    unconditional: Callable[[], TextFeatures]
    """Features of the empty text."""
    recorded: dict[str, Any]
    """Identifies data and encoder: a run is continued with the same ones only."""
    about: dict[str, Any]
    """Source and size of the data, for the provenance and the model card."""
    example: str | None = None
    """A caption of the validation pairs."""


def train_on_store(
    run: PriorRun | LinearRun,
    store: Path,
    out: Path,
    world: Ranks,
    *,
    init: str | Path | None = None,
    of_the_world: Callable[[Sequence[str]], bool] = lambda captions: False,
    report: Reporter | str = "",
    fitting: Fitting = AS_GIVEN,
) -> RunResult:
    """Train (or resume) in `out` on the embedding store in this folder; the finished prior is `out/prior`.

    Args:
        of_the_world: whether captions describe scenes that the starter's decoder can show; recorded for the model card.
        fitting: adapts the size of the validation and of the batch to the store, where the user did not choose them.

    Raises:
        UserError: the preset is for embeddings of another width; the run has scenes too; a diffusion prior needs the features of the empty
            text, which an older store lacks.
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
    encoder, captions = opened.encoder, opened.texts(validation.chosen[:READ_CAPTIONS])
    data = PriorTrainingData(
        training,
        validation,
        encoder["positions"],
        encoder.get("logit_scale") or PUBLISHED_SCALE,
        unconditional=lambda: (
            opened.empty_text().padded()
        ),  # needed by a diffusion prior alone, missing in older stores alone
        recorded={"clip": encoder["fingerprint"], "data": opened.digest, "validation": split_digest(validation)},
        about=about_store(opened, training, validation, of_the_world(captions)),
        example=min(captions, key=len),
    )
    return train_prior(run, data, out, world, init=init, report=report, fitting=fitting)


def train_prior(
    run: PriorRun | LinearRun,
    data: PriorTrainingData,
    out: Path,
    world: Ranks,
    *,
    init: str | Path | None = None,
    report: Reporter | str = "",
    fitting: Fitting = AS_GIVEN,
) -> RunResult:
    """Train (or resume) in `out`; the finished prior is `out/prior`, in the layout of its kind, fp16.

    `init` is an ECLIPSE or residual prior to continue from, of the same kind as the task: a folder, a finished run, or a hub id.
    """
    _check_width(run, data.training.width)
    if isinstance(run, LinearRun):
        return fit_linear(run, data, out, world, init=init, fitting=fitting)
    if (out / PART / artifacts.CONFIG_FILE).is_file() and layout_of(out / PART) == LINEAR:
        raise UserError(f"{out} holds a linear map, which this training would replace. Choose another --out.")
    run = fitting.batch(run, len(data.training), world.size)
    if run.scenes is None or not is_dry_run():  # a dry run embeds some of the scenes only
        fitting.passes(len(data.training), len(data.validation), run.loop.steps * run.task.batch_size)
    sizes: dict[str, Any] = {
        "embedding_dim": data.training.width,
        "num_layers": run.num_layers,
        "num_attention_heads": run.num_attention_heads,
        "attention_head_dim": run.attention_head_dim,
        "num_embeddings": data.positions,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(run.seed, "prior weights"))
        objective = run.task.objective(sizes, data.logit_scale, data.unconditional, world.device, init)
    task = PriorTask(
        objective,
        data.training,
        data.validation,
        run.task.batch_size,
        run.seed,
        micro_batch=run.task.micro_batch,
        precision=chosen_precision(run.task.precision, world.device),
        world=world,
    )
    if task.unmeasured:
        fitting.say(task.unmeasured)
    recorded = data.recorded | ({} if init is None else {"init": objective.prior.fingerprint()})
    if world.first:
        _record_environment(out, data, world)

    def save(folder: Path, record: dict[str, Any]) -> None:
        record |= {ABOUT: data.about, NOT_MEASURED: task.unmeasured}
        objective.prior.save_pretrained(folder, record, torch.float16)

    return train_part(run, task, out, save, kind="prior", recorded=recorded, report=report, world=world)


def fit_linear(
    run: LinearRun,
    data: PriorTrainingData,
    out: Path,
    world: Ranks,
    *,
    init: str | Path | None = None,
    fitting: Fitting = AS_GIVEN,
) -> RunResult:
    """Fit a linear map on the CPU; it is `out/prior`. A finished run returns at once, an interrupted one begins anew.

    Raises:
        UserError: there is an `init`, or `out` holds a run with other settings.
    """
    if init is not None:
        raise UserError("--init continues a trained prior; a linear map is fitted anew on all pairs. Leave it out.")
    if missing := unmeasured(data.validation):
        fitting.say(missing)
    if is_dry_run():
        raise Estimated(_linear_estimate(run, data))
    place, settings = out / PART, run.model_dump(mode="json") | data.recorded
    if world.first:
        if (place / artifacts.PROVENANCE_FILE).is_file():
            checkpoints.check_settings(out, settings)
        else:
            checkpoints.open_run(out, settings)
            _record_environment(out, data, world)
            began = time.perf_counter()
            prior = LinearPrior.fit(data.training, run.ridge)
            with torch.no_grad():
                metrics = validated(LinearMeasured(prior), data.validation, VALIDATED, run.seed, torch.device("cpu"))
            seconds = time.perf_counter() - began
            record = provenance("prior", run, FitResult(0, seconds, [], False), len(data.training), metrics)
            about = {ABOUT: data.about, NOT_MEASURED: missing}
            prior.save_pretrained(place, record | data.recorded | about, torch.float32)
    world.wait()
    return RunResult(place, artifacts.read_json(place / artifacts.PROVENANCE_FILE)["metrics"], [])


def _linear_estimate(run: LinearRun, data: PriorTrainingData) -> Estimate:
    """From a fit on one block of pairs: the blocks are the steps."""
    number = run.scenes or len(data.training)  # a dry run embeds some of the scenes only
    began = time.perf_counter()
    prior = LinearPrior.fit(data.training.first(min(SUMMED, len(data.training))), run.ridge)
    seconds = time.perf_counter() - began
    began = time.perf_counter()
    with torch.no_grad():
        validated(LinearMeasured(prior), data.validation, VALIDATED, 0, torch.device("cpu"))
    validating = time.perf_counter() - began
    size = sum(x.numel() for x in prior.state_dict().values())
    footprint = Footprint(size, size, 5 * 4 * size, 0, 4 * size)  # sums and the solution in float64, and the result
    return estimated(footprint, -(-number // SUMMED), seconds, 1, validating, "cpu")


def _record_environment(out: Path, data: PriorTrainingData, world: Ranks) -> None:
    environment = {
        "machine": artifacts.machine(),
        "processes": world.size,
        "threads": torch.get_num_threads(),
        "versions": artifacts.versions(),
    }
    artifacts.write_json(out / ENVIRONMENT_FILE, environment | {EXAMPLE: data.example})


def _check_width(run: PriorRun | LinearRun, width: int) -> None:
    if run.embedding_dim not in (None, width):
        raise UserError(
            f"this preset is for embeddings of width {run.embedding_dim}; the data's are {width} wide. "
            "Embed the pairs with the CLIP of the generator, or choose its preset."
        )
