"""How Karlo's decoder reads a guide: the image embedding and the prompt, projected to what its U-Net attends to and is modulated by.

The module is diffusers' `UnCLIPTextProjModel` name for name. That class lives among diffusers' deprecated pipelines, and a pipeline
saved with it does not load again; hence these are our own lines.

Legend: B images, T tokens, D width of CLIP's joint space, C width of the U-Net's context, K extra tokens.
"""

from pathlib import Path

import torch
from jaxtyping import Float
from pydantic import PositiveInt
from torch import Tensor, nn

from syzygy.core import artifacts, hub_files
from syzygy.core.config import Config, parse
from syzygy.core.diffusers_weights import read_settings

KIND = "UnCLIPTextProjModel"
PART = "text_proj"


class TextProjectionConfig(Config):
    """The published `config.json`."""

    clip_extra_context_tokens: PositiveInt = 4
    """K: tokens that the image embedding becomes."""
    clip_embeddings_dim: PositiveInt = 768
    """D."""
    time_embed_dim: PositiveInt
    """Width of the U-Net's time embedding."""
    cross_attention_dim: PositiveInt
    """C."""


class TextProjection(nn.Module):
    """Embeddings and text states → the U-Net's context and what is added to its time embedding (unCLIP, section 2.1)."""

    def __init__(self, config: TextProjectionConfig) -> None:
        super().__init__()
        self.config = config
        width, context, time = config.clip_embeddings_dim, config.cross_attention_dim, config.time_embed_dim
        self.learned_classifier_free_guidance_embeddings = nn.Parameter(torch.zeros(width))
        self.embedding_proj = nn.Linear(width, time)
        self.clip_image_embeddings_project_to_time_embeddings = nn.Linear(width, time)
        self.clip_extra_context_tokens_proj = nn.Linear(width, config.clip_extra_context_tokens * context)
        self.encoder_hidden_states_proj = nn.Linear(width, context)
        self.text_encoder_hidden_states_norm = nn.LayerNorm(context)

    @property
    def device(self) -> torch.device:
        return self.embedding_proj.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.embedding_proj.weight.dtype

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the published layout.

        Raises:
            UserError: the folder cannot be written.
        """
        with artifacts.folder_written(Path(folder), "the text projection") as temporary:
            artifacts.write_json(temporary / artifacts.CONFIG_FILE, {"_class_name": KIND} | self.config.model_dump())
            artifacts.write_tensors(temporary / f"{hub_files.DIFFUSERS}.safetensors", self.state_dict())

    @property
    def nothing(self) -> Float[Tensor, "1 D"]:
        """The learned image embedding that stands for none."""
        return self.learned_classifier_free_guidance_embeddings[None]

    def forward(
        self, embeddings: Float[Tensor, "B D"], pooled: Float[Tensor, "B D"], states: Float[Tensor, "B T D"]
    ) -> tuple[Float[Tensor, "B K_plus_T C"], Float[Tensor, "B E"]]:
        """Context (the image's tokens first), and what joins the time embedding."""
        time = self.clip_image_embeddings_project_to_time_embeddings(embeddings) + self.embedding_proj(pooled)
        # The published weights count the extra tokens fastest.
        extra = self.clip_extra_context_tokens_proj(embeddings)
        extra = extra.unflatten(1, (-1, self.config.clip_extra_context_tokens)).mT
        text = self.text_encoder_hidden_states_norm(self.encoder_hidden_states_proj(states))
        return torch.cat([extra, text], 1), time


def read_config(folder: Path) -> TextProjectionConfig:
    """The settings of the projection in a folder with Karlo's layout.

    Raises:
        UserError: they are missing, or another model's.
    """
    values = read_settings(folder, PART, KIND)
    kept = {name: value for name, value in values.items() if not name.startswith("_")}
    return parse(TextProjectionConfig, kept, str(folder / PART / artifacts.CONFIG_FILE))


def load_text_projection(folder: Path, dtype: torch.dtype) -> TextProjection:
    """The projection in a folder with Karlo's layout, strictly, on the CPU, in evaluation mode and frozen.

    Raises:
        UserError: a file is missing, truncated, pickle, or does not fit.
    """
    with torch.device("meta"):
        model = TextProjection(read_config(folder)).to(dtype)
    path = folder / PART
    artifacts.load_strictly(model, hub_files.read_weights(path, hub_files.DIFFUSERS), path, assign=True)
    return model.eval().requires_grad_(False)
