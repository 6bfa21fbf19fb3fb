"""Stage image of an adapter for a Stable Diffusion on tiny models, as several test files train it."""

import json
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from syzygy.core import artifacts
from syzygy.pretrained.prompt_diffusion import PromptImageTaskConfig
from syzygy.pretrained.prompt_image_training import PromptImageRun, train_on_images
from syzygy.pretrained.prompt_teacher import target_of
from syzygy.pretrained.repositories import find_decoder
from syzygy.text_encoders.adapter_folders import PreviousStage
from syzygy.training.parallel import Ranks
from syzygy.training.schedule import LoopConfig
from tests.tiny_adapter import save_tiny_lm, save_tiny_prompt_adapter
from tests.tiny_stable_diffusion import tiny_stable_diffusion
from tests.tiny_xl import tiny_xl

CPU = Ranks(torch.device("cpu"))
COLOURS = {"rot": (220, 30, 20), "grün": (30, 200, 40), "blau": (20, 40, 230), "weiß": (250, 250, 250)}
MODELS = ("epsilon", "v_prediction", "xl")


def save_places(folder: Path, *names: str) -> Path:
    """Models by these names of `MODELS`, a language model, an aligned adapter of each model, and images."""
    save_tiny_lm(folder / "llm", "en", "de")
    for name in names:
        if name == "xl":
            tiny_xl(folder / "xl")
        else:
            tiny_stable_diffusion(folder / name, name)
        run = folder / f"align-{name}" / "adapter"
        save_tiny_prompt_adapter(run, folder / "llm", folder / name, languages=["en", "de"], stage="align")
    lines = []
    (folder / "images").mkdir()
    for number in range(12):
        name = list(COLOURS)[number % 4]
        Image.new("RGB", (24 + number, 20), COLOURS[name]).save(folder / "images" / f"{number}.png")
        lines.append(json.dumps({"file_name": f"{number}.png", "text": f"ein {name}er Kreis"}))
    (folder / "images" / "metadata.jsonl").write_text("\n".join(lines))
    return folder


def settings(
    trains: str | None = None, *, steps: int = 4, lr: float = 3e-3, timestep_aware: bool | None = None, **task: Any
) -> PromptImageRun:
    """Four steps of four images."""
    loop = LoopConfig(steps=steps, lr=lr, validate_every=steps, checkpoint_every=2, log_every=1, ema_half_life=1.0)
    given = PromptImageTaskConfig(**{"batch_size": 4, "dropped": 0.25, "checkpointing": True} | task)
    more = {"trains": trains, "timestep_aware": timestep_aware}
    return PromptImageRun(size=16, validation_pictures=3, rank=2, task=given, loop=loop, **more)  # type: ignore[arg-type]


def train(
    places: Path,
    name: str,
    run: PromptImageRun,
    out: Path,
    *,
    start: Path | None = None,
    stage: str = "image",
    **more: Any,
) -> dict[str, Any]:
    """The provenance of the trained adapter."""
    model = find_decoder(places / name)
    begun = start or places / f"align-{name}"
    previous = PreviousStage.load(begun, stage, target_of(model.at.folder), places / name)
    llm = previous.language_model(None)
    train_on_images(run, previous, llm, model, str(places / "images"), out, CPU, **more)
    return artifacts.read_json(out / "adapter" / artifacts.PROVENANCE_FILE)


def tensors(folder: Path) -> dict[str, Tensor]:
    """The weights in a folder."""
    (file,) = folder.glob("*.safetensors")
    return artifacts.read_tensors(file)


def differ(one: Path, other: Path) -> set[str]:
    """The tensors in which two folders of weights differ by more than fp16 rounds."""
    found, before = tensors(one), tensors(other)
    assert found.keys() == before.keys()
    return {name for name, x in found.items() if not torch.equal(x.half(), before[name].half())}
