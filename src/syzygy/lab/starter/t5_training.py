"""The starter's T5, pre-trained from nothing on the embedded world's captions, long ones included."""

from pathlib import Path

import torch

from syzygy.core.config import Config
from syzygy.core.randomness import Draw, seed_of
from syzygy.lab.starter.t5_task import T5Task, T5TaskConfig
from syzygy.lab.world import scene_source
from syzygy.lab.world.language.base import Length
from syzygy.text_encoders.t5 import SENTINELS, T5Config, T5Text, build_t5
from syzygy.training.loop import fit
from syzygy.training.precision import precision_on
from syzygy.training.run_records import RunResult, provenance, reporter
from syzygy.training.schedule import LoopConfig

TOKENIZER_CAPTIONS = 2000
VALIDATION_CAPTIONS = 128
LENGTHS: tuple[Length, ...] = ("short", "medium", "long")


class T5Run(Config):
    """Everything that makes a T5 of the embedded world."""

    t5: T5Config
    """Sizes."""
    task: T5TaskConfig
    """What a step sees."""
    loop: LoopConfig
    """Length and learning rate."""
    seed: int = 0
    """Weights, captions and spans follow from it."""


def train(run: T5Run, out: Path, device: torch.device) -> RunResult:
    """Train (or resume) in `out`; the finished encoder is `out/t5`, in transformers' layout, fp16."""
    learned_from = [
        text for length in LENGTHS for text in _captions(seed_of(run.seed, "tokenizer"), 0, TOKENIZER_CAPTIONS, length)
    ]
    t5 = build_t5(run.t5, learned_from, seed_of(run.seed, "t5 weights")).to(device)

    def batches(step: int) -> list[list[int]]:
        length = Draw(run.seed, "t5 step", step).pick(LENGTHS)
        size = run.task.batch_size
        return _ids(t5, _captions(run.seed, step * size, size, length))

    unseen = [
        text
        for length in LENGTHS
        for text in _captions(seed_of(run.seed, "t5 validation"), 0, VALIDATION_CAPTIONS // len(LENGTHS), length)
    ]
    marks = [t5.tokenizer.convert_tokens_to_ids(f"<extra_id_{i}>") for i in range(SENTINELS)]
    task = T5Task(
        t5.model,
        batches,
        _ids(t5, unseen),
        run.task,
        run.seed,
        pad=t5.tokenizer.pad_token_id,
        end=t5.tokenizer.eos_token_id,
        sentinels=marks,
        precision=precision_on(device),
    )
    result = fit(task, run.loop, out, reporter=reporter("T5", run.task.batch_size), run=run.model_dump(mode="json"))
    record = provenance("t5", run, result, result.steps * run.task.batch_size, result.metrics)
    t5.save_pretrained(out / "t5", record, torch.float16)
    return RunResult(out / "t5", result.metrics, result.history)


def _captions(seed: int, start: int, number: int, length: Length) -> list[str]:
    return [pair.caption.text for pair in scene_source.pairs(seed, start, number, length=length)]


def _ids(t5: T5Text, texts: list[str]) -> list[list[int]]:
    """Without their end: spans are left out before it."""
    found = t5.tokenize(texts)
    return [ids[mask].tolist()[:-1] for ids, mask in zip(found.ids, found.mask, strict=True)]
