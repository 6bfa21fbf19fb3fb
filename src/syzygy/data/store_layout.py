"""Where everything lies in a store.

    STORE/store.json                               what is to be embedded, and how: written first
    STORE/shards/00012-000.pairs.safetensors       keys, captions, columns of a part of shard 12
    STORE/shards/00012-000.clip.safetensors        its features in the set `clip`
    STORE/shards/00000-empty.clip.safetensors      the set's features of the empty text, once: they belong to the first shard
    STORE/shards/00012-parts.json                  finished parts of shard 12, as long as it is unfinished
    STORE/shards/00012.json                        the record of shard 12: written last, it says that the shard is finished
    STORE/shards/00012.llm.json                    the same of a set that was added later
    STORE/manifest.json                            written when all shards are finished: what a reader opens
    STORE/bad.jsonl                                what could not be used, and why

A shard of the source gives parts of bounded size. Nothing but safetensors and JSON.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from syzygy.core import artifacts
from syzygy.core.errors import UserError

KIND = "syzygy embedding store"
SCHEMA_VERSION = 3
"""1: no features of the empty text. 2: the first shard's record names their file. 3: hashes of the pictures' files, fingerprints of
the source's content. Older ones are read, but not continued. Safetensors count for themselves."""
PLAN_FILE, MANIFEST_FILE, BAD_FILE, SHARDS = "store.json", "manifest.json", "bad.jsonl", "shards"
DEFAULT_SET = "clip"
"""The feature set that a store begins with: image embeddings, pooled text embeddings and token states of one CLIP."""
PAIRS = "pairs"
"""Not a feature set: the part's keys, captions and columns."""
_SET = re.compile(r"[a-z0-9][a-z0-9_-]*")


def record_path(store: Path, number: int, features: str | None = None) -> Path:
    """The record of shard `number`, or of its features in a set that was added."""
    return store / SHARDS / (f"{number:05}.json" if features is None else f"{number:05}.{features}.json")


def progress_path(store: Path, number: int) -> Path:
    """What is known of shard `number` before it is finished; see `embed_shard`."""
    return store / SHARDS / f"{number:05}-parts.json"


def is_there(store: Path, file: Mapping[str, Any]) -> bool:
    """Whether a shard's file is there, in its size."""
    path = store / SHARDS / file["name"]
    return path.is_file() and path.stat().st_size == file["size"]


def part_path(store: Path, number: int, part: int, contents: str) -> Path:
    """`contents` is `PAIRS` or a feature set."""
    return store / SHARDS / f"{number:05}-{part:03}.{contents}.safetensors"


def empty_path(store: Path, number: int, features: str) -> Path:
    """A set's features of the empty text; shard `number` is the one whose record names them."""
    return store / SHARDS / f"{number:05}-empty.{features}.safetensors"


def check_set_name(name: str) -> str:
    """`name`, if a feature set may have it.

    Raises:
        UserError: it may not.
    """
    if not _SET.fullmatch(name) or name == PAIRS:
        raise UserError(
            f"a feature set cannot be called {name!r}: take small letters, digits, - and _; {PAIRS!r} is taken."
        )
    return name


def read_checked(path: Path) -> dict[str, Any]:
    """A plan, record or manifest of a schema that this version knows.

    Raises:
        UserError: it is missing, broken, newer, or something else.
    """
    found = artifacts.read_json(path)
    schema = found.get("schema_version")
    if not isinstance(schema, int) or found.get("kind") != KIND:
        raise UserError(f"{path} is no part of an embedding store. `syzygy embed` makes one.")
    if schema > SCHEMA_VERSION:
        raise UserError(
            f"{path} has schema {schema}; this version reads up to {SCHEMA_VERSION}. Install a newer syzygy."
        )
    return found


def stamped(values: dict[str, Any]) -> dict[str, Any]:
    """`values` with what `read_checked` looks for."""
    return {"kind": KIND, "schema_version": SCHEMA_VERSION, **values}
