"""Stage 1 of an adapter: texts of any language come to where CLIP puts their English (after arXiv 2405.12914).

Legend: B captions of a pass, G of a step, K queries, T tokens, W width of the language model, D width of CLIP's joint space.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn

from syzygy.core.config import Config
from syzygy.core.contracts import TextFeatures, TextStates
from syzygy.core.errors import UserError
from syzygy.core.packed_attention import PackedText
from syzygy.prior.eclipse import EclipsePrior, contrastive_loss
from syzygy.text_encoders.adapter import TextAdapter

Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
NORM = 2e-5
"""The paper's weight of the squared difference of two norms beside one less the cosine (its released code)."""


class AlignTaskConfig(Config):
    """What one step of alignment minimises, and over how many captions."""

    batch_size: PositiveInt = 512
    """Captions a step (paper: 512), each language equally often."""
    micro_batch: int = Field(default=0, ge=0)
    """Captions a pass, where a process's share of the batch does not fit its memory; 0 takes it whole."""
    precision: Literal["auto", "fp32", "bf16"] = "fp32"
    """What adapter and prior compute in (weights and losses stay fp32); "auto" is bf16 on CUDA and fp32 elsewhere."""
    cosine: Weight = 1.0
    """Weight of one less the cosine of the pooled embedding to CLIP's (paper: 1)."""
    norm: Weight = NORM
    """Weight of the squared difference of their norms (paper: 2e-5)."""
    contrastive: Weight = 0.1
    """Weight of finding CLIP's pooled embedding among those of the batch (not in the paper)."""
    prior: Weight = 1.0
    """Weight of the squared difference of what the frozen prior makes of both, relative to what it makes of CLIP's; 0 needs no prior."""
    tokens: Weight = 0.0
    """Weight of cosine and norms (as above) of each state to CLIP's padded ones, for decoders that attend to pads; as many queries as CLIP has
    positions, then."""
    temperature: Literal["clip"] | Annotated[float, Field(gt=0, allow_inf_nan=False)] = "clip"
    """Temperature of the contrastive term: "clip" takes the frozen CLIP's own."""
    empty: float = Field(default=0.1, ge=0, lt=1)
    """Part of the captions in whose place the empty text is learned: guidance and negative prompts ask for it."""

    @model_validator(mode="after")
    def _all_trained(self) -> "AlignTaskConfig":
        if not self.prior + self.tokens:
            raise ValueError("nothing trains the states: give prior or tokens a weight")
        if not self.prior + self.cosine + self.contrastive:
            raise ValueError("nothing trains the pooled embedding: give cosine, contrastive or prior a weight")
        return self


@dataclass(frozen=True)
class AlignBatch:
    """B captions of a step with their targets, on the adapter's device."""

    text: TextStates
    """The language model's features of the captions."""
    target: TextFeatures
    """CLIP's of their English."""
    padded: Float[Tensor, "B P D"] | None
    """CLIP's states of it with all of their padding, where tokens are distilled."""
    candidates: Float[Tensor, "G D"]
    """CLIP's pooled embeddings of the English of the whole step."""
    candidate_ids: Int[Tensor, "G"]
    """Equal where the English of two is."""
    first: int
    """Which of the candidates is the first of the B captions'; the others follow."""
    noise: Float[Tensor, "B D"]
    """Standard normal, for the prior."""

    def __len__(self) -> int:
        return len(self.target)


class AlignStage:
    """Pooled embeddings, and what the prior makes of a text, as CLIP's English has them."""

    def __init__(
        self, adapter: TextAdapter, prior: EclipsePrior | None, config: AlignTaskConfig, *, logit_scale: float
    ) -> None:
        """`prior` is frozen; None where its weight is 0. `logit_scale` is CLIP's (1/τ), used where the temperature is "clip".

        Raises:
            UserError: the prior is not as wide as the CLIP, or reads fewer states than the adapter gives.
        """
        assert (prior is None) == (config.prior == 0), "a prior is there if it is asked for"
        if prior is not None:
            check_fits(adapter, prior)
        self.modules: dict[str, nn.Module] = {"adapter": adapter}
        self.adapter, self.prior, self.config = adapter, prior, config
        self.logit_scale = logit_scale if config.temperature == "clip" else 1 / config.temperature

    def losses(self, batch: AlignBatch) -> dict[str, Tensor]:
        """`loss` and its parts: `cosine`, `norm`, `contrastive`, `prior`, `tokens`, as far as they weigh anything; 0 but for `contrastive`
        where the adapter gives what CLIP gives."""
        return self._compared(self.adapter(batch.text.states, batch.text.mask), batch)

    def _compared(self, found: TextFeatures, batch: AlignBatch) -> dict[str, Tensor]:
        config = self.config
        parts: dict[str, Tensor] = {}
        if config.cosine:
            parts["cosine"] = away(found.pooled, batch.target.pooled)
        if config.norm:
            parts["norm"] = norms_apart(found.pooled, batch.target.pooled)
        if config.contrastive:
            parts["contrastive"] = contrastive_loss(
                found.pooled, batch.candidates, self.logit_scale, batch.candidate_ids, batch.first
            )
        if self.prior is not None:
            with torch.no_grad():
                wanted = self.prior(PackedText.of(batch.target), batch.noise)
            parts["prior"] = relative_error(self.prior(PackedText.of(found), batch.noise), wanted)
        loss = sum(
            (getattr(config, name) * value for name, value in parts.items()),
            torch.zeros((), device=found.pooled.device),
        )
        if config.tokens:
            assert batch.padded is not None, "CLIP's padded states are there if they are asked for"
            parts["tokens"] = away(found.states, batch.padded) + NORM * norms_apart(found.states, batch.padded)
            loss = loss + config.tokens * parts["tokens"]
        return {"loss": loss} | parts

    @torch.no_grad()
    def validated(self, batches: Iterable[tuple[str, AlignBatch]]) -> dict[str, float]:
        """The losses as in training, and of each language: `cosine/…` of the pooled embedding to CLIP's of the English, and `recall_at_1/…`,
        how often that is the nearest of the batch's (equal English counts as one)."""
        sums: dict[str, float] = {}
        found_of: dict[str, float] = {}
        number = 0
        for language, batch in batches:
            found = self.adapter(batch.text.states, batch.text.mask)
            for name, value in self._compared(found, batch).items():
                sums[name] = sums.get(name, 0.0) + value.item() * len(batch)
            number += len(batch)
            found_of[f"cosine/{language}"] = 1 - away(found.pooled, batch.target.pooled).item()
            nearest = (F.normalize(found.pooled, dim=-1) @ F.normalize(batch.candidates, dim=-1).T).argmax(-1)
            right = batch.candidate_ids[nearest] == batch.candidate_ids[: len(batch)]
            found_of[f"recall_at_1/{language}"] = right.float().mean().item()
        return {name: total / number for name, total in sums.items()} | found_of


def check_fits(adapter: TextAdapter, prior: EclipsePrior) -> None:
    """Refuse a prior that cannot read what this adapter gives."""
    width, positions = prior.config.embedding_dim, prior.config.num_embeddings
    if width != adapter.config.clip_width:
        raise UserError(
            f"the prior reads a CLIP {width} wide, this one is {adapter.config.clip_width} wide. Take the prior of this CLIP."
        )
    if adapter.config.queries > positions:
        raise UserError(
            f"the prior reads at most {positions} tokens; the adapter has {adapter.config.queries} queries."
        )


def away(found: Float[Tensor, "*B D"], wanted: Float[Tensor, "*B D"]) -> Float[Tensor, ""]:
    """One less the mean cosine; 0 where the directions are equal."""
    return 1 - F.cosine_similarity(found.float(), wanted.float(), dim=-1).mean()


def norms_apart(found: Float[Tensor, "*B D"], wanted: Float[Tensor, "*B D"]) -> Float[Tensor, ""]:
    """Mean squared difference of the norms."""
    return F.mse_loss(found.float().norm(dim=-1), wanted.float().norm(dim=-1))


def relative_error(found: Float[Tensor, "B D"], wanted: Float[Tensor, "B D"]) -> Float[Tensor, ""]:
    """Mean squared distance of each to what is wanted, relative to the latter's squared norm: no CLIP's scale matters."""
    found, wanted = found.float(), wanted.float()
    return ((found - wanted).square().sum(-1) / wanted.square().sum(-1).clamp_min(1e-12)).mean()
