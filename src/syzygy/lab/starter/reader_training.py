"""The starter's reader, trained on rendered scenes."""

from dataclasses import dataclass
from pathlib import Path

import torch

from syzygy.core.config import Config
from syzygy.core.randomness import generator, seed_of
from syzygy.lab.starter.reader_task import ReaderBatch, ReaderTask, ReaderTaskConfig, degraded
from syzygy.lab.world import scene_source
from syzygy.lab.world.reader import Reader, ReaderConfig
from syzygy.lab.world.reader_scores import accuracy, best_threshold, confusion, read_all, shifted
from syzygy.training.loop import fit
from syzygy.training.run_records import RunResult, provenance, reporter
from syzygy.training.schedule import LoopConfig

VALIDATION_PICTURES = 512
CALIBRATION_PICTURES = 1024
TEST_PICTURES = 2048
BLUR, NOISE, SHIFT = 0.8, 0.05, (2, -1)
"""Mild: largest blur in pixels and noise (each picture draws its own), and the shift in pixels to the right and down."""


class ReaderRun(Config):
    """Everything that makes a reader of the embedded world."""

    reader: ReaderConfig
    """Sizes."""
    task: ReaderTaskConfig
    """What a step sees."""
    loop: LoopConfig
    """Length and learning rate."""
    seed: int = 0
    """Weights and scenes follow from it."""


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
    result = fit(task, run.loop, out, reporter=reporter("reader", size), run=run.model_dump(mode="json"))
    reader = _calibrated(reader, batch(seed_of(run.seed, "reader calibration"), 0, CALIBRATION_PICTURES), run)
    metrics = {
        name if condition == "clean" else f"{condition}/{name}": value
        for condition, scores in measure(reader, seed_of(run.seed, "reader test"), TEST_PICTURES).accuracy.items()
        for name, value in scores.items()
        if condition == "clean" or name == "attributes"
    }
    reader.save_pretrained(
        out / "reader", provenance("reader", run, result, result.steps * size, metrics), torch.float16
    )
    return RunResult(out / "reader", metrics, result.history)


def _calibrated(reader: Reader, batch: ReaderBatch, run: ReaderRun) -> Reader:
    """The reader with the threshold that counts best on pictures of a split of its own, half of them degraded as in training."""
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
    """On clean pictures; see `reading.confusion`."""


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
