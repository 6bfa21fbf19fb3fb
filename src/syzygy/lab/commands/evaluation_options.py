"""What the commands `syzygy evaluate …` share: options, and how results are printed and written."""

import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from syzygy.cli.common import Whole, device_option, note, seed_option, stacked, writable_folder
from syzygy.core.errors import UserError

if TYPE_CHECKING:
    from syzygy.core.contracts import Prior
    from syzygy.generation.text_to_image import TextToImage
    from syzygy.lab.evaluate.harness import EvaluationContext, Outcome, SamplingConfig
    from syzygy.lab.report import Table

Option = Callable[[Any], Any]
C = TypeVar("C", bound="SamplingConfig")
PARTS = ("text_encoder", "llm", "clip", "prior", "decoder", "experts", "device")
"""Options that say what a model is loaded with."""


class Names(click.ParamType):
    """Names joined by commas."""

    name = "names"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        return tuple(name.strip() for name in value.split(","))


class Numbers(click.ParamType):
    """Numbers joined by commas."""

    name = "numbers"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, ...]:
        try:
            return tuple(float(one) for one in value.split(","))
        except ValueError:
            self.fail(f"{value!r} must be numbers joined by commas, such as 0.5,1,2.", param, ctx)


@dataclass(frozen=True)
class EvaluationRequest:
    """What a command was called with."""

    model: str
    parts: Mapping[str, Any]
    """Arguments of `TextToImage.from_pretrained`."""
    settings: dict[str, Any]
    """The values of all other options."""
    out: Path | None

    def load(self) -> "TextToImage":
        """The model."""
        from syzygy.generation.text_to_image import TextToImage

        return TextToImage.from_pretrained(self.model, **self.parts)

    def context(
        self, name: str, config: type[C], model: "TextToImage | None" = None, **more: Any
    ) -> "EvaluationContext[C]":
        """Settings, and then the model, which is loaded unless it is given; `more` are further settings."""
        from syzygy.core.config import parse
        from syzygy.lab.evaluate.harness import EvaluationContext

        settings = parse(config, self.settings | more, "options")
        record = {part: self.parts[part] for part in ("text_encoder", "experts") if part in self.parts}
        record = {part: source for part, source in record.items() if source is not None or part == "experts"}
        return EvaluationContext(name, model or self.load(), settings, self.out, record)

    def priors(self, model: "TextToImage", controls: Collection[str], sources: Sequence[str]) -> "dict[str, Prior]":
        """The priors of --prior, for a model."""
        from syzygy.prior.prior_loading import load_prior

        named = named_runs(sources, controls)
        return {name: load_prior(source, model.clip, self.parts["device"]) for name, source in named.items()}


FILE = click.Path(dir_okay=False, path_type=Path)
FOLDER = click.Path(file_okay=False, path_type=Path)


def setting(name: str, help: str, default: Any = None, **more: Any) -> Option:
    """An option whose help shows its default, if it has one."""
    return click.option(name, default=default, show_default=default is not None, help=help, **more)


OUTPUTS = (
    setting(
        "--out",
        "Write results.json, a page (index.html), a report in Markdown and figures. The predictions for generated images are kept there too, "
        "so that an interrupted evaluation resumes.",
        type=FOLDER,
        metavar="FOLDER",
    ),
    click.option(
        "--json",
        "json_file",
        type=click.Path(dir_okay=False, allow_dash=True, path_type=Path),
        metavar="FILE",
        help="Write the results as JSON; - prints them and nothing else.",
    ),
    setting("--page", "Write the page to this file.", type=FILE, metavar="FILE"),
)


def sampling_options(prompts: int, steps: int, *, least: int = 2, help: str = "") -> tuple[Option, ...]:
    """Options of every evaluation that generates images.

    Args:
        help: of --prompts.
    """
    text = help or "Prompts of each category, seen and unseen each, or as many as exist."
    return (
        setting("--model", "A model that comes with syzygy, or a folder.", "starter"),
        setting("--prompts", text, prompts, type=Whole(least)),
        setting("--steps", "Sampling steps.", steps, type=Whole(1)),
        setting("--guidance-scale", "Guidance; 1 means off.", 3.0, type=float),
    )


def evaluation(
    *options: Option, quick: Mapping[str, int] | None = None
) -> Callable[[Callable[[EvaluationRequest], "Outcome"]], click.Command]:
    """A command from a function that gets the request and returns what was found.

    Args:
        quick: the settings of --quick, which the command then has.
    """
    settings = dict(quick or {})
    numbers = ", ".join(f"{value} {name.replace('_', ' ')}" for name, value in settings.items())
    flag = click.option("--quick", is_flag=True, help=f"A first look, with wide intervals: use {numbers}.")

    def decorate(function: Callable[[EvaluationRequest], "Outcome"]) -> click.Command:
        @click.pass_context
        @functools.wraps(function)
        def command(
            ctx: click.Context, json_file: Path | None, page: Path | None, out: Path | None, **values: Any
        ) -> None:
            for name, value in settings.items() if values.pop("quick", False) else ():
                if ctx.get_parameter_source(name) == click.core.ParameterSource.COMMANDLINE:
                    raise click.UsageError(f"--quick sets --{name.replace('_', '-')} itself: give one of the two.")
                values[name] = value
            _check_places(json_file, page, out)
            parts = {name: values.pop(name) for name in PARTS if name in values}
            if "download" in values:
                parts["local_files_only"] = not values.pop("download")
            request = EvaluationRequest(values.pop("model", ""), parts, values, out)
            _publish(function(request), json_file, page, out)

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
        return block.replace("**", "")
    lines = [block.header, *block.rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    sides = [str.ljust if place < block.first_number else str.rjust for place in range(len(widths))]
    aligned = [
        "  ".join(side(cell, width) for side, cell, width in zip(sides, line, widths, strict=True)).rstrip()
        for line in lines
    ]
    return "\n".join([*[block.caption] * bool(block.caption), *aligned])


def named_runs(sources: Sequence[str], controls: Collection[str], what: str = "prior") -> dict[str, str]:
    """`NAME=RUN`, or a run by the name of its folder, which may contain a "=".

    Args:
        sources: the values of an option.
        controls: names that none may have.
        what: a prior (of --prior) or an adapter (of --against).

    Raises:
        UserError: two have the same name, or one has that of a control; a name or a run is empty.
    """
    option = "--prior" if what == "prior" else "--against"
    found: dict[str, str] = {}
    for one in sources:
        name, equals, source = one.partition("=")
        if not equals or Path(one).is_dir():
            name, source = Path(one).name or Path(one).resolve().name, one
        if not name.strip() or not source.strip():
            raise UserError(f"{option} {one!r} must be a run or NAME=RUN, such as mine=runs/{what}.")
        if name in controls:
            raise UserError(f"{name!r} is the name of a control: give the {what} another one, {option} NAME=RUN.")
        if name in found:
            raise UserError(f"two {what}s are called {name!r}: give them names, {option} NAME=RUN.")
        found[name] = source
    return found
