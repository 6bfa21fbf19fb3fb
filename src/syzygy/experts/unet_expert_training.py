"""Experts grown from the U-Net of a model in diffusers' layout, on the user's own captioned pictures."""

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import nn

from syzygy.core import artifacts
from syzygy.core.config import silent
from syzygy.core.errors import UserError
from syzygy.core.lora import Lora
from syzygy.core.randomness import Draw, generator, seed_of
from syzygy.core.wording import counted, duration
from syzygy.data.pair import Sample, Shard
from syzygy.data.sources import Source, SourceOptions, open_source
from syzygy.experts.expert_folders import TRUNK, load_lora
from syzygy.experts.latent_cache import Latents, encoded
from syzygy.experts.routing import Stages
from syzygy.experts.training import Growth, TreeRun, finished_node, grow_tree, growth, node_folder, train_node
from syzygy.pretrained.training_families import load_beside
from syzygy.pretrained.unet_task import DiscreteNoise, LatentBatch, UNetTask, UNetTaskConfig, recomputed
from syzygy.pretrained.unet_training import SCHEDULER, Conditions, Pictures, copy_unet, load_unet, save_unet
from syzygy.training import checkpoints
from syzygy.training.estimate import is_dry_run
from syzygy.training.fitting import AS_GIVEN, Fitting
from syzygy.training.precision import autocast, precision_on

DRY_RUN_PICTURES = 32
"""A dry run makes the latents of so many pictures."""


class ExpertUNetsRun(TreeRun):
    """Everything that grows an ensemble of experts from a U-Net, but the model and the pictures."""

    form: Literal["full", "lora"] = "lora"
    """Low-rank adaptations of the frozen U-Net, of a few megabytes each; or whole U-Nets."""
    layers: str = r"\.(to_[qkv]|to_out|add_[kv]_proj)\b"
    """Regular expression: which layers of the U-Net are adapted; by default the projections of its attention."""
    size: int | None = Field(default=None, ge=1)
    """Height and width of the pictures, in pixels; null: what the U-Net was made for."""
    validation_pictures: int = Field(default=16, ge=0)
    """Pictures that no step sees, chosen at random; with loop.validate_every=0 there are none."""
    caption_columns: tuple[str, ...] = ()
    """Where the captions are, in parquet or JSON; empty: found by their usual names."""
    image_column: str | None = None
    """Where the pictures are, in parquet; null: found."""
    max_bad: float = Field(default=0.05, ge=0, le=1)
    """The part of the samples that may be unusable; they are left out."""
    task: UNetTaskConfig
    """What a step sees."""

    @model_validator(mode="after")
    def _validates(self) -> "ExpertUNetsRun":
        if bool(self.validation_pictures) != bool(self.loop.validate_every):
            raise ValueError(
                f"validation_pictures={self.validation_pictures} and loop.validate_every={self.loop.validate_every}: set both, or both to 0"
            )
        return self


@dataclass(frozen=True)
class Batches:
    """Step → pictures and captions; the same again for the same step. An endless stream of permutations, one an epoch."""

    latents: Latents
    conditions: Conditions
    chosen: Sequence[int]
    """The pictures to train on."""
    task: UNetTaskConfig
    seed: int
    precision: torch.dtype | None
    _order: Callable[[int], list[int]] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_order", lru_cache(maxsize=2)(self._permutation))

    def _permutation(self, epoch: int) -> list[int]:
        return torch.randperm(len(self.chosen), generator=generator(self.seed, "unet", "epoch", epoch)).tolist()

    def pictures(self, step: int) -> list[int]:
        """Which ones a step (from 0) sees."""
        places = range(step * self.task.batch_size, (step + 1) * self.task.batch_size)
        return [self.chosen[self._order(place // len(self.chosen))[place % len(self.chosen)]] for place in places]

    def captions(self, step: int) -> list[str | None]:
        """Of each picture one caption, or nothing."""
        draw = Draw(self.seed, "unet captions", step)
        told = [draw.pick(self.latents.captions[picture]) for picture in self.pictures(step)]
        return [None if draw.chance(self.task.dropped) else caption for caption in told]

    def __call__(self, step: int) -> LatentBatch:
        return self.batch(self.pictures(step), self.captions(step), self.seed, step)

    def batch(self, pictures: Sequence[int], captions: Sequence[str | None], *key: int | str) -> LatentBatch:
        """Pictures with captions, on the conditions' device; `key` tells how latents are drawn around their means."""
        device = self.conditions.device
        with torch.no_grad(), autocast(device, self.precision):
            conditions = self.conditions(captions, self.latents.beside(pictures))
        return LatentBatch(self.latents.sampled(pictures, *key).to(device), conditions)

    def unseen(self, pictures: Sequence[int]) -> list[LatentBatch]:
        """Batches of pictures, each with its first caption."""
        parts = [pictures[i : i + self.task.batch_size] for i in range(0, len(pictures), self.task.batch_size)]
        return [self.batch(part, [self.latents.captions[i][0] for i in part], "validation", *part) for part in parts]


@dataclass(frozen=True)
class _Ground:
    """What all nodes of a tree share."""

    run: ExpertUNetsRun
    unet: Path
    """Folder of the model's own."""
    conditions: Conditions
    noise: DiscreteNoise
    latents: Latents
    device: torch.device
    beside: dict[str, Any]
    """Fingerprints of the model's parts and of the data."""
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
    """Grow (or go on growing) a tree in `out` from the U-Net of a model's folder; the finished ensemble is `out/experts`.

    The pictures' latents are made first, once, in `out/latents`. Each node's training is a run of its own under `out/nodes`, resumed like any
    other; finished ones are not run again, and lose their checkpoint.

    Args:
        model: a folder in diffusers' layout of Stable Diffusion 1.x, 2.x or XL, or of Kandinsky 2.2's decoder.
        data: a source of captioned pictures (`open_source`).
        clip: folder or hub id of the CLIP whose image embeddings the U-Net reads; Kandinsky's alone.

    Raises:
        UserError: the model is incomplete or another kind, the data are unusable, leaves are no tree's or finer than the timesteps, no layer
            to adapt has such a name, a finished node was trained otherwise.
    """
    source = open_source(data, SourceOptions(caption_columns=run.caption_columns, image_column=run.image_column))
    beside = load_beside(model, run.size, device, clip)
    conditions, noise = beside.conditions, beside.noise
    for one in growth(run):
        noise.timesteps(one.shares)  # too fine a tree is refused before anything is encoded
    stages = Stages.of(run.leaves, noise.quantile)
    root = load_unet(model / "unet")
    if run.form == "lora":
        _adaptation(root, run)
    prints = {"unet": artifacts.fingerprint(root.state_dict()), **beside.fingerprints()}
    del root
    latents = _latents(run, beside.pictures, source, out, say)
    different = len(set(latents.same_picture))  # copies are never trained and validated on
    if is_dry_run():  # of the few pictures that it has, some must be left to train on
        run = run.model_copy(update={"validation_pictures": min(run.validation_pictures, different // 2)})
    elif run.validation_pictures:
        run = fitting.validation(run, "validation_pictures", different, source.text)
    _enough(run, different, source)
    del beside  # the memory of what encodes pictures
    prints["data"] = latents.fingerprint
    ground = _Ground(run, model / "unet", conditions, noise, latents, device, prints, out)
    told = {"model": str(model), "source": source.text, "pictures": len(latents)}

    def node(one: Growth) -> Path:
        return _grow(ground, one, told)

    def complete(experts: Path) -> None:
        shutil.copytree(model / SCHEDULER, experts / SCHEDULER)
        if run.form == "lora":
            copy_unet(ground.unet, experts / TRUNK)

    return grow_tree(run, stages, out, say, node=node, complete=complete)


def _latents(run: ExpertUNetsRun, pictures: Pictures, source: Source, out: Path, say: Callable[[str], None]) -> Latents:
    """All pictures' latents."""
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
    say(f"Before the training, each picture's latents are made once: {each} a picture, not counted below.")
    return found


@dataclass(frozen=True)
class _FirstSamples:
    """The beginning of a shard."""

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


def _enough(run: ExpertUNetsRun, pictures: int, source: Source) -> None:
    if pictures <= run.validation_pictures:
        raise UserError(
            f"validation_pictures={run.validation_pictures} leaves none of the {counted(pictures, 'picture')} in {source.text} to train on: "
            "choose fewer, or none (validation_pictures=0 loop.validate_every=0)."
        )


def _adaptation(unet: nn.Module, run: ExpertUNetsRun) -> Lora:
    """A fresh adaptation; it changes nothing yet."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(run.seed, "lora", "weights"))
        return Lora(unet, rank=run.rank, layers=run.layers)


def _grow(ground: _Ground, one: Growth, told: dict[str, Any]) -> Path:
    """One node's training, from the weights of the node above it, or from the model's own U-Net; a finished one is not run again."""
    run, device = ground.run, ground.device
    if (finished := finished_node(run, one, ground.out, ground.beside)) is not None:
        return finished
    above = None if one.parent is None else node_folder(ground.out, one.parent)
    precision = precision_on(device)
    unet = load_unet(above if above is not None and run.form == "full" else ground.unet)
    lora = _adaptation(unet, run) if run.form == "lora" else None
    if lora is not None and above is not None:
        load_lora(lora, above)
    grown: nn.Module = unet.requires_grad_(True) if lora is None else lora
    started = artifacts.fingerprint(grown.state_dict())
    unet.to(device)
    grown.to(device)
    if run.task.checkpointing:
        unet.enable_gradient_checkpointing(recomputed(lora, device, precision))
    task = _task(ground, one, unet, lora, precision)

    def save(place: Path, record: dict[str, Any]) -> None:
        save_unet(unet, place, record)

    recorded = {**ground.beside, "from": started}
    folder = train_node(run, one, ground.out, task, unet, lora, save, recorded=recorded, about=told)
    shutil.rmtree(folder.parent / checkpoints.FOLDER)  # four times the weights' size
    return folder


def kept_apart(same: Sequence[int], validation: int, seed: int) -> tuple[list[int], list[int]]:
    """(pictures to validate on, pictures to train on): copies of a picture, as `same` tells them, are never on both sides."""
    order = torch.randperm(len(same), generator=generator(seed, "validation pictures")).tolist()
    first_met: dict[int, int] = {}
    for picture in order:
        first_met.setdefault(same[picture], picture)
    unseen = list(first_met.values())[:validation]
    out = {same[picture] for picture in unseen}
    return unseen, [picture for picture in range(len(same)) if same[picture] not in out]


def _task(ground: _Ground, one: Growth, unet: nn.Module, lora: Lora | None, precision: torch.dtype | None) -> UNetTask:
    """A node's training task; the pictures kept out are the same for all nodes."""
    run = ground.run
    unseen, seen = kept_apart(ground.latents.same_picture, run.validation_pictures, run.seed)
    seed = seed_of(run.seed, "expert", one.name)
    batches = Batches(ground.latents, ground.conditions, seen, run.task, seed, precision)
    return UNetTask(
        unet,
        batches,
        batches.unseen(unseen),
        ground.noise,
        one.shares,
        seed,
        precision=precision,
        lora=lora,
    )
