"""`syzygy world sample` and `syzygy world show`."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from syzygy.cli.common import Whole, json_option, progress_bar, seed_option, writable_folder
from syzygy.core.errors import UserError
from syzygy.core.wording import counted

if TYPE_CHECKING:
    from jaxtyping import Float
    from PIL import Image
    from torch import Tensor

    from syzygy.lab.world.description import Description
    from syzygy.lab.world.language import Parsed
    from syzygy.lab.world.scene_source import Pair

METADATA, SETTINGS = "metadata.jsonl", "sample.json"
BATCH_PIXELS = 256 * 64 * 64
GAP = 2

size_option = click.option(
    "--size", type=Whole(16, 1024), default=64, show_default=True, metavar="PX", help="Side of a picture."
)


@click.command()
@click.option("--num", type=Whole(1), required=True, metavar="N", help="Number of pictures.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder to write.")
@seed_option
@size_option
@click.option(
    "--held-out",
    type=click.Choice(["include", "exclude"]),
    default="include",
    show_default=True,
    help="Whether to include scenes that show an unseen composition.",
)
@click.option(
    "--length",
    type=click.Choice(["short", "medium", "long"]),
    default="short",
    show_default=True,
    help="Captions: the decisive sentence alone, or after others (up to 77, or 100 to 300 tokens).",
)
@json_option
def sample(num: int, out: Path, seed: int, size: int, held_out: str, length: str, as_json: bool) -> None:
    """Write scenes and captions as an image folder.

    The folder then holds PNG files and metadata.jsonl: file_name, text (the caption), the scene (things, style,
    background), what the caption tells of it, and where it names what (spans). The file sample.json keeps the settings:
    the same command may be run again, anything else wants another folder.
    """
    import json

    from syzygy.core import artifacts

    settings = {"num": num, "seed": seed, "size": size, "held_out": held_out, "length": length}
    _claim(writable_folder(out), settings)
    artifacts.write_json(out / SETTINGS, settings)
    showing = _write_sample(out, num, size, {"seed": seed, "unseen": held_out == "include", "length": length})
    if as_json:
        found = {"out": str(out), "metadata": str(out / METADATA), "pictures": num, "showing_held_out": showing}
        click.echo(json.dumps(found | {"settings": settings}))
    else:
        click.echo(f"{counted(num, 'picture')} ({showing:,} with an unseen composition) and {METADATA} in {out}")


def _claim(out: Path, settings: Mapping[str, Any]) -> None:
    """Refuse a folder with anything in it but a sample of the same settings, finished or not."""
    from syzygy.core import artifacts

    if not any(out.iterdir()):
        return
    if not (out / SETTINGS).is_file():
        raise UserError(f"{out} holds other files. Choose a new or empty folder.")
    before = artifacts.read_json(out / SETTINGS)
    if before != settings:
        names = [name for name in settings if before.get(name) != settings[name]]
        was = ", ".join(f"{name} {before.get(name)}" for name in names) or "others"
        raise UserError(f"{out} holds a sample of other settings ({was}). Choose another folder.")


def _write_sample(out: Path, num: int, size: int, settings: Mapping[str, Any]) -> int:
    """Write batch by batch, the metadata last; the value is how many scenes show an unseen composition.

    Files move to their places whole, but are not forced to the disk one by one (slow): they can be made again.
    """
    import json
    import os

    from syzygy.core import artifacts
    from syzygy.lab.world.scene import shows_unseen_composition
    from syzygy.lab.world.scene_source import pairs, pictures

    batch = max(BATCH_PIXELS // size**2, 1)
    showing = 0
    lines, png = out / f".{METADATA}", out / ".picture.png"
    with (
        artifacts.writing("the sample", out),
        lines.open("w", encoding="utf-8") as file,
        progress_bar("rendering", num) as advance,
    ):
        for start in range(0, num, batch):
            found = pairs(start=start, number=min(batch, num - start), **settings)
            images = _images(pictures(found, size, chunk=min(batch, 32)))
            for index, (pair, image) in enumerate(zip(found, images, strict=True), start):
                name = f"{index:08}.png"
                image.save(png)
                os.replace(png, out / name)
                file.write(json.dumps(_row(name, pair), ensure_ascii=False) + "\n")
                showing += shows_unseen_composition(pair.scene)
            advance(len(found))
    with artifacts.writing("the metadata", out):
        os.replace(lines, out / METADATA)
    return showing


def _images(pictures: "Float[Tensor, 'B 3 H W']") -> "Iterator[Image.Image]":
    from PIL import Image

    grey_levels = (pictures * 255).round().byte().permute(0, 2, 3, 1)
    return (Image.fromarray(one.numpy()) for one in grey_levels)


def _row(name: str, pair: "Pair") -> dict[str, Any]:
    """A line of the metadata: `things`, `style`, `background` as in the picture, `told` as in the caption."""
    from dataclasses import asdict

    told = asdict(pair.caption.description)
    spans = [asdict(span) for span in pair.caption.spans]
    return {"file_name": name, "text": pair.caption.text, **asdict(pair.scene), "told": told, "spans": spans}


@click.command()
@click.argument("caption")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("out/scene.png"),
    show_default=True,
    help="PNG file to write.",
)
@click.option("--num", type=Whole(1, 64), default=1, show_default=True, metavar="N", help="Scenes, in a grid.")
@seed_option
@size_option
def show(caption: str, out: Path, num: int, seed: int, size: int) -> None:
    """Render a scene that a caption describes, in any language of this world.

    What the caption leaves open is drawn at random. No other picture is overwritten.
    """
    from syzygy.core.randomness import Draw
    from syzygy.generation.image_files import place_for, save_png
    from syzygy.lab.world.language import parse_caption
    from syzygy.lab.world.render import render
    from syzygy.lab.world.scene_sampling import scene_for

    if out.suffix.lower() != ".png":
        raise UserError(f"--out {out} does not end in .png. Name a PNG file.")
    parsed = parse_caption(caption)
    _warn(parsed)
    click.echo(f"understood: {_understood(parsed.description)}")
    scenes = [scene_for(parsed.description, Draw(seed, "show", i)) for i in range(num)]
    image = _grid([one for scene in scenes for one in _images(render([scene], size))])
    record = {"prompt": caption, "seed": seed, "size": size, "num": num}
    writable_folder(out.parent)
    path = place_for(out, record)
    save_png(image, path, record)
    click.echo(path)


def _warn(parsed: "Parsed") -> None:
    for word, near in parsed.unknown.items():
        click.echo(f"warning: this world does not know the word {word!r}; nearest known: {', '.join(near)}.", err=True)
    for word in parsed.unused:
        click.echo(f"warning: {word!r} belongs to no object here and is left out.", err=True)


def _understood(description: "Description") -> str:
    """What will be drawn, in one line, independent of the language read."""
    mentions = [
        " ".join(filter(None, [f"{m.count} ×" if m.count > 1 else "", m.texture, m.colour, m.shape]))
        for m in description.mentions
    ]
    relations = [f"{mentions[p.subject]} {p.relation} {mentions[p.target]}" for p in description.relations]
    style = [f"{description.style} style"] if description.style else []
    return "; ".join([", ".join(mentions), *relations, *style])


def _grid(images: "Sequence[Image.Image]") -> "Image.Image":
    """Pictures of one size side by side, as many rows as columns or one row fewer."""
    from math import ceil, sqrt

    from PIL import Image

    side = images[0].width
    columns = ceil(sqrt(len(images)))
    rows = ceil(len(images) / columns)
    sheet = Image.new("RGB", (columns * (side + GAP) - GAP, rows * (side + GAP) - GAP), "white")
    for i, image in enumerate(images):
        sheet.paste(image, (i % columns * (side + GAP), i // columns * (side + GAP)))
    return sheet
