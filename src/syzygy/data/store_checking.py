"""Checks of a store for damage: every byte, and whether the numbers fit each other."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from syzygy.core.errors import UserError
from syzygy.data import store_building, store_subjects
from syzygy.data.store_files import (
    DEFAULT_SET,
    MANIFEST_FILE,
    SHARDS,
    SUBJECTS,
    checksum,
    mapped,
    stored_tensors,
    unpacked_string,
)
from syzygy.data.store_part import CONTENT, ImageStatistics, empty_files, statistics_of, text_hash
from syzygy.data.store_subjects import zero_files

ROWS = 2**16
"""Rows that are tested for NaN together."""


def verify(store: Path, watch: Callable[[int], None] = lambda captions: None) -> list[str]:
    """What is wrong with a finished store, a line each; empty if nothing is.

    Args:
        store: the store's folder.
        watch: called with the number of further captions that were checked.

    Raises:
        UserError: there is no finished store.
    """
    manifest = store_building.read_manifest(store)
    problems: list[str] = []
    for shard in manifest["shards"]:
        for part in shard["parts"]:
            problems += _part_problems(store, part)
            watch(part["captions"])
    for file in empty_files(manifest["features"].values()):
        problems += _file_problems(store, file) or _feature_problems(store, file, captions=1)
    for file in zero_files([manifest.get(SUBJECTS, {})]):
        problems += _file_problems(store, file)
    return problems or list(_total_problems(store, manifest))


def _part_problems(store: Path, part: Mapping[str, Any]) -> list[str]:
    problems = [line for file in store_building.files_of(part) for line in _file_problems(store, file)]
    if problems:
        return problems
    pairs = stored_tensors(store, part["pairs"])
    problems = [f"{part['pairs']['name']}: {line}" for line in _pair_problems(pairs, part)]
    for name, file in part["features"].items():
        pictures = part["pictures"] if name == DEFAULT_SET else None
        problems += _feature_problems(store, file, part["captions"], pictures)
    if SUBJECTS in part and not problems:
        lengths = stored_tensors(store, part["features"][DEFAULT_SET])["offsets"].diff()
        found = store_subjects.problems(stored_tensors(store, part[SUBJECTS]), part, lengths)
        problems = [f"{part[SUBJECTS]['name']}: {line}" for line in found]
    return problems


def _file_problems(store: Path, file: Mapping[str, Any]) -> list[str]:
    path = store / SHARDS / file["name"]
    if not path.is_file():
        return [f"{file['name']} is missing"]
    if path.stat().st_size != file["size"]:
        return [f"{file['name']} has {path.stat().st_size:,} bytes instead of {file['size']:,}"]
    if checksum(path) != file["sha256"]:
        return [f"{file['name']} has another checksum: its contents have changed"]
    try:
        mapped(path)
    except UserError as error:
        return [str(error)]
    return []


def _pair_problems(pairs: Mapping[str, Tensor], part: Mapping[str, Any]) -> Iterator[str]:
    for name, count in (("key", part["pictures"]), ("caption", part["captions"])):
        yield from _offset_problems(pairs[f"{name}/offsets"], count, len(pairs[f"{name}/data"]), f"{name}s")
    if CONTENT in pairs and len(pairs[CONTENT]) != part["pictures"]:
        yield f"{CONTENT} has {len(pairs[CONTENT]):,} rows instead of {part['pictures']:,}"
    owner = pairs["image_of_caption"].long()
    if len(owner) != part["captions"] or owner.unique_consecutive().tolist() != list(range(part["pictures"])):
        yield "captions do not belong to its pictures in order"
    texts = (unpacked_string(pairs, "caption", i) for i in range(part["captions"]))
    if pairs["text_hash"].tolist() != [text_hash(text) for text in texts]:
        yield "hashes are not those of the captions"


def _feature_problems(store: Path, file: Mapping[str, Any], captions: int, pictures: int | None = None) -> list[str]:
    """What is wrong with a file of features; `pictures` is None where it holds no image embeddings."""
    tensors, tokens = stored_tensors(store, file), file["tokens"]
    found = list(_offset_problems(tensors["offsets"], captions, tokens, "token states"))
    for name, rows in {"states": tokens, "pooled": captions, "image": pictures}.items():
        x = tensors.get(name)
        if x is None and (name == "states" or pictures is not None):
            found.append(f"there is no {name}")
        elif x is not None and len(x) != (rows or 0):
            found.append(f"{name} has {len(x):,} rows instead of {rows or 0:,}")
        elif x is not None and not all(torch.isfinite(some).all() for some in x.split(ROWS)):
            found.append(f"{name} holds NaN or infinity")
    return [f"{file['name']}: {line}" for line in found]


def _offset_problems(offsets: Tensor, count: int, end: int, what: str) -> Iterator[str]:
    if len(offsets) != count + 1 or offsets[0] != 0 or offsets[-1] != end or bool((offsets.diff() < 0).any()):
        yield f"offsets do not lead through its {what}"


def _total_problems(store: Path, manifest: Mapping[str, Any]) -> Iterator[str]:
    """Whether the manifest's sums are those of its parts."""
    parts = [part for shard in manifest["shards"] for part in shard["parts"]]
    for name in ("pictures", "captions"):
        total = sum(part[name] for part in parts)
        if manifest[name] != total:
            yield f"{MANIFEST_FILE}: {manifest[name]:,} {name}, but its shards have {total:,}"
    for name, values in manifest["features"].items():
        total = sum(part["features"][name]["tokens"] for part in parts)
        if values["tokens"] != total:
            yield f"{MANIFEST_FILE}: {values['tokens']:,} tokens of {name}, but its shards have {total:,}"
    stated = ImageStatistics.from_config(manifest["features"][DEFAULT_SET]["images"])
    if stated.to_config() != statistics_of(store, parts).to_config():
        yield f"{MANIFEST_FILE}: its statistics are not those of the image embeddings"
