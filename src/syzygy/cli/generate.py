"""`syzygy generate`."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from syzygy.cli.common import writable_folder
from syzygy.cli.generation_options import Painter, painting_options, region_options, warnings_as_lines
from syzygy.cli.image_folder import SHEET_COLUMNS, Kept, Wish, gallery_options, painted, save_sheet, seeds, tell
from syzygy.cli.source_arguments import Given
from syzygy.core.errors import UserError

if TYPE_CHECKING:
    import torch

    from syzygy.core.contracts import Region
    from syzygy.generation.pipeline import PipelineOutput


@click.command()
@click.argument("prompts", nargs=-1, required=True, metavar="PROMPT…")
@painting_options
@region_options
@gallery_options("out/generate", "a prompt")
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
    """Paint pictures of prompts.

    Writes PNG files that say how they were made, and a contact sheet of them. Picture i of a prompt (from 0) has
    seed S + i, so that --seed S+i makes it again alone; of --best-of K, seeds S + i·K to S + i·K + K-1 are tried and
    the file tells which was kept. No other picture is overwritten.

    \b
    Say where things shall be by painting words:
      syzygy generate "a red star and a blue ring" --canvas painted.png \\
        --region "#ff0000=a red star" --region "#0000ff=a blue ring"
    """
    from syzygy.generation.image_files import open_picture, slug
    from syzygy.regions.canvas import recorded

    own_seeds = seeds(seed, num_images, best_of)
    writable_folder(out)
    with warnings_as_lines():
        painted_regions = _regions(prompts, regions, canvas, mask_blur)
        manner = None if style is None else Given(None, style, open_picture(style))
        began = time.perf_counter()
        painter = Painter.load(settings, device)
        if painted_regions is not None:
            strength = (
                settings["region_strength"]
                if settings["region_strength"] is not None
                else painter.model.defaults["region_strength"]
            )
            where = {"regions": [recorded(one) for one in painted_regions], "region_strength": strength}
            painter = painter._replace(record={**painter.record, **where})
        if manner is not None:
            own = painter.model.defaults["style_guidance"]
            weight = {"style_guidance": own} if settings["style_guidance"] is None and own is not None else {}
            painter = painter._replace(record={**painter.record, "style": manner.about, **weight})
        ready = time.perf_counter()
        wishes = [Wish({"prompt": prompt}, slug(prompt), own) for prompt in prompts for own in own_seeds]

        def paint(
            rows: Sequence[int], generators: "Sequence[torch.Generator]", on_step: Callable[[], None]
        ) -> "PipelineOutput":
            asked = [wishes[row].about["prompt"] for row in rows]
            return painter.output(asked, generators, on_step, best_of, painted_regions, manner and manner.image)

        kept = list(painted(wishes, paint, painter.record, out, batch_size=batch_size, best_of=best_of))
        seconds = {"load_seconds": round(ready - began, 3), "paint_seconds": round(time.perf_counter() - ready, 3)}
    sheet = _contact_sheet(kept, num_images, painter, painted_regions, out) if len(kept) > 1 else None
    tell(kept, {"contact_sheet": sheet}, {"settings": painter.record} | seconds, as_json)


def _regions(
    prompts: Sequence[str], specs: Sequence[str], canvas: Path | None, blur: float | None
) -> "list[Region] | None":
    """What is painted, found in every prompt before anything is loaded."""
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


def _contact_sheet(
    kept: Sequence[Kept], num_images: int, painter: Painter, regions: "Sequence[Region] | None", out: Path
) -> Path:
    """A row a prompt, what is painted first; prompts with one picture each fill a square."""
    import math

    from syzygy.regions.canvas import drawn

    columns = num_images if num_images > 1 else min(math.ceil(math.sqrt(len(kept))), SHEET_COLUMNS)
    cells = [(one.image, f"{one.about['prompt']} · {one.mark}") for one in kept]
    first = [] if regions is None else [(drawn(regions), "painted")]
    rows = [first + cells[start : start + columns] for start in range(0, len(cells), columns)]
    return save_sheet(rows, {"pictures": [one.about for one in kept], **painter.record}, out)
