"""One training loop. It knows no model: a task brings the modules, the loss of a step, and a validation."""

import math
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from syzygy.core.errors import UserError
from syzygy.training import checkpoints
from syzygy.training.checkpoints import TrainingState
from syzygy.training.ema import Ema
from syzygy.training.estimate import (
    TOO_SMALL,
    Estimate,
    Estimated,
    Footprint,
    Lap,
    free_disk,
    is_dry_run,
    measure,
    no_lap,
)
from syzygy.training.optimizers import Optimizers
from syzygy.training.parallel import Ranks
from syzygy.training.progress import Reporter
from syzygy.training.schedule import LoopConfig, learning_rate

SHOWN_KEYS = 8
READ_EVERY_SECONDS = 0.25
"""Losses are read from the device this often and not at every step, because reading waits for the device."""


class Task(Protocol):
    """What is trained, and on what. Devices, mixed precision and data are the task's business.

    A task may have two more methods:

    - `parts(step)`, where a batch is too large for one pass: the scalars of `loss` as parts that sum to them. The gradient of each part is
      computed before the next one is asked for. The loop then does not call `loss`.
    - `keys(step)`: the names of the samples that all ranks together saw in a step, for the error about a loss that is not finite.
    """

    @property
    def modules(self) -> Mapping[str, nn.Module]:
        """The modules whose parameters are trained (those that require gradients), in float32 or better."""
        ...

    def loss(self, step: int) -> Mapping[str, Tensor]:
        """Scalars of the step with index `step` (from 0). "loss" is minimised, the others are logged.

        All randomness, the choice of samples included, is keyed by `step`; so resuming needs no state of generators.
        """
        ...

    def validate(self) -> Mapping[str, float]:
        """Metrics on unseen samples. Called without gradients, with averaged weights, modules in evaluation mode."""
        ...


class Interrupted(UserError):
    """The run was stopped by a signal, after its checkpoint was written."""

    exit_code = 130  # 128 + SIGINT, as shells count


VALIDATION = "validation/"
"""Prefix of validation metrics in a line of metrics."""


@dataclass(frozen=True)
class FitResult:
    """A finished run."""

    steps: int
    seconds: float
    """Total time, validations included, also before interruptions."""
    history: list[dict[str, Any]]
    """The lines of metrics.jsonl: step (steps done), lr, means of the losses, validation/NAME where validated."""
    ema: bool
    """Whether the modules hold averaged weights."""

    @property
    def metrics(self) -> dict[str, float]:
        """The metrics of the last validation; empty if there was none."""
        last = self.history[-1] if self.history else {}
        return {key.removeprefix(VALIDATION): value for key, value in last.items() if key.startswith(VALIDATION)}


def fit(
    task: Task,
    config: LoopConfig,
    out: Path,
    *,
    reporter: Reporter | None = None,
    run: Mapping[str, Any],
    world: Ranks | None = None,
) -> FitResult:
    """Train `task`, or continue exactly where an earlier call with the same `out` stopped.

    `run` holds all settings of the run as plain JSON values; it is saved as `out/run.json` and must be the same when
    the run is continued. At the end the modules hold the averaged weights (where config.ema_half_life is set) in evaluation mode.
    A finished run returns at once. In a `world` of several ranks each of them calls this function: the task's modules average their
    gradients over the ranks (`Ranks.wrapped`), the first rank writes the files, and losses are means over all ranks.

    Raises Interrupted on SIGINT or SIGTERM, after writing a checkpoint (a second signal has its usual effect).
    Raises UserError if `out` cannot be written or belongs to other settings, or if the loss or a weight is not finite;
    the last checkpoint then stays as it is.
    """
    world = world or Ranks(torch.device("cpu"))
    state = _fresh_state(task, config)
    if is_dry_run():
        raise Estimated(_rehearsal(_Session(task, config, out, Reporter(), state, [], world)))
    history = _resumed(out, run, state, world)
    if state.step < config.steps:
        reporter = reporter if reporter and world.first else Reporter()
        footprint = Footprint.of(task.modules, config)
        reporter.announce(str(footprint))
        if footprint.disk > free_disk(out):
            reporter.announce(TOO_SMALL)
        reporter.start(state.step, config.steps)
        try:
            _Session(task, config, out, reporter, state, history, world).train()
        finally:
            reporter.stop()
    if state.ema:
        state.ema.copy_to_parameters()
    for module in task.modules.values():
        module.eval()
    return FitResult(state.step, state.seconds, history, state.ema is not None)


def _rehearsal(session: "_Session") -> Estimate:
    """A few steps and a validation, timed."""
    for module in session.task.modules.values():
        module.train()
    return measure(session.task.modules, session.config, session.optimize, session.metrics)


def _resumed(out: Path, run: Mapping[str, Any], state: TrainingState, world: Ranks) -> list[dict[str, Any]]:
    """Load the state of a stopped run; returns its lines of metrics. The first rank cleans up before the others read."""
    history: list[dict[str, Any]] = []
    if world.first and checkpoints.open_run(out, run):
        checkpoints.load(out, state)
        history = checkpoints.read_metrics(out, state.step)
    world.wait()
    if not world.first and checkpoints.exists(out):
        checkpoints.load(out, state)
    return history


def _fresh_state(task: Task, config: LoopConfig) -> TrainingState:
    """The optimizers and the averaged weights for the parameters of a task."""
    optimizers = Optimizers(task.modules, config)
    average = Ema(optimizers.parameters, config.ema_half_life) if config.ema_half_life else None
    return TrainingState(task.modules, optimizers, average)


@dataclass
class _Session:
    """A run in one process, from its start or continuation to its end or interruption."""

    task: Task
    config: LoopConfig
    out: Path
    reporter: Reporter
    state: TrainingState
    history: list[dict[str, Any]]
    world: Ranks
    pending: list[dict[str, Tensor]] = field(default_factory=list)
    """Scalars of the latest steps, still on the device."""

    def train(self) -> None:
        state, config = self.state, self.config
        began, read_at = time.perf_counter() - state.seconds, 0.0
        for module in self.task.modules.values():
            module.train()
        with _stop_signal() as stop:
            while state.step < config.steps:
                self.pending.append(self.optimize())
                # Several ranks must agree, which costs a wait for the device: now and then, not at every step.
                stopped = (self.world.size == 1 or self._due(config.log_every)) and self.world.any(stop.is_set())
                validate = config.validate_every > 0 and self._due(config.validate_every)
                log = validate or self._due(config.log_every)
                save = stopped or self._due(config.checkpoint_every)
                if log or save or time.perf_counter() - read_at > READ_EVERY_SECONDS:
                    self._read()
                    read_at = time.perf_counter()
                if log:
                    self._record(self._validate() if validate else {})
                state.seconds = time.perf_counter() - began
                if save:
                    self._check_weights()
                    if self.world.first:
                        checkpoints.save(self.out, state, config.keep_checkpoints)
                    self.world.wait()
                if stopped:
                    raise Interrupted(
                        f"stopped after step {state.step} of {config.steps}; the checkpoint is in {self.out}. "
                        "Run the same command again to continue."
                    )

    def _due(self, every: int) -> bool:
        """Whether the step is a multiple of `every` (if that is not 0), or the last one."""
        step = self.state.step
        return step == self.config.steps or (every > 0 and step % every == 0)

    def optimize(self, lap: Lap = no_lap) -> dict[str, Tensor]:
        """One step; its scalars, still on the device. `lap` is called after each part."""
        state, config = self.state, self.config
        state.optimizers.zero_grad()
        sums: dict[str, Tensor] = {}
        parts = getattr(self.task, "parts", None)
        for losses in parts(state.step) if parts else (self.task.loss(state.step),):
            assert losses.keys().isdisjoint(("step", "lr", "grad_norm")), "names of the loop's own metrics"
            lap("samples and loss")
            losses["loss"].backward()
            lap("gradients")
            sums = {name: sums.get(name, 0) + value.detach() for name, value in losses.items()}
        scalars = self.world.mean(sums)
        if config.grad_clip:
            scalars["grad_norm"] = nn.utils.clip_grad_norm_(state.optimizers.parameters.values(), config.grad_clip)
        state.optimizers.step(learning_rate(config, state.step))
        lap("optimizer")
        state.step += 1
        if state.ema:
            state.ema.update(state.step)
            lap("average")
        return scalars

    def _read(self) -> None:
        """Read the scalars of the latest steps from the device; a loss that is not finite ends the run."""
        for back, scalars in zip(range(len(self.pending) - 1, -1, -1), self.pending, strict=True):
            values = {name: float(value) for name, value in scalars.items()}
            step = self.state.step - back
            if not math.isfinite(values["loss"]):
                raise self._diverged(f"the loss is {values['loss']} in step {step}{self._samples(step - 1)}")
            self.state.window.append(values)
            self.reporter.step(step, values["loss"])
        self.pending.clear()

    def _record(self, metrics: Mapping[str, float]) -> None:
        """Write the means since the last line, and a validation's metrics, to the history."""
        step, window = self.state.step, self.state.window
        row: dict[str, Any] = {"step": step, "lr": learning_rate(self.config, step - 1)}
        for name in dict.fromkeys(name for values in window for name in values):
            values = [v[name] for v in window if name in v]
            row[name] = sum(values) / len(values)
        row |= {f"{VALIDATION}{name}": value for name, value in metrics.items()}
        if self.world.first:
            checkpoints.append_metrics(self.out, row)
            self.reporter.recorded(row)
        self.history.append(row)
        window.clear()

    def metrics(self) -> Mapping[str, float]:
        """The task's validation metrics, with the averaged weights."""
        ema = self.state.ema
        with torch.no_grad(), ema.swapped_in() if ema else nullcontext():
            for module in self.task.modules.values():
                module.eval()
            try:
                return self.task.validate()
            finally:
                for module in self.task.modules.values():
                    module.train()

    def _validate(self) -> Mapping[str, float]:
        metrics = self.metrics()
        self.reporter.validated(self.state.step, metrics)
        if self.config.best and self.world.first:
            self._keep_best(metrics)
        return metrics

    def _keep_best(self, metrics: Mapping[str, float]) -> None:
        direction, name = self.config.best.split()
        if name not in metrics:
            raise UserError(f"loop.best names no validation metric: {name!r}. Known: {', '.join(metrics)}.")
        before, value = checkpoints.best_so_far(self.out), metrics[name]
        if before is None or (value > before if direction == "max" else value < before):
            checkpoints.save_best(self.out, self.state, name, value)

    def _samples(self, step: int) -> str:
        """The samples that the step with this index saw, if the task has `keys`."""
        keys: Sequence[str] = getattr(self.task, "keys", lambda step: ())(step)
        if not keys:
            return ""
        more = f" … ({len(keys)} in all)" if len(keys) > SHOWN_KEYS else ""
        return f", on samples {', '.join(keys[:SHOWN_KEYS])}{more}"

    def _check_weights(self) -> None:
        """Refuse weights that are not finite: a finite loss can have a gradient that is not, and a good checkpoint must stay."""
        for prefix, module in self.task.modules.items():
            for name, parameter in module.named_parameters():
                if not torch.isfinite(parameter).all():
                    raise self._diverged(f"weight {prefix}.{name} is not finite after step {self.state.step}")

    def _diverged(self, what: str) -> UserError:
        clip = "a smaller" if self.config.grad_clip else "a"
        return UserError(
            f"{what}: training diverged. The last checkpoint, if any, is unchanged. "
            f"Try a lower lr (now {self.config.lr:g}), a longer warmup or {clip} grad_clip, with a new --out."
        )


@contextmanager
def _stop_signal() -> Iterator[threading.Event]:
    """An event that the first SIGINT or SIGTERM sets; a second acts as before. Only the main thread may listen."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.getsignal(number) or signal.SIG_DFL for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def request(number: int, frame: FrameType | None) -> None:
        restore()
        stop.set()

    for number in before:
        signal.signal(number, request)
    try:
        yield stop
    finally:
        restore()
