"""File layouts that the official evaluations of T2I-CompBench and GenEval read: their prompt files and the names of image files.

They follow the code of Karine-Huang/T2I-CompBench and djghosh13/geneval as of November 2026. T2I-CompBench lists `samples/` and takes
the prompt (all before the first "_") and the number of the question (after it) from each file name; any other file in that folder breaks
it. GenEval looks only into folders named by digits, for `metadata.jsonl` and `samples/<digits>.png`.
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
"""The longest file name on common file systems."""
NUMBER = "_{:06}.png"
UNREADABLE = re.compile(r"[/_\x00-\x1f\x7f]|\.png")
"""What a file name cannot hold, and where T2I-CompBench cuts it."""


class Entry(NamedTuple):
    """A prompt of a benchmark."""

    text: str
    """The prompt."""
    source: str
    """The line of the benchmark's file, without its end."""


@dataclass(frozen=True)
class Prompts:
    """The contents of a prompt file."""

    entries: Sequence[Entry]
    notes: Sequence[str] = ()
    """A line for each kind of change that was made to them."""


@dataclass(frozen=True)
class Place:
    """The files of an image, relative to the exported folder."""

    image: str
    metadata: Mapping[str, str]
    """Other files that the evaluation reads with it, and their contents."""


@dataclass(frozen=True)
class Layout:
    """The files that an evaluation reads."""

    name: str
    images_per_prompt: int
    """The number that the benchmark's paper uses."""
    read: Callable[[Path], Prompts]
    place: Callable[[Entry, int, int, int], Place]
    """Takes an entry, its index, the index of the image for it, and the number of images for each prompt."""
    occupied: Callable[[Path], bool]
    """Whether the evaluation would find images in a folder."""


def _lines(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"the prompt file {path} does not exist. --prompts takes the benchmark's own file.") from None
    except OSError as error:
        raise UserError(f"the prompts in {path} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not text in UTF-8 (byte {error.start}). Convert it, or give another file."
        ) from None


def _filled(path: Path, entries: Sequence[Entry], blank: int, notes: Sequence[str] = ()) -> Prompts:
    if not entries:
        raise UserError(f"{path} contains no prompts.")
    skipped = [f"{path}: {blank} blank line{'s are' if blank > 1 else ' is'} skipped."] if blank else []
    return Prompts(entries, [*skipped, *notes])


def read_t2i_compbench(path: Path) -> Prompts:
    """Read one prompt from each line. Text after a tab is ignored, as in the benchmark's own generator.

    Raises:
        UserError: the file is missing, empty or not UTF-8, or a prompt does not fit a file name (names the line).
    """
    entries, blank, tabs, renamed = [], 0, 0, []
    for number, line in enumerate(_lines(path).splitlines(), 1):
        text, tab, _ = line.partition("\t")
        text = text.strip()
        if not text:
            blank += 1
            continue
        if not entries and text.startswith("{"):
            raise UserError(f"{path} line {number} is JSON, not a prompt. For GenEval's prompts use --layout geneval.")
        name = file_text(text)
        longest = NAME_BYTES - len(NUMBER.format(0))
        if not name or len(name.encode()) > longest:
            size = f"has {len(name.encode())} bytes" if name else "has no character that a file name can hold"
            raise UserError(
                f"{path} line {number} {size}. T2I-CompBench reads prompts from file names, so 1 to {longest} bytes are "
                f"allowed. Shorten or remove the prompt {text[:40]!r}…"
            )
        tabs += bool(tab)
        if name != text:
            renamed.append(number)
        entries.append(Entry(text, text))
    notes = [
        f"{path}: text after a tab was ignored in {counted(tabs, 'line')}, as the benchmark's generator does."
    ] * bool(tabs)
    if renamed:
        notes.append(
            f"{path}: T2I-CompBench reads prompts from file names, which cannot contain '/' or '_'. The file names of "
            f"{counted(len(renamed), 'prompt')} have spaces instead (first: line {renamed[0]}). Images follow the prompts as written."
        )
    return _filled(path, entries, blank, notes)


def file_text(text: str) -> str:
    """A prompt as it stands in T2I-CompBench's file names: with spaces in place of what is `UNREADABLE`."""
    return " ".join(UNREADABLE.sub(" ", text).split()) if UNREADABLE.search(text) else text


def read_geneval(path: Path) -> Prompts:
    """Read `evaluation_metadata.jsonl`: one JSON object in each line, with `prompt`, `tag` and other keys that GenEval reads.

    Raises:
        UserError: the file is missing, empty or not UTF-8, or a line lacks one of these keys (names the line).
    """
    entries, blank = [], 0
    for number, line in enumerate(
        _lines(path).split("\n"), 1
    ):  # JSON strings may contain characters at which splitlines cuts
        source = line.strip()
        if not source:
            blank += 1
            continue
        entries.append(Entry(_metadata(source, f"{path} line {number}"), source))
    return _filled(path, entries, max(blank - 1, 0))  # what follows the last end of line is not a blank line


def _metadata(source: str, where: str) -> str:
    """The prompt of a line of GenEval's metadata."""
    try:
        value = json.loads(source)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise UserError(f"{where} is not a JSON object. GenEval's file is evaluation_metadata.jsonl.")
    for key in ("prompt", "tag"):  # GenEval fails without a tag
        if not isinstance(value.get(key), str) or not value[key].strip():
            raise UserError(f"{where} has no text under {key!r}, which GenEval needs: {source[:60]}")
    if any("\ud800" <= c <= "\udfff" for c in source + value["prompt"]):
        raise UserError(f"{where}: the prompt contains characters that are not valid text: {value['prompt']!r}.")
    return value["prompt"]


def _t2i_compbench_place(entry: Entry, prompt: int, image: int, images: int) -> Place:
    return Place("samples/" + file_text(entry.text) + NUMBER.format(prompt * images + image), {})


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
