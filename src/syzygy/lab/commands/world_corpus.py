"""`syzygy world corpus`."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from syzygy.cli.common import Whole, json_option, progress_bar, seed_option, writable_folder
from syzygy.core.errors import UserError
from syzygy.core.wording import counted

if TYPE_CHECKING:
    from syzygy.lab.world.parallel_corpus import Parallel

ALL = "en,de,es,fr,ru,zh"
STEP = 200
HELP = """Write captions in several languages, line by line parallel.

\b
A line is a description and its caption in each language:
  {"id": 0, "description": {"mentions": [{"shape": "ring", "colour": "red", …}], "relations": […], "style": null},
   "texts": {"en": "a red ring", "de": "ein roter Ring", …}, "length": "short"}

\b
All languages, 100,000 lines of all lengths, to train on:
  syzygy world corpus --num 100000 --length mixed --no-held-out --out corpus.jsonl
Short captions in two:
  syzygy world corpus --languages en,de --num 1000 --out en-de.jsonl

Line number i of a seed is the caption of picture number i that `syzygy world sample` writes with equal settings. The file
appears when it is complete; one that is there already is left alone.
"""


@click.command(help=HELP)
@click.option(
    "--languages",
    default=ALL,
    show_default=True,
    metavar="CODES",
    help="ISO 639-1 codes, with commas between; English is one of them.",
)
@click.option("--num", type=Whole(1), required=True, metavar="N", help="Number of lines.")
@click.option(
    "--out", type=click.Path(path_type=Path), required=True, metavar="FILE", help="JSON Lines file to write; new."
)
@seed_option
@click.option(
    "--length",
    type=click.Choice(["short", "medium", "long", "mixed"]),
    default="short",
    show_default=True,
    help="The decisive sentence alone, after one or two others, or after a paragraph (some 100 to 300 tokens); mixed draws one for each line.",
)
@click.option(
    "--held-out/--no-held-out",
    default=True,
    show_default=True,
    help="Whether to include scenes that show an unseen composition; leave them out of training data.",
)
@json_option
def corpus(languages: str, num: int, out: Path, seed: int, length: str, held_out: bool, as_json: bool) -> None:
    import json

    from syzygy.core import artifacts
    from syzygy.lab.world.parallel_corpus import checked_languages, parallel

    codes = checked_languages([code.strip() for code in languages.split(",") if code.strip()])
    if out.exists():
        raise UserError(f"{out} exists already. Name another file, or delete it.")
    writable_folder(out.parent)
    settings: Any = {"length": length}
    with artifacts.file_written(out, "the corpus") as file, progress_bar("writing", num) as advance:
        for index in range(num):
            row = _row(parallel(seed, index, codes, unseen=held_out, **settings))
            file.write((json.dumps(row, ensure_ascii=False) + "\n").encode())
            if (index + 1) % STEP == 0 or index + 1 == num:
                advance(index % STEP + 1)
    if as_json:
        settings |= {"held_out": held_out, "languages": codes, "num": num, "seed": seed}
        click.echo(json.dumps({"out": str(out), "lines": num, "bytes": out.stat().st_size, "settings": settings}))
    else:
        click.echo(f"{counted(num, 'line')} in {', '.join(codes)} in {out}")


def _row(found: "Parallel") -> dict[str, Any]:
    from dataclasses import asdict

    texts = {code: caption.text for code, caption in found.captions.items()}
    return {"id": found.index, "description": asdict(found.description), "texts": texts, "length": found.length}
