"""`syzygy vary`."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from syzygy.cli.common import writable_folder
from syzygy.cli.generation_options import Painter, model_options, warnings_as_lines
from syzygy.cli.image_folder import Wish, gallery_options, painted, save_sheet, seeds, tell
from syzygy.cli.source_arguments import picture

if TYPE_CHECKING:
    import torch

    from syzygy.generation.pipeline import PipelineOutput


@click.command()
@click.argument("images", nargs=-1, required=True, metavar="IMAGE…", type=click.Path(path_type=Path))
@model_options
@gallery_options("out/vary", "of each image")
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
    """Paint pictures anew: what CLIP sees in them stays, all else comes from the noise.

    Writes PNG files that say how they were made, and a contact sheet that begins with the image. Picture i of an image
    (from 0) has seed S + i; of --best-of K, seeds S + i·K to S + i·K + K-1 are tried. The decoder reads the image's
    embedding alone, no text.
    """
    from syzygy.generation.image_files import slug

    own_seeds = seeds(seed, num_images, best_of)
    given = [picture(image) for image in images]
    writable_folder(out)
    with warnings_as_lines():
        began = time.perf_counter()
        painter = Painter.load(settings, device)
        ready = time.perf_counter()
        wishes = [Wish({"variation_of": one.about}, slug(one.name), own) for one in given for own in own_seeds]

        def paint(
            rows: Sequence[int], generators: "Sequence[torch.Generator]", on_step: Callable[[], None]
        ) -> "PipelineOutput":
            return painter.model.vary(
                [given[row // num_images].source for row in rows],
                generator=generators,
                best_of=best_of,
                callback=lambda _: on_step(),
                **painter.arguments,
            )

        kept = list(painted(wishes, paint, painter.record, out, batch_size=batch_size, best_of=best_of))
        seconds = {"load_seconds": round(ready - began, 3), "paint_seconds": round(time.perf_counter() - ready, 3)}
    cells = [(one.image, one.mark) for one in kept]
    rows = [[one.cell(), *cells[i * num_images : (i + 1) * num_images]] for i, one in enumerate(given)]
    sheet = save_sheet(rows, {"pictures": [one.about for one in kept], **painter.record}, out)
    tell(kept, {"contact_sheet": sheet}, {"settings": painter.record} | seconds, as_json)
