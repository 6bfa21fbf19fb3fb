"""Text encoders that are a language model and an adapter, from their folders."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from syzygy.clip.clip_model import Clip
from syzygy.core import artifacts
from syzygy.core.config import parse
from syzygy.core.errors import UserError
from syzygy.core.model_parts import part_folder
from syzygy.prior.prior_loading import check_trained_with
from syzygy.text_encoders.adapter import AdaptedText, TextAdapter
from syzygy.text_encoders.llm import DTYPES, Llm, LlmRecipe, check_same

PART = "adapter"


def load_adapted(
    source: str | Path,
    clip: Clip,
    *,
    llm: str | Path | None = None,
    device: str = "cpu",
    local_files_only: bool = True,
) -> AdaptedText:
    """The text encoder of an adapter in place of this CLIP's own, read as it was in training: recipe, revision, precision.

    Args:
        source: the adapter's folder, that of its run, or of a model that has one.
        llm: where its language model lies now, a folder or a hub id; None is where it lay in training.

    Raises:
        UserError: a part is not found or does not fit; the language model, its recipe or its features are others than in training; the
            adapter was trained for another CLIP.
    """
    folder = part_folder(source, PART)
    adapter = TextAdapter.from_pretrained(folder)
    check_trained_with(folder, "clip", clip.fingerprint)
    recorded = identity_of(folder)
    place, revision = place_of(recorded, folder) if llm is None else (llm, None)
    model = Llm.from_pretrained(
        place,
        recipe=recipe_of(recorded),
        revision=revision,
        dtype=DTYPES[recorded["dtype"]],
        local_files_only=local_files_only,
    ).to(device)
    encoder = AdaptedText(model, adapter.to(device).requires_grad_(False))
    check_same(recorded, model.identity().to_config(), f"the adapter in {folder}")
    return encoder


def identity_of(folder: Path) -> dict[str, Any]:
    """The identity of the language model that the adapter in this folder was trained on, as `LlmIdentity.to_config` gives it."""
    path = folder / artifacts.PROVENANCE_FILE
    found = artifacts.read_json(path).get("llm")
    if not isinstance(found, dict) or found.get("dtype") not in DTYPES:
        raise UserError(
            f"{path} does not say on which language model, and in which precision, the adapter was trained."
        )
    return found


def recipe_of(identity: dict[str, Any]) -> LlmRecipe:
    """The recipe in a recorded identity."""
    values = {name: identity[name] for name in LlmRecipe.model_fields if name in identity}
    return parse(LlmRecipe, values, "the recorded language model")


def place_of(recorded: Mapping[str, Any], folder: Path) -> tuple[str, str | None]:
    """Where the recorded language model of the adapter in `folder` is, a folder or a hub id, and at which revision.

    A relative path is one from the folder around the adapter's (a model that keeps both), or from the working directory.

    Raises:
        UserError: it was in a folder that is not there: says where it was looked for.
    """
    source, revision = str(recorded.get("source")), recorded.get("revision")
    if revision is not None:
        return source, revision
    tried = list(dict.fromkeys([folder.resolve().parent / source, Path.cwd() / source]))
    found = next((place for place in tried if place.is_dir()), None)
    if found is None:
        raise UserError(
            f"the language model of the adapter in {folder} was in the folder {source}, which is not there (looked for "
            f"{' and '.join(map(str, tried))}): say where it is now (--llm FOLDER)."
        )
    return str(found), None
