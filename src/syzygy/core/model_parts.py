"""Folders of Syzygy's own models: which parts a model has, and where each one lies."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from syzygy.core import artifacts
from syzygy.core.errors import UserError
from syzygy.core.model_files import refuse_file

INDEX_FILE = "model_index.json"
CLASS_NAME = "TextToImage"
COMPONENTS = ("clip", "prior", "decoder", "autoencoder", "reader")
OPTIONAL = ("t5", "placement", "llm", "adapter", "judge")
"""Further parts that a model may have: T5, if its decoder reads it; a placement predictor for its words; a language model and its adapter,
which are loaded only if they are chosen as the text encoder; the judge that scores images, in the starter alone."""
BUNDLED = {"starter": Path(__file__).parents[1] / "pretrained" / "starter"}
"""Models that come with the package."""


def model_folder(model: str | Path, published: Iterable[str] = ()) -> Path:
    """The folder of a model that comes with the package, or of one on disk. `published` lists further names for the error."""
    if str(model) in BUNDLED:
        folder = BUNDLED[str(model)]
        if not (folder / INDEX_FILE).is_file():
            raise UserError(
                f"the weights of {str(model)!r} are missing. Train them with: syzygy train starter --out RUN"
            )
        return folder
    folder = Path(model)
    refuse_file(folder)
    if not (folder / INDEX_FILE).is_file():
        what = "has no " + INDEX_FILE if folder.is_dir() else "is neither a folder nor a known model"
        raise UserError(
            f"model {str(model)!r} {what}. Known: {', '.join([*BUNDLED, *published])}; or a folder made by syzygy "
            "train starter, one in diffusers' layout, or a hub id."
        )
    return folder


def read_index(folder: Path, published: Iterable[str] = ()) -> dict[str, Any]:
    """The index of a model's folder. `published` lists the classes of pipelines that are loaded in another way, for the error."""
    index = artifacts.read_json(folder / INDEX_FILE)
    if index.get("_class_name") != CLASS_NAME:
        raise UserError(
            f"{folder} holds a {index.get('_class_name')!r}, which is neither a model of syzygy ({CLASS_NAME!r}) nor one of "
            f"{', '.join(published)}."
        )
    if (schema := index.get("schema_version")) != artifacts.SCHEMA_VERSION:
        raise UserError(f"{folder} has schema {schema}; this version reads {artifacts.SCHEMA_VERSION}. Update syzygy.")
    return index


def part_folder(source: str | Path, part: str) -> Path:
    """The folder of a part. `source` is a model (by name or folder), the finished run that trained the part, or the part's own folder."""
    if str(source) in BUNDLED:
        return model_folder(source) / part
    folder = Path(source)
    refuse_file(folder)
    if (folder / part / artifacts.CONFIG_FILE).is_file():
        return folder / part
    if (folder / "run.json").is_file():
        raise UserError(f"the run in {folder} is not finished. Repeat the command that began it to continue it.")
    if not folder.is_dir():
        raise UserError(f"{part} {str(source)!r} is neither a folder nor a known model. Known: {', '.join(BUNDLED)}.")
    return folder


def part_or_id(source: str | Path, part: str) -> Path | str:
    """The folder of a part, as in `part_folder`, if `source` is a packaged model or a folder; else `source` itself, a hub id."""
    return part_folder(source, part) if str(source) in BUNDLED or Path(source).is_dir() else str(source)
