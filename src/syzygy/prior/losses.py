"""The training losses of ECLIPSE (arXiv 2312.04655, section 3.2). Shapes: B predictions, G batch, D width of CLIP's joint space."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from syzygy.core.errors import UserError


@dataclass(frozen=True)
class EclipseLoss:
    """Equation 5 and its two parts, each a scalar with its gradient."""

    total: Float[Tensor, ""]
    projection: Float[Tensor, ""]
    contrastive: Float[Tensor, ""]


def projection_loss(predicted: Float[Tensor, "B D"], image: Float[Tensor, "B D"]) -> Float[Tensor, ""]:
    """ECLIPSE eq. 3: squared distance of the predicted to the true image embedding.

    The paper leaves open whether dimensions are summed or averaged; here they are *averaged*, and λ in `eclipse_loss`
    has its meaning relative to that.
    """
    return F.mse_loss(predicted.float(), image.float())


def contrastive_loss(
    predicted: Float[Tensor, "B D"],
    text: Float[Tensor, "G D"],
    logit_scale: float,
    caption_ids: Int[Tensor, "G"],
    first: int = 0,
) -> Float[Tensor, ""]:
    """ECLIPSE eq. 4: each predicted image embedding must find its own text embedding among those of the batch.

    One direction only, by cosine. Equal `caption_ids` mark equal captions: such a text is a right answer too, so it is
    no negative. Computed in fp32 under any autocast, because `logit_scale` magnifies rounding.

    The texts are frozen, so a process that predicts only some of the batch's embeddings, or a part that fits its memory,
    contrasts them with the whole batch's texts all the same: the mean over the parts is the loss of the whole, exactly.

    Args:
        predicted: predicted image embeddings, any norm; of the captions `first` … `first` + B − 1 of the batch.
        text: pooled text embeddings of the whole batch of G, by the same CLIP, any norm.
        logit_scale: 1/τ > 0; 100 for the published CLIPs.
        caption_ids: one integer a caption of the batch, equal where the captions are equal.
    """
    if not logit_scale > 0:
        raise UserError(f"logit_scale is 1/temperature and must be positive, got {logit_scale}.")
    with torch.autocast(predicted.device.type, enabled=False):
        own_B = first + torch.arange(len(predicted), device=text.device)
        cosine_BG = F.normalize(predicted.float(), dim=-1) @ F.normalize(text.float(), dim=-1).T
        duplicate_BG = (caption_ids[own_B, None] == caption_ids).scatter_(1, own_B[:, None], False)
        logits_BG = (logit_scale * cosine_BG).masked_fill(duplicate_BG, float("-inf"))
        return F.cross_entropy(logits_BG, own_B)


def eclipse_loss(
    predicted: Float[Tensor, "B D"],
    image: Float[Tensor, "B D"],
    text: Float[Tensor, "G D"],
    *,
    lambda_contrastive: float,
    logit_scale: float,
    caption_ids: Int[Tensor, "G"],
    first: int = 0,
) -> EclipseLoss:
    """ECLIPSE eq. 5: L = L_proj + λ·L_cls. In the paper λ = 0.2 (0.2–0.4 is good); 0 is projection-only."""
    projection = projection_loss(predicted, image)
    contrastive = contrastive_loss(predicted, text, logit_scale, caption_ids, first)
    return EclipseLoss(projection + lambda_contrastive * contrastive, projection, contrastive)
