"""Tokenised texts as tensors, with the characters that each token stands for; nothing is cut in silence."""

import warnings
from dataclasses import dataclass
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


def tokenized(tokenizer: Any, texts: list[str], *, most: int, start: int | None, stacklevel: int) -> Tokenized:
    """Token ids with an end token, and with a start token where there is one; texts that are too long are cut with a warning.

    Args:
        tokenizer: a fast one of transformers.
        most: tokens that fit, special ones included.
        start: the start token's id.
        stacklevel: of the warning, as `warnings.warn` takes it from here.
    """
    encoded = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    before = [] if start is None else [start]
    room = most - 1 - len(before)
    rows, places = [], []
    for text, ids, spans in zip(texts, encoded["input_ids"], encoded["offset_mapping"], strict=True):
        if len(ids) > room:
            cut = text[spans[room][0] :].strip()
            warnings.warn(
                f"the prompt has {len(ids) + most - room} tokens, this encoder reads {most}; cut: "
                f"{cut if len(cut) <= 160 else f'{cut[:80]} … {cut[-80:]}'!r}",
                stacklevel=stacklevel,
            )
        rows.append([*before, *ids[:room], tokenizer.eos_token_id])
        places.append([*[(0, 0)] * len(before), *spans[:room], (0, 0)])
    length = max(map(len, rows))
    ids = torch.tensor([row + [tokenizer.pad_token_id] * (length - len(row)) for row in rows])
    mask = torch.arange(length)[None] < torch.tensor([len(row) for row in rows])[:, None]
    return Tokenized(ids, mask, torch.tensor([row + [(0, 0)] * (length - len(row)) for row in places]))
