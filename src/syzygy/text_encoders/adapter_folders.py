"""Adapters in their folders: as text encoders with their language model, and as the stage that a training continues from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from syzygy.clip.clip_model import Clip
from syzygy.core import artifacts
from syzygy.core.config import parse
from syzygy.core.errors import UserError
from syzygy.core.model_parts import part_folder
from syzygy.prior.prior_loading import check_trained_with
from syzygy.text_encoders.adapter import AdaptedText, TextAdapter
from syzygy.text_encoders.llm import DTYPES, Llm, LlmRecipe, check_same, load_llm
from syzygy.text_encoders.prompt_target import PromptTarget, check_target

PART = "adapter"
CONTINUES: Mapping[str, Sequence[str]] = {"image": ("align", "image"), "quality": ("image", "quality")}
"""For each later stage, the stages whose adapters it can continue from."""


def load_adapted(
    source: str | Path,
    clip: Clip,
    *,
    llm: str | Path | None = None,
    device: str = "cpu",
    local_files_only: bool = True,
) -> AdaptedText:
    """The text encoder of an adapter, to be used instead of this CLIP's own. The language model is read as it was in training.

    Args:
        source: the folder of the adapter, of its run, or of a model that has one.
        llm: folder or hub id of its language model; None is where it was in training.

    Raises:
        UserError: a part is not found or does not fit; the language model, its recipe or its features differ from those in training;
            the adapter was trained for another CLIP.
    """
    folder = part_folder(source, PART)
    adapter = TextAdapter.from_pretrained(folder)
    if (target := adapter.config.target) is not None:
        raise UserError(
            f"the adapter in {folder} was trained for a {target}; the prior here reads CLIP's features {clip.width} wide. Give an adapter "
            "that was trained with that CLIP (syzygy train adapter --stage align --clip), or use such a Stable Diffusion."
        )
    check_trained_with(folder, "clip", clip.fingerprint)
    model = load_recorded_llm(folder, llm, device=device, local_files_only=local_files_only)
    return AdaptedText(model, adapter.to(device).requires_grad_(False))


def load_recorded_llm(
    folder: Path, llm: str | Path | None, *, device: str = "cpu", local_files_only: bool = True
) -> Llm:
    """The language model of the adapter in `folder`, read by the same recipe and in the same precision as in training.

    Args:
        llm: folder or hub id of the language model; None is where it was in training.

    Raises:
        UserError: it is not found, or is a different one.
    """
    recorded = identity_of(folder)
    place, revision = place_of(recorded, folder) if llm is None else (llm, None)
    values = {name: recorded[name] for name in LlmRecipe.model_fields if name in recorded}
    model = load_llm(
        place,
        recipe=parse(LlmRecipe, values, "the recorded language model"),
        revision=revision,
        dtype=DTYPES[recorded["dtype"]],
        bits=recorded.get("bits"),
        local_files_only=local_files_only,
    ).to(device)
    check_same(recorded, model.identity().to_config(), f"the adapter in {folder}")
    return model


def identity_of(folder: Path) -> dict[str, Any]:
    """The identity of the language model that the adapter in this folder was trained on, as `LlmIdentity.to_config` gives it."""
    path = folder / artifacts.PROVENANCE_FILE
    found = artifacts.read_json(path).get("llm")
    if not isinstance(found, dict) or found.get("dtype") not in DTYPES:
        raise UserError(
            f"{path} does not say on which language model, and in which precision, the adapter was trained."
        )
    return found


def place_of(recorded: Mapping[str, Any], folder: Path) -> tuple[str, str | None]:
    """Where the recorded language model of the adapter in `folder` is, as a folder, a GGUF file or a hub id, and its revision.

    A relative path starts at the folder that contains the adapter's (of a model that keeps both), or at the working directory.

    Raises:
        UserError: it was in a folder that is not there; the error lists where it was searched.
    """
    source, revision = str(recorded.get("source")), recorded.get("revision")
    if revision is not None:
        return source, revision
    tried = list(dict.fromkeys([folder.resolve().parent / source, Path.cwd() / source]))
    found = next((place for place in tried if place.exists()), None)
    if found is None:
        raise UserError(
            f"the language model of the adapter in {folder} was in the folder {source}, which is not there (looked for "
            f"{' and '.join(map(str, tried))}): say where it is now (--llm FOLDER)."
        )
    return str(found), None


@dataclass(frozen=True)
class PreviousStage:
    """The finished adapter that a stage continues from."""

    run: Path
    adapter: TextAdapter
    record: Mapping[str, Any]
    """Its provenance."""
    llm: Mapping[str, Any]
    """The identity of its language model."""
    next_stage: str
    """The stage that continues from it: image or quality."""

    @staticmethod
    def load(
        source: str | Path, stage: str, target: PromptTarget | None = None, model: str | Path = ""
    ) -> "PreviousStage":
        """What `stage` continues from: the adapter of a finished run.

        Args:
            target: what the U-Net of the Stable Diffusion `model` reads, if the stage trains with one; None trains with a prior.

        Raises:
            UserError: there is no finished adapter; it is of a stage from which this one cannot continue, or speaks to another kind of model.
        """
        folder = part_folder(source, PART)
        adapter, record = TextAdapter.from_pretrained(folder), artifacts.read_json(folder / artifacts.PROVENANCE_FILE)
        if target is not None:
            check_target(adapter.config.speaks_to, target, folder, model)
        elif (own := adapter.config.target) is not None:
            raise UserError(
                f"the adapter in {folder} was trained for a {own}; stage {stage!r} with a prior trains adapters of priors. Name that Stable "
                "Diffusion (--model)."
            )
        if (found := record.get("stage")) not in CONTINUES[stage]:
            raise UserError(
                f"the adapter in {folder} is of stage {found!r}; stage {stage!r} continues from {' or '.join(CONTINUES[stage])}. "
                "The order is align, image, quality."
            )
        return PreviousStage(folder.parent, adapter, record, identity_of(folder), stage)

    @property
    def lineage(self) -> list[dict[str, Any]]:
        """All stages so far, this one included, the oldest first."""
        kept = ("stage", "clip", "text_encoders", "prior", "data", "decoder", "unet", "steps", "samples")
        own = {name: self.record[name] for name in kept if name in self.record}
        return [*self.record.get("lineage", []), own | {"adapter": artifacts.fingerprint(self.adapter.state_dict())}]

    def languages(self, more: Sequence[str] = ()) -> list[str] | None:
        """Codes of the languages that it was trained on, and `more`; None if its record does not name any."""
        own = self.record.get("languages")
        return list(dict.fromkeys([*own, *more])) if own else None

    def language_model(self, llm: str | None, *, local_files_only: bool = True) -> Llm:
        """Its language model; `llm` is where that is now, None is where it was in training.

        Raises:
            UserError: it is not found, or is a different one.
        """
        return load_recorded_llm(self.run / PART, llm, local_files_only=local_files_only)

    def check_clip(self, fingerprint: str) -> None:
        """
        Raises:
            UserError: it was aligned with another CLIP.
        """
        if self.record.get("clip") != fingerprint:
            raise UserError(
                f"the adapter of {self.run} was aligned with another CLIP ({self.record.get('clip')}, here {fingerprint}), whose "
                "embeddings are different. Give that one."
            )
