"""`syzygy generate`."""

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from syzygy.cli.common import writable_folder
from syzygy.cli.generation_options import load_model, prompt_options, region_options, warnings_as_lines
from syzygy.cli.image_folder import (
    SHEET_COLUMNS,
    ImageRequest,
    SavedImage,
    answer,
    gallery_options,
    generate_images,
    save_sheet,
    seeds,
)
from syzygy.cli.source_arguments import picture
from syzygy.core.errors import UserError

if TYPE_CHECKING:
    from syzygy.core.contracts import Region


@click.command()
@click.argument("prompts", nargs=-1, required=True, metavar="PROMPT…")
@prompt_options
@region_options
@gallery_options("out/generate", "for each prompt")
def generate(
    prompts: tuple[str, ...],
    num_images: int,
    best_of: int,
    batch_size: int,
    out: Path,
    seed: int,
    device: str,
    as_json: bool,
    regions: tuple[str, ...],
    canvas: Path | None,
    mask_blur: float | None,
    style: Path | None,
    **settings: Any,
) -> None:
    """Generate images from prompts.

    Writes PNG files that record how they were made, and a contact sheet. Image i of a prompt (from 0) uses seed S + i;
    --seed S+i makes that image again. With --best-of K, seeds S + i·K to S + i·K + K-1 are tried, and the file records
    which was kept. Files of other images are never overwritten.

    \b
    Place objects with regions:
      syzygy generate "a red star and a blue ring" --canvas canvas.png \\
        --region "#ff0000=a red star" --region "#0000ff=a blue ring"
    """
    from syzygy.generation.image_files import slug
    from syzygy.generation.request import GenerationRequest
    from syzygy.regions.canvas import recorded

    own_seeds = seeds(seed, num_images, best_of)
    writable_folder(out)
    with warnings_as_lines():
        placed = _regions(prompts, regions, canvas, mask_blur)
        reference = None if style is None else picture(style)
        loaded = load_model(settings, device)
        began = time.perf_counter()
        own = {name: settings[name] if settings[name] is not None else loaded.model.defaults[name]
               for name in ("region_strength", "style_guidance")}  # fmt: skip
        if placed is not None:
            strength = own["region_strength"]
            loaded = loaded.recording(regions=[recorded(one) for one in placed], region_strength=strength)
        if reference is not None:
            loaded = loaded.recording(style=reference.about)
            if own["style_guidance"] is not None:
                loaded = loaded.recording(style_guidance=own["style_guidance"])
        images = [ImageRequest({"prompt": prompt}, slug(prompt), own) for prompt in prompts for own in own_seeds]
        request = GenerationRequest.from_keywords(
            prompts=[one.about["prompt"] for one in images],
            best_of=best_of,
            batch_size=batch_size,
            regions=placed,
            style=reference and reference.image,
            **loaded.settings,
        )
        loaded.model.warn_of(prompts)
        saved = list(generate_images(loaded, request, images, out))
    sheet = None
    if len(saved) > 1:
        sheet = save_sheet(_rows(saved, num_images, placed), saved, loaded.record, out)
    answer(saved, {"contact_sheet": sheet}, loaded, began, as_json)


def _regions(
    prompts: Sequence[str], specs: Sequence[str], canvas: Path | None, blur: float | None
) -> "list[Region] | None":
    """The regions, whose phrases are found in every prompt before anything is loaded."""
    from syzygy.regions.canvas import regions_of
    from syzygy.regions.phrases import places

    if not specs:
        if canvas is not None or blur is not None:
            raise UserError(
                "--canvas and --mask-blur are for regions: add --region '#ff0000=a red star', or leave them out."
            )
        return None
    found = regions_of(specs, canvas, blur=blur or 0.0)
    for prompt in prompts:
        for region in found:
            places(prompt, region.phrase)
    return found


def _rows(saved: Sequence[SavedImage], num_images: int, regions: "Sequence[Region] | None") -> list[list[Any]]:
    """The contact sheet's rows: one for each prompt, with the regions first; prompts with one image each fill a square."""
    from syzygy.regions.canvas import drawn

    columns = num_images if num_images > 1 else min(math.ceil(math.sqrt(len(saved))), SHEET_COLUMNS)
    cells = [(one.image, f"{one.about['prompt']} · {one.label}") for one in saved]
    first = [] if regions is None else [(drawn(regions), "regions")]
    return [first + cells[start : start + columns] for start in range(0, len(cells), columns)]
