"""Ensembles of expert denoisers as folders: who serves which noise level, and a decoder each."""

from pathlib import Path

import torch

from syzygy import artifact
from syzygy.diffusion.decoder import Decoder
from syzygy.diffusion.experts import Experts, Stages
from syzygy.diffusion.preconditioning import Preconditioned
from syzygy.errors import UserError
from syzygy.hub.unet import load_decoder

STAGES_FILE = "stages.json"


def experts_folder(folder: Path) -> Path:
    """The ensemble itself, from its own folder or from that of the run that grew it."""
    if (folder / "experts" / STAGES_FILE).is_file():
        return folder / "experts"
    if (folder / "nodes").is_dir() and not (folder / STAGES_FILE).is_file():
        raise UserError(f"the run in {folder} is not finished: continue it with the command that began it.")
    return folder


def load_stages(folder: Path) -> Stages:
    """Who serves which noise level.

    Raises:
        UserError: the folder holds no ensemble, or its stages are not in order.
    """
    if not (folder / STAGES_FILE).is_file():
        raise UserError(f"{folder} holds no experts: {STAGES_FILE} is missing. Make them with syzygy train experts.")
    found = artifact.read_json(folder / STAGES_FILE)
    names, edges = found.get("names"), found.get("edges")
    if not (isinstance(names, list) and isinstance(edges, list) and all(isinstance(e, float | int) for e in edges)):
        raise UserError(f"{folder / STAGES_FILE} must hold names and edges of stages.")
    return Stages(tuple(map(str, names)), tuple(map(float, edges)))


def load_experts(folder: Path, device: torch.device | str = "cpu") -> Experts:
    """The ensemble in a folder, as one denoiser, every expert on the device.

    Raises:
        UserError: an expert is missing, or they do not read the same conditions and latents.
    """
    stages = load_stages(folder)
    decoders: dict[str, Decoder] = {name: load_decoder(folder / name) for name in stages.experts}
    first = next(iter(decoders.values())).config
    for name, decoder in decoders.items():
        if (decoder.config.slots, decoder.config.size, decoder.config.channels) != (
            first.slots,
            first.size,
            first.channels,
        ):
            raise UserError(f"expert {name} in {folder} reads other conditions or latents than {stages.experts[0]}.")
    denoisers = {name: Preconditioned(decoder, decoder.config.sigma_data) for name, decoder in decoders.items()}
    return Experts(stages, denoisers).to(device).eval()
