"""Stage align for a Stable Diffusion: texts in any language are mapped to what its own text encoders make of their English (arXiv 2405.12914).

Legend: B captions of a pass, K states of the U-Net, C their width, E width of the pooled embedding.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn

from syzygy.core.contracts import StatesEncoder, TextStates
from syzygy.core.errors import UserError
from syzygy.core.prompt_embeddings import PromptEmbeddings
from syzygy.prior.embedding_pairs import caption_ids
from syzygy.text_encoders.adapter import AdapterSizes, TextAdapter
from syzygy.text_encoders.adapter_task import StepConfig, Weight
from syzygy.text_encoders.align_stage import NORM, CaptionsRun, balanced_lines, cosine_loss, norm_loss
from syzygy.text_encoders.feature_cache import FeatureSet
from syzygy.text_encoders.parallel_captions import Captions, Line
from syzygy.text_encoders.prompt_target import PromptTarget, chunks_for


class PromptAdapterSizes(AdapterSizes):
    """The free sizes of an adapter for a Stable Diffusion."""

    queries: PositiveInt = 77
    """Number of learned queries, and so of the states that the U-Net reads: 77, as many as its text encoders give; 227 (75 n + 2) or 154
    (77 n) for English of several times 75 tokens."""

    @model_validator(mode="after")
    def _chunks(self) -> "PromptAdapterSizes":
        try:
            chunks_for(self.queries)
        except UserError as error:
            raise ValueError(str(error)) from None
        return self


class PromptTaskConfig(StepConfig):
    """Loss and batch of a training step."""

    batch_size: PositiveInt = 512
    """Captions per step, with equal numbers of each language (paper: 512)."""
    states: Weight = Field(default=1.0, gt=0)
    """Weight of 1 − cosine similarity between the adapter's states and the text encoders', at every position, and for each text encoder
    apart (paper: 1)."""
    pooled: Weight = 1.0
    """Weight of 1 − cosine similarity between the pooled embeddings (paper: 1); 0 for 1.x and 2.x, which have none."""
    norm: Weight = NORM
    """Weight of the squared difference between the norms, relative to that of the cosine (paper: 2e-5)."""


class PromptRun(CaptionsRun):
    """All settings of stage align for a Stable Diffusion."""

    adapter: PromptAdapterSizes
    """Sizes of the adapter."""
    task: PromptTaskConfig
    """Loss and batch."""


@runtime_checkable
class Teacher(Protocol):
    """The text encoders of a Stable Diffusion, whose prompt embeddings an adapter learns."""

    @property
    def target(self) -> PromptTarget:
        """What they give."""
        ...

    @property
    def device(self) -> torch.device: ...

    @property
    def tokenizer(self) -> Any: ...

    @property
    def positions(self) -> int:
        """The most tokens of a text that they read to its end, start and end token included."""
        ...

    def encode(self, texts: list[str]) -> PromptEmbeddings:
        """What the U-Net reads of these texts, in fp32."""
        ...

    def fingerprints(self) -> Mapping[str, str]:
        """Of the weights of each text encoder."""
        ...


@dataclass(frozen=True)
class PromptBatch:
    """B captions of a step with their targets, on the adapter's device."""

    text: TextStates
    """The language model's features of the captions."""
    target: PromptEmbeddings
    """What the text encoders make of their English."""
    ids: Int[Tensor, "B"]
    """Equal where two captions have the same English."""

    def __len__(self) -> int:
        return len(self.target)


class PromptStage:
    """The adapter's states and pooled embedding should equal those of the text encoders, position by position."""

    def __init__(self, adapter: TextAdapter, config: PromptTaskConfig) -> None:
        """
        Raises:
            UserError: the pooled embedding has a weight though there is none, or none though there is one.
        """
        target = adapter.config.target
        assert target is not None, "an adapter for a Stable Diffusion"
        if target.pooled is None and config.pooled:
            raise UserError(
                f"task.pooled={config.pooled} has no effect: {target} reads no pooled embedding. Set it to 0."
            )
        if target.pooled is not None and not config.pooled:
            raise UserError(f"task.pooled=0 would leave the pooled embedding untrained, which {target} reads.")
        self.modules: dict[str, nn.Module] = {"adapter": adapter}
        self.adapter, self.target, self.config = adapter, target, config

    def losses(self, batch: PromptBatch) -> dict[str, Tensor]:
        """`loss` and its parts `states` and `pooled` (cosines), `states_norm` and `pooled_norm`.

        All are 0 where the adapter gives what the text encoders give.
        """
        return self._compared(self.adapter.embed_prompts(batch.text.states, batch.text.mask), batch.target)

    def _compared(self, found: PromptEmbeddings, expected: PromptEmbeddings) -> dict[str, Tensor]:
        config, widths = self.config, list(self.target.widths)
        sides = list(zip(found.states.split(widths, -1), expected.states.split(widths, -1), strict=True))
        parts = {"states": sum_of(cosine_loss(own, other) for own, other in sides)}
        if config.norm:
            parts["states_norm"] = sum_of(norm_loss(own, other) for own, other in sides)
        if found.pooled is not None and expected.pooled is not None:
            parts["pooled"] = cosine_loss(found.pooled, expected.pooled)
            if config.norm:
                parts["pooled_norm"] = norm_loss(found.pooled, expected.pooled)
        weights = {"states": config.states, "pooled": config.pooled}
        weights |= {f"{name}_norm": weight * config.norm for name, weight in weights.items()}
        return {"loss": sum_of(weights[name] * value for name, value in parts.items())} | parts

    @torch.no_grad()
    def validated(self, batches: Iterable[tuple[str, PromptBatch]]) -> dict[str, float]:
        """The losses, and for each language `cosine/…` and `recall_at_1/…`, both of deviations from the mean text.

        All texts have much in common, which the untrained adapter already gives (its statistics): the mean text has cosine 0 here. Recall is
        how often the own target is the nearest of the batch; equal English counts as one.
        """
        sums: dict[str, float] = {}
        by_language: dict[str, float] = {}
        number = 0
        for language, batch in batches:
            found = self.adapter.embed_prompts(batch.text.states, batch.text.mask)
            for name, value in self._compared(found, batch.target).items():
                sums[name] = sums.get(name, 0.0) + value.item() * len(batch)
            number += len(batch)
            similar = self._deviations(found) @ self._deviations(batch.target).T
            by_language[f"cosine/{language}"] = similar.diagonal().mean().item()
            right = batch.ids[similar.argmax(-1)] == batch.ids
            by_language[f"recall_at_1/{language}"] = right.float().mean().item()
        return {name: total / number for name, total in sums.items()} | by_language

    def _deviations(self, x: PromptEmbeddings) -> Float[Tensor, "B F"]:
        """Standardised states of each text as one normalised vector."""
        return F.normalize(((x.states - self.adapter.states_mean) / self.adapter.states_std).flatten(1), dim=-1)


def sum_of(parts: Iterable[Tensor]) -> Tensor:
    """The sum of tensors of one shape."""
    return torch.stack(list(parts)).sum(0)


class PromptSource:
    """Batches of parallel captions with what the text encoders make of their English."""

    def __init__(self, captions: Captions, llm: StatesEncoder | FeatureSet, teacher: Teacher, run: PromptRun) -> None:
        self._captions, self._llm, self._teacher, self._run = captions, llm, teacher, run

    def lines(self, step: int) -> list[Line]:
        """The captions of a step, in all processes together."""
        task = self._run.task
        return balanced_lines(self._captions, self._run.seed, step, task.batch_size, task.empty)

    def read(self, step: int, rows: slice) -> PromptBatch:
        return self._batch(self.lines(step)[rows])

    def _batch(self, lines: list[Line]) -> PromptBatch:
        device, english = self._teacher.device, [line.english for line in lines]
        return PromptBatch(
            self._llm.encode_states([line.text for line in lines]).to(device, torch.float32),
            self._teacher.encode(english),
            caption_ids(english).to(device),
        )

    def unseen(self) -> Iterator[tuple[str, PromptBatch]]:
        for language in self._captions.languages:
            if lines := self._captions.unseen(language, self._run.validation_lines):
                yield language, self._batch(lines)
