"""The starter's language model, trained from nothing on the embedded world's captions, short and long, in all its languages."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from pydantic import Field

from syzygy.core.config import Config
from syzygy.core.randomness import Draw, seed_of
from syzygy.lab.starter.lm_task import Batch, LmTask, LmTaskConfig
from syzygy.lab.starter.tiny_lm import CausalLm, LmConfig, build_lm
from syzygy.lab.world import scene_source
from syzygy.lab.world.language.base import Length
from syzygy.training.loop import fit
from syzygy.training.precision import precision_on
from syzygy.training.run_records import RunResult, provenance, reporter
from syzygy.training.schedule import LoopConfig

TOKENIZER_CAPTIONS = 500
"""The tokenizer learns from so many of each language and length."""
VALIDATION_CAPTIONS = 24
"""Of each language and length."""
LENGTHS: tuple[Length, ...] = ("short", "medium", "long")
OFTEN: tuple[Length, ...] = ("short", "short", "medium", "medium", "long")
"""What a step may read: a long caption takes the time of ten short ones, and most of it says nothing of a scene."""


class LmRun(Config):
    """Everything that makes a language model of the embedded world."""

    lm: LmConfig
    """Sizes."""
    languages: tuple[str, ...] = Field(min_length=1)
    """Codes of the languages whose captions it reads, all equally often."""
    task: LmTaskConfig
    """What a step sees."""
    loop: LoopConfig
    """Length and learning rate."""
    seed: int = 0
    """Weights and captions follow from it."""


def train(run: LmRun, out: Path, device: torch.device) -> RunResult:
    """Train (or resume) in `out`; the finished model is `out/llm`, in transformers' layout, fp16. Held-out compositions stay out."""
    lm = build_lm(run.lm, _learned_from(run), seed_of(run.seed, "lm weights"))
    lm.model.to(device)

    def batches(step: int) -> Batch:
        length = Draw(run.seed, "lm step", step).pick(OFTEN)
        size = run.task.batch_size
        return _tokenized(lm, _captions(run.seed, step * size, size, length, run.languages))

    unseen = {language: _unseen(run.seed, language) for language in run.languages}
    together = {language: [text for some in texts.values() for text in some] for language, texts in unseen.items()}
    validation = {language: _tokenized(lm, texts) for language, texts in together.items()}
    task = LmTask(lm.model, batches, validation, run.task, precision=precision_on(device))
    result = fit(task, run.loop, out, reporter=reporter("LM", run.task.batch_size), run=run.model_dump(mode="json"))
    record = provenance("lm", run, result, result.steps * run.task.batch_size, result.metrics)
    record["tokens_per_caption"] = {language: tokens_per_caption(lm, texts) for language, texts in unseen.items()}
    lm.save_pretrained(out / "llm", record, torch.float16)
    return RunResult(out / "llm", result.metrics, result.history)


def tokens_per_caption(lm: CausalLm, texts: Mapping[Length, list[str]]) -> dict[str, float]:
    """Of each length, on average, start and end included."""
    return {length: round(_tokenized(lm, some)[1].sum(1).float().mean().item(), 1) for length, some in texts.items()}


def _learned_from(run: LmRun) -> list[str]:
    seed = seed_of(run.seed, "tokenizer")
    return [
        text
        for length in LENGTHS
        for text in _captions(seed, 0, TOKENIZER_CAPTIONS * len(run.languages), length, run.languages)
    ]


def _unseen(seed: int, language: str) -> dict[Length, list[str]]:
    key = seed_of(seed, "lm validation")
    return {length: _captions(key, 0, VALIDATION_CAPTIONS, length, [language]) for length in LENGTHS}


def _captions(seed: int, start: int, number: int, length: Length, languages: Sequence[str]) -> list[str]:
    """Captions of so many scenes, in one language after the other."""
    return [
        scene_source.pair(seed, i, unseen=False, length=length, lang=languages[i % len(languages)]).caption.text
        for i in range(start, start + number)
    ]


def _tokenized(lm: CausalLm, texts: list[str]) -> Batch:
    found = lm.reader.tokenize(texts)
    return found.ids, found.mask
