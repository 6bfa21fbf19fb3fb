"""The subjects of a store: what is written for each part, the embedding of an image of zeros, and how both are read.

A part's file `NUMBER-PART.subjects.safetensors` holds

| tensor | shape | meaning |
|---|---|---|
| `embeddings` | [S, D] | raw image embeddings of the part's cut-outs, in the store's precision |
| `phrase/data`, `phrase/offsets` | bytes, [S + 1] | the phrase of each |
| `offsets` | [M + 1] | where the subjects of each caption begin in `subject` |
| `subject` | [U] | which of the S each one is |
| `position_offsets` | [U + 1] | where the token positions of each one begin |
| `positions` | [P] | token positions in the caption, counted from 0, which is the start token |
| `control` | [N, D] | raw embeddings of the pictures' edges; only with `--edges` |

`00000-zero.clip.safetensors` belongs to the first shard and holds `image` [1, D]: the embedding of an all-zero normalised image, in fp32.

Legend: N pictures, M captions, S subjects, U uses of subjects in captions, P token positions, D width of the joint space.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor

from syzygy.core.errors import UserError
from syzygy.core.phrase_places import places
from syzygy.data import store_files
from syzygy.data.encoding import DTYPES, FAULTS, EmbedSettings, PairEncoder, fault_codes
from syzygy.data.open_part import OpenPart
from syzygy.data.references import References
from syzygy.data.store_files import SUBJECTS, packed_strings, stored_tensors, write_tensors

ZERO = "zero_image"
"""The field of the first shard's record, and of the manifest's `subjects`, that names the file with that embedding."""
LOST = "subject"
"""What a fault of `bad.jsonl` calls a subject that is not stored; the pair is."""
CUT = "the text encoder reads none of its phrase's tokens: the caption is cut before it"


@runtime_checkable
class SubjectEncoder(PairEncoder, Protocol):
    """What a store with subjects needs of a CLIP besides `PairEncoder`."""

    def token_spans(self, texts: list[str]) -> Int[Tensor, "B T 2"]:
        """For each token state of `encode_text`, the characters [from, to) of its text that it stands for; from = to means none."""
        ...


@dataclass(frozen=True)
class PartSubjects:
    """What the captions of one part refer to besides their words."""

    phrases: list[str]
    """S."""
    embeddings: Float[Tensor, "S D"]
    """In the store's precision."""
    used: list[list[tuple[int, list[int]]]]
    """For each of the M captions: (subject, token positions), in the source's order."""
    control: Float[Tensor, "N D"] | None
    """In the store's precision."""


@dataclass(frozen=True)
class LostSubject:
    """A subject that is not stored."""

    row: int
    """Its sample's row in the open part."""
    phrase: str
    reason: str


def token_positions(spans: Int[Tensor, "T 2"], found: Sequence[tuple[int, int]]) -> list[int]:
    """The positions of tokens that stand for characters of these places [from, to) of a text.

    Args:
        spans: the characters [from, to) that each token stands for; from = to means none.
        found: every place of a phrase.
    """
    starts, ends = spans[:, 0], spans[:, 1]
    inside = torch.zeros(len(spans), dtype=torch.bool)
    for start, end in found:
        inside |= (starts < end) & (ends > start)
    return (inside & (starts < ends)).nonzero().flatten().tolist()


def collect(
    part: OpenPart, captions: Sequence[tuple[int, str]], encoder: SubjectEncoder, dtype: torch.dtype
) -> tuple[PartSubjects, list[LostSubject]]:
    """The subjects of a part's captions, without controls, and those that cannot be stored.

    Args:
        part: it has no further samples to come.
        captions: (row of the sample, text) of the captions that are stored, in their order.
        encoder: finds the tokens of phrases.
        dtype: how embeddings are stored.
    """
    embeddings = part.cut_outs.embeddings()
    faults = [FAULTS[code] for code in fault_codes(embeddings, dtype).tolist()] if len(embeddings) else []
    with_one = [i for i, (row, _) in enumerate(captions) if any(one.number is not None for one in part.subjects[row])]
    spans = encoder.token_spans([captions[i][1] for i in with_one]) if with_one else ()
    numbers: dict[tuple[str, int], int] = {}
    used: list[list[tuple[int, list[int]]]] = [[] for _ in captions]
    found: set[tuple[int, int]] = set()
    for i, span in zip(with_one, spans, strict=True):
        row, text = captions[i]
        for place, one in enumerate(part.subjects[row]):
            if one.number is None or faults[one.number]:
                continue
            positions = token_positions(span, places(text, one.phrase))
            if positions:
                number = numbers.setdefault((one.phrase, one.number), len(numbers))
                used[i].append((number, positions))
                found.add((row, place))
    lost = [
        LostSubject(row, one.phrase, _reason(one.reason, None if one.number is None else faults[one.number]))
        for row in dict.fromkeys(row for row, _ in captions)
        for place, one in enumerate(part.subjects[row])
        if (row, place) not in found
    ]
    rows = [number for _, number in numbers]
    return PartSubjects([phrase for phrase, _ in numbers], embeddings[rows].to(dtype), used, None), lost


def _reason(known: str | None, fault: str | None) -> str:
    return known or (f"its image embedding {fault}" if fault else CUT)


def write_subjects(part: PartSubjects, store: Path, number: int, index: int) -> dict[str, Any]:
    """Write the subjects of part `index` of shard `number`. Returns what the shard's record says of them.

    Raises `UserError` if they cannot be written.
    """
    uses = [one for caption in part.used for one in caption]
    positions = [place for _, found in uses for place in found]
    tensors = {
        "embeddings": part.embeddings,
        **packed_strings("phrase", part.phrases),
        "offsets": torch.tensor([0, *map(len, part.used)]).cumsum(0),
        "subject": torch.tensor([subject for subject, _ in uses], dtype=torch.int32),
        "position_offsets": torch.tensor([0, *(len(found) for _, found in uses)]).cumsum(0),
        "positions": torch.tensor(positions, dtype=torch.int32),
    }
    if part.control is not None:
        tensors["control"] = part.control
    file = write_tensors(store_files.part_path(store, number, index, SUBJECTS), tensors)
    counts = {"number": len(part.phrases), "captions": sum(map(bool, part.used)), "edges": part.control is not None}
    return file | counts


def write_zero_image(encoder: PairEncoder, settings: EmbedSettings, store: Path) -> dict[str, Any]:
    """Embed an all-zero normalised image, and write it. Returns what the first shard's record says of it.

    It is the control of captions without a layout, as in the authors' code.

    Raises:
        UserError: the embedding is not finite, or cannot be written.
    """
    shape = encoder.preparation.prepare(Image.new("RGB", (64, 64))).shape
    found = encoder.encode_pixels(torch.zeros(settings.batch_size, *shape))[:1].float().cpu()
    if not torch.isfinite(found).all():
        raise UserError("what the encoder gives for an image of zeros is not finite.")
    return write_tensors(store_files.zero_path(store, 0), {"image": found})


def zero_files(records: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The files with the embedding of an image of zeros that these records, or a manifest's `subjects`, name."""
    return [record[ZERO] for record in records if ZERO in record]


def summary(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The field `subjects` of a manifest, from the records of its shards; nothing for a store without subjects."""
    parts = [part[SUBJECTS] for record in records for part in record["parts"] if SUBJECTS in part]
    if not parts:
        return {}
    values = {
        "number": sum(part["number"] for part in parts),
        "captions": sum(part["captions"] for part in parts),
        "bad": sum(fault["lost"] == LOST for record in records for fault in record["bad"]),
        "edges": all(part["edges"] for part in parts),
    }
    zero = zero_files(records)
    return {SUBJECTS: values | ({ZERO: zero[0]} if zero else {})}


class _Part:
    """The mapped tensors of one part as numpy arrays; embeddings as 16-bit patterns, since numpy knows no bf16."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.embeddings = tensors["embeddings"].view(torch.int16).numpy()
        self.control = tensors["control"].view(torch.int16).numpy() if "control" in tensors else None
        names = ("offsets", "subject", "position_offsets", "positions")
        self.offsets, self.subject, self.position_offsets, self.positions = (tensors[name].numpy() for name in names)


class StoredSubjects:
    """The subjects of a finished store. Files are mapped into memory when they are first read."""

    def __init__(self, path: Path, about: Mapping[str, Any], parts: Sequence[Mapping[str, Any]], dtype: str) -> None:
        """`about` is the manifest's field; `parts` are those of its shards, in order; `dtype` is that of the feature set `clip`."""
        self.path, self.about, self._records, self._dtype = path, about, parts, DTYPES[dtype]
        self._open: list[_Part | None] = [None] * len(parts)

    @property
    def zero_image(self) -> Float[Tensor, "1 D"]:
        """The embedding of an all-zero normalised image, in fp32."""
        return stored_tensors(self.path, self.about[ZERO])["image"]

    def references(self, captions: Sequence[tuple[int, int, int]], width: int) -> References:
        """Subjects and controls of captions.

        Args:
            captions: (part, number of the caption in it, number of its picture in it), at least one.
            width: D.
        """
        embeddings, positions, counts, lengths, controls = [], [], [], [], []
        for number, caption, picture in captions:
            part = self._part(number)
            first, last = part.offsets[caption : caption + 2].tolist()
            counts.append(last - first)
            for use in range(first, last):
                subject = int(part.subject[use])
                embeddings.append(part.embeddings[subject : subject + 1])
                begin, end = part.position_offsets[use : use + 2].tolist()
                positions.append(part.positions[begin:end])
                lengths.append(end - begin)
            if self.about["edges"]:
                assert part.control is not None, "the manifest says that every part has them"
                controls.append(part.control[picture : picture + 1])
        return References(
            self._tensor(np.concatenate(embeddings) if embeddings else np.zeros((0, width), np.int16)),
            torch.tensor([0, *counts]).cumsum(0),
            torch.from_numpy(np.concatenate(positions).astype(np.int64))
            if positions
            else torch.zeros(0, dtype=torch.long),
            torch.tensor([0, *lengths]).cumsum(0),
            self._tensor(np.concatenate(controls)) if controls else None,
        )

    def _tensor(self, patterns: np.ndarray) -> Tensor:
        return torch.from_numpy(patterns).view(self._dtype)

    def _part(self, number: int) -> _Part:
        part = self._open[number]
        if part is None:
            part = self._open[number] = _Part(stored_tensors(self.path, self._records[number][SUBJECTS]))
        return part


def problems(tensors: Mapping[str, Tensor], part: Mapping[str, Any], lengths: Int[Tensor, "M"]) -> Iterator[str]:
    """What is wrong with a part's file of subjects.

    Args:
        tensors: those of the file.
        part: the part's record.
        lengths: tokens of each of its captions.
    """
    offsets, ends, positions = tensors["offsets"], tensors["position_offsets"], tensors["positions"]
    subjects, embeddings = tensors["subject"], tensors["embeddings"]
    for found, count, end in ((offsets, part["captions"], len(subjects)), (ends, len(subjects), len(positions))):
        if len(found) != count + 1 or found[0] != 0 or found[-1] != end or bool((found.diff() < 0).any()):
            yield "offsets do not lead through its subjects"
            return
    if len(embeddings) != part[SUBJECTS]["number"] or len(tensors["phrase/offsets"]) != len(embeddings) + 1:
        yield f"embeddings has {len(embeddings):,} rows instead of {part[SUBJECTS]['number']:,}"
    elif len(subjects) and not 0 <= int(subjects.min()) <= int(subjects.max()) < len(embeddings):
        yield "captions name subjects that it does not hold"
    most = lengths.repeat_interleave(offsets.diff()).repeat_interleave(ends.diff())
    if bool(((positions < 0) | (positions >= most)).any()):
        yield "token positions lie outside their captions"
    control = tensors.get("control")
    if (control is not None) != part[SUBJECTS]["edges"] or (control is not None and len(control) != part["pictures"]):
        yield "controls do not belong to its pictures"
    if not all(torch.isfinite(x).all() for x in (embeddings, control) if x is not None):
        yield "embeddings hold NaN or infinity"
