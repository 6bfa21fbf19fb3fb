"""Exponential moving average of the weights."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

RAMP = 0.05


def ema_decay(half_life: float, step: int) -> float:
    """The weight of the old average at update number `step` (from 1).

    The half-life, in steps, is at most 5 % of the steps done, so that a short run is not dominated by its initial
    weights (Karras et al. 2022, EDM; `ema_rampup_ratio` in its `training_loop.py`).
    """
    return 0.5 ** (1 / min(half_life, RAMP * step))


class Ema:
    """The average of named parameters. It starts at their current values and is on their devices."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], half_life: float) -> None:
        self.parameters = dict(parameters)
        self.half_life = half_life
        self.averages = {name: p.detach().clone() for name, p in parameters.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Include the parameters as they are after optimizer step number `step` (from 1)."""
        lerp = get_ema_multi_avg_fn(ema_decay(self.half_life, step))
        lerp(list(self.averages.values()), list(self.parameters.values()), step)

    @torch.no_grad()
    def copy_to_parameters(self) -> None:
        """Overwrite the parameters by their average."""
        for name, parameter in self.parameters.items():
            parameter.copy_(self.averages[name])

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """Inside the block the parameters hold their average; afterwards, their own values again, bit for bit."""
        own = {name: p.detach().clone() for name, p in self.parameters.items()}
        self.copy_to_parameters()
        try:
            yield
        finally:
            with torch.no_grad():
                for name, parameter in self.parameters.items():
                    parameter.copy_(own[name])
