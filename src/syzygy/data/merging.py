"""Several finished stores as one."""

import os
import shlex
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from syzygy.core import artifacts
from syzygy.core.errors import UserError
from syzygy.data import building, store_layout
from syzygy.data.empty_text import RECORD
from syzygy.data.store_part import TEXT


def merge(stores: Sequence[Path], out: Path) -> dict[str, Any]:
    """Write a store with the pairs of all of these, in this order; the value is its manifest.

    The files are shared with the old stores (hard links), or copied where the file system cannot. Of the empty text the first
    store's features are taken: all have the same encoder.

    Raises:
        UserError: fewer than two stores, one twice, one unfinished; encoders, precisions, feature sets or columns differ;
            `out` is there already, or cannot be written.
    """
    if len(stores) < 2:
        raise UserError("merging takes at least two stores.")
    if len({store.resolve() for store in stores}) < len(stores):
        raise UserError("a store is named twice. Name each once.")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is there already. Choose a new folder.")
    manifests = [building.read_manifest(store) for store in stores]
    for store, manifest in zip(stores[1:], manifests[1:], strict=True):
        _check_alike(manifests[0], manifest, stores[0], store)
    _check_readings(stores, manifests)
    with artifacts.folder_written(out, "the store") as folder, artifacts.writing("the store", out):
        (folder / store_layout.SHARDS).mkdir()
        records: list[dict[str, Any]] = []
        taken: set[str] = set()
        for store, manifest in zip(stores, manifests, strict=True):
            for shard in manifest["shards"]:
                records.append(_moved(store, shard["number"], manifest["features"], folder, len(records), taken))
        first = manifests[0]["features"][store_layout.DEFAULT_SET]
        plan = {
            "command": shlex.join(["syzygy", "store", "merge", *map(str, stores)]),
            "kind_of_source": "merged stores",
            "options": {},
            "picture_reading": next(filter(None, map(building.reading_of, manifests)), None),
            "settings": {"dtype": first["dtype"], "merged": [manifest["settings"] for manifest in manifests]},
            "encoder": first["encoder"],
        }
        merged = building.manifest_of(folder, plan, records)
        building.write_bad(folder, records)
        artifacts.write_json(folder / store_layout.MANIFEST_FILE, merged)
    return merged


def _check_readings(stores: Sequence[Path], manifests: Sequence[Mapping[str, Any]]) -> None:
    """Refuse stores whose pictures were read in different ways. Ready-made embeddings go with all."""
    read = [
        (store, found)
        for store, values in zip(stores, manifests, strict=True)
        if (found := building.reading_of(values))
    ]
    for store, found in read[1:]:
        if found != read[0][1]:
            raise UserError(
                f"{read[0][0]} and {store} were embedded by versions of Syzygy that read pictures differently (EXIF orientation, depth). "
                "Embed one of the sources again."
            )


def _check_alike(one: Mapping[str, Any], other: Mapping[str, Any], first: Path, store: Path) -> None:
    if one["features"].keys() != other["features"].keys():
        sets = (", ".join(manifest["features"]) for manifest in (one, other))
        raise UserError(f"{first} and {store} have different feature sets: {' and '.join(sets)}.")
    for name, features in one["features"].items():
        found = other["features"][name]
        difference = building.encoder_difference(features["encoder"], found["encoder"])
        if difference:
            values = (manifest["encoder"].get(difference) for manifest in (features, found))
            raise UserError(
                f"{first} and {store} were embedded by different encoders ({name}): {difference} is {' and '.join(map(repr, values))}."
            )
        if features["dtype"] != found["dtype"]:
            raise UserError(f"{first} stores {name} as {features['dtype']}, {store} as {found['dtype']}.")
    if _columns(one) != _columns(other):
        differing = sorted(column for column, _ in _columns(one) ^ _columns(other))
        raise UserError(
            f"{first} and {store} have different columns: {', '.join(dict.fromkeys(differing))}. "
            "Embed them with the same --keep, from sources with the same metadata."
        )


def _columns(manifest: Mapping[str, Any]) -> set[tuple[str, bool]]:
    """Names, and whether they hold text; a boolean that is missing here or there is a number."""
    return {(name, kind == TEXT) for name, kind in manifest["columns"].items()}


def _moved(
    store: Path, number: int, features: Mapping[str, Any], out: Path, new: int, taken: set[str]
) -> dict[str, Any]:
    """Put shard `number` of a store into `out` as number `new`; the value is its record.

    Args:
        taken: the feature sets whose empty text `out` has; grows.
    """
    record = store_layout.read_checked(store_layout.record_path(store, number))
    record["number"] = new
    for index, part in enumerate(record["parts"]):
        _link(store, out, part["pairs"], store_layout.part_path(out, new, index, store_layout.PAIRS))
        for name, file in part["features"].items():
            _link(store, out, file, store_layout.part_path(out, new, index, name))
    _move_empty(store, record, out, store_layout.DEFAULT_SET, taken)
    artifacts.write_json(store_layout.record_path(out, new), record)
    for name in features.keys() - {store_layout.DEFAULT_SET}:
        added = store_layout.read_checked(store_layout.record_path(store, number, name))
        added["number"] = new
        for index, file in enumerate(added["parts"]):
            _link(store, out, file, store_layout.part_path(out, new, index, name))
        _move_empty(store, added, out, name, taken)
        artifacts.write_json(store_layout.record_path(out, new, name), added)
    return record


def _move_empty(store: Path, record: dict[str, Any], out: Path, features: str, taken: set[str]) -> None:
    """Keep what a record, which has its new number, names of the empty text, if it is the first of its set; else forget it."""
    file = record.pop(RECORD, None)
    if file is None or features in taken:
        return
    taken.add(features)
    _link(store, out, file, store_layout.empty_path(out, record["number"], features))
    record[RECORD] = file


def _link(store: Path, out: Path, file: dict[str, Any], target: Path) -> None:
    """Share one file under a new name, and write that into its record."""
    source = store / store_layout.SHARDS / file["name"]
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise UserError(f"{source} is missing: {store} is damaged. `syzygy store verify {store}` says more.") from None
    except OSError:
        shutil.copyfile(source, target)
    file["name"] = target.name
