"""Does a text encoder understand words and languages that no caption of its training had?

A file holds prompts, each with the plain English caption that says the same. All captions of the file are candidates, as CLIP embeds them; a
prompt is understood if its own caption is the nearest of them to the prompt's embedding, by cosine.

Legend: N prompts, G candidates, D width of CLIP's joint space.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from syzygy.cli.common import paced
from syzygy.core import artifacts
from syzygy.core.contracts import TextEncoder
from syzygy.core.errors import UserError
from syzygy.core.wording import counted
from syzygy.lab import plots
from syzygy.lab.evaluate.bootstrap import Difference, Interval, difference, interval
from syzygy.lab.evaluate.harness import Outcome
from syzygy.lab.evaluate.retrieval import ranks_among
from syzygy.lab.evaluate.text_encoder import CLIP, ENGLISH
from syzygy.lab.report import Note, Report, Section, Table

CHUNK = 32
EXAMPLE = '{"prompt": "a crimson disc", "target": "a red circle", "group": "synonym", "language": "en"}'
KEYS = ("prompt", "target", "group", "language")
ALL = "all prompts"
PLAIN, SHUFFLED = "candidates themselves", "targets of other prompts"
CONTROLS = {
    PLAIN: "Each candidate as a prompt: how well the encoder reads captions as they are.",
    SHUFFLED: "Each prompt with the next prompt's target: what agreement by chance would give.",
}
SHOWN = 24
"""Most misunderstood prompts that the page lists."""


@dataclass(frozen=True)
class UnseenPrompt:
    """A prompt, and what it means."""

    prompt: str
    target: str
    """A plain English caption."""
    group: str
    """Such as "synonym" or "typing error"."""
    language: str


@dataclass(frozen=True)
class PromptFile:
    """The prompts of a file, and all of its captions."""

    path: Path
    prompts: Sequence[UnseenPrompt]
    candidates: Sequence[str]

    @staticmethod
    def read(path: Path) -> "PromptFile":
        """
        Args:
            path: JSON Lines as in `EXAMPLE`; "group" and "language" may be missing, and a line with a target alone adds a candidate.

        Raises:
            UserError: it cannot be read, or holds too little; a line is wrong, which the error names.
        """
        prompts: list[UnseenPrompt] = []
        candidates: dict[str, None] = {}
        for number, row in _rows(path):
            candidates[row["target"]] = None
            if "prompt" in row:
                named = {"group": "prompts", "language": ENGLISH} | row
                prompts.append(UnseenPrompt(**{key: named[key] for key in KEYS}))
            elif len(row) > 1:
                raise _wrong(path, number, "has no prompt. A line with a target alone adds a candidate")
        if not prompts or len(candidates) < 2:
            raise UserError(
                f"{path} has {counted(len(prompts), 'prompt')} and {counted(len(candidates), 'different target')}: at least 1 and 2 are "
                f"needed. An example of a line: {EXAMPLE}"
            )
        return PromptFile(path, prompts, list(candidates))

    def groups(self) -> dict[tuple[str, str], list[int]]:
        """("group" or "language", its name) → the prompts of it; first all, then groups, then languages if there are several of each."""
        found = {(ALL, ""): list(range(len(self.prompts)))}
        for kind in ("group", "language"):
            names = dict.fromkeys(getattr(one, kind) for one in self.prompts)
            for name in names if len(names) > 1 else ():
                found[kind, name] = [i for i, one in enumerate(self.prompts) if getattr(one, kind) == name]
        return found


def _rows(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"the file of prompts {path} cannot be read: {error}.") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        row: Any = None
        with suppress(ValueError):
            row = json.loads(line)
        if not isinstance(row, dict) or "target" not in row:
            raise _wrong(path, number, "is no JSON object with a target")
        if strange := row.keys() - set(KEYS):
            raise _wrong(path, number, f"has an unknown key {min(strange)!r}; allowed: {', '.join(KEYS)}")
        if empty := [key for key, value in row.items() if not isinstance(value, str) or not value.strip()]:
            raise _wrong(path, number, f"has no text in {empty[0]!r}")
        yield number, row


def _wrong(path: Path, number: int, what: str) -> UserError:
    return UserError(f"line {number} of {path} {what}. An example: {EXAMPLE}")


@dataclass(frozen=True)
class Understood:
    """What an encoder made of all prompts."""

    nearest: Int[Tensor, "N"]
    """The candidate that is nearest to each prompt."""
    hits: list[list[float]]
    """1 where that is the target, for each prompt."""
    controls: Mapping[str, Interval]


@torch.no_grad()
def pooled(encoder: TextEncoder, texts: Sequence[str], advance: Any) -> Float[Tensor, "N D"]:
    """Pooled embeddings, on the CPU."""
    found = []
    for start in range(0, len(texts), CHUNK):
        some = list(texts[start : start + CHUNK])
        found.append(encoder.encode_text(some).pooled.float().cpu())
        advance(len(some))
    return torch.cat(found)


def understood(
    prompts: Float[Tensor, "N D"], plain: Float[Tensor, "G D"], gallery: Float[Tensor, "G D"], file: PromptFile
) -> Understood:
    """
    Args:
        prompts: the encoder's embeddings of the prompts.
        plain: those of the candidates.
        gallery: CLIP's embeddings of the candidates.
    """
    place = {text: number for number, text in enumerate(file.candidates)}
    targets = torch.tensor([place[one.target] for one in file.prompts])
    cosines = F.normalize(prompts.double(), dim=1) @ F.normalize(gallery.double(), dim=1).T
    shuffled = _hits(prompts, gallery, targets.roll(-1))
    controls = {PLAIN: _hits(plain, gallery, torch.arange(len(gallery))), SHUFFLED: shuffled}
    hits = _hits(prompts, gallery, targets)
    return Understood(cosines.argmax(1), hits, {name: interval(one) for name, one in controls.items()})


def _hits(queries: Float[Tensor, "M D"], gallery: Float[Tensor, "G D"], targets: Int[Tensor, "M"]) -> list[list[float]]:
    """Whether the target is nearer than every other candidate; a tie is none."""
    right = torch.nn.functional.one_hot(targets, len(gallery)).bool()
    return [[float(rank == 0)] for rank in ranks_among(queries, gallery, right).tolist()]


@dataclass(frozen=True)
class UnseenWords:
    """The results of all encoders on one file."""

    file: PromptFile
    found: Mapping[str, Understood]
    """By the encoder's name; CLIP is the first."""
    taught: Mapping[str, Sequence[str] | None]
    """Languages that each adapter was trained on, if it is known."""
    about: Mapping[str, Any]
    """Further facts for the results."""
    images: Mapping[str, list[list[float]]] = field(default_factory=dict)
    """By the encoder's name, and for a control: 1 where the image of a prompt shows what its caption names; empty without images."""

    @cached_property
    def pairs(self) -> list[tuple[str, str]]:
        """Encoders that are compared: each one with CLIP, and the first of the others with the rest."""
        _, *others = self.found
        return [(name, CLIP) for name in others] + [(others[0], name) for name in others[1:]]

    @cached_property
    def rows(self) -> list[tuple[str, str, dict[str, Interval], dict[tuple[str, str], Difference]]]:
        """(kind, name, top-1 of each encoder, paired difference of each of `pairs`) for each group."""
        return self._rows({name: one.hits for name, one in self.found.items()})

    def _rows(
        self, hits: Mapping[str, list[list[float]]]
    ) -> list[tuple[str, str, dict[str, Interval], dict[tuple[str, str], Difference]]]:
        rows = []
        for (kind, name), numbers in self.file.groups().items():
            own = {encoder: [one[i] for i in numbers] for encoder, one in hits.items()}
            means = {encoder: interval(some) for encoder, some in own.items()}
            rows.append(
                (kind, name, means, {(one, other): difference(own[one], own[other]) for one, other in self.pairs})
            )
        return rows

    def to_json(self) -> dict[str, Any]:
        """Everything, as JSON values."""
        answers = [
            {**vars(one), "found": {name: self.file.candidates[int(x.nearest[i])] for name, x in self.found.items()}}
            for i, one in enumerate(self.file.prompts)
        ]
        return {
            "unseen_words": str(self.file.path),
            "prompts": len(self.file.prompts),
            "candidates": len(self.file.candidates),
            **self.about,
            "taught": {name: None if codes is None else list(codes) for name, codes in self.taught.items()},
            "rows": _plain(self.rows, "top_1"),
            **({"image_rows": _plain(self._rows(self.images), "right")} if self.images else {}),
            "controls": {
                name: {encoder: vars(one.controls[name]) for encoder, one in self.found.items()} for name in CONTROLS
            },
            "answers": answers,
            "machine": artifacts.machine(),
            "versions": artifacts.versions(),
        }

    def tables(self) -> list[Table]:
        """Top-1 by group, with the controls; and the paired differences."""
        shares = [[name or ALL, *map(str, means.values())] for _, name, means, _ in self.rows]
        shares += [[f"control: {name}", *(str(one.controls[name]) for one in self.found.values())] for name in CONTROLS]
        compared = [[name or ALL, *map(str, differences.values())] for _, name, _, differences in self.rows]
        heads = [f"{first} − {second}" for first, second in self.pairs]
        tables = [Table(["prompts", *self.found], shares), Table(["paired difference", *heads], compared)]
        if self.images:
            rows = [
                [name or ALL, *map(str, means.values()), *map(str, differences.values())]
                for _, name, means, differences in self._rows(self.images)
            ]
            tables.append(Table(["images right", *self.images, *heads], rows))
        return tables

    @property
    def lead(self) -> str:
        """What was measured, as a sentence."""
        prompts, candidates = len(self.file.prompts), len(self.file.candidates)
        return (
            f"{counted(prompts, 'prompt')} of {self.file.path}: how often the prompt's own caption is the nearest of {candidates} captions, "
            f"as CLIP embeds them (chance: {100 / candidates:.1f} %)."
        )

    @property
    def _legend(self) -> str:
        return f"{LEGEND} {IMAGES}" if self.images else LEGEND

    def outcome(self) -> Outcome:
        """Results, table and page."""
        return Outcome(self.to_json(), [self.lead, *self.tables(), self._legend], lambda _sheet: self._report())

    def _report(self) -> Report:
        plot = {name: (one.mean, one.low, one.high) for name, one in self.rows[0][2].items()}
        wrong = [
            [one.prompt, one.target, *(self.file.candidates[int(x.nearest[i])] for x in self.found.values())]
            for i, one in enumerate(self.file.prompts)
            if not all(x.hits[i][0] for name, x in self.found.items() if name != CLIP)
        ]
        taught = [f"{name}: {', '.join(codes) if codes else 'not recorded'}" for name, codes in self.taught.items()]
        return Report(
            "Words and languages that no training caption had",
            [self.lead, f"Languages of the training, by adapter: {'; '.join(taught)}."],
            [
                Section(
                    "Top-1",
                    [
                        plots.bar_plot("prompts whose own caption is the nearest", plot, file="unseen-words.svg"),
                        *self.tables(),
                        Note(self._legend + "".join(f" **{name}**: {text}" for name, text in CONTROLS.items())),
                    ],
                ),
                Section(
                    "Misunderstood",
                    [
                        Table(
                            ["prompt", "its caption", *(f"nearest: {name}" for name in self.found)],
                            wrong[:SHOWN],
                            first_number=9,
                        )
                    ],
                ),
            ],
            limits=(
                f"{'' if self.images else 'Embeddings are compared, not images. '}The prompts name one object with a colour, and whoever wrote "
                "them decided which words are unusual. One training of each adapter is measured."
            ),
        )


LEGEND = "Brackets: 95 % bootstrap over prompts; differences are in points, paired on the same prompts."
IMAGES = (
    "Images right: an image shows everything that the prompt's caption names, as the judge reads it. The decoder reads the prior's prediction "
    "from the encoder's features alone; the noise is the same for all. Their captions: CLIP reads the plain captions, which is the most that "
    "prior and decoder allow."
)


def _plain(
    rows: Sequence[tuple[str, str, Mapping[str, Interval], Mapping[tuple[str, str], Difference]]], what: str
) -> list[dict[str, Any]]:
    """Rows as JSON values."""
    return [
        {
            "by": kind,
            "name": name,
            what: {encoder: vars(one) for encoder, one in means.items()},
            "differences": [
                {"first": first, "second": second, **vars(one)} for (first, second), one in differences.items()
            ],
        }
        for kind, name, means, differences in rows
    ]


def evaluate(
    file: PromptFile,
    clip: TextEncoder,
    encoders: Mapping[str, TextEncoder],
    taught: Mapping[str, Sequence[str] | None],
    about: Mapping[str, Any],
) -> UnseenWords:
    """Encode and compare.

    Args:
        encoders: further ones, at least one, by name, whose embeddings are in this CLIP's space.
        taught: the languages that they were trained on.
        about: further facts for the results.
    """
    every = {CLIP: clip, **encoders}
    texts = [one.prompt for one in file.prompts]
    with paced("encoding", len(every) * (len(texts) + len(file.candidates)), "texts") as advance:
        plain = {name: pooled(one, file.candidates, advance) for name, one in every.items()}
        found = {
            name: understood(pooled(one, texts, advance), plain[name], plain[CLIP], file) for name, one in every.items()
        }
    return UnseenWords(file, found, taught, about)
