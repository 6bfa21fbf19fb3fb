"""Options and checks that several commands share. Heavy imports happen when a command runs, never for `--help`."""

import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import click

from syzygy.core.errors import UserError

F = TypeVar("F", bound=Callable[..., Any])
PLAIN_LINE_SECONDS = 10.0


class Whole(click.ParamType):
    """A whole number from `low` to `high`, both allowed."""

    name = "integer"

    def __init__(self, low: int, high: int | None = None) -> None:
        self.low, self.high = low, high

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        allowed = f"at least {self.low}" if self.high is None else f"from {self.low} to {self.high}"
        try:
            number = int(value)
        except ValueError:
            self.fail(f"{value!r} is not a whole number; allowed: {allowed}.", param, ctx)
        if number < self.low or (self.high is not None and number > self.high):
            self.fail(f"{number} is out of range; allowed: {allowed}.", param, ctx)
        return number


def stacked(*options: Callable[[F], F]) -> Callable[[F], F]:
    """Options as one decorator; `--help` lists them in this order."""

    def decorate(command: F) -> F:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def json_option(command: F) -> F:
    """`--json`, passed as `as_json`: one JSON object on standard output, progress on standard error."""
    return click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object.")(command)


def seed_option(command: F) -> F:
    """`--seed`, passed as `seed`: a whole number from 0, default 0."""
    text = "Seed of all random numbers. Equal seeds give equal results, up to rounding where the batch size differs."
    return click.option("--seed", type=Whole(0), default=0, show_default=True, metavar="N", help=text)(command)


def device_option(command: F) -> F:
    """`--device`, passed as `device`: the name of a device that this machine has, `auto` already resolved."""

    def resolve(ctx: click.Context, _param: click.Parameter, name: str) -> str:
        return name if ctx.resilient_parsing else available_device(name)

    return _device_option(command, callback=resolve)


def unresolved_device_option(command: F) -> F:
    """`--device` as it was given, for commands that may compute on other machines."""
    return _device_option(command)


def _device_option(command: F, **more: Any) -> F:
    return click.option(
        "--device",
        type=click.Choice(["auto", "cpu", "cuda", "mps"]),
        default="auto",
        show_default=True,
        help="Device to compute on; auto chooses the fastest one available.",
        **more,
    )(command)


def available_device(name: str) -> str:
    """The device to use for `auto`, `cpu`, `cuda` or `mps`; one that this machine lacks is a `UserError`."""
    import torch

    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    names = [device for device, available in there.items() if available]  # fastest first
    if name == "auto":
        return names[0]
    if name not in names:
        raise UserError(f"device {name!r} is not available here. Available: {', '.join(names)}; --device auto chooses.")
    return name


def note(line: str) -> None:
    """Print a line about what the command does to standard error, as standard output is for results. With several ranks the first prints."""
    if os.environ.get("RANK", "0") == "0":
        click.echo(line, err=True)


def tell_next(steps: Iterable[str]) -> None:
    """Print commands to try next; other sentences are printed as they are."""
    for step in steps:
        click.echo(f"Try next: {step}" if step.startswith("syzygy ") else step)


def writable_folder(path: Path) -> Path:
    """`path`, created if it was missing and proved writable before any work is done; otherwise a `UserError`."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path):
            pass
    except OSError as error:
        raise UserError(f"cannot write to {path}: {error.strerror}. Choose another folder.") from None
    return path


@contextmanager
def progress_bar(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar on standard error, if that is a terminal. The value is a function to call with how many more are done."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(title, total=total)
        yield lambda done: progress.advance(task, done)


@contextmanager
def paced(title: str, total: int, what: str, *, live: bool = True) -> Iterator[Callable[[float], None]]:
    """How much of `total` is done, rate and time left, on standard error: live on a terminal, else a line now and then.

    The value is a function to call with how much more is done.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    began = printed = time.monotonic()
    done = 0.0

    def status() -> str:
        rate = done / max(time.monotonic() - began, 1e-9)
        left = f" · {rate:.3g} {what}/s · {timedelta(seconds=round((total - done) / rate))} left" if rate else ""
        return f"{int(done + 0.5):,}/{total:,} {what}{left}"

    console = Console(stderr=True)
    live = live and console.is_terminal
    columns = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[status]}")
    with Progress(*columns, console=console, transient=True, disable=not live) as progress:
        task = progress.add_task(title, total=total, status=status())

        def advance(more: float) -> None:
            nonlocal done, printed
            done += more
            progress.update(task, completed=done, status=status())
            if not live and time.monotonic() - printed >= PLAIN_LINE_SECONDS:
                printed = time.monotonic()
                print(f"{title}: {status()}", file=sys.stderr, flush=True)

        yield advance
