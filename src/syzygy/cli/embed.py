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

from syzygy.cli.common import PLAIN_LINE_SECONDS, Whole, device_option, json_option, writable_folder
from syzygy.core import wording
from syzygy.core.wording import counted, printable

if TYPE_CHECKING:
    from syzygy.data.embedding import EmbedResult
    from syzygy.data.embedding_preview import Preview
    from syzygy.data.embedding_work import Tally

SHOWN = 5
"""Reasons that the summary names."""


class Number(click.ParamType):
    """A number from `low` to `high`. `low` itself is not allowed if `above` is set."""

    name = "number"

    def __init__(self, low: float, high: float | None = None, *, above: bool = False) -> None:
        self.low, self.high, self.above = low, high, above

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            number = float(value)
        except ValueError:
            number = float("nan")
        high = sys.float_info.max if self.high is None else self.high
        if self.low <= number <= high and not (self.above and number == self.low):
            return number
        allowed = f"{'above' if self.above else 'from'} {self.low:g}{'' if self.high is None else f' to {self.high:g}'}"
        self.fail(f"{value!r}; allowed: a number {allowed}.", param, ctx)


EPILOG = """
\b
SOURCE is one of
  data/{00000..00099}.tar   img2dataset's tars: a picture with its .txt or .json
  data/{a,b}.parquet        a column of encoded pictures, one or more of captions
  photos                    a folder with metadata.jsonl: {"file_name": …, "text": …}
  photos                    a folder with metadata.csv: file_name,text
  photos                    pictures with caption files, x.png with x.txt, also in folders
  laion                     clip-retrieval's folder with img_emb and metadata
If a folder holds tars, or parquet files, all of them are read.

\b
Subjects, for λ-ECLIPSE priors (--subjects), are phrases of the captions with their place in the image:
  {"file_name": "a.png", "text": "a dog on a sofa", "subjects": [
    {"phrase": "dog", "box": [12, 30, 96, 120]},      left, top, right, bottom in pixels
    {"phrase": "sofa", "relative_box": [0, 0.5, 1, 1]},    the same in fractions of the sides
    {"phrase": "sofa", "mask": "masks/a.png"}]}       or a mask, white where the subject is
Tars have them in .json, tables as JSON text, parquet as a column of structs or JSON text. Masks that are
files need a folder.

\b
Captions come from a column called caption, captions, text, texts or txt. Name any other with
--caption-column. The summary says which column was used, and which text was not kept.

\b
Embed the world's scenes with the packaged CLIP, then show the store:
  syzygy world sample --num 1000 --out scenes
  syzygy embed scenes --encoder starter --out store
  syzygy store info store

\b
Embed scenes with subjects and edges, then train a λ-ECLIPSE prior:
  syzygy world sample --subjects --num 1000 --out subjects
  syzygy embed subjects --subjects --edges --encoder starter --out subject-store
  syzygy train prior --preset lambda-eclipse-residual --data subject-store --out prior

\b
On several GPUs:  torchrun --nproc-per-node 4 -m syzygy.cli embed SOURCE …
On a Ray cluster: syzygy embed SOURCE --runner ray --workers 32 …
The store is the same to the byte. To continue an interrupted run, repeat its command: finished parts are
kept, and options that you leave out keep the values of the interrupted run.
"""


@click.command(epilog=EPILOG)
@click.argument("source")
@click.option(
    "--encoder", required=True, metavar="FOLDER|HUB-ID", help="The CLIP to embed with; starter is the packaged one."
)
@click.option("--revision", metavar="COMMIT", help="Commit, tag or branch of the hub id.")
@click.option("--out", type=click.Path(path_type=Path), required=True, metavar="STORE", help="Folder to write.")
@click.option("--dtype", type=click.Choice(["fp16", "bf16"]), help="Precision of the stored features.  [default: fp16]")
@click.option(
    "--compute",
    type=click.Choice(["fp32", "bf16", "fp16"]),
    help="Precision in which the encoder computes.  [default: bf16 on a GPU, else fp32]",
)
@click.option(
    "--batch-size",
    type=Whole(1),
    metavar="N",
    help="Pictures, or captions, to encode together.  [default: 256 on a GPU, else 32]",
)
@click.option(
    "--threads",
    type=Whole(1, 256),
    metavar="N",
    help="Threads of each worker, for decoding pictures and, on a CPU, for computing.  [default: all processors, shared]",
)
@click.option("--workers", type=Whole(1, 1024), metavar="N", help="Processes, each with its own encoder.  [default: 1]")
@click.option(
    "--runner",
    type=click.Choice(["auto", "local", "torchrun", "ray"]),
    default="auto",
    show_default=True,
    help="How to distribute the work; auto is torchrun under torchrun, else local.",
)
@click.option(
    "--max-bad",
    type=Number(0.0, 1.0),
    default=0.05,
    show_default=True,
    metavar="SHARE",
    help="Fail if a larger share of the samples cannot be used.",
)
@click.option(
    "--caption-column",
    "caption_columns",
    multiple=True,
    metavar="NAME",
    help="Column with captions; may be repeated.",
)
@click.option("--image-column", metavar="NAME", help="Column with pictures, in parquet.")
@click.option("--keep", multiple=True, metavar="NAME", help="Column with text to keep in the store; may be repeated.")
@click.option(
    "--image-norm",
    type=Number(0.0, above=True),
    metavar="NORM",
    help="For a source of unit-length embeddings: the mean length to scale them to.",
)
@click.option(
    "--subjects",
    is_flag=True,
    default=None,
    help="Also embed the subjects that the metadata name, cut out on white.",
)
@click.option(
    "--subject-column",
    metavar="NAME",
    help="Column, or field of the metadata, with subjects.  [default: subjects]",
)
@click.option(
    "--edges",
    is_flag=True,
    default=None,
    help="With --subjects: also embed the edges of each picture (needs the extra edges).",
)
@click.option("--dry-run", is_flag=True, help="Estimate time, memory and disk from the first pairs, and write nothing.")
@device_option
@json_option
def embed(
    as_json: bool, dry_run: bool, out: Path, caption_columns: tuple[str, ...], keep: tuple[str, ...], **options: Any
) -> None:
    """Embed pairs of pictures and captions with a CLIP, into a store to train priors on.

    A picture may have several captions. Rows with the same picture become one picture with all their captions. Numbers and
    booleans of the metadata become columns of the store. Samples that cannot be used are skipped, counted, and listed with the
    reason in STORE/bad.jsonl.
    """
    import json
    from dataclasses import asdict

    from syzygy.data import embedding

    request = embedding.EmbedRequest(out=out, caption_columns=caption_columns or None, keep=keep or None, **options)
    if dry_run:
        expected = embedding.dry_run(request)
        if as_json:
            click.echo(json.dumps({"source": request.source, **(asdict(expected) if expected else {})}))
        else:
            click.echo("\n".join(_expected(expected)))
        return
    writable_folder(out)
    result = embedding.embed(request, _print_expected, _progress)
    if result is not None:
        _print_summary(result, as_json)


def _expected(preview: "Preview | None") -> Iterator[str]:
    """What the work will take, a line each."""
    if preview is None:
        yield "estimate: none, because none of the first samples can be used."
        return
    names = ", ".join(preview.captions_from)
    yield f"captions: from {names}, such as {_quoted(preview.captions[0])}"
    if preview.like_addresses:
        yield (
            "warning: these look like addresses or file names, not like captions. If they are, stop and name another column "
            "with --caption-column."
        )
    if preview.not_found:
        has = ", ".join(preview.columns) or "none"
        yield (
            f"warning: none of the first pairs has {' or '.join(map(repr, preview.not_found))} of --keep. If that is a typing error, "
            f"stop and correct it. Their columns: {has}."
        )
    if preview.unusable:
        what = f"{len(preview.unusable)} of the first {counted(preview.looked_at, 'sample')} cannot be used"
        yield f"warning: {what}, such as {preview.unusable[0]}."
    yield from _expected_subjects(preview)
    amounts = [] if preview.samples is None else [counted(preview.samples, "sample")]
    if preview.seconds is not None:
        amounts.append(wording.duration(preview.seconds) if preview.seconds >= 1 else "less than a second")
    if preview.bytes is not None:
        amounts.append(f"{wording.size(preview.bytes)} on disk")
    about = "" if preview.counted else "about "
    yield f"estimate: {about}{', '.join([*amounts, f'{wording.size(preview.memory)} of memory'])}"


def _expected_subjects(preview: "Preview") -> Iterator[str]:
    if preview.subjects is not None:
        yield f"subjects: {preview.subjects:.3g} per pair, on average over the first pairs"
    if preview.bad_subjects:
        what = counted(len(preview.bad_subjects), "subject")
        yield f"warning: {what} of the first pairs cannot be used, such as {printable(preview.bad_subjects[0])}."


def _print_expected(preview: "Preview | None") -> None:
    print("\n".join(_expected(preview)), file=sys.stderr, flush=True)


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


def _print_summary(result: "EmbedResult", as_json: bool) -> None:
    import json

    from syzygy.cli.subject_summary import about_subjects, subject_lines
    from syzygy.data.store import EmbeddingStore

    manifest = result.manifest
    size = sum(path.stat().st_size for path in result.store.rglob("*") if path.is_file())
    tokens = manifest["features"]["clip"]["tokens"]
    counts = {name: manifest[name] for name in COUNTS}
    subjects = about_subjects(manifest, result.store)
    first = EmbeddingStore.open(result.store).texts([0])[0]
    reasons, files = _reasons(result.store)
    if as_json:
        summary = {"store": str(result.store), **counts, "first_caption": first, "tokens": tokens, "bytes": size}
        more = {"shards_embedded": result.embedded, "reasons": reasons, "unused_files": files}
        more |= {"subjects": subjects} if subjects else {}
        click.echo(json.dumps({**summary, **more}))
        return
    click.echo(
        f"{counted(counts['pictures'], 'picture')}, {counted(counts['captions'], 'caption')}, {counted(tokens, 'token')} in "
        f"{result.store} ({wording.size(size)}, {counted(len(manifest['shards']), 'shard')}, {result.embedded} of them embedded now)"
    )
    sources = ", ".join(f"{name} ({counted(number, 'sample')})" for name, number in counts["captions_from"].items())
    click.echo(f"captions come from {sources}; the first is {_quoted(first)}")
    if counts["text_left"]:
        click.echo(f"text that is not kept: {', '.join(counts['text_left'])} (--keep NAME keeps a column)")
    listed = result.store / "bad.jsonl"
    if reasons:
        bad = f"{counts['bad']:,} of {counted(manifest['seen'], 'sample')} could not be used"
        _print_reasons(f"{bad}; {listed} lists each with its reason:", reasons)
    if files:
        unused = (
            f"{counted(sum(files.values()), 'further file')} {'was' if sum(files.values()) == 1 else 'were'} not used"
        )
        _print_reasons(f"{unused}; {listed} names one for each reason:", files)
    for line in (*_about_pictures(counts), *subject_lines(subjects)):
        click.echo(line)
    if missing := [name for name in manifest["options"]["keep"] if name not in manifest["columns"]]:
        click.echo(f"warning: no sample has {' or '.join(map(repr, missing))} of --keep.", err=True)
    click.echo(f"Try next: syzygy store show {result.store}")


def _print_reasons(title: str, reasons: dict[str, int]) -> None:
    click.echo(title)
    for reason, number in [*reasons.items()][:SHOWN]:
        click.echo(f"{number:>10,} × {reason}")


def _about_pictures(counts: dict[str, Any]) -> Iterator[str]:
    """What else was found while reading them."""
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
    """(what was wrong with samples and captions, and how often, the most frequent first; the same for files that belong to no sample)."""
    import json
    from collections import Counter

    samples: Counter[str] = Counter()
    files: Counter[str] = Counter()
    for line in (store / "bad.jsonl").read_text(encoding="utf-8").splitlines():
        fault = json.loads(line)
        if fault["lost"] != "subject":
            (files if fault["lost"] == "file" else samples)[fault["reason"]] += fault.get("files", 1)
    return dict(samples.most_common()), dict(files.most_common())


@contextmanager
def _progress(tally: "Tally") -> Iterator[None]:
    """Show shards, samples, rate and time left on standard error: live on a terminal, else a line every ten seconds."""
    began = printed = time.monotonic()

    def status() -> str:
        seconds = time.monotonic() - began
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

    def display() -> Any:
        total = tally.expected
        bar = ProgressBar(total=total, completed=min(tally.seen, total or 0), width=40, pulse=total is None)
        return Group(bar, Text(status()))

    def print_line() -> None:
        nonlocal printed
        if time.monotonic() - printed >= PLAIN_LINE_SECONDS:
            printed = time.monotonic()
            print(f"embedding: {status()}", file=sys.stderr, flush=True)

    if not sys.stderr.isatty():
        tally.on_change = print_line
        yield
        return
    from rich.console import Console, Group
    from rich.live import Live
    from rich.progress_bar import ProgressBar
    from rich.text import Text

    with Live(get_renderable=display, refresh_per_second=4, console=Console(stderr=True), transient=True):
        yield
