"""Selections: which setting of a sweep is the best. The model's reader decides; the judge, which scores, does not.

This is the only module of the evaluations that uses a reader.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from jaxtyping import Float
from torch import Tensor

from syzygy.generation.text_to_image import TextToImage
from syzygy.lab.evaluate.harness import ImageValue, Predictions, prediction_of
from syzygy.lab.world.classifier_scores import agreement
from syzygy.lab.world.scene_classifier import Prediction

READER = "reader"


def by_reader(model: TextToImage) -> dict[str, ImageValue]:
    """What the model's reader predicts for each image, as a further value of `EvaluationContext.predict`."""
    reader = model.reader()

    def read(images: Float[Tensor, "B 3 H W"], _cases: Sequence[int]) -> list[Any]:
        return [asdict(one) for one in reader.read(images)]

    return {READER: read}


def read_scenes(found: Mapping[str, Predictions]) -> dict[str, list[Prediction]]:
    """Candidate → what the reader predicts."""
    return {name: [prediction_of(one) for one in some.values[READER]] for name, some in found.items()}


def agreement_with_judge(found: Mapping[str, Predictions]) -> dict[str, float]:
    """How often reader and judge predict the same for the images of all candidates; see `classifier_scores.agreement`."""
    read = [one for some in read_scenes(found).values() for one in some]
    return {k: round(x, 4) for k, x in agreement(read, [one for some in found.values() for one in some.scenes]).items()}
