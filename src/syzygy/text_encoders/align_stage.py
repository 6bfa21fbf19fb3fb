"""Stage 1 of an adapter: texts in any language are mapped to where CLIP encodes their English (after arXiv 2405.12914).

Legend: B captions of a pass, G of a step, K queries, P positions of CLIP, D width of CLIP's joint space.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn

from syzygy.clip.clip_model import Clip
from syzygy.core.config import Config
from syzygy.core.contracts import StatesEncoder, TextFeatures, TextStates
from syzygy.core.errors import UserError
from syzygy.core.packed_attention import PackedText
from syzygy.prior.eclipse import EclipsePrior, contrastive_loss
from syzygy.prior.embedding_pairs import caption_ids
from syzygy.text_encoders.adapter import AdapterSizes, TextAdapter
from syzygy.text_encoders.adapter_task import StageConfig, Weight, draws
from syzygy.text_encoders.feature_cache import CachedCaptions
from syzygy.text_encoders.llm import LlmRecipe
from syzygy.text_encoders.parallel_captions import Captions, Line
from syzygy.training.schedule import LoopConfig

NORM = 2e-5
"""The paper's weight of the squared difference of norms, relative to that of the cosine (its released code)."""


class AlignTaskConfig(StageConfig):
    """Loss and batch of a training step of stage align."""

    batch_size: PositiveInt = 512
    """Captions per step, with equal numbers of each language (paper: 512)."""
    cosine: Weight = 1.0
    """Weight of 1 − cosine similarity between the pooled embedding and CLIP's (paper: 1)."""
    norm: Weight = NORM
    """Weight of the squared difference between the norms of the pooled embedding and CLIP's (paper: 2e-5)."""
    contrastive: Weight = 0.1
    """Weight of the contrastive loss between the pooled embeddings of the batch and CLIP's (not in the paper)."""
    prior: Weight = 1.0
    """Weight of the squared difference between the frozen prior's predictions from the adapter's features and from CLIP's, relative to the
    latter's squared norm (not in the paper); 0 needs no prior."""
    tokens: Weight = 0.0
    """Weight of cosine and norm losses between each token state and CLIP's padded ones, for decoders that attend to padding; adapter.queries
    must then be CLIP's number of positions."""

    @model_validator(mode="after")
    def _all_trained(self) -> "AlignTaskConfig":
        if not self.prior + self.tokens:
            raise ValueError("nothing trains the states: give prior or tokens a weight")
        if not self.prior + self.cosine + self.contrastive:
            raise ValueError("nothing trains the pooled embedding: give cosine, contrastive or prior a weight")
        return self


class CaptionsRun(Config):
    """The settings that stage align has for every target: language model, captions, length."""

    recipe: LlmRecipe = LlmRecipe()
    """How the language model's states become features."""
    compute: Literal["fp32", "bf16"] = "fp32"
    """What the language model computes in, during training and whenever the adapter is used."""
    bits: Literal[8, 4] | None = None
    """Quantise the language model's weights to 8 or 4 bits while they are loaded, during training and whenever the adapter is used. This needs
    bitsandbytes and a CUDA GPU. null is full precision."""
    languages: tuple[str, ...] | None = Field(default=None, min_length=1)
    """Codes of the languages to learn, English among them; null is all languages of the corpus's first line, or of the embedded world."""
    lengths: tuple[Literal["short", "medium"], ...] | None = Field(default=None, min_length=1)
    """Lengths of the embedded world's captions; steps take them in turn (CLIP cannot read long ones). null with a corpus."""
    validation_lines: int = Field(default=64, gt=1)
    """Lines per language for validation, which no step sees; the first ones of a corpus."""
    loop: LoopConfig
    """Length and learning rate."""
    seed: int = 0
    """Seed of weights, order and noise."""


class AlignRun(CaptionsRun):
    """All settings of stage align."""

    adapter: AdapterSizes
    """Sizes of the adapter."""
    task: AlignTaskConfig
    """Loss and batch."""


@dataclass(frozen=True)
class AlignBatch:
    """B captions of a step with their targets, on the adapter's device."""

    text: TextStates
    """The language model's features of the captions."""
    target: TextFeatures
    """CLIP's features of their English."""
    padded: Float[Tensor, "B P D"] | None
    """CLIP's states of their English at all positions, if tokens are distilled."""
    candidates: Float[Tensor, "G D"]
    """CLIP's pooled embeddings of the English of the whole step."""
    candidate_ids: Int[Tensor, "G"]
    """Equal where two captions have the same English."""
    first: int
    """The candidate that belongs to the first of the B captions; the others follow."""
    noise: Float[Tensor, "B D"]
    """Standard normal noise for the prior."""

    def __len__(self) -> int:
        return len(self.target)


class AlignStage:
    """The adapter's features should equal CLIP's of the English, directly and as the prior sees them."""

    def __init__(
        self, adapter: TextAdapter, prior: EclipsePrior | None, config: AlignTaskConfig, *, logit_scale: float
    ) -> None:
        """`prior` is frozen, and None if its weight is 0. `logit_scale` is CLIP's 1/τ, for the temperature "clip".

        Raises:
            UserError: the prior is not as wide as the CLIP, or reads fewer states than the adapter gives.
        """
        assert (prior is None) == (config.prior == 0), "a prior is given if and only if its weight is not 0"
        if prior is not None:
            check_fits(adapter, prior)
        self.modules: dict[str, nn.Module] = {"adapter": adapter}
        self.adapter, self.prior, self.config = adapter, prior, config
        self.logit_scale = logit_scale if config.temperature == "clip" else 1 / config.temperature

    def losses(self, batch: AlignBatch) -> dict[str, Tensor]:
        """`loss` and those of its parts `cosine`, `norm`, `contrastive`, `prior` and `tokens` that have a weight. All but `contrastive` are 0
        where the adapter gives what CLIP gives."""
        return self._compared(self.adapter(batch.text.states, batch.text.mask), batch)

    def _compared(self, found: TextFeatures, batch: AlignBatch) -> dict[str, Tensor]:
        config = self.config
        parts: dict[str, Tensor] = {}
        if config.cosine:
            parts["cosine"] = cosine_loss(found.pooled, batch.target.pooled)
        if config.norm:
            parts["norm"] = norm_loss(found.pooled, batch.target.pooled)
        if config.contrastive:
            parts["contrastive"] = contrastive_loss(
                found.pooled, batch.candidates, self.logit_scale, batch.candidate_ids, batch.first
            )
        if self.prior is not None:
            with torch.no_grad():
                expected = self.prior(PackedText.of(batch.target), batch.noise)
            parts["prior"] = relative_error(self.prior(PackedText.of(found), batch.noise), expected)
        loss = sum(
            (getattr(config, name) * value for name, value in parts.items()),
            torch.zeros((), device=found.pooled.device),
        )
        if config.tokens:
            assert batch.padded is not None, "padded states are read if tokens are distilled"
            parts["tokens"] = cosine_loss(found.states, batch.padded) + NORM * norm_loss(found.states, batch.padded)
            loss = loss + config.tokens * parts["tokens"]
        return {"loss": loss} | parts

    @torch.no_grad()
    def validated(self, batches: Iterable[tuple[str, AlignBatch]]) -> dict[str, float]:
        """The losses, and for each language the `cosine/…` of the pooled embedding to CLIP's of the English and `recall_at_1/…`, how often
        CLIP's is the nearest of the batch (equal English counts as one)."""
        sums: dict[str, float] = {}
        by_language: dict[str, float] = {}
        number = 0
        for language, batch in batches:
            found = self.adapter(batch.text.states, batch.text.mask)
            for name, value in self._compared(found, batch).items():
                sums[name] = sums.get(name, 0.0) + value.item() * len(batch)
            number += len(batch)
            by_language[f"cosine/{language}"] = 1 - cosine_loss(found.pooled, batch.target.pooled).item()
            nearest = (F.normalize(found.pooled, dim=-1) @ F.normalize(batch.candidates, dim=-1).T).argmax(-1)
            right = batch.candidate_ids[nearest] == batch.candidate_ids[: len(batch)]
            by_language[f"recall_at_1/{language}"] = right.float().mean().item()
        return {name: total / number for name, total in sums.items()} | by_language


def check_fits(adapter: TextAdapter, prior: EclipsePrior) -> None:
    """Refuse a prior that cannot read what this adapter gives."""
    width, positions = prior.config.embedding_dim, prior.config.num_embeddings
    if width != adapter.config.clip_width:
        raise UserError(
            f"the prior reads a CLIP {width} wide, this one is {adapter.config.clip_width} wide. Use the prior of this CLIP."
        )
    if adapter.config.queries > positions:
        raise UserError(
            f"the prior reads at most {positions} tokens; the adapter has {adapter.config.queries} queries."
        )


def cosine_loss(found: Float[Tensor, "*B D"], expected: Float[Tensor, "*B D"]) -> Float[Tensor, ""]:
    """1 − the mean cosine similarity."""
    return 1 - F.cosine_similarity(found.float(), expected.float(), dim=-1).mean()


def norm_loss(found: Float[Tensor, "*B D"], expected: Float[Tensor, "*B D"]) -> Float[Tensor, ""]:
    """Mean squared difference of the norms."""
    return F.mse_loss(found.float().norm(dim=-1), expected.float().norm(dim=-1))


def relative_error(found: Float[Tensor, "B D"], expected: Float[Tensor, "B D"]) -> Float[Tensor, ""]:
    """Mean squared distance, relative to the squared norm of what is expected, so that no CLIP's scale matters."""
    found, expected = found.float(), expected.float()
    return ((found - expected).square().sum(-1) / expected.square().sum(-1).clamp_min(1e-12)).mean()


def balanced_lines(captions: Captions, seed: int, step: int, size: int, empty: float) -> list[Line]:
    """The captions of a step: each language equally often, and a share of them replaced by the empty text."""
    languages, first = captions.languages, step * size
    _, uniform = draws(seed, "align", first, size, 1)
    return [
        Line("", "")
        if uniform[i] < empty
        else captions.line(languages[(first + i) % len(languages)], (first + i) // len(languages), step)
        for i in range(size)
    ]


class AlignSource:
    """Batches of parallel captions: place p of the stream has language p mod L, so all languages come equally often, however many lines
    have them."""

    def __init__(
        self,
        captions: Captions,
        llm: StatesEncoder,
        clip: Clip,
        run: AlignRun,
        cache: CachedCaptions | None = None,
    ) -> None:
        """With a cache, language model and CLIP encode nothing."""
        self._captions, self._clip, self._run, self._cache = captions, clip, run, cache
        self._llm, self._targets = (llm, clip) if cache is None else (cache.llm, cache.clip)
        self._step = lru_cache(maxsize=1)(lambda step: self._encoded(self.lines(step)))  # the parts of a batch share it

    def lines(self, step: int) -> list[Line]:
        """The captions of a step, in all processes together."""
        task = self._run.task
        return balanced_lines(self._captions, self._run.seed, step, task.batch_size, task.empty)

    def _encoded(self, lines: list[Line]) -> "_Encoded":
        english = [line.english for line in lines]
        target = self._targets.encode_text(english).to(self._clip.device, torch.float32)
        return _Encoded(lines, target, caption_ids(english))

    def read(self, step: int, rows: slice) -> AlignBatch:
        size = self._run.task.batch_size
        noise, _ = draws(self._run.seed, "align", step * size, size, self._clip.width)
        return self._batch(self._step(step), rows, noise[rows])

    def _batch(self, whole: "_Encoded", rows: slice, noise: Float[Tensor, "B D"]) -> AlignBatch:
        device, lines = self._clip.device, whole.lines[rows]
        return AlignBatch(
            self._llm.encode_states([line.text for line in lines]).to(device, torch.float32),
            whole.target[rows],
            self._padded([line.english for line in lines]).to(device) if self._run.task.tokens else None,
            whole.target.pooled,
            whole.ids.to(device),
            rows.start,
            noise.to(device),
        )

    def _padded(self, texts: list[str]) -> Float[Tensor, "B P D"]:
        if self._cache is None:
            return padded_states(self._clip, texts)
        assert self._cache.padded is not None, "padded states are cached if tokens are distilled"
        return self._cache.padded.encode_states(texts).states

    def unseen(self) -> Iterator[tuple[str, AlignBatch]]:
        for language in self._captions.languages:
            if lines := self._captions.unseen(language, self._run.validation_lines):
                noise, _ = draws(self._run.seed, "align validation", 0, len(lines), self._clip.width)
                yield language, self._batch(self._encoded(lines), slice(0, len(lines)), noise)


@dataclass(frozen=True)
class _Encoded:
    """Captions with CLIP's features of their English."""

    lines: list[Line]
    target: TextFeatures
    ids: Int[Tensor, "G"]


@torch.no_grad()
def padded_states(clip: Clip, texts: list[str]) -> Float[Tensor, "B P D"]:
    """CLIP's states at all of its positions, including padding, as Stable Diffusion's pipelines read them (without a mask)."""
    ids, _ = clip.tokenize(texts)
    pad = torch.full((len(ids), clip.positions - ids.shape[1]), clip.tokenizer.pad_token_id)
    ids = torch.cat([ids, pad], 1).to(clip.device)
    return clip.text_features(ids, torch.ones_like(ids, dtype=torch.bool)).states.float()
