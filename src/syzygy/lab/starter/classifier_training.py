"""How both scene classifiers, the reader and the judge, are trained and measured: scenes rendered on the fly, images degraded a little."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from syzygy.core.config import Config
from syzygy.core.randomness import Draw, generator, seed_of
from syzygy.lab.world.classifier_scores import accuracy, best_threshold, confusion, count_accuracy, read_all, shifted
from syzygy.lab.world.render import render
from syzygy.lab.world.scene import Scene
from syzygy.lab.world.scene_classifier import SceneClassifier
from syzygy.lab.world.scene_sampling import sample_scene
from syzygy.training.loop import FitResult
from syzygy.training.precision import autocast, precision_on
from syzygy.training.run_records import RunResult, train_part
from syzygy.training.schedule import LoopConfig

VALIDATION_PICTURES = 512
CALIBRATION_PICTURES = 2048
TEST_PICTURES = 2048
BLUR, NOISE, MOTTLE, SHIFT = 0.8, 0.05, 0.05, (2, -1)
"""Mild distortions: largest blur in pixels, largest noise, largest mottle (each image draws its own), and the shift in pixels to the right
and down.
"""
LUMP = 4
"""Side in pixels of the lumps of a mottle."""
CHUNK = 32
"""Images that are rendered together: small chunks stay in the processor's cache."""

C = TypeVar("C", bound=SceneClassifier)
Losses = Callable[[Mapping[str, Tensor], Sequence[Scene]], dict[str, Float[Tensor, ""]]]
"""The terms of a loss, from what a classifier's `forward` returns and the true scenes."""


@dataclass(frozen=True)
class ClassifierBatch:
    """Images in [0, 1] and the scenes that they show."""

    images: Float[Tensor, "B 3 64 64"]
    scenes: Sequence[Scene]


class ClassifierTaskConfig(Config):
    """What a step sees."""

    batch_size: int = Field(default=64, ge=1)
    """Images per step."""
    noise: float = Field(default=0.08, ge=0)
    """Largest standard deviation of the noise that is added to images."""
    blur: float = Field(default=1.0, gt=0)
    """Largest standard deviation of the blur, in pixels."""
    mottle: float = Field(default=0.0, ge=0)
    """Largest standard deviation of the smooth noise that is added, in lumps like those that a decoder leaves."""
    clean: float = Field(default=0.4, ge=0, le=1)
    """Share of the images that stay as rendered."""


class ClassifierRun(Config):
    """Settings that both classifiers have."""

    task: ClassifierTaskConfig
    """What a step sees."""
    loop: LoopConfig
    """Length and learning rate."""
    seed: int = 0
    """Seed of weights and scenes."""


def degraded(
    images: Float[Tensor, "B 3 H W"], config: ClassifierTaskConfig, random: torch.Generator
) -> Float[Tensor, "B 3 H W"]:
    """Blur, then noise and mottle, with random strengths for each image, so that classifiers also work on images from a decoder."""
    device, batch = images.device, len(images)
    strength = torch.rand(3, batch, generator=random, device=device)
    keep = torch.rand(batch, generator=random, device=device) < config.clean
    offsets = torch.arange(-3, 4, device=device, dtype=torch.float32)
    kernel = torch.exp(-0.5 * (offsets / (strength[0, :, None] * config.blur).clamp_min(0.1)) ** 2)
    kernel = kernel / kernel.sum(1, keepdim=True)
    planes = nn.functional.pad(images.reshape(1, 3 * batch, *images.shape[2:]), (3, 3, 3, 3), mode="replicate")
    rows = kernel.repeat_interleave(3, 0)[:, None, None, :]
    blurred = nn.functional.conv2d(planes, rows, groups=3 * batch)
    worse = nn.functional.conv2d(blurred, rows.transpose(2, 3), groups=3 * batch).view_as(images)
    worse = worse + torch.randn(images.shape, generator=random, device=device) * _each(strength[1] * config.noise)
    if config.mottle:
        few = torch.randn(batch, 3, *(side // LUMP for side in images.shape[2:]), generator=random, device=device)
        lumps = nn.functional.interpolate(few, images.shape[2:], mode="bicubic")
        worse = worse + lumps * _each(strength[2] * config.mottle)
    return torch.where(_each(keep), images, worse)


def _each(values: Tensor) -> Tensor:
    return values[:, None, None, None]


class ClassifierTask(Generic[C]):
    """The training of a classifier as a task of the loop."""

    def __init__(
        self,
        classifier: C,
        losses: Losses,
        batches: Callable[[int], ClassifierBatch],
        validation: ClassifierBatch,
        config: ClassifierTaskConfig,
        seed: int,
        precision: torch.dtype | None = None,
    ) -> None:
        self.classifier, self.losses, self.batches, self.validation = classifier, losses, batches, validation
        self.config, self.seed, self.precision = config, seed, precision

    @property
    def modules(self) -> Mapping[str, nn.Module]:
        return {"classifier": self.classifier}

    def loss(self, step: int) -> dict[str, Tensor]:
        """The sum of the terms on this step's degraded images."""
        batch = self.batches(step)
        random = generator(self.seed, "classifier", step, device=batch.images.device)
        with autocast(batch.images.device, self.precision):
            found = self.classifier(degraded(batch.images, self.config, random))
        parts = self.losses({name: x.float() for name, x in found.items()}, batch.scenes)
        return {"loss": torch.stack(list(parts.values())).sum()}

    def validate(self) -> dict[str, float]:
        """`accuracy` on unseen images, and on degraded copies."""
        random = generator(self.seed, "classifier validation", device=self.validation.images.device)
        worse = degraded(self.validation.images, self.config.model_copy(update={"clean": 0.0}), random)
        clean, spoilt = (
            accuracy(read_all(self.classifier, x), self.validation.scenes) for x in (self.validation.images, worse)
        )
        return clean | {"degraded": spoilt["attributes"]}


def rendered(kind: str, seed: int, start: int, number: int, device: torch.device | str = "cpu") -> ClassifierBatch:
    """Scenes start … start + number − 1 of a seed, of which the reader's and the judge's are not the same, and their images."""
    scenes = [sample_scene(Draw(seed, kind, index)) for index in range(start, start + number)]
    chunk = CHUNK if torch.device(device).type == "cpu" else number
    images = [render(scenes[i : i + chunk], 64, device) for i in range(0, number, chunk)]
    return ClassifierBatch(torch.cat(images), scenes)


def train_classifier(
    kind: str, build: Callable[[], C], losses: Losses, run: ClassifierRun, out: Path, device: torch.device
) -> RunResult:
    """Train (or resume) in `out`; the finished classifier is `out/kind`, fp16."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(run.seed, kind, "weights"))
        classifier = build().to(device)

    def batch(split: str, start: int, number: int) -> ClassifierBatch:
        return rendered(kind, seed_of(run.seed, kind, split), start, number, device)

    size = run.task.batch_size
    validation = batch("validation", 0, VALIDATION_PICTURES)
    batches = lambda step: batch("training", step * size, size)  # noqa: E731
    task = ClassifierTask(classifier, losses, batches, validation, run.task, run.seed, precision_on(device))
    finished: list[C] = []

    def evaluate(_: FitResult) -> dict[str, float]:
        """Metrics of the calibrated classifier."""
        finished.append(_calibrated(classifier, batch("calibration", 0, CALIBRATION_PICTURES), run))
        return measure(finished[0], conditions(batch("test", 0, TEST_PICTURES))).metrics()

    def save(folder: Path, record: dict[str, Any]) -> None:
        finished[0].save_pretrained(folder, record, torch.float16)

    return train_part(run, task, out, save, kind=kind, measure=evaluate)


def _calibrated(classifier: C, batch: ClassifierBatch, run: ClassifierRun) -> C:
    """The classifier with the threshold that counts objects best on images of a separate split, half of them degraded as in training."""
    half = len(batch.scenes) // 2
    random = generator(run.seed, "classifier calibration", device=batch.images.device)
    worse = degraded(batch.images[half:], run.task.model_copy(update={"clean": 0.0}), random)
    threshold = best_threshold(classifier.eval(), torch.cat([batch.images[:half], worse]), batch.scenes)
    calibrated = type(classifier)(classifier.config.model_copy(update={"threshold": threshold}))
    calibrated.load_state_dict(classifier.state_dict())
    return calibrated.to(batch.images.device).eval()


@dataclass(frozen=True)
class ClassifierScores:
    """How well a classifier reads unseen pictures."""

    accuracy: dict[str, dict[str, float]]
    """Condition (`clean`, `blur`, `noise`, `mottle`, `shift`, perhaps `autoencoder`) → accuracy by kind."""
    count: dict[str, dict[int, float]]
    """Condition → true number of objects → share of right counts."""
    confusion: dict[str, dict[str, dict[str, int]]]
    """On clean pictures; see `classifier_scores.confusion`."""

    def metrics(self) -> dict[str, float]:
        """What a provenance records: everything on clean images, attributes and counts elsewhere."""
        found = {kind: share for kind, share in self.accuracy["clean"].items()}
        for condition, shares in self.accuracy.items():
            if condition != "clean":
                found |= {f"{condition}/{kind}": shares[kind] for kind in ("attributes", "count")}
        return found


@torch.no_grad()
def conditions(batch: ClassifierBatch, through: Callable[[Tensor], Tensor] | None = None) -> dict[str, ClassifierBatch]:
    """Renders as they are (`clean`) and under mild blur, noise, mottle and shift.

    Args:
        through: if given, images that it makes of the renders are condition `autoencoder`.
    """
    images, scenes = batch.images, batch.scenes
    random = generator(0, "classifier conditions", device=images.device)
    none = ClassifierTaskConfig(blur=0.01, noise=0.0, mottle=0.0, clean=0.0)
    found = {"clean": batch}
    for name, most in {"blur": BLUR, "noise": NOISE, "mottle": MOTTLE}.items():
        found[name] = ClassifierBatch(degraded(images, none.changed(**{name: most}), random), scenes)
    found["shift"] = ClassifierBatch(*shifted(images, scenes, SHIFT))
    if through is not None:
        found["autoencoder"] = ClassifierBatch(torch.cat([through(part) for part in images.split(CHUNK)]), scenes)
    return found


def measure(classifier: SceneClassifier, batches: Mapping[str, ClassifierBatch]) -> ClassifierScores:
    """Accuracy under each of `conditions`; confusion on clean renders."""
    readings = {name: read_all(classifier, batch.images) for name, batch in batches.items()}
    return ClassifierScores(
        {name: accuracy(readings[name], batch.scenes) for name, batch in batches.items()},
        {name: count_accuracy(readings[name], batch.scenes) for name, batch in batches.items()},
        confusion(readings["clean"], batches["clean"].scenes),
    )
