"""The tokens that a language model reads around each text, and which of them give features.

Legend: B texts, T tokens.
"""

import re
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from syzygy.core.errors import UserError

HOLE = "{text}"
"""Placeholder for the text in a template."""
AUTO, END_OF_TEXT = "auto", "<|endoftext|>"
"""The start token of the tokenizer or, if it has none, this one, with which several families begin a document."""
_CONTROL = re.compile(r"<\|[^|<>\s]+\|>|</?s>|<(?:start|end)_of_turn>|<[be]os>|\[/?INST\]")
"""What looks like a special token in a template."""


@dataclass(frozen=True)
class Frame:
    """What stands before and after every text."""

    before: list[int]
    after: list[int]
    silent: tuple[int, int]
    """How many of `before`, from the first, and of `after`, up to the last but one, give no features."""

    @staticmethod
    def of(tokenizer: Any, template: str | None, start: str | None, source: str) -> "Frame":
        """
        Args:
            template: text with `HOLE` in it; its tokens give no features, nor do the special ones around it, but for the very last.
            start: a token to put first, which gives no feature, or `AUTO`.
            source: the tokenizer's name in messages.

        Raises:
            UserError: the tokenizer cannot end texts, puts special tokens into them, or knows no words; the start token is unknown to it, or
                is put there by itself; the template holds control tokens of another model.
        """
        before, after = _own(tokenizer, source)
        first = [] if start is None else [_start(tokenizer, start, before, source)]
        if template is None:
            return Frame(first + before, after, (len(first), 0))
        if strange := sorted(set(_CONTROL.findall(template)) - tokenizer.get_vocab().keys()):
            raise UserError(
                f"the template holds {', '.join(strange)}, which the tokenizer of {source} would read as ordinary characters. Use a template "
                "in the model's own format."
            )
        head, tail = (
            list(tokenizer(part, add_special_tokens=False)["input_ids"]) if part else []
            for part in template.split(HOLE)
        )
        before, after = first + before + head, tail + after
        return Frame(before, after, (len(before), len(after) - 1))

    def __len__(self) -> int:
        return len(self.before) + len(self.after)

    def kept(self, mask: Bool[Tensor, "B T"]) -> Bool[Tensor, "B T"]:
        """The tokens whose states are features. The very last one always is, as it has read the whole text."""
        first, last = self.silent
        length, place = mask.sum(1, keepdim=True), torch.arange(mask.shape[1])
        return mask & (place >= first) & ((place < length - 1 - last) | (place == length - 1))


def _own(tokenizer: Any, source: str) -> tuple[list[int], list[int]]:
    """The special tokens that the tokenizer puts around a text by itself, and an end token."""
    alone = tokenizer("a", add_special_tokens=False)["input_ids"]
    if not alone:  # if the file is missing, transformers makes an empty tokenizer for some families
        raise UserError(f"the tokenizer of {source} knows no words: its folder needs a tokenizer.json.")
    whole = list(tokenizer("a")["input_ids"])
    places = [i for i in range(len(whole)) if whole[i : i + len(alone)] == alone]
    if not places:
        raise UserError(f"the tokenizer of {source} puts special tokens into a text, not around it: use another model.")
    before, after = whole[: places[0]], whole[places[0] + len(alone) :]
    if not after:
        if tokenizer.eos_token_id is None:
            raise UserError(f"the tokenizer of {source} has no end token: set eos_token in its tokenizer_config.json.")
        after = [tokenizer.eos_token_id]
    return before, after


def _start(tokenizer: Any, start: str, before: list[int], source: str) -> int:
    """The id of the token that `start` names."""
    if before:
        names = " ".join(tokenizer.convert_ids_to_tokens(before))
        raise UserError(
            f"start_token={start!r} has no effect: the tokenizer of {source} puts {names} before every text by itself. Leave it out."
        )
    known = {token.content: number for number, token in tokenizer.added_tokens_decoder.items()}
    token = start if start != AUTO else tokenizer.bos_token or END_OF_TEXT
    if token in known:
        return known[token]
    if start == AUTO:
        raise UserError(
            f"start_token='auto': the tokenizer of {source} has neither a start token nor {END_OF_TEXT}. Name one of its special tokens, "
            f"such as {', '.join(sorted(known)[:5]) or 'none'}, or leave the setting out."
        )
    raise UserError(f"start_token={start!r} is no special token of {source}. It has: {', '.join(sorted(known)[:20])}.")
