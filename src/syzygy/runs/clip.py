"""The starter's CLIP, trained from nothing on the embedded world."""

from pathlib import Path

import torch

from syzygy.config import Config
from syzygy.hub.clip import Clip, ClipConfig, build_clip
from syzygy.rng import Draw, seed_of
from syzygy.runs.common import RunResult, precision_on, provenance, reporter
from syzygy.train.clip import ClipBatch, ClipTask, ClipTaskConfig, alignment
from syzygy.train.loop import fit
from syzygy.train.schedule import LoopConfig
from syzygy.world import source
from syzygy.world.description import FULLY_TOLD
from syzygy.world.language.base import Length
from syzygy.world.language.english import FILLERS

TOKENIZER_CAPTIONS = 5000
VALIDATION_PAIRS = 512


class ClipRun(Config):
    """Everything that makes a CLIP of the embedded world."""

    clip: ClipConfig
    """Sizes."""
    task: ClipTaskConfig
    """What a step sees."""
    loop: LoopConfig
    """Length and learning rate."""
    seed: int = 0
    """Weights, scenes and captions follow from it."""


def train(run: ClipRun, out: Path, device: torch.device) -> RunResult:
    """Train (or resume) in `out`; the finished CLIP is `out/clip`, in transformers' layout, fp16."""
    texts = [p.caption.text for p in source.pairs(seed_of(run.seed, "tokenizer"), 0, TOKENIZER_CAPTIONS)]
    clip = build_clip(run.clip, [*texts, *FILLERS, *FILLERS], seed_of(run.seed, "clip weights")).to(device)
    unseen = distinct_full_pairs(seed_of(run.seed, "clip validation"), VALIDATION_PAIRS)
    validation = _batch(clip, unseen, [p.caption.text for p in unseen], device)

    def batches(step: int) -> ClipBatch:
        draw = Draw(run.seed, "clip step", step)
        length: Length = "medium" if draw.chance(run.task.medium_captions) else "short"
        size = run.task.batch_size
        found = source.pairs(run.seed, step * size, size, length=length)
        texts = [p.caption.text for p in found]
        for p in found[: round(run.task.hard_negatives * size)]:
            wrong = source.swapped(p, draw)
            texts += [wrong] if wrong else []
        return _batch(clip, found, texts, device)

    task = ClipTask(clip, batches, validation, run.task, autocast=precision_on(device))
    result = fit(task, run.loop, out, reporter=reporter("CLIP", run.task.batch_size), run=run.model_dump(mode="json"))
    metrics = measure(clip, unseen)
    samples = result.steps * run.task.batch_size
    clip.save_pretrained(out / "clip", provenance("clip", run, result, samples, metrics), torch.float16)
    return RunResult(out / "clip", metrics, result.history)


def distinct_full_pairs(seed: int, number: int) -> list[source.Pair]:
    """Unseen pairs whose captions tell all that captions can, no two alike."""
    found: dict[object, source.Pair] = {}
    index = 0
    while len(found) < number:
        p = source.pair(seed, index, told=FULLY_TOLD)
        found.setdefault(p.caption.description, p)
        index += 1
    return list(found.values())


def measure(clip: Clip, unseen: list[source.Pair]) -> dict[str, float]:
    """Matched cosine, distance of the two means, R@1 among these pairs (text → image)."""
    image = clip.encode_image(source.pictures(unseen, clip.image_size, clip.device))
    return alignment(image, clip.encode_text([p.caption.text for p in unseen]).pooled)


def _batch(clip: Clip, found: list[source.Pair], texts: list[str], device: torch.device) -> ClipBatch:
    ids, mask = clip.tokenize(texts)
    return ClipBatch(source.pictures(found, clip.image_size, device), ids.to(device), mask.to(device))
