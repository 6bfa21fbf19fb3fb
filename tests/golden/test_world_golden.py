"""Six scenes look as they did: pictures at 64 px, shrunk fourfold, within two grey levels of the stored ones.

A deliberate change of the renderer asks for new starter weights. Run this file then, to store its pictures.
"""

from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from syzygy.lab.world.render import render
from syzygy.lab.world.scene import Background, Scene, Thing

STORED = Path(__file__).parents[1] / "data" / "world"

SCENES = {
    "flat": Scene(
        (
            Thing("circle", "red", "plain", 0.27, 0.3, 0.2),
            Thing("square", "orange", "striped", 0.72, 0.28, 0.2),
            Thing("triangle", "yellow", "dotted", 0.5, 0.74, 0.22),
        ),
        "flat",
        Background(0.1, 0.6, 0.8, 0.7),
    ),
    "outline": Scene(
        (Thing("star", "green", "striped", 0.3, 0.35, 0.24), Thing("heart", "cyan", "dotted", 0.7, 0.65, 0.24)),
        "outline",
        Background(0.9, 0.3, 1.0, 2.5),
    ),
    "pastel": Scene(
        (Thing("cross", "blue", "plain", 0.3, 0.7, 0.25), Thing("ring", "purple", "striped", 0.7, 0.3, 0.25)),
        "pastel",
        Background(0.5, 0.2, 0.5, 4.0),
    ),
    "night": Scene(
        (Thing("moon", "pink", "dotted", 0.35, 0.4, 0.28), Thing("star", "yellow", "plain", 0.75, 0.7, 0.18)),
        "night",
        Background(0.7, 0.0, 1.0, 5.5),
    ),
    "overlap": Scene(
        tuple(
            Thing(shape, "blue", "plain", x, y, 0.18)
            for shape, x, y in (
                ("heart", 0.35, 0.35),
                ("cross", 0.6, 0.4),
                ("ring", 0.4, 0.6),
                ("triangle", 0.63, 0.66),
            )
        ),
        "outline",
        Background(0.4, 0.4, 0.2, 0.0),
    ),
    "large": Scene((Thing("moon", "green", "striped", 0.5, 0.5, 0.34),), "night", Background(0.3, 0.8, 0.6, 1.0)),
}


def shrunk(scene: Scene) -> Tensor:
    """Grey levels [16, 16, 3]: pixels would hold rounding of other machines, means over 4 × 4 of them do not."""
    return (torch.nn.functional.avg_pool2d(render([scene], 64), 4)[0] * 255).round().byte().permute(1, 2, 0)


@pytest.mark.parametrize("name", SCENES)
def test_scene_looks_as_stored(name: str) -> None:
    stored = torch.frombuffer(bytearray(Image.open(STORED / f"{name}.png").tobytes()), dtype=torch.uint8)
    difference = shrunk(SCENES[name]).int() - stored.view(16, 16, 3).int()
    assert difference.abs().max() <= 2


if __name__ == "__main__":
    for name, scene in SCENES.items():
        Image.fromarray(shrunk(scene).numpy()).save(STORED / f"{name}.png")
