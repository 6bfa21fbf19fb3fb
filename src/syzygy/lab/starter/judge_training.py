"""The judge, the scene classifier that scores: other architecture, scenes and seed than the reader's, and seen by no other training.

The loss: of each pixel, whether it is in an object's disk; of the pixels in it, the way to the centre, the radius and, mostly near the centre,
the attributes. Every object counts alike, however many pixels it has.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from syzygy.lab.starter.classifier_training import ClassifierRun, train_classifier
from syzygy.lab.world.judge import DISK, Judge, JudgeConfig, core, vote_places
from syzygy.lab.world.scene import COLOURS, MAX_OBJECTS, SHAPES, STYLES, TEXTURES, Scene
from syzygy.training.run_records import RunResult

NOWHERE = (9.0, 9.0, 1e-3)
"""Place and radius of an object that a scene of fewer than four lacks."""
WEIGHTS = {"inside": 2.0}
"""Weights of the terms that do not have 1."""


class JudgeRun(ClassifierRun):
    """All settings of a judge of the embedded world."""

    judge: JudgeConfig
    """Sizes."""
    seed: int = 1
    """Seed of weights and scenes, which are not the reader's."""


def train(run: JudgeRun, out: Path, device: torch.device) -> RunResult:
    """Train (or resume) in `out`; the finished judge is `out/judge`, fp16."""
    return train_classifier("judge", lambda: Judge(run.judge), judge_losses, run, out, device)


def owners(
    scenes: Sequence[Scene], device: torch.device
) -> tuple[Bool[Tensor, "B P P"], Int[Tensor, "B P P"], Float[Tensor, "B K 6"]]:
    """Whether each pixel is in an object's disk; which object is nearest, in radii; and of each: x, y, radius, numbers of its attributes."""
    rows = [
        [
            *(
                (t.x, t.y, t.radius, SHAPES.index(t.shape), COLOURS.index(t.colour), TEXTURES.index(t.texture))
                for t in scene.things
            ),
            *[(*NOWHERE, 0, 0, 0)] * (MAX_OBJECTS - len(scene.things)),
        ]
        for scene in scenes
    ]
    table = torch.tensor(rows, device=device)
    away = (vote_places(device) - table[:, :, None, None, :2]).norm(dim=4) / table[:, :, 2, None, None]
    nearest = away.min(1)
    return nearest.values < DISK, nearest.indices, table


def judge_losses(found: Mapping[str, Tensor], scenes: Sequence[Scene]) -> dict[str, Float[Tensor, ""]]:
    """The terms of the loss: inside or not, attributes, centre and radius of the pixels inside, style."""
    device = found["inside"].device
    inside, owner, table = owners(scenes, device)
    b, row, column = inside.nonzero(as_tuple=True)
    thing = b * MAX_OBJECTS + owner[b, row, column]
    true = table.flatten(0, 1)[thing]
    way = true[:, :2] - vote_places(device)[row, column]
    central = core(way.norm(dim=1) / true[:, 2])

    def mean(values: Tensor, counts: Tensor) -> Tensor:
        """Over objects; of an object, over its pixels as they count."""
        sums = torch.zeros(len(scenes) * MAX_OBJECTS, device=device).index_add(0, thing, counts)
        return (counts / sums[thing] * values).sum() / (sums > 0).sum()

    def votes(name: str) -> Tensor:
        return found[name][b, :, row, column]

    alike = torch.ones_like(central)
    terms = {
        "inside": nn.functional.binary_cross_entropy_with_logits(found["inside"][:, 0], inside.float()),
        "centre": mean((votes("centre") - way).abs().sum(1) / true[:, 2], alike),
        "radius": mean((votes("radius")[:, 0] / true[:, 2] - 1).abs(), alike),
        "style": nn.functional.cross_entropy(
            found["style"], torch.tensor([STYLES.index(s.style) for s in scenes], device=device)
        ),
    }
    for place, name in enumerate(("shape", "colour", "texture"), 3):
        terms[name] = mean(nn.functional.cross_entropy(votes(name), true[:, place].long(), reduction="none"), central)
    return {name: WEIGHTS.get(name, 1.0) * term for name, term in terms.items()}
