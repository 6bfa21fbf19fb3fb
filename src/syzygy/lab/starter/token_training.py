"""Training of a decoder's refiner alone: the words for an object learn to tell where it is.

A step costs a tenth of one of the whole decoder. Trained only with that, whose learning rate suits the backbone, the refiner had not begun to
read relations after 500 steps (docs/LOG.md, 2026-11-30).
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from syzygy.core.contracts import Conditioning
from syzygy.decoder.network import Decoder
from syzygy.decoder.recording import Recorded
from syzygy.decoder.supervision import PlaceClassifier, place_loss, token_mentions
from syzygy.decoder.training import DecoderBatch, recorded_tokens
from syzygy.training.precision import autocast


class TokenTask:
    """The training loop's `Task` for the refiner. Each step reads one of the conditions that are words, or all of them."""

    def __init__(
        self,
        decoder: Decoder,
        places: PlaceClassifier,
        batches: Callable[[int], DecoderBatch],
        validation: DecoderBatch,
        precision: torch.dtype | None = None,
    ) -> None:
        assert decoder.refiner is not None
        assert validation.targets is not None
        names = list(validation.targets.words)
        self.modules: Mapping[str, nn.Module] = {"refiner": decoder.refiner, "places": places}
        self._decoder, self._places, self._batches, self._validation = decoder, places, batches, validation
        self._subsets = [[name] for name in names] + ([names] if len(names) > 1 else [])
        self._precision = precision

    def loss(self, step: int) -> dict[str, Tensor]:
        """Cross-entropy of the patches of the objects."""
        return {"loss": self._loss(self._batches(step), self._subsets[step % len(self._subsets)])}

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """The same on unseen scenes, for each choice of conditions and their mean."""
        losses = {"+".join(names): self._loss(self._validation, names).item() for names in self._subsets}
        mean = {"loss": sum(losses.values()) / len(losses)}
        return mean | {f"loss/{name}": value for name, value in losses.items()}

    def _loss(self, batch: DecoderBatch, names: list[str]) -> Tensor:
        shown = Conditioning({name: batch.conditioning.conditions[name] for name in names})
        with autocast(batch.latents.device, self._precision), recorded_tokens(self._decoder, recorded := Recorded()):
            read = self._decoder.tokens(shown, len(batch))
        assert batch.targets is not None
        words = token_mentions(self._decoder, batch.targets, shown, read.mask_BT.shape[1])
        return place_loss(self._places, recorded, batch.targets, words)
