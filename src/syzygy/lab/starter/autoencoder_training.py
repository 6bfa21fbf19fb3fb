"""The starter's autoencoder, trained on rendered scenes."""

from pathlib import Path
from typing import Any

import torch

from syzygy.core.config import Config
from syzygy.core.randomness import seed_of
from syzygy.decoder.autoencoder import AutoencoderConfig, build_autoencoder
from syzygy.decoder.autoencoder_task import AutoencoderTask, AutoencoderTaskConfig
from syzygy.lab.world import scene_source
from syzygy.training.loop import FitResult
from syzygy.training.precision import precision_on
from syzygy.training.run_records import RunResult, train_part
from syzygy.training.schedule import LoopConfig

STATISTICS_PICTURES = 2048
VALIDATION_PICTURES = 256


class AutoencoderRun(Config):
    """All settings of an autoencoder of the embedded world."""

    autoencoder: AutoencoderConfig
    """Sizes."""
    task: AutoencoderTaskConfig
    """What a step sees."""
    loop: LoopConfig
    """Length and learning rate."""
    seed: int = 0
    """Seed of weights, scenes and noise."""


def train(run: AutoencoderRun, out: Path, device: torch.device) -> RunResult:
    """Train (or resume) in `out`; the finished autoencoder is `out/autoencoder`, fp16."""
    autoencoder = build_autoencoder(run.autoencoder, seed=run.seed).to(device)
    seed, size = seed_of(run.seed, "autoencoder"), run.task.batch_size

    def pictures(of: int, start: int, number: int) -> torch.Tensor:
        return scene_source.pictures(scene_source.pairs(of, start, number), run.autoencoder.image_size, device)

    unseen = pictures(seed_of(run.seed, "autoencoder validation"), 0, VALIDATION_PICTURES)
    task = AutoencoderTask(
        autoencoder,
        lambda step: pictures(seed, step * size, size),
        unseen,
        run.task,
        run.seed,
        precision=precision_on(device),
    )

    def measure(result: FitResult) -> dict[str, float]:
        with torch.no_grad():
            sample = [pictures(seed, start, 256) for start in range(0, STATISTICS_PICTURES, 256)]
            raw = torch.cat([autoencoder.raw_latents(part) for part in sample])
        autoencoder.set_statistics(raw.mean((0, 2, 3)), raw.std((0, 2, 3)))
        error = (autoencoder.decode(autoencoder.encode(unseen)) - unseen).square().mean()
        return {"psnr": float(-10 * error.log10()), "nats": result.history[-1]["validation/nats"]}

    def save(folder: Path, record: dict[str, Any]) -> None:
        autoencoder.save_pretrained(folder, record, torch.float16)

    return train_part(run, task, out, save, kind="autoencoder", measure=measure)
