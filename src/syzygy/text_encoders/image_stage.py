"""Stages 2 and 3 of an adapter: adapter and prior learn from pictures, which tell what CLIP cannot read of a text.

Legend: B captions of a pass, G of a step, D width of CLIP's joint space.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from syzygy.core.config import Config
from syzygy.core.contracts import TextStates
from syzygy.core.packed_attention import PackedText
from syzygy.prior.eclipse import EclipsePrior, eclipse_loss
from syzygy.text_encoders.adapter import TextAdapter
from syzygy.text_encoders.align_stage import check_fits


class ImageTaskConfig(Config):
    """What one step on pictures minimises (ECLIPSE's loss, arXiv 2312.04655 eq. 5), and over how many captions."""

    frozen: Literal["none", "adapter", "prior"] = "none"
    """Which of the two is left as it is."""
    batch_size: PositiveInt = 1024
    """Captions a step, and the number of embeddings each prediction is contrasted with."""
    micro_batch: int = Field(default=0, ge=0)
    """Captions a pass, where a process's share of the batch does not fit its memory; 0 takes it whole. Changes no result."""
    precision: Literal["auto", "fp32", "bf16"] = "fp32"
    """What adapter and prior compute in (weights and losses stay fp32); "auto" is bf16 on CUDA and fp32 elsewhere."""
    lambda_contrastive: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.2
    """λ, the weight of the contrastive loss beside the mean squared error (paper: 0.2)."""
    contrast: Literal["text", "image"] = "text"
    """What a prediction is contrasted with: CLIP's pooled text embeddings, as in ECLIPSE, or the images' own, where CLIP does not read the
    captions: other languages, more tokens than it has positions."""
    temperature: Literal["clip"] | Annotated[float, Field(gt=0, allow_inf_nan=False)] = "clip"
    """τ of the contrastive loss: "clip" takes the frozen CLIP's own."""
    empty: float = Field(default=0.1, ge=0, lt=1)
    """Part of the captions in whose place the empty text is read."""


@dataclass(frozen=True)
class ImageBatch:
    """B captions of a step with their images, on the adapter's device."""

    text: TextStates
    """The language model's features of the captions."""
    image: Float[Tensor, "B D"]
    """Raw image embeddings."""
    candidates: Float[Tensor, "G D"]
    """What predictions are contrasted with, of the whole step."""
    candidate_ids: Int[Tensor, "G"]
    """Equal where two of them are one."""
    first: int
    """Which of the candidates is the first of the B captions'; the others follow."""
    noise: Float[Tensor, "B D"]
    """Standard normal, fresh at each step."""

    def __len__(self) -> int:
        return len(self.image)


class ImageStage:
    """Projection and contrast, through adapter and prior."""

    def __init__(
        self, adapter: TextAdapter, prior: EclipsePrior, config: ImageTaskConfig, *, logit_scale: float
    ) -> None:
        """Freezes what the configuration says. `logit_scale` is the frozen CLIP's, used where the temperature is "clip".

        Raises:
            UserError: the prior does not read what the adapter gives.
        """
        check_fits(adapter, prior)
        both: dict[str, nn.Module] = {"adapter": adapter, "prior": prior}
        if config.frozen != "none":
            both.pop(config.frozen).requires_grad_(False).eval()
        self.modules, self.adapter, self.prior, self.config = both, adapter, prior, config
        self.logit_scale = logit_scale if config.temperature == "clip" else 1 / config.temperature

    def predict(self, batch: ImageBatch) -> Float[Tensor, "B D"]:
        """Raw image embeddings, as the captions tell them."""
        found = self.adapter(batch.text.states, batch.text.mask)
        return self.prior(PackedText.of(found), batch.noise)

    def losses(self, batch: ImageBatch) -> dict[str, Tensor]:
        """`loss` and its parts `projection` and `contrastive`."""
        return self._compared(self.predict(batch), batch)

    def _compared(self, predicted: Float[Tensor, "B D"], batch: ImageBatch) -> dict[str, Tensor]:
        loss = eclipse_loss(
            predicted,
            batch.image,
            batch.candidates,
            lambda_contrastive=self.config.lambda_contrastive,
            logit_scale=self.logit_scale,
            caption_ids=batch.candidate_ids,
            first=batch.first,
        )
        return {"loss": loss.total, "projection": loss.projection, "contrastive": loss.contrastive}

    @torch.no_grad()
    def validated(self, batches: Iterable[tuple[str, ImageBatch]]) -> dict[str, float]:
        """The losses as in training; `cosine` of the predicted to the true image embedding and `cosine_other` to the next one's (where
        there are two); `recall_at_1`, how often the true image is the nearest of all that are given (by cosine, in [0, 1])."""
        sums: dict[str, float] = {}
        predictions, images = [], []
        for _, batch in batches:
            predicted = self.predict(batch).float()
            means = self._compared(predicted, batch)
            means["cosine"] = F.cosine_similarity(predicted, batch.image).mean()
            for name, value in means.items():
                sums[name] = sums.get(name, 0.0) + value.item() * len(batch)
            predictions.append(F.normalize(predicted, dim=-1))
            images.append(F.normalize(batch.image, dim=-1))
        predicted, image = torch.cat(predictions), torch.cat(images)
        own = (predicted * image).sum(-1, keepdim=True)
        nearer = (predicted @ image.T > own + 1e-6).any(1)  # two captions of one image are no error
        found = {name: total / len(image) for name, total in sums.items()}
        if len(image) > 1:
            found["cosine_other"] = (predicted * image.roll(1, 0)).sum(-1).mean().item()
        return found | {"recall_at_1": 1 - nearer.float().mean().item()}
