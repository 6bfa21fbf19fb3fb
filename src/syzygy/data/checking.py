"""Looking through a store for damage: every byte, and whether the numbers fit each other."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from syzygy.core.errors import UserError
from syzygy.data import building, store_layout
from syzygy.data.empty_text import empty_files
from syzygy.data.store_files import checksum, mapped, unpacked_string
from syzygy.data.store_part import CONTENT, text_hash
from syzygy.data.store_statistics import ImageStatistics, statistics_of

ROWS = 2**16
"""Rows whose finiteness is looked at together."""


def verify(store: Path, watch: Callable[[int], None] = lambda captions: None) -> list[str]:
    """What is wrong with a finished store, a line each; empty if nothing is.

    Args:
        watch: told how many more captions were looked at.

    Raises:
        UserError: there is no finished store.
    """
    manifest = building.read_manifest(store)
    problems: list[str] = []
    for shard in manifest["shards"]:
        for part in shard["parts"]:
            problems += _part_problems(store, part)
            watch(part["captions"])
    for file in empty_files(manifest["features"].values()):
        problems += _empty_problems(store, file)
    return problems or list(_total_problems(store, manifest))


def _part_problems(store: Path, part: Mapping[str, Any]) -> list[str]:
    problems = [line for file in building.files_of(part) for line in _file_problems(store, file)]
    if problems:
        return problems
    found = [f"{part['pairs']['name']}: {line}" for line in _pair_problems(_tensors(store, part["pairs"]), part)]
    for name, file in part["features"].items():
        lines = _feature_problems(_tensors(store, file), part, file["tokens"], name == store_layout.DEFAULT_SET)
        found += [f"{file['name']}: {line}" for line in lines]
    return found


def _empty_problems(store: Path, file: Mapping[str, Any]) -> list[str]:
    one = {"captions": 1, "pictures": 0}
    return list(_file_problems(store, file)) or [
        f"{file['name']}: {line}"
        for line in _feature_problems(_tensors(store, file), one, file["tokens"], has_images=False)
    ]


def _tensors(store: Path, file: Mapping[str, Any]) -> dict[str, Tensor]:
    return mapped(store / store_layout.SHARDS / file["name"], file["size"])


def _file_problems(store: Path, file: Mapping[str, Any]) -> Iterator[str]:
    path = store / store_layout.SHARDS / file["name"]
    if not path.is_file():
        yield f"{file['name']} is missing"
    elif path.stat().st_size != file["size"]:
        yield f"{file['name']} has {path.stat().st_size:,} bytes instead of {file['size']:,}"
    elif checksum(path) != file["sha256"]:
        yield f"{file['name']} has another checksum: its contents have changed"
    else:
        try:
            mapped(path)
        except UserError as error:
            yield str(error)


def _pair_problems(pairs: Mapping[str, Tensor], part: Mapping[str, Any]) -> Iterator[str]:
    for name, count in (("key", part["pictures"]), ("caption", part["captions"])):
        yield from _offset_problems(pairs[f"{name}/offsets"], count, len(pairs[f"{name}/data"]), f"{name}s")
    if CONTENT in pairs and len(pairs[CONTENT]) != part["pictures"]:
        yield f"{CONTENT} has {len(pairs[CONTENT]):,} rows instead of {part['pictures']:,}"
    owner = pairs["image_of_caption"].long()
    if len(owner) != part["captions"] or owner.unique_consecutive().tolist() != list(range(part["pictures"])):
        yield "captions do not belong to its pictures in order"
    texts = (unpacked_string(pairs["caption/data"], pairs["caption/offsets"], i) for i in range(part["captions"]))
    if pairs["text_hash"].tolist() != [text_hash(text) for text in texts]:
        yield "hashes are not those of the captions"


def _feature_problems(
    tensors: Mapping[str, Tensor], part: Mapping[str, Any], tokens: int, has_images: bool
) -> Iterator[str]:
    yield from _offset_problems(tensors["offsets"], part["captions"], tokens, "token states")
    expected = {"states": tokens, "pooled": part["captions"], "image": part["pictures"]}
    for name in ("states", "pooled", "image"):
        x = tensors.get(name)
        if x is None and (name == "states" or has_images):
            yield f"there is no {name}"
        elif x is not None and len(x) != expected[name]:
            yield f"{name} has {len(x):,} rows instead of {expected[name]:,}"
        elif x is not None and not all(torch.isfinite(rows).all() for rows in x.split(ROWS)):
            yield f"{name} holds NaN or infinity"


def _offset_problems(offsets: Tensor, count: int, end: int, what: str) -> Iterator[str]:
    if len(offsets) != count + 1 or offsets[0] != 0 or offsets[-1] != end or bool((offsets.diff() < 0).any()):
        yield f"offsets do not lead through its {what}"


def _total_problems(store: Path, manifest: Mapping[str, Any]) -> Iterator[str]:
    """Whether the manifest's sums are those of its parts."""
    parts = [part for shard in manifest["shards"] for part in shard["parts"]]
    for name in ("pictures", "captions"):
        total = sum(part[name] for part in parts)
        if manifest[name] != total:
            yield f"{store_layout.MANIFEST_FILE}: {manifest[name]:,} {name}, but its shards have {total:,}"
    for name, values in manifest["features"].items():
        total = sum(part["features"][name]["tokens"] for part in parts)
        if values["tokens"] != total:
            yield f"{store_layout.MANIFEST_FILE}: {values['tokens']:,} tokens of {name}, but its shards have {total:,}"
    stated = ImageStatistics.from_config(manifest["features"][store_layout.DEFAULT_SET]["images"])
    if stated.to_config() != statistics_of(store, parts).to_config():
        yield f"{store_layout.MANIFEST_FILE}: its statistics are not those of the image embeddings"
