"""A language model with its adapter in place of the text encoders of a Stable Diffusion."""

from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Real
from torch import Tensor, nn

from syzygy.core import artifacts
from syzygy.core.contracts import TextStates
from syzygy.core.model_parts import part_folder
from syzygy.core.prompt_embeddings import PromptEmbeddings, TimedPrompts
from syzygy.text_encoders.adapter import TextAdapter, check_width
from syzygy.text_encoders.adapter_folders import PART, load_recorded_llm
from syzygy.text_encoders.llm import Llm
from syzygy.text_encoders.prompt_target import PromptTarget, check_target
from syzygy.text_encoders.released_adapter import (
    LANGUAGES,
    ReleasedAdapter,
    is_release,
    load_released,
    load_released_llm,
)


class AdaptedPrompts(nn.Module):
    """Texts → what the U-Net reads of them, in fp32, by a frozen language model and its adapter."""

    def __init__(
        self,
        llm: Llm,
        adapter: TextAdapter | ReleasedAdapter,
        *,
        languages: tuple[str, ...] = (),
        fingerprint: str = "",
    ) -> None:
        """
        Args:
            languages: codes of those that the adapter was trained on.
            fingerprint: of the language model.

        Raises:
            UserError: the language model has another width than the adapter reads.
        """
        super().__init__()
        check_width(llm.width, adapter.config.llm_width)
        self.llm, self.adapter = llm, adapter
        self.languages, self.fingerprint = languages, fingerprint

    @property
    def target(self) -> PromptTarget:
        """The kind of model that reads the embeddings."""
        target = self.adapter.config.target
        assert target is not None
        return target

    @property
    def timestep_aware(self) -> bool:
        """Whether the embeddings depend on the U-Net's timestep."""
        return isinstance(self.adapter, TextAdapter) and self.adapter.timestep_aware

    def forward(self, texts: Sequence[str]) -> PromptEmbeddings | TimedPrompts:
        """What the U-Net reads of these texts, by step if the adapter is timestep-aware. Each different text is encoded once."""
        found = self.encode_states(texts)
        if self.timestep_aware:
            return TimedPrompts(lambda timestep: self.embed(found, timestep))
        return self.embed(found)

    @torch.no_grad()
    def encode_states(self, texts: Sequence[str]) -> TextStates:
        """The language model's features of the texts, on its device, in fp32."""
        unique = list(dict.fromkeys(texts))
        found, rows = self.llm.encode_states(unique), [unique.index(text) for text in texts]
        return TextStates(found.states[rows], found.mask[rows])

    @torch.no_grad()
    def embed(self, found: TextStates, timestep: Real[Tensor, ""] | None = None) -> PromptEmbeddings:
        """What the adapter makes of a language model's features, in fp32.

        Args:
            timestep: of the U-Net, if the adapter is timestep-aware.
        """
        weight = next(self.adapter.parameters())
        states, mask = found.states.to(weight.device, weight.dtype), found.mask.to(weight.device)
        if timestep is None:
            return self.adapter.embed_prompts(states, mask).to(dtype=torch.float32)
        assert isinstance(self.adapter, TextAdapter)
        timesteps = timestep.to(weight.device).expand(len(states))
        return self.adapter.embed_prompts(states, mask, timesteps).to(dtype=torch.float32)


def load_adapted_prompts(
    source: str | Path,
    wanted: PromptTarget | None = None,
    model: str | Path = "",
    *,
    llm: str | Path | None = None,
    device: str = "cpu",
    local_files_only: bool = True,
) -> AdaptedPrompts:
    """The adapter of a Stable Diffusion with its language model, read as it was in training.

    Args:
        source: the folder of the adapter, or of its run; or `text_adapter` of the authors' release (`released_adapter`).
        wanted: what the U-Net reads; None accepts any Stable Diffusion's.
        model: how errors call the model of that U-Net.
        llm: folder or hub id of its language model; None is where it was in training, which the release does not say.

    Raises:
        UserError: a part is not found or does not fit; the adapter speaks to another kind of model; the language model, its recipe or its
            features differ from those in training.
    """
    folder, where = part_folder(source, PART), {"device": device, "local_files_only": local_files_only}
    if is_release(folder):
        released = load_released(folder)
        check_target(released.config.target, wanted, folder, model)
        encoder = load_released_llm(folder, llm, **where)
        known = {"languages": LANGUAGES, "fingerprint": encoder.fingerprint()}
        return AdaptedPrompts(encoder, released.to(device).requires_grad_(False), **known)
    adapter = TextAdapter.from_pretrained(folder)
    check_target(adapter.config.speaks_to, wanted, folder, model)
    encoder = load_recorded_llm(folder, llm, **where)
    record = artifacts.read_json(folder / artifacts.PROVENANCE_FILE)
    known = {"languages": tuple(record.get("languages", ())), "fingerprint": record["llm"]["fingerprint"]}
    return AdaptedPrompts(encoder, adapter.to(device).requires_grad_(False), **known)
