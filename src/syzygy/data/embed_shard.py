"""`embed_shard`: one shard of pairs through one CLIP into a store. Every runner calls it, and nothing else computes."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor

from syzygy.core import artifacts
from syzygy.core.edge_maps import check_opencv
from syzygy.core.image_reading import quiet
from syzygy.core.packed_attention import PackedText
from syzygy.data import store_files
from syzygy.data.encoding import (
    DTYPES,
    FAULTS,
    EmbedSettings,
    EncodedCaptions,
    PairEncoder,
    encode_captions,
    fault_codes,
    joined,
    reproducible,
)
from syzygy.data.open_part import OpenPart
from syzygy.data.pair import Bad, Shard, Skipped, Unused
from syzygy.data.prefetch import Prepared, prepared
from syzygy.data.store_building import SHOWN, files_of
from syzygy.data.store_part import EMPTY, Part, merged_types, write_empty, write_part
from syzygy.data.store_subjects import LOST, ZERO, PartSubjects, SubjectEncoder, collect, write_zero_image

LONGEST_REASON = 300


@dataclass
class Progress:
    """How far a shard is."""

    number: int
    """The shard's number."""
    seen: int = 0
    """Samples, bad ones included."""
    bad: int = 0
    """Bad samples among these."""
    first: list[str] = field(default_factory=list)
    """Key and reason of the first few bad ones."""

    def lose(self, key: str, reason: str) -> None:
        """Count a bad sample."""
        self.bad += 1
        if len(self.first) < SHOWN:
            self.first.append(f"{key}: {reason}")


Watch = Callable[[Progress], None]
"""Called after every batch; it may raise to stop the work."""


def embed_shard(
    shard: Shard,
    number: int,
    encoder: PairEncoder,
    settings: EmbedSettings,
    store: Path,
    watch: Watch = lambda progress: None,
) -> dict[str, Any]:
    """Embed all of `shard` as number `number` of the store, and the empty text with the first one. Returns its record, written last.

    Finished parts of an interrupted shard are kept: the work continues with the sample after them. What is written is a function of
    shard, encoder and settings, bit for bit on one kind of machine, whatever the interruptions.

    Raises:
        UserError: the source cannot be read, its ready-made embeddings are not as wide as the encoder's, or nothing
            can be written.
    """
    if settings.edges:  # on a cluster, a machine may lack what the others have
        check_opencv("images", "Install it wherever the work is done.")
    writer = _ShardWriter(shard, number, encoder, settings, store)
    with reproducible(settings.threads, settings.device), quiet():
        once = _written_once(encoder, settings, store) if number == 0 else {}
        ahead = settings.batch_size + 2 * settings.threads
        start = writer.state.next
        rest, prepare = islice(shard.read(), start, None), encoder.preparation.prepare
        samples = prepared(rest, prepare, settings.threads, ahead, edges=settings.edges)
        for place, sample in enumerate(samples, start):
            writer.add(place, sample)
            if writer.state.seen % settings.batch_size == 0:
                watch(writer.progress)
        writer.close_part()
    watch(writer.progress)
    record = store_files.stamped(
        {"number": number, "source": shard.name, "fingerprint": shard.fingerprint, **writer.summary()} | once
    )
    artifacts.write_json(store_files.record_path(store, number), record)
    store_files.progress_path(store, number).unlink(missing_ok=True)
    return record


def _written_once(encoder: PairEncoder, settings: EmbedSettings, store: Path) -> dict[str, Any]:
    """Write what the store has once. Returns what the first shard's record says of it."""
    found = {EMPTY: write_empty(encoder.encode_text, settings.dtype, settings.batch_size, store)}
    return found | ({ZERO: write_zero_image(encoder, settings, store)} if settings.subjects else {})


@dataclass
class _State:
    """What is known of a shard after its last finished part: all that is needed to continue. Its fields are those of the file."""

    fingerprint: str
    """The shard's."""
    next: int = 0
    """Number of the sample to continue with."""
    seen: int = 0
    bad: int = 0
    first: list[str] = field(default_factory=list)
    """As in `Progress`."""
    skipped: int = 0
    cut: int = 0
    """Captions that fill all positions of the encoder."""
    repeated: int = 0
    """Samples whose picture the part had already: their captions were added to it."""
    taken: dict[str, int] = field(default_factory=dict)
    """Where captions come from, and for how many samples."""
    left: dict[str, int] = field(default_factory=dict)
    """Columns with text that are not kept, and how many samples have them."""
    faults: list[dict[str, Any]] = field(default_factory=list)
    """What could not be used; `place` is the sample's number in the source."""
    parts: list[dict[str, Any]] = field(default_factory=list)


def _state(store: Path, shard: Shard, number: int) -> _State:
    """Where an interrupted run stopped; the beginning, if there was none or one of its files is damaged."""
    path = store_files.progress_path(store, number)
    if path.is_file():
        found = store_files.read_checked(path)
        state = _State(**{name: found[name] for name in _State.__dataclass_fields__})
        files = (file for part in state.parts for file in files_of(part))
        if state.fingerprint == shard.fingerprint and all(store_files.is_there(store, file) for file in files):
            return state
    return _State(shard.fingerprint)


class _ShardWriter:
    """A shard that is being embedded: counts, faults, finished parts, and the part that is being filled."""

    def __init__(self, shard: Shard, number: int, encoder: PairEncoder, settings: EmbedSettings, store: Path) -> None:
        self.number, self.encoder, self.settings, self.store = number, encoder, settings, store
        self.dtype = DTYPES[settings.dtype]
        self.state = _state(store, shard, number)
        self.part = OpenPart(encoder, settings)

    @property
    def progress(self) -> Progress:
        return Progress(self.number, self.state.seen, self.state.bad, self.state.first)

    def add(self, place: int, sample: Prepared | Bad | Skipped | Unused) -> None:
        """`place` is the sample's number in the source."""
        if isinstance(sample, Prepared):
            if self.part.samples and self.part.captions + len(sample.captions) > self.settings.shard_size:
                self.close_part()
                self.state.next = place
                progress = store_files.stamped(asdict(self.state))
                artifacts.write_json(store_files.progress_path(self.store, self.number), progress)
            for reason in sample.unusable:
                self._note(place, sample.key, reason, "caption")
            for counts, names in ((self.state.taken, sample.taken), (self.state.left, sample.left)):
                for name in names:
                    counts[name] = counts.get(name, 0) + 1
            self.state.repeated += self.part.add(place, sample)
        elif isinstance(sample, Bad):
            self._lose(place, sample.key, sample.reason)
        elif isinstance(sample, Unused):
            self._note(place, sample.key, sample.reason, "file", files=sample.number)
        else:
            self.state.skipped += 1
        self.state.seen += isinstance(sample, Prepared | Bad)

    def _lose(self, place: int, key: str, reason: str) -> None:
        """Count a bad sample."""
        progress = self.progress
        progress.lose(key, reason)
        self.state.bad = progress.bad
        self._note(place, key, reason, "pair")

    def _note(self, place: int, key: str, reason: str, lost: str, **more: int | str) -> None:
        self.state.faults.append({"place": place, "key": key, "reason": reason[:LONGEST_REASON], "lost": lost, **more})

    def close_part(self) -> None:
        """Encode what is left, leave out what cannot be stored, write the rest, and begin a new part."""
        part, self.part = self.part, OpenPart(self.encoder, self.settings)
        if not part.samples:
            return
        images = part.pictures.embeddings()
        found = self._image_faults(images, "image embedding")
        if self.settings.edges:
            edges = self._image_faults(part.edges.embeddings(), "embedding of the image's edges")
            found = [one or other for one, other in zip(found, edges, strict=True)]
        faults = [found[picture] for picture in part.picture_of]
        # Captions of a picture stand together, including those of samples that came later.
        order = sorted(range(len(part.samples)), key=lambda row: part.picture_of[row])
        captions = [(row, text) for row in order if not faults[row] for text in part.samples[row].captions]
        if captions:
            texts = [text for _, text in captions]
            encoded = encode_captions(self.encoder.encode_text, texts, self.dtype, self.settings.batch_size)
            usable = [i for i, fault in enumerate(encoded.faults) if not fault]
            left = Counter(captions[i][0] for i in usable)
            for (row, _), fault in zip(captions, encoded.faults, strict=True):
                if fault and left[row]:
                    self._note(part.places[row], part.samples[row].key, f"the caption's embedding {fault}", "caption")
                elif fault:
                    faults[row] = f"the caption's embedding {fault}"
            if usable:
                self._write(part, images, captions, encoded, usable)
        for place, sample, fault in zip(part.places, part.samples, faults, strict=True):
            if fault:
                self._lose(place, sample.key, fault)

    def _image_faults(self, images: Float[Tensor, "N D"], what: str) -> list[str | None]:
        """Why each picture cannot be stored, or None."""
        codes = fault_codes(images, self.dtype).tolist()
        zero = (images.to(self.dtype) == 0).all(1).tolist()
        found = ["is all zeros" if empty else FAULTS[code] for code, empty in zip(codes, zero, strict=True)]
        return [fault and f"the {what} {fault}" for fault in found]

    def _write(
        self,
        part: OpenPart,
        images: Float[Tensor, "N D"],
        captions: Sequence[tuple[int, str]],
        encoded: EncodedCaptions,
        usable: Sequence[int],
    ) -> None:
        """Write the usable captions, given with their sample's row. A picture's key and columns are those of its first sample."""
        assert encoded.pooled is not None, "a CLIP pools"
        pictures = sorted({part.picture_of[captions[i][0]] for i in usable})
        number_of = {picture: i for i, picture in enumerate(pictures)}
        first_of: dict[int, Prepared] = {}
        for picture, sample in zip(part.picture_of, part.samples, strict=True):
            first_of.setdefault(picture, sample)
        firsts = [first_of[picture] for picture in pictures]
        states, offsets = joined([encoded.states[i] for i in usable], self.dtype)
        written = Part(
            keys=[sample.key for sample in firsts],
            columns=[sample.columns for sample in firsts],
            contents=[sample.content for sample in firsts],
            images=images[pictures].to(self.dtype),
            captions=[captions[i][1] for i in usable],
            image_of_caption=[number_of[part.picture_of[captions[i][0]]] for i in usable],
            text=PackedText(states, offsets, encoded.pooled[list(usable)]),
            subjects=self._subjects(part, [captions[i] for i in usable], pictures),
        )
        self.state.cut += sum(len(encoded.states[i]) == self.encoder.positions for i in usable)
        self.state.parts.append(write_part(written, self.store, self.number, len(self.state.parts)))

    def _subjects(
        self, part: OpenPart, captions: Sequence[tuple[int, str]], pictures: Sequence[int]
    ) -> PartSubjects | None:
        """What these captions, given with their sample's row, refer to; lost subjects are noted. None if subjects are not wanted."""
        if not self.settings.subjects:
            return None
        assert isinstance(self.encoder, SubjectEncoder), "a CLIP finds the tokens of phrases"
        found, lost = collect(part, captions, self.encoder, self.dtype)
        for one in lost:
            self._note(part.places[one.row], part.samples[one.row].key, one.reason, LOST, phrase=one.phrase)
        if not self.settings.edges:
            return found
        return replace(found, control=part.edges.embeddings()[pictures].to(self.dtype))

    def summary(self) -> dict[str, Any]:
        """What the record says of the shard."""
        state = self.state
        return {
            "seen": state.seen,
            "skipped": state.skipped,
            "bad": [
                {name: value for name, value in fault.items() if name != "place"}
                for fault in sorted(state.faults, key=lambda fault: fault["place"])
            ],
            "full_captions": state.cut,
            "repeated": state.repeated,
            "captions_from": dict(sorted(state.taken.items())),
            "text_left": dict(sorted(state.left.items())),
            "columns": merged_types([part.pop("columns") for part in state.parts]),
            "parts": state.parts,
        }
