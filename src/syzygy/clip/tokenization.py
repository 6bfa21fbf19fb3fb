"""Tokenised texts as tensors, with the characters that each token stands for; nothing is cut in silence. Tokenizers to learn."""

import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from syzygy.core.errors import UserError


@dataclass(frozen=True)
class Tokenized:
    """B texts, padded on the right to the longest of T tokens; all on the CPU."""

    ids: Int[Tensor, "B T"]
    mask: Bool[Tensor, "B T"]
    spans: Int[Tensor, "B T 2"]
    """Characters (from, to) of its text that each token stands for; equal for special tokens and pads, which stand for none."""


_truncations: ContextVar[list[tuple[str, str]] | None] = ContextVar("truncations", default=None)


@contextmanager
def collected_truncations() -> Iterator[list[tuple[str, str]]]:
    """Collect each text that is cut inside the block, and the sentence about it, instead of warning.

    Warnings belong to the whole process, and end in its log. This belongs to the thread that enters the block.
    """
    found: list[tuple[str, str]] = []
    token = _truncations.set(found)
    try:
        yield found
    finally:
        _truncations.reset(token)


def tokenized(
    tokenizer: Any,
    texts: list[str],
    *,
    most: int,
    before: Sequence[int],
    after: Sequence[int],
    pad: int,
    stacklevel: int,
    control: bool = False,
) -> Tokenized:
    """Token ids between special ones; texts that are too long are cut with a warning, or collected by `collected_truncations`.

    Args:
        tokenizer: a fast one of transformers.
        most: tokens that fit, special ones included.
        before: ids that each text begins with.
        after: ids that each text ends with, cut or not.
        pad: what fills up shorter texts.
        stacklevel: of the warning, as `warnings.warn` takes it from here.
        control: whether `</s>` and other special tokens that are spelled out in a text act as such (see `encoded`).
    """
    room = most - len(before) - len(after)
    rows, places = [], []
    for text, (ids, spans) in zip(texts, encoded(tokenizer, texts, control=control), strict=True):
        if len(ids) > room:
            cut = text[spans[room][0] :].strip()
            sentence = (
                f"the prompt has {len(ids) + most - room} tokens, this encoder reads {most}; cut: "
                f"{cut if len(cut) <= 160 else f'{cut[:80]} … {cut[-80:]}'!r}"
            )
            if (found := _truncations.get()) is not None:
                found.append((text, sentence))
            else:
                warnings.warn(sentence, stacklevel=stacklevel)
        rows.append([*before, *ids[:room], *after])
        places.append([*[(0, 0)] * len(before), *spans[:room], *[(0, 0)] * len(after)])
    length = max(map(len, rows))
    ids = torch.tensor([row + [pad] * (length - len(row)) for row in rows])
    mask = torch.arange(length)[None] < torch.tensor([len(row) for row in rows])[:, None]
    return Tokenized(ids, mask, torch.tensor([row + [(0, 0)] * (length - len(row)) for row in places]))


Spans = list[tuple[int, int]]


def encoded(tokenizer: Any, texts: Sequence[str], *, control: bool = False) -> list[tuple[list[int], Spans]]:
    """Token ids of each text and the characters that each token stands for, without start and end tokens.

    A special token that is spelled out in a text ("</s>", "<|endoftext|>", "<|im_end|>") is read as ordinary characters: users write
    text, and only a template may hold control tokens. Added tokens that the tokenizer does not declare as special (such as Gemma's
    runs of spaces) stay what they are, unless they have the form "<|…|>" (such as Qwen's "<|fim_prefix|>").

    Args:
        control: let them act as special tokens, as the tokenizer does by default and as diffusers' pipelines read prompts.
    """
    rows = _as_it_is(tokenizer, texts)
    marks = set() if control else _marks(tokenizer)
    return [
        row if marks.isdisjoint(row[0]) else _spelled(tokenizer, marks, text)
        for text, row in zip(texts, rows, strict=True)
    ]


def _as_it_is(tokenizer: Any, texts: Sequence[str], **more: Any) -> list[tuple[list[int], Spans]]:
    found = tokenizer(list(texts), add_special_tokens=False, return_offsets_mapping=True, verbose=False, **more)
    return list(zip(found["input_ids"], found["offset_mapping"], strict=True))


def _marks(tokenizer: Any) -> set[int]:
    """Ids of tokens that no text may hold.

    The token for unknown characters may, unless it has another task too (CLIP's ends texts); so may "!", with which some CLIPs pad.
    """
    added = tokenizer.added_tokens_decoder
    found = {
        i
        for i, token in added.items()
        if len(token.content) > 1 and (token.special or re.fullmatch(r"<\|.*\|>", token.content))
    }
    unknown = tokenizer.unk_token_id
    return found if unknown in around_ids(tokenizer) else found - {unknown}


def _spelled(tokenizer: Any, marks: set[int], text: str) -> tuple[list[int], Spans]:
    """A text that holds some of `marks`, as ordinary characters.

    Where the tokenizer alone cannot do that, the text is encoded in pieces that cut each mark after its first character: vocabularies of
    SentencePiece (T5, XLM-R) hold "</s>" among their ordinary pieces as well, and tokens such as "<|fim_prefix|>" may not be special.
    """
    (row,) = _as_it_is(tokenizer, [text], split_special_tokens=True)
    cuts = [spans[0] + 1 for i, spans in zip(*row, strict=True) if i in marks and spans[1] - spans[0] > 1]
    if not cuts:
        return row
    ids: list[int] = []
    places: Spans = []
    for start, stop in pairwise([0, *cuts, len(text)]):
        ((own, spans),) = encoded(tokenizer, [text[start:stop]])
        ids += own
        places += [(start + low, start + high) for low, high in spans]
    return ids, places


def around_ids(tokenizer: Any) -> tuple[int | None, ...]:
    """Ids of start, end and padding."""
    return tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id


def check_vocabulary(tokenizer: Any, rows: int, source: str, used: Iterable[int | None]) -> None:
    """Refuse a tokenizer whose tokens a model has no embeddings for.

    Special tokens (as Gemma 3's for images) may be more, as no text can hold them.

    Args:
        used: ids of the special tokens that are put around texts all the same.
        rows: of the model's embedding matrix.
        source: what to call the model's folder.

    Raises:
        UserError: names the tokens.
    """
    if len(tokenizer) <= rows:
        return
    unreachable = (_marks(tokenizer) | {tokenizer.unk_token_id}) - set(used)
    beyond = sorted((i, token) for token, i in tokenizer.get_vocab().items() if i >= rows and i not in unreachable)
    if beyond:
        names = ", ".join(repr(token) for _, token in beyond[:5]) + (", …" if len(beyond) > 5 else "")
        raise UserError(
            f"{source}: the model has no embedding for {len(beyond)} of its tokenizer's tokens ({names}): the tokenizer has "
            f"{len(tokenizer)}, the model {rows}. Use the model's own tokenizer, or save the model again after "
            f"resize_token_embeddings({len(tokenizer)})."
        )


ENOUGH = 256
"""Tokens, pads included, that a pass of a transformer has at least: of fewer, reading its weights costs more than computing."""
LIKE = 0.8
"""How long a text is at least, as a part of the longest that it is padded to."""


def alike(mask: Bool[Tensor, "B T"], most: int | None = None) -> list[tuple[Int[Tensor, "b"], int]]:
    """Texts of like length: which of the B, and how long their longest is. As padded together they cost little more than their own tokens.

    (96 captions of six languages are to two thirds padding as one batch.)

    Args:
        most: tokens of a pass, pads included, which bounds its memory; a longer text is a pass of its own. None: no bound.
    """
    lengths = mask.sum(1).cpu()
    order = lengths.argsort(descending=True, stable=True)
    sorted_lengths, starts = lengths[order].tolist(), [0]
    for i, length in enumerate(sorted_lengths):
        longest = sorted_lengths[starts[-1]]
        shorter = length < LIKE * longest and (i - starts[-1]) * longest >= ENOUGH
        if shorter or (most is not None and i > starts[-1] and (i + 1 - starts[-1]) * longest > most):
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
