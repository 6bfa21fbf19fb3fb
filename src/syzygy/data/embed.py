"""`embed_shard`: one shard of pairs through one CLIP into a store. Every runner calls it, and nothing else computes."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from syzygy import artifact
from syzygy.data import layout
from syzygy.data.captions import FAULTS, EncodedCaptions, encode_captions, fault_codes, joined
from syzygy.data.decode import quiet
from syzygy.data.empty import RECORD, write_empty
from syzygy.data.encoder import DTYPES, EmbedSettings, PairEncoder, pinned
from syzygy.data.pair import Bad, Shard, Skipped
from syzygy.data.part import Part, merged_types, write_part
from syzygy.data.prefetch import Prepared, prepared
from syzygy.errors import UserError

LONGEST_REASON = 300


SHOWN = 5


@dataclass
class Progress:
    """How far a shard is."""

    number: int
    """Of the shard."""
    seen: int = 0
    """Samples, bad ones included."""
    bad: int = 0
    """Of these."""
    first: list[str] = field(default_factory=list)
    """Key and reason of the first few bad ones."""

    def lose(self, key: str, reason: str) -> None:
        """A sample is bad."""
        self.bad += 1
        if len(self.first) < SHOWN:
            self.first.append(f"{key}: {reason}")


Watch = Callable[[Progress], None]
"""Told after every batch; it may raise to stop the work."""


def embed_shard(
    shard: Shard,
    number: int,
    encoder: PairEncoder,
    settings: EmbedSettings,
    store: Path,
    watch: Watch = lambda progress: None,
) -> dict[str, Any]:
    """Embed all of `shard` as number `number` of the store, and with the first one the empty text. Its record is written last, and returned.

    What is written is a function of shard, encoder and settings, bit for bit on one kind of machine.

    Raises:
        UserError: the source cannot be read, its ready-made embeddings are not as wide as the encoder's, or nothing
            can be written. Parts that were written before do no harm: without a record they do not count.
    """
    writing = _Writing(number, encoder, settings, store)
    with pinned(settings.threads, settings.device), quiet():
        empty = write_empty(encoder.encode_text, settings.dtype, settings.batch_size, store) if number == 0 else None
        ahead = settings.batch_size + 2 * settings.threads
        for place, sample in enumerate(prepared(shard.read(), encoder.preparation.prepare, settings.threads, ahead)):
            writing.add(place, sample)
            if writing.progress.seen % settings.batch_size == 0:
                watch(writing.progress)
        writing.close_part()
    watch(writing.progress)
    record = layout.stamped(
        {"number": number, "source": shard.name, "fingerprint": shard.fingerprint, **writing.summary()}
        | ({RECORD: empty} if empty else {})
    )
    artifact.write_json(layout.record_path(store, number), record)
    return record


class _Writing:
    """A shard that is being embedded: counts, faults, finished parts, and the part that is being filled."""

    def __init__(self, number: int, encoder: PairEncoder, settings: EmbedSettings, store: Path) -> None:
        self.encoder, self.settings, self.store = encoder, settings, store
        self.dtype = DTYPES[settings.dtype]
        self.progress = Progress(number)
        self.skipped = self.cut = 0
        self.faults: list[tuple[int, dict[str, str]]] = []
        self.parts: list[dict[str, Any]] = []
        self.filling = _Filling(encoder, settings)

    def add(self, place: int, sample: Prepared | Bad | Skipped) -> None:
        """`place` is the sample's number in the source."""
        if isinstance(sample, Skipped):
            self.skipped += 1
            return
        self.progress.seen += 1
        if isinstance(sample, Bad):
            self._lose(place, sample.key, sample.reason)
            return
        full = self.filling.captions + len(sample.captions) > self.settings.shard_size
        if full and self.filling.samples:
            self.close_part()
        for reason in sample.unusable:
            self._note(place, sample.key, reason, "caption")
        self.filling.add(place, sample)

    def _lose(self, place: int, key: str, reason: str) -> None:
        self.progress.lose(key, reason)
        self._note(place, key, reason, "pair")

    def _note(self, place: int, key: str, reason: str, lost: str) -> None:
        self.faults.append((place, {"key": key, "reason": reason[:LONGEST_REASON], "lost": lost}))

    def close_part(self) -> None:
        """Encode what is left, leave out what cannot be stored, write the rest; then begin a new part."""
        full, self.filling = self.filling, _Filling(self.encoder, self.settings)
        if not full.samples:
            return
        images = full.images()
        codes = fault_codes(images, self.dtype).tolist()
        faults = [FAULTS[code] and f"the image embedding {FAULTS[code]}" for code in codes]
        rows = [row for row, sample in enumerate(full.samples) if not faults[row] for _ in sample.captions]
        texts = [text for row, sample in enumerate(full.samples) if not faults[row] for text in sample.captions]
        if texts:
            encoded = encode_captions(self.encoder.encode_text, texts, self.dtype, self.settings.batch_size)
            usable = [i for i, fault in enumerate(encoded.faults) if not fault]
            left = Counter(rows[i] for i in usable)
            for row, fault in zip(rows, encoded.faults, strict=True):
                if fault and left[row]:
                    self._note(full.places[row], full.samples[row].key, f"the caption's embedding {fault}", "caption")
                elif fault:
                    faults[row] = f"the caption's embedding {fault}"
            if usable:
                self._write(full, images, [(rows[i], texts[i]) for i in usable], encoded, usable)
        for place, sample, fault in zip(full.places, full.samples, faults, strict=True):
            if fault:
                self._lose(place, sample.key, fault)

    def _write(
        self,
        full: "_Filling",
        images: Tensor,
        captions: list[tuple[int, str]],
        encoded: EncodedCaptions,
        usable: list[int],
    ) -> None:
        """`captions` are the usable ones, with their rows in `full`."""
        assert encoded.pooled is not None, "a CLIP pools"
        rows = sorted({row for row, _ in captions})
        number_of = {row: i for i, row in enumerate(rows)}
        part = Part(
            keys=[full.samples[row].key for row in rows],
            columns=[full.samples[row].columns for row in rows],
            images=images[rows].to(self.dtype),
            captions=[caption for _, caption in captions],
            image_of_caption=[number_of[row] for row, _ in captions],
            text=joined([encoded.states[i] for i in usable], self.dtype),
            pooled=encoded.pooled[usable],
        )
        self.cut += sum(len(encoded.states[i]) == self.encoder.positions for i in usable)
        self.parts.append(write_part(part, self.store, self.progress.number, len(self.parts)))

    def summary(self) -> dict[str, Any]:
        """For the record."""
        return {
            "seen": self.progress.seen,
            "skipped": self.skipped,
            "bad": [fault for _, fault in sorted(self.faults, key=lambda found: found[0])],
            "full_captions": self.cut,
            "columns": merged_types([part.pop("columns") for part in self.parts]),
            "parts": self.parts,
        }


class _Filling:
    """A part that is being filled. Pictures are encoded as they come, so that few are in memory."""

    def __init__(self, encoder: PairEncoder, settings: EmbedSettings) -> None:
        self.encoder, self.settings = encoder, settings
        self.places: list[int] = []
        self.samples: list[Prepared] = []
        self.captions = 0
        self._waiting: list[Tensor] = []
        self._encoded: list[Tensor] = []

    def add(self, place: int, sample: Prepared) -> None:
        self.places.append(place)
        self.samples.append(replace(sample, image=sample.image.new_empty(0)))  # its pixels are not needed for long
        self.captions += len(sample.captions)
        self._waiting.append(sample.image)
        if len(self._waiting) == self.settings.batch_size:
            self._encode()

    def _encode(self) -> None:
        batch = torch.stack(self._waiting)
        self._waiting = []
        if batch.ndim == 2:  # ready-made embeddings
            if batch.shape[1] != self.encoder.width:
                raise UserError(
                    f"the source's embeddings are {batch.shape[1]} wide, the encoder's {self.encoder.width}: they are another "
                    "CLIP's. Name the encoder that made them."
                )
            self._encoded.append(batch)
            return
        real = len(batch)
        if real < self.settings.batch_size:  # one shape, so one way to compute: the same picture, the same bits
            batch = torch.cat([batch, batch.new_zeros(self.settings.batch_size - real, *batch.shape[1:])])
        if self.settings.device == "cuda":
            batch = batch.pin_memory()
        self._encoded.append(self.encoder.encode_pixels(batch)[:real])

    def images(self) -> Float[Tensor, "N D"]:
        """Raw embeddings of all pictures, in fp32 on the CPU."""
        if self._waiting:
            self._encode()
        return torch.cat([part.cpu() for part in self._encoded])
