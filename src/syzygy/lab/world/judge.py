"""The judge: image → its contents, by votes. The classifier that scores images; no training and no selection ever sees it.

It differs from the reader in architecture, scenes and seed. A convolutional network with a transformer in its middle says of each pixel
whether it lies in an object's disk, where that object's centre is, and what the object looks like (votes for centres: Hough forests, Gall and
Lempitsky 2009; in a network: Panoptic-DeepLab, Cheng et al. 2020). Votes that meet are an object; its attributes are those of all its voters.
Legend: B images, P pixels a side of the votes' grid, V = P² votes, T² tokens, F features.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor, nn

from syzygy.lab.world.scene import COLOURS, MAX_OBJECTS, SHAPES, STYLES, TEXTURES
from syzygy.lab.world.scene_classifier import ClassifierConfig, SceneClassifier, resized, summary

PIXELS = 32
"""Votes along a side."""
TOKENS = 8
DISK = 0.8
"""Part of an object's radius within which pixels vote for it."""
MEET = 0.75
"""Votes are for the same object if they are nearer than this to its centre, in radii. Centres are at least 0.95 of both radii apart."""
TENT = (1.0, 2.0, 3.0, 2.0, 1.0)
"""How much votes in neighbouring cells count, along a row or column, where the first guess of a centre is looked for."""
CORE = 0.3
"""Votes at this distance from the centre, in radii, count exp(−1/2) for what the object looks like: it is seen best from its middle."""
SMALLEST = 0.1
"""Radii below this do not occur; a vote's weight is limited by it."""
SCALE = 0.1
"""Lengths that the network says are in this part of the image: else their terms outweigh the attributes' in the gradient."""
HEADS = {"inside": 1, "shape": len(SHAPES), "colour": len(COLOURS), "texture": len(TEXTURES), "centre": 2, "radius": 1}


class JudgeConfig(ClassifierConfig):
    """Sizes of a judge; a thing's confidence is the part of its disk that votes for it."""

    channels: int = Field(default=32, gt=0, multiple_of=8)
    """Channels at 32 × 32; twice as many at 16 × 16."""
    width: int = Field(default=64, gt=0, multiple_of=16)
    """Width of the transformer at 8 × 8."""
    blocks: int = Field(default=3, gt=0)
    """Blocks of the transformer."""


class _Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.GroupNorm(8, channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.GroupNorm(8, channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class _Block(nn.Module):
    """A pre-norm block of a transformer over the tokens."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = width // 16
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.ReLU(), nn.Linear(4 * width, width))

    def forward(self, x: Float[Tensor, "B N W"]) -> Float[Tensor, "B N W"]:
        q, k, v = self.qkv(self.norm_1(x)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = (q @ k.transpose(2, 3) / math.sqrt(q.shape[3])).softmax(3) @ v
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm_2(x))


def vote_places(device: torch.device | str = "cpu") -> Float[Tensor, "P P 2"]:
    """x and y of each vote, in images."""
    axis = (torch.arange(PIXELS, device=device) + 0.5) / PIXELS
    return torch.stack(torch.meshgrid(axis, axis, indexing="xy"), 2)


def core(distance: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """How much a vote counts for the attributes, by its distance from the centre in radii."""
    return torch.exp(-0.5 * (distance / CORE) ** 2)


class Judge(SceneClassifier[JudgeConfig]):
    """The network and the counting of its votes."""

    kind: ClassVar = "judge"
    config_class: ClassVar = JudgeConfig

    def __init__(self, config: JudgeConfig) -> None:
        super().__init__(config)
        fine, middle, width = config.channels, 2 * config.channels, config.width
        last = fine + fine // 2
        self.stem = nn.Conv2d(12, fine, 3, padding=1)
        self.down = nn.Sequential(
            nn.ReLU(), nn.Conv2d(fine, middle, 3, stride=2, padding=1), _Residual(middle), _Residual(middle)
        )
        self.tokens = nn.Conv2d(middle, width, 2, stride=2)
        self.places = nn.Parameter(0.02 * torch.randn(TOKENS**2, width))
        self.blocks = nn.ModuleList(_Block(width) for _ in range(config.blocks))
        self.up = nn.Sequential(nn.Conv2d(width, 4 * middle, 1), nn.PixelShuffle(2))
        self.middle = _Residual(middle)
        self.up_again = nn.Sequential(nn.Conv2d(middle, 4 * fine, 1), nn.PixelShuffle(2))
        self.last = nn.Sequential(nn.GroupNorm(8, fine), nn.ReLU(), nn.Conv2d(fine, last, 3, padding=1), nn.ReLU())
        self.votes = nn.Conv2d(last, sum(HEADS.values()), 1)
        self.style = nn.Linear(2 * last, len(STYLES))

    def _trunk(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B F P P"]:
        fine = self.stem(nn.functional.pixel_unshuffle(2 * resized(images) - 1, 2))
        middle = self.down(fine)
        tokens = self.tokens(middle)
        sequence = tokens.flatten(2).transpose(1, 2) + self.places
        for block in self.blocks:
            sequence = block(sequence)
        middle = self.middle(middle + self.up(sequence.transpose(1, 2).view_as(tokens)))
        return self.last(fine + self.up_again(middle))

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> dict[str, Float[Tensor, "B F ..."]]:
        """Logits (inside, shape, colour, texture) and values (way to the centre and radius, in images) of each vote; style [B, 4]."""
        x = self._trunk(images)
        found = dict(zip(HEADS, self.votes(x).split(list(HEADS.values()), 1), strict=True))
        found |= {name: SCALE * found[name] for name in ("centre", "radius")}
        return found | {"style": self.style(summary(x))}

    @torch.no_grad()
    def features(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B F"]:
        return summary(self._trunk(images))

    @torch.no_grad()
    def found(self, images: Float[Tensor, "B 3 H W"]) -> tuple[Float[Tensor, "B K 7"], Float[Tensor, "B 4"]]:
        found = self(images)
        votes = _Votes.of(found)
        return torch.stack([votes.strongest() for _ in range(MAX_OBJECTS)], 1), found["style"]


@dataclass
class _Votes:
    """The votes of a batch that are not yet counted."""

    weight: Float[Tensor, "B V"]
    """The votes of an object's whole disk sum to 1; of pixels outside, 0."""
    centre: Float[Tensor, "B V 2"]
    radius: Float[Tensor, "B V"]
    core: Float[Tensor, "B V"]
    """How much the vote counts for the attributes."""
    labels: dict[str, Float[Tensor, "B V L"]]
    """Logarithms of probabilities."""

    @classmethod
    def of(cls, found: Mapping[str, Tensor]) -> "_Votes":
        inside = found["inside"].flatten(1).sigmoid()
        radius = found["radius"].flatten(1).clamp_min(SMALLEST)
        weight = torch.where(inside > 0.5, inside, 0.0) / (math.pi * (DISK * PIXELS * radius) ** 2)
        way = found["centre"].flatten(2).transpose(1, 2)
        centre = vote_places(inside.device).flatten(0, 1) + way
        labels = {
            name: found[name].flatten(2).transpose(1, 2).log_softmax(2) for name in ("shape", "colour", "texture")
        }
        return cls(weight, centre, radius, core(way.norm(dim=2) / radius), labels)

    def strongest(self) -> Float[Tensor, "B 7"]:
        """Count the votes of the object with most: votes, x, y, radius, and the numbers of its shape, colour and texture."""
        cell = (self.centre * PIXELS).long().clamp(0, PIXELS - 1)
        urn = torch.zeros_like(self.weight).scatter_add(1, cell[..., 1] * PIXELS + cell[..., 0], self.weight)
        tent = torch.tensor(TENT, device=urn.device)
        sums = nn.functional.conv2d(
            urn.view(-1, 1, PIXELS, PIXELS), tent.outer(tent)[None, None], padding=len(TENT) // 2
        )
        place = vote_places(urn.device).flatten(0, 1)[sums.flatten(1).argmax(1)]
        place = (self._share(self._near(place))[..., None] * self.centre).sum(1)
        mine = self._near(place)
        share, total = self._share(mine), torch.where(mine, self.weight, 0.0).sum(1)
        place = (share[..., None] * self.centre).sum(1)
        self.weight = torch.where(mine, 0.0, self.weight)
        appearance = [((share * self.core)[..., None] * of).sum(1).argmax(1) for of in self.labels.values()]
        return torch.stack([total, place[:, 0], place[:, 1], (share * self.radius).sum(1), *appearance], 1)

    def _near(self, place: Float[Tensor, "B 2"]) -> Bool[Tensor, "B V"]:
        """The votes for the object whose centre is here."""
        return (self.centre - place[:, None]).norm(dim=2) < MEET * self.radius

    def _share(self, mine: Bool[Tensor, "B V"]) -> Float[Tensor, "B V"]:
        """Each of these votes' part of their sum."""
        weight = torch.where(mine, self.weight, 0.0)
        return weight / weight.sum(1, keepdim=True).clamp_min(1e-9)
