"""A language model's features of a store's captions, as one more set of it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from syzygy.core.model_parts import part_or_id
from syzygy.data.feature_sets import add_features
from syzygy.data.store import EmbeddingStore
from syzygy.text_encoders.llm import Llm, LlmRecipe, check_same

COMPUTE = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True, kw_only=True)
class FeaturesRequest:
    """What to add to which store."""

    store: Path
    llm: str
    """A folder, a run's folder, a model that comes with the package, or a hub id."""
    name: str = "llm"
    """Of the set."""
    recipe: LlmRecipe = field(default_factory=LlmRecipe)
    revision: str | None = None
    """Of a hub id."""
    dtype: Literal["fp16", "bf16"] = "bf16"
    """How features are stored."""
    compute: Literal["fp32", "bf16"] = "fp32"
    """What the model computes in; it must be the same whenever its features are read again."""
    batch_size: int = 32
    threads: int = 1
    device: str = "cpu"
    local_files_only: bool = True


@dataclass(frozen=True)
class FeaturesResult:
    """A store with one more set."""

    manifest: Mapping[str, Any]
    longest: int
    """Tokens of the longest caption's features."""
    positions: int
    """Most that they can be: what is as long may have been cut."""


def load_llm(
    source: str,
    *,
    recipe: LlmRecipe | None = None,
    revision: str | None = None,
    dtype: torch.dtype = torch.float32,
    local_files_only: bool = True,
) -> Llm:
    """A language model: a folder, a run's folder, a model that comes with the package, or a hub id."""
    place = part_or_id(source, "llm")
    return Llm.from_pretrained(place, recipe=recipe, revision=revision, dtype=dtype, local_files_only=local_files_only)


def add_llm_features(request: FeaturesRequest, watch: Callable[[int], None] = lambda captions: None) -> FeaturesResult:
    """Encode all captions of the store, without padding. Continues where it was interrupted.

    Raises:
        UserError: as `Llm.from_pretrained` and `add_features`.
    """
    llm = load_llm(
        request.llm,
        recipe=request.recipe,
        revision=request.revision,
        dtype=COMPUTE[request.compute],
        local_files_only=request.local_files_only,
    ).to(request.device)
    manifest = add_features(
        request.store,
        request.name,
        llm.encode_states,
        llm.identity().to_config(),
        dtype=request.dtype,
        batch_size=request.batch_size,
        threads=request.threads,
        device=request.device,
        watch=watch,
    )
    longest = EmbeddingStore.open(request.store, features=request.name).longest
    return FeaturesResult(manifest, longest, llm.positions)


def open_features(store: Path, llm: Mapping[str, Any], name: str = "llm") -> EmbeddingStore:
    """The store with its set `name` of a language model's features, if they are those of this identity.

    Raises:
        UserError: there is no such set, or it was made with another model, recipe or precision: says in what they differ.
    """
    opened = EmbeddingStore.open(store, features=name)
    check_same(opened.encoder, llm, f"the feature set {name!r} of {store}")
    return opened
