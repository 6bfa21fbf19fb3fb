"""`syzygy vary`."""

import time
from pathlib import Path
from typing import Any

import click

from syzygy.cli.common import writable_folder
from syzygy.cli.generation_options import image_options, load_model, warnings_as_lines
from syzygy.cli.image_folder import ImageRequest, answer, gallery_options, generate_images, save_sheet, seeds
from syzygy.cli.source_arguments import picture


@click.command()
@click.argument("images", nargs=-1, required=True, metavar="IMAGE…", type=click.Path(path_type=Path))
@image_options
@gallery_options("out/vary", "for each given image")
def vary(
    images: tuple[Path, ...],
    num_images: int,
    best_of: int,
    batch_size: int,
    out: Path,
    seed: int,
    device: str,
    as_json: bool,
    **settings: Any,
) -> None:
    """Generate variations of images: what CLIP sees in them stays, everything else comes from new noise.

    Writes PNG files that record how they were made, and a contact sheet that begins with the given image. Variation i of an
    image (from 0) has seed S + i; with --best-of K, seeds S + i·K to S + i·K + K-1 are tried. The decoder reads the image's
    CLIP embedding and no text.
    """
    from syzygy.generation.image_files import slug
    from syzygy.generation.request import GenerationRequest

    own_seeds = seeds(seed, num_images, best_of)
    given = [picture(image) for image in images]
    writable_folder(out)
    with warnings_as_lines():
        loaded = load_model(settings, device)
        began = time.perf_counter()
        wanted = [ImageRequest({"variation_of": one.about}, slug(one.name), own) for one in given for own in own_seeds]
        request = GenerationRequest.from_keywords(
            mixtures=[[(one.source, 1.0)] for one in given],
            num_images=num_images,
            best_of=best_of,
            batch_size=batch_size,
            **loaded.settings,
        )
        saved = list(generate_images(loaded, request, wanted, out))
    cells = [(one.image, one.label) for one in saved]
    rows = [[one.cell(), *cells[i * num_images : (i + 1) * num_images]] for i, one in enumerate(given)]
    answer(saved, {"contact_sheet": save_sheet(rows, saved, loaded.record, out)}, loaded, began, as_json)
