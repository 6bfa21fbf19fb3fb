"""An adapter that maps a language model's features to what an image model reads of texts (after arXiv 2405.12914; the architecture is ours).

It speaks either to the prior of a CLIP, or to the U-Net of a Stable Diffusion (`PromptTarget`).

Legend: B texts, N tokens of all of them, T of the longest, K queries, P of them for a pooled embedding (0 or 1), M = N + (K + P) B all tokens,
Q of them queries, H heads of width E, C inner width, D width of CLIP's joint space or of a U-Net's token states.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Real
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn

from syzygy.core import artifacts
from syzygy.core.config import Config, parse
from syzygy.core.contracts import StatesEncoder, TextFeatures
from syzygy.core.errors import UserError
from syzygy.core.packed_attention import Packing
from syzygy.core.prompt_embeddings import PromptEmbeddings
from syzygy.core.transformer_layers import Block
from syzygy.text_encoders.prompt_target import PromptTarget
from syzygy.text_encoders.rotary_attention import RotaryAttend
from syzygy.text_encoders.timestep_modulation import TimestepModulation

CLASS_NAME = "TextAdapter"
MOST_QUERIES = 77
"""The most states that CLIP's text encoder gives, so that what reads CLIP can read an adapter."""
QUERY_SCALE = 0.5
"""Scale of projected text, so that queries differ from the first step on."""


class AdapterSizes(Config):
    """The free sizes of an adapter; its outer widths follow from the language model and the CLIP."""

    queries: int = Field(default=MOST_QUERIES, ge=1, le=MOST_QUERIES)
    """Number of learned queries, and so of the token states of every text, long or short."""
    layers: PositiveInt
    """Number of transformer layers."""
    heads: PositiveInt
    """Number of attention heads."""
    width: PositiveInt
    """Inner width; a multiple of twice the number of heads."""

    @model_validator(mode="after")
    def _even(self) -> "AdapterSizes":
        if self.width % (2 * self.heads):
            raise ValueError(f"width={self.width} gives {self.heads} heads no even width each")
        return self


SIZES = {
    "starter": AdapterSizes(queries=16, layers=3, heads=6, width=192),
    "vit-l-14": AdapterSizes(layers=6, heads=12, width=768),
    "bigg-14": AdapterSizes(layers=5, heads=16, width=1024),
}
"""For the starter (1.5M parameters), for Karlo's CLIP and for Kandinsky 2.2's. The starter's prior has learned captions of about 13 tokens, so
more queries would not help. The published sizes cost less than a fifth of a language model of 1B parameters (`benchmarks/adapter_cost.py`)."""


class AdapterConfig(AdapterSizes):
    """All sizes of an adapter, and what it speaks to: `clip_width` for the prior of a CLIP, `target` for a Stable Diffusion."""

    queries: PositiveInt = MOST_QUERIES
    """K; at most 77 for a prior."""
    llm_width: PositiveInt
    """Width of the language model's features."""
    clip_width: PositiveInt | None = None
    """D: 768 for ViT-L/14 (Karlo), 1280 for ViT-bigG/14 (Kandinsky 2.2)."""
    target: PromptTarget | None = None
    """The kind of Stable Diffusion model whose U-Net reads the adapter's states."""
    timestep_aware: Literal[True] | None = None
    """Whether the states depend on the U-Net's timestep (ELLA, arXiv 2403.05135). Only an adapter for a Stable Diffusion can be."""

    @model_validator(mode="after")
    def _one_reader(self) -> "AdapterConfig":
        if (self.clip_width is None) == (self.target is None):
            raise ValueError("an adapter has either a clip_width or a target")
        if self.target is None and self.queries > MOST_QUERIES:
            raise ValueError(f"queries={self.queries}: a prior reads at most {MOST_QUERIES} states")
        if self.target is None and self.timestep_aware:
            raise ValueError("timestep_aware needs a target: a prior has no timesteps")
        return self

    @property
    def speaks_to(self) -> PromptTarget | int:
        """The target, or the width of the CLIP."""
        found = self.clip_width if self.target is None else self.target
        assert found is not None
        return found

    @property
    def states_width(self) -> int:
        """D."""
        return self.speaks_to if isinstance(self.speaks_to, int) else self.speaks_to.states

    @property
    def pooled_width(self) -> int | None:
        """Width of the pooled embedding; None if there is none."""
        return self.clip_width if self.target is None else self.target.pooled


@dataclass(frozen=True)
class TextStatistics:
    """Means and standard deviations of what an adapter learns to give.

    Raises:
        UserError: they hold NaN or infinity, or a dimension does not vary.
    """

    states_mean: Float[Tensor, "*K D"]
    """Of CLIP's token states, without the start token, which is the same in every text; or of a U-Net's, at each of their K positions."""
    states_std: Float[Tensor, "D"]
    """Of the token states, around their means."""
    pooled_mean: Float[Tensor, "E"] | None
    """Of the raw pooled embeddings; None if there are none."""
    pooled_std: Float[Tensor, "E"] | None

    def __post_init__(self) -> None:
        known = [x for x in vars(self).values() if x is not None]
        if not all(torch.isfinite(x).all() for x in known):
            raise UserError("statistics of CLIP's text features hold NaN or infinity. Encode the texts again.")
        if not all((x > 0).all() for x in (self.states_std, self.pooled_std) if x is not None):
            raise UserError(
                "some dimension of CLIP's text features does not vary. Measure the statistics on more, and different, texts."
            )

    @staticmethod
    def of(features: TextFeatures) -> "TextStatistics":
        """Measured on CLIP's features of at least two texts."""
        _check_number(len(features))
        first = features.mask & (features.mask.cumsum(1) == 1)
        states_std, states_mean = torch.std_mean(features.states[features.mask & ~first].float(), dim=0)
        pooled_std, pooled_mean = torch.std_mean(features.pooled.float(), dim=0)
        return TextStatistics(states_mean, states_std, pooled_mean, pooled_std)

    @staticmethod
    def of_prompts(found: PromptEmbeddings) -> "TextStatistics":
        """Measured on a U-Net's prompt embeddings of at least two texts.

        The states of the start token and of padding differ much from those of words, so each position has a mean of its own.
        """
        _check_number(len(found))
        states = found.states.float()
        mean = states.mean(0)
        std = (states - mean).square().mean((0, 1)).sqrt()
        if found.pooled is None:
            return TextStatistics(mean, std, None, None)
        pooled_std, pooled_mean = torch.std_mean(found.pooled.float(), dim=0)
        return TextStatistics(mean, std, pooled_mean, pooled_std)


def _check_number(texts: int) -> None:
    if texts < 2:
        raise UserError(f"statistics of CLIP's text features need at least 2 texts, got {texts}.")


class TextAdapter(nn.Module):
    """A language model's features of any length → K token states and, where one is read, a pooled embedding: a soft prompt.

    Called, it gives a prior CLIP's features; `embed_prompts` gives a Stable Diffusion its prompt embeddings. There, query k learns to give the
    state at position k of the text encoders' own.

    A bidirectional transformer reads K queries, a pooling query and the text together. Its outputs at the queries are the states; the
    pooling query has a head of its own. No state is padding, so the mask is all true. States are no copies of CLIP's tokens, and have no
    characters.

    Padding is not computed: the tokens of all texts are packed one after another, each text before its queries.

    Texts have rotary positions 1, 2, …, queries have position 0. Distances in long texts then mean the same as in the short texts of the
    training, while a table of learned positions would have untrained rows.

    The heads' outputs are scaled and shifted to the standard deviation and mean of CLIP's own features (`set_statistics`), so that an
    untrained adapter already gives values in CLIP's range. For a Stable Diffusion it gives the mean itself, at each position: most of what
    its text encoders give is the same for all texts, so training begins better there than at random values.

    A timestep-aware one (`TimestepModulation`) gives other states at each denoising step.
    """

    states_mean: Tensor
    states_std: Tensor
    pooled_mean: Tensor
    pooled_std: Tensor

    def __init__(self, config: AdapterConfig) -> None:
        super().__init__()
        self.config = config
        self.norm_in = nn.LayerNorm(config.llm_width)
        self.proj_in = nn.Linear(config.llm_width, config.width)
        pools = config.pooled_width is not None
        self.queries = nn.Parameter(torch.randn(config.queries + pools, config.width) * QUERY_SCALE)
        self.blocks = nn.ModuleList(Block(config.width, config.heads) for _ in range(config.layers))
        self.norm_out = nn.LayerNorm(config.width)
        self.states_head = nn.Linear(config.width, config.states_width)
        shapes = {key: [config.states_width] for key in _STATISTICS[:2]}
        if config.target is not None:
            shapes["states_mean"] = [config.queries, config.states_width]
        if config.pooled_width is not None:
            self.pooled_head = nn.Linear(config.width, config.pooled_width)
            shapes |= {key: [config.pooled_width] for key in _STATISTICS[2:]}
        if config.target is not None:
            for head in [module for name, module in self.named_children() if name.endswith("_head")]:
                nn.init.zeros_(head.get_parameter("weight"))
                nn.init.zeros_(head.get_parameter("bias"))
        self.time = TimestepModulation(config.layers, config.width) if config.timestep_aware else None
        for name, shape in shapes.items():
            self.register_buffer(name, torch.full(shape, float("nan")))

    @property
    def timestep_aware(self) -> bool:
        """Whether the states depend on the U-Net's timestep."""
        return self.time is not None

    def forward(self, states: Float[Tensor, "B T W"], mask: Bool[Tensor, "B T"]) -> TextFeatures:
        """Features of a language model, on the adapter's device and in its dtype → features in CLIP's space. Padding may hold any values.

        Raises:
            UserError: the features have another width.
        """
        assert self.config.target is None, "this adapter speaks to a Stable Diffusion: call embed_prompts"
        soft, pooled = self._read(states, mask, None)
        assert pooled is not None
        return TextFeatures(soft, torch.ones(soft.shape[:2], dtype=torch.bool, device=soft.device), pooled)

    def embed_prompts(
        self,
        states: Float[Tensor, "B T W"],
        mask: Bool[Tensor, "B T"],
        timesteps: Real[Tensor, "B"] | None = None,
    ) -> PromptEmbeddings:
        """As `forward`, for the U-Net of a Stable Diffusion.

        Args:
            timesteps: of the U-Net that reads the embeddings, from 0 to 999, on the adapter's device. A timestep-aware adapter needs them, and
                another one takes none.
        """
        assert self.config.target is not None, "this adapter speaks to a prior: call it"
        return PromptEmbeddings(*self._read(states, mask, timesteps), [None])

    def _read(
        self, states: Tensor, mask: Tensor, timesteps: Tensor | None
    ) -> tuple[Float[Tensor, "B K D"], Float[Tensor, "B E"] | None]:
        assert (timesteps is None) == (self.time is None), (
            "only a timestep-aware adapter takes timesteps, and needs them"
        )
        check_width(states.shape[-1], self.config.llm_width)
        count, device = len(self.queries), states.device
        offsets = F.pad(mask.sum(1).cpu().cumsum(0), (1, 0))
        packing = Packing.of(offsets, following=count, positions=0)
        is_text = packing.rows < offsets[-1]
        text_NC, queries = self.proj_in(self.norm_in(states[mask])), self.queries.repeat_interleave(len(mask), 0)
        modulations: list[Tensor | None] = [None] * len(self.blocks)
        if self.time is not None and timesteps is not None:
            added_BC, of_texts = self.time(timesteps)
            queries = queries + added_BC.repeat(count, 1)
            text_M = packing.order.repeat_interleave(packing.lengths).to(device)
            modulations = [of_text.index_select(0, text_M) for of_text in of_texts]
        x_MC = torch.cat([text_NC, queries]).index_select(0, packing.rows.to(device))
        place = torch.where(is_text, packing.positions + 1, 0).to(device)
        attend = RotaryAttend(packing, place, self.config.width // self.config.heads)
        *blocks, final = self.blocks
        for block, modulation in zip(blocks, modulations, strict=False):
            x_MC = block(x_MC, attend, modulation=modulation)
        # The final layer is computed at the queries only.
        kept = (~is_text).nonzero()[:, 0].to(device)
        x_QC = self.norm_out(final(x_MC, attend, kept, modulations[-1]))
        x_BKC = x_QC.unflatten(0, (len(mask), count)).index_select(0, packing.order.argsort().to(device))
        soft = self.states_head(x_BKC[:, : self.config.queries]) * self.states_std + self.states_mean
        if self.config.pooled_width is None:
            return soft, None
        return soft, self.pooled_head(x_BKC[:, -1]) * self.pooled_std + self.pooled_mean

    @torch.no_grad()
    def set_statistics(self, statistics: TextStatistics) -> None:
        """Store the statistics of CLIP's text features, or of a U-Net's prompt embeddings, with the weights.

        Raises:
            UserError: they have another width, or another number of positions.
        """
        for name, own in self._statistics().items():
            given = getattr(statistics, name)
            if given is None or given.shape != own.shape:
                raise UserError(
                    f"statistics have {name} of shape {None if given is None else [*given.shape]}; this adapter needs {[*own.shape]}."
                )
        for name, own in self._statistics().items():
            own.copy_(getattr(statistics, name))

    def _statistics(self) -> dict[str, Tensor]:
        return {name: x for name, x in self.named_buffers() if name in _STATISTICS}

    def save_pretrained(self, folder: Path, provenance: Mapping[str, Any], dtype: torch.dtype | None = None) -> None:
        """Write weights, sizes and provenance as one folder, atomically; `dtype` (fp16) converts the weights.

        Args:
            provenance: with the identity of the language model as `llm`, and the fingerprint of the CLIP as `clip`, or those of the text
                encoders as `text_encoders`.

        Raises:
            UserError: the statistics are not set, or the folder cannot be written.
        """
        learned_from = "clip" if self.config.target is None else "text_encoders"
        assert {"llm", learned_from} <= provenance.keys(), (
            "the provenance of an adapter names its language model and what it learned from"
        )
        if not all(torch.isfinite(x).all() for x in self._statistics().values()):
            raise UserError(
                "this adapter has no statistics of its CLIP's text features. Call set_statistics before saving."
            )
        with artifacts.folder_written(folder, "the adapter") as temporary:
            config = {"_class_name": CLASS_NAME} | self.config.model_dump(mode="json", exclude_none=True)
            artifacts.write_json(temporary / artifacts.CONFIG_FILE, config)
            artifacts.write_tensors(temporary / artifacts.WEIGHTS_FILE, self.state_dict(), dtype)
            artifacts.write_json(temporary / artifacts.PROVENANCE_FILE, dict(provenance))

    @staticmethod
    def from_pretrained(folder: str | Path) -> "TextAdapter":
        """Read strictly what `save_pretrained` wrote, into fp32, on the CPU.

        Raises:
            UserError: files are missing, truncated or mismatched, or the folder holds no adapter.
        """
        folder = Path(folder)
        path = folder / artifacts.CONFIG_FILE
        values = artifacts.read_json(path)
        if (name := values.pop("_class_name", None)) != CLASS_NAME:
            raise UserError(
                f"{folder} holds {'no' if name is None else f'a {name!r}, not an'} adapter of a language model."
            )
        adapter = TextAdapter(parse(AdapterConfig, values, str(path)))
        artifacts.load_strictly(adapter, artifacts.read_tensors(folder / artifacts.WEIGHTS_FILE), folder)
        return adapter.eval()


_STATISTICS = ("states_mean", "states_std", "pooled_mean", "pooled_std")


def check_width(given: int, wanted: int) -> None:
    """Refuse features of another width than the adapter reads."""
    if given != wanted:
        raise UserError(
            f"the language model's features are {given} wide; this adapter reads {wanted}. Use the model that it was trained on."
        )


class AdaptedText(nn.Module):
    """A language model and its adapter as one text encoder (`TextEncoder`)."""

    def __init__(self, llm: StatesEncoder, adapter: TextAdapter) -> None:
        """
        Raises:
            UserError: the language model has another width than the adapter reads.
        """
        super().__init__()
        check_width(llm.width, adapter.config.llm_width)
        self.llm, self.adapter = llm, adapter

    @property
    def width(self) -> int:
        """D, the width of CLIP's joint space."""
        return self.adapter.config.states_width

    @property
    def device(self) -> torch.device:
        return self.adapter.proj_in.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """What the adapter computes in; the language model may compute in another precision."""
        return self.adapter.proj_in.weight.dtype

    @torch.no_grad()
    def encode_text(self, texts: list[str]) -> TextFeatures:
        """Texts → K states, a mask that is all true, and a raw (projected, not normalised) pooled embedding, in fp32."""
        return self(texts)

    def forward(self, texts: list[str]) -> TextFeatures:
        """`encode_text`, as the module's call, before which hooks may move the module."""
        found = self.llm.encode_states(texts)
        weight = self.adapter.proj_in.weight
        states, mask = found.states.to(weight.device, weight.dtype), found.mask.to(weight.device)
        return self.adapter(states, mask).to(dtype=torch.float32)
