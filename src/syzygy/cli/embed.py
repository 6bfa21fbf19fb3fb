"""`syzygy embed`."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from syzygy.cli.common import Whole, device_option, json_option, writable_folder

if TYPE_CHECKING:
    from syzygy.runs.embed import EmbedResult


class Share(click.ParamType):
    """A number from 0 to 1."""

    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            number = float(value)
        except ValueError:
            number = -1.0
        if not 0 <= number <= 1:
            self.fail(f"{value!r} is not a number from 0 to 1.", param, ctx)
        return number


EPILOG = """
\b
SOURCE is one of
  data/{00000..00099}.tar   img2dataset's tars: .jpg, .png or .webp beside .txt or .json
A folder stands for all such files in it, {a,b} for each of a list.

\b
Embed a folder of tars with the packaged CLIP, then look at the store:
  syzygy embed data --encoder starter --out store
  syzygy store info store
The same command continues a store that was interrupted; finished shards are kept.
"""


@click.command(epilog=EPILOG)
@click.argument("source")
@click.option(
    "--encoder",
    required=True,
    metavar="FOLDER|HUB-ID",
    help="The CLIP: a folder, a hub id, or starter for the packaged one.",
)
@click.option("--revision", metavar="COMMIT", help="Commit, tag or branch of a hub id.")
@click.option("--out", type=click.Path(path_type=Path), required=True, metavar="STORE", help="Folder to write.")
@click.option("--dtype", type=click.Choice(["fp16", "bf16"]), help="How to store features.  [default: fp16]")
@click.option(
    "--compute",
    type=click.Choice(["fp32", "bf16", "fp16"]),
    help="What the encoder computes in.  [default: bf16 on a GPU, else fp32]",
)
@click.option(
    "--batch-size",
    type=Whole(1),
    metavar="N",
    help="Pictures, or captions, encoded together.  [default: 256 on a GPU, else 32]",
)
@click.option("--threads", type=Whole(1, 256), metavar="N", help="Of each worker, to decode and (on a CPU) to compute.")
@click.option("--workers", type=Whole(1, 1024), metavar="N", help="Processes, each with an encoder.  [default: 1]")
@click.option(
    "--max-bad",
    type=Share(),
    default=0.05,
    show_default=True,
    metavar="SHARE",
    help="Fail if more of the samples cannot be used.",
)
@click.option(
    "--caption-column", "caption_columns", multiple=True, metavar="NAME", help="Where captions are; may be repeated."
)
@click.option("--keep", multiple=True, metavar="NAME", help="A text column to keep; may be repeated.")
@device_option
@json_option
def embed(as_json: bool, out: Path, caption_columns: tuple[str, ...], keep: tuple[str, ...], **options: Any) -> None:
    """Embed pairs of pictures and captions with a CLIP, into a store to train priors on.

    Numbers and booleans of the metadata become columns of the store. A sample that cannot be used is skipped, counted,
    and listed in STORE/bad.jsonl with the reason.
    """
    from syzygy.runs.embed import EmbedRequest
    from syzygy.runs.embed import embed as run

    writable_folder(out)
    request = EmbedRequest(out=out, caption_columns=caption_columns or None, keep=keep or None, **options)
    _tell(run(request), as_json)


def _tell(result: "EmbedResult", as_json: bool) -> None:
    import json

    manifest = result.manifest
    summary = {name: manifest[name] for name in ("pictures", "captions", "bad", "skipped", "full_captions")}
    if as_json:
        click.echo(json.dumps({"store": str(result.store), **summary}))
        return
    click.echo(f"{manifest['pictures']:,} pictures with {manifest['captions']:,} captions in {result.store}")
