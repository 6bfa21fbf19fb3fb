"""Estimates of a training before it is run: memory and disk from its parameters, time from a few steps on the real data."""

import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from syzygy.core.wording import counted, duration, size
from syzygy.training.optimizers import state_bytes
from syzygy.training.schedule import LoopConfig

TIMED_STEPS = 3
"""Number of timed steps, after one that is not timed."""
REHEARSED = 512
"""Most samples that a dry run prepares, if the real run prepares all samples before training."""
TOO_SMALL = (
    "the disk is too small: free some space, choose another --out, or keep fewer checkpoints (loop.keep_checkpoints)."
)
HALF = 2
"""Bytes per parameter in the finished artefact, which is fp16."""


@dataclass(frozen=True)
class Footprint:
    """Memory and disk that follow from parameters and settings alone, in bytes."""

    parameters: int
    """Number of parameters of all modules."""
    trained: int
    """Number of trained parameters."""
    states: int
    """Memory of weights, gradients, the optimizers' moments and the average, without activations and frozen networks."""
    checkpoint: int
    """Size of one checkpoint on disk."""
    disk: int
    """Largest size of the run's folder: all kept checkpoints, one that is being written, the best weights, the result."""

    @staticmethod
    def of(modules: Mapping[str, nn.Module], config: LoopConfig) -> "Footprint":
        """Tied parameters count once."""
        every = {id(p): p for module in modules.values() for p in module.parameters()}
        weights = sum(p.numel() * p.element_size() for p in every.values())
        trained = [p for p in every.values() if p.requires_grad]
        own = sum(p.numel() * p.element_size() for p in trained)
        average = own if config.ema_half_life else 0
        parameters = sum(p.numel() for p in every.values())
        moments = state_bytes(modules, config)
        checkpoint = weights + moments + average
        best = weights if config.best else 0
        disk = checkpoint * (config.keep_checkpoints + 1) + best + HALF * parameters
        return Footprint(
            parameters, sum(p.numel() for p in trained), weights + own + moments + average, checkpoint, disk
        )

    def __str__(self) -> str:
        return (
            f"{self.trained:,} parameters to train; {size(self.states)} of memory for weights, gradients, optimizer and average; "
            f"at most {size(self.disk)} on disk"
        )


@dataclass(frozen=True)
class Estimate:
    """The estimate of one training."""

    footprint: Footprint
    steps: int
    step_seconds: float
    """Measured time of one step."""
    validations: int
    validation_seconds: float
    """Measured time of one validation; 0 if there are none."""
    preparation: float
    """Seconds to prepare all samples, extrapolated from a few; 0 if nothing is prepared."""
    peak: int
    """Peak memory of the process (or on the GPU) during the timed steps, in bytes."""
    free: int
    """Free disk space for the run's folder, in bytes."""
    trainings: int = 1
    """Number of such trainings that the command runs, one after another."""
    shares: Mapping[str, float] = field(default_factory=dict)
    """Part of a step → its share of the step's time, in [0, 1]; empty if the parts were not timed."""

    @property
    def seconds(self) -> float:
        """Time of everything."""
        return self.preparation + self.trainings * (
            self.steps * self.step_seconds + self.validations * self.validation_seconds
        )

    def to_json(self) -> dict[str, Any]:
        """The estimate as JSON values: bytes, seconds and numbers."""
        found = {
            name: getattr(self.footprint, name) for name in ("parameters", "trained", "states", "checkpoint", "disk")
        }
        found["disk"] *= self.trainings
        return found | {
            "steps": self.steps,
            "step_seconds": round(self.step_seconds, 4),
            "step_shares": {name: round(share, 3) for name, share in self.shares.items()},
            "validations": self.validations,
            "validation_seconds": round(self.validation_seconds, 4),
            "preparation_seconds": round(self.preparation, 1),
            "trainings": self.trainings,
            "seconds": round(self.seconds, 1),
            "peak_memory": self.peak,
            "free_disk": self.free,
        }

    def lines(self) -> Iterator[str]:
        """The estimate as lines of text."""
        one, disk = self.footprint, self.footprint.disk * self.trainings
        shares = ", ".join(f"{name} {100 * share:.0f} %" for name, share in self.shares.items())
        parts = [f"{self.steps:,} steps of {duration(self.step_seconds)}{f' ({shares})' if shares else ''}"]
        if self.validations:
            parts.append(f"{counted(self.validations, 'validation')} of {duration(self.validation_seconds)}")
        if self.preparation:
            parts.append(f"{duration(self.preparation)} of preparation")
        times = "" if self.trainings == 1 else f"{self.trainings} trainings of "
        states = "weights, gradients, optimizer and average"
        yield f"parameters  {one.parameters:,}, of which {one.trained:,} are trained"
        yield f"time        about {duration(self.seconds)}: {times}{', '.join(parts)}"
        yield f"memory      {size(self.peak)} at its highest in the timed steps; {size(one.states)} for {states}"
        yield f"disk        {size(disk)} at most, {size(one.checkpoint)} for each checkpoint; {size(self.free)} free"
        if disk > self.free:
            yield f"warning     {TOO_SMALL}"


class Estimated(Exception):
    """Ends a dry run and carries its estimate."""

    def __init__(self, estimate: Estimate) -> None:
        super().__init__("this was a dry run")
        self.estimate = estimate


@dataclass
class _DryRun:
    out: Path
    """Folder of the real run."""
    preparation: float = 0.0
    """Seconds of preparation before the training."""


_dry: ContextVar[_DryRun | None] = ContextVar("dry_run", default=None)


@contextmanager
def dry_run(out: Path) -> Iterator[None]:
    """Inside the block, the first `fit` times a few steps and raises `Estimated`. `out` is the folder of the real run."""
    token = _dry.set(_DryRun(out))
    try:
        yield
    finally:
        _dry.reset(token)


def is_dry_run() -> bool:
    """Whether the caller is inside `dry_run`."""
    return _dry.get() is not None


def rehearsed(number: int, batch: int) -> int:
    """How many of `number` samples to prepare: all of them, or in a dry run a few that fill a batch."""
    return min(number, max(REHEARSED, batch)) if is_dry_run() else number


@contextmanager
def preparing(number: int, prepared: int) -> Iterator[None]:
    """Times the preparation of `prepared` out of `number` samples; a dry run adds the time that all of them would take."""
    began = time.perf_counter()
    yield
    if (dry := _dry.get()) is not None:
        dry.preparation += (time.perf_counter() - began) * number / prepared


Lap = Callable[[str], None]
"""Called at the end of each part of a step with the part's name."""


def no_lap(part: str) -> None:
    """Does nothing: the parts are not timed."""


def measure(
    modules: Mapping[str, nn.Module],
    config: LoopConfig,
    step: Callable[[Lap], Mapping[str, Tensor]],
    validate: Callable[[], object],
) -> Estimate:
    """Time `step` (one optimizer step; the losses it returns are waited for) with its parts, and `validate`."""
    device = next(p.device.type for module in modules.values() for p in module.parameters())
    parts: dict[str, float] = {}

    def timed(times: int) -> float:
        began = last = time.perf_counter()

        def lap(part: str) -> None:
            nonlocal last
            if device == "cuda":
                torch.cuda.synchronize()
            now = time.perf_counter()
            parts[part] = parts.get(part, 0.0) + now - last
            last = now

        for _ in range(times):
            for value in step(lap).values():
                value.item()  # waits for the device
        return (time.perf_counter() - began) / times

    timed(1)
    parts.clear()
    seconds = timed(min(TIMED_STEPS, config.steps))
    validations = -(-config.steps // config.validate_every) if config.validate_every else 0
    validating = 0.0
    if validations:
        began = time.perf_counter()
        validate()
        validating = time.perf_counter() - began
    found = estimated(Footprint.of(modules, config), config.steps, seconds, validations, validating, device)
    whole = sum(parts.values())
    return replace(found, shares={name: part / whole for name, part in parts.items()})


def estimated(
    footprint: Footprint, steps: int, seconds: float, validations: int, validating: float, device: str
) -> Estimate:
    """The estimate of a dry run, from the measured seconds of a step and of a validation."""
    dry = _dry.get()
    assert dry is not None, "inside dry_run"
    return Estimate(
        footprint, steps, seconds, validations, validating,
        preparation=dry.preparation, peak=peak_memory(device), free=free_disk(dry.out),
    )  # fmt: skip


def peak_memory(device: str) -> int:
    """Peak memory of this process so far, in bytes; on a GPU, that of the GPU."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    if device == "mps":
        return torch.mps.driver_allocated_memory()
    try:
        import resource
    except ImportError:  # Windows
        return 0
    highest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return highest if sys.platform == "darwin" else 1024 * highest


def free_disk(out: Path) -> int:
    """Free bytes on the disk where a folder is, or would be created."""
    place = out.absolute()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free
