"""`syzygy world corpus`: parallel captions of the embedded world."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from syzygy.cli.common import Whole, json_option, progress_bar, seed_option, writable_folder
from syzygy.core.errors import UserError
from syzygy.core.wording import counted

if TYPE_CHECKING:
    from syzygy.lab.world.parallel_corpus import Parallel

CORPUS_STEP = 200
"""Lines of a corpus between two updates of the progress bar."""

ALL_LANGUAGES = "en,de,es,fr,ru,zh"
CORPUS_HELP = """Write parallel captions in several languages.

\b
Each line holds a description and its caption in each language:
  {"id": 0, "description": {"mentions": [{"shape": "ring", "colour": "red", …}], "relations": […], "style": null},
   "texts": {"en": "a red ring", "de": "ein roter Ring", …}, "length": "short"}

\b
All languages, 100,000 lines of all lengths, for training:
  syzygy world corpus --num 100000 --length mixed --no-unseen --out corpus.jsonl
Short captions in two languages:
  syzygy world corpus --languages en,de --num 1000 --out en-de.jsonl

Line number i of a seed is the caption of image number i that `syzygy world sample` writes with the same settings. The file
appears when it is complete; an existing file is never overwritten.
"""


@click.command(help=CORPUS_HELP)
@click.option(
    "--languages",
    default=ALL_LANGUAGES,
    show_default=True,
    metavar="CODES",
    help="ISO 639-1 codes separated by commas; English must be among them.",
)
@click.option("--num", type=Whole(1), required=True, metavar="N", help="Number of lines.")
@click.option(
    "--out", type=click.Path(path_type=Path), required=True, metavar="FILE", help="New JSON Lines file to write."
)
@seed_option
@click.option(
    "--length",
    type=click.Choice(["short", "medium", "long", "mixed"]),
    default="short",
    show_default=True,
    help="Length of captions: only the sentence that describes the scene, one or two others before it, or a paragraph before it (about 100 to "
    "300 tokens); mixed draws a length for each line.",
)
@click.option(
    "--unseen/--no-unseen",
    default=True,
    show_default=True,
    help="Include scenes with an unseen composition; exclude them from training data.",
)
@json_option
def corpus(languages: str, num: int, out: Path, seed: int, length: str, unseen: bool, as_json: bool) -> None:
    import json

    from syzygy.core import artifacts
    from syzygy.lab.world.parallel_corpus import checked_languages, parallel

    codes = checked_languages([code.strip() for code in languages.split(",") if code.strip()])
    if out.exists():
        raise UserError(f"{out} already exists. Choose another file, or delete it.")
    writable_folder(out.parent)
    settings: Any = {"length": length}
    with artifacts.file_written(out, "the corpus") as file, progress_bar("writing", num) as advance:
        for index in range(num):
            row = _corpus_row(parallel(seed, index, codes, unseen=unseen, **settings))
            file.write((json.dumps(row, ensure_ascii=False) + "\n").encode())
            if (index + 1) % CORPUS_STEP == 0 or index + 1 == num:
                advance(index % CORPUS_STEP + 1)
    if as_json:
        settings |= {"unseen": unseen, "languages": codes, "num": num, "seed": seed}
        click.echo(json.dumps({"out": str(out), "lines": num, "bytes": out.stat().st_size, "settings": settings}))
    else:
        click.echo(f"{counted(num, 'line')} in {', '.join(codes)} in {out}")


def _corpus_row(found: "Parallel") -> dict[str, Any]:
    from dataclasses import asdict

    texts = {code: caption.text for code, caption in found.captions.items()}
    return {"id": found.index, "description": asdict(found.description), "texts": texts, "length": found.length}
