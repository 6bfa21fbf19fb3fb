"""Supervision of CLIP's image tower by what the renderer knows. A contrastive loss alone is slow to bind attributes to objects.

Two readings of the tower are trained with it and dropped afterwards: each patch says what is in its cells (dense), and the pooled
embedding says linearly which combinations of attributes are in the image (pooled).
"""

from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from syzygy.core.config import Config
from syzygy.lab.world.render import cell_owners
from syzygy.lab.world.scene import COLOURS, MAX_OBJECTS, SHAPES, STYLES, TEXTURES, Scene

CELLS = 8
"""Cells along each side of an image."""
KINDS = (len(SHAPES), len(COLOURS), len(TEXTURES))
COUNTED = MAX_OBJECTS - 1
"""A shape may occur once, twice or three times and more."""
STATEMENTS = sum(a * b for a, b in combinations(KINDS, 2)) + COUNTED * len(SHAPES) + len(STYLES) + MAX_OBJECTS
"""Statements about an image: each pair of attributes on one object, how often each shape occurs, style, number of objects."""


class SupervisionConfig(Config):
    """Weights of the two readings in the loss."""

    dense: float = 0.5
    """Weight of the cross-entropy of shape, colour and texture in each cell."""
    pooled: float = 1.0
    """Weight of the binary cross-entropy of the statements about the image, in units of 20 (most of them are false)."""


def encode_scene(scene: Scene) -> tuple[list[tuple[int, int, int]], int]:
    """Shape, colour and texture of each thing as numbers, and the style's; absent things are (-1, -1, -1)."""
    things = [(SHAPES.index(t.shape), COLOURS.index(t.colour), TEXTURES.index(t.texture)) for t in scene.things]
    return things + [(-1, -1, -1)] * (MAX_OBJECTS - len(things)), STYLES.index(scene.style)


def scene_columns(scenes: Sequence[Scene]) -> dict[str, Tensor]:
    """The labels of scenes as columns: `things` [N 4 3], `style` [N], and the owner of each cell `owners` [N 8 8] (-1: none)."""
    encoded = [encode_scene(scene) for scene in scenes]
    return {
        "things": torch.tensor([things for things, _ in encoded], dtype=torch.int8),
        "style": torch.tensor([style for _, style in encoded], dtype=torch.int8),
        "owners": cell_owners(scenes, CELLS).to(torch.int8),
    }


class SceneLabels(NamedTuple):
    """The labels of a batch; see `scene_columns`."""

    things: Int[Tensor, "B 4 3"]
    style: Int[Tensor, "B"]
    owners: Int[Tensor, "B 8 8"]

    def cells(self) -> Int[Tensor, "B 64 3"]:
        """Shape, colour and texture of each cell; the number after the last one where there is nothing."""
        none = torch.tensor(KINDS, device=self.things.device).expand(len(self.things), 1, 3)
        things = torch.cat([self.things.long(), none], 1)
        owner = torch.where(self.owners < 0, MAX_OBJECTS, self.owners.long()).flatten(1)
        return things.gather(1, owner[..., None].expand(-1, -1, 3))

    def statements(self) -> Float[Tensor, "B 144"]:
        """1 for each true statement about an image, 0 for each false one."""
        things, device = self.things.long(), self.things.device
        present, b = things[..., 0] >= 0, torch.arange(len(things), device=device)[:, None].expand(-1, MAX_OBJECTS)
        parts = []
        for first, second in combinations(range(len(KINDS)), 2):
            part = torch.zeros(len(things), KINDS[first] * KINDS[second], device=device)
            part[b[present], (things[..., first] * KINDS[second] + things[..., second])[present]] = 1.0
            parts.append(part)
        counts = torch.zeros(len(things), len(SHAPES), device=device)
        counts.index_put_((b[present], things[..., 0][present]), torch.ones((), device=device), accumulate=True)
        parts += [(counts > k).float() for k in range(COUNTED)]
        parts.append(nn.functional.one_hot(self.style.long(), len(STYLES)).float())
        parts.append(nn.functional.one_hot(present.sum(1) - 1, MAX_OBJECTS).float())
        return torch.cat(parts, 1)


class ImageReadings(nn.Module):
    """The two readings of an image tower."""

    def __init__(self, vision_width: int, width: int, grid: int) -> None:
        super().__init__()
        self.grid, self.fine = grid, CELLS // grid
        self.dense = nn.Linear(vision_width, self.fine**2 * sum(size + 1 for size in KINDS))
        linear = nn.Linear(width, STATEMENTS)
        nn.init.constant_(linear.bias, -3.0)  # most statements are false
        self.pooled = nn.Sequential(nn.LayerNorm(width, elementwise_affine=False), linear)

    def cells(self, states: Float[Tensor, "B P W"]) -> list[Float[Tensor, "B 64 K"]]:
        """Logits of shape, colour and texture of each cell, "nothing" last, from the states of the patches."""
        g, f = self.grid, self.fine
        logits = self.dense(states).float().unflatten(1, (g, g)).unflatten(3, (f, f, -1))
        logits = logits.permute(0, 1, 3, 2, 4, 5).flatten(1, 4)
        return list(logits.split([size + 1 for size in KINDS], 2))

    def losses(
        self, states: Float[Tensor, "B P W"], embeddings: Float[Tensor, "B D"], labels: SceneLabels
    ) -> dict[str, Float[Tensor, ""]]:
        """The unweighted losses `dense` and `pooled`."""
        cells = labels.cells()
        dense = [nn.functional.cross_entropy(x.mT, cells[..., kind]) for kind, x in enumerate(self.cells(states))]
        said = self.pooled(embeddings).float()
        return {
            "dense": torch.stack(dense).sum(),
            "pooled": 20 * nn.functional.binary_cross_entropy_with_logits(said, labels.statements()),
        }

    def accuracy(
        self, states: Float[Tensor, "B P W"], embeddings: Float[Tensor, "B D"], labels: SceneLabels
    ) -> dict[str, float]:
        """How often readings are right on fully described scenes.

        `cell_shape`: the shape in a cell that has one. `one_object`, `two_objects`: shape and colour of the only object, or of both.
        """
        cells, said = labels.cells(), self.pooled(embeddings)[:, : KINDS[0] * KINDS[1]]
        seen = cells[..., 0] < KINDS[0]
        found = {"cell_shape": self.cells(states)[0].argmax(2).eq(cells[..., 0])[seen].float().mean().item()}
        number = (labels.things[..., 0] >= 0).sum(1)
        wanted = labels.statements()[:, : KINDS[0] * KINDS[1]]
        for objects, name in ((1, "one_object"), (2, "two_objects")):
            rows = number == objects
            top = torch.zeros_like(said[rows]).scatter_(1, said[rows].topk(objects, 1).indices, 1.0)
            found[name] = (top == wanted[rows]).all(1).float().mean().item()
        return found
