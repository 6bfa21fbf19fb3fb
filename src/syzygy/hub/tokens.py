"""Tokenised texts as tensors, with the characters that each token stands for; nothing is cut in silence. Tokenizers to learn."""

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor


@dataclass(frozen=True)
class Tokenized:
    """B texts, padded on the right to the longest of T tokens; all on the CPU."""

    ids: Int[Tensor, "B T"]
    mask: Bool[Tensor, "B T"]
    spans: Int[Tensor, "B T 2"]
    """Characters (from, to) of its text that each token stands for; equal for special tokens and pads, which stand for none."""


def tokenized(
    tokenizer: Any,
    texts: list[str],
    *,
    most: int,
    before: Sequence[int],
    after: Sequence[int],
    pad: int,
    stacklevel: int,
) -> Tokenized:
    """Token ids between special ones; texts that are too long are cut with a warning.

    Args:
        tokenizer: a fast one of transformers.
        most: tokens that fit, special ones included.
        before: ids that each text begins with.
        after: ids that each text ends with, cut or not.
        pad: what fills up shorter texts.
        stacklevel: of the warning, as `warnings.warn` takes it from here.
    """
    encoded = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    room = most - len(before) - len(after)
    rows, places = [], []
    for text, ids, spans in zip(texts, encoded["input_ids"], encoded["offset_mapping"], strict=True):
        if len(ids) > room:
            cut = text[spans[room][0] :].strip()
            warnings.warn(
                f"the prompt has {len(ids) + most - room} tokens, this encoder reads {most}; cut: "
                f"{cut if len(cut) <= 160 else f'{cut[:80]} … {cut[-80:]}'!r}",
                stacklevel=stacklevel,
            )
        rows.append([*before, *ids[:room], *after])
        places.append([*[(0, 0)] * len(before), *spans[:room], *[(0, 0)] * len(after)])
    length = max(map(len, rows))
    ids = torch.tensor([row + [pad] * (length - len(row)) for row in rows])
    mask = torch.arange(length)[None] < torch.tensor([len(row) for row in rows])[:, None]
    return Tokenized(ids, mask, torch.tensor([row + [(0, 0)] * (length - len(row)) for row in places]))


ENOUGH = 256
"""Tokens, pads included, that a pass of a transformer has at least: of fewer, reading its weights costs more than computing."""
LIKE = 0.8
"""How long a text is at least, as a part of the longest that it is padded to."""


def alike(mask: Bool[Tensor, "B T"]) -> list[tuple[Int[Tensor, "b"], int]]:
    """Texts of like length: which of the B, and how long their longest is. As padded together they cost little more than their own tokens.

    (96 captions of six languages are to two thirds padding as one batch.)
    """
    lengths = mask.sum(1).cpu()
    order = lengths.argsort(descending=True, stable=True)
    sorted_lengths, starts = lengths[order].tolist(), [0]
    for i, length in enumerate(sorted_lengths):
        longest = sorted_lengths[starts[-1]]
        if length < LIKE * longest and (i - starts[-1]) * longest >= ENOUGH:
            starts.append(i)
    sizes = [stop - start for start, stop in pairwise([*starts, len(order)])]
    return [(rows, sorted_lengths[start]) for rows, start in zip(order.split(sizes), starts, strict=True)]


def learned_bpe(texts: Iterable[str], vocabulary: int, marks: Sequence[str], apart: str | None = None) -> Any:
    """A `tokenizers.Tokenizer` of byte-level BPE, so that every script can be spelled; capitals are kept.

    Args:
        vocabulary: most tokens, the 256 bytes and `marks` included.
        marks: special tokens; they get the first ids.
        apart: a regular expression; what fits it is a word of its own, so that no token reaches beyond it.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    learner = Tokenizer(models.BPE())
    learner.normalizer = normalizers.NFC()
    words = pre_tokenizers.ByteLevel(add_prefix_space=True)
    if apart is not None:
        words = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(apart), "isolated"), words])
    learner.pre_tokenizer = words
    learner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        min_frequency=2,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=list(marks),
        show_progress=False,
    )
    learner.train_from_iterator(texts, trainer)
    return learner
