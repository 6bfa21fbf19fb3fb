"""`syzygy generate`."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from syzygy.cli.common import Whole, device_option, json_option, progress_bar, seed_option, writable_folder
from syzygy.cli.painting import Painter, painting_options, warnings_as_lines
from syzygy.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

LARGEST_SEED = 2**64 - 1
SHEET, SHEET_COLUMNS = "contact-sheet.png", 8


class Wish(NamedTuple):
    """One picture to paint."""

    prompt: str
    seed: int


@click.command()
@click.argument("prompts", nargs=-1, required=True, metavar="PROMPT…")
@painting_options
@click.option("--num-images", type=Whole(1), default=1, show_default=True, metavar="N", help="Pictures a prompt.")
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("out/generate"), show_default=True, help="Folder to write."
)
@seed_option
@device_option
@json_option
def generate(
    prompts: tuple[str, ...],
    num_images: int,
    batch_size: int,
    out: Path,
    seed: int,
    device: str,
    as_json: bool,
    **settings: Any,
) -> None:
    """Paint pictures of prompts.

    Writes PNG files that say how they were made, and a contact sheet of them. Picture i of a prompt (from 0) has
    seed S + i, so that --seed S+i makes it again alone. No other picture is overwritten.
    """
    import json
    import time

    if seed + num_images - 1 > LARGEST_SEED:
        raise UserError(f"seeds end at {LARGEST_SEED}: choose a smaller one than {seed}.")
    writable_folder(out)
    with warnings_as_lines():
        began = time.perf_counter()
        painter = Painter.load(settings, device)
        ready = time.perf_counter()
        wishes = [Wish(prompt, seed + i) for prompt in prompts for i in range(num_images)]
        paths, images = [], []
        for path, image in _painted(painter, wishes, batch_size, out):
            paths.append(path)
            images.append(image)
        seconds = {"load_seconds": round(ready - began, 3), "paint_seconds": round(time.perf_counter() - ready, 3)}
    sheet = _contact_sheet(images, wishes, num_images, painter.record, out) if len(images) > 1 else None
    if as_json:
        found = [wish._asdict() | {"path": str(path)} for wish, path in zip(wishes, paths, strict=True)]
        click.echo(
            json.dumps({"images": found, "contact_sheet": sheet and str(sheet), "settings": painter.record} | seconds)
        )
        return
    for path in (*paths, *filter(None, [sheet])):
        click.echo(path)


def _painted(
    painter: Painter, wishes: Sequence[Wish], batch_size: int, out: Path
) -> "Iterator[tuple[Path, Image.Image]]":
    """Paint and save batch by batch, so that an interruption loses no picture that is done."""
    import torch

    from syzygy.pictures import place_for, save_png, slug

    batches = [range(start, min(start + batch_size, len(wishes))) for start in range(0, len(wishes), batch_size)]
    with progress_bar("painting", len(batches) * painter.record["steps"]) as advance:
        for batch in batches:
            generators = [torch.Generator().manual_seed(wishes[i].seed) for i in batch]
            images = painter.paint([wishes[i].prompt for i in batch], generators, lambda: advance(1))
            for i, image in zip(batch, images, strict=True):
                prompt, seed = wishes[i]
                own = {"prompt": prompt, "seed": seed, **painter.record}
                path = place_for(out / f"{i:03}-{slug(prompt)}-{seed}.png", own)
                save_png(image, path, own)
                yield path, image


def _contact_sheet(
    images: "Sequence[Image.Image]", wishes: Sequence[Wish], num_images: int, record: Mapping[str, Any], out: Path
) -> Path:
    """A row a prompt; prompts with one picture each fill a square."""
    import math

    from syzygy.pictures import contact_sheet, place_for, save_png

    columns = min(num_images if num_images > 1 else math.ceil(math.sqrt(len(images))), SHEET_COLUMNS)
    rows = [range(start, min(start + columns, len(images))) for start in range(0, len(images), columns)]
    labels = [[f"{wishes[i].prompt} · {wishes[i].seed}" for i in row] for row in rows]
    own = {"pictures": [wish._asdict() for wish in wishes], **record}
    path = place_for(out / SHEET, own)
    save_png(contact_sheet([[images[i] for i in row] for row in rows], labels), path, own)
    return path
