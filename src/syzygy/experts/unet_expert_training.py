"""Training of experts from the U-Net of a model in diffusers' layout, on the user's own captioned images."""

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, model_validator

from syzygy.core import artifacts
from syzygy.core.config import silent
from syzygy.core.errors import UserError
from syzygy.core.randomness import Draw, generator, seed_of
from syzygy.core.wording import counted, duration
from syzygy.data.pair import Sample, Shard
from syzygy.data.sources import Source, SourceOptions, open_source
from syzygy.experts.expert_folders import TRUNK, build_lora, load_lora
from syzygy.experts.latent_cache import Latents, encoded
from syzygy.experts.routing import Stages
from syzygy.experts.training import (
    NodeTraining,
    TreeRun,
    finished_node,
    node_folder,
    node_trainings,
    train_node,
    train_tree,
)
from syzygy.pretrained.training_families import load_beside
from syzygy.pretrained.unet_task import DiscreteNoise, LatentBatch, UNetTask, UNetTaskConfig, recomputed
from syzygy.pretrained.unet_training import SCHEDULER, Conditions, Pictures, copy_unet, load_unet, save_unet
from syzygy.training import checkpoints
from syzygy.training.estimate import is_dry_run
from syzygy.training.fitting import AS_GIVEN, Fitting
from syzygy.training.precision import autocast, precision_on
from syzygy.training.shuffled import Shuffled

DRY_RUN_PICTURES = 32
"""Images that a dry run encodes."""


class ExpertUNetsRun(TreeRun):
    """All settings of experts of a U-Net, except the model and the images."""

    form: Literal["full", "lora"] = "lora"
    """Low-rank adaptations of the frozen U-Net, of a few megabytes each; or whole U-Nets."""
    layers: str = r"\.(to_[qkv]|to_out|add_[kv]_proj)\b"
    """Regular expression for the names of the U-Net's layers that are adapted; the default is the projections of its attention."""
    size: int | None = Field(default=None, ge=1)
    """Height and width of the images in pixels; null is the size that the U-Net was made for."""
    validation_pictures: int = Field(default=16, ge=0)
    """Images for validation, chosen at random, which no step sees; 0 with loop.validate_every=0."""
    caption_columns: tuple[str, ...] = ()
    """Columns of the captions in parquet or JSON; if empty, they are found by their usual names."""
    image_column: str | None = None
    """Column of the images in parquet; null finds it by its usual names."""
    max_bad: float = Field(default=0.05, ge=0, le=1)
    """Share of the samples that may be unusable; these are left out."""
    task: UNetTaskConfig
    """Loss and batch."""

    @model_validator(mode="after")
    def _validates(self) -> "ExpertUNetsRun":
        if bool(self.validation_pictures) != bool(self.loop.validate_every):
            raise ValueError(
                f"validation_pictures={self.validation_pictures} and loop.validate_every={self.loop.validate_every}: set both, or both to 0"
            )
        return self


@dataclass(frozen=True)
class Batches:
    """Step → images and captions, always the same ones for a step; the images come in one permutation after another."""

    latents: Latents
    conditions: Conditions
    chosen: Sequence[int]
    """The images to train on."""
    task: UNetTaskConfig
    seed: int
    precision: torch.dtype | None

    @cached_property
    def _order(self) -> Shuffled:
        return Shuffled(len(self.chosen), self.seed, "unet")

    def pictures(self, step: int) -> list[int]:
        """The images of a step, counted from 0."""
        places = range(step * self.task.batch_size, (step + 1) * self.task.batch_size)
        return [self.chosen[self._order[place]] for place in places]

    def captions(self, step: int) -> list[str | None]:
        """One caption for each image of a step, or None."""
        draw = Draw(self.seed, "unet captions", step)
        captions = [draw.pick(self.latents.captions[picture]) for picture in self.pictures(step)]
        return [None if draw.chance(self.task.dropped) else caption for caption in captions]

    def __call__(self, step: int) -> LatentBatch:
        return self.batch(self.pictures(step), self.captions(step), self.seed, step)

    def batch(self, pictures: Sequence[int], captions: Sequence[str | None], *key: int | str) -> LatentBatch:
        """Images with captions, on the conditions' device; `key` seeds the noise of the latents."""
        device = self.conditions.device
        with torch.no_grad(), autocast(device, self.precision):
            conditions = self.conditions(captions, self.latents.extras(pictures))
        return LatentBatch(self.latents.sampled(pictures, *key).to(device), conditions)

    def unseen(self, pictures: Sequence[int]) -> list[LatentBatch]:
        """Batches of images, each with its first caption."""
        parts = [pictures[i : i + self.task.batch_size] for i in range(0, len(pictures), self.task.batch_size)]
        return [self.batch(part, [self.latents.captions[i][0] for i in part], "validation", *part) for part in parts]


@dataclass(frozen=True)
class _Shared:
    """What all nodes of a tree share."""

    run: ExpertUNetsRun
    model: Path
    conditions: Conditions
    noise: DiscreteNoise
    latents: Latents
    device: torch.device
    recorded: dict[str, Any]
    """Fingerprints of the model's parts and of the data; a node's training is resumed with the same only."""
    about: dict[str, Any]
    """Further facts for the provenance."""
    out: Path


def train(
    run: ExpertUNetsRun,
    model: Path,
    data: str,
    out: Path,
    device: torch.device,
    say: Callable[[str], None],
    clip: str | Path | None = None,
    fitting: Fitting = AS_GIVEN,
) -> Path:
    """Train (or resume) a tree in `out` from the U-Net of a model's folder; the finished ensemble is `out/experts`.

    The latents of the images are encoded first, once, into `out/latents`. Each node is a run of its own under `out/nodes`; finished nodes are
    not trained again, and their checkpoints are deleted.

    Args:
        model: a folder in diffusers' layout of Stable Diffusion 1.x, 2.x or XL, or of Kandinsky 2.2's decoder.
        data: a source of captioned images (`open_source`).
        clip: folder or hub id of the CLIP whose image embeddings the U-Net reads, for Kandinsky only.

    Raises:
        UserError: the model is incomplete or of another kind; the data are unusable; the leaves form no tree, or are finer than the timesteps;
            no layer to adapt has such a name; a finished node was trained differently.
    """
    source = open_source(data, SourceOptions(caption_columns=run.caption_columns, image_column=run.image_column))
    parts = load_beside(model, run.size, device, clip)
    conditions, noise = parts.conditions, parts.noise
    for one in node_trainings(run):
        noise.timesteps(one.shares)  # a tree that is too fine is refused before anything is encoded
    stages = Stages.of(run.leaves, noise.quantile)
    root = load_unet(model / "unet")
    if run.form == "lora":
        build_lora(root, rank=run.rank, layers=run.layers, seed=run.seed)  # so are layers that do not exist
    recorded = {"unet": artifacts.fingerprint(root.state_dict()), **parts.fingerprints()}
    del root
    latents = _latents(run, parts.pictures, source, out, say)
    del parts  # frees the memory of the networks that encode images
    different = len(set(latents.same_picture))  # copies of an image are never used for both training and validation
    if is_dry_run():  # some of its few images must be left to train on
        run = run.model_copy(update={"validation_pictures": min(run.validation_pictures, different // 2)})
    elif run.validation_pictures:
        run = fitting.validation(run, "validation_pictures", different, source.text)
    if different <= run.validation_pictures:
        raise UserError(
            f"validation_pictures={run.validation_pictures} leaves none of the {counted(different, 'picture')} in {source.text} to train on: "
            "choose fewer, or none (validation_pictures=0 loop.validate_every=0)."
        )
    recorded["data"] = latents.fingerprint
    about = {"model": str(model), "source": source.text, "pictures": len(latents)}
    shared = _Shared(run, model, conditions, noise, latents, device, recorded, about, out)

    def complete(experts: Path) -> None:
        shutil.copytree(model / SCHEDULER, experts / SCHEDULER)
        if run.form == "lora":
            copy_unet(model / "unet", experts / TRUNK)

    return train_tree(run, stages, out, say, node=lambda one: _train_node(shared, one), complete=complete)


def _latents(run: ExpertUNetsRun, pictures: Pictures, source: Source, out: Path, say: Callable[[str], None]) -> Latents:
    """The latents of all images; of a few in a dry run."""
    about = {
        **pictures.fingerprints,
        "size": pictures.side,
        "caption_columns": run.caption_columns,
        "image_column": run.image_column,
    }
    if not is_dry_run():
        return encoded(source, pictures, out / "latents", about, max_bad=run.max_bad, say=say)
    few = replace(source, shards=[_FirstSamples(source.shards[0], DRY_RUN_PICTURES)])
    began = time.perf_counter()
    found = encoded(few, pictures, out / "latents", about, max_bad=1.0, say=silent)
    each = duration((time.perf_counter() - began) / len(found))
    say(
        f"Before the training, each picture's latents are encoded once: {each} per picture, which the estimate leaves out."
    )
    return found


@dataclass(frozen=True)
class _FirstSamples:
    """The first samples of a shard."""

    shard: Shard
    number: int

    @property
    def name(self) -> str:
        return self.shard.name

    @property
    def size(self) -> int:
        return self.shard.size

    @property
    def samples(self) -> int | None:
        return None if self.shard.samples is None else min(self.shard.samples, self.number)

    @property
    def fingerprint(self) -> str:
        return self.shard.fingerprint

    def read(self) -> Iterator[Sample]:
        return islice(self.shard.read(), self.number)


def _train_node(shared: _Shared, one: NodeTraining) -> None:
    """Train a node from the weights of the node above it, or from the model's U-Net, unless it is finished."""
    run, device, precision = shared.run, shared.device, precision_on(shared.device)
    if finished_node(run, one, shared.out, shared.recorded) is not None:
        return
    above = None if one.parent is None else node_folder(shared.out, one.parent)
    unet = load_unet(above if above is not None and run.form == "full" else shared.model / "unet")
    lora = build_lora(unet, rank=run.rank, layers=run.layers, seed=run.seed) if run.form == "lora" else None
    if lora is not None and above is not None:
        load_lora(lora, above)
    trained = unet.requires_grad_(True) if lora is None else lora
    started = artifacts.fingerprint(trained.state_dict())
    unet.to(device)
    trained.to(device)
    if run.task.checkpointing:
        unet.enable_gradient_checkpointing(recomputed(lora, device, precision))
    unseen, seen = split_pictures(shared.latents.same_picture, run.validation_pictures, run.seed)
    seed = seed_of(run.seed, "expert", one.name)
    batches = Batches(shared.latents, shared.conditions, seen, run.task, seed, precision)
    task = UNetTask(
        unet, batches, batches.unseen(unseen), shared.noise, one.shares, seed, precision=precision, lora=lora
    )

    def save(place: Path, record: dict[str, Any]) -> None:
        save_unet(unet, place, record)

    recorded = {**shared.recorded, "from": started}
    folder = train_node(run, one, shared.out, task, unet, lora, save, recorded=recorded, about=shared.about)
    shutil.rmtree(folder.parent / checkpoints.FOLDER)  # which is four times as large as the weights


def split_pictures(same: Sequence[int], validation: int, seed: int) -> tuple[list[int], list[int]]:
    """Images for validation, the same for all nodes, and images to train on. Copies, which have equal numbers in `same`, stay together."""
    order = torch.randperm(len(same), generator=generator(seed, "validation pictures")).tolist()
    first_met: dict[int, int] = {}
    for picture in order:
        first_met.setdefault(same[picture], picture)
    unseen = list(first_met.values())[:validation]
    out = {same[picture] for picture in unseen}
    return unseen, [picture for picture in range(len(same)) if same[picture] not in out]
