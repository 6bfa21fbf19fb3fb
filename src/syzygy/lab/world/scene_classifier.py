"""What the two scene classifiers of the embedded world have in common: image → its contents.

The reader (`reader.py`) may guide trainings and selections. The judge (`judge.py`) scores; no training and no selection ever sees it.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from syzygy.core import artifacts
from syzygy.core.config import Config, parse
from syzygy.lab.world.scene import COLOURS, SHAPES, STYLES, TEXTURES, Style, Thing

IMAGE_SIZE = 64


@dataclass(frozen=True)
class Prediction:
    """What a scene classifier finds in an image: things ordered from left to right, perhaps none, and the style."""

    things: tuple[Thing, ...]
    style: Style
    confidence: tuple[float, ...]
    """How certain it is that each thing is there, in [0, 1]."""


class ClassifierConfig(Config):
    """What the sizes of every classifier include."""

    threshold: float = Field(default=0.5, gt=0, lt=1)
    """Confidence above which an object is there; calibrated at the end of the training."""


K = TypeVar("K", bound=ClassifierConfig)
S = TypeVar("S", bound="SceneClassifier")


class SceneClassifier(nn.Module, ABC, Generic[K]):
    """Reads images of any size (resized to 64 px) in [0, 1]. `forward` returns what the losses of its training need."""

    kind: ClassVar[str]
    config_class: ClassVar[type[ClassifierConfig]]

    def __init__(self, config: K) -> None:
        super().__init__()
        self.config = config

    @abstractmethod
    def found(self, images: Float[Tensor, "B 3 H W"]) -> tuple[Float[Tensor, "B K 7"], Float[Tensor, "B 4"]]:
        """Four objects at most (confidence, x, y, radius, and the numbers of its shape, colour and texture) and the style's logits."""

    @abstractmethod
    def features(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B F"]:
        """The features that the style is read from: mean and maximum of each channel of the last layer."""

    @torch.no_grad()
    def read(self, images: Float[Tensor, "B 3 H W"], *, threshold: float | None = None) -> list[Prediction]:
        """The contents of each image: objects more certain than the threshold (the classifier's own unless given), four at most."""
        threshold = self.config.threshold if threshold is None else threshold
        objects, styles = self.found(images)
        predictions = []
        for row, style in zip(objects.tolist(), styles.argmax(1).tolist(), strict=True):
            seen = [
                (Thing(SHAPES[int(shape)], COLOURS[int(colour)], TEXTURES[int(texture)], *place), min(confidence, 1.0))
                for confidence, *place, shape, colour, texture in row
                if confidence > threshold
            ]
            seen.sort(key=lambda one: one[0].x)
            predictions.append(Prediction(tuple(t for t, _ in seen), STYLES[style], tuple(c for _, c in seen)))
        return predictions

    def save_pretrained(self, folder: Path, provenance: Mapping[str, Any], dtype: torch.dtype | None = None) -> None:
        """Write configuration, weights and provenance as one folder, atomically."""
        with artifacts.folder_written(folder, f"the {self.kind}") as temporary:
            artifacts.write_json(temporary / artifacts.CONFIG_FILE, self.config.model_dump(mode="json"))
            artifacts.write_tensors(temporary / artifacts.WEIGHTS_FILE, self.state_dict(), dtype)
            artifacts.write_json(temporary / artifacts.PROVENANCE_FILE, dict(provenance))

    @classmethod
    def from_pretrained(cls: type[S], folder: Path) -> S:
        """The classifier in `folder`, in fp32; files that are missing or do not fit are a UserError."""
        path = folder / artifacts.CONFIG_FILE
        classifier = cls(parse(cls.config_class, artifacts.read_json(path), str(path)))  # type: ignore[arg-type]
        artifacts.load_strictly(classifier, artifacts.read_tensors(folder / artifacts.WEIGHTS_FILE), folder)
        return classifier.eval()


def resized(images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 3 64 64"]:
    """Images at the size that classifiers read."""
    if images.shape[-2:] == (IMAGE_SIZE, IMAGE_SIZE):
        return images
    return nn.functional.interpolate(images, (IMAGE_SIZE, IMAGE_SIZE), mode="bicubic", antialias=True)


def summary(x: Float[Tensor, "B F H W"]) -> Float[Tensor, "B G"]:
    """Mean and maximum of each channel."""
    return torch.cat([x.mean((2, 3)), x.amax((2, 3))], 1)
