"""Frozen language models of transformers as text encoders: features are their hidden states, which an adapter maps to CLIP's space.

Decoders (Llama, Qwen, Gemma, Mistral, …), encoders (BERT and its family), and the encoders of T5's family. Sources: arXiv 2506.08210
for the mean over normalised layers, arXiv 2405.12914 for the frozen model.
"""

import inspect
import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from pydantic import Field, field_validator
from torch import Tensor, nn

from syzygy.clip.tokenization import Tokenized, alike, check_vocabulary, tokenized
from syzygy.core import artifacts, hub_files
from syzygy.core.config import Config
from syzygy.core.contracts import TextStates
from syzygy.core.errors import UserError
from syzygy.core.model_files import GGUF
from syzygy.core.model_parts import part_or_id
from syzygy.data.store_building import encoder_difference
from syzygy.text_encoders.llm_frame import HOLE, Frame
from syzygy.text_encoders.llm_templates import TEMPLATES
from syzygy.text_encoders.transformers_loading import load_gguf, load_model

EXAMPLE = "Qwen/Qwen3-0.6B"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
"""What a language model may compute in, as identities record it. fp16 is missing because activations of several families overflow it."""
COMPUTE = {"fp32": torch.float32, "bf16": torch.bfloat16}
"""The same, as settings name it."""
MAX_NUMBERS = 2**28
"""The most numbers in the hidden states of one pass (1 GiB in fp32); a larger batch is read in several passes."""
SENTENCES = (
    "",
    "a red star",
    "Links ein blauer Kreis, rechts ein Ring.",
    "Un carré vert et trois étoiles",
    "жёлтое сердце",
    "左边的红色圆形",
)
"""Texts whose features are measured, to check that a recipe still gives the same. Never change them: artefacts record the numbers."""


class LlmRecipe(Config):
    """How a language model's states become features. Features of different recipes cannot be exchanged."""

    layers: Literal["all", "last"] | tuple[int, ...] = "all"
    """Hidden states to read: "all", "last", or numbers from 0 (embeddings) to the number of layers (after the final normalisation)."""
    normalise: bool = True
    """Whether each hidden state is normalised, token by token and without parameters, before the mean over the layers."""
    template: str | None = None
    """A text with {text} in it, which is replaced by the prompt; the model reads the template's tokens, and they give no features. The names
    qwen-image, lumina-2 and sana stand for the instructions of these models. null is the prompt alone."""
    start_token: str | None = None
    """A token to put before every text, for tokenizers that add none; it gives no feature. Such a model gives the first token of a text an
    unusually large state. "auto" is the tokenizer's start token or, without one, <|endoftext|>; other special tokens are given by name."""
    max_tokens: int = Field(default=512, ge=4)
    """Longest text in tokens, including special tokens and the template's; longer texts are cut with a warning."""

    @field_validator("layers")
    @classmethod
    def _numbers(cls, layers: Any) -> Any:
        if isinstance(layers, tuple) and (not layers or len(set(layers)) < len(layers) or min(layers) < 0):
            raise ValueError("layers must be different numbers from 0, at least one")
        return layers

    @field_validator("template")
    @classmethod
    def _hole(cls, template: str | None) -> str | None:
        template = TEMPLATES.get(template, template) if template is not None else None
        if template is not None and (template.count(HOLE) != 1 or template == HOLE):
            raise ValueError(
                f"a template must contain {HOLE} once, and other text, or be one of {', '.join(TEMPLATES)}; leave the template out to read "
                "the prompt alone"
            )
        return template


@dataclass(frozen=True, kw_only=True)
class LlmIdentity:
    """Which language model made some features, and how; equal identities make equal features (`check_same`)."""

    source: str
    revision: str | None
    """The commit of a hub id; None for a folder."""
    fingerprint: str
    """Fingerprint of the weights, in the precision in which they compute."""
    classes: tuple[str, str]
    """transformers' classes of model and tokenizer."""
    width: int
    vocabulary: int
    dtype: str
    bits: int | None
    """8 or 4 if the weights were quantised while they were loaded."""
    layers: str | tuple[int, ...]
    normalise: bool
    template: str | None
    start_token: str | None
    max_tokens: int
    deviations: tuple[float, ...]
    """Standard deviation of the features of each of `SENTENCES`, as hidden states may change between versions of transformers."""
    versions: dict[str, str]

    def to_config(self) -> dict[str, Any]:
        """As JSON values."""
        return json.loads(json.dumps(asdict(self)))


class Llm(nn.Module):
    """A frozen language model with its tokenizer: texts → features (`StatesEncoder`). Texts that are too long are cut with a warning.

    Padding is on the right and masked, so that positions are those of the text alone, however the model counts them.

    A text stands between the special tokens that the tokenizer puts around it. It always ends with the end token, so that a causal model
    has a state that has read the whole text, and the empty text has a state.

    Legend: B texts, T tokens, D width.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        source: str,
        recipe: LlmRecipe | None = None,
        revision: str | None = None,
        bits: Literal[8, 4] | None = None,
    ) -> None:
        """`model` is a model of transformers without a head; `bits` says how it was quantised.

        Raises:
            UserError: the recipe asks for layers or tokens that the model does not have; texts cannot be ended.
        """
        super().__init__()
        self.recipe = recipe or LlmRecipe()
        self.model, self.tokenizer, self.source, self.revision, self.bits = model, tokenizer, source, revision, bits
        self._arguments = inspect.signature(model.forward).parameters
        if "pixel_values" in self._arguments:
            raise UserError(f"{source} is a {type(model).__name__}, which reads images: give a language model.")
        rows = model.get_input_embeddings().num_embeddings
        self._frame = Frame.of(tokenizer, self.recipe.template, self.recipe.start_token, source)
        check_vocabulary(tokenizer, rows, source, [*self._frame.before, *self._frame.after])
        pad = tokenizer.pad_token_id
        # Padding is never read. Many tokenizers have no padding token, or an added one that the model does not know.
        self._pad = self._frame.after[-1] if pad is None or pad >= rows else pad
        self._check_recipe()

    def _check_recipe(self) -> None:
        config, recipe = self.model.config, self.recipe
        if isinstance(recipe.layers, tuple) and max(recipe.layers) > config.num_hidden_layers:
            raise UserError(
                f"layers={list(recipe.layers)}: {self.source} has hidden states 0 to {config.num_hidden_layers}."
            )
        most = getattr(config, "max_position_embeddings", None)
        for module in self.model.modules():
            if isinstance(positions := getattr(module, "position_embeddings", None), nn.Embedding):
                # RoBERTa's family counts positions from its padding index on.
                most = positions.num_embeddings - (0 if positions.padding_idx is None else positions.padding_idx + 1)
        if most is not None and recipe.max_tokens > most:
            raise UserError(f"max_tokens={recipe.max_tokens}: {self.source} reads at most {most}.")
        special = len(self._frame)
        if special >= recipe.max_tokens:
            raise UserError(
                f"max_tokens={recipe.max_tokens} leaves no room for text: special tokens and the template take {special}."
            )

    @property
    def width(self) -> int:
        """D."""
        return self.model.config.hidden_size

    @property
    def positions(self) -> int:
        """The most tokens for which a text has features."""
        return self.recipe.max_tokens - sum(self._frame.silent)

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The precision in which the model computes; features are fp32."""
        return next(self.model.parameters()).dtype

    def tokenize(self, texts: list[str]) -> Tokenized:
        """Token ids, including the template's; texts longer than `max_tokens` are cut with a warning."""
        around = {"before": self._frame.before, "after": self._frame.after, "pad": self._pad}
        return tokenized(self.tokenizer, texts, most=self.recipe.max_tokens, **around, stacklevel=4)

    @torch.no_grad()
    def encode_states(self, texts: list[str]) -> TextStates:
        """Texts → features by the recipe, mask and spans, in fp32; padded on the right with zeros."""
        return self._encoded(texts, self.recipe.normalise)

    def _encoded(self, texts: list[str], normalise: bool) -> TextStates:
        found = self.tokenize(texts)
        keep = self._frame.kept(found.mask)
        ids, real = found.ids.to(self.device), found.mask.to(self.device)
        states = torch.zeros(*ids.shape, self.width, dtype=torch.float32, device=self.device)
        layers = 1 if self.recipe.layers == "last" else self.model.config.num_hidden_layers + 1
        for rows, length in alike(found.mask, max(MAX_NUMBERS // (self.width * layers), 1)):
            at = rows.to(self.device)
            states[at, :length] = self._features(ids[at, :length], real[at, :length], normalise)
        mask = torch.arange(int(keep.sum(1).max())) < keep.sum(1, keepdim=True)
        on_device = mask.to(self.device)
        return TextStates(_moved(states, keep.to(self.device), on_device), on_device, _moved(found.spans, keep, mask))

    def _features(self, ids: Int[Tensor, "B T"], mask: Bool[Tensor, "B T"], normalise: bool) -> Float[Tensor, "B T D"]:
        inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": mask.long()}
        if "use_cache" in self._arguments:
            inputs["use_cache"] = False
        if self.recipe.layers == "last":
            return mean_of_layers([self.model(**inputs).last_hidden_state], normalise)
        output = self.model(**inputs, output_hidden_states=True)
        # `last_hidden_state` is after the final normalisation in every version of transformers; the last of `hidden_states` is not.
        hidden = [*output.hidden_states[:-1], output.last_hidden_state]
        numbers = range(len(hidden)) if self.recipe.layers == "all" else self.recipe.layers
        return mean_of_layers([hidden[i] for i in numbers], normalise)

    def fingerprint(self) -> str:
        """Sixteen hex digits over the weights, in the precision in which they compute."""
        weights = self.model.state_dict().items()
        return artifacts.fingerprint({k: x.view(torch.int16) if x.dtype == torch.bfloat16 else x for k, x in weights})

    def deviations(self) -> tuple[float, ...]:
        """Standard deviation of the features of each of `SENTENCES`; a single layer is measured before normalisation, which would make it 1."""
        alone = self.recipe.layers == "last" or len(self.recipe.layers) == 1
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".* tokens, this encoder reads")
            found = self._encoded(list(SENTENCES), self.recipe.normalise and not alone)
        return tuple(x[mask].std().item() for x, mask in zip(found.states, found.mask, strict=True))

    def identity(self) -> LlmIdentity:
        """Which model this is and how it is read, for the provenance of what is made with it."""
        return LlmIdentity(
            source=self.source,
            revision=self.revision,
            fingerprint=self.fingerprint(),
            classes=(type(self.model).__name__, type(self.tokenizer).__name__),
            width=self.width,
            vocabulary=len(self.tokenizer),
            dtype=str(self.dtype).removeprefix("torch."),
            bits=self.bits,
            deviations=self.deviations(),
            versions=artifacts.versions() | {"tokenizers": version("tokenizers")},
            **self.recipe.model_dump(),
        )

    @staticmethod
    def from_pretrained(
        source: str | Path,
        *,
        recipe: LlmRecipe | None = None,
        revision: str | None = None,
        dtype: torch.dtype = torch.float32,
        bits: Literal[8, 4] | None = None,
        local_files_only: bool = True,
    ) -> "Llm":
        """Load a language model without its head, strictly, frozen, on the CPU and in evaluation mode.

        Args:
            source: a folder in transformers' layout, a hub id, or a GGUF file.
            recipe: how its states become features; None is the default recipe.
            revision: commit, tag or branch of a hub id; None is its main branch. The commit is then `self.revision`.
            dtype: fp32 or bf16. What is trained on features needs the same precision afterwards.
            bits: quantise the weights with bitsandbytes while they are loaded, onto a CUDA GPU.
            local_files_only: read a hub id from the hub's cache only; otherwise download what is missing.

        Raises:
            UserError: it is not found; transformers cannot load it without running its own code; weights are missing, pickle or not
                finite; the tokenizer is slow (it cannot map tokens to characters) or has tokens that the model does not know; the recipe
                does not fit.
        """
        if dtype not in DTYPES.values():
            raise UserError(f"a language model computes in float32 or bfloat16, not {dtype}.")
        if (file := Path(source)).suffix == GGUF:
            if revision is not None:
                raise UserError(f"{source} is a file and has no revision {revision!r}; a revision belongs to a hub id.")
            if bits is not None:
                raise UserError(
                    f"bits={bits} has no effect on a GGUF file, whose weights become plain numbers. Leave it out."
                )
            model, tokenizer = load_gguf(file, "language model", dtype, _kind)
            return Llm(model, tokenizer, str(file.resolve()), recipe).requires_grad_(False).eval()
        found = hub_files.locate(source, revision, local_files_only, EXAMPLE)
        model, tokenizer = load_model(found.folder, str(source), "language model", dtype, _kind, bits)
        # The absolute path is recorded, because what is made with the model may be used from another working directory.
        place = str(found.folder.resolve()) if found.revision is None else found.source
        return Llm(model, tokenizer, place, recipe, found.revision, bits).requires_grad_(False).eval()


def mean_of_layers(hidden: Sequence[Float[Tensor, "B T D"]], normalise: bool) -> Float[Tensor, "B T D"]:
    """The mean of hidden states in fp32; `normalise` first brings each token of each state to mean 0 and variance 1.

    Later layers are much larger than earlier ones and would otherwise dominate the mean (arXiv 2506.08210, section 4).
    """
    total = torch.zeros_like(hidden[0], dtype=torch.float32)
    for state in hidden:
        total += F.layer_norm(state.float(), state.shape[-1:]) if normalise else state.float()
    return total / len(hidden)


def check_same(recorded: Mapping[str, Any], found: Mapping[str, Any], where: str) -> None:
    """Refuse features of another language model or recipe.

    Args:
        recorded: the identity, as JSON, with which something was made or trained.
        found: the identity to be used with it.
        where: the name of what was made, such as "the adapter in FOLDER".

    Raises:
        UserError: they differ; the error says how.
    """
    name = encoder_difference(recorded, found)
    if name is None:
        return
    if name == "deviations":
        then, now = (side.get("versions", {}).get("transformers") for side in (recorded, found))
        raise UserError(
            f"{where} was made with features of another standard deviation ({_short(recorded.get(name))}, here "
            f"{_short(found.get(name))}), though model and recipe are the same: hidden states have changed between "
            f"transformers {then} and {now}. Install transformers {then}, or encode and train again."
        )
    named = name in ("classes", "fingerprint", "vocabulary", "width")  # another model, not another way to read it
    models = f" ({recorded.get('source')} there, {found.get('source')} here)" if named else ""
    raise UserError(
        f"{where} was made with other features of a language model: {name} is {recorded.get(name)!r} there, "
        f"{found.get(name)!r} here{models}. Use the same model, recipe and precision, or encode and train again."
    )


def _short(numbers: Any) -> str:
    return "none recorded" if not numbers else ", ".join(f"{number:.4g}" for number in numbers)


def _moved(x: Tensor, keep: Bool[Tensor, "B T"], mask: Bool[Tensor, "B S"]) -> Tensor:
    """The kept tokens of each row at the places of `mask`, and zeros elsewhere."""
    out = x.new_zeros(*mask.shape, *x.shape[2:])
    out[mask] = x[keep]
    return out


def load_llm(
    source: str | Path,
    *,
    recipe: LlmRecipe | None = None,
    revision: str | None = None,
    dtype: torch.dtype = torch.float32,
    bits: Literal[8, 4] | None = None,
    local_files_only: bool = True,
) -> Llm:
    """As `Llm.from_pretrained`; `source` may also be a run's folder, or a model that comes with the package."""
    place = part_or_id(source, "llm")
    how: dict[str, Any] = {"dtype": dtype, "bits": bits, "local_files_only": local_files_only}
    return Llm.from_pretrained(place, recipe=recipe, revision=revision, **how)


def _kind(config: Any) -> Any:
    """transformers' class for the model without its head; the encoder alone of an encoder–decoder."""
    from transformers import AutoModel, AutoModelForTextEncoding

    return AutoModelForTextEncoding if config.is_encoder_decoder else AutoModel
