"""`syzygy embed`."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from syzygy.cli.common import Whole, device_option, json_option, writable_folder

if TYPE_CHECKING:
    from syzygy.runs.embed import EmbedResult
    from syzygy.runs.embed_work import Tally

PLAIN_LINE_SECONDS = 10.0


class Number(click.ParamType):
    """A number from `low` to `high`; `low` itself is not allowed where `above` is set."""

    name = "number"

    def __init__(self, low: float, high: float | None = None, *, above: bool = False) -> None:
        self.low, self.high, self.above = low, high, above

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            number = float(value)
        except ValueError:
            number = float("nan")
        high = float("inf") if self.high is None else self.high
        if (
            not (self.low < number if self.above else self.low <= number)
            or not number <= high
            or number == float("inf")
        ):
            allowed = f"above {self.low:g}" if self.above else f"from {self.low:g}"
            self.fail(
                f"{value!r}; allowed: a number {allowed}{'' if self.high is None else f' to {self.high:g}'}.",
                param,
                ctx,
            )
        return number


EPILOG = """
\b
SOURCE is one of
  data/{00000..00099}.tar   img2dataset's tars: .jpg, .png or .webp beside .txt or .json
  data/{a,b}.parquet        a column of encoded pictures, one or more of captions
  photos                    a folder with metadata.jsonl: {"file_name": …, "text": …}
  laion                     clip-retrieval's folder with img_emb and metadata
and a folder stands for all tars, or all parquet files, in it.

\b
Embed the world's scenes with the packaged CLIP, then look at the store:
  syzygy world sample --num 1000 --out scenes
  syzygy embed scenes --encoder starter --out store
  syzygy store info store

\b
On several GPUs:  torchrun --nproc-per-node 4 -m syzygy.cli embed SOURCE …
On a Ray cluster: syzygy embed SOURCE --runner ray --workers 32 …
Neither changes a byte of the store. The same command continues one that was interrupted: finished shards
are kept, and options that are not given stay as they were.
"""


@click.command(epilog=EPILOG)
@click.argument("source")
@click.option("--encoder", required=True, metavar="FOLDER|HUB-ID", help="The CLIP; starter is the packaged one.")
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
@click.option("--threads", type=Whole(1, 256), metavar="N", help="Of each worker: to decode and, on a CPU, to compute.")
@click.option("--workers", type=Whole(1, 1024), metavar="N", help="Processes, each with an encoder.  [default: 1]")
@click.option(
    "--runner",
    type=click.Choice(["auto", "local", "torchrun", "ray"]),
    default="auto",
    show_default=True,
    help="Who shares out the shards; auto is torchrun under torchrun, else local.",
)
@click.option(
    "--max-bad",
    type=Number(0.0, 1.0),
    default=0.05,
    show_default=True,
    metavar="SHARE",
    help="Fail if more of the samples cannot be used.",
)
@click.option("--caption-column", "caption_columns", multiple=True, metavar="NAME", help="Captions; may be repeated.")
@click.option("--image-column", metavar="NAME", help="Pictures, in parquet.")
@click.option("--keep", multiple=True, metavar="NAME", help="A text column to keep; may be repeated.")
@click.option(
    "--image-norm",
    type=Number(0.0, above=True),
    metavar="NORM",
    help="Ready-made embeddings of unit length: mean norm of the encoder's raw ones.",
)
@device_option
@json_option
def embed(as_json: bool, out: Path, caption_columns: tuple[str, ...], keep: tuple[str, ...], **options: Any) -> None:
    """Embed pairs of pictures and captions with a CLIP, into a store to train priors on.

    A picture may have several captions. Numbers and booleans of the metadata become columns of the store. A sample that
    cannot be used is skipped, counted, and listed in STORE/bad.jsonl with the reason.
    """
    from syzygy.runs.embed import EmbedRequest
    from syzygy.runs.embed import embed as run

    writable_folder(out)
    request = EmbedRequest(out=out, caption_columns=caption_columns or None, keep=keep or None, **options)
    result = run(request, ConsoleReport())
    if result is not None:
        _tell(result, as_json)


def _tell(result: "EmbedResult", as_json: bool) -> None:
    import json

    manifest = result.manifest
    size = sum(path.stat().st_size for path in result.store.rglob("*") if path.is_file())
    features = manifest["features"]["clip"]
    counts = {name: manifest[name] for name in ("pictures", "captions", "bad", "skipped", "full_captions")}
    summary = {"store": str(result.store), **counts, "tokens": features["tokens"], "bytes": size}
    reasons = _reasons(result.store)
    if as_json:
        click.echo(json.dumps({**summary, "shards_embedded": result.embedded, "reasons": reasons}))
        return
    shards = len(manifest["shards"])
    click.echo(
        f"{counts['pictures']:,} pictures, {counts['captions']:,} captions, {features['tokens']:,} tokens in {result.store} "
        f"({size / 1e6:,.1f} MB, {shards} shards, {result.embedded} of them embedded now)"
    )
    if counts["bad"] or reasons:
        click.echo(
            f"{counts['bad']:,} of {manifest['seen']:,} samples could not be used; {result.store / 'bad.jsonl'} lists all:"
        )
        for reason, number in list(reasons.items())[:5]:
            click.echo(f"{number:>10,} × {reason}")
    if counts["skipped"]:
        click.echo(f"{counts['skipped']:,} samples have no picture because their download failed.")
    if counts["full_captions"]:
        click.echo(
            f"{counts['full_captions']:,} captions fill all positions of the encoder: what they say beyond is cut."
        )
    for name in manifest["options"]["keep"]:
        if name not in manifest["columns"]:
            click.echo(f"warning: no sample has {name!r} of --keep.", err=True)
    click.echo(f"Try next: syzygy store info {result.store}")


def _reasons(store: Path) -> dict[str, int]:
    """What was wrong, and how often, the most frequent first."""
    import json
    from collections import Counter

    lines = (store / "bad.jsonl").read_text(encoding="utf-8").splitlines()
    return dict(Counter(json.loads(line)["reason"] for line in lines).most_common())


class ConsoleReport:
    """Shards, samples, rate and time left on standard error: live on a terminal, else a line every ten seconds."""

    @contextmanager
    def running(self, tally: "Tally") -> Iterator[None]:
        self._tally = tally
        self._began = self._printed = time.monotonic()
        self._live: Any = None
        if not sys.stderr.isatty():
            yield
            return
        from rich.console import Console
        from rich.live import Live

        with Live(
            get_renderable=self._display, refresh_per_second=4, console=Console(stderr=True), transient=True
        ) as live:
            self._live = live
            yield

    def update(self) -> None:
        if self._live is None and time.monotonic() - self._printed >= PLAIN_LINE_SECONDS:
            self._printed = time.monotonic()
            print(f"embedding: {self._status()}", file=sys.stderr, flush=True)

    def _status(self) -> str:
        from datetime import timedelta

        tally, seconds = self._tally, time.monotonic() - self._began
        parts = [f"{tally.shards_done}/{tally.shards} shards", f"{tally.seen:,} samples"]
        if tally.bad:
            parts.append(f"{tally.bad:,} bad")
        now = tally.seen - tally.seen_before
        if now and seconds > 0:
            parts.append(f"{now / seconds:.3g} samples/s")
            if tally.expected is not None:
                left = max(tally.expected - tally.seen, 0) * seconds / now
                parts.append(f"about {timedelta(seconds=round(left))} left")
        return " · ".join(parts)

    def _display(self) -> Any:
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.text import Text

        total = self._tally.expected
        bar = ProgressBar(total=total, completed=min(self._tally.seen, total or 0), width=40, pulse=total is None)
        return Group(bar, Text(self._status()))
