"""What every command shares that generates into a folder: batches, files that say how they were made, contact sheet, answer."""

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import click

from syzygy.cli.common import Whole, device_option, json_option, progress_bar, seed_option, stacked
from syzygy.core.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

    from syzygy.cli.generation_options import LoadedModel
    from syzygy.generation.request import GenerationRequest

F = TypeVar("F", bound=Callable[..., Any])

LARGEST_SEED = 2**64 - 1
SHEET, SHEET_COLUMNS = "contact-sheet.png", 8

Cell = tuple["Image.Image", str]
"""A picture of a contact sheet, and its label."""


class ImageRequest(NamedTuple):
    """One image to generate."""

    about: Mapping[str, Any]
    """Its subject, as plain JSON values."""
    name: str
    """Part of its file's name."""
    seed: int
    """The seed of its first candidate; others follow."""


class SavedImage(NamedTuple):
    """An image on disk."""

    about: Mapping[str, Any]
    """Its subject, its own seed, and, for the best of several, its score."""
    path: Path
    image: "Image.Image"

    @property
    def label(self) -> str:
        """Seed and score, for a contact sheet."""
        score = f" · {self.about['score']:.3f}" if "score" in self.about else ""
        return f"{self.about['seed']}{score}"


def gallery_options(folder: str, of: str) -> Callable[[F], F]:
    """`--num-images` (images `of` what), `--best-of`, `--out` (by default `folder`), `--seed`, `--device`, `--json`."""
    options = (
        click.option(
            "--num-images", type=Whole(1), default=1, show_default=True, metavar="N", help=f"Number of images {of}."
        ),
        click.option(
            "--best-of",
            type=Whole(1),
            default=1,
            show_default=True,
            metavar="K",
            help="Generate K candidates for each image and keep the one nearest to the prompt by CLIP (with subjects, to the prediction).",
        ),
        click.option(
            "--out",
            type=click.Path(path_type=Path),
            default=Path(folder),
            show_default=True,
            help="Folder to write the images to.",
        ),
        seed_option,
        device_option,
        json_option,
    )

    return stacked(*options)


def seeds(first: int, images: int, best_of: int) -> list[int]:
    """The seed of each image's first candidate. Without candidates image i has seed `first` + i.

    Raises:
        UserError: they end beyond the largest.
    """
    if first + images * best_of - 1 > LARGEST_SEED:
        raise UserError(f"seeds end at {LARGEST_SEED}: choose a smaller one than {first}.")
    return [first + i * best_of for i in range(images)]


def generate_images(
    loaded: "LoadedModel", request: "GenerationRequest", images: Sequence[ImageRequest], out: Path
) -> Iterator[SavedImage]:
    """Generate the images of a request, and save each batch when it is done, so that an interruption loses no finished image."""
    import torch

    assert len(images) == len(request.rows), "an image for each row of the request"
    numbers = [one.seed + candidate for one in images for candidate in range(request.best_of)]
    batches = -(-len(images) // (request.batch_size or len(images)))
    left = iter(enumerate(images))
    with progress_bar("generating", batches * request.best_of * loaded.record["steps"]) as advance:
        generators = [torch.Generator().manual_seed(number) for number in numbers]
        seeded = replace(request, generator=generators, callback=lambda _: advance(1))
        for output in loaded.model.batches(seeded):
            for place, image in enumerate(output.images):
                row, wanted = next(left)
                about = {**wanted.about, "seed": output.seeds[place]}
                if output.scores is not None:
                    about |= {"best_of": request.best_of, "score": round(float(output.scores[place]), 4)}
                yield _save(image, f"{row:03}-{wanted.name}-{about['seed']}.png", about, loaded.record, out)


def _save(
    image: "Image.Image", name: str, about: Mapping[str, Any], record: Mapping[str, Any], out: Path
) -> SavedImage:
    """Write an image with the record of how it was made, next to any other of this name."""
    from syzygy.generation.image_files import place_for, save_png

    own = {**about, **record}
    path = place_for(out / name, own)
    save_png(image, path, own)
    return SavedImage(about, path, image)


def save_sheet(
    rows: Sequence[Sequence[Cell]], saved: Sequence[SavedImage], record: Mapping[str, Any], out: Path
) -> Path:
    """A contact sheet with the record of its images; rows longer than eight pictures continue below."""
    from syzygy.generation.image_files import contact_sheet, place_for, save_png

    own = {"pictures": [one.about for one in saved], **record}
    short = [row[i : i + SHEET_COLUMNS] for row in rows for i in range(0, len(row), SHEET_COLUMNS)]
    path = place_for(out / SHEET, own)
    save_png(contact_sheet([[c[0] for c in row] for row in short], [[c[1] for c in row] for row in short]), path, own)
    return path


def answer(
    saved: Sequence[SavedImage], files: Mapping[str, Path | None], loaded: "LoadedModel", began: float, as_json: bool
) -> None:
    """Print where the images and other `files` are; in JSON all that is known of them, settings and times.

    Args:
        began: `time.perf_counter()` when the model had been loaded.
    """
    if as_json:
        others = {name: None if path is None else str(path) for name, path in files.items()}
        seconds = {
            "load_seconds": round(loaded.load_seconds, 3),
            "generate_seconds": round(time.perf_counter() - began, 3),
        }
        images = [{**one.about, "path": str(one.path)} for one in saved]
        click.echo(json.dumps({"images": images, **others, "settings": loaded.record, **seconds}))
        return
    for path in (*(one.path for one in saved), *filter(None, files.values())):
        click.echo(path)
