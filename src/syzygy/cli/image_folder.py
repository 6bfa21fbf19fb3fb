"""What every command shares that paints into a folder: batches, files that say how they were made, contact sheet, answer."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import click

from syzygy.cli.common import Whole, device_option, json_option, progress_bar, seed_option, stacked
from syzygy.core.errors import UserError

if TYPE_CHECKING:
    import torch
    from PIL import Image

    from syzygy.generation.pipeline import PipelineOutput

F = TypeVar("F", bound=Callable[..., Any])

LARGEST_SEED = 2**64 - 1
SHEET, SHEET_COLUMNS = "contact-sheet.png", 8

Paint = Callable[["Sequence[int]", "Sequence[torch.Generator]", Callable[[], None]], "PipelineOutput"]
"""Which wishes, a generator for each of their candidates, what to call after each step → pictures."""
Cell = tuple["Image.Image", str]
"""A picture of a contact sheet, and its label."""


class Wish(NamedTuple):
    """One picture to paint."""

    about: Mapping[str, Any]
    """What it is of, as plain JSON values."""
    name: str
    """What its file is called after."""
    seed: int
    """Of its first candidate; others follow."""


class Kept(NamedTuple):
    """A picture on disk."""

    about: Mapping[str, Any]
    """What it is of, its own seed, and, as the best of several, its score."""
    path: Path
    image: "Image.Image"

    @property
    def told(self) -> dict[str, Any]:
        """For the answer in JSON."""
        return {**self.about, "path": str(self.path)}

    @property
    def mark(self) -> str:
        """Seed and score, for a label."""
        score = f" · {self.about['score']:.3f}" if "score" in self.about else ""
        return f"{self.about['seed']}{score}"


def gallery_options(folder: str, of: str) -> Callable[[F], F]:
    """`--num-images` (pictures `of` what), `--best-of`, `--out` (by default `folder`), `--seed`, `--device`, `--json`."""
    options = (
        click.option("--num-images", type=Whole(1), default=1, show_default=True, metavar="N", help=f"Pictures {of}."),
        click.option(
            "--best-of",
            type=Whole(1),
            default=1,
            show_default=True,
            metavar="K",
            help="Paint K for each picture, keep the one that CLIP finds nearest to what was asked for.",
        ),
        click.option(
            "--out", type=click.Path(path_type=Path), default=Path(folder), show_default=True, help="Folder to write."
        ),
        seed_option,
        device_option,
        json_option,
    )

    return stacked(*options)


def seeds(first: int, pictures: int, best_of: int) -> list[int]:
    """The seed of each picture's first candidate. Without candidates picture i has seed `first` + i.

    Raises:
        UserError: they end beyond the largest.
    """
    if first + pictures * best_of - 1 > LARGEST_SEED:
        raise UserError(f"seeds end at {LARGEST_SEED}: choose a smaller one than {first}.")
    return [first + i * best_of for i in range(pictures)]


def painted(
    wishes: Sequence[Wish],
    paint: Paint,
    record: Mapping[str, Any],
    out: Path,
    *,
    batch_size: int,
    best_of: int = 1,
) -> Iterator[Kept]:
    """Paint and save batch by batch, so that an interruption loses no picture that is done.

    `record` is all that decides a picture but what it is of and its seed; "steps" among it.
    """
    import torch

    starts = range(0, len(wishes), batch_size)
    with progress_bar("painting", len(starts) * best_of * record["steps"]) as advance:
        for start in starts:
            rows = range(start, min(start + batch_size, len(wishes)))
            numbers = [wishes[row].seed + candidate for row in rows for candidate in range(best_of)]
            output = paint(rows, [torch.Generator().manual_seed(number) for number in numbers], lambda: advance(1))
            for place, row in enumerate(rows):
                about = {**wishes[row].about, "seed": output.seeds[place]}
                if output.scores is not None:
                    about |= {"best_of": best_of, "score": round(float(output.scores[place]), 4)}
                yield save(output.images[place], f"{row:03}-{wishes[row].name}-{about['seed']}.png", about, record, out)


def save(image: "Image.Image", name: str, about: Mapping[str, Any], record: Mapping[str, Any], out: Path) -> Kept:
    """Write a picture that tells how it was made, beside any other of this name."""
    from syzygy.generation.image_files import place_for, save_png

    own = {**about, **record}
    path = place_for(out / name, own)
    save_png(image, path, own)
    return Kept(about, path, image)


def save_sheet(rows: Sequence[Sequence[Cell]], record: Mapping[str, Any], out: Path) -> Path:
    """A contact sheet; rows longer than eight pictures go on below."""
    from syzygy.generation.image_files import contact_sheet, place_for, save_png

    short = [row[i : i + SHEET_COLUMNS] for row in rows for i in range(0, len(row), SHEET_COLUMNS)]
    path = place_for(out / SHEET, record)
    save_png(
        contact_sheet([[c[0] for c in row] for row in short], [[c[1] for c in row] for row in short]), path, record
    )
    return path


def tell(kept: Sequence[Kept], files: Mapping[str, Path | None], more: Mapping[str, Any], as_json: bool) -> None:
    """Print where the pictures and other `files` are; in JSON all that is known of them, and `more`."""
    if as_json:
        others = {name: None if path is None else str(path) for name, path in files.items()}
        click.echo(json.dumps({"images": [one.told for one in kept], **others, **more}))
        return
    for path in (*(one.path for one in kept), *filter(None, files.values())):
        click.echo(path)
