"""`syzygy store show`."""

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from syzygy.cli.common import Whole, json_option, seed_option
from syzygy.cli.store_commands import about_captions
from syzygy.core.wording import counted, printable

if TYPE_CHECKING:
    from PIL import Image

    from syzygy.data.store_view import View

BAR, LINES = 40, 8
"""Characters of the longest bar of a histogram; sample captions that are printed."""
SIDE = 192

EPILOG = """
\b
  syzygy store show store
  syzygy store show store --num 64 --seed 1 --out pairs.png
  syzygy store show store --source /new/place/of/photos
"""


@click.command(epilog=EPILOG)
@click.argument("store", type=click.Path(path_type=Path))
@click.option(
    "--num", type=Whole(1, 1000), default=24, show_default=True, metavar="N", help="Number of pictures to show."
)
@click.option(
    "--source", metavar="SOURCE", help="Where the pictures are now.  [default: where they were when they were embedded]"
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="PNG",
    help="Contact sheet to write.  [default: STORE-pairs.png in this folder]",
)
@seed_option
@json_option
def show(store: Path, num: int, source: str | None, out: Path | None, seed: int, as_json: bool) -> None:
    """Show sample pairs of a store as a contact sheet, with caption lengths, duplicates and columns.

    A store holds embeddings and captions but no pictures, which are read from the source. If the source is gone or has
    changed, the captions are shown alone.
    """
    import json

    from syzygy.data.store import EmbeddingStore
    from syzygy.data.store_view import view

    opened = EmbeddingStore.open(store)
    found = view(opened, num, seed, source)
    sheet = None
    if any(pair.image is not None for pair in found.pairs):
        record = {"store": str(store), "digest": opened.digest, "num": num, "seed": seed}
        sheet = _sheet(found, record, out or Path(f"{store.resolve().name}-pairs.png"))
    if as_json:
        pairs = [{"key": pair.key, "captions": pair.captions, "found": pair.image is not None} for pair in found.pairs]
        about = {"lengths": found.lengths, "captions_per_picture": found.captions_per_picture}
        about |= {"duplicates": found.duplicates, "columns": found.columns}
        click.echo(
            json.dumps(
                {
                    "store": str(store),
                    "pictures": opened.number_of_images,
                    "captions": len(opened),
                    "captions_from": opened.manifest.get("captions_from"),
                    "text_left": opened.manifest.get("text_left"),
                    **about,
                    "pairs": pairs,
                    "missing": found.missing,
                    "contact_sheet": None if sheet is None else str(sheet),
                }
            )
        )
        return
    _print(opened.manifest, found, known=opened.has_contents)
    if found.missing:
        click.echo(f"pictures are missing: {found.missing.rstrip('.')}.")
    if sheet is not None:
        click.echo(f"sample pairs: {sheet}")


def _print(manifest: Any, found: "View", *, known: bool) -> None:
    per = found.captions_per_picture
    click.echo(
        f"{counted(manifest['pictures'], 'picture')} with {counted(manifest['captions'], 'caption')} "
        f"({per['mean']:g} per picture, {per['most']} at most)"
    )
    for line in about_captions(manifest):
        click.echo(line)
    copies, words = found.duplicates["pictures"], found.duplicates["captions"]
    how = "" if known else " (by name: an older version stored no hashes of the files)"
    click.echo(
        f"duplicates: {counted(copies, 'picture')}{how}, {counted(words, 'caption')} with the words of an earlier one"
    )
    lengths = found.lengths
    click.echo(f"{_axis(lengths)}, mean {lengths['mean']:g}")
    most = max(count for _, _, count in lengths["histogram"])
    for first, last, count in lengths["histogram"]:
        click.echo(f"{f'{first}–{last}' if last > first else first:>9} {'█' * round(BAR * count / most)} {count:,}")
    for name, values in found.columns.items():
        click.echo(f"column {name}: {_column(values)}")
    for pair in found.pairs[:LINES]:
        click.echo(printable(f"{pair.key}: {_label(pair.captions)}"))


def _column(values: dict[str, Any]) -> str:
    if values["type"] == "boolean":
        return f"boolean, {values['true']:,} true"
    missing = f", {values['missing']:,} missing" if values["missing"] else ""
    if values["type"] == "text":
        examples = ", ".join(repr(textwrap.shorten(text, 40, placeholder=" …")) for text in values["examples"])
        return f"text, {values['different']:,} different{missing}, such as {examples}"
    if "mean" not in values:
        return "number, missing everywhere"
    return f"number, {values['lowest']:g} to {values['highest']:g}, mean {values['mean']:.4g}{missing}"


def _label(captions: list[str]) -> str:
    more = f" (and {len(captions) - 1} more)" if len(captions) > 1 else ""
    return textwrap.shorten(captions[0], 100, placeholder=" …") + more


def _sheet(found: "View", record: dict[str, Any], out: Path) -> Path:
    """Write a contact sheet of the pairs, with the histogram at its end."""
    from syzygy.cli.image_folder import SHEET_COLUMNS
    from syzygy.generation.image_files import card, contact_sheet, place_for, save_png

    lengths = found.lengths
    cells = [
        (card("not found") if pair.image is None else pair.image, _label(pair.captions)) for pair in found.pairs
    ] + [(_bars([count for _, _, count in lengths["histogram"]]), _axis(lengths))]
    rows = [cells[i : i + SHEET_COLUMNS] for i in range(0, len(cells), SHEET_COLUMNS)]
    path = place_for(out, record)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_png(contact_sheet([[c[0] for c in row] for row in rows], [[c[1] for c in row] for row in rows]), path, record)
    return path


def _axis(lengths: dict[str, Any]) -> str:
    return f"tokens per caption: {lengths['shortest']} to {lengths['longest']}, median {lengths['median']:g}"


def _bars(counts: list[int]) -> "Image.Image":
    """The histogram as a picture."""
    from PIL import Image, ImageDraw

    image = Image.new("RGB", (SIDE, SIDE), "#f4f4f4")
    draw, width = ImageDraw.Draw(image), SIDE / len(counts)
    for i, count in enumerate(counts):
        top = SIDE - round((SIDE - 8) * count / max(counts))
        if count:
            draw.rectangle((round(i * width) + 1, min(top, SIDE - 1), round((i + 1) * width) - 2, SIDE), fill="#4a6fa5")
    return image
