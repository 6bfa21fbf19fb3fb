"""The ECLIPSE prior (arXiv 2312.04655): a transformer that answers in one pass, with the published names and numbers.

Legend: B captions, N text tokens of all of them, M = N + 3 B all tokens, C inner width, D width of CLIP's joint space.
"""

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from syzygy.core.artifacts import CONFIG_FILE, load_strictly
from syzygy.core.config import Config, parse
from syzygy.core.contracts import TextFeatures
from syzygy.core.errors import UserError
from syzygy.core.packed_attention import PackedAttention, PackedText, Packing
from syzygy.core.transformer_layers import Block
from syzygy.prior import published_layout
from syzygy.prior.embedding_statistics import EmbeddingStatistics


class EclipsePriorConfig(Config):
    """The published `config.json`. Fields that ECLIPSE fixes accept their published value only."""

    embedding_dim: PositiveInt
    """Width of CLIP's joint space: 768 for ViT-L/14 (Karlo), 1280 for ViT-bigG/14 (Kandinsky 2.2)."""
    num_layers: PositiveInt = 10
    """Transformer blocks."""
    num_attention_heads: PositiveInt = 16
    """Attention heads of a block."""
    attention_head_dim: PositiveInt = 32
    """Width of a head; times the number of heads, the inner width."""
    num_embeddings: PositiveInt = 77
    """Text positions: the longest prompt in tokens, start and end included."""
    additional_embeddings: Literal[3] = 3
    """Tokens after the text: pooled text embedding, noise, learned output token."""
    added_emb_type: Literal["prd"] = "prd"
    """The last token is learned and its output is the prediction."""
    encoder_hid_proj_type: Literal["linear"] = "linear"
    """Text states enter through a linear layer."""
    dropout: Annotated[float, Field(ge=0, le=0)] = 0.0
    """No dropout."""
    norm_in_type: None = None
    """No normalisation before the first block."""
    embedding_proj_norm_type: None = None
    """No normalisation of the pooled text embedding."""
    embedding_proj_dim: None = None
    """The pooled text embedding has `embedding_dim`."""
    clip_embed_dim: None = None
    """The prediction has `embedding_dim`."""


class EclipsePrior(nn.Module):
    """Text features → raw CLIP image embedding in one forward pass (ECLIPSE, section 3, and the authors' code).

    The sequence is: text states, pooled text embedding, a noise vector ε ~ N(0, I), a learned token whose output is the
    prediction; a learned position is added to each; attention is causal. Padding would have no influence at all, so none is
    computed, and the result is that of the published code with all its padding: text has the positions from 0, the last
    three tokens keep `num_embeddings` … `num_embeddings + 2`.

    `clip_mean` and `clip_std` are not used here, but published with the weights because stock diffusion pipelines apply
    them. They are NaN until measured (`set_statistics`), and a prior without them cannot be saved.
    """

    def __init__(self, config: EclipsePriorConfig) -> None:
        super().__init__()
        self.config = config
        width, dim = config.num_attention_heads * config.attention_head_dim, config.embedding_dim
        self.positional_embedding = nn.Parameter(torch.zeros(1, config.num_embeddings + 3, width))
        self.prd_embedding = nn.Parameter(torch.zeros(1, 1, width))
        self.clip_mean = nn.Parameter(torch.full((1, dim), float("nan")), requires_grad=False)
        self.clip_std = nn.Parameter(torch.full((1, dim), float("nan")), requires_grad=False)
        self.proj_in = nn.Linear(dim, width)
        self.embedding_proj = nn.Linear(dim, width)
        self.encoder_hidden_states_proj = nn.Linear(dim, width)
        self.transformer_blocks = nn.ModuleList(
            Block(width, config.num_attention_heads) for _ in range(config.num_layers)
        )
        self.norm_out = nn.LayerNorm(width)
        self.proj_to_clip_embeddings = nn.Linear(width, dim)

    def forward(self, text: PackedText, noise: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        """The differentiable pass, for training: inputs are taken as they are, on the prior's device and in its dtype. See `predict`.

        Raises:
            UserError: more tokens than `num_embeddings`.
        """
        longest, device = int(text.lengths.max()), text.states.device
        if longest > self.config.num_embeddings:
            raise UserError(
                f"a prompt has {longest} tokens; this prior reads at most {self.config.num_embeddings}. "
                "Shorten the prompt."
            )
        packing = Packing.of(text.offsets, following=3, positions=self.config.num_embeddings)
        table = [
            self.encoder_hidden_states_proj(text.states),
            self.embedding_proj(text.pooled),
            self.proj_in(noise),
            self.prd_embedding[0].expand(len(text), -1),
        ]
        x_MC = torch.cat(table).index_select(0, packing.rows.to(device))
        # As an embedding: its gradient sums in a fixed order on every device, that of an indexed tensor does not.
        x_MC = x_MC + F.embedding(packing.positions.to(device), self.positional_embedding[0])
        attention, last = PackedAttention(packing.lengths, device), (packing.lengths.cumsum(0) - 1).to(device)
        *blocks, final = self.transformer_blocks
        for block in blocks:
            x_MC = block(x_MC, attention.causal)
        # Nothing reads the final layer's other tokens.
        x_BC = final(x_MC, attention.whole, kept=last)
        as_asked = packing.order.argsort().to(device)
        return self.proj_to_clip_embeddings(self.norm_out(x_BC)).index_select(0, as_asked)

    @torch.no_grad()
    def predict(
        self,
        features: TextFeatures,
        *,
        noise: Float[Tensor, "B D"] | None = None,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "B D"]:
        """Raw CLIP image embeddings for these texts, on the prior's device and in its dtype, without gradient.

        Args:
            features: CLIP text states, mask and pooled embedding; padding may stand anywhere and hold anything.
            noise: the ε to use.
            generator: where ε is drawn from otherwise, on the generator's device; none means torch's global one.

        Raises:
            UserError: both `noise` and `generator`; NaN or infinity; a wrong width; more tokens than `num_embeddings`.
        """
        width, weight = self.config.embedding_dim, self.proj_in.weight
        check_request(features, width, noise, generator)
        if noise is None:
            device = weight.device if generator is None else generator.device
            noise = torch.randn(len(features), width, generator=generator, device=device)
        text = PackedText.of(features).to(weight.device, weight.dtype)
        return self(text, noise.to(weight.device, weight.dtype))

    def set_statistics(self, statistics: EmbeddingStatistics) -> None:
        """Keep the mean and standard deviation of the training images' embeddings with the weights."""
        published_layout.set_statistics(self, statistics)

    @staticmethod
    def from_pretrained(source: str | Path, *, local_files_only: bool = True) -> "EclipsePrior":
        """Read the published layout (`config.json`, `diffusion_pytorch_model.safetensors`) strictly, into fp32.

        Args:
            source: a prior's own folder, that of a finished training run or of a diffusers pipeline, or a hub id of either such as
                `ECLIPSE-Community/ECLIPSE_KandinskyV22_Prior`, with `@` and a revision to fix that.
            local_files_only: look for hub ids in the hub's cache only; else download what is missing.

        Raises:
            UserError: it is not found; missing, truncated or mismatched files; a setting ECLIPSE does not have; a diffusion prior.
        """
        folder = published_layout.find(source, local_files_only=local_files_only)
        values, tensors = published_layout.read(folder)
        if published_layout.is_diffusion(tensors):
            raise UserError(
                f"{folder} holds a diffusion prior (it has a time embedding), which needs many steps. "
                "An ECLIPSE prior is needed: one forward pass, no time embedding."
            )
        prior = EclipsePrior(parse(EclipsePriorConfig, values, str(folder / CONFIG_FILE)))
        load_strictly(prior, tensors, folder)
        return prior

    def save_pretrained(
        self, folder: str | Path, provenance: dict[str, Any] | None = None, dtype: torch.dtype | None = None
    ) -> None:
        """Write the published layout atomically, with `provenance` beside it; `dtype` (fp16) converts the weights.

        Raises:
            UserError: the statistics were never set, or the folder cannot be written.
        """
        published_layout.save(self, json.loads(self.config.model_dump_json()), folder, provenance, dtype)


def check_features(features: TextFeatures, width: int) -> None:
    """Raise a `UserError` unless the features have one batch size, this width, a boolean mask, and finite values.

    Padded positions are not looked at: they have no influence.
    """
    states, mask, pooled = features.states, features.mask, features.pooled
    if states.ndim != 3 or pooled.ndim != 2 or mask.shape != states.shape[:2] or len(pooled) != len(states):
        raise UserError(
            "text features must have shapes states [B, T, D], mask [B, T], pooled [B, D]; got "
            f"{tuple(states.shape)}, {tuple(mask.shape)}, {tuple(pooled.shape)}."
        )
    if mask.dtype != torch.bool:
        raise UserError(f"the mask of text features must be bool (true on real tokens), got {mask.dtype}.")
    for name, values in (("states", states), ("pooled", pooled)):
        if values.shape[-1] != width:
            raise UserError(
                f"text features ({name}) are {values.shape[-1]} wide, but {width} is needed. "
                "Encode text with the CLIP that the image embeddings come from."
            )
    if not (torch.isfinite(states[mask]).all() and torch.isfinite(pooled).all()):
        raise UserError("text features hold NaN or infinity. Encode the text again, in fp32 if fp16 overflowed.")


def check_request(
    features: TextFeatures, width: int, noise: Tensor | None = None, generator: torch.Generator | None = None
) -> None:
    """What every prior checks before it predicts: the features, and noise [B, width] *or* a generator *or* neither."""
    check_features(features, width)
    if noise is None:
        return
    if generator is not None:
        raise UserError("noise and generator were both given: pass the noise itself or the generator to draw it from.")
    if noise.shape != features.pooled.shape:
        raise UserError(f"noise has shape {tuple(noise.shape)}, but {tuple(features.pooled.shape)} is needed.")
    if not torch.isfinite(noise).all():
        raise UserError("noise holds NaN or infinity.")
