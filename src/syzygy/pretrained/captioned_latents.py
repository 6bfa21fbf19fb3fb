"""Images as trainings of published U-Nets read them: encoded once, divided into training and validation, in batches in the order of steps.

Shapes: B images of a batch, C latent channels, h × w latent positions.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import Field, model_validator

from syzygy.core.config import Config, silent
from syzygy.core.errors import UserError
from syzygy.core.randomness import Draw, generator
from syzygy.core.wording import counted, duration
from syzygy.data.pair import Sample, Shard
from syzygy.data.sources import Source, SourceOptions, open_source
from syzygy.pretrained.latent_cache import Latents, encoded
from syzygy.pretrained.unet_task import LatentBatch, UNetTaskConfig
from syzygy.pretrained.unet_training import Conditions, Pictures
from syzygy.training.estimate import is_dry_run
from syzygy.training.fitting import Fitting
from syzygy.training.precision import autocast
from syzygy.training.schedule import LoopConfig
from syzygy.training.shuffled import Shuffled

DRY_RUN_PICTURES = 32
"""Images that a dry run encodes."""


class ImagesRun(Config):
    """The settings that every training of a published U-Net on images has."""

    size: int | None = Field(default=None, ge=1)
    """Height and width of the images in pixels; null is the size that the U-Net was made for."""
    validation_pictures: int = Field(default=16, ge=0)
    """Images for validation, chosen at random, which no step sees; 0 with loop.validate_every=0."""
    loop: LoopConfig
    """Length and learning rate."""
    seed: int = 0
    """Seed of samples and noise."""

    @model_validator(mode="after")
    def _validates(self) -> "ImagesRun":
        if bool(self.validation_pictures) != bool(self.loop.validate_every):
            raise ValueError(
                f"validation_pictures={self.validation_pictures} and loop.validate_every={self.loop.validate_every}: set both, or both to 0"
            )
        return self


class CaptionedImagesRun(ImagesRun):
    """The settings that every training of a published U-Net on captioned images has."""

    caption_columns: tuple[str, ...] = ()
    """Columns of the captions in parquet or JSON; if empty, they are found by their usual names."""
    image_column: str | None = None
    """Column of the images in parquet; null finds it by its usual names."""
    max_bad: float = Field(default=0.05, ge=0, le=1)
    """Share of the samples that may be unusable; these are left out."""

    def columns(self) -> dict[str, Any]:
        """Which columns are read, as JSON values."""
        return {"caption_columns": self.caption_columns, "image_column": self.image_column}


R = TypeVar("R", bound=ImagesRun)


def opened(run: CaptionedImagesRun, data: str) -> Source:
    """The source of captioned images `data`, as of `open_source`."""
    return open_source(data, SourceOptions(caption_columns=run.caption_columns, image_column=run.image_column))


def captioned_latents(
    run: CaptionedImagesRun, pictures: Pictures, source: Source, folder: Path, say: Callable[[str], None]
) -> Latents:
    """The latents of captioned images, as of `latents_of`."""
    return latents_of(pictures, source, folder, say, max_bad=run.max_bad, about=run.columns())


def latents_of(
    pictures: Pictures,
    source: Source,
    folder: Path,
    say: Callable[[str], None],
    *,
    max_bad: float,
    about: Mapping[str, Any] | None = None,
) -> Latents:
    """The latents of all images, which are encoded into `folder` once; of a few in a dry run.

    Args:
        max_bad, about: as of `encoded`; fingerprints and size are recorded in any case.

    Raises:
        UserError: as of `encoded`.
    """
    about = {**pictures.fingerprints, "size": pictures.side, **(about or {})}
    if not is_dry_run():
        return encoded(source, pictures, folder, about, max_bad=max_bad, say=say)
    few = replace(source, shards=[_FirstSamples(source.shards[0], DRY_RUN_PICTURES)])
    began = time.perf_counter()
    found = encoded(few, pictures, folder, about, max_bad=1.0, say=silent)
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


def fitted(run: R, latents: Latents, source: str, fitting: Fitting) -> R:
    """The run with as many images for validation as the data allow.

    Raises:
        UserError: it leaves none to train on.
    """
    different = len(set(latents.same_picture))  # copies of an image are never used for both training and validation
    if is_dry_run():  # some of its few images must be left to train on
        run = run.model_copy(update={"validation_pictures": min(run.validation_pictures, different // 2)})
    elif run.validation_pictures:
        run = fitting.validation(run, "validation_pictures", different, source)
    if different <= run.validation_pictures:
        raise UserError(
            f"validation_pictures={run.validation_pictures} leaves none of the {counted(different, 'picture')} in {source} to train on: "
            "choose fewer, or none (validation_pictures=0 loop.validate_every=0)."
        )
    return run


def split_pictures(same: Sequence[int], validation: int, seed: int) -> tuple[list[int], list[int]]:
    """Images for validation, the same for all trainings, and images to train on. Copies, which have equal numbers in `same`, stay together."""
    order = torch.randperm(len(same), generator=generator(seed, "validation pictures")).tolist()
    first_met: dict[int, int] = {}
    for picture in order:
        first_met.setdefault(same[picture], picture)
    unseen = list(first_met.values())[:validation]
    out = {same[picture] for picture in unseen}
    return unseen, [picture for picture in range(len(same)) if same[picture] not in out]


@dataclass(frozen=True)
class Steps:
    """Step → images and captions, always the same ones for a step; the images come in one permutation after another."""

    latents: Latents
    chosen: Sequence[int]
    """The images to train on."""
    task: UNetTaskConfig
    seed: int

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


@dataclass(frozen=True)
class Batches:
    """Step → latents with what else the U-Net reads."""

    steps: Steps
    conditions: Conditions
    precision: torch.dtype | None

    def __call__(self, step: int) -> LatentBatch:
        return self.batch(self.steps.pictures(step), self.steps.captions(step), self.steps.seed, step)

    def batch(self, pictures: Sequence[int], captions: Sequence[str | None], *key: int | str) -> LatentBatch:
        """Images with captions, on the conditions' device; `key` seeds the noise of the latents."""
        device, latents = self.conditions.device, self.steps.latents
        with torch.no_grad(), autocast(device, self.precision):
            conditions = self.conditions(captions, latents.extras(pictures))
        return LatentBatch(latents.sampled(pictures, *key).to(device), conditions)

    def unseen(self, pictures: Sequence[int]) -> list[LatentBatch]:
        """Batches of images, each with its first caption."""
        size, captions = self.steps.task.batch_size, self.steps.latents.captions
        parts = [pictures[i : i + size] for i in range(0, len(pictures), size)]
        return [self.batch(part, [captions[i][0] for i in part], "validation", *part) for part in parts]
