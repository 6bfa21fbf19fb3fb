"""`syzygy generate`."""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from syzygy.cli.common import writable_folder
from syzygy.cli.generation_options import (
    load_model,
    pixel_options,
    prompt_options,
    region_options,
    subject_options,
    warnings_as_lines,
)
from syzygy.cli.image_folder import (
    SHEET_COLUMNS,
    Cell,
    ImageRequest,
    SavedImage,
    answer,
    gallery_options,
    generate_images,
    save_sheet,
    seeds,
)
from syzygy.cli.source_arguments import Given, GivenSubject, layout_picture, picture, pixel_pictures, subject_pictures
from syzygy.core.errors import UserError

if TYPE_CHECKING:
    from syzygy.core.contracts import Region


@click.command()
@click.argument("prompts", nargs=-1, required=True, metavar="PROMPT…")
@prompt_options
@region_options
@subject_options
@pixel_options
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
    style_content: str | None,
    subjects: tuple[str, ...],
    layout: Path | None,
    image: Path | None,
    mask: Path | None,
    depth: Path | None,
    **settings: Any,
) -> None:
    """Generate images from prompts, or change an image.

    Writes PNG files that record how they were made, and a contact sheet. Image i of a prompt (from 0) uses seed S + i;
    --seed S+i makes that image again. With --best-of K, seeds S + i·K to S + i·K + K-1 are tried, and the file records
    which was kept. Files of other images are never overwritten.

    \b
    Place objects with regions:
      syzygy generate "a red star and a blue ring" --canvas canvas.png \\
        --region "#ff0000=a red star" --region "#0000ff=a blue ring"

    \b
    Show your dog, with a λ-ECLIPSE prior:
      syzygy generate "a dog wearing sunglasses" --model kandinsky-2.2 \\
        --prior ECLIPSE-Community/Lambda-ECLIPSE-Prior-v1.0 --subject "dog=rex.png"

    \b
    Change an image, or repaint it where a mask is white:
      syzygy generate "a green heart" --image heart.png --strength 0.6
      syzygy generate "a green heart" --image scene.png --mask mask.png
    """
    from syzygy.generation.image_files import slug
    from syzygy.generation.request import GenerationRequest

    if style is None and style_content is not None:
        raise UserError("--style-content describes a style reference: give it with --style, or leave it out.")
    own_seeds = seeds(seed, num_images, best_of)
    writable_folder(out)
    with warnings_as_lines():
        given = GivenInputs(
            _regions(prompts, regions, canvas, mask_blur),
            style and picture(style),
            style_content,
            subject_pictures(subjects, prompts),
            layout and layout_picture(layout),
            pixel_pictures(image=image, mask=mask, depth=depth),
        )
        loaded = load_model(settings, device)
        began = time.perf_counter()
        loaded = loaded.recording(**given.record(settings, loaded.model.defaults))
        images = [ImageRequest({"prompt": prompt}, slug(prompt), own) for prompt in prompts for own in own_seeds]
        request = GenerationRequest.from_keywords(
            prompts=[one.about["prompt"] for one in images],
            best_of=best_of,
            batch_size=batch_size,
            **given.keywords(),
            **loaded.settings,
        )
        loaded.model.warn_of(prompts, request.subjects)
        saved = list(generate_images(loaded, request, images, out))
    sheet = save_sheet(_rows(saved, num_images, given.cells()), saved, loaded.record, out) if len(saved) > 1 else None
    answer(saved, {"contact_sheet": sheet}, loaded, began, as_json)


@dataclass(frozen=True)
class GivenInputs:
    """Regions and pictures that were given with the prompts; they are read before a model is loaded."""

    regions: "list[Region] | None"
    style: Given | None
    style_content: str | None
    subjects: list[GivenSubject]
    layout: Given | None
    pixels: Mapping[str, Given]
    """By name: `image`, `mask` and `depth`."""

    def keywords(self) -> dict[str, Any]:
        """As a `GenerationRequest` takes them."""
        return {
            "regions": self.regions,
            "style": self.style and self.style.image,
            "style_content": self.style_content,
            "subjects": [one.subject for one in self.subjects],
            "layout": self.layout and self.layout.image,
            **{name: one.image for name, one in self.pixels.items()},
        }

    def record(self, settings: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
        """Their entries in a record, with the strengths that apply: those of the settings, or else the model's own."""
        from syzygy.regions.canvas import recorded

        own = {
            name: defaults[name] if settings[name] is None else settings[name]
            for name in ("region_strength", "style_guidance")
        }
        found: dict[str, Any] = {}
        if self.regions is not None:
            found |= {"regions": [recorded(one) for one in self.regions], "region_strength": own["region_strength"]}
        if self.style is not None:
            found |= {"style": self.style.about}
            found |= {} if self.style_content is None else {"style_content": self.style_content}
            found |= {} if own["style_guidance"] is None else {"style_guidance": own["style_guidance"]}
        if self.subjects:
            found |= {"subjects": [one.about for one in self.subjects]}
        found |= {name: one.about for name, one in self.pixels.items()}
        if "image" in found and "mask" not in found and settings["strength"] is None:
            found["strength"] = defaults["strength"]
        return found if self.layout is None else found | {"layout": self.layout.about}

    def cells(self) -> list[Cell]:
        """Their places on a contact sheet: those of regions, subjects, layout, image, mask and depth map."""
        from syzygy.regions.canvas import drawn

        regions = [] if self.regions is None else [(drawn(self.regions), "regions")]
        layout = [] if self.layout is None else [self.layout.cell("layout")]
        pixels = [one.cell(name) for name, one in self.pixels.items()]
        return [*regions, *(one.cell() for one in self.subjects), *layout, *pixels]


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


def _rows(saved: Sequence[SavedImage], num_images: int, first: Sequence[Cell]) -> list[list[Cell]]:
    """The contact sheet's rows: one for each prompt, with what was given first; prompts with one image each fill a square."""
    columns = num_images if num_images > 1 else min(math.ceil(math.sqrt(len(saved))), SHEET_COLUMNS)
    cells = [(one.image, f"{one.about['prompt']} · {one.label}") for one in saved]
    return [[*first, *cells[start : start + columns]] for start in range(0, len(cells), columns)]
