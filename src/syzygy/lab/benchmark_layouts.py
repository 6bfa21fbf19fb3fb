"""File layouts that the official evaluations of benchmarks read: their prompt files and the names of image files.

They follow the code of Karine-Huang/T2I-CompBench (also that of T2I-CompBench++), facebookresearch/GenEval2, TencentQQGYLab/ELLA
(DPG-Bench) and djghosh13/geneval as of November 2026.

- T2I-CompBench lists `samples/` and takes the prompt (all before the first "_") and the number of the question (after it) from each file
  name; any other file in that folder breaks it.
- GenEval 2 reads a JSON file that maps each prompt to its image.
- DPG-Bench lists a folder of images that are called as the prompts' files are; an image holds up to four, two in a row.
- GenEval looks only into folders named by digits, for `metadata.jsonl` and `samples/<digits>.png`.
"""

import io
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from syzygy.core import artifacts
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
    name: str = ""
    """The name of the prompt's own file, without the ending, where it has one."""


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
    numbers: tuple[int, ...] = ()
    """The numbers of images for each prompt that it reads; empty: any."""
    finish: Callable[[Path, Sequence[Entry], int], None] = lambda folder, entries, images: None
    """Writes what needs all images: takes the folder, the prompts, and the number of images for each."""


def _lines(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"the prompt file {path} does not exist. --prompts takes the benchmark's own file.") from None
    except OSError as error:
        hint = " Only DPG-Bench's prompts (--layout dpg-bench) are a folder." if path.is_dir() else ""
        raise UserError(f"the prompts in {path} cannot be read: {error.strerror}.{hint}") from None
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
            raise UserError(
                f"{path} line {number} is JSON, not a prompt. For GenEval's prompts use --layout geneval2, or geneval for its older ones."
            )
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
        entries.append(Entry(_prompt(source, f"{path} line {number}", GENEVAL), source))
    return _filled(path, entries, max(blank - 1, 0))  # what follows the last end of line is not a blank line


def read_geneval2(path: Path) -> Prompts:
    """Read `geneval2_data.jsonl`: one JSON object in each line, with `prompt` and questions about it.

    Raises:
        UserError: as `read_geneval`; two lines have the same prompt.
    """
    entries, blank = [], 0
    lines: dict[str, int] = {}
    for number, line in enumerate(_lines(path).split("\n"), 1):
        source = line.strip()
        if not source:
            blank += 1
            continue
        where = f"{path} line {number}"
        prompt = _prompt(source, where, GENEVAL2)
        if prompt in lines:
            raise UserError(
                f"{where} has the prompt of line {lines[prompt]}, {prompt!r}: GenEval 2 finds images by prompt. Remove one of them."
            )
        lines[prompt] = number
        entries.append(Entry(prompt, source))
    return _filled(path, entries, max(blank - 1, 0))


def read_dpg_bench(path: Path) -> Prompts:
    """Read DPG-Bench's folder `dpg_bench/prompts`: a text file for each prompt.

    Raises:
        UserError: it is no folder, holds no text files, or one of them is empty, not UTF-8, or has a name with a dot.
    """
    if not path.exists():
        raise UserError(f"the folder {path} does not exist. --prompts takes the benchmark's own folder.")
    if not path.is_dir():
        raise UserError(
            f"{path} is not a folder. DPG-Bench's prompts are the text files in its folder dpg_bench/prompts."
        )
    entries, others = [], 0
    for file in sorted(path.iterdir()):
        if file.suffix != ".txt":
            others += 1
            continue
        text, name = " ".join(_lines(file).split()), file.stem
        if not text:
            raise UserError(f"{file} contains no prompt. Write one into it, or remove it.")
        if "." in name:
            raise UserError(f"{file}: DPG-Bench reads a prompt's name up to the first dot. Give the file another name.")
        entries.append(Entry(text, f"{name}\t{text}", name))
    if not entries:
        raise UserError(f"{path} contains no text files (*.txt), which hold DPG-Bench's prompts.")
    return Prompts(entries, [f"{path}: {counted(others, 'file')} without the ending .txt ignored."] * bool(others))


class JsonFormat(NamedTuple):
    """What a line of a benchmark's JSON file must hold."""

    benchmark: str
    file: str
    """The name of the benchmark's own file."""
    texts: tuple[str, ...]
    """Keys with a text that is not empty."""


GENEVAL = JsonFormat("GenEval", "evaluation_metadata.jsonl", ("prompt", "tag"))  # it fails without a tag
GENEVAL2 = JsonFormat("GenEval 2", "geneval2_data.jsonl", ("prompt",))


def _prompt(source: str, where: str, wanted: JsonFormat) -> str:
    """The prompt of a line."""
    try:
        value = json.loads(source)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise UserError(f"{where} is not a JSON object. {wanted.benchmark}'s file is {wanted.file}.")
    for key in wanted.texts:
        if not isinstance(value.get(key), str) or not value[key].strip():
            raise UserError(f"{where} has no text under {key!r}, which {wanted.benchmark} needs: {source[:60]}")
    if wanted == GENEVAL2 and not isinstance(value.get("vqa_list"), list):
        raise UserError(
            f"{where} has no questions under 'vqa_list', which GenEval 2 needs. Is it GenEval's older file?"
        )
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


def _geneval2_place(entry: Entry, prompt: int, image: int, images: int) -> Place:
    return Place(f"images/{prompt:05}.png", {})


def _geneval2_finish(folder: Path, entries: Sequence[Entry], images: int) -> None:
    """The file that GenEval 2 is given: prompt → path of its image."""
    paths = {
        entry.text: str(folder.resolve() / _geneval2_place(entry, i, 0, 1).image) for i, entry in enumerate(entries)
    }
    artifacts.write_json(folder / GENEVAL2_PATHS, paths)


def _dpg_bench_place(entry: Entry, prompt: int, image: int, images: int) -> Place:
    return Place(f"images/{entry.name}.png" if images == 1 else f"single/{entry.name}_{image}.png", {})


def _dpg_bench_finish(folder: Path, entries: Sequence[Entry], images: int) -> None:
    """The grids that DPG-Bench cuts into images: from left to right, then down."""
    for entry in entries if images > 1 else ():
        parts = [Image.open(folder / _dpg_bench_place(entry, 0, i, images).image) for i in range(images)]
        width, height = parts[0].size
        grid = Image.new("RGB", (2 * width, (images + 1) // 2 * height))
        for i, part in enumerate(parts):
            grid.paste(part, (i % 2 * width, i // 2 * height))
        file = io.BytesIO()
        grid.save(file, "PNG")
        artifacts.write_bytes(folder / "images" / f"{entry.name}.png", file.getvalue())


def _holds_images(folder: Path) -> bool:
    return (folder / "images").is_dir() and any((folder / "images").iterdir())


GENEVAL2_PATHS = "image_paths.json"
LAYOUTS = {
    layout.name: layout
    for layout in (
        Layout("geneval2", 1, read_geneval2, _geneval2_place, _holds_images, (1,), _geneval2_finish),
        Layout("dpg-bench", 4, read_dpg_bench, _dpg_bench_place, _holds_images, (1, 4), _dpg_bench_finish),
        Layout("t2i-compbench", 10, read_t2i_compbench, _t2i_compbench_place, _t2i_compbench_occupied),
        Layout("geneval", 4, read_geneval, _geneval_place, _geneval_occupied),
    )
}
LAYOUTS["t2i-compbench++"] = LAYOUTS["t2i-compbench"]
