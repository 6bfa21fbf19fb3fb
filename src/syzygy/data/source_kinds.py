"""What kind of source lies in a folder, and what to do where there is none."""

import re
from pathlib import Path

from syzygy.core.errors import UserError
from syzygy.core.wording import shortlist
from syzygy.data import source_captions, source_folder

ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
"""How an address on the web, or of a cloud's storage, begins."""
ENDINGS = {".tar": "tar", ".parquet": "parquet"}
SPLITS = ("train", "training", "test", "val", "valid", "validation", "dev")
KINDS = (
    "img2dataset's tars, parquet with pictures, a folder with metadata.jsonl or metadata.csv, a folder of pictures with caption "
    "files (x.png, x.txt), or clip-retrieval's folder with img_emb and metadata"
)
SHOWN = 5
PEEKED = 2**16
"""Bytes of a JSON file that are looked at."""


def inside(folder: Path, ending: str) -> list[Path]:
    """Files with this ending, in any case, in the folder, by name."""
    found = (path for path in folder.iterdir() if path.suffix.lower() == ending and not path.name.startswith("."))
    return sorted(found)


def kind_of(path: Path) -> str:
    """What kind of source this file or folder is.

    Raises:
        UserError: none: says what is there instead, and what to do.
    """
    if path.is_dir():
        found = _kind_of_folder(path)
        if found is not None:
            return found
        splits = [folder.name for folder in _folders(path) if _is_source(folder)]
        if splits:
            raise UserError(
                f"{path} holds no pairs itself, but folders in it do: {shortlist(splits, SHOWN)}. Name one of them, such as "
                f"{path / splits[0]}; `syzygy store merge` joins the stores of several."
            )
        if source_captions.has_pairs(path):
            return "caption files"
        raise UserError(f"{path} holds no pairs. {_hint(path)}A source is {KINDS}.")
    kind = ENDINGS.get(path.suffix.lower())
    if kind is not None:
        return kind
    if path.name in (source_folder.LINES, source_folder.TABLE):
        raise UserError(f"{path} lists the pictures of a folder. Name the folder: {path.parent}")
    if re.search(r"\.(tgz|tar\.\w+)$", path.name, re.IGNORECASE):
        raise UserError(
            f"{path} is a compressed tar. Compression saves nothing on pictures, and reading could not continue in the "
            "middle. Unpack it (gunzip, unxz, unzstd) and name the .tar."
        )
    raise UserError(f"{path} is no source of pairs. {_about_json([path])}A source is {KINDS}.")


def _kind_of_folder(folder: Path) -> str | None:
    if (folder / "img_emb").is_dir():
        return "embeddings"
    if any((folder / name).is_file() for name in (source_folder.LINES, source_folder.TABLE)):
        return "folder"
    # img2dataset writes tables of metadata, without pictures, next to its tars.
    return next((kind for ending, kind in ENDINGS.items() if inside(folder, ending)), None)


def _is_source(folder: Path) -> bool:
    """Whether a folder within a folder is a source of its own: by its files, or as a split with caption files."""
    return _kind_of_folder(folder) is not None or (folder.name.lower() in SPLITS and source_captions.has_pairs(folder))


def _folders(path: Path) -> list[Path]:
    return sorted(folder for folder in path.glob("*/") if not folder.name.startswith("."))


def _hint(path: Path) -> str:
    """What is there instead of pairs, if it is something known."""
    deeper = next((inner for folder in _folders(path) for inner in _folders(folder) if _kind_of_folder(inner)), None)
    if deeper is not None:
        return f"There are pairs in {deeper}: name that. "
    if any(file.name.lower().endswith((".tar.gz", ".tgz")) for file in path.iterdir()):
        return "Its tars are compressed: unpack them with gunzip. "
    about = _about_json([file for ending in (".json", ".jsonl") for file in inside(path, ending)])
    if about:
        return about
    pictures, _ = source_captions.files_in(path)
    if pictures:
        return (
            f"It has pictures ({shortlist([name for _, name in pictures], SHOWN)}) without captions: give each a text file of its name, "
            "or list them in metadata.jsonl. "
        )
    return ""


def _about_json(files: list[Path]) -> str:
    for file in files:
        if file.suffix not in (".json", ".jsonl") or not file.is_file():
            continue
        with file.open("rb") as opened:
            begins = opened.read(PEEKED)
        if b'"conversations"' in begins:
            return f"{file.name} holds conversations. {source_folder.CONVERSATIONS} "
        if file.suffix == ".json" and begins.lstrip().startswith(b"["):
            return f"{file.name} is a JSON array. Write one object a line: jq -c '.[]' {file.name} > {source_folder.LINES} "
        return f"{file.name} is not read: the list of a folder's captions is called {source_folder.LINES}. "
    return ""
