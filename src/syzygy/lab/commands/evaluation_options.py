"""What the commands share that evaluate pictures of the embedded world: places for results, readings that are kept, files."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from syzygy.cli.common import paced, writable_folder
from syzygy.core.errors import UserError

if TYPE_CHECKING:
    from syzygy.generation.text_to_image import TextToImage
    from syzygy.lab.evaluate.predictions import Series
    from syzygy.lab.world.reader import Prediction


def check_places(json_file: Path | None, out: Path | None) -> None:
    """Fail before the work, not after it."""
    if json_file is not None and str(json_file) != "-":
        writable_folder(json_file.parent)
    if out is not None:
        writable_folder(out)


def named_priors(priors: Sequence[str], controls: Collection[str]) -> dict[str, str]:
    """`NAME=RUN`, or a run under the name of its folder, which may hold a "=".

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


def read_pictures(
    model: "TextToImage", series: "Sequence[Series]", out: Path | None, command: str, settings: Mapping[str, Any]
) -> "dict[str, list[Prediction]]":
    """Paint and read all of it, or what an interrupted command left."""
    from syzygy.lab.evaluate import predictions

    reader = model.reader()
    kept = predictions.Kept(out, predictions.about(model, reader, {"evaluation": command, "settings": dict(settings)}))
    with paced("painting", sum(one.number for one in series), "pictures") as advance:
        return predictions.read(series, reader, kept, lambda done: advance(float(done)))


def write_json(file: Path | None, found: Mapping[str, Any]) -> None:
    import json

    from syzygy.core import artifacts

    if str(file) == "-":
        click.echo(json.dumps(found))
    elif file is not None:
        artifacts.write_json(file, found)


def write_page(out: Path, found: Mapping[str, Any], page: str) -> None:
    from syzygy.core import artifacts

    artifacts.write_json(out / "results.json", found)
    artifacts.write_bytes(out / "index.html", page.encode())
    click.echo(f"page: {out / 'index.html'}", err=True)


def write_svg(path: Path, figure: str) -> None:
    """The SVG inside a figure of a page, as a file of its own."""
    from syzygy.core import artifacts

    inside = figure[figure.index("<svg ") + 5 : figure.index("</svg>") + 6]
    text = f'<svg xmlns="http://www.w3.org/2000/svg" font-family="system-ui, sans-serif" font-size="12" {inside}\n'
    artifacts.write_bytes(path, text.encode())
