"""A store from its beginning to its end: claimed for one source, one encoder and one set of settings; continued; finished.

A runner begins, embeds the shards that are unfinished in any order and by any number of processes, and finishes.
"""

import json
import math
import shlex
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from syzygy.core import artifacts
from syzygy.core.config import parse
from syzygy.core.errors import UserError
from syzygy.core.image_reading import READING
from syzygy.core.wording import counted
from syzygy.data import store_layout
from syzygy.data.embed_shard import SHOWN
from syzygy.data.empty_text import RECORD, empty_files, first_named
from syzygy.data.pair_encoder import EmbedSettings
from syzygy.data.sources import Source, SourceOptions
from syzygy.data.store_files import mapped, remove_unfinished
from syzygy.data.store_part import CONTENT, merged_types
from syzygy.data.store_statistics import statistics_of

FREE = ("source", "revision", "versions")
"""What of an encoder's identity may differ: where it lay, and the versions of libraries."""
MEASURED, CLOSE = "deviations", 2e-3
"""What of it was measured, and how far apart, in relation, two measurements of one encoder may be: machines round differently."""
EMBEDDINGS = "embeddings"
"""Kind of a source whose pictures are embedded already, so that none is read."""
EARLY = 1000
"""Samples after which too many bad ones end a run before its end."""


@dataclass(frozen=True)
class Plan:
    """What a store is to hold."""

    values: Mapping[str, Any]
    """As in its file."""

    @property
    def shards(self) -> list[dict[str, Any]]:
        """Name, size and fingerprint of each."""
        return self.values["shards"]

    @property
    def settings(self) -> EmbedSettings:
        return parse(EmbedSettings, self.values["settings"], store_layout.PLAN_FILE)

    @property
    def options(self) -> SourceOptions:
        return parse(SourceOptions, self.values["options"], store_layout.PLAN_FILE)

    def command(self, store: Path) -> str:
        """What continues it, wherever it lies now. It knows its other settings."""
        return f"{self.values['command']} --out {shlex.quote(str(store))}"


def read_plan(store: Path) -> Plan | None:
    """The plan of a store that was begun, or None.

    Raises:
        UserError: there is something else.
    """
    path = store / store_layout.PLAN_FILE
    return Plan(store_layout.read_checked(path)) if path.is_file() else None


def command_for(source: str, encoder: str, revision: str | None, device: str) -> str:
    """The command that makes a store, but for `--out`."""
    at = [] if revision is None else ["--revision", revision]
    return shlex.join(["syzygy", "embed", source, "--encoder", encoder, *at, "--device", device])


def begin(
    store: Path,
    source: Source,
    options: SourceOptions,
    settings: EmbedSettings,
    identity: Mapping[str, Any],
    command: str,
) -> Plan:
    """Claim an empty or missing folder, or continue the store in it.

    Raises:
        UserError: the folder holds other things, or a store of another source, encoder or settings: says which.
    """
    wanted = {
        "command": command,
        "kind_of_source": source.kind,
        "shards": [
            {"name": shard.name, "size": shard.size, "fingerprint": shard.fingerprint} for shard in source.shards
        ],
        "options": options.model_dump(mode="json"),
        "settings": settings.model_dump(mode="json"),
        "encoder": dict(identity),
        "picture_reading": None if source.kind == EMBEDDINGS else READING,
    }
    found = read_plan(store)
    if found is None:
        with artifacts.writing("the store", store):
            if store.exists() and not all(_is_ours(path.name) for path in store.iterdir()):
                raise UserError(f"{store} holds other files. Choose a new or empty folder.")
            (store / store_layout.SHARDS).mkdir(parents=True, exist_ok=True)
            remove_unfinished(store)
        artifacts.write_json(store / store_layout.PLAN_FILE, store_layout.stamped(wanted))
        return Plan(store_layout.read_checked(store / store_layout.PLAN_FILE))
    if found.values["schema_version"] < store_layout.SCHEMA_VERSION:
        raise UserError(
            f"{store} was begun by an older version, which did not record what its source held. It can be read if it is finished, "
            "but not continued: choose another --out."
        )
    _check_reading(store, found.values, wanted)
    now = json.loads(json.dumps(wanted))
    difference = _difference(found.values, now)
    changed = None if difference else _source_difference(found.values["shards"], now["shards"])
    if changed and found.values["command"] == command:  # repeating it would end here again
        raise UserError(f"{store} was begun with {changed}. Choose another --out to embed what the source holds now.")
    if difference or changed:
        raise UserError(
            f"{store} was begun with {difference or changed}. Choose another --out, or go on as before: {found.command(store)}"
        )
    for folder in (store, store / store_layout.SHARDS):
        remove_unfinished(folder)
    return found


def _is_ours(name: str) -> bool:
    """Whether a folder that holds this may become a store: its claim was interrupted."""
    return name == store_layout.SHARDS or name.startswith(f"{artifacts.TEMPORARY}{store_layout.PLAN_FILE}.")


def reading_of(values: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """How the pictures of a store were read, of its plan or manifest; None where none was, as its embeddings came ready-made."""
    unrecorded = None if values["kind_of_source"] == EMBEDDINGS else {"version": 1}
    return values.get("picture_reading", unrecorded)


def _check_reading(store: Path, was: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse to continue a store whose pictures were read in another way: its parts would not be comparable."""
    if was["kind_of_source"] == now["kind_of_source"] and reading_of(was) != reading_of(now):
        raise UserError(
            f"{store} was begun by another version of Syzygy, which reads pictures differently (EXIF orientation, depth). "
            "If it is finished, it can be used as it is. To embed the source with this version, choose another --out."
        )


def _difference(was: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """What tells two plans apart but for their shards, in words; None where they agree."""
    for part in ("settings", "options"):
        for name in was[part].keys() | now[part].keys():
            before, after = was[part].get(name), now[part].get(name)
            if before != after:
                return f"{name} {json.dumps(before)}, not {json.dumps(after)}"
    name = encoder_difference(was["encoder"], now["encoder"])
    if name:
        return f"another encoder: its {name} was {was['encoder'].get(name)!r}, now it is {now['encoder'].get(name)!r}"
    if was["kind_of_source"] != now["kind_of_source"]:
        return f"a source of kind {was['kind_of_source']}, not {now['kind_of_source']}"
    return None


def _source_difference(was: Sequence[Mapping[str, Any]], now: Sequence[Mapping[str, Any]]) -> str | None:
    for before, after in zip(was, now, strict=False):
        if before["name"] != after["name"]:
            return f"another source: its shards had {before['name']} where there is {after['name']} now"
        if before["size"] != after["size"]:
            return f"another {before['name']}: it had {before['size']:,} bytes, now {after['size']:,}"
        if before["fingerprint"] != after["fingerprint"]:
            return f"another {before['name']}: it has as many bytes as before, but they, or the pictures that it names, have changed"
    if len(was) == len(now):
        return None
    return f"a source of {counted(len(was), 'shard')}, not {len(now):,}"


def encoder_difference(was: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """The first field that tells two encoders' identities apart; None if they embed alike."""
    names = sorted((was.keys() | now.keys()) - set(FREE), key=lambda name: (name == MEASURED, name != "width", name))
    return next((name for name in names if not _alike(name, was.get(name), now.get(name))), None)


def _alike(name: str, was: Any, now: Any) -> bool:
    if name == MEASURED and was and now and len(was) == len(now):
        return all(math.isclose(a, b, rel_tol=CLOSE) for a, b in zip(was, now, strict=True))
    return was == now


def finished(store: Path, plan: Plan) -> Iterator[dict[str, Any]]:
    """The records of the finished shards, in order; see `is_whole`."""
    for number in range(len(plan.shards)):
        path = store_layout.record_path(store, number)
        if path.is_file():
            record = store_layout.read_checked(path)
            if is_whole(store, record, [file for part in record["parts"] for file in files_of(part)]):
                yield record


def is_whole(store: Path, record: Mapping[str, Any], files: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a shard's files are all there, in their size; the first shard's, only with the empty text's (schema 1 had none)."""
    complete = RECORD in record or record["number"] > 0
    return complete and all(store_layout.is_there(store, file) for file in [*files, *empty_files([record])])


def files_of(part: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Name, size and checksum of each file of a part."""
    return [part["pairs"], *part["features"].values()]


def files_in(manifest: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The same of every file of the store."""
    parts = [file for shard in manifest["shards"] for part in shard["parts"] for file in files_of(part)]
    return parts + empty_files(manifest["features"].values())


class TooManyBad(UserError):
    """More samples than allowed cannot be used."""


def check_bad(seen: int, bad: int, first: Sequence[str], most: float, *, at_end: bool) -> None:
    """Fail if more than the part `most` of the samples is bad: at the end, and before it once 1000 were seen.

    Args:
        first: shard, key and reason of some of them.

    Raises:
        TooManyBad: with the count and these.
    """
    if bad <= most * seen or (seen < EARLY and not at_end):
        return
    more = f" (and {bad - SHOWN:,} more)" if bad > SHOWN else ""
    raise TooManyBad(
        f"{bad:,} of {counted(seen, 'sample')} cannot be used, more than --max-bad {most:g} allows: {'; '.join(first[:SHOWN])}{more}. "
        "Finished parts are kept: correct the source and choose another --out, or repeat the command with a larger --max-bad."
    )


def lost_pairs(record: Mapping[str, Any]) -> list[dict[str, str]]:
    """The bad samples of a shard; where only a caption of several was left out, the pair is not lost."""
    return [fault for fault in record["bad"] if fault["lost"] == "pair"]


def finish(store: Path, plan: Plan, max_bad: float) -> dict[str, Any]:
    """Write `bad.jsonl` and the manifest, which is returned.

    Raises:
        UserError: shards are missing, no pair could be used, or too many are bad.
    """
    records = list(finished(store, plan))
    missing = len(plan.shards) - len(records)
    if missing:
        are = "is" if missing == 1 else "are"
        raise UserError(
            f"{missing:,} of {counted(len(plan.shards), 'shard')} of {store} {are} missing. Finish it with: {plan.command(store)}"
        )
    write_bad(store, records)
    lost = [
        f"{record['source']} {fault['key']}: {fault['reason']}" for record in records for fault in lost_pairs(record)
    ]
    check_bad(sum(record["seen"] for record in records), len(lost), lost, max_bad, at_end=True)
    manifest = manifest_of(store, plan.values, records)
    artifacts.write_json(store / store_layout.MANIFEST_FILE, manifest)
    for number in range(len(records)):  # left by who was killed between a shard's record and the end
        store_layout.progress_path(store, number).unlink(missing_ok=True)
    return manifest


def write_bad(store: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """List what could not be used, a line of JSON each."""
    faults = ({"shard": record["source"], **fault} for record in records for fault in record["bad"])
    text = "".join(json.dumps(fault, ensure_ascii=False) + "\n" for fault in faults)
    artifacts.write_bytes(store / store_layout.BAD_FILE, text.encode())


def manifest_of(store: Path, plan: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """All that a reader needs to know, feature sets that were added included.

    Raises:
        UserError: no pair could be used.
    """
    parts = [part for record in records for part in record["parts"]]
    if not parts:
        why = (
            f"; {store / store_layout.BAD_FILE} says why"
            if any(record["bad"] for record in records)
            else ": it holds none"
        )
        raise UserError(f"{store} would be empty: not one pair of the source can be used{why}.")
    tokens = sum(part["features"][store_layout.DEFAULT_SET]["tokens"] for part in parts)
    manifest = store_layout.stamped(
        {
            **{name: plan[name] for name in ("command", "kind_of_source", "options", "settings")},
            "picture_reading": reading_of(plan),
            "pictures": sum(part["pictures"] for part in parts),
            "captions": sum(part["captions"] for part in parts),
            "seen": sum(record["seen"] for record in records),
            "bad": sum(len(lost_pairs(record)) for record in records),
            "skipped": sum(record["skipped"] for record in records),
            "full_captions": sum(record["full_captions"] for record in records),
            "repeated": sum(record.get("repeated", 0) for record in records),
            "duplicates": duplicates(store, parts),
            "captions_from": _summed(record.get("captions_from", {}) for record in records),
            "text_left": _summed(record.get("text_left", {}) for record in records),
            "columns": merged_types([record["columns"] for record in records if record["parts"]]),
            "features": {
                store_layout.DEFAULT_SET: {
                    "encoder": plan["encoder"],
                    "dtype": plan["settings"]["dtype"],
                    "tokens": tokens,
                    "images": statistics_of(store, parts).to_config(),
                }
                | first_named(records)
            },
            "shards": [
                {name: record[name] for name in ("number", "source", "fingerprint", "parts")} for record in records
            ],
        }
    )
    return with_added_sets(store, manifest)


def duplicates(store: Path, parts: Sequence[Mapping[str, Any]]) -> int | None:
    """How many pictures are the same file as an earlier one of the store; None where an older version kept no hashes."""
    found: list[Tensor] = []
    for part in parts:
        tensors = mapped(store / store_layout.SHARDS / part["pairs"]["name"], part["pairs"]["size"])
        if CONTENT not in tensors:
            return None
        found.append(tensors[CONTENT])
    contents = torch.cat(found)
    return len(contents) - len(contents.unique())


def _summed(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for one in counts:
        total.update(one)
    return dict(sorted(total.items()))


def with_added_sets(store: Path, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest with the feature sets that have a record for every shard."""
    found = json.loads(json.dumps(manifest))
    shards = found["shards"]
    first = store_layout.record_path(store, shards[0]["number"])
    for path in sorted(first.parent.glob(f"{first.stem}.*.json")):
        name = path.name.split(".")[1]
        records = [store_layout.record_path(store, shard["number"], name) for shard in shards]
        if not all(record.is_file() for record in records):
            continue
        added = [store_layout.read_checked(record) for record in records]
        for shard, record in zip(shards, added, strict=True):
            for part, file in zip(shard["parts"], record["parts"], strict=True):
                part["features"][name] = file
        tokens = sum(file["tokens"] for record in added for file in record["parts"])
        how = {key: added[0][key] for key in ("encoder", "dtype", "settings")}
        found["features"][name] = how | {"tokens": tokens} | first_named(added)
    return found


def read_manifest(store: Path) -> dict[str, Any]:
    """The manifest of a finished store.

    Raises:
        UserError: there is none, it is unfinished (says what is missing, and the command to finish it), or newer.
    """
    path = store / store_layout.MANIFEST_FILE
    if path.is_file():
        return store_layout.read_checked(path)
    if not store.is_dir():
        raise UserError(f"there is no embedding store {store}. `syzygy embed` makes one.")
    plan = read_plan(store)
    if plan is None:
        raise UserError(f"{store} is no embedding store. `syzygy embed` makes one.")
    missing = len(plan.shards) - sum(1 for _ in finished(store, plan))
    are = "is" if missing == 1 else "are"
    state = (
        f"{missing:,} of its {counted(len(plan.shards), 'shard')} {are} missing"
        if missing
        else "it has no manifest yet"
    )
    raise UserError(f"{store} is not finished: {state}. Finish it with: {plan.command(store)}")
