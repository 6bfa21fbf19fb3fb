"""A language model's features of a store's captions, as a further feature set of the store."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from syzygy.core.errors import UserError
from syzygy.core.wording import counted
from syzygy.data.feature_sets import add_features
from syzygy.data.store import EmbeddingStore
from syzygy.data.store_building import read_manifest
from syzygy.text_encoders.feature_cache import FeatureSet
from syzygy.text_encoders.llm import Llm, check_same


@dataclass(frozen=True)
class FeaturesResult:
    """A store with one more feature set."""

    manifest: Mapping[str, Any]
    longest: int
    """Tokens of the longest caption's features."""
    positions: int
    """The most tokens that a caption can have; a caption of that length may have been cut."""


def add_llm_features(
    store: Path,
    llm: Llm,
    name: str = "llm",
    *,
    dtype: Literal["fp16", "bf16"] = "bf16",
    batch_size: int = 32,
    threads: int = 1,
    watch: Callable[[int], None] = lambda captions: None,
) -> FeaturesResult:
    """Encode all captions of the store, without padding. Continues an interrupted call.

    Args:
        llm: on the device that encodes. Whoever reads the features needs the same model, recipe and precision.
        name: name of the feature set.
        dtype: how features are stored.
        batch_size: captions that are encoded together.
        threads: CPU threads.
        watch: called with the number of further captions that are done.

    Raises:
        UserError: the store is unfinished or damaged, has such a set already, or the features cannot be stored (`add_features`).
    """
    manifest = add_features(
        store, name, llm.encode_states, llm.identity().to_config(),
        dtype=dtype, batch_size=batch_size, threads=threads, device=llm.device.type, watch=watch,
    )  # fmt: skip
    return FeaturesResult(manifest, EmbeddingStore.open(store, features=name).longest, llm.positions)


def open_features(store: Path, llm: Mapping[str, Any], name: str = "llm") -> EmbeddingStore:
    """The store with its feature set `name`, if it holds features of the language model with this identity.

    Raises:
        UserError: there is no such set, or it was made with another model, recipe or precision; the error says how they differ.
    """
    known = read_manifest(store)["features"]
    if name not in known:
        raise UserError(
            f"{store} has no feature set {name!r} of a language model (it has: {', '.join(known)}). Add it: syzygy store add {store} --llm "
            f"{llm.get('source')} --name {name}."
        )
    opened = EmbeddingStore.open(store, features=name)
    check_same(opened.encoder, llm, f"the feature set {name!r} of {store}")
    return opened


@dataclass(frozen=True)
class StoredFeatures:
    """A store's feature set of a language model, from which a training reads the features of its captions."""

    store: Path
    name: str = "llm"

    def opened(self, llm: Mapping[str, Any], captions: Iterable[str]) -> tuple[FeatureSet, str]:
        """The features by text, the empty one included, and how they are stored: fp16 or bf16.

        Args:
            llm: identity of the language model whose features are needed.
            captions: the texts that are going to be read.

        Raises:
            UserError: as of `open_features`; the store lacks the features of a caption.
        """
        opened = open_features(self.store, llm, self.name)
        found = FeatureSet(opened.by_text())
        if lacking := found.lacking(captions):
            raise UserError(
                f"the feature set {self.name!r} of {self.store} has no features of {counted(len(lacking), 'caption')} of the images, such as "
                f"{lacking[0][:100]!r}. Use the store that was embedded from these images, or leave --store out."
            )
        return found, opened.manifest["features"][self.name]["dtype"]
