"""The reader: image → its contents. A small convolutional network that marks the centres of objects and classifies them. The classifier that
trainings and selections may use.

Centres as points of a heat map, attributes read at the centre: CenterNet (Zhou, Wang and Krähenbühl 2019, "Objects as Points").
Legend: B images, K cells a side, F features.
"""

from typing import ClassVar

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from syzygy.lab.world.scene import COLOURS, MAX_OBJECTS, SHAPES, STYLES, TEXTURES
from syzygy.lab.world.scene_classifier import ClassifierConfig, SceneClassifier, resized, summary

CELLS = 16
HEADS = {"heat": 1, "shape": len(SHAPES), "colour": len(COLOURS), "texture": len(TEXTURES), "offset": 2, "radius": 1}


class ReaderConfig(ClassifierConfig):
    """Sizes of a reader; a thing's confidence is the heat of its centre."""

    features: int = Field(default=64, gt=0)
    """Channels at the resolution of the cells."""
    blocks: int = Field(default=3, gt=0)
    """Residual blocks there."""


class _Residual(nn.Module):
    def __init__(self, features: int, dilation: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.GroupNorm(8, features),
            nn.ReLU(),
            nn.Conv2d(features, features, 3, padding=dilation, dilation=dilation),
            nn.GroupNorm(8, features),
            nn.ReLU(),
            nn.Conv2d(features, features, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class Reader(SceneClassifier[ReaderConfig]):
    """The network and the search for local maxima of its heat."""

    kind: ClassVar = "reader"
    config_class: ClassVar = ReaderConfig

    def __init__(self, config: ReaderConfig) -> None:
        super().__init__(config)
        width = config.features
        self.stem = nn.Sequential(
            nn.Conv2d(3, width // 2, 5, stride=2, padding=2),
            nn.ReLU(),
            nn.Conv2d(width // 2, width, 3, stride=2, padding=1),
        )
        self.blocks = nn.ModuleList(_Residual(width, 1 + i % 2) for i in range(config.blocks))
        self.cells = nn.Sequential(
            nn.GroupNorm(8, width), nn.ReLU(), nn.Conv2d(width, sum(HEADS.values()), 3, padding=1)
        )
        self.style = nn.Linear(2 * width, len(STYLES))
        with torch.no_grad():
            last = self.cells[-1]
            assert isinstance(last, nn.Conv2d) and last.bias is not None
            last.bias[0] = -4.0  # most cells hold no centre

    def _trunk(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B F K K"]:
        x = self.stem(2 * resized(images) - 1)
        for block in self.blocks:
            x = block(x)
        return x

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> dict[str, Float[Tensor, "B F ..."]]:
        """Logits (heat, shape, colour, texture) and values (offset in cells, radius) a cell [B, F, 16, 16]; style [B, 4]."""
        x = self._trunk(images)
        found = dict(zip(HEADS, self.cells(x).split(list(HEADS.values()), 1), strict=True))
        return found | {"style": self.style(summary(x))}

    @torch.no_grad()
    def features(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B F"]:
        return summary(self._trunk(images))

    @torch.no_grad()
    def found(self, images: Float[Tensor, "B 3 H W"]) -> tuple[Float[Tensor, "B K 7"], Float[Tensor, "B 4"]]:
        found = self(images)
        heat = found["heat"][:, 0].sigmoid()
        peak = nn.functional.max_pool2d(heat[:, None], 3, stride=1, padding=1)[:, 0] == heat
        score, at = torch.where(peak, heat, 0.0).flatten(1).topk(MAX_OBJECTS)
        labels = [found[name].argmax(1).flatten(1).gather(1, at) for name in ("shape", "colour", "texture")]
        row, column = at // CELLS, at % CELLS
        offset = found["offset"].flatten(2).gather(2, at[:, None].expand(-1, 2, -1))
        x, y = (column + 0.5 + offset[:, 0]) / CELLS, (row + 0.5 + offset[:, 1]) / CELLS
        radius = found["radius"].flatten(1).gather(1, at)
        return torch.stack([score, x, y, radius, *labels], 2), found["style"]
