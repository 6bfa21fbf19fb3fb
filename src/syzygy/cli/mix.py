"""`syzygy mix`."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from syzygy.cli.common import Whole, writable_folder
from syzygy.cli.generation_options import LoadedModel, image_options, load_model, warnings_as_lines
from syzygy.cli.image_folder import (
    ImageRequest,
    SavedImage,
    answer,
    gallery_options,
    generate_images,
    save_sheet,
    seeds,
)
from syzygy.cli.source_arguments import Given, source, weights
from syzygy.core.errors import UserError

if TYPE_CHECKING:
    from syzygy.generation.request import GenerationRequest

ANIMATION = "animation.png"
EPILOG = """
\b
SOURCE is a text or the file of a picture, with a weight if you like:
  syzygy mix "a red circle"@0.6 photo.png@0.4
  syzygy mix "a red circle" photo.png --frames 12
Weights are from 0 to 1, and only their proportions count. Without weights all sources count the same. A source that names
a file is a picture. One that looks like the file name of a picture (photo.png, photo.heic, photos/cat.xyz) must exist; it
is never read as a text. A text may contain an @; if it ends in @ and a number, add its weight: "…@5@1".
"""


@click.command(epilog=EPILOG)
@click.argument("sources", nargs=-1, required=True, metavar="SOURCE…")
@click.option(
    "--frames",
    type=Whole(2),
    metavar="N",
    help="Generate N images on the way from the first of two sources to the second.",
)
@image_options
@gallery_options("out/mix", "of the mixture")
def mix(
    sources: tuple[str, ...],
    frames: int | None,
    num_images: int,
    best_of: int,
    batch_size: int,
    out: Path,
    seed: int,
    device: str,
    as_json: bool,
    **settings: Any,
) -> None:
    """Generate images of mixtures of pictures and texts.

    The prior turns texts into image embeddings, CLIP does it with pictures, and the embeddings are mixed on the sphere.
    Writes PNG files that record how they were made, and a contact sheet that begins with the sources. Image i (from 0) has
    seed S + i; with --best-of K, seeds S + i·K to S + i·K + K-1 are tried. With --frames, all frames have seed S, and an
    animated PNG runs there and back. The decoder reads the mixed embedding and no text.
    """
    own_seeds = seeds(seed, num_images, best_of)
    given = [source(one) for one in sources]
    shares = weights(given) if frames is None else _check_ends(given, num_images, best_of)
    writable_folder(out)
    with warnings_as_lines():
        loaded = load_model(settings, device)
        began = time.perf_counter()
        loaded.model.warn_of([one.text for one in given if one.text is not None])
        if frames is None:
            request, images = _mixture(given, shares, own_seeds, loaded, best_of, batch_size)
        else:
            request, images = _way(given, frames, seed, loaded, batch_size)
        saved = list(generate_images(loaded, request, images, out))
    answer(saved, _together(given, shares, saved, loaded, out), loaded, began, as_json)


def _check_ends(given: Sequence[Given], num_images: int, best_of: int) -> list[float]:
    """Refuse what --frames cannot do; the value is no weights."""
    if len(given) != 2:
        raise UserError(f"--frames leads from one source to another; {len(given)} given, 2 needed.")
    if any(one.weight is not None for one in given):
        raise UserError("--frames leads from the first source to the second: leave the weights out.")
    if (num_images, best_of) != (1, 1):
        raise UserError(
            "frames share one noise: --num-images and --best-of have no effect with --frames, leave them out."
        )
    return []


def _name(given: Sequence[Given]) -> str:
    from syzygy.generation.image_files import slug

    return slug(" ".join(slug(one.name, 18) for one in given))


def _mixture(
    given: Sequence[Given],
    shares: Sequence[float],
    own_seeds: Sequence[int],
    loaded: LoadedModel,
    best_of: int,
    batch_size: int,
) -> "tuple[GenerationRequest, list[ImageRequest]]":
    from syzygy.generation.request import GenerationRequest

    pairs = list(zip(given, shares, strict=True))
    request = GenerationRequest.from_keywords(
        mixtures=[[(one.source, weight) for one, weight in pairs]],
        num_images=len(own_seeds),
        best_of=best_of,
        batch_size=batch_size,
        **loaded.settings,
    )
    about = {"sources": [{**one.about, "weight": weight} for one, weight in pairs]}
    return request, [ImageRequest(about, _name(given), own) for own in own_seeds]


def _way(
    given: Sequence[Given], frames: int, seed: int, loaded: LoadedModel, batch_size: int
) -> "tuple[GenerationRequest, list[ImageRequest]]":
    import torch

    generator = torch.Generator().manual_seed(seed)
    first, last = (one.source for one in given)
    request = loaded.model.interpolation(
        first, last, frames, batch_size=batch_size, generator=[generator], **loaded.settings
    )
    about = {"sources": [one.about for one in given], "frames": frames}
    return request, [ImageRequest({**about, "frame": i}, _name(given), seed) for i in range(frames)]


def _together(
    given: Sequence[Given], weights: Sequence[float], saved: Sequence[SavedImage], loaded: LoadedModel, out: Path
) -> dict[str, Path | None]:
    """The contact sheet, sources first; and for frames, which have no weights, the animation."""
    from syzygy.generation.image_files import place_for, save_animation
    from syzygy.generation.mixing import shares

    if weights:
        parts = [one.cell(f"{share:.0%}") for one, share in zip(given, shares(weights), strict=True)]
        cells = [*parts, *((one.image, one.label) for one in saved)]
        return {"contact_sheet": save_sheet([cells], saved, loaded.record, out)}
    cells = [(one.image, f"{i / (len(saved) - 1):.0%}") for i, one in enumerate(saved)]
    sheet = save_sheet([[given[0].cell(), *cells, given[1].cell()]], saved, loaded.record, out)
    record = {"pictures": [one.about for one in saved], **loaded.record}
    path = place_for(out / ANIMATION, record)
    save_animation([one.image for one in saved], path, record)
    return {"contact_sheet": sheet, "animation": path}
