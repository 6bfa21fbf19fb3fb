"""`syzygy world …`: commands of the embedded world, whose scenes and captions are generated."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from syzygy.cli.common import Whole, device_option, json_option, progress_bar, seed_option, writable_folder
from syzygy.core.errors import UserError
from syzygy.core.wording import counted

if TYPE_CHECKING:
    from jaxtyping import Float
    from PIL import Image
    from torch import Tensor

    from syzygy.lab.world.description import Description
    from syzygy.lab.world.language import Parsed
    from syzygy.lab.world.scene_classifier import Prediction
    from syzygy.lab.world.scene_source import Pair

METADATA, SETTINGS, MASKS = "metadata.jsonl", "sample.json", "masks"
BATCH_PIXELS = 256 * 64 * 64
GAP = 2
READ_BATCH = 64

size_option = click.option(
    "--size", type=Whole(16, 1024), default=64, show_default=True, metavar="PX", help="Width and height of an image."
)


@click.command()
@click.option("--num", type=Whole(1), required=True, metavar="N", help="Number of images.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder to write.")
@seed_option
@size_option
@click.option(
    "--unseen",
    type=click.Choice(["include", "exclude"]),
    default="include",
    show_default=True,
    help="Include or exclude scenes with an unseen composition.",
)
@click.option(
    "--length",
    type=click.Choice(["short", "medium", "long"]),
    default="short",
    show_default=True,
    help="Length of captions: only the sentence that describes the scene, or other sentences before it (up to 77, or 100 to 300 tokens).",
)
@click.option(
    "--subjects",
    is_flag=True,
    help="Write captions in which the word “thing” stands for an object, and the mask of the object, for `syzygy embed --subjects`.",
)
@json_option
def sample(num: int, out: Path, seed: int, size: int, unseen: str, length: str, subjects: bool, as_json: bool) -> None:
    """Write images of scenes with captions to a folder.

    The folder contains PNG files and metadata.jsonl with these keys: file_name, text (the caption), things, style and background (the
    scene), description (what the caption says about it) and spans (where the caption names which object). The file sample.json holds the
    settings: the same command can be run again, other settings need another folder.

    With --subjects, most texts name no shape, colour or texture of one object of the scene ("a thing left of a blue ring"), and these keys
    replace description and spans: words (the caption before), and subjects (the phrase "thing" and the file of the object's mask in masks/).
    """
    import json

    from syzygy.core import artifacts

    settings: dict[str, Any] = {"num": num, "seed": seed, "size": size, "unseen": unseen, "length": length}
    if subjects:  # a sample without is as those of older versions
        settings["subjects"] = True
    _claim(writable_folder(out), settings)
    artifacts.write_json(out / SETTINGS, settings)
    showing = _write_sample(out, num, size, {"seed": seed, "unseen": unseen == "include", "length": length}, subjects)
    if as_json:
        found = {"out": str(out), "metadata": str(out / METADATA), "pictures": num, "showing_unseen": showing}
        click.echo(json.dumps(found | {"settings": settings}))
    else:
        click.echo(f"{counted(num, 'image')} ({showing:,} with an unseen composition) and {METADATA} in {out}")


def _claim(out: Path, settings: Mapping[str, Any]) -> None:
    """Refuse a folder that contains anything else than a sample with the same settings, complete or not."""
    from syzygy.core import artifacts

    if not any(out.iterdir()):
        return
    if not (out / SETTINGS).is_file():
        raise UserError(f"{out} contains other files. Choose a new or empty folder.")
    before = artifacts.read_json(out / SETTINGS)
    if before != settings:
        names = [name for name in {**before, **settings} if before.get(name) != settings.get(name)]
        was = ", ".join(f"{name} {before.get(name)}" for name in names) or "others"
        raise UserError(f"{out} contains a sample with other settings ({was}). Choose another folder.")


def _write_sample(out: Path, num: int, size: int, settings: Mapping[str, Any], subjects: bool) -> int:
    """Write images in batches and the metadata last; returns the number of scenes with an unseen composition.

    Files are moved into place when they are complete. They are not flushed one by one, which is slow: they can be generated again.
    """
    import json
    import os

    from syzygy.core import artifacts
    from syzygy.lab.world.scene import shows_unseen_composition
    from syzygy.lab.world.scene_source import pairs, pictures
    from syzygy.lab.world.scene_subjects import described_pairs

    source = described_pairs if subjects else pairs
    batch = max(BATCH_PIXELS // size**2, 1)
    showing = 0
    lines, png = out / f".{METADATA}", out / ".picture.png"
    with (
        artifacts.writing("the sample", out),
        lines.open("w", encoding="utf-8") as file,
        progress_bar("rendering", num) as advance,
    ):
        for start in range(0, num, batch):
            found = source(start=start, number=min(batch, num - start), **settings)
            images = _images(pictures(found, size, chunk=min(batch, 32)))
            for index, (pair, image) in enumerate(zip(found, images, strict=True), start):
                name = f"{index:08}.png"
                image.save(png)
                os.replace(png, out / name)
                row = (
                    _subject_row(name, pair, out, size, settings["seed"], index)
                    if subjects
                    else _sample_row(name, pair)
                )
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
                showing += shows_unseen_composition(pair.scene)
            advance(len(found))
    with artifacts.writing("the metadata", out):
        os.replace(lines, out / METADATA)
    return showing


def _images(pictures: "Float[Tensor, 'B 3 H W']") -> "Iterator[Image.Image]":
    from PIL import Image

    grey_levels = (pictures * 255).round().byte().permute(0, 2, 3, 1)
    return (Image.fromarray(one.numpy()) for one in grey_levels)


def _sample_row(name: str, pair: "Pair") -> dict[str, Any]:
    """A line of the metadata: `things`, `style` and `background` of the scene, and `description`, what the caption says."""
    from dataclasses import asdict

    description = asdict(pair.caption.description)
    spans = [asdict(span) for span in pair.caption.spans]
    return {
        "file_name": name,
        "text": pair.caption.text,
        **asdict(pair.scene),
        "description": description,
        "spans": spans,
    }


def _subject_row(name: str, pair: "Pair", out: Path, size: int, seed: int, index: int) -> dict[str, Any]:
    """A line of the metadata with a subject, whose mask is written. The draw is that of training on the embedded world."""
    from dataclasses import asdict

    from PIL import Image

    from syzygy.core.randomness import Draw
    from syzygy.lab.world.render import masks
    from syzygy.lab.world.scene_subjects import WORD, subject_pair

    found = subject_pair(pair, Draw(seed, "subject", index))
    row = {"file_name": name, "text": found.text, "words": pair.caption.text, **asdict(pair.scene)}
    if found.thing is None:
        return row | {"subjects": []}
    mask = masks(pair.scene, size)[pair.scene.things.index(found.thing)]
    file = out / MASKS / name
    file.parent.mkdir(exist_ok=True)
    Image.fromarray((mask * 255).round().byte().numpy()).save(file)
    return row | {"subjects": [{"phrase": WORD, "mask": f"{MASKS}/{name}"}]}


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
@click.option(
    "--cut-out", is_flag=True, help="The first object alone, cut out on white: a picture for generate --subject."
)
@seed_option
@size_option
def show(caption: str, out: Path, num: int, cut_out: bool, seed: int, size: int) -> None:
    """Render a scene that a caption describes, in any language of this world.

    What the caption leaves open is random. An image of another scene is never overwritten.
    """
    from syzygy.core.randomness import Draw
    from syzygy.generation.image_files import place_for, save_png
    from syzygy.lab.world.language import parse_caption
    from syzygy.lab.world.render import render
    from syzygy.lab.world.scene_sampling import scene_for
    from syzygy.lab.world.scene_subjects import cut_outs

    if out.suffix.lower() != ".png":
        raise UserError(f"--out {out} does not end in .png. Choose the name of a PNG file.")
    parsed = parse_caption(caption)
    _warn(parsed)
    click.echo(f"understood: {_understood(parsed.description)}")
    scenes = [scene_for(parsed.description, Draw(seed, "show", i)) for i in range(num)]
    pixels = cut_outs([(scene.things[0], scene.style) for scene in scenes], size) if cut_out else render(scenes, size)
    image = _grid([*_images(pixels)])
    record = {"prompt": caption, "seed": seed, "size": size, "num": num} | ({"cut_out": True} if cut_out else {})
    writable_folder(out.parent)
    path = place_for(out, record)
    save_png(image, path, record)
    click.echo(path)


def _warn(parsed: "Parsed") -> None:
    for word, near in parsed.unknown.items():
        click.echo(
            f"warning: this world does not know the word {word!r}; the nearest known words are {', '.join(near)}.",
            err=True,
        )
    for word in parsed.unused:
        click.echo(f"warning: {word!r} belongs to no object of the caption and is ignored.", err=True)


def _understood(description: "Description") -> str:
    """The description in one line, in English whatever the caption's language."""
    mentions = [
        " ".join(filter(None, [f"{m.count} ×" if m.count > 1 else "", m.texture, m.colour, m.shape]))
        for m in description.mentions
    ]
    relations = [f"{mentions[p.subject]} {p.relation} {mentions[p.target]}" for p in description.relations]
    style = [f"{description.style} style"] if description.style else []
    return "; ".join([", ".join(mentions), *relations, *style])


def _grid(images: "Sequence[Image.Image]") -> "Image.Image":
    """Images of one size in a grid with as many rows as columns, or one row fewer."""
    from math import ceil, sqrt

    from PIL import Image

    side = images[0].width
    columns = ceil(sqrt(len(images)))
    rows = ceil(len(images) / columns)
    sheet = Image.new("RGB", (columns * (side + GAP) - GAP, rows * (side + GAP) - GAP), "white")
    for i, image in enumerate(images):
        sheet.paste(image, (i % columns * (side + GAP), i // columns * (side + GAP)))
    return sheet


@click.command()
@click.argument("images", nargs=-1, required=True, metavar="IMAGE...", type=click.Path(path_type=Path))
@click.option("--says", metavar="CAPTION", help="Also compare the images with this caption.")
@click.option("--model", default="starter", show_default=True, help="Model whose reader, a scene classifier, is used.")
@device_option
@json_option
def read(images: tuple[Path, ...], says: str | None, model: str, device: str, as_json: bool) -> None:
    """Predict what images of this world show: objects with shape, colour, texture and position, and the style.

    x points to the right and y down, both from 0 to 1. Images of anything else are read as if they showed this world.
    """
    import json

    from syzygy.core.model_parts import model_folder
    from syzygy.generation.image_files import open_picture, to_tensor
    from syzygy.lab.world.language import parse_caption
    from syzygy.lab.world.reader import Reader

    reader = Reader.from_pretrained(model_folder(model) / "reader").to(device)
    description = None if says is None else parse_caption(says).description
    found = []
    for start in range(0, len(images), READ_BATCH):
        pictures = [to_tensor(open_picture(path)).to(device) for path in images[start : start + READ_BATCH]]
        found += [reader.read(picture[None])[0] for picture in pictures]  # sizes may differ
    records = [_record(path, prediction, description) for path, prediction in zip(images, found, strict=True)]
    if as_json:
        click.echo(json.dumps({"model": model, "says": says, "pictures": records}))
        return
    for record in records:
        _print_record(record)


def _record(path: Path, prediction: "Prediction", description: "Description | None") -> dict[str, Any]:
    """The prediction for an image as plain values and, given a description, whether each of its facts is right."""
    from dataclasses import asdict

    from syzygy.lab.world.description import check_facts, extra_things

    things = [
        asdict(thing) | {"confidence": round(confidence, 3)}
        for thing, confidence in zip(prediction.things, prediction.confidence, strict=True)
    ]
    record: dict[str, Any] = {"path": str(path), "style": prediction.style, "things": things}
    if description is not None:
        atoms = check_facts(description, prediction)
        record |= {
            "agrees": all(atom.holds for atom in atoms),
            "atoms": [asdict(atom) for atom in atoms],
            "extra": extra_things(description, prediction),
        }
    return record


def _print_record(record: dict[str, Any]) -> None:
    click.echo(f"{record['path']}: {counted(len(record['things']), 'object')}, {record['style']} style")
    for thing in record["things"]:
        appearance = f"{thing['colour']} {thing['texture']} {thing['shape']}"
        position = f"x {thing['x']:.2f}  y {thing['y']:.2f}  radius {thing['radius']:.2f}"
        click.echo(f"  {appearance:<24} {position}  confidence {thing['confidence']:.0%}")
    if "atoms" in record:
        click.echo(f"  {'agrees' if record['agrees'] else 'does not agree'} with the caption")
        for atom in record["atoms"]:
            click.echo(f"    {'yes' if atom['holds'] else 'NO '}  {atom['kind']}: {atom['text']}")
        if record["extra"]:
            click.echo(f"    and {counted(record['extra'], 'object')} that the caption does not name")
