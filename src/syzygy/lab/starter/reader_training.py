"""The starter's reader (the classifier that scores images), trained on rendered scenes.

The loss is a focal loss on centres and cross-entropy on attributes (CenterNet, Zhou et al. 2019, equation 1).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from syzygy.core.config import Config
from syzygy.core.randomness import generator, seed_of
from syzygy.lab.world import scene_source
from syzygy.lab.world.reader import CELLS, Reader, ReaderConfig
from syzygy.lab.world.reader_scores import accuracy, best_threshold, confusion, read_all, shifted
from syzygy.lab.world.scene import COLOURS, SHAPES, STYLES, TEXTURES, Scene
from syzygy.training.loop import FitResult
from syzygy.training.run_records import RunResult, train_part
from syzygy.training.schedule import LoopConfig

SPREAD = 0.7
"""Standard deviation, in cells, of the area around a centre where the focal loss penalises predicted centres less."""
VALIDATION_PICTURES = 512
CALIBRATION_PICTURES = 1024
TEST_PICTURES = 2048
BLUR, NOISE, SHIFT = 0.8, 0.05, (2, -1)
"""Mild distortions: largest blur in pixels, largest noise (each image draws its own), and the shift in pixels to the right and down."""


@dataclass(frozen=True)
class ReaderBatch:
    """Images in [0, 1] and the scenes that they show."""

    images: Float[Tensor, "B 3 64 64"]
    scenes: Sequence[Scene]


class ReaderTaskConfig(Config):
    """What a step sees."""

    batch_size: int = Field(default=64, ge=1)
    """Images per step."""
    noise: float = Field(default=0.08, ge=0)
    """Largest standard deviation of the noise that is added to images."""
    blur: float = Field(default=1.0, gt=0)
    """Largest standard deviation of the blur, in pixels."""
    clean: float = Field(default=0.4, ge=0, le=1)
    """Share of the images that stay as rendered."""


def degraded(
    images: Float[Tensor, "B 3 H W"], config: ReaderTaskConfig, random: torch.Generator
) -> Float[Tensor, "B 3 H W"]:
    """Blur, then noise, with random strengths for each image, so that the reader also works on images from a decoder."""
    device, batch = images.device, len(images)
    strength = torch.rand(2, batch, generator=random, device=device)
    keep = torch.rand(batch, generator=random, device=device) < config.clean
    offsets = torch.arange(-3, 4, device=device, dtype=torch.float32)
    kernel = torch.exp(-0.5 * (offsets / (strength[0, :, None] * config.blur).clamp_min(0.1)) ** 2)
    kernel = kernel / kernel.sum(1, keepdim=True)
    planes = nn.functional.pad(images.reshape(1, 3 * batch, *images.shape[2:]), (3, 3, 3, 3), mode="replicate")
    rows = kernel.repeat_interleave(3, 0)[:, None, None, :]
    blurred = nn.functional.conv2d(planes, rows, groups=3 * batch)
    blurred = nn.functional.conv2d(blurred, rows.transpose(2, 3), groups=3 * batch).view_as(images)
    noise = torch.randn(images.shape, generator=random, device=device)
    worse = blurred + noise * (strength[1] * config.noise)[:, None, None, None]
    return torch.where(keep[:, None, None, None], images, worse)


def reader_loss(found: Mapping[str, Tensor], scenes: Sequence[Scene]) -> dict[str, Float[Tensor, ""]]:
    """The terms of the loss: centres (penalty-reduced focal loss), attributes, offset and radius at the centres, style."""
    device = found["heat"].device
    rows = [
        (
            b,
            t.x * CELLS,
            t.y * CELLS,
            t.radius,
            SHAPES.index(t.shape),
            COLOURS.index(t.colour),
            TEXTURES.index(t.texture),
        )
        for b, scene in enumerate(scenes)
        for t in scene.things
    ]
    table = torch.tensor(rows, device=device)
    b, shape, colour, texture = (table[:, i].long() for i in (0, 4, 5, 6))
    x, y = table[:, 1], table[:, 2]
    column, row = x.long().clamp(0, CELLS - 1), y.long().clamp(0, CELLS - 1)
    at = (b, slice(None), row, column)
    offset = torch.stack([x - column - 0.5, y - row - 0.5], 1)
    parts = {
        "centre": _focal(found["heat"][:, 0], b, row, column),
        "shape": nn.functional.cross_entropy(found["shape"][at], shape),
        "colour": nn.functional.cross_entropy(found["colour"][at], colour),
        "texture": nn.functional.cross_entropy(found["texture"][at], texture),
        "place": nn.functional.l1_loss(found["offset"][at], offset),
        "radius": 5 * nn.functional.l1_loss(found["radius"][at][:, 0], table[:, 3]),
        "style": nn.functional.cross_entropy(
            found["style"], torch.tensor([STYLES.index(s.style) for s in scenes], device=device)
        ),
    }
    return parts


def _focal(logits: Tensor, b: Tensor, row: Tensor, column: Tensor) -> Tensor:
    axis = torch.arange(CELLS, device=logits.device)
    distance = (axis[None, :, None] - row[:, None, None]) ** 2 + (axis[None, None] - column[:, None, None]) ** 2
    bump = torch.exp(-distance / (2 * SPREAD**2))
    target = torch.zeros_like(logits).scatter_reduce(0, b[:, None, None].expand_as(bump), bump, "amax")
    positive = target == 1
    p = logits.sigmoid().clamp(1e-5, 1 - 1e-5)
    gain = torch.where(positive, (1 - p) ** 2 * p.log(), (1 - target) ** 4 * p**2 * (1 - p).log())
    return -gain.sum() / positive.sum()


class ReaderTask:
    """The reader's training as a task of the loop."""

    def __init__(
        self,
        reader: Reader,
        batches: Callable[[int], ReaderBatch],
        validation: ReaderBatch,
        config: ReaderTaskConfig,
        seed: int,
    ) -> None:
        self.reader, self.batches, self.validation = reader, batches, validation
        self.config, self.seed = config, seed

    @property
    def modules(self) -> Mapping[str, nn.Module]:
        return {"reader": self.reader}

    def loss(self, step: int) -> dict[str, Tensor]:
        """The sum of the terms on this step's degraded images."""
        batch = self.batches(step)
        random = generator(self.seed, "reader", step, device=batch.images.device)
        parts = reader_loss(self.reader(degraded(batch.images, self.config, random)), batch.scenes)
        return {"loss": torch.stack(list(parts.values())).sum()}

    def validate(self) -> dict[str, float]:
        """`accuracy` on unseen images, and on degraded copies."""
        random = generator(self.seed, "reader validation", device=self.validation.images.device)
        worse = degraded(self.validation.images, self.config.model_copy(update={"clean": 0.0}), random)
        clean, spoilt = (
            accuracy(read_all(self.reader, x), self.validation.scenes) for x in (self.validation.images, worse)
        )
        return clean | {"degraded": spoilt["attributes"]}


class ReaderRun(Config):
    """All settings of a reader of the embedded world."""

    reader: ReaderConfig
    """Sizes."""
    task: ReaderTaskConfig
    """What a step sees."""
    loop: LoopConfig
    """Length and learning rate."""
    seed: int = 0
    """Seed of weights and scenes."""


def train(run: ReaderRun, out: Path, device: torch.device) -> RunResult:
    """Train (or resume) in `out`; the finished reader is `out/reader`, fp16."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(run.seed, "reader weights"))
        reader = Reader(run.reader).to(device)

    def batch(seed: int, start: int, number: int) -> ReaderBatch:
        found = scene_source.pairs(seed, start, number)
        return ReaderBatch(scene_source.pictures(found, device=device), [p.scene for p in found])

    seed, size = seed_of(run.seed, "reader"), run.task.batch_size
    validation = batch(seed_of(run.seed, "reader validation"), 0, VALIDATION_PICTURES)
    task = ReaderTask(reader, lambda step: batch(seed, step * size, size), validation, run.task, run.seed)
    finished: list[Reader] = []

    def evaluate(_: FitResult) -> dict[str, float]:
        """Metrics of the calibrated reader."""
        calibration = batch(seed_of(run.seed, "reader calibration"), 0, CALIBRATION_PICTURES)
        finished.append(_calibrated(reader, calibration, run))
        scores = measure(finished[0], seed_of(run.seed, "reader test"), TEST_PICTURES).accuracy
        other = {
            f"{condition}/attributes": scores[condition]["attributes"] for condition in scores if condition != "clean"
        }
        return scores["clean"] | other

    def save(folder: Path, record: dict[str, Any]) -> None:
        finished[0].save_pretrained(folder, record, torch.float16)

    return train_part(run, task, out, save, kind="reader", measure=evaluate)


def _calibrated(reader: Reader, batch: ReaderBatch, run: ReaderRun) -> Reader:
    """The reader with the threshold that counts objects best on images of a separate split, half of them degraded as in training."""
    half = len(batch.scenes) // 2
    random = generator(run.seed, "reader calibration", device=batch.images.device)
    worse = degraded(batch.images[half:], run.task.model_copy(update={"clean": 0.0}), random)
    threshold = best_threshold(reader.eval(), torch.cat([batch.images[:half], worse]), batch.scenes)
    calibrated = Reader(reader.config.model_copy(update={"threshold": threshold})).to(batch.images.device)
    calibrated.load_state_dict(reader.state_dict())
    return calibrated.eval()


@dataclass(frozen=True)
class ReaderScores:
    """How well a reader reads unseen pictures."""

    accuracy: dict[str, dict[str, float]]
    """Condition (`clean`, `blur`, `noise`, `shift`) → accuracy by kind."""
    confusion: dict[str, dict[str, dict[str, int]]]
    """On clean pictures; see `reader_scores.confusion`."""


def measure(reader: Reader, seed: int, number: int) -> ReaderScores:
    """Accuracy on unseen renders, as they are and under mild blur, noise and shift; confusion on clean ones."""
    found = scene_source.pairs(seed, 0, number)
    scenes, images = [p.scene for p in found], scene_source.pictures(found)
    random = generator(seed, "reader conditions")
    spoil = {
        "blur": ReaderTaskConfig(blur=BLUR, noise=0.0, clean=0.0),
        "noise": ReaderTaskConfig(blur=0.01, noise=NOISE, clean=0.0),
    }
    conditions = {"clean": (images, scenes)}
    conditions |= {name: (degraded(images, how, random), scenes) for name, how in spoil.items()}
    conditions["shift"] = shifted(images, scenes, SHIFT)
    readings = {name: read_all(reader, x) for name, (x, _) in conditions.items()}
    return ReaderScores(
        {name: accuracy(readings[name], of) for name, (_, of) in conditions.items()},
        confusion(readings["clean"], scenes),
    )
