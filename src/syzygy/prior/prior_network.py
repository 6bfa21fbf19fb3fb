"""What all priors share: the checks of their input, the parameters with the names of diffusers' `PriorTransformer`, and their folders.

A folder holds `config.json`, whose `_class_name` says which kind of prior it is, and one file of weights (`Layout`). Legend: B captions,
G captions of a whole step, D width of CLIP's joint space.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from syzygy.core import artifacts
from syzygy.core.artifacts import CONFIG_FILE, PROVENANCE_FILE, folder_written, read_json, write_json, write_tensors
from syzygy.core.config import Config
from syzygy.core.contracts import TextFeatures
from syzygy.core.errors import UserError
from syzygy.core.hub_files import ZERO_IMAGE
from syzygy.core.model_files import DIFFUSERS, TRANSFORMERS, Located, fetch, fetch_weights, locate, read_weights
from syzygy.core.packed_attention import PackedAttention, PackedText, Packing
from syzygy.core.transformer_layers import Block
from syzygy.prior.embedding_statistics import EmbeddingStatistics

EXAMPLE = "ECLIPSE-Community/ECLIPSE_KandinskyV22_Prior"
PART = "prior"
"""The prior's folder in a finished run, and in a diffusers pipeline."""
SCHEDULERS = ("scheduler", "prior_scheduler")
"""The folders of pipelines that say how their prior is sampled: in Kandinsky 2.2, and in Karlo."""
SCHEDULER_FILE = "scheduler_config.json"
STATISTICS_MEASURED = (
    "the prior has no embedding statistics (clip_mean and clip_std are zeros, as in some published priors): they are measured on the "
    "training images and saved with it."
)


class Layout(NamedTuple):
    """How one kind of prior is kept in a folder."""

    class_name: str
    """`_class_name` in its `config.json`."""
    stem: str
    """Name of its file of weights, without the ending."""
    kind: str
    """What errors call it, such as "a residual prior"."""
    remedy: str
    """What to do where another kind is needed: the end of an error."""

    @property
    def weights_file(self) -> str:
        return self.variant_file(None)

    def variant_file(self, variant: str | None) -> str:
        """The name of the file of all weights, of a variant such as "fp16" or of none."""
        return f"{self.stem}{'' if variant is None else f'.{variant}'}.safetensors"


PUBLISHED = Layout(
    "PriorTransformer",
    DIFFUSERS,
    "a prior of the published layout (ECLIPSE, λ-ECLIPSE or diffusion)",
    "To continue an ECLIPSE prior, use a preset of ECLIPSE, such as eclipse-karlo.",
)
RESIDUAL = Layout(
    "ResidualPrior",
    TRANSFORMERS,
    "a residual prior",
    "ResidualPrior.from_pretrained reads it; to continue it, use a preset such as eclipse-residual.",
)
LINEAR = Layout(
    "LinearPrior",
    TRANSFORMERS,
    "a linear map",
    "LinearPrior.from_pretrained reads it; the preset linear fits a new one.",
)
LAYOUTS = (PUBLISHED, RESIDUAL, LINEAR)
"""PUBLISHED is that of ECLIPSE's authors and of diffusers. The others are Syzygy's own: what these priors need has no place in it."""


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

    def __len__(self) -> int:
        return len(self.image)


def find_prior(source: str | Path, *, local_files_only: bool = True, variant: str | None = None) -> Path:
    """The folder that holds the prior itself.

    Args:
        source: the folder of a prior, of a finished training run or of a diffusers pipeline, or a hub id such as
            `ECLIPSE-Community/ECLIPSE_KandinskyV22_Prior`, with `@` and a revision to fix that.
        local_files_only: look for hub ids in the hub's cache only; else download what is missing.
        variant: of the weights to download: "fp16" or "bf16"; by default full precision, where it is published.

    Raises:
        UserError: it is not found, the run is not finished, or it is an embedding store.
    """
    folder = locate(source, None, local_files_only, EXAMPLE, partial(_download, variant=variant)).folder
    if (folder / PART / CONFIG_FILE).is_file():
        return folder / PART
    if (folder / "run.json").is_file():
        raise UserError(f"the run in {folder} is not finished: continue it with the command that began it.")
    if (folder / "store.json").is_file():
        raise UserError(
            f"{folder} is an embedding store, not a prior. `syzygy train prior --data {folder}` trains one on it."
        )
    return folder


def _download(source: str, revision: str | None, variant: str | None) -> Located:
    """Download a prior's files, from its own repository or a pipeline's, and the settings of its sampling."""
    settings = [CONFIG_FILE, PROVENANCE_FILE]
    schedulers = [f"{name}/{SCHEDULER_FILE}" for name in SCHEDULERS]
    patterns = ["model_index.json", ZERO_IMAGE, *settings, *(f"{PART}/{name}" for name in settings), *schedulers]
    found = fetch(source, revision, patterns, local_files_only=False)
    folder = f"{PART}/" if (found.folder / PART / CONFIG_FILE).is_file() else ""
    layout = layout_of(found.folder / folder) if (found.folder / folder / CONFIG_FILE).is_file() else PUBLISHED
    return fetch_weights(found, {folder: layout.stem}, variant)


def layout_of(folder: Path) -> Layout:
    """Which kind of prior a folder holds.

    Raises:
        UserError: its `config.json` is missing, or describes no prior.
    """
    name = read_json(folder / CONFIG_FILE).get("_class_name")
    for layout in LAYOUTS:
        if layout.class_name == name:
            return layout
    known = ", ".join(repr(layout.class_name) for layout in LAYOUTS)
    raise UserError(f"{folder / CONFIG_FILE} describes {name!r}, not a prior ({known}).")


def write_prior(
    folder: Path,
    layout: Layout,
    settings: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    provenance: dict[str, Any] | None,
    dtype: torch.dtype | None,
    variant: str | None = None,
) -> None:
    """Write a prior's folder atomically; `dtype` converts the tensors, `variant` goes into the name of their file."""
    with folder_written(folder) as temporary:
        write_json(temporary / CONFIG_FILE, {"_class_name": layout.class_name} | dict(sorted(settings.items())))
        write_tensors(temporary / layout.variant_file(variant), tensors, dtype)
        if provenance is not None:
            write_json(temporary / PROVENANCE_FILE, provenance)


def read_prior(
    folder: str | Path, layout: Layout, variant: str | None = None
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Settings (without diffusers' own, which begin with "_") and tensors: of `variant`, or in full precision, if the folder has that.

    Raises:
        UserError: missing, truncated or pickled files, another kind of prior or another class of model.
    """
    folder = Path(folder)
    found = layout_of(folder)
    if found != layout:
        raise UserError(f"{folder} holds {found.kind}, and {layout.kind} is needed. {found.remedy}")
    values = read_json(folder / CONFIG_FILE)
    return {k: v for k, v in values.items() if not k.startswith("_")}, read_weights(
        folder, layout.stem, variant=variant
    )


def is_diffusion(tensors: Mapping[str, Tensor]) -> bool:
    """Whether these are the weights of a diffusion prior: only such a prior has a time embedding."""
    return any(map(_is_of_time, tensors))


def holds_diffusion(folder: Path) -> bool:
    """Whether a folder holds a diffusion prior; reads the time embedding alone."""
    return layout_of(folder) == PUBLISHED and bool(read_weights(folder, DIFFUSERS, _is_of_time))


def _is_of_time(name: str) -> bool:
    return name.startswith("time_embedding.")


def is_controlled(tensors: Mapping[str, Tensor]) -> bool:
    """Whether these are the weights of a λ-ECLIPSE prior: only such a prior has an embedding of a control."""
    return any(map(_is_of_control, tensors))


def holds_controlled(folder: Path) -> bool:
    """Whether a folder holds a λ-ECLIPSE prior; reads the embedding of the control alone."""
    return layout_of(folder) == PUBLISHED and bool(read_weights(folder, DIFFUSERS, _is_of_control))


def _is_of_control(name: str) -> bool:
    return name.startswith("embedding_control.")


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
