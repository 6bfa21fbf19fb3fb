"""`syzygy export-images`."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from syzygy.cli.common import Whole, device_option, json_option, paced, seed_option, writable_folder
from syzygy.cli.generation_options import load_model, prompt_options, warnings_as_lines
from syzygy.core.errors import UserError
from syzygy.core.wording import counted

if TYPE_CHECKING:
    from syzygy.lab.benchmark_images import Export, Rank

LAYOUTS = ("geneval2", "dpg-bench", "t2i-compbench++", "t2i-compbench", "geneval")
MOST_WARNINGS = 5

EPILOG = """
\b
PROMPTS is the benchmark's own file:
  geneval2          geneval2_data.jsonl
  dpg-bench         the folder dpg_bench/prompts
  t2i-compbench++   one prompt in each line (color_val.txt, …); t2i-compbench is the same layout
  geneval           evaluation_metadata.jsonl; superseded by GenEval 2, as today's models come near its limit

\b
On several GPUs:  torchrun --nproc-per-node 4 -m syzygy.cli export-images …
Run the same command again to generate what is missing, after an interruption or while other processes run.
With the same batch size neither changes a byte. docs/how-to/benchmark-images.md continues with the evaluations' own commands.
"""


@click.command(epilog=EPILOG)
@click.option("--prompts", type=click.Path(path_type=Path), required=True, metavar="PROMPTS", help="Prompt file.")
@click.option("--layout", type=click.Choice(LAYOUTS), required=True, help="The evaluation that reads the images.")
@click.option("--out", type=click.Path(path_type=Path), required=True, metavar="FOLDER", help="Folder to write.")
@click.option(
    "--images-per-prompt",
    type=Whole(1),
    metavar="N",
    help="Images for each prompt.  [default: as published, 1 for geneval2, 10 for t2i-compbench, 4 for the others]",
)
@prompt_options
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
    """Generate images of a benchmark's prompts in the files that its official evaluation reads.

    Each image has its own seed, derived from --seed, the position of its prompt in the file, and its number.
    """
    from syzygy.lab import benchmark_images
    from syzygy.lab.benchmark_layouts import LAYOUTS

    rank = benchmark_images.rank_from_environment()
    chosen = LAYOUTS[layout]
    number = chosen.images_per_prompt if images_per_prompt is None else images_per_prompt
    if chosen.numbers and number not in chosen.numbers:
        allowed = " or ".join(map(str, chosen.numbers))
        raise UserError(f"--images-per-prompt {number}: the evaluation of {layout} reads {allowed} of a prompt.")
    read = chosen.read(prompts)
    writable_folder(out)
    for note in read.notes if rank.rank == 0 else ():
        click.echo(f"warning: {note}", err=True)
    began = time.perf_counter()
    with warnings_as_lines(MOST_WARNINGS):
        loaded = load_model(settings, _device_of(rank, device))
        export = benchmark_images.Export(out, chosen, read, number, seed, loaded.record)
        work = benchmark_images.plan(export, rank, batch_size)
        steps = loaded.record["steps"]

        def generate(prompts: Any, generators: Any, on_step: Any) -> Any:
            return loaded.model(prompts, generator=generators, callback=lambda _: on_step(), **loaded.settings).images

        with paced(_title(rank), work.to_generate, "images", live=rank.size == 1) as advance:
            benchmark_images.export_images(export, work, rank, generate, lambda images: advance(images / steps))
    missing = benchmark_images.missing(export, work)
    if not missing:
        benchmark_images.remove_unfinished(export)
        chosen.finish(out, read.entries, number)
    counts = {"generated": len(work.wanted), "kept": work.kept, "missing": missing}
    _print(export, rank, counts, time.perf_counter() - began, as_json)


def _print(export: "Export", rank: "Rank", counts: dict[str, int], seconds: float, as_json: bool) -> None:
    import json

    prompts = len(export.prompts.entries)
    images = prompts * export.images_per_prompt
    if as_json:
        where = {"out": str(export.folder), "layout": export.layout.name, "rank": rank.rank, "ranks": rank.size}
        former = {"pictures": images, "painted": counts["generated"]}  # names of version 0.1, for one release
        sizes = {"prompts": prompts, "images": images, **counts, **former, "seconds": round(seconds, 3)}
        click.echo(json.dumps({**where, **sizes, "settings": export.settings()}))
        return
    click.echo(
        f"{_title(rank)}: {counted(counts['generated'], 'image')} generated, {counts['kept']:,} kept, {counts['missing']:,} missing; "
        f"{counted(images, 'image')} of {counted(prompts, 'prompt')} in {export.folder}"
    )
    if counts["missing"]:
        click.echo("Other processes generate these. If none is running, run the same command without torchrun.")


def _title(rank: "Rank") -> str:
    return "generating" if rank.size == 1 else f"rank {rank.rank} of {rank.size}"


def _device_of(rank: "Rank", device: str) -> str:
    """Each of several processes on CUDA takes the GPU of its local rank."""
    if device != "cuda" or rank.size == 1:
        return device
    import torch

    return f"cuda:{rank.local % torch.cuda.device_count()}"
