"""What the stages of an adapter on images changed in the U-Net of a Stable Diffusion, next to the adapter: a LoRA or a whole U-Net."""

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
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


def unet_fingerprint(model: Path) -> str:
    """Identifies the U-Net of a model's folder by its biases and its middle, so that a copy in half precision is the same."""

    def small(name: str) -> bool:
        return name.endswith(".bias") or name.startswith("mid_block.attentions.0.transformer_blocks.0.")

    stored = hub_files.read_weights(model / "unet", hub_files.DIFFUSERS, small)
    return artifacts.fingerprint({name: value.half() for name, value in stored.items()})


def trained_form(adapter: Path) -> Trains:
    """What was trained up to the run of the adapter in this folder."""
    record = adapter / artifacts.PROVENANCE_FILE
    return artifacts.read_json(record).get("trains", "adapter") if record.is_file() else "adapter"


def trained_unet(adapter: Path) -> str | None:
    """The fingerprint of the LoRA or U-Net that was trained with the adapter in this folder; None if none was."""
    return (
        None
        if trained_form(adapter) == "adapter"
        else artifacts.read_json(adapter / artifacts.PROVENANCE_FILE)["trained_unet"]
    )


def load_trained_lora(folder: Path, unet: nn.Module) -> Lora:
    """The LoRA in a run's folder, as an adaptation of its U-Net."""
    config = artifacts.read_json(folder / artifacts.CONFIG_FILE)
    lora = build_lora(unet, rank=int(config["rank"]), layers=str(config["layers"]), seed=0)
    load_lora(lora, folder)
    return lora


def check_unet(adapter: Path, model: Path) -> None:
    """
    Raises:
        UserError: the adapter's run changed the U-Net of another model.
    """
    record = artifacts.read_json(adapter / artifacts.PROVENANCE_FILE)
    if record["unet"] != unet_fingerprint(model):
        raise UserError(
            f"the run of the adapter in {adapter} also trained the U-Net of {record['model']} (trains={record['trains']}); {model} has another "
            f"U-Net. Give --model {record['model']}, or an adapter that was trained with a frozen U-Net."
        )


def with_trained_unet(decoder: StableDiffusionDecoder, adapter: Path, model: Path) -> StableDiffusionDecoder:
    """The decoder of the folder `model` with the U-Net that the adapter was trained with. A LoRA is added to its weights, in place.

    Raises:
        UserError: the U-Net is another model's, or experts have replaced it; a file is missing or damaged.
    """
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    form, kind = trained_form(adapter), UNet2DConditionModel
    if form == "adapter":
        return decoder
    unet: Any = decoder.unet
    if not isinstance(unet, kind):
        raise UserError(f"experts replace the U-Net that the run of the adapter in {adapter} trained: leave them out.")
    check_unet(adapter, model)
    if form == "lora":
        with torch.no_grad():
            load_trained_lora(adapter.parent / LORA, unet).merge_into(unet)
        return decoder
    trained = load_model(kind, adapter.parent, WHOLE, unet.dtype)
    return replace(decoder, unet=trained.to(unet.device))
