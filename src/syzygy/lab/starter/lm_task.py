"""Training of a causal language model: say the next token."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor, nn

from syzygy.core.config import Config
from syzygy.training.precision import autocast


class LmTaskConfig(Config):
    """What one training step of a language model sees."""

    batch_size: int = Field(default=32, ge=1)
    """Texts a step, all of one length (short, medium, long) and of all languages in turn."""


Batch = tuple[Int[Tensor, "B T"], Bool[Tensor, "B T"]]
"""Token ids with start and end, padded on the right, and which of them are real."""


class LmTask:
    """The training loop's `Task` for a language model of transformers: `batches(step)` gives a step's texts."""

    def __init__(
        self,
        model: nn.Module,
        batches: Callable[[int], Batch],
        validation: Mapping[str, Batch],
        config: LmTaskConfig,
        *,
        precision: torch.dtype | None = None,
    ) -> None:
        """`validation` has unseen texts of each language."""
        self.modules = {"lm": model}
        self._model, self._batches, self._validation = model, batches, validation
        self._config, self._precision = config, precision

    def loss(self, step: int) -> dict[str, Tensor]:
        """Mean cross-entropy of the next token, in nats."""
        return {"loss": self._surprise(*self._batches(step)).mean()}

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """The same on unseen texts: of all tokens, and of each language's."""
        size = self._config.batch_size
        found = {
            language: torch.cat([self._surprise(*part) for part in zip(ids.split(size), mask.split(size), strict=True)])
            for language, (ids, mask) in self._validation.items()
        }
        return {"loss": torch.cat([*found.values()]).mean().item()} | {
            f"loss/{language}": values.mean().item() for language, values in found.items()
        }

    def _surprise(self, ids: Int[Tensor, "B T"], mask: Bool[Tensor, "B T"]) -> Float[Tensor, "N"]:
        """Cross-entropy of each real token but the first, given those before it."""
        longest = int(mask.sum(1).max())
        ids, mask = ids[:, :longest], mask[:, :longest]
        device = next(self._model.parameters()).device
        ids, mask = ids.to(device), mask.to(device)
        asked: dict[str, Any] = {"attention_mask": mask[:, :-1].long(), "use_cache": False}
        with autocast(device, self._precision):
            logits = self._model(input_ids=ids[:, :-1], **asked).logits
        real = mask[:, 1:]
        return nn.functional.cross_entropy(logits[real].float(), ids[:, 1:][real], reduction="none")
