"""The starter's reader: the scene classifier that trainings and selections may use. It is trained on rendered scenes.

The loss is a focal loss on centres and cross-entropy on attributes (CenterNet, Zhou et al. 2019, equation 1).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from syzygy.lab.starter.classifier_training import ClassifierRun, train_classifier
from syzygy.lab.world.reader import CELLS, Reader, ReaderConfig
from syzygy.lab.world.scene import COLOURS, SHAPES, STYLES, TEXTURES, Scene
from syzygy.training.run_records import RunResult

SPREAD = 0.7
"""Standard deviation, in cells, of the area around a centre where the focal loss penalises predicted centres less."""


class ReaderRun(ClassifierRun):
    """All settings of a reader of the embedded world."""

    reader: ReaderConfig
    """Sizes."""


def train(run: ReaderRun, out: Path, device: torch.device) -> RunResult:
    """Train (or resume) in `out`; the finished reader is `out/reader`, fp16."""
    return train_classifier("reader", lambda: Reader(run.reader), reader_losses, run, out, device)


def reader_losses(found: Mapping[str, Tensor], scenes: Sequence[Scene]) -> dict[str, Float[Tensor, ""]]:
    """The terms of the loss: centres (penalty-reduced focal loss), attributes, offset and radius at the centres, style."""
    device = found["heat"].device
    rows = [
        (
            b,
            t.x * CELLS,
            t.y * CELLS,
            t.radius,
            SHAPES.index(t.shape),
            COLOURS.index(t.colour),
            TEXTURES.index(t.texture),
        )
        for b, scene in enumerate(scenes)
        for t in scene.things
    ]
    table = torch.tensor(rows, device=device)
    b, shape, colour, texture = (table[:, i].long() for i in (0, 4, 5, 6))
    x, y = table[:, 1], table[:, 2]
    column, row = x.long().clamp(0, CELLS - 1), y.long().clamp(0, CELLS - 1)
    at = (b, slice(None), row, column)
    offset = torch.stack([x - column - 0.5, y - row - 0.5], 1)
    parts = {
        "centre": _focal(found["heat"][:, 0], b, row, column),
        "shape": nn.functional.cross_entropy(found["shape"][at], shape),
        "colour": nn.functional.cross_entropy(found["colour"][at], colour),
        "texture": nn.functional.cross_entropy(found["texture"][at], texture),
        "place": nn.functional.l1_loss(found["offset"][at], offset),
        "radius": 5 * nn.functional.l1_loss(found["radius"][at][:, 0], table[:, 3]),
        "style": nn.functional.cross_entropy(
            found["style"], torch.tensor([STYLES.index(s.style) for s in scenes], device=device)
        ),
    }
    return parts


def _focal(logits: Tensor, b: Tensor, row: Tensor, column: Tensor) -> Tensor:
    axis = torch.arange(CELLS, device=logits.device)
    distance = (axis[None, :, None] - row[:, None, None]) ** 2 + (axis[None, None] - column[:, None, None]) ** 2
    bump = torch.exp(-distance / (2 * SPREAD**2))
    target = torch.zeros_like(logits).scatter_reduce(0, b[:, None, None].expand_as(bump), bump, "amax")
    positive = target == 1
    p = logits.sigmoid().clamp(1e-5, 1 - 1e-5)
    gain = torch.where(positive, (1 - p) ** 2 * p.log(), (1 - target) ** 4 * p**2 * (1 - p).log())
    return -gain.sum() / positive.sum()
