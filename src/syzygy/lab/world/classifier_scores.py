"""Accuracy, confusion and agreement of scene classifiers, and the threshold that counts best."""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from syzygy.lab.world.scene import COLOURS, SHAPES, TEXTURES, Scene, Thing
from syzygy.lab.world.scene_classifier import Prediction, SceneClassifier

NEAR = 0.1
"""A thing is found when a prediction's nearest thing lies within this distance of its centre."""
MISSED = "missed"
VALUES: dict[str, tuple[str, ...]] = {"shape": SHAPES, "colour": COLOURS, "texture": TEXTURES}
THRESHOLDS = tuple(round(0.025 * i, 3) for i in range(4, 37))


def found_things(predictions: Sequence[Prediction], scenes: Sequence[Scene]) -> Iterator[tuple[Thing, Thing | None]]:
    """Every thing of the scenes with what the classifier found in its place, or None."""
    for prediction, scene in zip(predictions, scenes, strict=True):
        yield from _found_in(prediction, scene)


def _found_in(prediction: Prediction, scene: Scene | Prediction) -> Iterator[tuple[Thing, Thing | None]]:
    for thing in scene.things:
        near = min(prediction.things, key=lambda t: (t.x - thing.x) ** 2 + (t.y - thing.y) ** 2, default=None)
        close = near is not None and (near.x - thing.x) ** 2 + (near.y - thing.y) ** 2 < NEAR**2
        yield thing, near if close else None


def accuracy(predictions: Sequence[Prediction], scenes: Sequence[Scene]) -> dict[str, float]:
    """Share of things with the right shape, colour, texture (`attributes`: mean of the three); share of images with the right count, the
    right style, and everything right (`scene`).

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
        "count": sum(len(p.things) == len(s.things) for p, s in both) / len(both),
        "style": sum(p.style == s.style for p, s in both) / len(both),
        "scene": sum(_alike(p, s) for p, s in both) / len(both),
    }


def _alike(prediction: Prediction, scene: Scene | Prediction) -> bool:
    """Whether a prediction names the same style and, one for one, the same things."""
    return (
        prediction.style == scene.style
        and len(prediction.things) == len(scene.things)
        and all(
            seen is not None and seen.appearance == thing.appearance for thing, seen in _found_in(prediction, scene)
        )
    )


def count_accuracy(predictions: Sequence[Prediction], scenes: Sequence[Scene]) -> dict[int, float]:
    """True number of things → share of images in which as many are found."""
    right: dict[int, list[bool]] = {}
    for prediction, scene in zip(predictions, scenes, strict=True):
        right.setdefault(len(scene.things), []).append(len(prediction.things) == len(scene.things))
    return {number: sum(found) / len(found) for number, found in sorted(right.items())}


def agreement(predictions: Sequence[Prediction], others: Sequence[Prediction]) -> dict[str, float]:
    """Share of images in which two classifiers find as many things (`count`), the same style, and the same of everything (`scene`); and, of
    the things that the second one finds, those of which the first one says the same.
    """
    both = list(zip(predictions, others, strict=True))
    pairs = [pair for one, other in both for pair in _found_in(one, other)]
    shares = {
        kind: sum(seen is not None and getattr(seen, kind) == getattr(thing, kind) for thing, seen in pairs)
        / len(pairs)
        for kind in VALUES
        if pairs
    }
    return shares | {
        "count": sum(len(a.things) == len(b.things) for a, b in both) / len(both),
        "style": sum(a.style == b.style for a, b in both) / len(both),
        "scene": sum(_alike(a, b) for a, b in both) / len(both),
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


def best_threshold(classifier: SceneClassifier, images: Float[Tensor, "B 3 H W"], scenes: Sequence[Scene]) -> float:
    """The certainty above which things are counted right in most of these images; the middle one of equally good ones."""
    predictions = read_all(classifier, images, threshold=0.0)
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


def read_all(
    classifier: SceneClassifier, images: Float[Tensor, "B 3 H W"], chunk: int = 256, threshold: float | None = None
) -> list[Prediction]:
    """Predictions for any number of images, some at a time, on the classifier's device."""
    device = next(classifier.parameters()).device
    with torch.no_grad():
        return [
            prediction
            for part in images.split(chunk)
            for prediction in classifier.read(part.to(device), threshold=threshold)
        ]
