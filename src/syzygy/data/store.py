"""Reading an embedding store: mapped into memory, so that it may be larger than the memory is.

Legend: N pictures, M captions, B rows that are asked for, D width of the joint space, W of token states.
"""

import hashlib
import shlex
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from syzygy.core.errors import UserError, unknown
from syzygy.core.packed_attention import PackedText
from syzygy.data import building, store_layout
from syzygy.data.captions import TokenStates, joined
from syzygy.data.empty_text import RECORD
from syzygy.data.pair_encoder import DTYPES
from syzygy.data.store_files import mapped, mend, unpacked_string
from syzygy.data.store_part import BOOLEAN, CONTENT, NUMBER, TEXT
from syzygy.data.store_statistics import ImageStatistics

Index = Tensor | Sequence[int] | np.ndarray
"""Numbers of captions or pictures, on the CPU; a result has their order, and a number may come several times."""


class _Part:
    """The mapped tensors of one part, as numpy arrays; features as 16-bit patterns, since numpy knows no bf16."""

    def __init__(self, pairs: Mapping[str, Tensor], images: Mapping[str, Tensor], text: Mapping[str, Tensor]) -> None:
        self.pairs = pairs
        self.hashes = pairs["text_hash"].numpy()
        self.image_of_caption = pairs["image_of_caption"].numpy()
        self.images = images["image"].view(torch.int16).numpy()
        self.offsets = text["offsets"].numpy()
        self.states = text["states"].view(torch.int16).numpy()
        self.pooled = text["pooled"].view(torch.int16).numpy() if "pooled" in text else None


class EmbeddingStore:
    """M captions of N pictures, embedded. Captions and pictures have numbers from 0, in the source's order.

    Features come as they are stored (fp16 or bf16): raw, that is projected but not normalised. Can be sent to other processes.
    """

    def __init__(self, path: Path, manifest: Mapping[str, Any], features: str) -> None:
        """Use `open`."""
        self.path, self.manifest, self.features = path, manifest, features
        self._parts = [part for shard in manifest["shards"] for part in shard["parts"]]
        self._open: list[_Part | None] = [None] * len(self._parts)
        self._first_caption = np.cumsum([0, *(part["captions"] for part in self._parts)])
        self._first_image = np.cumsum([0, *(part["pictures"] for part in self._parts)])

    @classmethod
    def open(cls, path: str | Path, features: str = store_layout.DEFAULT_SET) -> "EmbeddingStore":
        """Open a finished store; `features` names the set that captions are read from (image embeddings are always CLIP's).

        Raises:
            UserError: there is no store, it is unfinished, of a newer schema, a file is missing or truncated, or it has
                no such set.
        """
        path = Path(path)
        manifest = building.read_manifest(path)
        if features not in manifest["features"]:
            raise unknown(f"feature set of {path}", features, manifest["features"])
        store = cls(path, manifest, features)
        store._check_sizes()
        return store

    def __reduce__(self) -> tuple[Any, ...]:
        return EmbeddingStore.open, (self.path, self.features)

    def __repr__(self) -> str:
        return f"EmbeddingStore({str(self.path)!r}, {len(self)} captions, {self.number_of_images} pictures, {self.features})"

    def _check_sizes(self) -> None:
        found = {entry.name: entry.stat().st_size for entry in (self.path / store_layout.SHARDS).iterdir()}
        for file in building.files_in(self.manifest):
            size = found.get(file["name"])
            if size != file["size"]:
                path = self.path / store_layout.SHARDS / file["name"]
                what = "is missing" if size is None else f"has {size:,} bytes instead of {file['size']:,}"
                raise UserError(f"{path} {what}. {mend(path)}")

    def __len__(self) -> int:
        """M."""
        return int(self._first_caption[-1])

    @property
    def number_of_images(self) -> int:
        """N."""
        return int(self._first_image[-1])

    @property
    def width(self) -> int:
        """D."""
        return len(self.statistics.mean)

    @property
    def source(self) -> str | None:
        """What it was embedded from, as the user wrote it; None for merged stores."""
        words = shlex.split(self.manifest["command"])
        return words[2] if words[:2] == ["syzygy", "embed"] and len(words) > 2 else None

    @property
    def encoder(self) -> dict[str, Any]:
        """The identity of the encoder that made this feature set."""
        return self.manifest["features"][self.features]["encoder"]

    @property
    def dtype(self) -> torch.dtype:
        """How this feature set is stored."""
        return _dtype(self.manifest, self.features)

    @property
    def columns(self) -> dict[str, str]:
        """Metadata columns of the pictures: name → "number", "boolean" or "text"."""
        return self.manifest["columns"]

    @cached_property
    def statistics(self) -> ImageStatistics:
        """Of all N image embeddings."""
        return ImageStatistics.from_config(self.manifest["features"][store_layout.DEFAULT_SET]["images"])

    @property
    def digest(self) -> str:
        """Sixteen hex digits over what is stored: the same where the stores are, wherever they lie."""
        sums = [file["sha256"] for file in building.files_in(self.manifest)]
        return hashlib.blake2b("".join(sums).encode(), digest_size=8).hexdigest()

    @cached_property
    def longest(self) -> int:
        """Tokens of the longest caption."""
        return int(self.all_lengths().max())

    def all_lengths(self) -> Int[Tensor, "M"]:
        """Tokens of every caption."""
        return torch.from_numpy(np.concatenate([np.diff(self._part(i).offsets) for i in range(len(self._parts))]))

    def all_ids(self) -> Int[Tensor, "M"]:
        """A number for every caption, equal where the captions' words are."""
        return torch.from_numpy(np.concatenate([self._part(i).hashes for i in range(len(self._parts))]))

    def shard_of(self, image: int) -> dict[str, Any]:
        """What the manifest says of the source's shard that this picture is from: its `source` is the shard's name."""
        first = 0
        for shard in self.manifest["shards"]:
            first += sum(part["pictures"] for part in shard["parts"])
            if image < first:
                return shard
        raise IndexError(f"pictures have numbers from 0 to {self.number_of_images - 1}; got {image}.")

    def all_images_of(self) -> Int[Tensor, "M"]:
        """For every caption the number of the picture that it describes."""
        parts = [
            self._first_image[i] + self._part(i).image_of_caption.astype(np.int64) for i in range(len(self._parts))
        ]
        return torch.from_numpy(np.concatenate(parts))

    @cached_property
    def same_picture(self) -> Int[Tensor, "N"]:
        """For every picture the number of the first one that is the same: by its file's content.

        An older version stored no hashes of the files. Then a folder's pictures are the same where their names are, and any others differ.
        """
        N = self.number_of_images
        if self.has_contents:
            keys = np.concatenate([self._part(i).pairs[CONTENT].numpy() for i in range(len(self._parts))])
        elif self.manifest["kind_of_source"] == "folder":
            keys = np.array(self.keys(range(N)))
        else:
            return torch.arange(N)
        _, first, group = np.unique(keys, return_index=True, return_inverse=True)
        return torch.from_numpy(first[group].astype(np.int64))

    @property
    def different_images(self) -> int:
        """How many pictures there are if those that are the same count once."""
        return len(self.same_picture.unique())

    @property
    def has_contents(self) -> bool:
        """Whether the store knows which of its pictures are the same file."""
        return all(CONTENT in self._part(i).pairs for i in range(len(self._parts)))

    def captions(self, index: Index) -> PackedText:
        """Text features of these captions.

        Raises:
            UserError: the set has no pooled embeddings.
        """
        tokens = self.tokens(index)
        return PackedText(tokens.states, tokens.offsets, self.pooled(index))

    def pooled(self, index: Index) -> Float[Tensor, "B W"]:
        """Pooled embeddings of these captions, projected but not normalised.

        Raises:
            UserError: the set has none.
        """
        rows = [(part.pooled, i) for part, i in zip(*self._caption_places(index), strict=True)]
        if any(pooled is None for pooled, _ in rows):
            raise self._no_pooled()
        pooled = np.concatenate([x[i : i + 1] for x, i in rows if x is not None])
        return torch.from_numpy(pooled).view(self.dtype)

    def _no_pooled(self) -> UserError:
        return UserError(f"the feature set {self.features!r} has no pooled embeddings. Read its `tokens`.")

    def tokens(self, index: Index) -> TokenStates:
        """Token states of these captions."""
        return self._tokens(*self._caption_places(index))

    def _tokens(self, parts: list[_Part], local: list[int]) -> TokenStates:
        bounds = [part.offsets[i : i + 2].tolist() for part, i in zip(parts, local, strict=True)]
        return joined([part.states[a:b] for part, (a, b) in zip(parts, bounds, strict=True)], self.dtype)

    def empty_text(self) -> PackedText:
        """Features of the empty text, as one caption.

        Raises:
            UserError: an older version wrote the store, without them: says how to add them; the set has no pooled embeddings.
        """
        tensors = self._empty()
        if "pooled" not in tensors:
            raise self._no_pooled()
        return PackedText(tensors["states"], tensors["offsets"], tensors["pooled"])

    def empty_tokens(self) -> TokenStates:
        """Token states of the empty text, as one caption.

        Raises:
            UserError: an older version wrote the store, without them.
        """
        tensors = self._empty()
        return TokenStates(tensors["states"], tensors["offsets"])

    def _empty(self) -> Mapping[str, Tensor]:
        file = self.manifest["features"][self.features].get(RECORD)
        if file is None:
            raise UserError(
                f"{self.path} holds no features of the empty text: an older version wrote it. {self._remedy()}"
            )
        return mapped(self.path / store_layout.SHARDS / file["name"], file["size"])

    def _remedy(self) -> str:
        """How features of the empty text come into a store of schema 1."""
        if self.features != store_layout.DEFAULT_SET:
            return "Add the feature set anew, under another name."
        if building.read_plan(self.path) is None:
            return (
                "Embed the source of each store that it was merged from anew, into a new one, then merge them with: "
                f"{self.manifest['command']} --out STORE"
            )
        return f"Embed its source anew: {self.manifest['command']} --out STORE"

    def images(self, index: Index) -> Float[Tensor, "B D"]:
        """Raw embeddings of these pictures."""
        parts, local = self._places(index, self._first_image, "picture")
        rows = np.concatenate([part.images[i : i + 1] for part, i in zip(parts, local, strict=True)])
        return torch.from_numpy(rows).view(_dtype(self.manifest, store_layout.DEFAULT_SET))

    def images_of(self, index: Index) -> Float[Tensor, "B D"]:
        """Raw embeddings of the pictures that these captions describe."""
        return self.images(self.image_of(index))

    def image_of(self, index: Index) -> Int[Tensor, "B"]:
        """The numbers of the pictures that these captions describe."""
        numbers = _numbers(index, len(self), "caption")
        which = np.searchsorted(self._first_caption, numbers, side="right") - 1
        parts, local = self._caption_places(numbers)
        inside = [part.image_of_caption[i] for part, i in zip(parts, local, strict=True)]
        return torch.from_numpy(self._first_image[which] + np.array(inside, np.int64))

    def ids(self, index: Index) -> Int[Tensor, "B"]:
        """A number for each caption, equal where the captions' words are."""
        parts, local = self._caption_places(index)
        return torch.from_numpy(np.array([part.hashes[i] for part, i in zip(parts, local, strict=True)], np.int64))

    def texts(self, index: Index) -> list[str]:
        """The captions themselves."""
        parts, local = self._caption_places(index)
        return [_string(part, "caption", i) for part, i in zip(parts, local, strict=True)]

    def keys(self, index: Index) -> list[str]:
        """What the source calls these pictures."""
        parts, local = self._places(index, self._first_image, "picture")
        return [_string(part, "key", i) for part, i in zip(parts, local, strict=True)]

    def column(self, name: str) -> Tensor | list[str]:
        """A metadata column of all N pictures: float64 with NaN where a value is missing, bool, or a list of text.

        Raises:
            UserError: there is no such column.
        """
        if name not in self.columns:
            raise unknown(f"column of {self.path}", name, self.columns)
        parts = [(self._part(i), self._parts[i]["pictures"]) for i in range(len(self._parts))]
        if self.columns[name] == TEXT:
            return [text for part, number in parts for text in _text_column(part.pairs, name, number)]
        found = [_number_column(part.pairs, name, number) for part, number in parts]
        whole = torch.cat([values.double() for values in found])
        return whole.bool() if self.columns[name] == BOOLEAN else whole

    def _caption_places(self, index: Index) -> tuple[list[_Part], list[int]]:
        return self._places(index, self._first_caption, "caption")

    def _places(self, index: Index, first: np.ndarray, what: str) -> tuple[list[_Part], list[int]]:
        """For each number its part, and its number in it."""
        numbers = _numbers(index, int(first[-1]), what)
        which = np.searchsorted(first, numbers, side="right") - 1
        return [self._part(i) for i in which.tolist()], (numbers - first[which]).tolist()

    def _part(self, number: int) -> _Part:
        part = self._open[number]
        if part is None:
            record = self._parts[number]
            files = {store_layout.PAIRS: record["pairs"], **record["features"]}
            tensors = {
                name: mapped(self.path / store_layout.SHARDS / files[name]["name"], files[name]["size"])
                for name in {store_layout.PAIRS, store_layout.DEFAULT_SET, self.features}
            }
            part = _Part(tensors[store_layout.PAIRS], tensors[store_layout.DEFAULT_SET], tensors[self.features])
            self._open[number] = part
        return part


def _dtype(manifest: Mapping[str, Any], features: str) -> torch.dtype:
    return DTYPES[manifest["features"][features]["dtype"]]


def _numbers(index: Index, limit: int, what: str) -> np.ndarray:
    numbers = np.asarray(index, dtype=np.int64)
    assert numbers.ndim == 1 and len(numbers), "one number for each row, and at least one row"
    if len(numbers) and (numbers.min() < 0 or numbers.max() >= limit):
        raise IndexError(f"{what}s have numbers from 0 to {limit - 1}; got {numbers.min()} to {numbers.max()}.")
    return numbers


def _string(part: _Part, name: str, i: int) -> str:
    return unpacked_string(part.pairs[f"{name}/data"], part.pairs[f"{name}/offsets"], i)


def _text_column(pairs: Mapping[str, Tensor], name: str, number: int) -> list[str]:
    data, offsets = f"{TEXT}/{name}/data", f"{TEXT}/{name}/offsets"
    return [unpacked_string(pairs[data], pairs[offsets], i) if data in pairs else "" for i in range(number)]


def _number_column(pairs: Mapping[str, Tensor], name: str, number: int) -> Tensor:
    found = (pairs.get(f"{kind}/{name}") for kind in (NUMBER, BOOLEAN))
    return next((x for x in found if x is not None), torch.full((number,), torch.nan))
