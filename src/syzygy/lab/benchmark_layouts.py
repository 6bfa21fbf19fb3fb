"""What the official judges of T2I-CompBench and GenEval read: their files of prompts, and how they want pictures named.

Read from their code (Karine-Huang/T2I-CompBench, djghosh13/geneval) in November 2026. T2I-CompBench lists `samples/` and
takes from each file name the prompt (all before the first "_") and the question (the number after it); whatever else
lies in that folder breaks it. GenEval looks into folders named by digits only, and there at `metadata.jsonl` and `samples/<digits>.png`.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from syzygy.core.errors import UserError
from syzygy.core.wording import counted

NAME_BYTES = 255
"""The longest name of a file, on every common file system."""
NUMBER = "_{:06}.png"
UNREADABLE = re.compile(r"[/_\x00-\x1f\x7f]|\.png")
"""What a file name cannot hold, or where the judges cut it."""


class Entry(NamedTuple):
    """A prompt of a benchmark."""

    text: str
    """What to paint."""
    source: str
    """The line as the benchmark has it, without the end of line."""


@dataclass(frozen=True)
class Prompts:
    """A file of prompts, read."""

    entries: Sequence[Entry]
    notes: Sequence[str] = ()
    """What was not taken as it stands, a line each."""


@dataclass(frozen=True)
class Place:
    """Where a picture goes, relative to the exported folder."""

    picture: str
    beside: Mapping[str, str]
    """Other files that the judge wants with it, and what is in them."""


@dataclass(frozen=True)
class Layout:
    """What a judge reads."""

    name: str
    images_per_prompt: int
    """As in the benchmark's paper."""
    read: Callable[[Path], Prompts]
    place: Callable[[Entry, int, int, int], Place]
    """Of an entry, the index of its prompt, that of the picture among the prompt's, and pictures a prompt."""
    occupied: Callable[[Path], bool]
    """Whether the judge would find something in a folder."""


def _lines(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"there is no file of prompts {path}. --prompts names the benchmark's own file.") from None
    except OSError as error:
        raise UserError(f"the prompts in {path} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not text in UTF-8 (byte {error.start}). Convert it, or give another file."
        ) from None


def _filled(path: Path, entries: Sequence[Entry], blank: int, notes: Sequence[str] = ()) -> Prompts:
    if not entries:
        raise UserError(f"{path} holds no prompts: it is empty.")
    skipped = [f"{path}: {blank} blank line{'s are' if blank > 1 else ' is'} skipped."] if blank else []
    return Prompts(entries, [*skipped, *notes])


def read_t2i_compbench(path: Path) -> Prompts:
    """A prompt a line; what follows a tab is no part of it, as in the benchmark's own generator.

    Raises:
        UserError: missing, empty or not UTF-8; or a prompt that a file name cannot hold (the line is named).
    """
    entries, blank, tabs, renamed = [], 0, 0, []
    for number, line in enumerate(_lines(path).splitlines(), 1):
        text, tab, _ = line.partition("\t")
        text = text.strip()
        if not text:
            blank += 1
            continue
        if not entries and text.startswith("{"):
            raise UserError(f"{path} line {number} is JSON, not a prompt. GenEval's prompts need --layout geneval.")
        name = spoken(text)
        longest = NAME_BYTES - len(NUMBER.format(0))
        if not name or len(name.encode()) > longest:
            size = f"has {len(name.encode())} bytes" if name else "has no letter that a file name can hold"
            raise UserError(
                f"{path} line {number} {size}: the judge reads prompts from file names, so 1 to {longest} bytes are "
                f"allowed. Shorten or drop the prompt {text[:40]!r}…"
            )
        tabs += bool(tab)
        if name != text:
            renamed.append(number)
        entries.append(Entry(text, text))
    notes = [
        f"{path}: in {counted(tabs, 'line')} what follows a tab is left out, as the benchmark's generator does."
    ] * bool(tabs)
    if renamed:
        notes.append(
            f"{path}: the judge reads prompts from file names, which cannot hold '/' or '_': {len(renamed)} of them have "
            f"spaces there instead (line {renamed[0]} first). They are painted as written."
        )
    return _filled(path, entries, blank, notes)


def spoken(text: str) -> str:
    """A prompt as the judge of T2I-CompBench shall read it from a file name: itself, or with spaces for `UNREADABLE`."""
    return " ".join(UNREADABLE.sub(" ", text).split()) if UNREADABLE.search(text) else text


def read_geneval(path: Path) -> Prompts:
    """`evaluation_metadata.jsonl`: a JSON object a line with `prompt`, `tag` and what else the judge wants.

    Raises:
        UserError: missing, empty or not UTF-8; or a line without these (its number is named).
    """
    entries, blank = [], 0
    for number, line in enumerate(_lines(path).split("\n"), 1):  # JSON may hold what splitlines takes for an end
        source = line.strip()
        if not source:
            blank += 1
            continue
        entries.append(Entry(_metadata(source, f"{path} line {number}"), source))
    return _filled(path, entries, max(blank - 1, 0))  # after the last end of line there is nothing


def _metadata(source: str, where: str) -> str:
    """The prompt of a line of GenEval's metadata."""
    try:
        value = json.loads(source)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise UserError(f"{where} is no JSON object. GenEval's file is evaluation_metadata.jsonl.")
    for key in ("prompt", "tag"):  # the judge fails without a tag
        if not isinstance(value.get(key), str) or not value[key].strip():
            raise UserError(f"{where} has no text {key!r}, which GenEval's judge needs: {source[:60]}")
    if any("\ud800" <= c <= "\udfff" for c in source + value["prompt"]):
        raise UserError(f"{where}: the prompt is not text, it holds broken characters: {value['prompt']!r}.")
    return value["prompt"]


def _t2i_compbench_place(entry: Entry, prompt: int, image: int, images: int) -> Place:
    return Place("samples/" + spoken(entry.text) + NUMBER.format(prompt * images + image), {})


def _geneval_place(entry: Entry, prompt: int, image: int, images: int) -> Place:
    folder = f"{prompt:05}"
    return Place(f"{folder}/samples/{image:04}.png", {f"{folder}/metadata.jsonl": entry.source + "\n"})


def _t2i_compbench_occupied(folder: Path) -> bool:
    samples = folder / "samples"
    return samples.is_dir() and any(samples.iterdir())


def _geneval_occupied(folder: Path) -> bool:
    return folder.is_dir() and any(child.name.isdigit() for child in folder.iterdir())


LAYOUTS = {
    layout.name: layout
    for layout in (
        Layout("t2i-compbench", 10, read_t2i_compbench, _t2i_compbench_place, _t2i_compbench_occupied),
        Layout("geneval", 4, read_geneval, _geneval_place, _geneval_occupied),
    )
}
