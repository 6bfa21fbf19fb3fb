"""Supervision of a decoder's training by what is where in the images (after TokenCompose, Wang et al. 2023, arXiv 2312.03626).

Cross-attention learns which word names an object long after the denoising loss has become small. Where the training data knows which object
lies where, two further losses say so: a patch of an object should attend to the words that name it, and the features of a patch should tell
what is there. Both matter at noise levels at which an image's contents can still be recognised, and both are for training only.

Legend: B images, P patches, T tokens of a condition, A attributes, M mentions.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from syzygy.core.contracts import Conditioning
from syzygy.decoder.network import Decoder
from syzygy.decoder.recording import Recorded

BACKGROUND, UNKNOWN = -1, -2
"""A patch without an object, and one whose object the caption does not mention: that one is left out."""
HALF_AT = 6.0
"""The noise level σ at which the losses count half: 1 / (1 + (σ / 6)²)."""
ON_OBJECT, ON_BACKGROUND = 2.0, 0.5
"""Weights of a patch of an object and of one of the background, as most of an image is background."""
LEAST = 1e-3
"""Added to the attention before its logarithm, which bounds the loss of a patch."""


@dataclass(frozen=True)
class PatchTargets:
    """What is where in B images, on the grid of the patches of the backbone's transformer."""

    mentions: Int[Tensor, "B P"]
    """The mention in the caption of the object of each patch, `BACKGROUND` or `UNKNOWN`."""
    attributes: Int[Tensor, "B P A"]
    """The value of each attribute of the object of each patch, from 1; 0 is background."""
    words: Mapping[str, Int[Tensor, "B _"]]
    """By condition: the mention that each token names; -1 for other tokens."""

    def __getitem__(self, index: Tensor) -> "PatchTargets":
        words = {name: own[index] for name, own in self.words.items()}
        return PatchTargets(self.mentions[index], self.attributes[index], words)


class PatchClassifier(nn.Module):
    """Reads the attributes of a patch's object from its features, linearly. Trained with the decoder and not kept."""

    def __init__(self, width: int, values: tuple[int, ...]) -> None:
        """
        Args:
            width: of the features.
            values: how many values each attribute has, without that of the background.
        """
        super().__init__()
        self.sizes = [number + 1 for number in values]
        self.out = nn.Linear(width, sum(self.sizes))

    def forward(self, features: Float[Tensor, "B P D"]) -> list[Float[Tensor, "B _ P"]]:
        """Logits of each attribute."""
        return [part.transpose(1, 2) for part in self.out(features).split(self.sizes, -1)]


def level_weight(sigma: Float[Tensor, "B"]) -> Float[Tensor, "B"]:
    """How much both losses count at a noise level."""
    return 1 / (1 + (sigma / HALF_AT) ** 2)


def classification_loss(
    classifier: PatchClassifier, recorded: Recorded, targets: PatchTargets, sigma: Float[Tensor, "B"]
) -> Float[Tensor, ""]:
    """Cross-entropy of the attributes of each patch, summed over the attributes."""
    assert recorded.features is not None
    logits = classifier(recorded.features)
    weights = torch.where(targets.attributes[..., 0] > 0, ON_OBJECT, ON_BACKGROUND) * level_weight(sigma)[:, None]
    losses = [
        F.cross_entropy(own.float(), wanted, reduction="none")
        for own, wanted in zip(logits, targets.attributes.unbind(-1), strict=True)
    ]
    return (torch.stack(losses).sum(0) * weights).mean()


def attention_loss(
    recorded: Recorded,
    targets: PatchTargets,
    tokens: Int[Tensor, "B T"],
    sigma: Float[Tensor, "B"],
) -> Float[Tensor, ""]:
    """−log of the attention that each patch pays to the words of its object, or to no object's words where there is only background.

    Args:
        tokens: the mention of each token that the backbone reads, -1 for others (`token_mentions`). Images whose caption is not read count not.
    """
    number = int(torch.maximum(tokens.max(), targets.mentions.max())) + 1
    belongs = F.one_hot(tokens + 1, number + 1).float()
    wanted = (targets.mentions.clamp_min(BACKGROUND) + 1)[..., None]
    counted = (targets.mentions != UNKNOWN) & (tokens >= 0).any(1)[:, None]
    weights = torch.where(targets.mentions >= 0, ON_OBJECT, ON_BACKGROUND) * level_weight(sigma)[:, None] * counted
    losses = []
    for attention in recorded.attention:
        paid = torch.bmm(attention.float(), belongs).gather(2, wanted)[..., 0]
        losses.append(((paid + LEAST).log() * weights).mean())
    return -torch.stack(losses).mean()


def token_mentions(
    decoder: Decoder, targets: PatchTargets, conditioning: Conditioning, total: int
) -> Int[Tensor, "B T"]:
    """The mention that each of the `total` tokens of all conditions names, -1 for others and where the condition is absent."""
    found = torch.full((len(targets.mentions), total), -1, device=targets.mentions.device)
    for name, place in decoder.places(conditioning).items():
        if name in targets.words:
            own, present = targets.words[name], conditioning.conditions[name].present
            found[:, place : place + own.shape[1]] = torch.where(present[:, None], own, -1)
    return found
