"""What the commands `syzygy evaluate …` share: options, and how results are printed and written."""

import functools
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from syzygy.cli.common import Whole, device_option, note, seed_option, stacked, writable_folder
from syzygy.core.errors import UserError

if TYPE_CHECKING:
    from syzygy.lab.evaluate.harness import Outcome
    from syzygy.lab.report import Table

Option = Callable[[Any], Any]

OUTPUTS = (
    click.option(
        "--out",
        type=click.Path(file_okay=False, path_type=Path),
        metavar="FOLDER",
        help="Write results.json, a page (index.html), a report in Markdown and figures. The predictions for generated images are kept "
        "there too, so that an interrupted evaluation resumes.",
    ),
    click.option(
        "--json",
        "json_file",
        type=click.Path(dir_okay=False, allow_dash=True, path_type=Path),
        metavar="FILE",
        help="Write the results as JSON; - prints them and nothing else.",
    ),
    click.option(
        "--page", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="Write the page to this file."
    ),
)


def _renamed_to_page(ctx: click.Context, _param: click.Parameter, value: Path | None) -> None:
    if value is not None:
        note("warning: the option --html is now called --page; the old name will be removed.")
        ctx.params["page"] = value


HTML = click.option(
    "--html",
    type=click.Path(dir_okay=False, path_type=Path),
    hidden=True,
    expose_value=False,
    callback=_renamed_to_page,
)
"""The old name of --page."""


def sampling_options(prompts: int, steps: int, *, least: int = 2, help: str = "") -> tuple[Option, ...]:
    """Options of every evaluation that generates images.

    Args:
        help: of --prompts.
    """
    text = help or "Prompts of each category, seen and unseen each, or as many as exist."
    return (
        click.option(
            "--model", default="starter", show_default=True, help="A model that comes with syzygy, or a folder."
        ),
        click.option("--prompts", type=Whole(least), default=prompts, show_default=True, help=text),
        click.option("--steps", type=Whole(1), default=steps, show_default=True, help="Sampling steps."),
        click.option("--guidance-scale", type=float, default=3.0, show_default=True, help="Guidance; 1 means off."),
    )


def evaluation(
    *options: Option, quick: Mapping[str, int] | None = None
) -> Callable[[Callable[..., "Outcome"]], click.Command]:
    """A command from a function that gets the values of its options and `out`, and returns what was found.

    Args:
        quick: the settings of --quick, which the command then has.
    """
    settings = dict(quick or {})
    numbers = ", ".join(f"{value} {name}" for name, value in settings.items())
    flag = click.option("--quick", is_flag=True, help=f"Use {numbers}: a first look, with wide intervals.")

    def decorate(function: Callable[..., "Outcome"]) -> click.Command:
        @click.pass_context
        @functools.wraps(function)
        def command(
            ctx: click.Context, json_file: Path | None, page: Path | None, out: Path | None, **values: Any
        ) -> None:
            for name, value in settings.items() if values.pop("quick", False) else ():
                if ctx.get_parameter_source(name) == click.core.ParameterSource.COMMANDLINE:
                    raise click.UsageError(f"--quick sets --{name} itself: give one of the two.")
                values[name] = value
            _check_places(json_file, page, out)
            _publish(function(out=out, **values), json_file, page, out)

        every = (*options, *[flag] * bool(settings), seed_option, device_option, *OUTPUTS)
        return click.command()(stacked(*every)(command))

    return decorate


def _check_places(json_file: Path | None, page: Path | None, out: Path | None) -> None:
    """Fail before the work, not after it."""
    from syzygy.lab.report import require_lab

    if page is not None or out is not None:
        require_lab()
    for file in (json_file, page):
        if file is not None and str(file) != "-":
            writable_folder(file.parent)
    if out is not None:
        writable_folder(out)


def _publish(found: "Outcome", json_file: Path | None, page: Path | None, out: Path | None) -> None:
    """Print first, as writing a file may fail; then write what was asked for."""
    import json

    from syzygy.core import artifacts
    from syzygy.generation.image_files import save_png
    from syzygy.lab.report import PAGE

    if str(json_file) == "-":
        for line in found.result.get("notes", ()):
            note(line)
        click.echo(json.dumps(found.result))
    else:
        click.echo("\n\n".join(_printed(block) for block in found.summary))
        if json_file is not None:
            artifacts.write_json(json_file, found.result)
    if page is None and out is None:
        return
    sheet = None if found.sheet is None else found.sheet()
    report = found.report(sheet)
    if out is not None:
        if sheet is not None:
            save_png(sheet, out / found.sheet_file, found.record())
        report.write(out, found.result)
        note(f"page: {out / PAGE}")
    if page is not None:
        report.write_page(page)
        note(f"page: {page}")


def _printed(block: "str | Table") -> str:
    """For a terminal: marks of emphasis are left out, columns are aligned."""
    if isinstance(block, str):
        return click.wrap_text(re.sub(r"\*\*", "", block), 120)
    lines = [list(block.header), *map(list, block.rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(str.rjust, line, widths)).rstrip() for line in lines)


def names(text: str | None) -> tuple[str, ...] | None:
    """Names joined by commas."""
    return None if text is None else tuple(name.strip() for name in text.split(","))


def numbers(text: str, option: str, example: str) -> tuple[float, ...]:
    """Numbers joined by commas.

    Raises:
        UserError: something else.
    """
    try:
        return tuple(float(one) for one in text.split(","))
    except ValueError:
        raise UserError(f"{option} {text!r} must be numbers joined by commas, such as {example}.") from None


def named_priors(priors: Sequence[str], controls: Collection[str]) -> dict[str, str]:
    """`NAME=RUN`, or a run by the name of its folder, which may contain a "=".

    Raises:
        UserError: two have the same name, or one has that of a control; a name or a run is empty.
    """
    found: dict[str, str] = {}
    for one in priors:
        name, equals, source = one.partition("=")
        if not equals or Path(one).is_dir():
            name, source = Path(one).name or Path(one).resolve().name, one
        if not name.strip() or not source.strip():
            raise UserError(f"--prior {one!r} must be a run or NAME=RUN, such as mine=runs/prior.")
        if name in controls:
            raise UserError(f"{name!r} is the name of a control: give the prior another one, --prior NAME=RUN.")
        if name in found:
            raise UserError(f"two priors are called {name!r}: give them names, --prior NAME=RUN.")
        found[name] = source
    return found
