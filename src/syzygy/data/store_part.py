"""What is written into a store: a part's pairs and features, the features of the empty text, and the sums that statistics come from.

Legend: N pictures, M captions, T tokens of all captions, D width of the joint space, W of token states.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from syzygy.core.errors import UserError
from syzygy.core.packed_attention import PackedText
from syzygy.data import store_files
from syzygy.data.encoding import DTYPES, Encode, encode_captions, joined
from syzygy.data.pair import Scalar
from syzygy.data.store_files import SUBJECTS, packed_strings, stored_tensors, write_tensors
from syzygy.data.store_subjects import PartSubjects, write_subjects

NUMBER, BOOLEAN, TEXT = "number", "boolean", "text"
"""Types of a column: float64 with NaN where a value is missing; bool, never missing; text, empty where it is missing."""
CONTENT = "content"
"""The tensor [N] of hashes over the pictures' files; schema 2 had none."""
EMPTY = "empty"
"""The field of a record, and of a feature set in the manifest, that names the file with the features of the empty text."""


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
    text: PackedText
    """Features of the M captions."""
    subjects: PartSubjects | None = None
    """None in a store without subjects."""


def text_hash(text: str) -> int:
    """64 bits with sign, equal where the texts are."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little", signed=True)


def write_part(part: Part, store: Path, number: int, index: int) -> dict[str, Any]:
    """Write the files of part `index` of shard `number`. Returns what the shard's record says of it.

    Raises `UserError` if they cannot be written.
    """
    columns = column_tensors(part.columns)
    pairs = write_tensors(
        store_files.part_path(store, number, index, store_files.PAIRS),
        {
            **packed_strings("key", part.keys),
            **packed_strings("caption", part.captions),
            "image_of_caption": torch.tensor(part.image_of_caption, dtype=torch.int32),
            "text_hash": torch.tensor([text_hash(text) for text in part.captions]),
            CONTENT: torch.tensor(part.contents, dtype=torch.int64),
            **columns,
        },
    )
    text = part.text
    features = write_tensors(
        store_files.part_path(store, number, index, store_files.DEFAULT_SET),
        {
            "image": part.images,
            **image_sums(part.images),
            **text_tensors(text.states, text.offsets, text.pooled),
        },
    )
    subjects = {} if part.subjects is None else {SUBJECTS: write_subjects(part.subjects, store, number, index)}
    return {
        "pictures": len(part.keys),
        "captions": len(part.captions),
        "columns": column_types(columns),
        "pairs": pairs,
        "features": {store_files.DEFAULT_SET: features | {"tokens": len(text.states)}},
        **subjects,
    }


def text_tensors(
    states: Float[Tensor, "T W"], offsets: Int[Tensor, "M_plus_1"], pooled: Float[Tensor, "M D"] | None
) -> dict[str, Tensor]:
    """A feature set's tensors of M captions."""
    return {"states": states, "offsets": offsets} | ({} if pooled is None else {"pooled": pooled})


def write_empty(
    encode: Encode,
    dtype: Literal["fp16", "bf16"],
    batch_size: int,
    store: Path,
    features: str = store_files.DEFAULT_SET,
) -> dict[str, Any]:
    """Encode the empty text as captions are, and write it. Returns what the first shard's record says of it.

    Condition dropout and guidance need these features, and no caption has them. They belong to the first shard: the process that
    embeds it writes them, so processes have nothing to agree on.

    Raises:
        UserError: the features cannot be stored, or not written.
    """
    encoded = encode_captions(encode, [""], DTYPES[dtype], batch_size)
    if encoded.faults[0]:
        raise UserError(f"what the encoder gives for the empty text {encoded.faults[0]}.")
    tensors = text_tensors(*joined(encoded.states, DTYPES[dtype]), encoded.pooled)
    file = write_tensors(store_files.empty_path(store, 0, features), tensors)
    return file | {"tokens": len(tensors["states"])}


def empty_files(records: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The files that these records, or a manifest's feature sets, name; older versions wrote none."""
    return [record[EMPTY] for record in records if EMPTY in record]


def column_tensors(rows: Sequence[Mapping[str, Scalar]]) -> dict[str, Tensor]:
    """N rows of metadata as tensors, named by type and column; a text column has two."""
    found: dict[str, Tensor] = {}
    for name in sorted({name for row in rows for name in row}):
        values = [row.get(name) for row in rows]
        if any(isinstance(value, str) for value in values):
            found |= packed_strings(f"{TEXT}/{name}", ["" if value is None else str(value) for value in values])
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
    """The types that columns have over several parts. A boolean that some part lacks, or has as a number, is a number."""
    found: dict[str, str] = {}
    for name in sorted({name for types in parts for name in types}):
        kinds = {types.get(name) for types in parts}
        found[name] = TEXT if TEXT in kinds else BOOLEAN if kinds == {BOOLEAN} else NUMBER
    return found


def image_sums(images: Float[Tensor, "N D"]) -> dict[str, Float[Tensor, "..."]]:
    """Sums of the values and of their squares for each dimension, and of the norms, as stored, in float64."""
    values = images.double().numpy()  # numpy sums in one order, whatever the number of threads
    norms = np.sqrt((values**2).sum(1))
    return {
        "image_sums": torch.from_numpy(np.stack([values.sum(0), (values**2).sum(0)])),
        "image_norm_sum": torch.from_numpy(norms.sum(keepdims=True)),
    }


@dataclass(frozen=True)
class ImageStatistics:
    """Statistics of N raw image embeddings as stored. `prior.statistics.EmbeddingStatistics` is computed from them."""

    number: int
    """N."""
    mean: Float[Tensor, "D"]
    """Of each dimension, in float64."""
    std: Float[Tensor, "D"]
    """Of each dimension, in float64, with Bessel's correction; zeros if N is 1."""
    mean_norm: float
    """Mean L2 norm."""

    def to_config(self) -> dict[str, Any]:
        """As JSON values, exactly."""
        return {
            "number": self.number,
            "width": len(self.mean),
            "mean_norm": self.mean_norm,
            "mean": self.mean.tolist(),
            "std": self.std.tolist(),
        }

    @staticmethod
    def from_config(values: Mapping[str, Any]) -> "ImageStatistics":
        """What `to_config` wrote."""
        mean, std = (torch.tensor(values[name], dtype=torch.float64) for name in ("mean", "std"))
        return ImageStatistics(values["number"], mean, std, values["mean_norm"])


def statistics_of(store: Path, parts: Sequence[Mapping[str, Any]]) -> ImageStatistics:
    """Statistics of all image embeddings in these parts, merged in their order, so that they do not depend on who wrote them when.

    Raises `UserError` if a file is missing or damaged.
    """
    number, sums, norms = 0, torch.zeros(0), 0.0
    for part in parts:
        tensors = stored_tensors(store, part["features"][store_files.DEFAULT_SET])
        sums = tensors["image_sums"] if number == 0 else sums + tensors["image_sums"]
        norms += float(tensors["image_norm_sum"])
        number += part["pictures"]
    mean = sums[0] / number
    variance = (sums[1] - number * mean**2) / max(number - 1, 1)
    return ImageStatistics(number, mean, variance.clamp(min=0).sqrt(), norms / number)
