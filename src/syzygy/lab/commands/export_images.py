"""`syzygy export-images`."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from syzygy.cli.common import Whole, device_option, json_option, paced, seed_option, writable_folder
from syzygy.cli.generation_options import Painter, painting_options, warnings_as_lines
from syzygy.core.wording import counted

if TYPE_CHECKING:
    from syzygy.lab.benchmark_images import Export, Share

LAYOUTS = ("t2i-compbench", "geneval")
MOST_WARNINGS = 5

EPILOG = """
\b
PROMPTS are the benchmark's own file:
  t2i-compbench   a prompt a line (color_val.txt, …)
  geneval         evaluation_metadata.jsonl

\b
On several GPUs:  torchrun --nproc-per-node 4 -m syzygy.cli export-images …
The same command makes what is missing, after an interruption or beside other processes; with the same batch size
neither changes a byte. docs/how-to/benchmark-images.md goes on to the judges' own commands.
"""


@click.command(epilog=EPILOG)
@click.option("--prompts", type=click.Path(path_type=Path), required=True, metavar="FILE", help="What to paint.")
@click.option("--layout", type=click.Choice(LAYOUTS), required=True, help="Whose judge reads the pictures.")
@click.option("--out", type=click.Path(path_type=Path), required=True, metavar="FOLDER", help="Folder to write.")
@click.option(
    "--images-per-prompt",
    type=Whole(1),
    metavar="N",
    help="Default: 10 for t2i-compbench, 4 for geneval, as published.",
)
@painting_options
@seed_option
@device_option
@json_option
def export_images(
    prompts: Path,
    layout: str,
    out: Path,
    images_per_prompt: int | None,
    batch_size: int,
    seed: int,
    device: str,
    as_json: bool,
    **settings: Any,
) -> None:
    """Paint a benchmark's prompts into files that its official judge reads.

    Each picture has a seed of its own, made from --seed, its prompt's place in the file and its number.
    """
    from syzygy.lab.benchmark_images import Export, missing, planned, share_of_environment, tidy
    from syzygy.lab.benchmark_images import export_images as run
    from syzygy.lab.benchmark_layouts import LAYOUTS

    share = share_of_environment()
    chosen = LAYOUTS[layout]
    read = chosen.read(prompts)
    writable_folder(out)
    for note in read.notes if share.rank == 0 else ():
        click.echo(f"warning: {note}", err=True)
    began = time.perf_counter()
    with warnings_as_lines(MOST_WARNINGS):
        painter = Painter.load(settings, _device_of(share, device))
        each = chosen.images_per_prompt if images_per_prompt is None else images_per_prompt
        export = Export(out, chosen, read, each, seed, painter.record)
        work = planned(export, share, batch_size)
        steps = painter.record["steps"]
        with paced(_title(share), work.to_paint, "pictures", live=share.size == 1) as advance:
            run(export, work, share, painter.paint, lambda pictures: advance(pictures / steps))
    lacking = missing(export, work)
    if not lacking:
        tidy(export)
    counts = {"painted": len(work.wanted), "kept": work.kept, "missing": lacking}
    _tell(export, share, counts, time.perf_counter() - began, as_json)


def _tell(export: "Export", share: "Share", counts: dict[str, int], seconds: float, as_json: bool) -> None:
    import json

    prompts = len(export.prompts.entries)
    pictures = prompts * export.images_per_prompt
    if as_json:
        where = {"out": str(export.folder), "layout": export.layout.name, "rank": share.rank, "ranks": share.size}
        sizes = {"prompts": prompts, "pictures": pictures, **counts, "seconds": round(seconds, 3)}
        click.echo(json.dumps({**where, **sizes, "settings": export.settings()}))
        return
    click.echo(
        f"{_title(share)}: {counted(counts['painted'], 'picture')} generated, {counts['kept']:,} already there, {counts['missing']:,} missing; "
        f"{counted(pictures, 'picture')} of {counted(prompts, 'prompt')} in {export.folder}"
    )
    if counts["missing"]:
        click.echo("Other processes paint these; if none is running, the same command without torchrun makes them.")


def _title(share: "Share") -> str:
    return "painting" if share.size == 1 else f"rank {share.rank} of {share.size}"


def _device_of(share: "Share", device: str) -> str:
    """Each of several processes on CUDA takes the GPU of its local rank."""
    if device != "cuda" or share.size == 1:
        return device
    import torch

    return f"cuda:{share.local % torch.cuda.device_count()}"
