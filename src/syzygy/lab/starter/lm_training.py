"""The starter's language model: a small one of Llama's architecture, trained from nothing on the world's captions in all languages.

It stands in for a published language model. Needs transformers when it is built.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from syzygy.clip.tokenization import learned_bpe
from syzygy.core import artifacts
from syzygy.core.config import Config
from syzygy.core.errors import UserError
from syzygy.core.randomness import Draw, seed_of
from syzygy.lab.world import scene_source
from syzygy.lab.world.language.base import Length
from syzygy.text_encoders.llm import Llm, LlmRecipe
from syzygy.training.precision import autocast, precision_on
from syzygy.training.run_records import RunResult, train_part
from syzygy.training.schedule import LoopConfig

PAD, START, END = "<pad>", "<s>", "</s>"
HAN = r"\p{Han}"
"""Chinese characters, which are split into single ones: without spaces, a whole phrase would become one token."""
TOKENIZER_CAPTIONS = 500
"""Number of captions of each language and length for the tokenizer."""
VALIDATION_CAPTIONS = 24
"""Number of validation captions of each language and length."""
LENGTHS: tuple[Length, ...] = ("short", "medium", "long")
OFTEN: tuple[Length, ...] = ("short", "short", "medium", "medium", "long")
"""The lengths from which a step draws. A long caption takes the time of ten short ones, and most of it does not describe the scene."""


class LmConfig(Config):
    """Sizes of a language model to train from nothing."""

    width: PositiveInt = 192
    """Width of the hidden states."""
    layers: PositiveInt = 4
    """Number of layers."""
    heads: PositiveInt = 6
    """Number of attention heads."""
    feed_forward: PositiveInt = 512
    """Width inside the feed-forward layers."""
    vocabulary: int = Field(default=3072, ge=300)
    """Largest vocabulary of the byte-level BPE tokenizer, which all languages share."""
    max_tokens: int = Field(default=512, ge=8)
    """Longest text in tokens, start and end included."""


@dataclass(frozen=True)
class CausalLm:
    """A language model in training: transformers' `LlamaForCausalLM` with its tokenizer."""

    model: Any
    tokenizer: Any

    @cached_property
    def reader(self) -> Llm:
        """The model as a text encoder, with the same tokens, start and end included."""
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
    """The tokenizer puts the start token before each text, as Llama's does."""
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    learner = learned_bpe(texts, vocabulary, [PAD, START, END], apart=HAN)
    learner.post_processor = TemplateProcessing(
        single=f"{START} $A", special_tokens=[(START, learner.token_to_id(START))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=learner, pad_token=PAD, bos_token=START, eos_token=END, model_max_length=10**9
    )


class LmTaskConfig(Config):
    """What one training step of a language model sees."""

    batch_size: int = Field(default=32, ge=1)
    """Texts per step, all of one length (short, medium, long), in all languages in turn."""


Batch = tuple[Int[Tensor, "B T"], Bool[Tensor, "B T"]]
"""Token ids with start and end, padded on the right, and which of them are real."""


class LmTask:
    """The training loop's `Task` for a language model of transformers: `batches(step)` gives a step's texts."""

    def __init__(
        self,
        model: nn.Module,
        batches: Callable[[int], Batch],
        validation: Mapping[str, Batch],
        config: LmTaskConfig,
        *,
        precision: torch.dtype | None = None,
    ) -> None:
        """`validation` has unseen texts of each language."""
        self.modules = {"lm": model}
        self._model, self._batches, self._validation = model, batches, validation
        self._config, self._precision = config, precision

    def loss(self, step: int) -> dict[str, Tensor]:
        """Mean cross-entropy of the next token, in nats."""
        return {"loss": self._surprise(*self._batches(step)).mean()}

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """The mean cross-entropy on unseen texts: of all tokens, and of each language."""
        size = self._config.batch_size
        found = {
            language: torch.cat([self._surprise(*part) for part in zip(ids.split(size), mask.split(size), strict=True)])
            for language, (ids, mask) in self._validation.items()
        }
        return {"loss": torch.cat([*found.values()]).mean().item()} | {
            f"loss/{language}": values.mean().item() for language, values in found.items()
        }

    def _surprise(self, ids: Int[Tensor, "B T"], mask: Bool[Tensor, "B T"]) -> Float[Tensor, "N"]:
        """Cross-entropy of each real token but the first, given the tokens before it."""
        longest = int(mask.sum(1).max())
        ids, mask = ids[:, :longest], mask[:, :longest]
        device = next(self._model.parameters()).device
        ids, mask = ids.to(device), mask.to(device)
        asked: dict[str, Any] = {"attention_mask": mask[:, :-1].long(), "use_cache": False}
        with autocast(device, self._precision):
            logits = self._model(input_ids=ids[:, :-1], **asked).logits
        real = mask[:, 1:]
        return nn.functional.cross_entropy(logits[real].float(), ids[:, 1:][real], reduction="none")


class LmRun(Config):
    """All settings of a language model of the embedded world."""

    lm: LmConfig
    """Sizes."""
    languages: tuple[str, ...] = Field(min_length=1)
    """Codes of the languages of the captions, all equally often."""
    task: LmTaskConfig
    """What a step sees."""
    loop: LoopConfig
    """Length and learning rate."""
    seed: int = 0
    """Seed of weights and captions."""


def train(run: LmRun, out: Path, device: torch.device) -> RunResult:
    """Train (or resume) in `out`; the finished model is `out/llm`, in transformers' layout, fp16. No scene has an unseen composition."""
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

    def save(folder: Path, record: dict[str, Any]) -> None:
        lengths = {language: tokens_per_caption(lm, texts) for language, texts in unseen.items()}
        lm.save_pretrained(folder, record | {"tokens_per_caption": lengths}, torch.float16)

    return train_part(run, task, out, save, kind="lm", folder="llm", report="LM")


def tokens_per_caption(lm: CausalLm, texts: Mapping[Length, list[str]]) -> dict[str, float]:
    """The average number of tokens of each length, start and end included."""
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
    """Captions of `number` scenes, in all languages in turn."""
    return [
        scene_source.pair(seed, i, unseen=False, length=length, lang=languages[i % len(languages)]).caption.text
        for i in range(start, start + number)
    ]


def _tokenized(lm: CausalLm, texts: list[str]) -> Batch:
    found = lm.reader.tokenize(texts)
    return found.ids, found.mask
