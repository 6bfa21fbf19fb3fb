"""The reader: image → its contents. A small convolutional network that marks the centres of objects and classifies them.

Centres as points of a heat map, attributes read at the centre: CenterNet (Zhou, Wang and Krähenbühl 2019, "Objects as Points").
Legend: B images, K cells a side, F features.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from syzygy.core import artifacts
from syzygy.core.config import Config, parse
from syzygy.lab.world.scene import COLOURS, MAX_OBJECTS, SHAPES, STYLES, TEXTURES, Style, Thing

IMAGE_SIZE = 64
CELLS = 16
HEADS = {"heat": 1, "shape": len(SHAPES), "colour": len(COLOURS), "texture": len(TEXTURES), "offset": 2, "radius": 1}


class ReaderConfig(Config):
    """Sizes of a reader."""

    features: int = Field(default=64, gt=0)
    """Channels at the resolution of the cells."""
    blocks: int = Field(default=3, gt=0)
    """Residual blocks there."""
    threshold: float = Field(default=0.4, gt=0, lt=1)
    """Heat above which a cell is the centre of an object."""


@dataclass(frozen=True)
class Prediction:
    """What a reader finds in an image: things ordered from left to right, perhaps none, and the style."""

    things: tuple[Thing, ...]
    style: Style
    confidence: tuple[float, ...]
    """Heat of each thing's centre, in [0, 1]."""


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


def _summary(x: Float[Tensor, "B F K K"]) -> Float[Tensor, "B G"]:
    return torch.cat([x.mean((2, 3)), x.amax((2, 3))], 1)


class Reader(nn.Module):
    """Reads images of any size (resized to 64 px) in [0, 1]."""

    def __init__(self, config: ReaderConfig) -> None:
        super().__init__()
        self.config = config
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
        if images.shape[-1] != IMAGE_SIZE or images.shape[-2] != IMAGE_SIZE:
            images = nn.functional.interpolate(images, (IMAGE_SIZE, IMAGE_SIZE), mode="bicubic", antialias=True)
        x = self.stem(2 * images - 1)
        for block in self.blocks:
            x = block(x)
        return x

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> dict[str, Float[Tensor, "B F ..."]]:
        """Logits (heat, shape, colour, texture) and values (offset in cells, radius) a cell [B, F, 16, 16]; style [B, 4]."""
        x = self._trunk(images)
        found = dict(zip(HEADS, self.cells(x).split(list(HEADS.values()), 1), strict=True))
        return found | {"style": self.style(_summary(x))}

    @torch.no_grad()
    def features(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B F"]:
        """The features that the style is read from: mean and maximum of each channel of the last cells."""
        return _summary(self._trunk(images))

    @torch.no_grad()
    def read(self, images: Float[Tensor, "B 3 H W"], *, threshold: float | None = None) -> list[Prediction]:
        """The contents of each image: local maxima of the heat above the threshold (the reader's own unless given), four at most."""
        threshold = self.config.threshold if threshold is None else threshold
        found = self(images)
        heat = found["heat"][:, 0].sigmoid()
        peak = nn.functional.max_pool2d(heat[:, None], 3, stride=1, padding=1)[:, 0] == heat
        score, at = torch.where(peak, heat, 0.0).flatten(1).topk(MAX_OBJECTS)
        labels = {name: found[name].argmax(1).flatten(1).gather(1, at) for name in ("shape", "colour", "texture")}
        row, column = at // CELLS, at % CELLS
        offset = found["offset"].flatten(2).gather(2, at[:, None].expand(-1, 2, -1))
        x, y = (column + 0.5 + offset[:, 0]) / CELLS, (row + 0.5 + offset[:, 1]) / CELLS
        radius = found["radius"].flatten(1).gather(1, at)
        style = found["style"].argmax(1)
        predictions = []
        for b in range(len(images)):
            seen = []
            for k in range(MAX_OBJECTS):
                if score[b, k] > threshold:
                    shape, colour, texture = (int(labels[n][b, k]) for n in ("shape", "colour", "texture"))
                    place = float(x[b, k]), float(y[b, k]), float(radius[b, k])
                    thing = Thing(SHAPES[shape], COLOURS[colour], TEXTURES[texture], *place)
                    seen.append((thing, float(score[b, k])))
            seen.sort(key=lambda one: one[0].x)
            predictions.append(Prediction(tuple(t for t, _ in seen), STYLES[int(style[b])], tuple(c for _, c in seen)))
        return predictions

    def save_pretrained(self, folder: Path, provenance: Mapping[str, Any], dtype: torch.dtype | None = None) -> None:
        """Write configuration, weights and provenance as one folder, atomically."""
        with artifacts.folder_written(folder, "the reader") as temporary:
            artifacts.write_json(temporary / artifacts.CONFIG_FILE, self.config.model_dump(mode="json"))
            artifacts.write_tensors(temporary / artifacts.WEIGHTS_FILE, self.state_dict(), dtype)
            artifacts.write_json(temporary / artifacts.PROVENANCE_FILE, dict(provenance))

    @classmethod
    def from_pretrained(cls, folder: Path) -> "Reader":
        """The reader in `folder`, in fp32; files that are missing or do not fit are a UserError."""
        path = folder / artifacts.CONFIG_FILE
        reader = cls(parse(ReaderConfig, artifacts.read_json(path), str(path)))
        artifacts.load_strictly(reader, artifacts.read_tensors(folder / artifacts.WEIGHTS_FILE), folder)
        return reader.eval()
