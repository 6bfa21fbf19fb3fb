"""T5 encoders of transformers as text encoders for a decoder (eDiff-I), and a small T5 to train from scratch.

T5's token states are not in CLIP's space and there is no pooled embedding, so only decoders read them.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from syzygy.clip.tokenization import Tokenized, alike, around_ids, check_vocabulary, learned_bpe, tokenized
from syzygy.core import artifacts, hub_files
from syzygy.core.config import Config
from syzygy.core.contracts import TextStates
from syzygy.core.errors import UserError
from syzygy.text_encoders.transformers_loading import load_model

PAD, END = "<pad>", "</s>"
SENTINELS = 32
"""Number of tokens that stand for left-out spans in pre-training."""


class T5Config(Config):
    """Sizes of a T5 to train from scratch."""

    width: int = 128
    """Width of the token states."""
    layers: int = 3
    """Number of encoder layers."""
    decoder_layers: int = 2
    """Number of decoder layers, which only pre-training uses."""
    heads: int = 4
    """Number of attention heads."""
    max_tokens: int = 320
    """Longest text in tokens, including its end token."""


class T5Text(nn.Module):
    """A T5 encoder with its tokenizer: texts → token states. Texts that are too long are cut with a warning.

    Legend: B texts, T tokens, D width.
    """

    def __init__(
        self, model: Any, tokenizer: Any, source: str, max_tokens: int, fingerprint: str | None = None
    ) -> None:
        """`model` is a `T5EncoderModel`, or a `T5ForConditionalGeneration` in pre-training."""
        super().__init__()
        self.model, self.tokenizer, self.source, self.max_tokens = model, tokenizer, source, max_tokens
        self._fingerprint = fingerprint

    @property
    def width(self) -> int:
        """D."""
        return self.model.config.d_model

    @property
    def device(self) -> torch.device:
        return self.model.shared.weight.device

    def tokenize(self, texts: list[str]) -> Tokenized:
        """Token ids with an end token; texts longer than `max_tokens` are cut with a warning."""
        around = {"before": [], "after": [self.tokenizer.eos_token_id], "pad": self.tokenizer.pad_token_id}
        return tokenized(self.tokenizer, texts, most=self.max_tokens, **around, stacklevel=4)

    @torch.no_grad()
    def encode_states(self, texts: list[str]) -> TextStates:
        """Texts → states after the encoder's final normalisation, mask and spans, in fp32; padded on the right."""
        found = self.tokenize(texts)
        ids, mask = found.ids.to(self.device), found.mask.to(self.device)
        encoder = self.model.get_encoder()
        states = torch.zeros(*ids.shape, self.width, dtype=torch.float32, device=self.device)
        for rows, length in alike(found.mask):
            at = rows.to(self.device)
            read = encoder(ids[at, :length], attention_mask=mask[at, :length].long())
            states[at, :length] = read.last_hidden_state.float()
        return TextStates(states, mask, found.spans)

    def fingerprint(self) -> str:
        """Sixteen hex digits over the encoder's weights in fp32, by which a decoder recognises its T5."""
        if self._fingerprint is None:
            return artifacts.fingerprint(self.model.get_encoder().state_dict())
        return self._fingerprint

    def save_pretrained(self, folder: Path, provenance: Mapping[str, Any], dtype: torch.dtype | None = None) -> None:
        """Write the encoder in the layout that transformers reads (`T5EncoderModel`), atomically."""
        with artifacts.folder_written(folder, "T5") as temporary:
            self.tokenizer.save_pretrained(temporary)
            config = self.model.config.to_dict() | {"architectures": ["T5EncoderModel"], "num_decoder_layers": 0}
            artifacts.write_json(
                temporary / artifacts.CONFIG_FILE, config | {"torch_dtype": "float32", "dtype": "float32"}
            )
            weights = {"shared.weight": self.model.shared.weight}
            own = self.model.get_encoder().state_dict()
            weights |= {f"encoder.{name}": value for name, value in own.items() if name != "embed_tokens.weight"}
            artifacts.write_tensors(temporary / artifacts.WEIGHTS_FILE, weights, dtype)
            artifacts.write_json(temporary / artifacts.PROVENANCE_FILE, dict(provenance))

    @staticmethod
    def from_pretrained(
        source: str | Path,
        *,
        revision: str | None = None,
        dtype: torch.dtype = torch.float32,
        local_files_only: bool = True,
        max_tokens: int = 320,
    ) -> "T5Text":
        """Load a T5 encoder (of an encoder alone, or of a whole T5) strictly, on the CPU and in evaluation mode.

        Args:
            source: a folder in transformers' layout, or a hub id.
            max_tokens: longest text; T5's positions are relative, so this is a choice (eDiff-I's published captions fit into 320).

        Raises:
            UserError: it is not found, is no T5, lacks weights or holds NaN; its tokenizer does not fit, or is slow (it cannot map tokens to
                characters).
        """
        from transformers import T5EncoderModel

        folder = hub_files.locate(source, revision, local_files_only).folder
        config = artifacts.read_json(folder / artifacts.CONFIG_FILE)
        if config.get("model_type") != "t5":
            raise UserError(f"{source} is a {config.get('model_type')!r}, not a t5.")
        model, tokenizer = load_model(folder, str(source), "T5", dtype, lambda config: T5EncoderModel)
        check_vocabulary(tokenizer, model.get_input_embeddings().num_embeddings, str(source), around_ids(tokenizer))
        fingerprint = (
            artifacts.fingerprint(model.get_encoder().float().state_dict()) if dtype == torch.float32 else None
        )
        return T5Text(model.eval(), tokenizer, str(source), max_tokens, fingerprint).requires_grad_(False)


def build_t5(config: T5Config, texts: Iterable[str], seed: int) -> T5Text:
    """A whole T5 (encoder and decoder) with random weights, and a byte-level BPE tokenizer learned from the texts.

    Raises:
        UserError: the number of heads does not divide the width.
    """
    import transformers

    if config.width % config.heads:
        raise UserError(f"width {config.width} must divide by {config.heads} heads.")
    tokenizer = _learn_tokenizer(texts)
    sizes: dict[str, Any] = dict(
        vocab_size=len(tokenizer),
        d_model=config.width,
        d_kv=config.width // config.heads,
        d_ff=2 * config.width,
        num_layers=config.layers,
        num_decoder_layers=config.decoder_layers,
        num_heads=config.heads,
        dropout_rate=0.0,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=tokenizer.pad_token_id,
    )
    settings = transformers.T5Config(**sizes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = transformers.T5ForConditionalGeneration(settings)
    return T5Text(model, tokenizer, "from nothing", config.max_tokens)


def _learn_tokenizer(texts: Iterable[str]) -> Any:
    """Byte-level BPE with sentinels; capitals are kept, as in T5."""
    from transformers import PreTrainedTokenizerFast

    marks = [f"<extra_id_{i}>" for i in range(SENTINELS)]
    learner = learned_bpe(texts, 4096, [PAD, END, *marks])
    return PreTrainedTokenizerFast(
        tokenizer_object=learner, pad_token=PAD, eos_token=END, extra_special_tokens=marks, model_max_length=10**9
    )
