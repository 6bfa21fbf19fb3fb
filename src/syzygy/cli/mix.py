"""`syzygy mix`."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from syzygy.cli.common import Whole, progress_bar, writable_folder
from syzygy.cli.generation_options import Painter, model_options, warnings_as_lines
from syzygy.cli.image_folder import Kept, Wish, gallery_options, painted, save, save_sheet, seeds, tell
from syzygy.cli.source_arguments import Given, source, weights
from syzygy.core.errors import UserError

if TYPE_CHECKING:
    import torch

    from syzygy.generation.pipeline import PipelineOutput

ANIMATION = "animation.png"
EPILOG = """
\b
SOURCE is a text or a picture's file, with a weight if you like:
  syzygy mix "a red circle"@0.6 photo.png@0.4
  syzygy mix "a red circle" photo.png --frames 12
Weights are from 0 to 1; only their proportions count; without any, all are equal. A source that names a file is a
picture. One that looks like a picture's file name (photo.png, photo.heic, photos/cat.xyz) must exist: it is never taken
as a text. A text may contain an @; if it ends in @ and a number, add its weight: "…@5@1".
"""


@click.command(epilog=EPILOG)
@click.argument("sources", nargs=-1, required=True, metavar="SOURCE…")
@click.option("--frames", type=Whole(2), metavar="N", help="Paint the way from the first of two sources to the second.")
@model_options
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
    """Paint what lies between pictures and texts.

    Texts go through the prior, pictures through CLIP; their embeddings are mixed on the sphere. Writes PNG files that
    say how they were made, and a contact sheet that begins with the sources. Picture i (from 0) has seed S + i; of
    --best-of K, seeds S + i·K to S + i·K + K-1 are tried. With --frames, all frames have seed S, and an animated PNG
    runs there and back. The decoder reads the mixed embedding alone, no text.
    """
    own_seeds = seeds(seed, num_images, best_of)
    given = [source(one) for one in sources]
    found = weights(given) if frames is None else _two_ends(given, num_images, best_of)
    writable_folder(out)
    with warnings_as_lines():
        began = time.perf_counter()
        painter = Painter.load(settings, device)
        ready = time.perf_counter()
        if frames is None:
            kept = _mixtures(given, found, own_seeds, painter, {"batch_size": batch_size, "best_of": best_of}, out)
        else:
            kept = _frames(given, frames, seed, painter, batch_size, out)
        seconds = {"load_seconds": round(ready - began, 3), "paint_seconds": round(time.perf_counter() - ready, 3)}
    tell(kept, _together(given, found, kept, frames, painter, out), {"settings": painter.record} | seconds, as_json)


def _two_ends(given: Sequence[Given], num_images: int, best_of: int) -> list[float]:
    """What --frames cannot do is said; the value is no weights."""
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


def _mixtures(
    given: Sequence[Given],
    found: Sequence[float],
    own_seeds: Sequence[int],
    painter: Painter,
    how_many: dict[str, int],
    out: Path,
) -> list[Kept]:
    about = {"sources": [{**one.about, "weight": weight} for one, weight in zip(given, found, strict=True)]}

    def paint(
        rows: Sequence[int], generators: "Sequence[torch.Generator]", on_step: Callable[[], None]
    ) -> "PipelineOutput":
        return painter.model.mix(
            [(one.source, weight) for one, weight in zip(given, found, strict=True)],
            num_images=len(rows),
            best_of=how_many["best_of"],
            generator=generators,
            callback=lambda _: on_step(),
            **painter.arguments,
        )

    wishes = [Wish(about, _name(given), own) for own in own_seeds]
    return list(painted(wishes, paint, painter.record, out, **how_many))


def _frames(given: Sequence[Given], frames: int, seed: int, painter: Painter, batch_size: int, out: Path) -> list[Kept]:
    import torch

    batches = -(-frames // batch_size)
    with progress_bar("painting", batches * painter.record["steps"]) as advance:
        output = painter.model.interpolate(
            given[0].source,
            given[1].source,
            frames,
            batch_size=batch_size,
            generator=[torch.Generator().manual_seed(seed)],
            callback=lambda _: advance(1),
            **painter.arguments,
        )
    about = {"sources": [one.about for one in given], "frames": frames, "seed": seed}
    name = f"{_name(given)}-{seed}.png"
    return [
        save(image, f"{i:03}-{name}", {**about, "frame": i}, painter.record, out)
        for i, image in enumerate(output.images)
    ]


def _together(
    given: Sequence[Given],
    found: Sequence[float],
    kept: Sequence[Kept],
    frames: int | None,
    painter: Painter,
    out: Path,
) -> dict[str, Path | None]:
    """The contact sheet, sources first; and of frames the animation."""
    from syzygy.generation.image_files import place_for, save_animation
    from syzygy.generation.mixing import shares

    record = {"pictures": [one.about for one in kept], **painter.record}
    if frames is None:
        parts = [one.cell(f"{share:.0%}") for one, share in zip(given, shares(found), strict=True)]
        cells = [*parts, *((one.image, one.mark) for one in kept)]
        return {"contact_sheet": save_sheet([cells], record, out)}
    cells = [(one.image, f"{i / (frames - 1):.0%}") for i, one in enumerate(kept)]
    sheet = save_sheet([[given[0].cell(), *cells, given[1].cell()]], record, out)
    path = place_for(out / ANIMATION, record)
    save_animation([one.image for one in kept], path, record)
    return {"contact_sheet": sheet, "animation": path}
