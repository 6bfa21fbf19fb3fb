"""`syzygy generate`."""

import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from syzygy.cli.common import Whole, device_option, json_option, progress_bar, seed_option, writable_folder
from syzygy.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

    from syzygy.api import TextToImage

LARGEST_SEED = 2**64 - 1
SHEET, SHEET_COLUMNS = "contact-sheet.png", 8


class Wish(NamedTuple):
    """One picture to paint."""

    prompt: str
    seed: int


@click.command()
@click.argument("prompts", nargs=-1, required=True, metavar="PROMPT…")
@click.option("--model", default="starter", show_default=True, help="A model that comes with syzygy, or a folder.")
@click.option("--prior", metavar="RUN", help="Another prior: the folder of a training run, or of its weights.")
@click.option("--num-images", type=Whole(1), default=1, show_default=True, metavar="N", help="Pictures a prompt.")
@click.option("--steps", type=Whole(1), metavar="N", help="Sampling steps. Default: what suits the model.")
@click.option("--guidance-scale", type=float, help="Guidance; 1 means off. Default: what suits the model.")
@click.option("--sampler", default="dpm++2m", show_default=True, help="euler, heun or dpm++2m.")
@click.option("--negative-prompt", metavar="TEXT", help="What to move away from.")
@click.option("--conditions", default="image,text", show_default=True, help="What the decoder reads: one or both.")
@click.option("--batch-size", type=Whole(1), default=16, show_default=True, metavar="N", help="Pictures at a time.")
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("out/generate"), show_default=True, help="Folder to write."
)
@seed_option
@device_option
@json_option
def generate(
    prompts: tuple[str, ...],
    model: str,
    prior: str | None,
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
        from syzygy import artifact
        from syzygy.api import TextToImage

        began = time.perf_counter()
        loaded = TextToImage.from_pretrained(model, prior=prior, device=device)
        record = _resolved(settings, loaded.defaults) | {"model": model, "prior": prior}
        record |= {"fingerprints": loaded.fingerprints(), "versions": artifact.versions()}
        ready = time.perf_counter()
        wishes = [Wish(prompt, seed + i) for prompt in prompts for i in range(num_images)]
        paths, images = [], []
        for path, image in _painted(loaded, wishes, record, batch_size, out):
            paths.append(path)
            images.append(image)
        seconds = {"load_seconds": round(ready - began, 3), "paint_seconds": round(time.perf_counter() - ready, 3)}
    sheet = _contact_sheet(images, wishes, num_images, record, out) if len(images) > 1 else None
    if as_json:
        found = [wish._asdict() | {"path": str(path)} for wish, path in zip(wishes, paths, strict=True)]
        click.echo(json.dumps({"images": found, "contact_sheet": sheet and str(sheet), "settings": record} | seconds))
        return
    for path in (*paths, *filter(None, [sheet])):
        click.echo(path)


def _resolved(settings: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that make a picture, with the model's own where nothing was said."""
    steps, scale = settings["steps"], settings["guidance_scale"]
    return dict(settings) | {
        "steps": defaults["num_inference_steps"] if steps is None else steps,
        "guidance_scale": defaults["guidance_scale"] if scale is None else scale,
        "conditions": [name.strip() for name in settings["conditions"].split(",")],
    }


def _painted(
    model: "TextToImage", wishes: Sequence[Wish], record: Mapping[str, Any], batch_size: int, out: Path
) -> "Iterator[tuple[Path, Image.Image]]":
    """Paint and save batch by batch, so that an interruption loses no picture that is done."""
    import torch

    from syzygy.pictures import place_for, save_png, slug

    batches = [range(start, min(start + batch_size, len(wishes))) for start in range(0, len(wishes), batch_size)]
    with progress_bar("painting", len(batches) * record["steps"]) as advance:
        for batch in batches:
            output = model(
                [wishes[i].prompt for i in batch],
                negative_prompt=record["negative_prompt"],
                num_inference_steps=record["steps"],
                guidance_scale=record["guidance_scale"],
                generator=[torch.Generator().manual_seed(wishes[i].seed) for i in batch],
                sampler=record["sampler"],
                conditions=record["conditions"],
                callback=lambda _: advance(1),
            )
            for i, image in zip(batch, output.images, strict=True):
                prompt, seed = wishes[i]
                own = {"prompt": prompt, "seed": seed, **record}
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


@contextmanager
def warnings_as_lines() -> Iterator[None]:
    """Each warning is one line on standard error, once, without a place in the code."""

    shown = set()

    def show(message: Warning | str, *_where: Any, **_more: Any) -> None:
        line = f"warning: {' '.join(str(message).split())}"
        if line not in shown:
            print(line, file=sys.stderr)
        shown.add(line)

    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)  # Python's own memory ends whenever a library changes filters
        warnings.showwarning = show
        yield
