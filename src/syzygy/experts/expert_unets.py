"""Expert denoisers for diffusers' pipelines: several U-Nets instead of one.

    pipe.unet = ExpertUNet.from_pretrained("my-experts")

The noise level of a timestep (`core.diffusers_timesteps`) decides which expert is called, so the pipeline may change its scheduler and
number of steps, and start from an image.
"""

import inspect
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from syzygy.core import artifacts
from syzygy.core.diffusers_timesteps import HostTimesteps, noise_of, read_scheduler
from syzygy.core.diffusers_weights import load_model, read_settings
from syzygy.core.errors import UserError
from syzygy.core.lora import Adapted, lora_settings, save_lora
from syzygy.core.offload import SequentialOffload
from syzygy.experts.expert_folders import (
    STAGES_FILE,
    TRUNK,
    OffloadPolicy,
    experts_folder,
    load_loras,
    load_stages,
)
from syzygy.experts.routing import Stages, ensemble

D = TypeVar("D")
SCHEDULER = "scheduler"
"""Folder of the scheduler with which the experts were trained."""


class ExpertUNet(nn.Module):
    """U-Nets of one configuration, each for its noise levels, with the interface of one `UNet2DConditionModel`.

    Other attributes are those of the first U-Net. Other methods are called on every U-Net, and return the first one's result.

    Raises:
        UserError: experts and stages do not fit together, or experts differ in their configuration.
    """

    _first: Any

    def __init__(
        self,
        stages: Stages,
        unets: Mapping[str, nn.Module] | SequentialOffload,
        scheduler: Any,
        *,
        first: Any = None,
    ) -> None:
        """
        Args:
            stages: the expert of each σ.
            unets: a `UNet2DConditionModel` for each name in `stages`, or an `Adapted` one; all in memory, or one at a time.
            scheduler: a scheduler with the timesteps of the U-Nets' training, such as the one of their repository.
            first: a U-Net for other attributes and methods, perhaps without weights; None is the first of `unets`.
        """
        super().__init__()
        self.stages = stages
        self.denoisers = ensemble(stages, unets)
        self.sigma = noise_of(scheduler)
        self.scheduler = scheduler
        first = first if first is not None else _network(self.denoisers[stages.experts[0]])
        object.__setattr__(self, "_first", first)  # not a second submodule, as it is one of the experts
        self._host = HostTimesteps()
        if isinstance(self.denoisers, nn.ModuleDict):
            for name, unet in self.denoisers.items():
                _check_same(self.config, _network(unet).config, name)

    @staticmethod
    def from_pretrained(
        folder: str | Path,
        *,
        scheduler: Any = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        offload_policy: OffloadPolicy = OffloadPolicy(),  # noqa: B008 (frozen)
        keeping: OffloadPolicy | None = None,
    ) -> "ExpertUNet":
        """The ensemble in a folder on disk, or in that of the run that trained it.

        The folder holds `stages.json`, and for each expert a folder in diffusers' layout, or a `trunk` and low-rank experts.

        Args:
            scheduler: a scheduler to use instead of the one in the folder; see the constructor.
            offload_policy: where the experts are kept, and whether they are compiled.
            keeping: the old name of `offload_policy`, which works for one release.

        Raises:
            UserError: a file is missing, truncated or pickle; experts do not fit together; the offload policy has no effect.
        """
        from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

        if keeping is not None:
            warnings.warn(
                "keeping= is now offload_policy=; the old name works for one release.", DeprecationWarning, stacklevel=2
            )
            offload_policy = keeping
        folder, device = experts_folder(Path(folder)), torch.device(device)
        stages = load_stages(folder)
        scheduler = read_scheduler(folder) if scheduler is None else scheduler
        kind: Any = UNet2DConditionModel
        if (folder / TRUNK).is_dir():
            offload_policy.check_lora(len(stages.experts))
            trunk = load_model(kind, folder, TRUNK, dtype)
            loras = load_loras(folder, stages.experts, trunk)
            adapted = {name: Adapted(trunk, lora.requires_grad_(False)) for name, lora in loras.items()}
            adapted = {name: offload_policy.compiled(expert) for name, expert in adapted.items()}
            return ExpertUNet(stages, adapted, scheduler).to(device).eval()
        settings = {name: read_settings(folder, name, kind.__name__) for name in stages.experts}
        for name, own in settings.items():
            _check_same(settings[stages.experts[0]], own, name)

        def load(name: str) -> nn.Module:
            return load_model(kind, folder, name, dtype)

        unets = offload_policy.load(stages.experts, load, device, dtype)
        first = None
        if isinstance(unets, SequentialOffload):
            with torch.device("meta"):
                first = kind.from_config(settings[stages.experts[0]])
        return ExpertUNet(stages, unets, scheduler, first=first).to(device).eval()

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the ensemble in the layout that `from_pretrained` reads, atomically."""
        form = "lora" if any(isinstance(self.denoisers[name], Adapted) for name in self.stages.experts) else "full"
        with artifacts.folder_written(Path(folder), "the experts") as temporary:
            for name in self.stages.experts:
                expert: Any = self.denoisers[name]
                if isinstance(expert, Adapted):
                    save_lora(expert.lora, temporary / name, lora_settings(expert.lora), {})
                else:
                    expert.save_pretrained(temporary / name)
            if form == "lora":
                self._first.save_pretrained(temporary / TRUNK)
            self.scheduler.save_pretrained(temporary / SCHEDULER)
            stages = {"names": self.stages.names, "edges": self.stages.edges, "form": form}
            artifacts.write_json(temporary / STAGES_FILE, stages)

    @property
    def config(self) -> Any:
        """The configuration of every U-Net."""
        return self._first.config

    @property
    def dtype(self) -> torch.dtype:
        return self.denoisers.dtype if isinstance(self.denoisers, SequentialOffload) else self._first.dtype

    @property
    def device(self) -> torch.device:
        return self.denoisers.device if isinstance(self.denoisers, SequentialOffload) else self._first.device

    def forward(self, sample: Float[Tensor, "B C H W"], timestep: Tensor | float | int, *args: Any, **more: Any) -> Any:
        """As `UNet2DConditionModel`. Timesteps may differ within the batch, as in training; each sample goes to its expert.

        Raises:
            UserError: timesteps differ, and an argument has not one row per sample.
        """
        serves = self._serving(timestep)
        if isinstance(serves, str):
            return self.denoisers[serves](sample, timestep, *args, **more)
        rows, found = [], []
        for name in dict.fromkeys(serves):
            own = torch.tensor([i for i, other in enumerate(serves) if other == name], device=sample.device)
            x, t, its_args, its_more = _rows((sample, timestep, args, more), own, len(serves))
            rows.append(own)
            found.append(self.denoisers[name](x, t, *its_args, **its_more))
        order = torch.cat(rows).argsort()
        together = torch.cat([one[0] for one in found])[order]
        return (together,) if isinstance(found[0], tuple) else type(found[0])(sample=together)

    def _serving(self, timestep: Tensor | float | int) -> str | list[str]:
        """The expert of this evaluation, or a list with the expert of each sample if they differ."""
        if not isinstance(timestep, Tensor):
            return self.stages.at(self.sigma(float(timestep)))
        if timestep.numel() == 1 or not any(timestep.stride()):
            return self.stages.at(self.sigma(self._host.value(timestep)))
        names = [self.stages.at(self.sigma(float(value))) for value in timestep.tolist()]
        return names[0] if len(set(names)) == 1 else names

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if "_first" not in self.__dict__:
                raise
        first = self.__dict__["_first"]
        found = getattr(first, name)
        if not inspect.ismethod(found):
            return found

        def on_every(*args: Any, **more: Any) -> Any:
            def call(network: Any) -> Any:
                # diffusers empties the dictionary of processors that it sets.
                own = [dict(one) if isinstance(one, dict) else one for one in args]
                return getattr(network, name)(*own, **more)

            for network in self._networks():
                call(network)
            if isinstance(self.denoisers, SequentialOffload):
                self.denoisers.each(call)
            return call(first)

        return on_every

    def _networks(self) -> Iterator[nn.Module]:
        """The U-Nets in memory except `_first`, each once."""
        if isinstance(self.denoisers, nn.ModuleDict):
            yield from {id(n): n for n in map(_network, self.denoisers.values()) if n is not self._first}.values()


def with_experts(decoder: D, experts: ExpertUNet) -> D:
    """The decoder of a published model (Kandinsky, Karlo, Stable unCLIP) with experts instead of its U-Net.

    Raises:
        UserError: the experts are of another U-Net.
    """
    if apart := _apart(cast(Any, decoder).unet.config, experts.config):
        raise UserError(f"these experts are of another U-Net than the model's: they differ in {', '.join(apart[:5])}.")
    return replace(cast(Any, decoder), unet=experts)


def _check_same(config: Mapping[str, Any], other: Mapping[str, Any], name: str) -> None:
    if apart := _apart(config, other):
        raise UserError(f"expert {name} is another U-Net than the first: they differ in {', '.join(apart[:5])}.")


def _apart(config: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """The names of the settings in which two configurations differ."""
    keys = {key for key in {*config, *other} if not key.startswith("_")}
    return sorted(key for key in keys if _plain(config.get(key)) != _plain(other.get(key)))


def _plain(value: Any) -> Any:
    """The value as it is read from JSON."""
    return [_plain(one) for one in value] if isinstance(value, list | tuple) else value


def _network(expert: nn.Module) -> Any:
    """The U-Net of an expert."""
    return expert.network if isinstance(expert, Adapted) else expert


def _rows(value: Any, rows: Tensor, batch: int) -> Any:
    """The arguments for some of the samples."""
    if isinstance(value, Tensor):
        if value.ndim == 0 or len(value) != batch:
            raise UserError(
                f"timesteps differ within a batch of {batch}, and an argument of shape {tuple(value.shape)} cannot be split among "
                "their experts: give it one row per sample."
            )
        return value[rows.to(value.device)]
    if isinstance(value, Mapping):
        return {key: _rows(one, rows, batch) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_rows(one, rows, batch) for one in value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise UserError(
        f"timesteps differ within a batch, and a {type(value).__name__} cannot be split among their experts."
    )
