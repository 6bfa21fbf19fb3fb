"""Commands to try after the training of a prior, and the recorded facts about its data that they need."""

import shlex
from pathlib import Path
from typing import Any

import torch

from syzygy.core import artifacts
from syzygy.core.model_parts import INDEX_FILE, part_folder
from syzygy.data.store import EmbeddingStore
from syzygy.prior.embedding_pairs import Pairs, StorePairs
from syzygy.prior.prior_folders import PART

ABOUT = "about_data"
"""Key of a prior's provenance: facts about its training data."""
NOT_MEASURED = "not_measured"
"""Key of a prior's provenance: a sentence about the metrics that its validation did not measure; may be empty."""
ENVIRONMENT_FILE = "environment.json"
EXAMPLE = "example_caption"
"""Key of a run's environment.json, which is not exported: a caption of the validation pairs."""
LONGEST = 60
"""Most characters of a caption in a command."""
WORLD_CAPTION = "a red circle"
SUBJECT_CAPTION, SUBJECT_WORD = "a thing left of a blue ring", "thing"
"""Of the embedded world: a prompt, and its word that stands for a picture."""
MODELS = {768: "karlo", 1280: "kandinsky-2.2"}
"""Published models by the width of their image embeddings."""
NO_PICTURES = (
    "The starter's decoder draws only the embedded world, so it cannot show what this prior learned from other images. "
    "To see some, embed them with the CLIP of a published model."
)


def counts(training: Pairs, validation: Pairs) -> dict[str, int]:
    """Numbers of pairs and of images, for training and for validation."""

    def pictures(pairs: Pairs) -> int:
        return len(pairs.image_numbers(torch.arange(len(pairs))).unique())

    return {
        "pairs": len(training),
        "pictures": pictures(training),
        "validation_pairs": len(validation),
        "validation_pictures": pictures(validation),
    }


def about_store(store: EmbeddingStore, training: StorePairs, validation: StorePairs, world: bool) -> dict[str, Any]:
    """The facts about a store for the provenance of a prior; `world` says whether it is of the embedded world."""
    # The packaged CLIP is in another folder on each machine, so it is recorded by its name.
    encoder = "starter" if store.encoder["fingerprint"] == starter_clip() else store.encoder["source"]
    source = store.source or store.manifest["command"]
    return {"source": source, "encoder": encoder, "world": world, **counts(training, validation)}


def after_training(run: Path, store: Path | None, clip: str) -> tuple[str, ...]:
    """Commands to try, or a sentence if no decoder can show what was learned.

    Args:
        run: folder of the finished run.
        store: the store that it was trained on; None means the embedded world.
        clip: without a store, the source of its CLIP. If that is a whole model, it can show what was learned.
    """
    record = artifacts.read_json(run / PART / artifacts.PROVENANCE_FILE)
    caption = artifacts.read_json(run / ENVIRONMENT_FILE).get(EXAMPLE)
    command = ["syzygy", "evaluate", "prior", "--data", str(store), "--prior", str(run)]
    measured = () if store is None else (shlex.join(command),)
    whole = store is None and (Path(clip) / INDEX_FILE).is_file()
    return (*measured, *generated(record, caption, run, clip if whole else None))


def after_export(folder: Path, run: Path) -> tuple[str, ...]:
    """Commands to try with an exported prior."""
    environment = run / ENVIRONMENT_FILE
    caption = artifacts.read_json(environment).get(EXAMPLE) if environment.is_file() else None
    return generated(artifacts.read_json(folder / artifacts.PROVENANCE_FILE), caption, folder)


def generated(record: dict[str, Any], caption: str | None, prior: Path, model: str | None = None) -> tuple[str, ...]:
    """The command that generates an image with a prior, or the reason why there is none. `model` is a model that fits it.

    For a prior that reads subjects, the command has one.
    """
    text = shortened(caption or WORLD_CAPTION)
    model = model or decoder_of(record)
    if model is None:
        return (NO_PICTURES,) if record.get("clip") == starter_clip() else ()
    which = [] if model == "starter" else ["--model", model]
    if "controlled" not in record.get("recipe", {}).get("task", {}):  # a setting of λ-ECLIPSE alone
        return (shlex.join(["syzygy", "generate", text, *which, "--prior", str(prior)]),)
    if record.get("clip") != starter_clip():
        return (shlex.join(["syzygy", "generate", text, *which, "--prior", str(prior), "--subject", "WORD=PICTURE"]),)
    subject = [*which, "--prior", str(prior), "--subject", f"{SUBJECT_WORD}=subject.png"]
    return (
        "syzygy world show 'a striped purple heart' --cut-out --out subject.png",
        shlex.join(["syzygy", "generate", SUBJECT_CAPTION, *subject]),
        shlex.join(["syzygy", "evaluate", "subjects", *which, "--prior", str(prior)]),
    )


def decoder_of(record: dict[str, Any]) -> str | None:
    """The model that can show what a prior learned; None if none is known."""
    if record.get("clip") == starter_clip():
        return "starter" if record.get(ABOUT, {}).get("world", True) else None
    return MODELS.get(record.get("recipe", {}).get("embedding_dim") or 0)


def starter_clip() -> str:
    """The fingerprint of the starter's CLIP."""
    return artifacts.read_json(part_folder("starter", PART) / artifacts.PROVENANCE_FILE)["clip"]


def shortened(caption: str) -> str:
    """A caption that fits into a command: on one line, cut between words."""
    text = " ".join(caption.split())
    if len(text) <= LONGEST:
        return text
    return text[: LONGEST + 1].rsplit(" ", 1)[0][:LONGEST]
