"""The progress of a run: a live display on a terminal, a plain line now and then elsewhere, or nothing."""

import math
import sys
import time
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

from syzygy.core.errors import UserError, install

PLAIN_LINE_SECONDS = 10.0
SMOOTHING = 0.05


class Reporter:
    """What the training loop reports of a run, as hooks; this class shows nothing. Steps count those done since the run began."""

    def announce(self, line: str) -> None:
        """A line about the run, before its first step."""

    def start(self, step: int, steps: int) -> None:
        """Training begins, or goes on, after `step` of `steps`."""

    def step(self, step: int, loss: float) -> None:
        """A step is done. Called for every step, though several calls may come at once."""

    def validated(self, step: int, metrics: Mapping[str, float]) -> None:
        """A validation is done."""

    def recorded(self, row: Mapping[str, Any]) -> None:
        """A line of metrics is written."""

    def stop(self) -> None:
        """Training ends, for whatever reason."""


class ConsoleReporter(Reporter):
    """Step, smoothed loss, last validation, speed and time left; live on a terminal, else a line every ten seconds.

    Writes to standard error: standard output is for results.
    """

    def __init__(self, title: str, *, samples_per_step: int | None = None, tensorboard: Path | None = None) -> None:
        """`samples_per_step` adds samples/s. Metrics are written to the folder `tensorboard` too, if there is one.

        Raises:
            UserError: TensorBoard is needed and not installed.
        """
        self.title = title
        self.samples_per_step = samples_per_step
        self._live: Any = None
        self._writer = None if tensorboard is None else _tensorboard_writer(tensorboard)

    def announce(self, line: str) -> None:
        print(f"{self.title}: {line}", file=sys.stderr, flush=True)

    def start(self, step: int, steps: int) -> None:
        self._first = self._step = self._printed = step
        self._steps = steps
        self._loss = math.nan
        self._metrics: dict[str, float] = {}
        self._began = self._printed_at = self._now = time.monotonic()
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.live import Live

            self._live = Live(get_renderable=self._display, refresh_per_second=4, console=Console(stderr=True))
            self._live.start()

    def step(self, step: int, loss: float) -> None:
        # A running mean at first, then exponential.
        weight = max(SMOOTHING, 1 / (step - self._first))
        self._loss = loss if math.isnan(self._loss) else self._loss + weight * (loss - self._loss)
        self._step, self._now = step, time.monotonic()
        if not self._live and self._now - self._printed_at >= PLAIN_LINE_SECONDS:
            self._print()

    def validated(self, step: int, metrics: Mapping[str, float]) -> None:
        self._metrics = dict(metrics)

    def recorded(self, row: Mapping[str, Any]) -> None:
        if self._writer:
            for name, value in row.items():
                if name != "step":
                    self._writer.add_scalar(name, value, row["step"])

    def stop(self) -> None:
        if self._writer:
            self._writer.flush()
        if self._live:
            self._live.stop()
            self._live = None
        elif self._step > self._printed:
            self._print()

    def _print(self) -> None:
        print(f"{self.title}: step {self._step}/{self._steps} · {self._status()}", file=sys.stderr, flush=True)
        self._printed, self._printed_at = self._step, self._now

    def _status(self) -> str:
        done, seconds = self._step - self._first, self._now - self._began
        if not done:
            return "first step …"
        parts = [f"loss {self._loss:.4g}"]
        metrics = [f"{name} {value:.4g}" for name, value in self._metrics.items()]
        parts += [f"validation: {', '.join(metrics)}"] if metrics else []
        if seconds > 0:
            parts.append(f"{done / seconds:.3g} steps/s")
            if self.samples_per_step:
                parts.append(f"{done / seconds * self.samples_per_step:.3g} samples/s")
            parts.append(f"{timedelta(seconds=round((self._steps - self._step) * seconds / done))} left")
        return " · ".join(parts)

    def _display(self) -> Any:
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        row = Table.grid(padding=(0, 1))
        row.add_row(
            Text(self.title, style="bold"),
            ProgressBar(total=self._steps, completed=self._step, width=40),
            Text(f"{self._step}/{self._steps}"),
        )
        return Group(row, Text(self._status()))


def _tensorboard_writer(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard.writer import SummaryWriter
    except ImportError:
        raise UserError(
            f"TensorBoard is not installed: {install('tensorboard')}, or leave --tensorboard out."
        ) from None
    return SummaryWriter(str(folder))
