"""The paper's own second stage (arXiv 2405.12914): adapter and decoder learn to denoise pictures, the decoder reading the adapter's text."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from syzygy.core.contracts import Conditioning, TextStates, image_condition, text_condition
from syzygy.core.errors import UserError
from syzygy.decoder.network import Decoder
from syzygy.decoder.training import DecoderBatch, DecoderTask, DecoderTaskConfig
from syzygy.text_encoders.adapter import TextAdapter

SLOT = "text"
"""The condition that the adapter's features are."""


@dataclass(frozen=True)
class Described:
    """B pictures' latents with their image embeddings and a language model's features of their captions, on the device that trains."""

    latents: Float[Tensor, "B C H W"]
    image: Float[Tensor, "B D"]
    text: TextStates


class AdaptedDecoderTask:
    """The training loop's `Task` for an adapter and a decoder, either of which may be frozen; otherwise as `DecoderTask`."""

    def __init__(
        self,
        adapter: TextAdapter,
        decoder: Decoder,
        batches: Callable[[int], Described],
        validation: Described,
        config: DecoderTaskConfig,
        seed: int,
        *,
        frozen: Literal["none", "adapter", "decoder"] = "none",
        precision: torch.dtype | None = None,
    ) -> None:
        """
        Raises:
            UserError: the decoder reads no text, or not of this width; no subset of conditions has it.
        """
        slots = {slot.name: slot for slot in decoder.config.slots}
        if SLOT not in slots or slots[SLOT].token_width != adapter.config.clip_width:
            raise UserError(
                f"the decoder does not read the states of a CLIP {adapter.config.clip_width} wide: take one that was trained beside it."
            )
        if not any(SLOT in subset.split("+") for subset, share in config.subsets.items() if share):
            raise UserError(f"no subset of task.subsets has {SLOT!r}: the adapter would learn nothing.")
        both: dict[str, nn.Module] = {"adapter": adapter, "decoder": decoder}
        if frozen != "none":
            both.pop(frozen).requires_grad_(False).eval()
        self.modules, self._adapter, self._decoder = both, adapter, decoder
        self._validation = validation
        self._settings = (config, seed, precision)
        self._batches = lambda step: self._conditioned(batches(step))

    def _conditioned(self, found: Described) -> DecoderBatch:
        text = text_condition(self._adapter(found.text.states, found.text.mask))
        return DecoderBatch(found.latents, Conditioning({"image": image_condition(found.image), SLOT: text}))

    def loss(self, step: int) -> dict[str, Tensor]:
        """The mean weighted denoising loss of one batch."""
        return self._denoising([]).loss(step)

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Loss for each subset of conditions, as `DecoderTask.validate`, with the text as the adapter now has it."""
        return self._denoising([self._conditioned(self._validation)]).validate()

    def _denoising(self, validation: list[DecoderBatch]) -> DecoderTask:
        config, seed, precision = self._settings
        return DecoderTask(self._decoder, self._batches, validation, config, seed, precision)
