"""Prompt embeddings for diffusers' Stable Diffusion pipelines, from a language model with its adapter."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from syzygy.core import arguments
from syzygy.core.errors import UserError
from syzygy.core.model_parts import part_folder
from syzygy.core.prompt_embeddings import PromptEmbeddings
from syzygy.generation.replaced_text_encoder import llm_beside
from syzygy.pretrained.trained_unet import record_of, trained_form
from syzygy.text_encoders.adapted_prompts import AdaptedPrompts, load_adapted_prompts
from syzygy.text_encoders.adapter_folders import PART
from syzygy.text_encoders.prompt_target import PromptTarget


@dataclass
class PromptEncoder:
    """Prompts → the keyword arguments `prompt_embeds`, `negative_prompt_embeds` and, for XL, the pooled ones of a diffusers pipeline.

        prompts = PromptEncoder.from_pretrained("RUN", pipeline=pipeline)
        image = pipeline(**prompts("ein roter Kreis", negative_prompt="unscharf")).images[0]

    The pipeline's own text encoders are not used then, and may be None.
    """

    encoder: AdaptedPrompts
    dtype: torch.dtype = torch.float32
    """Precision of the embeddings: that of the pipeline's U-Net."""

    @classmethod
    def from_pretrained(
        cls,
        adapter: str | Path,
        *,
        pipeline: Any = None,
        llm: str | Path | None = None,
        dtype: torch.dtype | None = None,
        local_files_only: bool = False,
    ) -> "PromptEncoder":
        """Load an adapter for Stable Diffusion with its language model, on the CPU.

        Args:
            adapter: its folder, or the run that trained it (`syzygy train adapter --stage align --model`).
            pipeline: a diffusers pipeline that will read the embeddings. Its U-Net is checked, and gives the precision.
            llm: its language model (folder or hub id), if it has moved since the training.
            dtype: of the embeddings, by default that of the pipeline's U-Net, or fp32; the adapter computes in fp32.
            local_files_only: search the hub's cache only. By default, as in diffusers, what is missing is downloaded.

        Raises:
            UserError: a part is not found or does not fit; the adapter was trained for a prior, or for another kind of U-Net; it is
                timestep-aware.
        """
        folder = part_folder(adapter, PART)
        encoder = load_adapted_prompts(folder, llm=llm or llm_beside(folder), local_files_only=local_files_only)
        if encoder.timestep_aware:
            raise UserError(
                f"the adapter in {folder} is timestep-aware, so its embeddings change at each denoising step, and a diffusers pipeline takes "
                "them once. Generate with syzygy generate --text-encoder or syzygy.TextToImage, or train an adapter without timestep_aware."
            )
        if (form := trained_form(record_of(folder))) != "adapter":
            warnings.warn(
                f"the run of the adapter in {folder} also trained the U-Net. A pipeline needs what it learned, in {folder.parent / form}; "
                "syzygy generate loads it.",
                stacklevel=2,
            )
        if pipeline is not None:
            _check_unet(pipeline.unet, encoder.target, folder)
            dtype = dtype or pipeline.unet.dtype
        return cls(encoder, dtype or torch.float32)

    def to(self, device: torch.device | str) -> "PromptEncoder":
        """Move language model and adapter; itself, for chaining."""
        self.encoder.to(device)
        return self

    @property
    def target(self) -> PromptTarget:
        """The kind of Stable Diffusion that reads the embeddings."""
        return self.encoder.target

    def __call__(
        self,
        prompt: str | Sequence[str],
        negative_prompt: str | Sequence[str] | None = None,
    ) -> dict[str, Tensor]:
        """Embeddings of P prompts, and their negative conditioning, on the encoder's device.

        Args:
            prompt: one, or P.
            negative_prompt: one for all, or one each. None is the model's own: zeros for XL, the empty text for others.

        Returns:
            `prompt_embeds` and `negative_prompt_embeds` [P, T, C]; for XL also `pooled_prompt_embeds` and
            `negative_pooled_prompt_embeds` [P, E].

        Raises:
            UserError: no prompt, values of another type, or another number of negative prompts.
        """
        prompts = arguments.texts(prompt)
        if not prompts:
            raise UserError("no prompt is given: give one or more.")
        negatives = [""] if negative_prompt is None else arguments.texts(negative_prompt, "negative_prompt")
        if len(negatives) not in (1, len(prompts)):
            raise UserError(
                f"{len(negatives)} negative prompts for {len(prompts)} prompts: give one for all, or one each."
            )
        found = self._read(prompts)
        if negative_prompt is None and found.pooled is not None:
            negative = found.zeros()
        else:
            negative = self._read(negatives * (len(prompts) // len(negatives)))
        embeddings = {"prompt_embeds": found.states, "negative_prompt_embeds": negative.states}
        if found.pooled is not None and negative.pooled is not None:
            embeddings |= {"pooled_prompt_embeds": found.pooled, "negative_pooled_prompt_embeds": negative.pooled}
        return embeddings

    def _read(self, texts: Sequence[str]) -> PromptEmbeddings:
        found = self.encoder(texts)
        assert isinstance(found, PromptEmbeddings), "a timestep-aware adapter is refused when it is loaded"
        return found.to(dtype=self.dtype)


def _check_unet(unet: Any, target: PromptTarget, folder: Path) -> None:
    """Refuse an adapter that does not give what this U-Net reads."""
    states, pooled = unet.config.cross_attention_dim, None
    if unet.config.addition_embed_type == "text_time":
        pooled = unet.config.projection_class_embeddings_input_dim - 6 * unet.config.addition_time_embed_dim
    if (states, pooled) != (target.states, target.pooled):
        more = "no pooled embedding" if pooled is None else f"a pooled embedding {pooled} wide"
        raise UserError(
            f"the adapter in {folder} was trained for a {target}; the U-Net of this pipeline reads token states {states} wide and {more}. Give "
            "an adapter of that model (syzygy train adapter --stage align --model)."
        )
