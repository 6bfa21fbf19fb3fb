"""A set's features of the empty text, in a file of its own: condition dropout and guidance need them, and no caption has them.

They belong to the store's first shard: whoever embeds that one writes them, so there is nothing to agree on between processes.
"""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from syzygy.core.contracts import TextFeatures
from syzygy.core.errors import UserError
from syzygy.data import store_layout
from syzygy.data.captions import CaptionFeatures, encode_captions, joined
from syzygy.data.pair_encoder import DTYPES
from syzygy.data.store_files import write_tensors
from syzygy.data.store_part import text_tensors

RECORD = "empty"
"""Where a record, and a feature set of the manifest, names the file."""


def write_empty(
    encode: Callable[[list[str]], TextFeatures | CaptionFeatures],
    dtype: Literal["fp16", "bf16"],
    batch_size: int,
    store: Path,
    features: str = store_layout.DEFAULT_SET,
) -> dict[str, Any]:
    """Encode the empty text as captions are, and write it; the value goes into the first shard's record.

    Raises:
        UserError: its features cannot be stored, or not written.
    """
    encoded = encode_captions(encode, [""], DTYPES[dtype], batch_size)
    if encoded.faults[0]:
        raise UserError(f"what the encoder gives for the empty text {encoded.faults[0]}.")
    tensors = text_tensors(joined(encoded.states, DTYPES[dtype]), encoded.pooled)
    file = write_tensors(store_layout.empty_path(store, 0, features), tensors)
    return file.to_config() | {"tokens": len(tensors["states"])}


def empty_files(records: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The files that these records, or feature sets of a manifest, name; none where an older version wrote them."""
    return [record[RECORD] for record in records if RECORD in record]


def first_named(records: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The first of them, as a feature set of the manifest names it."""
    files = empty_files(records)
    return {RECORD: files[0]} if files else {}
