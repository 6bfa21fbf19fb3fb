"""The files of a store: where each one lies, what marks it as part of a store, and tensors with the same bytes for the same values.

    STORE/store.json                               the plan: what is embedded, and how; written first
    STORE/shards/00012-000.pairs.safetensors       keys, captions and columns of a part of shard 12
    STORE/shards/00012-000.clip.safetensors        the part's features in the set `clip`
    STORE/shards/00012-000.subjects.safetensors    the part's subjects, if they were embedded; see `store_subjects`
    STORE/shards/00000-empty.clip.safetensors      the set's features of the empty text, written once, with the first shard
    STORE/shards/00000-zero.clip.safetensors       the embedding of an image of zeros, in a store with subjects
    STORE/shards/00012-parts.json                  finished parts of shard 12, while it is unfinished
    STORE/shards/00012.json                        the record of shard 12; written last, it says that the shard is finished
    STORE/shards/00012.llm.json                    the record of a feature set that was added later
    STORE/manifest.json                            written when all shards are finished; readers open it
    STORE/bad.jsonl                                what could not be used, and why

A shard of the source gives parts of bounded size. There is nothing but safetensors and JSON.
"""

import hashlib
import json
import re
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from syzygy.core import artifacts
from syzygy.core.errors import UserError

KIND = "syzygy embedding store"
SCHEMA_VERSION = 3
"""1: no features of the empty text. 2: the first shard's record names their file. 3: hashes of the pictures' files, and fingerprints
of the source's content. Older stores are read, but not continued. Safetensors have a schema of their own."""
PLAN_FILE, MANIFEST_FILE, BAD_FILE, SHARDS = "store.json", "manifest.json", "bad.jsonl", "shards"
DEFAULT_SET = "clip"
"""The feature set that every store has: image embeddings, pooled text embeddings and token states of one CLIP."""
PAIRS = "pairs"
"""Not a feature set: the part's keys, captions and columns."""
SUBJECTS = "subjects"
"""Not a feature set: what the part's captions refer to besides their words. Versions that do not know it read the rest."""
_SET = re.compile(r"[a-z0-9][a-z0-9_-]*")
_TENSOR_SCHEMA = "syzygy_schema"
_TYPE_NAMES = {
    torch.float64: "F64",
    torch.int64: "I64",
    torch.float32: "F32",
    torch.int32: "I32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""How safetensors calls the types that a store holds."""
CHUNK = 2**24


def record_path(store: Path, number: int, features: str | None = None) -> Path:
    """The record of shard `number`, or of its features in a set that was added."""
    return store / SHARDS / (f"{number:05}.json" if features is None else f"{number:05}.{features}.json")


def progress_path(store: Path, number: int) -> Path:
    """What is known of shard `number` before it is finished; see `embed_shard`."""
    return store / SHARDS / f"{number:05}-parts.json"


def part_path(store: Path, number: int, part: int, contents: str) -> Path:
    """`contents` is `PAIRS`, `SUBJECTS` or a feature set."""
    return store / SHARDS / f"{number:05}-{part:03}.{contents}.safetensors"


def empty_path(store: Path, number: int, features: str) -> Path:
    """A set's features of the empty text; shard `number` is the one whose record names them."""
    return store / SHARDS / f"{number:05}-empty.{features}.safetensors"


def zero_path(store: Path, number: int) -> Path:
    """CLIP's embedding of an image of zeros; shard `number` is the one whose record names it."""
    return store / SHARDS / f"{number:05}-zero.{DEFAULT_SET}.safetensors"


def is_there(store: Path, file: Mapping[str, Any]) -> bool:
    """Whether a file of a record exists and has its size."""
    path = store / SHARDS / file["name"]
    return path.is_file() and path.stat().st_size == file["size"]


def check_set_name(name: str) -> None:
    """Refuse a name that a feature set cannot have.

    Raises `UserError` if it has other characters than small letters, digits, - and _, or is taken.
    """
    if not _SET.fullmatch(name) or name in (PAIRS, SUBJECTS):
        raise UserError(
            f"a feature set cannot be called {name!r}. Use small letters, digits, - and _; {PAIRS!r} and {SUBJECTS!r} are taken."
        )


def read_checked(path: Path) -> dict[str, Any]:
    """A plan, record or manifest of a schema that this version knows.

    Raises `UserError` if it is missing, broken, newer, or something else.
    """
    found = artifacts.read_json(path)
    schema = found.get("schema_version")
    if not isinstance(schema, int) or found.get("kind") != KIND:
        raise UserError(f"{path} is not part of an embedding store. `syzygy embed` makes one.")
    if schema > SCHEMA_VERSION:
        raise UserError(
            f"{path} has schema {schema}; this version reads up to {SCHEMA_VERSION}. Install a newer syzygy."
        )
    return found


def stamped(values: dict[str, Any]) -> dict[str, Any]:
    """`values` with what `read_checked` looks for."""
    return {"kind": KIND, "schema_version": SCHEMA_VERSION, **values}


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Write safetensors atomically and durably, largest types first. Returns the file's name, size in bytes and SHA-256.

    Unlike `artifacts.write_tensors` it copies nothing, computes the checksum while it writes, and gives equal bytes for equal tensors
    (the safetensors library writes its metadata in random order).

    Raises:
        UserError: there is no space or no permission.
    """
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header: dict[str, Any] = {"__metadata__": {_TENSOR_SCHEMA: str(artifacts.SCHEMA_VERSION)}}
    end = 0
    for name in order:
        x = tensors[name]
        begin, end = end, end + x.numel() * x.element_size()
        header[name] = {"dtype": _TYPE_NAMES[x.dtype], "shape": list(x.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # aligns the tensors
    digest = hashlib.sha256()
    with artifacts.file_written(path, "a shard") as file:
        for block in (struct.pack("<Q", len(text)), text, *map(_bytes, (tensors[name] for name in order))):
            file.write(block)
            digest.update(block)
    return {"name": path.name, "size": 8 + len(text) + end, "sha256": digest.hexdigest()}


def _bytes(x: Tensor) -> memoryview:
    return x.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data


def stored_tensors(store: Path, file: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of a file that a record of the store names. See `mapped`."""
    return mapped(store / SHARDS / file["name"], file["size"])


def mapped(path: Path, size: int | None = None) -> dict[str, Tensor]:
    """The tensors of a file, mapped into memory: pages are read when they are touched, and belong to no process.

    Do not write to them.

    Args:
        path: the file.
        size: bytes that the file must have.

    Raises:
        UserError: it is missing, truncated, or of a newer schema.
    """
    try:
        found = path.stat().st_size
        if size is not None and found != size:
            raise UserError(f"{path} has {found:,} bytes instead of {size:,}: it is damaged. {repair(path)}")
        with safe_open(path, framework="pt") as file:
            schema = int((file.metadata() or {}).get(_TENSOR_SCHEMA, artifacts.SCHEMA_VERSION))
            if schema > artifacts.SCHEMA_VERSION:
                raise UserError(
                    f"{path} has schema {schema}; this version reads up to {artifacts.SCHEMA_VERSION}. Install a newer syzygy."
                )
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except FileNotFoundError:
        raise UserError(f"{path} is missing. {repair(path)}") from None
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is truncated or not safetensors ({error}). {repair(path)}") from None


def repair(path: Path) -> str:
    """How to get a file of a shard back, as a sentence."""
    plan = path.parent.parent / PLAN_FILE
    if not plan.is_file():
        return "Copy it again, or merge its stores again."
    if artifacts.read_json(plan).get("schema_version") != SCHEMA_VERSION:
        return "Copy it again, or embed the source into a new store: this one was begun by an older version, and cannot be continued."
    if path.name.split(".")[1] not in (PAIRS, SUBJECTS, DEFAULT_SET):
        return "Copy it again, or add the feature set under another name with `syzygy store add`."
    record = path.with_name(path.name.partition("-")[0] + ".json")
    return f"Copy it again; or delete {record} and repeat the `syzygy embed` command, which embeds what is missing."


def checksum(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(CHUNK):
            digest.update(block)
    return digest.hexdigest()


def remove_unfinished(folder: Path) -> None:
    """Delete files that a killed process left half written."""
    for path in folder.glob(f"{artifacts.TEMPORARY}*"):
        path.unlink(missing_ok=True)


def packed_strings(name: str, texts: list[str]) -> dict[str, Tensor]:
    """N texts as two tensors: their UTF-8 bytes, and the offsets [N + 1] where each begins."""
    encoded = [text.encode() for text in texts]
    offsets = torch.tensor([0, *map(len, encoded)]).cumsum(0)
    data = torch.from_numpy(np.frombuffer(b"".join(encoded), np.uint8).copy())
    return {f"{name}/data": data, f"{name}/offsets": offsets}


def unpacked_string(tensors: Mapping[str, Tensor], name: str, index: int) -> str:
    """Text number `index` of those that `packed_strings` made."""
    begin, end = tensors[f"{name}/offsets"][index : index + 2].tolist()
    return tensors[f"{name}/data"][begin:end].numpy().tobytes().decode()
