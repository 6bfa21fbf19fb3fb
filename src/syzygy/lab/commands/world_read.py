"""`syzygy world read`."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from syzygy.cli.common import device_option, json_option

if TYPE_CHECKING:
    from syzygy.lab.world.description import Description
    from syzygy.lab.world.reader import Prediction

TOGETHER = 64


@click.command()
@click.argument("images", nargs=-1, required=True, metavar="IMAGE...", type=click.Path(path_type=Path))
@click.option("--says", metavar="CAPTION", help="Judge the pictures against this caption as well.")
@click.option("--model", default="starter", show_default=True, help="The model whose reader reads.")
@device_option
@json_option
def read(images: tuple[Path, ...], says: str | None, model: str, device: str, as_json: bool) -> None:
    """Say what is in pictures of this world: objects with shape, colour, texture and place, and the style.

    x runs to the right and y down, both from 0 to 1. Pictures of anything else are read as if they were of this world.
    """
    import json

    from syzygy.core.model_parts import model_folder
    from syzygy.generation.image_files import open_picture, to_tensor
    from syzygy.lab.world.language import parse_caption
    from syzygy.lab.world.reader import Reader

    reader = Reader.from_pretrained(model_folder(model) / "reader").to(device)
    told = None if says is None else parse_caption(says).description
    found = []
    for start in range(0, len(images), TOGETHER):
        pictures = [to_tensor(open_picture(path)).to(device) for path in images[start : start + TOGETHER]]
        found += [reader.read(picture[None])[0] for picture in pictures]  # sizes may differ
    records = [_record(path, reading, told) for path, reading in zip(images, found, strict=True)]
    if as_json:
        click.echo(json.dumps({"model": model, "says": says, "pictures": records}))
        return
    for record in records:
        _print(record)


def _record(path: Path, reading: "Prediction", told: "Description | None") -> dict[str, Any]:
    """A picture's reading as plain values; with a caption, whether each of its facts holds."""
    from dataclasses import asdict

    from syzygy.lab.world.description import check_facts, extra_things

    things = [
        asdict(thing) | {"confidence": round(confidence, 3)}
        for thing, confidence in zip(reading.things, reading.confidence, strict=True)
    ]
    record: dict[str, Any] = {"path": str(path), "style": reading.style, "things": things}
    if told is not None:
        atoms = check_facts(told, reading)
        record |= {
            "agrees": all(atom.holds for atom in atoms),
            "atoms": [asdict(atom) for atom in atoms],
            "extra": extra_things(told, reading),
        }
    return record


def _print(record: dict[str, Any]) -> None:
    number = len(record["things"])
    click.echo(f"{record['path']}: {number} object{'' if number == 1 else 's'}, {record['style']} style")
    for thing in record["things"]:
        look = f"{thing['colour']} {thing['texture']} {thing['shape']}"
        place = f"x {thing['x']:.2f}  y {thing['y']:.2f}  radius {thing['radius']:.2f}"
        click.echo(f"  {look:<24} {place}  confidence {thing['confidence']:.0%}")
    if "atoms" in record:
        click.echo(f"  {'agrees' if record['agrees'] else 'does not agree'} with the caption")
        for atom in record["atoms"]:
            click.echo(f"    {'yes' if atom['holds'] else 'NO '}  {atom['kind']}: {atom['text']}")
        if record["extra"]:
            click.echo(f"    and {record['extra']} that it does not name")
