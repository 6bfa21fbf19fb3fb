"""What is recorded of a prior's data, and commands to try after its training, with the user's own captions where a decoder can show them."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from syzygy.core import artifacts
from syzygy.core.model_parts import INDEX_FILE, part_folder
from syzygy.data.store import EmbeddingStore
from syzygy.lab.world.language import detect_language, language
from syzygy.prior.embedding_pairs import Pairs, StorePairs
from syzygy.prior.published_layout import PART

ABOUT = "about_data"
"""In a prior's provenance: what it was trained on, for the model card."""
NOT_MEASURED = "not_measured"
"""There too: which metrics its validation left out and why; empty where it measured all."""
ENVIRONMENT_FILE = "environment.json"
EXAMPLE = "example_caption"
"""In a run's environment.json, which is not exported: a caption that was held out."""
LOOKED_AT = 64
"""Captions that are read to find out whether a store is of the embedded world."""
KNOWN = 0.9
"""The part of them whose words the embedded world must all know."""
LONGEST = 60
"""Characters of a caption in a command."""
WORLD_CAPTION = "a red circle"
WORLD_SOURCE = "rendered scenes of Syzygy's embedded world"
MODELS = {768: "karlo", 1280: "kandinsky-2.2"}
"""Published models by the width of the embeddings that they read."""
NO_PICTURES = (
    "The starter's decoder draws only the embedded world, so it cannot show what this prior learned from other pictures: "
    "embed them with the CLIP of a published model to see some."
)


def of_the_world(captions: Sequence[str]) -> bool:
    """Whether captions are of the embedded world: nearly all consist of words that it knows."""
    known = [not language(detect_language(text)).unknown(text) for text in captions[:LOOKED_AT]]
    return bool(known) and sum(known) >= KNOWN * len(known)


def counts(training: Pairs, validation: Pairs) -> dict[str, int]:
    """Pairs and pictures on both sides."""

    def pictures(pairs: Pairs) -> int:
        return len(pairs.image_numbers(torch.arange(len(pairs))).unique())

    return {
        "pairs": len(training),
        "pictures": pictures(training),
        "validation_pairs": len(validation),
        "validation_pictures": pictures(validation),
    }


def about_store(store: EmbeddingStore, training: StorePairs, validation: StorePairs) -> dict[str, Any]:
    """For the provenance of a prior trained on a store."""
    world = of_the_world(store.texts(validation.chosen[:LOOKED_AT]))
    # The packaged CLIP lies in another folder on each machine, so it is recorded by its name.
    encoder = "starter" if store.encoder["fingerprint"] == starter_clip() else store.encoder["source"]
    return {
        "source": store.source or store.manifest["command"],
        "encoder": encoder,
        "world": world,
        **counts(training, validation),
    }


def example(store: EmbeddingStore, validation: StorePairs) -> str:
    """The shortest of the first held-out captions."""
    return min(store.texts(validation.chosen[:LOOKED_AT]), key=len)


def after_training(run: Path, store: Path | None, clip: str) -> tuple[str, ...]:
    """Commands, and a sentence where no decoder can show what was learned.

    Args:
        run: folder of the finished run.
        store: what it was trained on; None is the embedded world.
        clip: without a store, where its CLIP is from: a whole model there can show what was learned.
    """
    record = artifacts.read_json(run / PART / artifacts.PROVENANCE_FILE)
    caption = artifacts.read_json(run / ENVIRONMENT_FILE).get(EXAMPLE)
    measured = (
        ()
        if store is None
        else (shlex.join(["syzygy", "evaluate", "prior", "--data", str(store), "--prior", str(run)]),)
    )
    whole = store is None and (Path(clip) / INDEX_FILE).is_file()
    return (*measured, *generated(record, caption, run, clip if whole else None))


def after_export(folder: Path, run: Path) -> tuple[str, ...]:
    """The same for an exported prior."""
    environment = run / ENVIRONMENT_FILE
    caption = artifacts.read_json(environment).get(EXAMPLE) if environment.is_file() else None
    return generated(artifacts.read_json(folder / artifacts.PROVENANCE_FILE), caption, folder)


def generated(record: dict[str, Any], caption: str | None, prior: Path, model: str | None = None) -> tuple[str, ...]:
    """The command that generates a picture with a prior, or why there is none. `model` is known to show what it learned."""
    text = shortened(caption or WORLD_CAPTION)
    model = model or decoder_of(record)
    if model is None:
        return (NO_PICTURES,) if record.get("clip") == starter_clip() else ()
    which = [] if model == "starter" else ["--model", model]
    return (shlex.join(["syzygy", "generate", text, *which, "--prior", str(prior)]),)


def decoder_of(record: dict[str, Any]) -> str | None:
    """The model that can show what a prior learned; None where none is known."""
    if record.get("clip") == starter_clip():
        return "starter" if record.get(ABOUT, {}).get("world", True) else None
    return MODELS.get(record.get("recipe", {}).get("embedding_dim") or 0)


def starter_clip() -> str:
    """The fingerprint of the starter's CLIP."""
    return artifacts.read_json(part_folder("starter", PART) / artifacts.PROVENANCE_FILE)["clip"]


def shortened(caption: str) -> str:
    """A caption as it fits into a command: on one line, cut between words."""
    text = " ".join(caption.split())
    if len(text) <= LONGEST:
        return text
    return text[: LONGEST + 1].rsplit(" ", 1)[0][:LONGEST]
