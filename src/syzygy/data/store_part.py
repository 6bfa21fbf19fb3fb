"""A part of a store: some pictures with their captions, embedded, and the two files that hold them.

Legend: N pictures, M captions, T tokens of all captions, D width of the joint space, W of token states.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from syzygy.data import store_layout
from syzygy.data.captions import TokenStates
from syzygy.data.pair import Scalar
from syzygy.data.store_files import packed_strings, write_tensors

NUMBER, BOOLEAN, TEXT = "number", "boolean", "text"
"""Types of a column: float64 with NaN where a value is missing; bool, never missing; text, empty where it is missing."""
CONTENT = "content"
"""The tensor [N] of hashes over the pictures' files; schema 2 had none."""


@dataclass(frozen=True)
class Part:
    """What one part holds, in the source's order; features in the store's precision."""

    keys: list[str]
    """N."""
    columns: list[Mapping[str, Scalar]]
    """N."""
    contents: list[int]
    """N; equal where two pictures' files are the same."""
    images: Float[Tensor, "N D"]
    """Raw image embeddings."""
    captions: list[str]
    """M, those of a picture next to each other."""
    image_of_caption: list[int]
    """M; counts the part's pictures."""
    text: TokenStates
    """Of the M captions."""
    pooled: Float[Tensor, "M D"]
    """Pooled text embeddings of the M captions."""


def text_hash(text: str) -> int:
    """64 bits with sign, equal where the texts are."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little", signed=True)


def write_part(
    part: Part, store: Path, number: int, index: int, features: str = store_layout.DEFAULT_SET
) -> dict[str, Any]:
    """Write both files of part `index` of shard `number`; the value goes into the shard's record.

    Raises:
        UserError: they cannot be written.
    """
    columns = column_tensors(part.columns)
    pairs = write_tensors(
        store_layout.part_path(store, number, index, store_layout.PAIRS),
        {
            **_named("key", packed_strings(part.keys)),
            **_named("caption", packed_strings(part.captions)),
            "image_of_caption": torch.tensor(part.image_of_caption, dtype=torch.int32),
            "text_hash": torch.tensor([text_hash(text) for text in part.captions]),
            CONTENT: torch.tensor(part.contents, dtype=torch.int64),
            **columns,
        },
    )
    path = store_layout.part_path(store, number, index, features)
    text = text_tensors(part.text, part.pooled)
    vectors = write_tensors(path, {"image": part.images, **image_sums(part.images), **text})
    return {
        "pictures": len(part.keys),
        "captions": len(part.captions),
        "columns": column_types(columns),
        "pairs": pairs.to_config(),
        "features": {features: vectors.to_config() | {"tokens": len(part.text.states)}},
    }


def text_tensors(text: TokenStates, pooled: Float[Tensor, "M D"] | None) -> dict[str, Tensor]:
    """A feature set's tensors of M captions."""
    return {"states": text.states, "offsets": text.offsets} | ({} if pooled is None else {"pooled": pooled})


def image_sums(images: Float[Tensor, "N D"]) -> dict[str, Float[Tensor, "..."]]:
    """Sums of the values and of their squares for each dimension, and of the norms, as stored, in float64."""
    values = images.double().numpy()  # numpy sums in one order, whatever the number of threads
    norms = np.sqrt((values**2).sum(1))
    return {
        "image_sums": torch.from_numpy(np.stack([values.sum(0), (values**2).sum(0)])),
        "image_norm_sum": torch.from_numpy(norms.sum(keepdims=True)),
    }


def column_tensors(rows: Sequence[Mapping[str, Scalar]]) -> dict[str, Tensor]:
    """N rows of metadata as tensors, named by type and column; a text column has two."""
    found: dict[str, Tensor] = {}
    for name in sorted({name for row in rows for name in row}):
        values = [row.get(name) for row in rows]
        if any(isinstance(value, str) for value in values):
            texts = ["" if value is None else str(value) for value in values]
            found |= _named(f"{TEXT}/{name}", packed_strings(texts))
        elif all(isinstance(value, bool) for value in values):
            found[f"{BOOLEAN}/{name}"] = torch.tensor(values)
        else:
            numbers = [float("nan") if value is None else float(value) for value in values]
            found[f"{NUMBER}/{name}"] = torch.tensor(numbers, dtype=torch.float64)
    return found


def column_types(names: Iterable[str]) -> dict[str, str]:
    """Columns and their types, from the names of a part's tensors."""
    found: dict[str, str] = {}
    for name in names:
        kind, slash, column = name.partition("/")
        if slash and kind in (NUMBER, BOOLEAN, TEXT):
            found[column.removesuffix("/data").removesuffix("/offsets") if kind == TEXT else column] = kind
    return found


def merged_types(parts: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """The types that columns have over several parts: a boolean that some part lacks, or has as a number, is a number."""
    found: dict[str, str] = {}
    for name in sorted({name for types in parts for name in types}):
        kinds = {types.get(name) for types in parts}
        if TEXT in kinds:
            found[name] = TEXT
        else:
            found[name] = BOOLEAN if kinds == {BOOLEAN} else NUMBER
    return found


def _named(name: str, strings: tuple[Tensor, Int[Tensor, "N_plus_1"]]) -> dict[str, Tensor]:
    return {f"{name}/data": strings[0], f"{name}/offsets": strings[1]}
