"""Texts → features through the text tower of a CLIP, on its own or as a component of a pipeline of diffusers.

Legend: B texts, T tokens of the longest, D width of CLIP's joint space.
"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from syzygy.clip.tokenization import Tokenized, alike, tokenized
from syzygy.core.contracts import TextFeatures

ReadTokens = Callable[[Int[Tensor, "B T"], Bool[Tensor, "B T"]], TextFeatures]
"""Token ids and mask → features."""


def clip_tokens(tokenizer: Any, texts: list[str], positions: int, *, stacklevel: int) -> Tokenized:
    """Token ids between CLIP's start and end tokens; texts that are longer than `positions` tokens are cut with a warning."""
    start, end, pad = (getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad"))
    around = {"before": [start], "after": [end], "pad": pad}
    return tokenized(tokenizer, texts, most=positions, **around, stacklevel=stacklevel + 1)


def read_tokens(found: Tokenized, read: ReadTokens, width: int, device: torch.device) -> TextFeatures:
    """Features in fp32, with spans. Texts of like length are read together, so that little padding is computed.

    Args:
        read: the text tower.
        width: D.
        device: where the tower computes; the features stay there.
    """
    ids, mask = found.ids.to(device), found.mask.to(device)
    states = torch.zeros(*ids.shape, width, dtype=torch.float32, device=device)
    pooled = torch.zeros(len(ids), width, dtype=torch.float32, device=device)
    for rows, length in alike(found.mask):
        at = rows.to(device)
        features = read(ids[at, :length], mask[at, :length])
        states[at, :length], pooled[at] = features.states.float(), features.pooled.float()
    return TextFeatures(states, mask, pooled, found.spans)


@torch.no_grad()
def read_texts(model: Any, tokenizer: Any, texts: list[str], device: torch.device) -> TextFeatures:
    """What `Clip.encode_text` returns, from transformers' `CLIPTextModelWithProjection`.

    The model itself is called, so that hooks that move it (offloading) run.

    Args:
        device: where the model computes.

    A warning of a text that is too long points to the caller of the pipeline.
    """

    def read(ids: Tensor, mask: Tensor) -> TextFeatures:
        output = model(input_ids=ids, attention_mask=mask.long())
        return TextFeatures(output.last_hidden_state, mask, output.text_embeds)

    found = clip_tokens(tokenizer, texts, model.config.max_position_embeddings, stacklevel=7)
    return read_tokens(found, read, model.config.projection_dim, device)
