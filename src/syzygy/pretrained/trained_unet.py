"""U-Nets of published models that were trained here: by the stages of an adapter on images (a LoRA or a whole U-Net of Stable Diffusion,
next to the adapter), or on a concept (a whole U-Net of Kandinsky 2.2).
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from torch import nn

from syzygy.core import artifacts, hub_files
from syzygy.core.diffusers_weights import load_model
from syzygy.core.errors import UserError
from syzygy.core.lora import Lora, build_lora, load_lora
from syzygy.pretrained.stable_diffusion import StableDiffusionDecoder

Trains = Literal["adapter", "lora", "unet"]
"""What a stage trains: the adapter alone, the adapter and a LoRA of the U-Net, or the adapter and the U-Net."""
LORA, WHOLE = "lora", "unet"
"""The folders in a run, which are called as the forms of training."""
CONCEPT = "concept"
"""What the provenance calls a U-Net that was trained on a concept."""


def unet_fingerprint(model: Path) -> str:
    """Identifies the U-Net of a model's folder, as of `fingerprint_of`."""
    return fingerprint_of(model / "unet")


def fingerprint_of(unet: Path) -> str:
    """Identifies the U-Net in a folder of its own by its biases and its middle, so that a copy in half precision is the same."""

    def small(name: str) -> bool:
        return name.endswith(".bias") or name.startswith("mid_block.attentions.0.transformer_blocks.0.")

    stored = hub_files.read_weights(unet, hub_files.DIFFUSERS, small)
    return artifacts.fingerprint({name: value.half() for name, value in stored.items()})


def concept_unet(source: str | Path, model: Path) -> Path:
    """The folder of a U-Net that was trained on a concept, for the decoder in the folder `model`.

    Args:
        source: that folder, or the run that trained it.

    Raises:
        UserError: the run is not finished; there is no such U-Net; it is another model's.
    """
    folder, trains = Path(source), "syzygy train decoder --concept"
    if (folder / WHOLE / artifacts.CONFIG_FILE).is_file():
        folder = folder / WHOLE
    elif (folder / "run.json").is_file() and not (folder / "decoder").is_dir():
        raise UserError(f"the run in {folder} is not finished. Repeat the command that began it to continue it.")
    record = record_of(folder)
    if record.get("kind") != CONCEPT:
        raise UserError(
            f"{source} holds no U-Net that {trains} trained, which a published model can use as its decoder."
        )
    if not (model / "unet").is_dir() or record["unet"] != unet_fingerprint(model):
        raise UserError(
            f"{source} holds the U-Net of {record['model']} after training; {model} has another U-Net. Give --model {record['model']}."
        )
    return folder


def record_of(adapter: Path) -> dict[str, Any]:
    """The provenance of the adapter or U-Net in a folder; empty where there is none, as in the authors' release of adapters."""
    path = adapter / artifacts.PROVENANCE_FILE
    return artifacts.read_json(path) if path.is_file() else {}


def trained_form(record: Mapping[str, Any]) -> Trains:
    """What was trained up to the run of an adapter with this provenance."""
    return record.get("trains", "adapter")


def load_trained_lora(folder: Path, unet: nn.Module) -> Lora:
    """The LoRA in a run's folder, as an adaptation of its U-Net."""
    config = artifacts.read_json(folder / artifacts.CONFIG_FILE)
    lora = build_lora(unet, rank=int(config["rank"]), layers=str(config["layers"]), seed=0)
    load_lora(lora, folder)
    return lora


def check_unet(record: Mapping[str, Any], run: Path, model: Path) -> None:
    """
    Raises:
        UserError: `run`, whose adapter has this provenance, changed the U-Net of another model.
    """
    if record["unet"] != unet_fingerprint(model):
        raise UserError(
            f"{run} also trained the U-Net of {record['model']} (trains={record['trains']}); {model} has another U-Net. Give "
            f"--model {record['model']}, or an adapter that was trained with a frozen U-Net."
        )


def with_trained_unet(decoder: StableDiffusionDecoder, adapter: Path, model: Path) -> StableDiffusionDecoder:
    """The decoder of the folder `model` with the U-Net that the adapter was trained with. A LoRA is added to its weights, in place.

    Raises:
        UserError: the U-Net is another model's, or experts have replaced it; a file is missing or damaged.
    """
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    record, run, unet = record_of(adapter), adapter.parent, decoder.unet
    if (form := trained_form(record)) == "adapter":
        return decoder
    if not isinstance(unet, UNet2DConditionModel):
        raise UserError(f"experts replace the U-Net that {run} trained: leave them out.")
    check_unet(record, run, model)
    if form == "lora":
        load_trained_lora(run / LORA, unet).merge_into(unet)
        return decoder
    return replace(decoder, unet=load_model(UNet2DConditionModel, run, WHOLE, unet.dtype).to(unet.device))
