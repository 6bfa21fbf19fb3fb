"""Modules that take turns on a device, so that only one of them takes memory there."""

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

HOME = "cpu"


class SequentialOffload(nn.Module):
    """Modules by name, like `nn.ModuleDict`; only the one that was requested last is on the device.

    Modules go to the device and precision to which this module is moved, in evaluation mode and frozen. They are not registered as
    submodules, so that iterating over parameters or states does not load all of them. Moving this module also moves the active one.
    """

    _place: Tensor

    def __init__(
        self,
        names: Sequence[str],
        load: Callable[[str], nn.Module],
        *,
        waiting: Mapping[str, nn.Module] | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Use `loaded` or `offloaded`."""
        super().__init__()
        self.names = tuple(names)
        self._load = load
        self._waiting = dict(waiting or {})
        self._changes: list[Callable[[nn.Module], object]] = []
        self._active: tuple[str, nn.Module] | None = None
        self.register_buffer("_place", torch.empty(0, dtype=dtype), persistent=False)

    @staticmethod
    def loaded(names: Sequence[str], load: Callable[[str], nn.Module], dtype: torch.dtype) -> "SequentialOffload":
        """`load` makes a module at its turn, in `dtype`; it is released at the next module's turn."""
        return SequentialOffload(names, load, dtype=dtype)

    @staticmethod
    def offloaded(modules: Mapping[str, nn.Module]) -> "SequentialOffload":
        """All modules stay in the computer's memory; one is on the device."""
        dtype = next(p.dtype for module in modules.values() for p in module.parameters() if p.is_floating_point())
        return SequentialOffload(tuple(modules), modules.__getitem__, waiting=modules, dtype=dtype)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, name: str) -> nn.Module:
        """The module, on the device; nothing moves if it is there already."""
        if self._active is None or self._active[0] != name:
            # Tensors made in inference mode could not be used outside of it.
            with torch.inference_mode(False):
                self._release()
                self._active = name, self._prepared(name)
        return self._active[1]

    @property
    def active(self) -> str | None:
        """The name of the module on the device."""
        return None if self._active is None else self._active[0]

    @property
    def device(self) -> torch.device:
        return self._place.device

    @property
    def dtype(self) -> torch.dtype:
        return self._place.dtype

    def each(self, change: Callable[[nn.Module], object]) -> None:
        """Apply a change to every module, including those that are loaded later."""
        for module in self._waiting.values():
            change(module)
        if not self._waiting:
            self._changes.append(change)
            if self._active is not None:
                change(self._active[1])

    def _release(self) -> None:
        if self._active is not None and self._waiting:
            self._active[1].to(HOME)
        self._active = None

    def _prepared(self, name: str) -> nn.Module:
        module = self._load(name).eval().requires_grad_(False)
        for change in self._changes:
            change(module)
        return nn.Module.to(module, device=self.device, dtype=self.dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "SequentialOffload":
        super()._apply(fn, recurse)
        if self._active is not None:
            self._active[1]._apply(fn, recurse)
        return self
