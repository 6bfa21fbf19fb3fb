"""What the stages of an adapter read: parallel captions with CLIP's features, pictures of the world, an embedding store."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from syzygy.clip.clip_model import Clip
from syzygy.core.contracts import StatesEncoder, TextFeatures, TextStates
from syzygy.core.errors import UserError
from syzygy.core.randomness import seed_of
from syzygy.core.wording import counted
from syzygy.data.filtering import passing
from syzygy.data.store import EmbeddingStore
from syzygy.lab.world import scene_source
from syzygy.lab.world.language.base import Length
from syzygy.lab.world.scene_columns import SceneTable
from syzygy.prior.embedding_pairs import StorePairs, caption_ids, split
from syzygy.text_encoders.adapter_task import Shuffled, draws
from syzygy.text_encoders.align_stage import AlignBatch
from syzygy.text_encoders.image_stage import ImageBatch
from syzygy.text_encoders.parallel_captions import Captions, Line
from syzygy.training.run_records import Bar

CHUNK = 256
VALIDATED = 64
"""Captions that are validated together."""


@dataclass(frozen=True)
class _Step:
    """All captions of a step."""

    texts: list[str]
    english: list[str]
    target: TextFeatures
    ids: Int[Tensor, "G"]


class AlignSource:
    """Parallel captions: place p of the stream has language p mod L, so each comes equally often, however many lines have it."""

    def __init__(
        self, captions: Captions, llm: StatesEncoder, clip: Clip, batch_size: int, empty: float, seed: int,
        *, padded: bool, validation: int,
    ) -> None:  # fmt: skip
        """`empty`: part of the captions that the empty text replaces. `padded`: whether CLIP's padded states are asked for.
        `validation`: unseen lines of each language."""
        self._captions, self._llm, self._clip = captions, llm, clip
        self._batch_size, self._empty, self._seed = batch_size, empty, seed
        self._padded, self._validation = padded, validation
        self._step = lru_cache(maxsize=1)(self._encoded)  # the parts of a batch share it

    def lines(self, step: int) -> list[Line]:
        """The captions of a step, in all processes together."""
        languages, first = self._captions.languages, step * self._batch_size
        _, uniform = draws(self._seed, "align", first, self._batch_size, 1)
        return [
            Line("", "")
            if uniform[i] < self._empty
            else self._captions.line(languages[(first + i) % len(languages)], (first + i) // len(languages), step)
            for i in range(self._batch_size)
        ]

    def _encoded(self, step: int) -> _Step:
        lines = self.lines(step)
        english = [line.english for line in lines]
        return _Step([line.text for line in lines], english, self._clip.encode_text(english), caption_ids(english))

    def read(self, step: int, rows: slice) -> AlignBatch:
        noise, _ = draws(self._seed, "align", step * self._batch_size, self._batch_size, self._clip.width)
        return self._batch(self._step(step), rows, noise[rows])

    def _batch(self, whole: _Step, rows: slice, noise: Float[Tensor, "B D"]) -> AlignBatch:
        device = self._clip.device
        return AlignBatch(
            self._llm.encode_states(whole.texts[rows]).to(device, torch.float32),
            whole.target[rows],
            padded_states(self._clip, whole.english[rows]) if self._padded else None,
            whole.target.pooled,
            whole.ids.to(device),
            rows.start,
            noise.to(device),
        )

    def unseen(self) -> Iterator[tuple[str, AlignBatch]]:
        for language in self._captions.languages:
            lines = self._captions.unseen(language, self._validation)
            if not lines:
                continue
            english = [line.english for line in lines]
            whole = _Step([line.text for line in lines], english, self._clip.encode_text(english), caption_ids(english))
            noise, _ = draws(self._seed, "align validation", 0, len(lines), self._clip.width)
            yield language, self._batch(whole, slice(0, len(lines)), noise)


@torch.no_grad()
def padded_states(clip: Clip, texts: list[str]) -> Float[Tensor, "B P D"]:
    """CLIP's states at all of its positions, those of the pads too, as pipelines of Stable Diffusion read them (which mask nothing)."""
    ids, _ = clip.tokenize(texts)
    pad = torch.full((len(ids), clip.positions - ids.shape[1]), clip.tokenizer.pad_token_id)
    ids = torch.cat([ids, pad], 1).to(clip.device)
    return clip.text_features(ids, torch.ones_like(ids, dtype=torch.bool)).states.float()


@runtime_checkable
class Illustrated(Protocol):
    """M captions with their pictures, embedded, and what a language model makes of the captions."""

    def __len__(self) -> int: ...

    @property
    def width(self) -> int:
        """D."""
        ...

    def text(self, index: Int[Tensor, "B"], first: int, empty: Bool[Tensor, "B"], step: int) -> TextStates:
        """The language model's features of these captions, which a step reads at the places `first` … of the stream; of the empty text where
        `empty`."""
        ...

    def images(self, index: Int[Tensor, "B"]) -> Float[Tensor, "B D"]:
        """Raw image embeddings."""
        ...

    def candidates(self, index: Int[Tensor, "B"]) -> Float[Tensor, "B D"]:
        """What predictions are contrasted with."""
        ...

    def ids(self, index: Int[Tensor, "B"]) -> Int[Tensor, "B"]:
        """Equal where two candidates are one."""
        ...


class ImageSource:
    """Captions with pictures, one permutation after another."""

    def __init__(
        self, training: Illustrated, validation: Illustrated, device: torch.device, batch_size: int, empty: float, seed: int
    ) -> None:  # fmt: skip
        self._training, self._validation, self._device = training, validation, device
        self._batch_size, self._empty, self._seed = batch_size, empty, seed
        self._order = Shuffled(len(training), seed, "adapter")

    def read(self, step: int, rows: slice) -> ImageBatch:
        first = step * self._batch_size
        index = self._order.run(first, self._batch_size)
        noise, uniform = draws(self._seed, "adapter", first, self._batch_size, self._width)
        empty = uniform < self._empty
        return self._batch(self._training, index, step, rows, noise[rows], empty[rows])

    @property
    def _width(self) -> int:
        return self._training.width

    def _batch(
        self, data: Illustrated, index: Int[Tensor, "G"], step: int, rows: slice, noise: Tensor, empty: Tensor
    ) -> ImageBatch:
        def to(x: Tensor) -> Tensor:
            return x.to(self._device, torch.float32)

        own = index[rows]
        return ImageBatch(
            data.text(own, step * len(index) + rows.start, empty, step).to(self._device, torch.float32),
            to(data.images(own)),
            to(data.candidates(index)),
            data.ids(index).to(self._device),
            rows.start,
            to(noise),
        )

    def unseen(self) -> Iterator[tuple[str, ImageBatch]]:
        data = self._validation
        for number, index in enumerate(torch.arange(len(data)).split(VALIDATED)):
            noise, _ = draws(self._seed, "adapter validation", number * VALIDATED, len(index), self._width)
            none = torch.zeros(len(index), dtype=torch.bool)
            yield "", self._batch(data, index, number, slice(0, len(index)), noise, none)


@dataclass(frozen=True)
class WorldPictures:
    """Scenes of the embedded world, embedded once; captions in all languages, a language after the other, and of all lengths."""

    seed: int
    scenes: Int[Tensor, "N"]
    """Their numbers."""
    llm: StatesEncoder
    languages: tuple[str, ...]
    lengths: tuple[Length, ...]
    embeddings: Float[Tensor, "N D"]
    pivots: Float[Tensor, "N D"]
    """CLIP's pooled embeddings of the short English captions."""
    numbers: Int[Tensor, "N"]
    """Equal where two of those captions are."""
    by_text: bool
    """Whether predictions are contrasted with these, or with the images."""

    def __len__(self) -> int:
        return len(self.embeddings)

    @property
    def width(self) -> int:
        return self.embeddings.shape[1]

    def text(self, index: Int[Tensor, "B"], first: int, empty: Bool[Tensor, "B"], step: int) -> TextStates:
        texts = [
            "" if none else self.caption(scene, first + i, step)
            for i, (scene, none) in enumerate(zip(self.scenes[index].tolist(), empty.tolist(), strict=True))
        ]
        return self.llm.encode_states(texts)

    def caption(self, scene: int, place: int, step: int) -> str:
        """Of a scene by its number, at a place of the stream."""
        length, language = self.lengths[step % len(self.lengths)], self.languages[place % len(self.languages)]
        return scene_source.pair(self.seed, scene, unseen=False, length=length, lang=language).caption.text

    def images(self, index: Int[Tensor, "B"]) -> Float[Tensor, "B D"]:
        return self.embeddings[index]

    def candidates(self, index: Int[Tensor, "B"]) -> Float[Tensor, "B D"]:
        return (self.pivots if self.by_text else self.embeddings)[index]

    def ids(self, index: Int[Tensor, "B"]) -> Int[Tensor, "B"]:
        return self.numbers[index] if self.by_text else index


def pictures_of_the_world(
    clip: Clip, llm: StatesEncoder, languages: tuple[str, ...], lengths: tuple[Length, ...],
    *, seed: int, sizes: tuple[int, int], by_text: bool, bar: Bar, condition: str | None = None,
) -> tuple[WorldPictures, WorldPictures]:  # fmt: skip
    """Training and validation; `sizes` says among how many scenes of each those are that pass the filter `condition` (over the columns of
    `SceneTable`). None shows a held-out composition.

    Raises:
        UserError: as `passing`; nothing is left of one of them.
    """
    made = []
    with bar("embedding", sum(sizes)) as progress:
        for name, number in zip(("training", "validation"), sizes, strict=True):
            key = seed_of(seed, "adapter", name)
            images, pooled, texts, scenes = [], [], [], []
            for start in range(0, number, CHUNK):
                looked = scene_source.pairs(key, start, min(CHUNK, number - start), unseen=False)
                chosen = _chosen(looked, condition)
                progress(len(looked))
                if not chosen:
                    continue
                found = [looked[row] for row in chosen]
                scenes += [start + row for row in chosen]
                images.append(clip.encode_image(scene_source.pictures(found, clip.image_size, clip.device)).cpu())
                said = [pair.caption.text for pair in found]
                pooled.append(clip.encode_text(said).pooled.cpu())
                texts += said
            if not scenes:
                raise UserError(
                    f"no scene for {name} passes the filter {condition!r}, of {number} of the embedded world. Loosen it."
                )
            rows, embeddings = torch.tensor(scenes), (torch.cat(images), torch.cat(pooled))
            made.append(WorldPictures(key, rows, llm, languages, lengths, *embeddings, caption_ids(texts), by_text))
    return made[0], made[1]


def _chosen(pairs: list[scene_source.Pair], condition: str | None) -> list[int]:
    if condition is None:
        return list(range(len(pairs)))
    return passing(SceneTable(pairs), condition).nonzero()[:, 0].tolist()


@dataclass(frozen=True)
class StorePictures:
    """Captions of an embedding store with a language model's features of them. Nothing is held in memory but their numbers."""

    pairs: StorePairs
    """As CLIP embedded them."""
    features: EmbeddingStore
    """The same store with the language model's set."""
    by_text: bool
    """Whether predictions are contrasted with CLIP's texts, or with the images."""

    def __len__(self) -> int:
        return len(self.pairs)

    @property
    def width(self) -> int:
        return self.pairs.width

    def text(self, index: Int[Tensor, "B"], first: int, empty: Bool[Tensor, "B"], step: int) -> TextStates:
        found = self.features.tokens(self.pairs.chosen[index])
        return with_empty(found, self.features.empty_tokens() if empty.any() else None, empty)

    def images(self, index: Int[Tensor, "B"]) -> Float[Tensor, "B D"]:
        return self.pairs.images(index)

    def candidates(self, index: Int[Tensor, "B"]) -> Float[Tensor, "B D"]:
        return self.pairs.pooled(index) if self.by_text else self.pairs.images(index)

    def ids(self, index: Int[Tensor, "B"]) -> Int[Tensor, "B"]:
        return self.pairs.ids(index) if self.by_text else self.pairs.image_numbers(index)


def with_empty(found: TextStates, instead: Float[Tensor, "T W"] | None, empty: Bool[Tensor, "B"]) -> TextStates:
    """The same captions, padded on the right with zeros, with the token states `instead` where `empty`."""
    if instead is None:
        return found
    rows = [
        instead if none else states[mask]
        for states, mask, none in zip(found.states, found.mask, empty.tolist(), strict=True)
    ]
    mask = torch.arange(max(map(len, rows))) < torch.tensor([len(row) for row in rows])[:, None]
    states = found.states.new_zeros(*mask.shape, found.states.shape[2])
    states[mask] = torch.cat(rows)
    return TextStates(states, mask)


def pictures_of_a_store(
    store: EmbeddingStore, features: EmbeddingStore, validation_images: int, condition: str | None, *, by_text: bool
) -> tuple[StorePictures, StorePictures]:
    """Training and validation, always the same images for the latter; of both only what passes the filter `condition`.

    Raises:
        UserError: as `split` and `passing`; nothing is left of one of them.
    """
    parts = split(store, validation_images)
    if condition is not None:
        keep = passing(store, condition)[store.all_images_of()]
        parts = tuple(replace(part, chosen=part.chosen[keep[part.chosen]]) for part in parts)
    for name, part in zip(("training", "validation"), parts, strict=True):
        if not len(part):
            raise UserError(
                f"no picture for {name} passes the filter {condition!r} in {store.path} ({counted(store.number_of_images, 'picture')}, "
                f"{validation_images} kept for validation). Loosen it, or change validation_images."
            )
    training, validation = (StorePictures(part, features, by_text) for part in parts)
    return training, validation
