"""Low-rank adaptation (LoRA, Hu et al. 2021, arXiv 2106.09685) of a frozen network: W + (α/r)·B·A.

Hooks add the updates to the outputs of its layers, so that the network itself does not change: several adaptations of one network can
be in memory together, and its weights keep their names.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from syzygy.core import artifacts
from syzygy.core.errors import UserError
from syzygy.core.randomness import seed_of


class _Update(nn.Module):
    """B·A of one layer, initially zero, so that adaptation starts from the network as it is."""

    def __init__(self, layer: nn.Linear | nn.Conv2d, rank: int) -> None:
        super().__init__()
        inner = layer.weight.shape[1:].numel()
        self.down = nn.Parameter(torch.randn(rank, inner, device=layer.weight.device) / inner**0.5)
        self.up = nn.Parameter(torch.zeros(layer.weight.shape[0], rank, device=layer.weight.device))
        self.shape = layer.weight.shape

    def forward(self, layer: nn.Linear | nn.Conv2d, x: Tensor) -> Tensor:
        if isinstance(layer, nn.Linear):
            return F.linear(F.linear(x, self.down.to(x.dtype)), self.up.to(x.dtype))
        down = self.down.to(x.dtype).view(-1, *self.shape[1:])
        small = F.conv2d(x, down, None, layer.stride, layer.padding, layer.dilation, layer.groups)
        return F.conv2d(small, self.up.to(x.dtype)[:, :, None, None])


class Lora(nn.Module):
    """One adaptation of a network; it acts only inside `active()`.

    Raises:
        UserError: a rank below 1, or no layer whose name fits.
    """

    def __init__(self, network: nn.Module, *, rank: int, alpha: float | None = None, layers: str = ".*") -> None:
        """
        Args:
            network: stays as it is; freeze it yourself (`requires_grad_(False)`).
            alpha: α; the updates are scaled by α / rank. None is α = rank.
            layers: a regular expression to find in the names of the linear and convolution layers to adapt.
        """
        super().__init__()
        if rank < 1:
            raise UserError(f"the rank of a low-rank adaptation is at least 1, got {rank}.")
        self.scale = 1.0 if alpha is None else alpha / rank
        self._on = False
        found = {
            name: layer
            for name, layer in network.named_modules()
            if isinstance(layer, nn.Linear | nn.Conv2d) and re.search(layers, name) and getattr(layer, "groups", 1) == 1
        }
        if not found:
            raise UserError(f"no linear or convolution layer of this network has {layers!r} in its name.")
        self.updates = nn.ModuleDict({name.replace(".", "/"): _Update(layer, rank) for name, layer in found.items()})
        for name, layer in found.items():
            layer.register_forward_hook(self._hook(self.updates[name.replace(".", "/")]))

    def _hook(self, update: nn.Module):
        def add(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
            return output + self.scale * update(layer, inputs[0]) if self._on else None

        return add

    @contextmanager
    def active(self) -> Iterator[None]:
        """Inside, the network is adapted."""
        before, self._on = self._on, True
        try:
            yield
        finally:
            self._on = before

    @torch.no_grad()
    def merge_into(self, network: nn.Module) -> None:
        """Add the updates to the weights of this network (or a copy of it), for good: the adapted one without any adapter."""
        for name, update in self.updates.items():
            assert isinstance(update, _Update)
            weight = network.get_parameter(name.replace("/", ".") + ".weight")
            weight += (self.scale * update.up @ update.down).view(update.shape).to(weight.dtype)


class Adapted(nn.Module):
    """A network together with one of its adaptations, called as the network is."""

    def __init__(self, network: nn.Module, lora: Lora) -> None:
        super().__init__()
        self.network, self.lora = network, lora

    def forward(self, *args: object, **more: object) -> object:
        with self.lora.active():
            return self.network(*args, **more)


def build_lora(network: nn.Module, *, rank: int, layers: str, seed: int) -> Lora:
    """A new low-rank adaptation of a U-Net; it changes nothing yet."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(seed, "lora", "weights"))
        return Lora(network, rank=rank, layers=layers)


def lora_settings(lora: Lora) -> dict[str, Any]:
    """The configuration of an adaptation of the same layers."""
    assert lora.scale == 1
    names = [name.replace("/", ".") for name in lora.updates]
    rank = next(iter(lora.updates.values())).get_parameter("down").shape[0]
    return {"rank": rank, "layers": f"^({'|'.join(map(re.escape, names))})$"}


def save_lora(lora: Lora, folder: Path, config: Mapping[str, Any], provenance: Mapping[str, Any]) -> None:
    """Write an adaptation's weights in fp16, its configuration and its provenance as one folder, atomically."""
    with artifacts.folder_written(folder) as temporary:
        artifacts.write_tensors(temporary / artifacts.WEIGHTS_FILE, lora.state_dict(), torch.float16)
        artifacts.write_json(temporary / artifacts.CONFIG_FILE, dict(config))
        artifacts.write_json(temporary / artifacts.PROVENANCE_FILE, dict(provenance))


def load_lora(lora: Lora, folder: Path) -> None:
    """Fill an adaptation with the weights in a folder, strictly."""
    artifacts.load_strictly(lora, artifacts.read_tensors(folder / artifacts.WEIGHTS_FILE), folder)
