"""The starter's reader, trained on rendered scenes."""

from pathlib import Path

import torch

from syzygy.config import Config
from syzygy.rng import seed_of
from syzygy.runs.common import RunResult, provenance, reporter
from syzygy.train.loop import fit
from syzygy.train.reader import ReaderBatch, ReaderTask, ReaderTaskConfig, accuracy
from syzygy.train.schedule import LoopConfig
from syzygy.world import source
from syzygy.world.reader import Reader, ReaderConfig

VALIDATION_PICTURES = 512
TEST_PICTURES = 2048


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
        found = source.pairs(seed, start, number)
        return ReaderBatch(source.pictures(found, device=device), [p.scene for p in found])

    seed, size = seed_of(run.seed, "reader"), run.task.batch_size
    validation = batch(seed_of(run.seed, "reader validation"), 0, VALIDATION_PICTURES)
    task = ReaderTask(reader, lambda step: batch(seed, step * size, size), validation, run.task, run.seed)
    result = fit(task, run.loop, out, reporter=reporter("reader", size), run=run.model_dump(mode="json"))
    test = batch(seed_of(run.seed, "reader test"), 0, TEST_PICTURES)
    metrics = accuracy(reader, test.images, test.scenes)
    reader.save_pretrained(
        out / "reader", provenance("reader", run, result, result.steps * size, metrics), torch.float16
    )
    return RunResult(out / "reader", metrics, result.history)
