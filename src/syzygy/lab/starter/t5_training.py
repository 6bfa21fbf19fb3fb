"""The starter's T5, pre-trained from nothing on the embedded world's captions, long ones included.

Span corruption (Raffel et al. 2020, arXiv 1910.10683, section 3.1.4): the model predicts the spans of tokens that were left out.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Int
from pydantic import Field
from torch import Tensor, nn

from syzygy.core.config import Config
from syzygy.core.randomness import Draw, generator, seed_of
from syzygy.lab.world import scene_source
from syzygy.lab.world.language.base import Length
from syzygy.text_encoders.t5 import SENTINELS, T5Config, T5Text, build_t5
from syzygy.training.precision import autocast, precision_on
from syzygy.training.run_records import RunResult, train_part
from syzygy.training.schedule import LoopConfig

TOKENIZER_CAPTIONS = 2000
VALIDATION_CAPTIONS = 128
LENGTHS: tuple[Length, ...] = ("short", "medium", "long")
IGNORED = -100
"""Label that cross-entropy ignores: the padding of the targets."""


class T5TaskConfig(Config):
    """What one training step of a T5 sees."""

    batch_size: int = Field(default=64, ge=1)
    """Texts per step."""
    density: float = Field(default=0.15, gt=0, lt=1)
    """Share of the tokens that is left out (the paper's value)."""
    mean_span: float = Field(default=3.0, ge=1)
    """Average length of a span that is left out, in tokens (the paper's value)."""


def spans_left_out(length: int, density: float, mean_span: float, random: torch.Generator) -> Bool[Tensor, "length"]:
    """Choose the tokens to leave out: whole spans that do not touch, never the first token, and at least one token.

    As in the paper, the number of tokens follows from the density. They are divided at random into spans, between random spans that are
    kept. Nothing is left out of a text of one token.
    """
    if length < 2:
        return torch.zeros(length, dtype=torch.bool)
    hidden = min(max(round(length * density), 1), length - 1)
    spans = min(max(round(hidden / mean_span), 1), length - hidden)
    out, kept = _cut(hidden, spans, random), _cut(length - hidden, spans, random)
    pattern = torch.tensor([False, True]).repeat(spans)
    return pattern.repeat_interleave(torch.stack([kept, out], 1).flatten())


def _cut(total: int, parts: int, random: torch.Generator) -> Int[Tensor, "parts"]:
    """`total` as a random sum of `parts` positive numbers."""
    places = torch.randperm(total - 1, generator=random)[: parts - 1].sort().values + 1
    return torch.cat([torch.tensor([0]), places, torch.tensor([total])]).diff()


def corrupted(
    ids: Sequence[int], out: Bool[Tensor, "length"], sentinels: Sequence[int], end: int
) -> tuple[list[int], list[int]]:
    """The text with a sentinel for each span that is left out, and the target: each sentinel with its span. Both end with `end`.

    Spans beyond the last sentinel are kept.
    """
    given, answer, number, hidden = [], [], -1, False
    for token, left_out in zip(ids, out.tolist(), strict=True):
        if left_out and not hidden:
            number += 1
        hidden = left_out
        if not left_out or number >= len(sentinels):
            given.append(token)
            continue
        if not answer or given[-1] != sentinels[number]:
            given.append(sentinels[number])
            answer.append(sentinels[number])
        answer.append(token)
    return [*given, end], [*answer, end]


class T5Task:
    """The training loop's `Task` for a T5: `batches(step)` gives token ids of a step's texts, without their end."""

    def __init__(
        self,
        model: nn.Module,
        batches: Callable[[int], list[list[int]]],
        validation: list[list[int]],
        config: T5TaskConfig,
        seed: int,
        *,
        pad: int,
        end: int,
        sentinels: Sequence[int],
        precision: torch.dtype | None = None,
    ) -> None:
        self.modules = {"t5": model}
        self._model, self._batches, self._validation = model, batches, validation
        self._config, self._seed, self._precision = config, seed, precision
        self._pad, self._end, self._sentinels = pad, end, list(sentinels)

    def loss(self, step: int) -> dict[str, Tensor]:
        """Mean cross-entropy of the tokens of the targets."""
        logits, labels = self._answered(self._batches(step), "step", step)
        return {
            "loss": nn.functional.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), ignore_index=IGNORED)
        }

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Cross-entropy and accuracy of the tokens that were left out, on unseen texts with the same spans each time."""
        logits, labels = self._answered(self._validation, "validation")
        loss = nn.functional.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), ignore_index=IGNORED)
        words = (labels != IGNORED) & (labels != self._end)
        for mark in self._sentinels:
            words &= labels != mark
        return {"loss": loss.item(), "accuracy": (logits.argmax(-1) == labels)[words].float().mean().item()}

    def _answered(self, texts: list[list[int]], *key: Any) -> tuple[Tensor, Int[Tensor, "B A"]]:
        """Logits [B, A, V] and labels of the targets; the spans follow from (seed, key, row)."""
        given, answers = [], []
        for row, ids in enumerate(texts):
            random = generator(self._seed, "t5", *key, row)
            out = spans_left_out(len(ids), self._config.density, self._config.mean_span, random)
            text, answer = corrupted(ids, out, self._sentinels, self._end)
            given.append(text)
            answers.append(answer)
        device = next(self._model.parameters()).device
        ids, labels = _padded(given, self._pad).to(device), _padded(answers, IGNORED).to(device)
        with autocast(device, self._precision):
            logits = self._model(input_ids=ids, attention_mask=(ids != self._pad).long(), labels=labels).logits
        return logits, labels


def _padded(rows: list[list[int]], pad: int) -> Int[Tensor, "B T"]:
    length = max(map(len, rows))
    return torch.tensor([row + [pad] * (length - len(row)) for row in rows])


class T5Run(Config):
    """All settings of a T5 of the embedded world."""

    t5: T5Config
    """Sizes."""
    task: T5TaskConfig
    """What a step sees."""
    loop: LoopConfig
    """Length and learning rate."""
    seed: int = 0
    """Seed of weights, captions and spans."""


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

    def save(folder: Path, record: dict[str, Any]) -> None:
        t5.save_pretrained(folder, record, torch.float16)

    return train_part(run, task, out, save, kind="t5", report="T5")


def _captions(seed: int, start: int, number: int, length: Length) -> list[str]:
    return [pair.caption.text for pair in scene_source.pairs(seed, start, number, length=length)]


def _ids(t5: T5Text, texts: list[str]) -> list[list[int]]:
    """Token ids without the end token, before which spans are left out."""
    found = t5.tokenize(texts)
    return [ids[mask].tolist()[:-1] for ids, mask in zip(found.ids, found.mask, strict=True)]
