"""A store from its beginning to its end: claimed for one source, one encoder and one set of settings; continued; finished.

A runner begins the store, embeds its unfinished shards in any order and in any number of processes, and finishes it.
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

from syzygy.core import artifacts
from syzygy.core.config import parse
from syzygy.core.errors import UserError
from syzygy.core.image_reading import READING
from syzygy.core.wording import counted
from syzygy.data import store_files
from syzygy.data.encoding import EmbedSettings
from syzygy.data.sources import Source, SourceOptions
from syzygy.data.store_files import SUBJECTS, remove_unfinished, stored_tensors
from syzygy.data.store_part import CONTENT, EMPTY, empty_files, merged_types, statistics_of
from syzygy.data.store_subjects import summary, zero_files

FREE = ("source", "revision", "versions")
"""Fields of an encoder's identity that may differ between equal encoders: where it was loaded from, and the versions of libraries."""
MEASURED, CLOSE = "deviations", 2e-3
"""The field of an identity that was measured, and how far it may differ, relatively, because machines round differently."""
EMBEDDINGS = "embeddings"
"""The kind of source whose pictures are embedded already, so that none is read."""
EARLY = 1000
"""Samples after which too many bad ones stop a run before its end."""
SHOWN = 5
"""Bad samples that an error names."""


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
        return parse(EmbedSettings, self.values["settings"], store_files.PLAN_FILE)

    @property
    def options(self) -> SourceOptions:
        return parse(SourceOptions, self.values["options"], store_files.PLAN_FILE)

    def command(self, store: Path) -> str:
        """The command that continues the store, wherever it lies now. Options that it does not name stay as they were."""
        return f"{self.values['command']} --out {shlex.quote(str(store))}"


def read_plan(store: Path) -> Plan | None:
    """The plan of a store that was begun, or None. Raises `UserError` if its file is something else."""
    path = store / store_files.PLAN_FILE
    return Plan(store_files.read_checked(path)) if path.is_file() else None


def command_for(source: str, encoder: str, revision: str | None, device: str, flags: Sequence[str] = ()) -> str:
    """The command that makes a store, without `--out`; `flags` are further ones."""
    at = [] if revision is None else ["--revision", revision]
    return shlex.join(["syzygy", "embed", source, "--encoder", encoder, *at, "--device", device, *flags])


def begin(
    store: Path,
    source: Source,
    options: SourceOptions,
    settings: EmbedSettings,
    identity: Mapping[str, Any],
    command: str,
) -> Plan:
    """Claim an empty or missing folder, or continue the store in it.

    Raises `UserError` if the folder holds other things, or a store of another source, encoder or settings; the message says which.
    """
    wanted = {
        "command": command,
        "kind_of_source": source.kind,
        "shards": [
            {"name": shard.name, "size": shard.size, "fingerprint": shard.fingerprint} for shard in source.shards
        ],
        "options": options.recorded(),
        "settings": settings.recorded(),
        "encoder": dict(identity),
        "picture_reading": None if source.kind == EMBEDDINGS else READING,
    }
    found = read_plan(store)
    if found is None:
        with artifacts.writing("the store", store):
            if store.exists() and not all(_is_ours(path.name) for path in store.iterdir()):
                raise UserError(f"{store} holds other files. Choose a new or empty folder.")
            (store / store_files.SHARDS).mkdir(parents=True, exist_ok=True)
            remove_unfinished(store)
        artifacts.write_json(store / store_files.PLAN_FILE, store_files.stamped(wanted))
        return Plan(store_files.read_checked(store / store_files.PLAN_FILE))
    _check_same(store, found, json.loads(json.dumps(wanted)))
    for folder in (store, store / store_files.SHARDS):
        remove_unfinished(folder)
    return found


def _is_ours(name: str) -> bool:
    """Whether a folder that holds this may become a store, because an earlier attempt to begin one was interrupted."""
    return name == store_files.SHARDS or name.startswith(f"{artifacts.TEMPORARY}{store_files.PLAN_FILE}.")


def _check_same(store: Path, plan: Plan, now: Mapping[str, Any]) -> None:
    """Refuse to continue a store with another source, encoder or settings than it was begun with."""
    was = plan.values
    if was["schema_version"] < store_files.SCHEMA_VERSION:
        raise UserError(
            f"{store} was begun by an older version, which did not record what its source held. It can be read if it is finished, "
            "but not continued. Choose another --out."
        )
    if was["kind_of_source"] == now["kind_of_source"] and reading_of(was) != reading_of(now):
        raise UserError(  # its parts would not be comparable
            f"{store} was begun by another version of Syzygy, which reads pictures differently (EXIF orientation, depth). "
            "If it is finished, it can be used as it is. To embed the source with this version, choose another --out."
        )
    difference = _difference(was, now)
    changed = None if difference else _source_difference(was["shards"], now["shards"])
    if changed and was["command"] == now["command"]:  # repeating it would end here again
        raise UserError(f"{store} was begun with {changed}. Choose another --out to embed what the source holds now.")
    if difference or changed:
        raise UserError(
            f"{store} was begun with {difference or changed}. Choose another --out, or continue it with: {plan.command(store)}"
        )


def reading_of(values: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """How the pictures of a store were read, by its plan or manifest; None if its embeddings were ready-made."""
    unrecorded = None if values["kind_of_source"] == EMBEDDINGS else {"version": 1}
    return values.get("picture_reading", unrecorded)


def _difference(was: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """The first difference between two plans apart from their shards, in words; None if they agree."""
    for part in ("settings", "options"):
        for name in was[part].keys() | now[part].keys():
            before, after = was[part].get(name), now[part].get(name)
            if before != after and isinstance(before or after, bool):
                return f"{'' if before else 'no '}{name}, not {'without' if before else 'with'} --{name}"
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
            return f"another {before['name']}: its size is as before, but its content, or the pictures that it names, have changed"
    return None if len(was) == len(now) else f"a source of {counted(len(was), 'shard')}, not {len(now):,}"


def encoder_difference(was: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """The first field in which the identities of two encoders differ; None if they embed alike."""
    names = sorted((was.keys() | now.keys()) - set(FREE), key=lambda name: (name == MEASURED, name != "width", name))
    return next((name for name in names if not _alike(name, was.get(name), now.get(name))), None)


def _alike(name: str, was: Any, now: Any) -> bool:
    if name == MEASURED and was and now and len(was) == len(now):
        return all(math.isclose(a, b, rel_tol=CLOSE) for a, b in zip(was, now, strict=True))
    return was == now


def finished(store: Path, plan: Plan) -> Iterator[dict[str, Any]]:
    """The records of the finished shards, in order; see `is_whole`."""
    for number in range(len(plan.shards)):
        path = store_files.record_path(store, number)
        if path.is_file():
            record = store_files.read_checked(path)
            if is_whole(store, record, [file for part in record["parts"] for file in files_of(part)]):
                yield record


def is_whole(store: Path, record: Mapping[str, Any], files: Sequence[Mapping[str, Any]]) -> bool:
    """Whether all files of a shard exist in their size. The first shard needs the empty text's file too, which schema 1 lacked."""
    complete = EMPTY in record or record["number"] > 0
    once = [*empty_files([record]), *zero_files([record])]
    return complete and all(store_files.is_there(store, file) for file in [*files, *once])


def files_of(part: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Name, size and checksum of each file of a part."""
    return [part["pairs"], *part["features"].values(), *([part[SUBJECTS]] if SUBJECTS in part else [])]


def files_in(manifest: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Name, size and checksum of each tensor file of a store."""
    parts = [file for shard in manifest["shards"] for part in shard["parts"] for file in files_of(part)]
    return parts + empty_files(manifest["features"].values()) + zero_files([manifest.get(SUBJECTS, {})])


class TooManyBad(UserError):
    """More samples than allowed cannot be used."""


def check_bad(seen: int, bad: int, first: Sequence[str], most: float, *, at_end: bool) -> None:
    """Fail if more than the share `most` of the samples is bad: at the end, and earlier once 1000 samples were seen.

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
        "Finished parts are kept. Correct the source and choose another --out, or repeat the command with a larger --max-bad."
    )


def lost_pairs(record: Mapping[str, Any]) -> list[dict[str, str]]:
    """The bad samples of a shard. A pair that lost only some of its captions is not one of them."""
    return [fault for fault in record["bad"] if fault["lost"] == "pair"]


def finish(store: Path, plan: Plan, max_bad: float) -> dict[str, Any]:
    """Write `bad.jsonl` and the manifest, which is returned.

    Raises `UserError` if shards are missing, no pair can be used, or too many are bad.
    """
    records = list(finished(store, plan))
    if len(records) < len(plan.shards):
        raise UserError(
            f"{store} is not finished: {_missing(plan, len(records))}. Finish it with: {plan.command(store)}"
        )
    write_bad(store, records)
    lost = [
        f"{record['source']} {fault['key']}: {fault['reason']}" for record in records for fault in lost_pairs(record)
    ]
    check_bad(sum(record["seen"] for record in records), len(lost), lost, max_bad, at_end=True)
    manifest = manifest_of(store, plan.values, records)
    artifacts.write_json(store / store_files.MANIFEST_FILE, manifest)
    for number in range(len(records)):  # left by a process that was killed between a shard's record and the end
        store_files.progress_path(store, number).unlink(missing_ok=True)
    return manifest


def _missing(plan: Plan, done: int) -> str:
    missing = len(plan.shards) - done
    return f"{missing:,} of its {counted(len(plan.shards), 'shard')} {'is' if missing == 1 else 'are'} missing"


def write_bad(store: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """List what could not be used, one line of JSON each."""
    faults = ({"shard": record["source"], **fault} for record in records for fault in record["bad"])
    text = "".join(json.dumps(fault, ensure_ascii=False) + "\n" for fault in faults)
    artifacts.write_bytes(store / store_files.BAD_FILE, text.encode())


def manifest_of(store: Path, plan: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """All that a reader needs to know, including feature sets that were added. Raises `UserError` if no pair can be used."""
    parts = [part for record in records for part in record["parts"]]
    if not parts:
        bad = any(record["bad"] for record in records)
        why = f". {store / store_files.BAD_FILE} says why" if bad else ": it holds none"
        raise UserError(f"{store} would be empty, because no pair of the source can be used{why}.")
    clip = {
        "encoder": plan["encoder"],
        "dtype": plan["settings"]["dtype"],
        "tokens": sum(part["features"][store_files.DEFAULT_SET]["tokens"] for part in parts),
        "images": statistics_of(store, parts).to_config(),
    }
    manifest = {
        **{name: plan[name] for name in ("command", "kind_of_source", "options", "settings")},
        "picture_reading": reading_of(plan),
        "pictures": sum(part["pictures"] for part in parts),
        "captions": sum(part["captions"] for part in parts),
        "seen": sum(record["seen"] for record in records),
        "bad": sum(len(lost_pairs(record)) for record in records),
        "skipped": sum(record["skipped"] for record in records),
        "full_captions": sum(record["full_captions"] for record in records),
        "repeated": sum(record.get("repeated", 0) for record in records),
        "duplicates": _duplicates(store, parts),
        "captions_from": _summed(record.get("captions_from", {}) for record in records),
        "text_left": _summed(record.get("text_left", {}) for record in records),
        "columns": merged_types([record["columns"] for record in records if record["parts"]]),
        "features": {store_files.DEFAULT_SET: clip | _empty_of(records)},
        **summary(records),
        "shards": [{name: record[name] for name in ("number", "source", "fingerprint", "parts")} for record in records],
    }
    return with_added_sets(store, store_files.stamped(manifest))


def _empty_of(records: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """What a feature set of the manifest says of the empty text: the first file that the records name."""
    files = empty_files(records)
    return {EMPTY: files[0]} if files else {}


def _duplicates(store: Path, parts: Sequence[Mapping[str, Any]]) -> int | None:
    """How many pictures are the same file as an earlier one; None if an older version kept no hashes."""
    contents: list[torch.Tensor] = []
    for part in parts:
        tensors = stored_tensors(store, part["pairs"])
        if CONTENT not in tensors:
            return None
        contents.append(tensors[CONTENT])
    return sum(map(len, contents)) - len(torch.cat(contents).unique())


def _summed(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for one in counts:
        total.update(one)
    return dict(sorted(total.items()))


def with_added_sets(store: Path, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest with the feature sets that have a record for every shard."""
    found = json.loads(json.dumps(manifest))
    shards = found["shards"]
    first = store_files.record_path(store, shards[0]["number"])
    for path in sorted(first.parent.glob(f"{first.stem}.*.json")):
        name = path.name.split(".")[1]
        records = [store_files.record_path(store, shard["number"], name) for shard in shards]
        if not all(record.is_file() for record in records):
            continue
        added = [store_files.read_checked(record) for record in records]
        for shard, record in zip(shards, added, strict=True):
            for part, file in zip(shard["parts"], record["parts"], strict=True):
                part["features"][name] = file
        tokens = sum(file["tokens"] for record in added for file in record["parts"])
        how = {key: added[0][key] for key in ("encoder", "dtype", "settings")}
        found["features"][name] = how | {"tokens": tokens} | _empty_of(added)
    return found


def read_manifest(store: Path) -> dict[str, Any]:
    """The manifest of a finished store.

    Raises `UserError` if there is none, it is unfinished (the message names what is missing, and the command to finish it), or newer.
    """
    path = store / store_files.MANIFEST_FILE
    if path.is_file():
        return store_files.read_checked(path)
    if not store.is_dir():
        raise UserError(f"there is no embedding store {store}. `syzygy embed` makes one.")
    plan = read_plan(store)
    if plan is None:
        raise UserError(f"{store} is not an embedding store. `syzygy embed` makes one.")
    done = sum(1 for _ in finished(store, plan))
    state = _missing(plan, done) if done < len(plan.shards) else "it has no manifest yet"
    raise UserError(f"{store} is not finished: {state}. Finish it with: {plan.command(store)}")
