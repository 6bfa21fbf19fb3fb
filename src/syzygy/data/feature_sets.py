"""A further feature set for a finished store: another encoder's states of the same captions, such as an LLM's."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from syzygy.core import artifacts
from syzygy.core.errors import UserError
from syzygy.data import store_building, store_files
from syzygy.data.encoding import DTYPES, Encode, encode_captions, joined, reproducible
from syzygy.data.store_files import remove_unfinished, stored_tensors, unpacked_string, write_tensors
from syzygy.data.store_part import EMPTY, text_tensors, write_empty


def add_features(
    store: Path,
    name: str,
    encode: Encode,
    identity: Mapping[str, Any],
    *,
    dtype: Literal["fp16", "bf16"] = "fp16",
    batch_size: int = 32,
    threads: int = 1,
    device: str = "cpu",
    watch: Callable[[int], None] = lambda captions: None,
) -> dict[str, Any]:
    """Encode all captions of a finished store, and the empty text, as the feature set `name`. Returns the new manifest.

    An interrupted call is continued by the same call.

    Args:
        store: the store's folder.
        name: the set's name.
        encode: the text encoder. It need not share CLIP's space.
        identity: which encoder this is, as JSON values; see `store_building.FREE` for what may differ.
        dtype: how features are stored.
        batch_size: captions that are encoded together.
        threads: threads to compute with, if the device is a CPU.
        device: kind of device that computes.
        watch: called with the number of further captions that are done.

    Raises:
        UserError: the store is unfinished or damaged; the set exists, or was begun with other arguments; features cannot be stored.
    """
    store_files.check_set_name(name)
    manifest = store_building.read_manifest(store)
    settings = {"batch_size": batch_size, "threads": threads, "device": device}
    how = {"encoder": dict(identity), "dtype": dtype, "settings": settings}
    if name in manifest["features"]:
        raise UserError(f"{store} has a feature set {name!r} already. Choose another name.")
    remove_unfinished(store / store_files.SHARDS)
    with reproducible(threads, device):
        for shard in manifest["shards"]:
            number, captions = shard["number"], sum(part["captions"] for part in shard["parts"])
            if not _is_done(store, number, name, how):
                record: dict[str, Any] = {"number": number, **how}
                if number == 0:
                    record[EMPTY] = write_empty(encode, dtype, batch_size, store, name)
                record["parts"] = [
                    _encode_part(store, shard, index, name, encode, dtype, batch_size)
                    for index in range(len(shard["parts"]))
                ]
                artifacts.write_json(store_files.record_path(store, number, name), store_files.stamped(record))
            watch(captions)
    manifest = store_building.with_added_sets(store, manifest)
    artifacts.write_json(store / store_files.MANIFEST_FILE, manifest)
    return manifest


def _is_done(store: Path, number: int, name: str, how: Mapping[str, Any]) -> bool:
    path = store_files.record_path(store, number, name)
    if not path.is_file():
        return False
    record = store_files.read_checked(path)
    difference = store_building.encoder_difference(record["encoder"], how["encoder"])
    if difference or any(record[key] != how[key] for key in ("dtype", "settings")):
        raise UserError(
            f"the feature set {name!r} of {store} was begun with {'another encoder' if difference else 'other settings'}, "
            f"which {path} names. Repeat the first command, choose another name, or delete the set's files."
        )
    return store_building.is_whole(store, record, record["parts"])


def _encode_part(
    store: Path,
    shard: Mapping[str, Any],
    index: int,
    name: str,
    encode: Encode,
    dtype: Literal["fp16", "bf16"],
    batch_size: int,
) -> dict[str, Any]:
    """Encode and write the captions of one part. Returns what the record says of it."""
    part = shard["parts"][index]
    pairs = stored_tensors(store, part["pairs"])
    texts = [unpacked_string(pairs, "caption", i) for i in range(part["captions"])]
    encoded = encode_captions(encode, texts, DTYPES[dtype], batch_size)
    for text, fault in zip(texts, encoded.faults, strict=True):
        if fault:
            raise UserError(f"what the encoder gives for {text[:200]!r} ({shard['source']}) {fault}.")
    tensors = text_tensors(*joined(encoded.states, DTYPES[dtype]), encoded.pooled)
    path = store_files.part_path(store, shard["number"], index, name)
    return write_tensors(path, tensors) | {"tokens": len(tensors["states"])}
