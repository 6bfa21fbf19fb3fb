"""Accuracy and confusion of a reader, and the threshold that counts best."""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from syzygy.lab.world.reader import Prediction, Reader
from syzygy.lab.world.scene import COLOURS, SHAPES, TEXTURES, Scene, Thing

NEAR = 0.1
"""A thing is found when a prediction's nearest thing lies within this distance of its centre."""
MISSED = "missed"
VALUES: dict[str, tuple[str, ...]] = {"shape": SHAPES, "colour": COLOURS, "texture": TEXTURES}
THRESHOLDS = tuple(round(0.05 * i, 2) for i in range(2, 19))


def found_things(predictions: Sequence[Prediction], scenes: Sequence[Scene]) -> Iterator[tuple[Thing, Thing | None]]:
    """Every thing of the scenes with what the reader found in its place, or None."""
    for prediction, scene in zip(predictions, scenes, strict=True):
        for thing in scene.things:
            near = min(prediction.things, key=lambda t: (t.x - thing.x) ** 2 + (t.y - thing.y) ** 2, default=None)
            close = near is not None and (near.x - thing.x) ** 2 + (near.y - thing.y) ** 2 < NEAR**2
            yield thing, near if close else None


def accuracy(predictions: Sequence[Prediction], scenes: Sequence[Scene]) -> dict[str, float]:
    """Share of things with the right shape, colour, texture (`attributes`: mean of the three), of right counts and styles.

    Missed things count as wrong.
    """
    pairs = list(found_things(predictions, scenes))
    shares = {
        kind: sum(seen is not None and getattr(seen, kind) == getattr(thing, kind) for thing, seen in pairs)
        / len(pairs)
        for kind in VALUES
    }
    both = list(zip(predictions, scenes, strict=True))
    return shares | {
        "attributes": sum(shares.values()) / len(shares),
        "count": sum(len(r.things) == len(s.things) for r, s in both) / len(both),
        "style": sum(r.style == s.style for r, s in both) / len(both),
    }


def confusion(predictions: Sequence[Prediction], scenes: Sequence[Scene]) -> dict[str, dict[str, dict[str, int]]]:
    """Attribute → true value → value read (or "missed") → how often."""
    tables: dict[str, dict[str, dict[str, int]]] = {
        kind: {value: dict.fromkeys((*values, MISSED), 0) for value in values}  # a row a true value
        for kind, values in VALUES.items()
    }
    for thing, seen in found_things(predictions, scenes):
        for kind, table in tables.items():
            table[getattr(thing, kind)][MISSED if seen is None else getattr(seen, kind)] += 1
    return tables


def best_threshold(reader: Reader, images: Float[Tensor, "B 3 H W"], scenes: Sequence[Scene]) -> float:
    """The heat above which things are counted right in most of these images; the middle one of equally good ones."""
    predictions = reader.read(images, threshold=0.0)
    right = [
        sum(sum(c > t for c in r.confidence) == len(s.things) for r, s in zip(predictions, scenes, strict=True))
        for t in THRESHOLDS
    ]
    best = [t for t, number in zip(THRESHOLDS, right, strict=True) if number == max(right)]
    return best[len(best) // 2]


def shifted(
    images: Float[Tensor, "B 3 H W"], scenes: Sequence[Scene], pixels: tuple[int, int]
) -> tuple[Float[Tensor, "B 3 H W"], list[Scene]]:
    """Images moved by (right, down) pixels, their edges repeated, and the scenes they then show."""
    right, down = pixels
    height, width = images.shape[-2:]
    margin = max(abs(right), abs(down))
    padded = F.pad(images, (margin,) * 4, mode="replicate")
    moved = padded[..., margin - down : margin - down + height, margin - right : margin - right + width]
    things = [
        tuple(Thing(*t.appearance, t.x + right / width, t.y + down / height, t.radius) for t in scene.things)
        for scene in scenes
    ]
    return moved, [Scene(t, s.style, s.background) for t, s in zip(things, scenes, strict=True)]


def read_all(reader: Reader, images: Float[Tensor, "B 3 H W"], chunk: int = 256) -> list[Prediction]:
    """Predictions for any number of images, some at a time, on the reader's device."""
    device = next(reader.parameters()).device
    with torch.no_grad():
        return [prediction for part in images.split(chunk) for prediction in reader.read(part.to(device))]
