"""A part of a shard that is being filled: its pictures, cut-outs and edges are encoded as they come, so that few are in memory."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from syzygy.core.errors import UserError
from syzygy.data.encoding import EmbedSettings, PairEncoder
from syzygy.data.prefetch import Prepared


class Batches:
    """Pictures that are encoded in batches of one size.

    With one shape there is one way to compute: the same picture, the same bits.
    """

    def __init__(self, encoder: PairEncoder, settings: EmbedSettings) -> None:
        self.encoder, self.settings = encoder, settings
        self._number = 0
        self._waiting: list[Tensor] = []
        self._encoded: list[Tensor] = []

    def add(self, picture: Tensor) -> int:
        """Add a prepared picture, or a ready-made embedding. Returns its number."""
        self._waiting.append(picture)
        if len(self._waiting) == self.settings.batch_size:
            self._encode()
        self._number += 1
        return self._number - 1

    def _encode(self) -> None:
        batch = torch.stack(self._waiting)
        self._waiting = []
        if batch.ndim == 2:  # ready-made embeddings
            if batch.shape[1] != self.encoder.width:
                raise UserError(
                    f"the source's embeddings are {batch.shape[1]} wide and the encoder's {self.encoder.width}, so another CLIP made "
                    "them. Name that CLIP as --encoder."
                )
            self._encoded.append(batch)
            return
        real = len(batch)
        if real < self.settings.batch_size:
            batch = torch.cat([batch, batch.new_zeros(self.settings.batch_size - real, *batch.shape[1:])])
        if self.settings.device == "cuda":
            batch = batch.pin_memory()
        self._encoded.append(self.encoder.encode_pixels(batch)[:real])

    def embeddings(self) -> Float[Tensor, "N D"]:
        """Raw embeddings of all pictures, in fp32 on the CPU."""
        if self._waiting:
            self._encode()
        if not self._encoded:
            return torch.zeros(0, self.encoder.width)
        return torch.cat([part.cpu() for part in self._encoded])


@dataclass(frozen=True)
class HeldSubject:
    """A subject of a sample in an open part."""

    phrase: str
    number: int | None
    """Which of the part's cut-outs it is; None if it cannot be used."""
    reason: str | None
    """Why not."""


class OpenPart:
    """Samples of a part, without their pixels."""

    def __init__(self, encoder: PairEncoder, settings: EmbedSettings) -> None:
        self.places: list[int] = []
        """Each sample's number in the source."""
        self.samples: list[Prepared] = []
        self.picture_of: list[int] = []
        """Each sample's picture; samples of one picture share it."""
        self.subjects: list[list[HeldSubject]] = []
        """Each sample's subjects."""
        self.captions = 0
        self.pictures, self.cut_outs, self.edges = (Batches(encoder, settings) for _ in range(3))
        """Pictures that differ, cut-outs that differ, and the edges of each picture, if they were wanted."""
        self._pictures: dict[int, int] = {}
        self._cut_outs: dict[int, int] = {}

    def add(self, place: int, sample: Prepared) -> bool:
        """Add a sample. Returns whether the part had its picture already, which is then not encoded again."""
        self.places.append(place)
        self.samples.append(replace(sample, image=sample.image.new_empty(0), subjects=(), edges=None))
        self.captions += len(sample.captions)
        known = sample.content in self._pictures
        self.picture_of.append(self._pictures.setdefault(sample.content, len(self._pictures)))
        if not known:
            self.pictures.add(sample.image)
            if sample.edges is not None:
                self.edges.add(sample.edges)
        held: list[HeldSubject] = []
        for subject in sample.subjects:
            if subject.image is not None and subject.content not in self._cut_outs:
                self._cut_outs[subject.content] = self.cut_outs.add(subject.image)
            number = None if subject.image is None else self._cut_outs[subject.content]
            held.append(HeldSubject(subject.phrase, number, subject.reason))
        self.subjects.append(held)
        return known
