"""A further feature set for a finished store: another encoder's states of the same captions, such as an LLM's."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from syzygy.core import artifacts
from syzygy.core.contracts import TextFeatures
from syzygy.core.errors import UserError
from syzygy.data import building, store_layout
from syzygy.data.captions import CaptionFeatures, encode_captions, joined
from syzygy.data.empty_text import RECORD, write_empty
from syzygy.data.pair_encoder import DTYPES, Identity, pinned
from syzygy.data.store_files import mapped, remove_unfinished, unpacked_string, write_tensors
from syzygy.data.store_part import text_tensors


@runtime_checkable
class CaptionEncoder(Protocol):
    """A text encoder; it need not speak CLIP's space."""

    def encode_text(self, texts: list[str]) -> TextFeatures | CaptionFeatures:
        """In fp32, on any device; the width of the states is always the same, pooled embeddings are always there or never."""
        ...

    def identity(self) -> Identity: ...


def add_features(
    store: Path,
    name: str,
    encoder: CaptionEncoder,
    *,
    dtype: Literal["fp16", "bf16"] = "fp16",
    batch_size: int = 32,
    threads: int = 1,
    device: str = "cpu",
    watch: Callable[[int], None] = lambda captions: None,
) -> dict[str, Any]:
    """Encode all captions of a finished store anew, and the empty text, as the feature set `name`; the value is the new manifest.

    Continues where an earlier call with the same arguments was interrupted.

    Args:
        batch_size: captions that are encoded together.
        threads: to compute with, where the device is a CPU.
        watch: told how many more captions are done.

    Raises:
        UserError: the store is unfinished or damaged; the set exists, or was begun otherwise; features cannot be stored.
    """
    store_layout.check_set_name(name)
    manifest = building.read_manifest(store)
    how = {
        "encoder": encoder.identity().to_config(),
        "dtype": dtype,
        "settings": {"batch_size": batch_size, "threads": threads, "device": device},
    }
    if name in manifest["features"]:
        raise UserError(f"{store} has a feature set {name!r} already. Choose another name.")
    remove_unfinished(store / store_layout.SHARDS)
    with pinned(threads, device):
        for shard in manifest["shards"]:
            number, captions = shard["number"], sum(part["captions"] for part in shard["parts"])
            if not _is_done(store, number, name, how):
                record: dict[str, Any] = {"number": number, **how}
                if number == 0:
                    record[RECORD] = write_empty(encoder.encode_text, dtype, batch_size, store, name)
                record["parts"] = [
                    _encode_part(store, shard, index, name, encoder, dtype, batch_size)
                    for index in range(len(shard["parts"]))
                ]
                artifacts.write_json(store_layout.record_path(store, number, name), store_layout.stamped(record))
            watch(captions)
    manifest = building.with_added_sets(store, manifest)
    artifacts.write_json(store / store_layout.MANIFEST_FILE, manifest)
    return manifest


def _is_done(store: Path, number: int, name: str, how: Mapping[str, Any]) -> bool:
    path = store_layout.record_path(store, number, name)
    if not path.is_file():
        return False
    record = store_layout.read_checked(path)
    difference = building.encoder_difference(record["encoder"], how["encoder"])
    if difference or any(record[key] != how[key] for key in ("dtype", "settings")):
        raise UserError(
            f"the feature set {name!r} of {store} was begun with {'another encoder' if difference else 'other settings'}: "
            f"{path} says which. Go on as before, choose another name, or delete the set's files."
        )
    return building.is_whole(store, record, record["parts"])


def _encode_part(
    store: Path,
    shard: Mapping[str, Any],
    index: int,
    name: str,
    encoder: CaptionEncoder,
    dtype: Literal["fp16", "bf16"],
    batch_size: int,
) -> dict[str, Any]:
    """Encode and write the captions of one part; the value goes into the record."""
    part = shard["parts"][index]
    pairs = mapped(store / store_layout.SHARDS / part["pairs"]["name"], part["pairs"]["size"])
    texts = [unpacked_string(pairs["caption/data"], pairs["caption/offsets"], i) for i in range(part["captions"])]
    encoded = encode_captions(encoder.encode_text, texts, DTYPES[dtype], batch_size)
    for text, fault in zip(texts, encoded.faults, strict=True):
        if fault:
            raise UserError(f"what the encoder gives for {text[:200]!r} ({shard['source']}) {fault}.")
    tensors = text_tensors(joined(encoded.states, DTYPES[dtype]), encoded.pooled)
    path = store_layout.part_path(store, shard["number"], index, name)
    return write_tensors(path, tensors).to_config() | {"tokens": len(tensors["states"])}
