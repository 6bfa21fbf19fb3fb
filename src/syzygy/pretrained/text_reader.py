"""The text encoders that Stable Diffusion's and Stable unCLIP's U-Nets were trained with, in a folder of diffusers' layout."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from syzygy.clip import clip_loading
from syzygy.clip.tokenization import Tokenized, around_ids, check_vocabulary
from syzygy.core import artifacts
from syzygy.core.config import parse
from syzygy.core.prompt_embeddings import PromptEmbeddings
from syzygy.pretrained.families import LoadContext
from syzygy.pretrained.visiting import visiting
from syzygy.regions.attention_processors import padded_tokens
from syzygy.text_encoders.prompt_target import PromptTarget

TEXT_ENCODER, TOKENIZER = "text_encoder", "tokenizer"
SECOND_TEXT_ENCODER, SECOND_TOKENIZER = "text_encoder_2", "tokenizer_2"
"""Stable Diffusion XL's further ones."""
OPENAI = "quick_gelu"
"""The activation of OpenAI's CLIP, whose text encoder 1.x has; that of 2.x is OpenCLIP's."""
PREFIX = "text_model."
"""How the names of the weights begin that were saved before transformers 5."""


@dataclass(frozen=True)
class TextReader:
    """The U-Net's own text encoder; or XL's two, whose states are concatenated along the channels of each token.

    They read padding like other tokens, as they were trained to. Texts past the last position are cut with a warning.
    """

    encoders: Sequence[Any]
    tokenizers: Sequence[Any]
    device: torch.device
    offload: bool = False
    most: int | None = None
    """Tokens that are read; None: as many as each tokenizer says."""

    def __call__(self, texts: Sequence[str]) -> PromptEmbeddings:
        """Each different text is encoded once."""
        unique = list(dict.fromkeys(texts))
        rows = [unique.index(text) for text in texts]
        tokens = [padded_tokens(tokenizer, unique, most=self.most) for tokenizer in self.tokenizers]
        return self.read(tokens)[rows]

    def read(self, tokens: Sequence[Tokenized]) -> PromptEmbeddings:
        """The embeddings of tokens of each tokenizer, padded to the last position."""
        spans = [own.spans for own in tokens]
        if len(tokens) == 1:
            (found,) = self._outputs(tokens)
            return PromptEmbeddings(found[0], None, spans)
        first, second = self._outputs(tokens, output_hidden_states=True)
        # XL was trained on the last layer's input; its pooled text is the second encoder's.
        states = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], -1)
        return PromptEmbeddings(states, second.text_embeds, spans)

    def fingerprints(self) -> dict[str, str]:
        """Of each encoder's weights."""
        parts = zip((TEXT_ENCODER, SECOND_TEXT_ENCODER), self.encoders, strict=False)
        return {name: artifacts.fingerprint(encoder.state_dict()) for name, encoder in parts}

    def _outputs(self, tokens: Sequence[Tokenized], **more: Any) -> list[Any]:
        found = []
        for encoder, own in zip(self.encoders, tokens, strict=True):
            uses_mask = getattr(encoder.config, "use_attention_mask", False)
            mask = own.mask.to(self.device, torch.long) if uses_mask else None
            with visiting(self.device, encoder, offload=self.offload):
                found.append(encoder(own.ids.to(self.device), attention_mask=mask, **more))
        return found


def read_target(folder: Path, *, xl: bool) -> PromptTarget:
    """What the text encoders of a Stable Diffusion in a folder give to its U-Net, by their configurations.

    Raises:
        UserError: a configuration is missing or incomplete.
    """
    first = artifacts.read_json(folder / TEXT_ENCODER / artifacts.CONFIG_FILE)
    if not xl:
        family = "stable-diffusion-1" if first.get("hidden_act", OPENAI) == OPENAI else "stable-diffusion-2"
        values: dict[str, Any] = {"family": family, "widths": [first.get("hidden_size")]}
    else:
        second = artifacts.read_json(folder / SECOND_TEXT_ENCODER / artifacts.CONFIG_FILE)
        widths = [first.get("hidden_size"), second.get("hidden_size")]
        values = {"family": "stable-diffusion-xl", "widths": widths, "pooled": second.get("projection_dim")}
    return parse(PromptTarget, values, f"the text encoders in {folder}")


def load_reader(context: LoadContext, *, second: bool = False) -> TextReader:
    """The text encoder in a folder, or both of XL's with `second`.

    Raises:
        UserError: a file is missing, truncated, pickle, or does not fit.
    """
    parts = {TEXT_ENCODER: TOKENIZER} | ({SECOND_TEXT_ENCODER: SECOND_TOKENIZER} if second else {})
    encoders, tokenizers = [], []
    for part, tokenizer_part in parts.items():
        encoder = _load_encoder(context.folder / part, context.dtype, projected=part == SECOND_TEXT_ENCODER)
        tokenizer = clip_loading.read_tokenizer(context.folder / tokenizer_part)
        check_vocabulary(tokenizer, encoder.config.vocab_size, str(context.folder), around_ids(tokenizer))
        encoders.append(context.placed(encoder))
        tokenizers.append(tokenizer)
    return TextReader(encoders, tokenizers, context.device, context.offload)


def _load_encoder(path: Path, dtype: torch.dtype, *, projected: bool) -> Any:
    """Frozen, on the CPU; `projected`: with the projection that makes its pooled text."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    kind = CLIPTextModelWithProjection if projected else CLIPTextModel
    part = clip_loading.Part(kind, CLIPTextConfig, path, artifacts.read_json(path / artifacts.CONFIG_FILE))
    stored = part.stored() if projected else {name.removeprefix(PREFIX): x for name, x in part.stored().items()}
    return clip_loading.filled(part, stored, dtype).eval().requires_grad_(False)
