"""`syzygy embed`."""

import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from syzygy.cli.common import Whole, device_option, json_option, writable_folder
from syzygy.core import wording
from syzygy.core.wording import counted, printable

if TYPE_CHECKING:
    from syzygy.data.embedding import EmbedResult
    from syzygy.data.embedding_preview import Preview
    from syzygy.data.embedding_work import Tally

PLAIN_LINE_SECONDS = 10.0
SHOWN = 5
"""Reasons that the summary names."""


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
  data/{00000..00099}.tar   img2dataset's tars: a picture with its .txt or .json
  data/{a,b}.parquet        a column of encoded pictures, one or more of captions
  photos                    a folder with metadata.jsonl: {"file_name": …, "text": …}
  photos                    a folder with metadata.csv: file_name,text
  photos                    pictures with caption files, x.png with x.txt, also in folders
  laion                     clip-retrieval's folder with img_emb and metadata
A folder stands for all tars, or all parquet files, in it.

\b
Captions come from a column called caption, captions, text, texts or txt; name any other with
--caption-column. The summary says which column was taken, and which text was not kept.

\b
Embed the world's scenes with the packaged CLIP, then look at the store:
  syzygy world sample --num 1000 --out scenes
  syzygy embed scenes --encoder starter --out store
  syzygy store info store

\b
On several GPUs:  torchrun --nproc-per-node 4 -m syzygy.cli embed SOURCE …
On a Ray cluster: syzygy embed SOURCE --runner ray --workers 32 …
Neither changes a byte of the store. The same command continues one that was interrupted: finished parts
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
@click.option("--dry-run", is_flag=True, help="Estimate time, memory and disk on the first pairs, and write nothing.")
@device_option
@json_option
def embed(
    as_json: bool, dry_run: bool, out: Path, caption_columns: tuple[str, ...], keep: tuple[str, ...], **options: Any
) -> None:
    """Embed pairs of pictures and captions with a CLIP, into a store to train priors on.

    A picture may have several captions; rows of one picture become one picture with all their captions. Numbers and
    booleans of the metadata become columns of the store. What cannot be used is skipped, counted, and listed in
    STORE/bad.jsonl with the reason.
    """
    import json
    from dataclasses import asdict

    from syzygy.data import embedding as runs

    request = runs.EmbedRequest(out=out, caption_columns=caption_columns or None, keep=keep or None, **options)
    if dry_run:
        expected = runs.dry_run(request)
        if as_json:
            click.echo(json.dumps({"source": request.source, **(asdict(expected) if expected else {})}))
        else:
            for line in _expected(expected):
                click.echo(line)
        return
    writable_folder(out)
    result = runs.embed(request, ConsoleReport())
    if result is not None:
        _tell(result, as_json)


def _expected(preview: "Preview | None") -> Iterator[str]:
    """What the work will take, a line each."""
    if preview is None:
        yield "estimate: none, because no pair among the first samples can be used."
        return
    names = ", ".join(preview.captions_from)
    yield f"captions: from {names}, such as {_quoted(preview.captions[0])}"
    if preview.like_addresses:
        yield (
            "warning: these look like addresses or file names, not like captions. If they are, stop and name another column "
            "with --caption-column."
        )
    if preview.unusable:
        what = f"{len(preview.unusable)} of the first {counted(preview.looked_at, 'sample')} cannot be used"
        yield f"warning: {what}, such as {preview.unusable[0]}."
    amounts = [] if preview.samples is None else [counted(preview.samples, "sample")]
    if preview.seconds is not None:
        amounts.append(wording.duration(preview.seconds) if preview.seconds >= 1 else "less than a second")
    if preview.bytes is not None:
        amounts.append(f"{wording.size(preview.bytes)} on disk")
    about = "" if preview.counted else "about "
    yield f"estimate: {about}{', '.join([*amounts, f'{wording.size(preview.memory)} of memory'])}"


def _quoted(caption: str) -> str:
    """The beginning of a caption, on one line."""
    return f"“{printable(textwrap.shorten(caption, 80, placeholder=' …'))}”"


COUNTS = (
    "pictures",
    "captions",
    "bad",
    "skipped",
    "full_captions",
    "repeated",
    "duplicates",
    "captions_from",
    "text_left",
)


def _tell(result: "EmbedResult", as_json: bool) -> None:
    import json

    from syzygy.data.store import EmbeddingStore

    manifest = result.manifest
    size = sum(path.stat().st_size for path in result.store.rglob("*") if path.is_file())
    tokens = manifest["features"]["clip"]["tokens"]
    counts = {name: manifest[name] for name in COUNTS}
    first = EmbeddingStore.open(result.store).texts([0])[0]
    reasons, files = _reasons(result.store)
    if as_json:
        summary = {"store": str(result.store), **counts, "first_caption": first, "tokens": tokens, "bytes": size}
        more = {"shards_embedded": result.embedded, "reasons": reasons, "unused_files": files}
        click.echo(json.dumps({**summary, **more}))
        return
    click.echo(
        f"{counted(counts['pictures'], 'picture')}, {counted(counts['captions'], 'caption')}, {counted(tokens, 'token')} in "
        f"{result.store} ({wording.size(size)}, {counted(len(manifest['shards']), 'shard')}, {result.embedded} of them embedded now)"
    )
    for line in _about_texts(counts, first):
        click.echo(line)
    if reasons or files:
        unused = [f"{counts['bad']:,} of {counted(manifest['seen'], 'sample')}"] if reasons else []
        unused += [f"{counted(sum(files.values()), 'further file')}"] if files else []
        click.echo(f"{' and '.join(unused)} could not be used; {result.store / 'bad.jsonl'} lists all:")
        for reason, number in [*reasons.items()][:SHOWN] + [*files.items()][:SHOWN]:
            click.echo(f"{number:>10,} × {reason}")
    for line in _about_pictures(counts):
        click.echo(line)
    for name in manifest["options"]["keep"]:
        if name not in manifest["columns"]:
            click.echo(f"warning: no sample has {name!r} of --keep.", err=True)
    click.echo(f"Try next: syzygy store show {result.store}")


def _about_texts(counts: dict[str, Any], first: str) -> Iterator[str]:
    """Where the captions come from, and which other text there is."""
    sources = ", ".join(f"{name} ({counted(number, 'sample')})" for name, number in counts["captions_from"].items())
    yield f"captions come from {sources}; the first is {_quoted(first)}"
    if counts["text_left"]:
        yield f"text that is not kept: {', '.join(counts['text_left'])} (--keep NAME keeps a column)"


def _about_pictures(counts: dict[str, Any]) -> Iterator[str]:
    """What else was found out while reading them."""
    if counts["repeated"]:
        does = "repeats" if counts["repeated"] == 1 else "repeat"
        yield f"{counted(counts['repeated'], 'sample')} {does} the picture of another: it is stored once, with all captions."
    if counts["duplicates"]:
        is_ = "picture is" if counts["duplicates"] == 1 else "pictures are"
        yield f"{counts['duplicates']:,} {is_} in the store more than once; training keeps all copies on one side of the validation split."
    if counts["skipped"]:
        has = "sample has" if counts["skipped"] == 1 else "samples have"
        yield f"{counts['skipped']:,} {has} no picture because the download failed."
    if counts["full_captions"]:
        fills = "caption fills" if counts["full_captions"] == 1 else "captions fill"
        yield f"{counts['full_captions']:,} {fills} all positions of the encoder: text beyond that is cut."


def _reasons(store: Path) -> tuple[dict[str, int], dict[str, int]]:
    """(what was wrong with samples and captions, and how often, the most frequent first; the same of files that belong to no sample)."""
    import json
    from collections import Counter

    samples: Counter[str] = Counter()
    files: Counter[str] = Counter()
    for line in (store / "bad.jsonl").read_text(encoding="utf-8").splitlines():
        fault = json.loads(line)
        (files if fault["lost"] == "file" else samples)[fault["reason"]] += fault.get("files", 1)
    return dict(samples.most_common()), dict(files.most_common())


class ConsoleReport:
    """Report shards, samples, rate and time left on standard error: live on a terminal, else a line every ten seconds."""

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

    def expects(self, preview: "Preview | None") -> None:
        for line in _expected(preview):
            print(line, file=sys.stderr, flush=True)

    def update(self) -> None:
        if self._live is None and time.monotonic() - self._printed >= PLAIN_LINE_SECONDS:
            self._printed = time.monotonic()
            print(f"embedding: {self._status()}", file=sys.stderr, flush=True)

    def _status(self) -> str:
        tally, seconds = self._tally, time.monotonic() - self._began
        parts = [f"{tally.shards_done}/{counted(tally.shards, 'shard')}", counted(tally.seen, "sample")]
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
