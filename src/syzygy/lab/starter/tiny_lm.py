"""A small language model of Llama's architecture, built from nothing: the starter's stand-in for a published one."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, PositiveInt

from syzygy.clip.tokenization import learned_bpe
from syzygy.core import artifacts
from syzygy.core.config import Config
from syzygy.core.errors import UserError
from syzygy.text_encoders.llm import Llm, LlmRecipe

PAD, START, END = "<pad>", "<s>", "</s>"
HAN = r"\p{Han}"
"""Chinese has no spaces: a whole phrase would become one token, and a new composition of its words no token at all."""


class LmConfig(Config):
    """Sizes of a language model to train from nothing."""

    width: PositiveInt = 192
    """Width of the hidden states."""
    layers: PositiveInt = 4
    """Layers."""
    heads: PositiveInt = 6
    """Attention heads."""
    feed_forward: PositiveInt = 512
    """Width inside the feed-forward layers."""
    vocabulary: int = Field(default=3072, ge=300)
    """Most tokens of the byte-level BPE that is learned; all languages share them."""
    max_tokens: int = Field(default=512, ge=8)
    """Longest text in tokens, start and end included."""


@dataclass(frozen=True)
class CausalLm:
    """A language model in training: transformers' `LlamaForCausalLM` with its tokenizer."""

    model: Any
    tokenizer: Any

    @cached_property
    def reader(self) -> Llm:
        """The same as a text encoder: with the tokens, start and end included, that it will read as one."""
        recipe = LlmRecipe(max_tokens=self.model.config.max_position_embeddings)
        return Llm(self.model.model, self.tokenizer, "from nothing", recipe)

    def save_pretrained(self, folder: Path, provenance: Mapping[str, Any], dtype: torch.dtype | None = None) -> None:
        """Write the layout that transformers reads, atomically; `dtype` (fp16) converts the weights."""
        with artifacts.folder_written(folder, "the language model") as temporary:
            self.tokenizer.save_pretrained(temporary)
            config = self.model.config.to_dict() | {"architectures": ["LlamaForCausalLM"], "dtype": "float32"}
            artifacts.write_json(temporary / artifacts.CONFIG_FILE, config)
            weights = {f"model.{name}": value for name, value in self.model.model.state_dict().items()}
            artifacts.write_tensors(temporary / artifacts.WEIGHTS_FILE, weights, dtype)
            artifacts.write_json(temporary / artifacts.PROVENANCE_FILE, dict(provenance))


def build_lm(config: LmConfig, texts: Iterable[str], seed: int) -> CausalLm:
    """A model with random weights (embeddings tied), and a byte-level BPE tokenizer learned from the texts.

    Raises:
        UserError: the width does not divide by the heads.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    if config.width % (2 * config.heads):
        raise UserError(f"width {config.width} must give {config.heads} heads an even width each.")
    tokenizer = _learn_tokenizer(config.vocabulary, texts)
    settings = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=config.width,
        intermediate_size=config.feed_forward,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        max_position_embeddings=config.max_tokens,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return CausalLm(LlamaForCausalLM(settings), tokenizer)


def _learn_tokenizer(vocabulary: int, texts: Iterable[str]) -> Any:
    """It puts the start token before each text, as Llama's does."""
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    learner = learned_bpe(texts, vocabulary, [PAD, START, END], apart=HAN)
    learner.post_processor = TemplateProcessing(
        single=f"{START} $A", special_tokens=[(START, learner.token_to_id(START))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=learner, pad_token=PAD, bos_token=START, eos_token=END, model_max_length=10**9
    )
