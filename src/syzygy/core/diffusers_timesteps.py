"""What the timesteps of diffusers' networks mean: noise levels in EDM's convention, whatever scheduler counts them.

A timestep says how noisy a network's input is, and the network has learned what each means. So the noise level follows from the timestep
alone: it is the same with every sampler, number of steps, shift of the schedule, and for a part of one (an image to begin from).
"""

import inspect
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from syzygy.core import artifacts, diffusers_schedulers
from syzygy.core.diffusers_weights import SCHEDULER_FILE
from syzygy.core.errors import UserError

Sigma = Callable[[float], float]
"""Timestep → σ."""
LONGEST = 10_000
"""Timesteps that a schedule may have; what lies in something longer is no schedule."""


def noise_of(scheduler: Any) -> Sigma:
    """The noise levels of the timesteps that a network was trained with, as a scheduler of diffusers counts them.

    Raises:
        UserError: it counts in a way that is not known here.
    """
    config = scheduler.config
    if is_edm(scheduler):
        return lambda t: math.exp(4 * t)
    if config.get("use_flow_sigmas") or _is_flow(scheduler):
        return _of_flow(config["num_train_timesteps"], bool(config.get("invert_sigmas")))
    if isinstance(kept := getattr(scheduler, "alphas_cumprod", None), Tensor):
        return _of_signal(kept.double().tolist())
    raise UserError(
        f"{type(scheduler).__name__} does not tell the noise of its timesteps. Give the scheduler that the model came with: one "
        "with the share of signal of each (DDPM, DDIM, Euler, Heun, DPM-Solver …), EDM's, or one for flow matching."
    )


def _is_flow(scheduler: Any) -> bool:
    from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
    from diffusers.schedulers.scheduling_flow_match_heun_discrete import FlowMatchHeunDiscreteScheduler
    from diffusers.schedulers.scheduling_flow_match_lcm import FlowMatchLCMScheduler

    return isinstance(
        scheduler, FlowMatchEulerDiscreteScheduler | FlowMatchHeunDiscreteScheduler | FlowMatchLCMScheduler
    )


def is_edm(scheduler: Any) -> bool:
    """Whether a timestep is ¼ ln σ."""
    from diffusers.schedulers.scheduling_edm_dpmsolver_multistep import EDMDPMSolverMultistepScheduler
    from diffusers.schedulers.scheduling_edm_euler import EDMEulerScheduler

    config = scheduler.config
    continuous = config.get("timestep_type") == "continuous" and config.get("prediction_type") == "v_prediction"
    return continuous or isinstance(scheduler, EDMDPMSolverMultistepScheduler | EDMEulerScheduler)


def _of_signal(kept: list[float]) -> Sigma:
    """σ = √((1 − ᾱ) / ᾱ); between two timesteps ln σ is linear, as diffusers' samplers count."""
    logs = [math.inf if share <= 0 else math.log((1 - share) / share) / 2 for share in kept]

    def sigma(t: float) -> float:
        place = min(max(t, 0.0), len(logs) - 1.0)
        low, part = int(place), place % 1
        return math.exp(logs[low] if part == 0 else (1 - part) * logs[low] + part * logs[low + 1])

    return sigma


def _of_flow(number: int, inverted: bool) -> Sigma:
    """σ = s / (1 − s) of an image (1 − s)·x + s·noise."""

    def sigma(t: float) -> float:
        share = min(max(t / number, 0.0), 1.0)
        share = 1 - share if inverted else share
        return math.inf if share == 1 else share / (1 - share)

    return sigma


class _Copy(NamedTuple):
    """A schedule's numbers on the host."""

    storage: torch.UntypedStorage
    """Kept, so that its address means nothing else meanwhile."""
    dtype: torch.dtype
    version: int | None
    offset: int
    """The place that was read last."""
    values: list[float]


class HostTimesteps:
    """Timesteps as numbers on the host: one wait for the device a schedule, none a step.

    A loop walks its schedule by views of one tensor, so the first step shows all of them, and each later one its place. Whose schedule
    it is, and where in it the loop begins, does not matter.
    """

    def __init__(self) -> None:
        self._copy: _Copy | None = None

    def value(self, timestep: Tensor) -> float:
        """One timestep, or the same for all samples as an expanded view."""
        return float(timestep.flatten()[0]) if timestep.device.type == "cpu" else self.planned(timestep)

    def planned(self, timestep: Tensor) -> float:
        """The same by way of the schedule's copy, as for timesteps on an accelerator."""
        storage = timestep.untyped_storage()
        number = storage.nbytes() // timestep.element_size()
        if not 1 < number <= LONGEST:  # alone, it may be written anew for each step
            return float(timestep.flatten()[0])
        # Tensors made in inference mode count no versions. A walk through a schedule moves on there; a buffer that is written anew for each
        # step is read at the same place again, and then the copy is not trusted.
        version, offset = None if timestep.is_inference() else timestep._version, int(timestep.storage_offset())
        known = self._copy
        if (
            known is None
            or (version is None and known.offset == offset)
            or (known.storage.data_ptr(), known.storage.nbytes()) != (storage.data_ptr(), storage.nbytes())
            or (known.dtype, known.version) != (timestep.dtype, version)
        ):
            values = [float(value) for value in timestep.detach().as_strided((number,), (1,), 0).tolist()]
            known = _Copy(storage, timestep.dtype, version, offset, values)
        self._copy = known._replace(offset=offset)
        return known.values[offset]


def read_scheduler(folder: Path) -> Any:
    """The scheduler of a folder: of a pipeline in diffusers' layout, of an ensemble, or the scheduler's own.

    Raises:
        UserError: there is none, or its class is not diffusers'.
    """
    import diffusers

    own = folder if (folder / SCHEDULER_FILE).is_file() else folder / "scheduler"
    values = artifacts.read_json(own / SCHEDULER_FILE)
    kind: Any = getattr(diffusers, str(values.get("_class_name")), None)
    if not _is_scheduler(kind):
        raise UserError(
            f"{own / SCHEDULER_FILE} is for {values.get('_class_name')!r}, which is no scheduler of diffusers."
        )
    with diffusers_schedulers.quiet():
        return kind.from_config(values)


def _is_scheduler(kind: Any) -> bool:
    from diffusers.schedulers.scheduling_utils import SchedulerMixin

    return inspect.isclass(kind) and issubclass(kind, SchedulerMixin)
