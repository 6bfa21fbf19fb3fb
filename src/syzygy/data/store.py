"""Reading of an embedding store. It is mapped into memory, so it may be larger than the memory is.

Legend: N pictures, M captions, B rows that are asked for, T tokens, D width of the joint space, W of token states.
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

from syzygy.core.contracts import TextStates
from syzygy.core.errors import UserError, unknown
from syzygy.core.packed_attention import PackedText
from syzygy.data import store_building
from syzygy.data.encoding import DTYPES, joined
from syzygy.data.references import References
from syzygy.data.store_files import DEFAULT_SET, PAIRS, SHARDS, SUBJECTS, repair, stored_tensors, unpacked_string
from syzygy.data.store_part import BOOLEAN, CONTENT, EMPTY, NUMBER, TEXT, ImageStatistics, text_hash
from syzygy.data.store_subjects import StoredSubjects

Index = Tensor | Sequence[int] | np.ndarray
"""Numbers of captions or pictures, on the CPU. A result has their order, and a number may come several times."""


class _Part:
    """The mapped tensors of one part as numpy arrays; features as 16-bit patterns, since numpy knows no bf16."""

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

    Features come as they are stored (fp16 or bf16): raw, that is projected but not normalised. A store can be sent to other processes.
    """

    def __init__(self, path: Path, manifest: Mapping[str, Any], features: str) -> None:
        """Use `open`."""
        self.path, self.manifest, self.features = path, manifest, features
        self._records = [part for shard in manifest["shards"] for part in shard["parts"]]
        self._open: list[_Part | None] = [None] * len(self._records)
        self._first_caption = np.cumsum([0, *(part["captions"] for part in self._records)])
        self._first_image = np.cumsum([0, *(part["pictures"] for part in self._records)])

    @classmethod
    def open(cls, path: str | Path, features: str = DEFAULT_SET) -> "EmbeddingStore":
        """Open a finished store.

        Args:
            path: the store's folder.
            features: the feature set that captions are read from. Image embeddings are always CLIP's.

        Raises:
            UserError: there is no store, it is unfinished, of a newer schema, a file is missing or truncated, or it has
                no such set.
        """
        path = Path(path)
        manifest = store_building.read_manifest(path)
        if features not in manifest["features"]:
            raise unknown(f"feature set of {path}", features, manifest["features"])
        sizes = {entry.name: entry.stat().st_size for entry in (path / SHARDS).iterdir()}
        for file in store_building.files_in(manifest):
            size = sizes.get(file["name"])
            if size != file["size"]:
                what = "is missing" if size is None else f"has {size:,} bytes instead of {file['size']:,}"
                raise UserError(f"{path / SHARDS / file['name']} {what}. {repair(path / SHARDS / file['name'])}")
        return cls(path, manifest, features)

    def __reduce__(self) -> tuple[Any, ...]:
        return EmbeddingStore.open, (self.path, self.features)

    def __repr__(self) -> str:
        return f"EmbeddingStore({str(self.path)!r}, {len(self)} captions, {self.number_of_images} pictures, {self.features})"

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
        return DTYPES[self.manifest["features"][self.features]["dtype"]]

    @property
    def columns(self) -> dict[str, str]:
        """Metadata columns of the pictures: name → "number", "boolean" or "text"."""
        return self.manifest["columns"]

    @cached_property
    def statistics(self) -> ImageStatistics:
        """Statistics of all N image embeddings."""
        return ImageStatistics.from_config(self.manifest["features"][DEFAULT_SET]["images"])

    @property
    def digest(self) -> str:
        """Sixteen hex digits over what is stored: equal for equal stores, wherever they lie."""
        sums = [file["sha256"] for file in store_building.files_in(self.manifest)]
        return hashlib.blake2b("".join(sums).encode(), digest_size=8).hexdigest()

    @cached_property
    def longest(self) -> int:
        """Tokens of the longest caption."""
        return int(self.all_lengths().max())

    def all_lengths(self) -> Int[Tensor, "M"]:
        """Tokens of every caption."""
        return torch.from_numpy(np.concatenate([np.diff(part.offsets) for part in self._parts()]))

    def all_ids(self) -> Int[Tensor, "M"]:
        """A number for every caption, equal where the captions' words are."""
        return torch.from_numpy(np.concatenate([part.hashes for part in self._parts()]))

    def all_images_of(self) -> Int[Tensor, "M"]:
        """For every caption the number of the picture that it describes."""
        parts = zip(self._first_image, self._parts(), strict=False)
        return torch.from_numpy(
            np.concatenate([first + part.image_of_caption.astype(np.int64) for first, part in parts])
        )

    def shard_of(self, image: int) -> dict[str, Any]:
        """The manifest's entry for the source's shard that this picture is from. Its `source` is the shard's name."""
        first = 0
        for shard in self.manifest["shards"]:
            first += sum(part["pictures"] for part in shard["parts"])
            if image < first:
                return shard
        raise IndexError(f"pictures have numbers from 0 to {self.number_of_images - 1}; got {image}.")

    @cached_property
    def same_picture(self) -> Int[Tensor, "N"]:
        """For every picture the number of the first one whose file has the same content.

        An older version stored no hashes of the files. Then a folder's pictures are the same if their names are, and any others differ.
        """
        N = self.number_of_images
        if self.has_contents:
            keys = np.concatenate([part.pairs[CONTENT].numpy() for part in self._parts()])
        elif self.manifest["kind_of_source"] == "folder":
            keys = np.array(self.keys(range(N)))
        else:
            return torch.arange(N)
        _, first, group = np.unique(keys, return_index=True, return_inverse=True)
        return torch.from_numpy(first[group].astype(np.int64))

    @property
    def different_images(self) -> int:
        """How many different pictures there are."""
        return len(self.same_picture.unique())

    @property
    def has_contents(self) -> bool:
        """Whether the store knows which of its pictures are the same file."""
        return all(CONTENT in part.pairs for part in self._parts())

    def captions(self, index: Index) -> PackedText:
        """Text features of these captions.

        Raises:
            UserError: the set has no pooled embeddings.
        """
        return PackedText(*self._states(index), self.pooled(index))

    def pooled(self, index: Index) -> Float[Tensor, "B W"]:
        """Pooled embeddings of these captions, projected but not normalised.

        Raises:
            UserError: the set has none.
        """
        rows = [(part.pooled, i) for part, i in self._captions(index)]
        if any(pooled is None for pooled, _ in rows):
            raise self._no_pooled()
        pooled = np.concatenate([x[i : i + 1] for x, i in rows if x is not None])
        return torch.from_numpy(pooled).view(self.dtype)

    def _no_pooled(self) -> UserError:
        return UserError(f"the feature set {self.features!r} has no pooled embeddings. Read its `tokens`.")

    def tokens(self, index: Index) -> TextStates:
        """Token states of these captions, padded with zeros on the right."""
        states, offsets = self._states(index)
        lengths = offsets.diff()
        mask = torch.arange(int(lengths.max())) < lengths[:, None]
        padded = states.new_zeros(*mask.shape, states.shape[1])
        padded[mask] = states
        return TextStates(padded, mask)

    def _states(self, index: Index) -> tuple[Float[Tensor, "T W"], Int[Tensor, "B_plus_1"]]:
        """(token states of these captions, where each caption begins in them)."""
        bounds = [(part.states, *part.offsets[i : i + 2].tolist()) for part, i in self._captions(index)]
        return joined([states[a:b] for states, a, b in bounds], self.dtype)

    def empty_text(self) -> PackedText:
        """Features of the empty text, as one caption.

        Raises:
            UserError: an older version wrote the store, without them (the message says how to add them); the set has no pooled embeddings.
        """
        tensors = self._empty()
        if "pooled" not in tensors:
            raise self._no_pooled()
        return PackedText(tensors["states"], tensors["offsets"], tensors["pooled"])

    def by_text(self) -> list[dict[str, Tensor]]:
        """Token states by the hashes of their texts: for each part, and at last for the empty text, `text_hash` [M], `states` [T, W] and
        `offsets` [M + 1]. They are mapped into memory, not read.

        Raises:
            UserError: an older version wrote the store, without the empty text.
        """
        found = []
        for record in self._records:
            tensors = stored_tensors(self.path, record["features"][self.features])
            hashes = stored_tensors(self.path, record["pairs"])["text_hash"]
            found.append({"text_hash": hashes, "states": tensors["states"], "offsets": tensors["offsets"]})
        empty = self._empty()
        return [
            *found,
            {"text_hash": torch.tensor([text_hash("")]), "states": empty["states"], "offsets": empty["offsets"]},
        ]

    def empty_tokens(self) -> Float[Tensor, "T W"]:
        """Token states of the empty text.

        Raises:
            UserError: an older version wrote the store, without them.
        """
        return self._empty()["states"]

    def _empty(self) -> Mapping[str, Tensor]:
        file = self.manifest["features"][self.features].get(EMPTY)
        if file is not None:
            return stored_tensors(self.path, file)
        command = f"{self.manifest['command']} --out STORE"
        if self.features != DEFAULT_SET:
            remedy = "Add the feature set again, under another name."
        elif store_building.read_plan(self.path) is None:
            remedy = (
                f"Embed the source of each store that it was merged from into a new store, then merge them: {command}"
            )
        else:
            remedy = f"Embed its source again: {command}"
        raise UserError(f"{self.path} holds no features of the empty text, because an older version wrote it. {remedy}")

    @cached_property
    def subjects(self) -> StoredSubjects | None:
        """The store's subjects; None if it holds none. Nothing is read before it is asked for."""
        about = self.manifest.get(SUBJECTS)
        if about is None or not about["number"]:
            return None
        return StoredSubjects(self.path, about, self._records, self.manifest["features"][DEFAULT_SET]["dtype"])

    def references(self, index: Index) -> References | None:
        """Subjects and controls of these captions, in the precision of the store; None in a store without subjects.

        Positions count the tokens of the feature set `clip`.
        """
        if self.subjects is None:
            return None
        which, local = _places(index, self._first_caption, "caption")
        captions = [
            (w, i, int(self._part(w).image_of_caption[i])) for w, i in zip(which.tolist(), local.tolist(), strict=True)
        ]
        return self.subjects.references(captions, self.width)

    @property
    def zero_image(self) -> Float[Tensor, "1 D"] | None:
        """The image embedding of an all-zero normalised image, in fp32; None in a store without subjects."""
        return None if self.subjects is None else self.subjects.zero_image

    def images(self, index: Index) -> Float[Tensor, "B D"]:
        """Raw embeddings of these pictures."""
        rows = np.concatenate([part.images[i : i + 1] for part, i in self._pictures(index)])
        return torch.from_numpy(rows).view(DTYPES[self.manifest["features"][DEFAULT_SET]["dtype"]])

    def images_of(self, index: Index) -> Float[Tensor, "B D"]:
        """Raw embeddings of the pictures that these captions describe."""
        return self.images(self.image_of(index))

    def image_of(self, index: Index) -> Int[Tensor, "B"]:
        """The numbers of the pictures that these captions describe."""
        which, local = _places(index, self._first_caption, "caption")
        inside = [self._part(w).image_of_caption[i] for w, i in zip(which.tolist(), local.tolist(), strict=True)]
        return torch.from_numpy(self._first_image[which] + np.array(inside, np.int64))

    def ids(self, index: Index) -> Int[Tensor, "B"]:
        """A number for each caption, equal where the captions' words are."""
        return torch.from_numpy(np.array([part.hashes[i] for part, i in self._captions(index)], np.int64))

    def texts(self, index: Index) -> list[str]:
        """The captions themselves."""
        return [unpacked_string(part.pairs, "caption", i) for part, i in self._captions(index)]

    def keys(self, index: Index) -> list[str]:
        """What the source calls these pictures."""
        return [unpacked_string(part.pairs, "key", i) for part, i in self._pictures(index)]

    def column(self, name: str) -> Tensor | list[str]:
        """A metadata column of all N pictures: float64 with NaN where a value is missing, bool, or a list of texts.

        Raises:
            UserError: there is no such column.
        """
        if name not in self.columns:
            raise unknown(f"column of {self.path}", name, self.columns)
        parts = [(part.pairs, record["pictures"]) for part, record in zip(self._parts(), self._records, strict=True)]
        if self.columns[name] == TEXT:
            return [text for pairs, number in parts for text in _text_column(pairs, f"{TEXT}/{name}", number)]
        found = torch.cat([_number_column(pairs, name, number).double() for pairs, number in parts])
        return found.bool() if self.columns[name] == BOOLEAN else found

    def _captions(self, index: Index) -> list[tuple[_Part, int]]:
        """For each caption its part, and its number in it."""
        which, local = _places(index, self._first_caption, "caption")
        return [(self._part(w), i) for w, i in zip(which.tolist(), local.tolist(), strict=True)]

    def _pictures(self, index: Index) -> list[tuple[_Part, int]]:
        """For each picture its part, and its number in it."""
        which, local = _places(index, self._first_image, "picture")
        return [(self._part(w), i) for w, i in zip(which.tolist(), local.tolist(), strict=True)]

    def _parts(self) -> list[_Part]:
        return [self._part(number) for number in range(len(self._records))]

    def _part(self, number: int) -> _Part:
        part = self._open[number]
        if part is None:
            record = self._records[number]
            files = {PAIRS: record["pairs"], **record["features"]}
            tensors = {name: stored_tensors(self.path, files[name]) for name in {PAIRS, DEFAULT_SET, self.features}}
            part = self._open[number] = _Part(tensors[PAIRS], tensors[DEFAULT_SET], tensors[self.features])
        return part


def _places(index: Index, first: np.ndarray, what: str) -> tuple[np.ndarray, np.ndarray]:
    """(the part of each number, its place in that part), where `first` is the first number of each part."""
    numbers, limit = np.asarray(index, dtype=np.int64), int(first[-1])
    assert numbers.ndim == 1 and len(numbers), "one number for each row, and at least one row"
    if numbers.min() < 0 or numbers.max() >= limit:
        raise IndexError(f"{what}s have numbers from 0 to {limit - 1}; got {numbers.min()} to {numbers.max()}.")
    which = np.searchsorted(first, numbers, side="right") - 1
    return which, numbers - first[which]


def _text_column(pairs: Mapping[str, Tensor], name: str, number: int) -> list[str]:
    return [unpacked_string(pairs, name, i) if f"{name}/data" in pairs else "" for i in range(number)]


def _number_column(pairs: Mapping[str, Tensor], name: str, number: int) -> Tensor:
    found = (pairs.get(f"{kind}/{name}") for kind in (NUMBER, BOOLEAN))
    return next((x for x in found if x is not None), torch.full((number,), torch.nan))
