"""Numbers and names that describe a scene and its caption, for filters that select scenes."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from syzygy.lab.world.scene_source import Pair


@dataclass(frozen=True)
class SceneTable:
    """One row for each pair."""

    pairs: Sequence[Pair]

    path = "the embedded world"
    """Its name in messages."""

    @property
    def columns(self) -> dict[str, str]:
        """Objects in the picture; how many of them the caption does not name; the radius of the smallest, as a part of the picture's side;
        the style."""
        return {"objects": "number", "unnamed": "number", "smallest": "number", "style": "text"}

    def column(self, name: str) -> Tensor | list[str]:
        """All values of one of `columns`: float64, or texts."""
        assert name in self.columns
        if name == "style":
            return [pair.scene.style for pair in self.pairs]
        return torch.tensor([_number(pair, name) for pair in self.pairs], dtype=torch.float64)


def _number(pair: Pair, name: str) -> float:
    things = pair.scene.things
    if name == "smallest":
        return min(thing.radius for thing in things)
    named = sum(mention.count for mention in pair.caption.description.mentions)
    return float(len(things) if name == "objects" else len(things) - named)
