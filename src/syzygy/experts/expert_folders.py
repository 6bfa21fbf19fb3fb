"""Ensembles of experts as folders: `stages.json` with the expert of each noise level, and a folder with weights for each expert."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from syzygy.core import artifacts
from syzygy.core.errors import UserError, unknown
from syzygy.core.lora import Adapted, Lora, build_lora, load_lora
from syzygy.core.offload import SequentialOffload
from syzygy.decoder.backbone import load_config, load_decoder
from syzygy.decoder.preconditioning import Preconditioned
from syzygy.experts.routing import Experts, Stages

STAGES_FILE = "stages.json"
TRUNK = "trunk"
"""Folder of the frozen network that low-rank experts adapt."""
MEMORY = ("all", "offload", "lazy")
"""Where experts are: all on the device; one there and the others in the computer's memory; one there and the others on disk."""


def experts_folder(folder: Path) -> Path:
    """The folder of an ensemble, from that folder itself or from the run that trained it."""
    if (folder / "experts" / STAGES_FILE).is_file():
        return folder / "experts"
    if (folder / "nodes").is_dir() and not (folder / STAGES_FILE).is_file():
        raise UserError(f"the run in {folder} is not finished: continue it with the command that began it.")
    return folder


def load_stages(folder: Path) -> Stages:
    """The expert of each noise level.

    Raises:
        UserError: the folder holds no ensemble, or its stages are not in order.
    """
    if not (folder / STAGES_FILE).is_file():
        raise UserError(f"{folder} holds no experts: {STAGES_FILE} is missing. Make them with syzygy train experts.")
    found = artifacts.read_json(folder / STAGES_FILE)
    names, edges = found.get("names"), found.get("edges")
    if not (isinstance(names, list) and isinstance(edges, list) and all(isinstance(e, float | int) for e in edges)):
        raise UserError(f"{folder / STAGES_FILE} must hold names and edges of stages.")
    return Stages(tuple(map(str, names)), tuple(map(float, edges)))


def decoders_of(folder: Path) -> tuple[str, ...]:
    """The folders inside that hold whole decoders: one for each expert, or only the trunk of low-rank experts."""
    return (TRUNK,) if (folder / TRUNK).is_dir() else load_stages(folder).experts


@dataclass(frozen=True, kw_only=True)
class OffloadPolicy:
    """Where the experts of an ensemble are kept, and whether they are compiled."""

    memory: str = "all"
    """One of `MEMORY`."""
    backend: str | Callable[..., Any] | None = None
    """Backend of torch.compile, such as "inductor", for each expert's backbone; None does not compile. Routing is never compiled."""

    def __post_init__(self) -> None:
        if self.memory not in MEMORY:
            raise unknown("memory of experts", self.memory, MEMORY)

    def load(
        self, names: Sequence[str], load: Callable[[str], nn.Module], device: torch.device, dtype: torch.dtype
    ) -> "dict[str, nn.Module] | SequentialOffload":
        """The experts, which `load` makes on the CPU.

        Raises:
            UserError: offloading from a CPU, which has no effect.
        """
        if self.memory == "offload" and device.type == "cpu":
            raise UserError(
                "offloading moves experts off a GPU between their turns; on the CPU it has no effect: choose lazy, or all."
            )

        def loaded(name: str) -> nn.Module:
            return self.compiled(load(name))

        if self.memory == "lazy":
            return SequentialOffload.loaded(names, loaded, dtype)
        found = {name: loaded(name) for name in names}
        return SequentialOffload.offloaded(found) if self.memory == "offload" else found

    def compiled(self, expert: nn.Module) -> nn.Module:
        """The same expert, whose backbone is compiled when it first runs."""
        from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

        if self.backend is not None:
            for module in expert.modules():
                if isinstance(module, UNet2DConditionModel):
                    module.compile(backend=self.backend)
        return expert

    def check_lora(self, number: int) -> None:
        """Refuse what is impossible or has no effect with this number of low-rank experts."""
        if self.memory != "all":
            raise UserError(
                f"these experts adapt one network and are all in memory with it: {self.memory!r} has no effect, leave it out."
            )
        limit = torch._dynamo.config.recompile_limit
        if self.backend is not None and number > limit:
            # Each adaptation is compiled separately; beyond the limit torch would run the rest uncompiled, without an error.
            raise UserError(
                f"{number} low-rank experts are more than torch.compile's limit of {limit} for one network: raise "
                "torch._dynamo.config.recompile_limit, or do not compile them."
            )


def load_experts(
    folder: Path, device: torch.device | str = "cpu", offload_policy: OffloadPolicy = OffloadPolicy()
) -> Experts:
    """The ensemble in a folder, as one denoiser, on the device.

    Raises:
        UserError: an expert is missing, they differ in their conditions or latents, or the offload policy has no effect.
    """
    stages = load_stages(folder)
    if (folder / TRUNK).is_dir():
        offload_policy.check_lora(len(stages.experts))
        trunk = load_decoder(folder / TRUNK).requires_grad_(False)
        loras = load_loras(folder, stages.experts, trunk.backbone)
        sigma_data = trunk.config.sigma_data
        adapted = {name: Preconditioned(Adapted(trunk, lora), sigma_data) for name, lora in loras.items()}
        return Experts(stages, {n: offload_policy.compiled(e) for n, e in adapted.items()}).to(device).eval()
    configs = {name: load_config(folder / name) for name in stages.experts}
    first = next(iter(configs.values()))
    for name, own in configs.items():
        if (own.slots, own.size, own.channels) != (first.slots, first.size, first.channels):
            raise UserError(f"expert {name} in {folder} reads other conditions or latents than {stages.experts[0]}.")
        if not (folder / name / artifacts.WEIGHTS_FILE).is_file():
            raise UserError(f"expert {name} is missing: there is no {folder / name / artifacts.WEIGHTS_FILE}.")

    def load(name: str) -> nn.Module:
        decoder = load_decoder(folder / name)
        return Preconditioned(decoder, decoder.config.sigma_data)

    denoisers = offload_policy.load(stages.experts, load, torch.device(device), torch.float32)
    return Experts(stages, denoisers).to(device).eval()


def load_loras(folder: Path, names: Sequence[str], network: nn.Module) -> dict[str, Lora]:
    """The low-rank experts with these names in an ensemble's folder, as adaptations of `network`."""
    found: dict[str, Lora] = {}
    for name in names:
        config = artifacts.read_json(folder / name / artifacts.CONFIG_FILE)
        found[name] = build_lora(network, rank=int(config["rank"]), layers=str(config["layers"]), seed=0)
        load_lora(found[name], folder / name)
    return found
