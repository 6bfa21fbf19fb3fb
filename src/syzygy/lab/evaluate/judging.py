"""The judge that scores images in every evaluation, every experiment and the demo: the starter's, whatever model is measured.

So figures of different models are by one instrument. Trainings and selections use the model's reader instead (`selection.py`), and never this
module.
"""

from collections.abc import Mapping
from functools import cache
from typing import Any

import torch

from syzygy.core import artifacts
from syzygy.core.errors import UserError
from syzygy.core.model_parts import part_folder
from syzygy.generation.text_to_image import TextToImage
from syzygy.lab.world.judge import Judge

FOLDER = part_folder("starter", "judge")
ERRORS = ("shape", "colour", "texture", "count", "style", "scene")


def judge_on(device: str | torch.device) -> Judge:
    """The judge on this device."""
    return Judge.from_pretrained(FOLDER).to(device)


def judge_of(model: TextToImage) -> Judge:
    """The judge of a model's images, on the model's device.

    Raises:
        UserError: the model is not limited to the embedded world.
    """
    if not model.world:
        raise UserError(f"images of {model.name} cannot be scored: the judge reads images of the embedded world only.")
    return judge_on(model.pipeline.device)


@cache
def judge_record() -> dict[str, Any]:
    """What results say of the judge: the fingerprint of its weights, and the shares of unseen renders that it reads wrongly."""
    metrics = artifacts.read_json(FOLDER / artifacts.PROVENANCE_FILE)["metrics"]
    return {
        "fingerprint": artifacts.fingerprint(Judge.from_pretrained(FOLDER).state_dict()),
        "errors": {kind: round(1 - metrics[kind], 4) for kind in ERRORS},
    }


def judge_note(found: Mapping[str, Any]) -> str:
    """What pages say of a judge's record: no difference that is smaller than its own errors is a finding."""
    errors = found["errors"]
    shares = ", ".join(f"{kind} {100 * errors[kind]:.2f} %" for kind in ERRORS[:-1])
    return (
        f"Images are scored by the judge {found['fingerprint']}, a scene classifier that no training and no selection uses. Its own errors on "
        f"unseen renders: {shares}. It reads {100 * errors['scene']:.2f} % of scenes not entirely right: the floor of every error here."
    )
