"""Merging of several finished stores into one."""

import os
import shlex
import shutil
from collections.abc import Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

from syzygy.core import artifacts
from syzygy.core.errors import UserError
from syzygy.data import store_building, store_files
from syzygy.data.store_files import SUBJECTS
from syzygy.data.store_part import EMPTY, TEXT
from syzygy.data.store_subjects import ZERO


def merge(stores: Sequence[Path], out: Path) -> dict[str, Any]:
    """Write a store with the pairs of all of these, in this order. Returns its manifest.

    The files are shared with the old stores (hard links), or copied where the file system has none. The features of the empty text
    and of an image of zeros are the first store's, since all have the same encoder.

    Raises:
        UserError: fewer than two stores, one twice, one unfinished; encoders, precisions, feature sets or columns differ, or only some
            have subjects or edges; `out` exists already, or cannot be written.
    """
    if len(stores) < 2:
        raise UserError("merging takes at least two stores.")
    if len({store.resolve() for store in stores}) < len(stores):
        raise UserError("a store is named twice. Name each once.")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists already. Choose a new folder.")
    manifests = [store_building.read_manifest(store) for store in stores]
    for store, manifest in zip(stores[1:], manifests[1:], strict=True):
        _check_alike(manifests[0], manifest, stores[0], store)
    _check_readings(stores, manifests)
    _check_subjects(stores, manifests)
    with artifacts.folder_written(out, "the store") as folder, artifacts.writing("the store", out):
        (folder / store_files.SHARDS).mkdir()
        numbers, with_empty = count(), set[str]()
        records = [
            _moved(store, shard["number"], manifest["features"], folder, next(numbers), with_empty)
            for store, manifest in zip(stores, manifests, strict=True)
            for shard in manifest["shards"]
        ]
        first = manifests[0]["features"][store_files.DEFAULT_SET]
        plan = {
            "command": shlex.join(["syzygy", "store", "merge", *map(str, stores)]),
            "kind_of_source": "merged stores",
            "options": {},
            "picture_reading": next(filter(None, map(store_building.reading_of, manifests)), None),
            "settings": {"dtype": first["dtype"], "merged": [manifest["settings"] for manifest in manifests]},
            "encoder": first["encoder"],
        }
        merged = store_building.manifest_of(folder, plan, records)
        store_building.write_bad(folder, records)
        artifacts.write_json(folder / store_files.MANIFEST_FILE, merged)
    return merged


def _check_readings(stores: Sequence[Path], manifests: Sequence[Mapping[str, Any]]) -> None:
    """Refuse stores whose pictures were read in different ways. Ready-made embeddings go with all."""
    readings = zip(stores, map(store_building.reading_of, manifests), strict=True)
    read = [(store, found) for store, found in readings if found]
    for store, found in read[1:]:
        if found != read[0][1]:
            raise UserError(
                f"{read[0][0]} and {store} were embedded by versions of Syzygy that read pictures differently (EXIF orientation, depth). "
                "Embed one of the sources again."
            )


def _check_subjects(stores: Sequence[Path], manifests: Sequence[Mapping[str, Any]]) -> None:
    """Refuse stores of which some have subjects, or edges, and others not."""
    have = [manifest.get(SUBJECTS) for manifest in manifests]
    for store, about in zip(stores[1:], have[1:], strict=True):
        for name, first, other in (
            ("subjects", have[0], about),
            ("edges", *(x and x["edges"] for x in (have[0], about))),
        ):
            if bool(first) != bool(other):
                one, lacks = (stores[0], store) if first else (store, stores[0])
                raise UserError(
                    f"{one} was embedded with --{name} and {lacks} without. Embed both alike, each into a new store, then merge those."
                )


def _check_alike(one: Mapping[str, Any], other: Mapping[str, Any], first: Path, store: Path) -> None:
    if one["features"].keys() != other["features"].keys():
        sets = (", ".join(manifest["features"]) for manifest in (one, other))
        raise UserError(f"{first} and {store} have different feature sets: {' and '.join(sets)}.")
    for name, features in one["features"].items():
        found = other["features"][name]
        difference = store_building.encoder_difference(features["encoder"], found["encoder"])
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
    """Names, and whether they hold text. A boolean that is missing in some rows is a number, so these two agree."""
    return {(name, kind == TEXT) for name, kind in manifest["columns"].items()}


def _moved(
    store: Path, number: int, features: Mapping[str, Any], out: Path, new: int, with_empty: set[str]
) -> dict[str, Any]:
    """Put shard `number` of a store into `out` as number `new`. Returns its record.

    Args:
        with_empty: the feature sets whose empty text `out` has already, and `ZERO` if it has the image of zeros; grows.
    """
    record = store_files.read_checked(store_files.record_path(store, number))
    for index, part in enumerate(record["parts"]):
        _link(store, out, part["pairs"], store_files.part_path(out, new, index, store_files.PAIRS))
        for name, file in part["features"].items():
            _link(store, out, file, store_files.part_path(out, new, index, name))
        if SUBJECTS in part:
            _link(store, out, part[SUBJECTS], store_files.part_path(out, new, index, SUBJECTS))
    zero = record.pop(ZERO, None)
    if zero is not None and ZERO not in with_empty:
        with_empty.add(ZERO)
        _link(store, out, zero, store_files.zero_path(out, new))
        record[ZERO] = zero
    _write_record(store, record, out, new, None, with_empty)
    for name in features.keys() - {store_files.DEFAULT_SET}:
        added = store_files.read_checked(store_files.record_path(store, number, name))
        for index, file in enumerate(added["parts"]):
            _link(store, out, file, store_files.part_path(out, new, index, name))
        _write_record(store, added, out, new, name, with_empty)
    return record


def _write_record(
    store: Path, record: dict[str, Any], out: Path, new: int, features: str | None, with_empty: set[str]
) -> None:
    """Write a record under its new number. Its file of the empty text is kept if it is the first one of its set."""
    record["number"] = new
    name, file = features or store_files.DEFAULT_SET, record.pop(EMPTY, None)
    if file is not None and name not in with_empty:
        with_empty.add(name)
        _link(store, out, file, store_files.empty_path(out, new, name))
        record[EMPTY] = file
    artifacts.write_json(store_files.record_path(out, new, features), record)


def _link(store: Path, out: Path, file: dict[str, Any], target: Path) -> None:
    """Share one file under a new name, and write that into its record."""
    source = store / store_files.SHARDS / file["name"]
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise UserError(
            f"{source} is missing: {store} is damaged. Run `syzygy store verify {store}` for details."
        ) from None
    except OSError:
        shutil.copyfile(source, target)
    file["name"] = target.name
