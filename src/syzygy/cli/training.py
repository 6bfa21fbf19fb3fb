"""The options that all `syzygy train` commands share, and the steps before and after a training."""

import os
from collections.abc import Callable, Mapping
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import click

from syzygy.cli.common import Whole, device_option, json_option, note, stacked, tell_next, writable_folder
from syzygy.core.errors import UserError

if TYPE_CHECKING:
    import torch

    from syzygy.core.config import Config
    from syzygy.training.fitting import Fitting

F = TypeVar("F", bound=Callable[..., Any])
EPILOG = """
\b
KEY=VALUE overrides a setting of the preset, such as loop.steps=300.
--settings lists all settings with their values and meanings.
Run the same command again to continue an interrupted run.
"""


class Trained(NamedTuple):
    """What a command reports at its end."""

    folder: Path
    """The folder of the artefact."""
    metrics: dict[str, Any]
    """Its metrics."""
    next_steps: tuple[str, ...] = ()
    """Commands to try, or sentences."""


def train_options(preset: str, *, dry_run: bool = True) -> Callable[[F], F]:
    """The options of every `train` command, which it passes on to `run_training`. Without `dry_run` its time cannot be estimated."""
    folder = click.Path(path_type=Path)
    estimate = click.option(
        "--dry-run",
        is_flag=True,
        help="Estimate time, memory and disk space from a few steps on the real data, then exit without writing.",
    )
    options = (
        click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]…"),
        click.option("--preset", default=preset, show_default=True, help="The set of settings to start from."),
        click.option("--out", type=folder, metavar="RUN", help="Folder of the run.  [required]"),
        click.option("--settings", "show_settings", is_flag=True, help="Print the settings and exit."),
        *([estimate] if dry_run else []),
        click.option(
            "--threads",
            type=Whole(1, 256),
            metavar="N",
            help="Number of CPU threads. To continue a run bit for bit, use the same number.  [default: torch's]",
        ),
        device_option,
        json_option,
    )

    return stacked(*options)


def run_training(
    presets: str,
    body: "Callable[[Any, Path, torch.device], Trained]",
    begin: Callable[[Any], Any] = lambda run: run,
    *,
    overrides: tuple[str, ...],
    preset: str,
    out: Path | None,
    show_settings: bool,
    dry_run: bool = False,
    threads: int | None,
    device: str,
    as_json: bool,
) -> None:
    """Choose and override a preset, train, and print the result.

    Args:
        presets: the table of presets, as "module:attribute".
        body: trains in a folder on a device.
        begin: changes a preset before it is overridden.
    """
    import json

    from syzygy.core.config import override
    from syzygy.core.registry import preset as chosen

    run = override(begin(chosen(presets, preset)), overrides, note)
    if show_settings:
        _print_settings(run, as_json)
        return
    if out is None and not dry_run:
        context = click.get_current_context()
        raise click.MissingParameter(ctx=context, param_hint="'--out'", param_type="option")
    import torch

    if threads is not None:
        torch.set_num_threads(threads)
    if out is None or dry_run:
        _estimate(lambda folder: body(run, folder, torch.device(device)), out or Path(), as_json)
        return
    writable_folder(out)
    trained = body(run, out, torch.device(device))
    if os.environ.get("RANK", "0") != "0":  # torchrun started several of us; the first one talks
        return
    if as_json:
        click.echo(json.dumps({"folder": str(trained.folder), "metrics": trained.metrics}))
        return
    for name, value in trained.metrics.items():
        click.echo(f"{name:>24}  {value:.4g}")
    click.echo(f"Trained: {trained.folder}")
    tell_next(trained.next_steps)


def _estimate(body: Callable[[Path], Trained], out: Path, as_json: bool) -> None:
    """Run the training in a temporary folder, up to the estimate, and print that."""
    import json
    import tempfile

    from syzygy.training import estimate

    with tempfile.TemporaryDirectory(prefix="syzygy-dry-run-") as folder, estimate.dry_run(out):
        try:
            body(Path(folder))
        except estimate.Estimated as found:
            result = found.estimate
        else:
            raise AssertionError("a training without a loop")
    if os.environ.get("RANK", "0") != "0":
        return
    if as_json:
        click.echo(json.dumps(result.to_json()))
        return
    for line in result.lines():
        click.echo(line)
    click.echo("Nothing was written. The same command without --dry-run trains.")


def set_names(overrides: tuple[str, ...]) -> set[str]:
    """The names of the settings that KEY=VALUE arguments set."""
    return {text.partition("=")[0] for text in overrides}


def as_setting(options: Mapping[str, Any], overrides: tuple[str, ...]) -> tuple[str, ...]:
    """KEY=VALUE arguments that include these options, where they were given.

    Raises:
        UserError: an option and an argument set the same setting.
    """
    import json

    given = {name: value for name, value in options.items() if value is not None}
    for name in given:
        if name in set_names(overrides):
            raise UserError(f"--{name} and {name}=… say the same: give one of them.")
    return (*(f"{name}={json.dumps(value)}" for name, value in given.items()), *overrides)


def fitting_of(overrides: tuple[str, ...]) -> "Fitting":
    """Settings that were not given follow the data; lines about them go to standard error."""
    from syzygy.training.fitting import Fitting

    return Fitting(frozenset(set_names(overrides)), note)


def _print_settings(run: "Config", as_json: bool) -> None:
    """Every setting that can be overridden: name, value, meaning."""
    import json

    from syzygy.core.config import fields_of

    meanings = fields_of(run)
    values = {name: reduce(getitem, name.split("."), run.model_dump(mode="json")) for name in meanings}
    if as_json:
        click.echo(json.dumps({name: {"value": values[name], "help": text} for name, text in meanings.items()}))
        return
    formatter = click.get_current_context().make_formatter()
    formatter.write_dl([(f"{name}={json.dumps(values[name])}", text) for name, text in meanings.items()])
    click.echo(formatter.getvalue(), nl=False)
