"""What all priors share: the parameters with the names of diffusers' `PriorTransformer`, the batch of a training step, the checks of input.

Legend: B captions, G captions of a whole step, D width of CLIP's joint space.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from syzygy.core import artifacts
from syzygy.core.config import Config
from syzygy.core.contracts import TextFeatures
from syzygy.core.errors import UserError
from syzygy.core.packed_attention import PackedAttention, PackedText, Packing
from syzygy.core.transformer_layers import Block
from syzygy.data.references import References
from syzygy.prior.embedding_statistics import EmbeddingStatistics
from syzygy.prior.prior_folders import PUBLISHED, Layout, write_prior

STATISTICS_MEASURED = (
    "the prior has no embedding statistics (clip_mean and clip_std are zeros, as in some published priors): they are measured on the "
    "training images and saved with it."
)


class PriorConfig(Config):
    """The published `config.json` of a prior. Fields that are fixed accept their published value only."""

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


class PriorNetwork(nn.Module):
    """The parameters of a prior, with the names that are published.

    `clip_mean` and `clip_std` are the mean and the standard deviation of the training images' embeddings. They are NaN until
    measured (`set_statistics`), and a prior without them cannot be saved.
    """

    layout: ClassVar[Layout] = PUBLISHED

    def __init__(self, config: PriorConfig, additional: int, time_embedding: nn.Module | None = None) -> None:
        """`additional` is the number of tokens after the text."""
        super().__init__()
        width, dim = config.num_attention_heads * config.attention_head_dim, config.embedding_dim
        self.positional_embedding = nn.Parameter(torch.zeros(1, config.num_embeddings + additional, width))
        self.prd_embedding = nn.Parameter(torch.zeros(1, 1, width))
        self.clip_mean = nn.Parameter(torch.full((1, dim), float("nan")), requires_grad=False)
        self.clip_std = nn.Parameter(torch.full((1, dim), float("nan")), requires_grad=False)
        if time_embedding is not None:
            self.time_embedding = time_embedding
        self.proj_in = nn.Linear(dim, width)
        self.embedding_proj = nn.Linear(dim, width)
        self.encoder_hidden_states_proj = nn.Linear(dim, width)
        self.transformer_blocks = nn.ModuleList(
            Block(width, config.num_attention_heads) for _ in range(config.num_layers)
        )
        self.norm_out = nn.LayerNorm(width)
        self.proj_to_clip_embeddings = nn.Linear(width, dim)
        self._settings: dict[str, Any] = json.loads(config.model_dump_json())

    def one_pass(self, text: PackedText, following: Sequence[Float[Tensor, "B C"]]) -> Float[Tensor, "B D"]:
        """Predictions of a prior without time: the output of the learned token at the end of each sequence. C is the inner width.

        Args:
            text: the texts, as wide as this prior reads them.
            following: the tokens between a text and the learned token.

        Raises:
            UserError: more tokens than text positions.
        """
        positions = self.positional_embedding.shape[1] - len(following) - 1
        longest, device = int(text.lengths.max()), text.states.device
        if longest > positions:
            raise UserError(f"a prompt has {longest} tokens; this prior reads at most {positions}. Shorten the prompt.")
        packing = Packing.of(text.offsets, following=len(following) + 1, positions=positions)
        table = [self.encoder_hidden_states_proj(text.states), *following, self.prd_embedding[0].expand(len(text), -1)]
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

    def inputs(
        self, features: TextFeatures, noise: Float[Tensor, "B D"] | None, generator: torch.Generator | None
    ) -> tuple[PackedText, Float[Tensor, "B D"]]:
        """Checked text and noise of a prediction, on the prior's device and in its dtype.

        Noise that is not given is drawn from `generator`, on its device, or from torch's global generator.

        Raises:
            UserError: as `check_request`.
        """
        width, weight = self.proj_in.in_features, self.proj_in.weight
        check_request(features, width, noise, generator)
        if noise is None:
            device = weight.device if generator is None else generator.device
            noise = torch.randn(len(features), width, generator=generator, device=device)
        text = PackedText.of(features).to(weight.device, weight.dtype)
        return text, noise.to(weight.device, weight.dtype)

    def set_statistics(self, statistics: EmbeddingStatistics) -> None:
        """Keep the mean and standard deviation of the training images' embeddings with the weights."""
        if len(statistics.mean) != self.clip_mean.shape[1]:
            raise UserError(
                f"statistics are {len(statistics.mean)} wide; this prior predicts {self.clip_mean.shape[1]}."
            )
        with torch.no_grad():
            self.clip_mean.copy_(statistics.mean)
            self.clip_std.copy_(statistics.std)

    @property
    def device(self) -> torch.device:
        return self.proj_in.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """What the network computes in."""
        return self.proj_in.weight.dtype

    @property
    def has_statistics(self) -> bool:
        """Whether `clip_mean` and `clip_std` hold measured values; in some published priors they are zeros."""
        known = torch.isfinite(self.clip_mean) & torch.isfinite(self.clip_std) & (self.clip_std > 0)
        return bool(known.all())

    def fingerprint(self) -> str:
        """Sixteen hex digits over all weights."""
        return artifacts.fingerprint(self.state_dict())

    def save_pretrained(
        self,
        folder: str | Path,
        provenance: dict[str, Any] | None = None,
        dtype: torch.dtype | None = None,
        *,
        variant: str | None = None,
    ) -> None:
        """Write the prior's layout atomically, with `provenance` in the same folder.

        Statistics that are zeros, as in some published priors, are written as they are.

        Args:
            dtype: converts the weights, such as fp16.
            variant: goes into the name of the file of weights, such as "fp16".

        Raises:
            UserError: the statistics were never set, or the folder cannot be written.
        """
        if not (torch.isfinite(self.clip_mean).all() and torch.isfinite(self.clip_std).all()):
            raise UserError(
                "this prior has no embedding statistics (clip_mean, clip_std), and other programs would multiply its "
                "predictions by them. Call set_statistics(EmbeddingStatistics.of(image_embeddings)) before saving."
            )
        write_prior(Path(folder), self.layout, self._settings, self.state_dict(), provenance, dtype, variant)


@dataclass(frozen=True)
class PriorBatch:
    """B captions of a step with their images and their randomness, on the prior's device and in its dtype."""

    text: PackedText
    image: Float[Tensor, "B D"]
    """Raw image embeddings."""
    candidates: Float[Tensor, "G D"]
    """Pooled text embeddings of the whole step's G captions, those of other processes and other parts too."""
    candidate_ids: Int[Tensor, "G"]
    """Equal where the words of two captions are equal."""
    first: int
    """Which of the candidates is the first of the B captions; the others follow."""
    noise: Float[Tensor, "B D"]
    """Standard normal, fresh at each step (eq. 3)."""
    uniform: Float[Tensor, "B 2"]
    """In [0, 1), on the CPU: for what else an objective draws."""
    references: References | None = None
    """Subjects and controls of the B captions, in data that have them."""

    def __len__(self) -> int:
        return len(self.image)


def check_features(features: TextFeatures | PackedText, width: int) -> None:
    """Raise a `UserError` unless the features have one batch size, this width, a boolean mask, and finite values.

    Padded positions are not checked, because they have no influence.
    """
    states, pooled = features.states, features.pooled
    if isinstance(features, TextFeatures):
        mask = features.mask
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
    real = states[features.mask] if isinstance(features, TextFeatures) else states
    if not (torch.isfinite(real).all() and torch.isfinite(pooled).all()):
        raise UserError("text features hold NaN or infinity. Encode the text again, in fp32 if fp16 overflowed.")


def check_request(
    features: TextFeatures, width: int, noise: Tensor | None = None, generator: torch.Generator | None = None
) -> None:
    """The checks of every prediction: the features, and noise [B, width] *or* a generator *or* neither."""
    check_features(features, width)
    if noise is None:
        return
    if generator is not None:
        raise UserError("noise and generator were both given: pass the noise itself or the generator to draw it from.")
    if noise.shape != features.pooled.shape:
        raise UserError(f"noise has shape {tuple(noise.shape)}, but {tuple(features.pooled.shape)} is needed.")
    if not torch.isfinite(noise).all():
        raise UserError("noise holds NaN or infinity.")
