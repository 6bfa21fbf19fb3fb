"""Does the picture hold what a prompt says, in each language, through an adapter and through CLIP? Read exactly, on the embedded world."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image, ImageOps

from syzygy.core.contracts import Sampling
from syzygy.core.randomness import generator
from syzygy.generation.image_files import card, contact_sheet, to_tensor
from syzygy.lab.evaluate import predictions
from syzygy.lab.evaluate.bootstrap import Interval, share
from syzygy.lab.evaluate.evaluate_composition import asked as prompts_asked
from syzygy.lab.evaluate.predictions import ALL, Series, Values
from syzygy.lab.evaluate.text_encoder import ADAPTER, CLIP, CUT, ENGLISH, Subject, Tail, TextScoring, tailed
from syzygy.lab.world.prompts import CATEGORIES, Prompt
from syzygy.lab.world.reader import Prediction

SHORT, LONG = "short", "long"
SHOWN, SHOWN_SIZE = 3, 96
"""Prompts on the sheet, and the size of a picture there."""


@dataclass(frozen=True)
class Asked:
    """A prompt, said in each language, alone and after sentences that say nothing of the picture."""

    prompt: Prompt
    said: Mapping[str, Tail]

    def text(self, code: str, length: str) -> str:
        return self.said[code].sentence if length == SHORT else self.said[code].long


def ask(scoring: TextScoring) -> list[Asked]:
    """Prompts of every category, seen and held-out; none with `prompts` 0."""
    if not scoring.prompts:
        return []
    codes = dict.fromkeys((ENGLISH, *scoring.languages))
    return [
        Asked(prompt, {code: tailed(prompt.description, code, scoring.seed, "painted", prompt.text) for code in codes})
        for prompt in prompts_asked(CATEGORIES, scoring.prompts, scoring.seed)
    ]


def name_of(reader: str, code: str, length: str) -> str:
    """A candidate: who reads prompts of which language and length."""
    return f"{reader}, {code}" if length == SHORT else f"{reader}, {code}, {length}"


CLIP_ENGLISH = name_of(CLIP, ENGLISH, SHORT)


def candidates(scoring: TextScoring) -> dict[str, tuple[str, str, str]]:
    """Name → reader, language, length: CLIP on English first; CLIP reads long prompts in English alone, as it cuts all."""
    others = [code for code in scoring.languages if code != ENGLISH]
    wanted = [(CLIP, ENGLISH, SHORT), (CLIP, ENGLISH, LONG), *((CLIP, code, SHORT) for code in others)]
    wanted += [(ADAPTER, code, length) for length in (SHORT, LONG) for code in scoring.languages]
    return {name_of(*one): one for one in wanted}


def series(subject: Subject, asked: Sequence[Asked], scoring: TextScoring) -> list[Series]:
    """A picture a prompt for each candidate; the same noise for a prompt everywhere."""

    def of(name: str, *one: str) -> Series:
        return Series(name, len(asked), lambda rows: _painted(subject, [asked[row] for row in rows], scoring, *one))

    return [of(name, *one) for name, one in candidates(scoring).items()]


def _painted(
    subject: Subject, some: Sequence[Asked], scoring: TextScoring, reader: str, code: str, length: str
) -> list[Image.Image]:
    with warnings.catch_warnings():  # that CLIP cuts long prompts is what is measured
        warnings.filterwarnings("ignore", message=CUT)
        return subject.paths[reader](
            [one.text(code, length) for one in some],
            sampling=Sampling(steps=scoring.steps, guidance_scale=scoring.guidance_scale),
            conditions=scoring.conditions,
            generator=[generator(scoring.seed, "text encoder", one.prompt.text) for one in some],
        ).images


def shown(asked: Sequence[Asked]) -> list[Asked]:
    """What the sheet shows: the first prompt of each of three categories."""
    first = {one.prompt.category: one for one in reversed(asked)}
    return [one for one in asked if first[one.prompt.category] is one][:SHOWN]


def paragraph(scoring: TextScoring) -> str:
    """The language of the sheet's paragraph."""
    return ENGLISH if ENGLISH in scoring.languages else scoring.languages[0]


def told(asked: Sequence[Asked], scoring: TextScoring) -> list[dict[str, Any]]:
    """The prompts that are `shown`, in each language, and the paragraph that ends with it, as JSON values."""
    return [
        {
            "said": {code: one.said[code].sentence for code in scoring.languages},
            "paragraph": one.said[paragraph(scoring)].long,
        }
        for one in shown(asked)
    ]


def sheet(subject: Subject, asked: Sequence[Asked], scoring: TextScoring) -> Image.Image:
    """Of each prompt that is `shown`, what CLIP and the adapter make of it in each language, and of a paragraph that ends with it; a green
    frame where everything named is right. The pictures are those that are measured."""
    columns = [*((code, SHORT) for code in scoring.languages), (paragraph(scoring), LONG)]
    read_by = subject.model.reader()
    rows, labels = [], []
    for one in shown(asked):
        for reader in subject.paths:
            cells = [_painted(subject, [one], scoring, reader, *column)[0] for column in columns]
            read = read_by.read(torch.stack([to_tensor(cell) for cell in cells]).to(subject.model.pipeline.device))
            colours = ["#2a2" if predictions.agrees(one.prompt, found) else "white" for found in read]
            framed = [ImageOps.expand(cell, 2, colour) for cell, colour in zip(cells, colours, strict=True)]
            rows.append([card(one.said[ENGLISH].sentence), *framed])
            labels.append(
                [
                    f"read by {reader}",
                    *(code if length == SHORT else f"{code}, ends a paragraph" for code, length in columns),
                ]
            )
    return contact_sheet(rows, labels, cell=SHOWN_SIZE)


def table(
    asked: Sequence[Asked], found: Mapping[str, Sequence[Prediction]], scoring: TextScoring
) -> list[dict[str, Any]]:
    """A row a candidate, category and side: agreement and facts; less those of CLIP on the English prompts, and as a part of them; of long
    prompts also beside the short ones, all on the same prompts and noise."""
    wanted = [one.prompt for one in asked]
    measured: dict[str, dict[str, Values]] = {
        name: {
            "agreement": [[predictions.agrees(prompt, one)] for prompt, one in zip(wanted, read, strict=True)],
            "facts": [[predictions.facts(prompt, one)] for prompt, one in zip(wanted, read, strict=True)],
        }
        for name, read in found.items()
    }
    known = candidates(scoring)
    against: dict[str, dict[str, str]] = {}
    for name, (reader, code, length) in known.items():
        against[name] = {} if name == CLIP_ENGLISH else {"clip_english": CLIP_ENGLISH}
        if length == LONG:
            against[name]["short"] = name_of(reader, code, SHORT)
    differences = {name: {f"against_{one}": other for one, other in to.items()} for name, to in against.items()}
    rows = predictions.table(measured, wanted, differences)
    groups = predictions.groups(wanted)
    for row in rows:
        reader, code, length = known[row["candidate"]]
        row |= {"reader": reader, "language": code, "length": length}
        chosen = groups[row["category"], row["side"]]
        for one, other in against[row["candidate"]].items():
            row[f"of_{one}"] = _share(measured, row["candidate"], other, chosen)
    return rows


def _share(
    measured: Mapping[str, Mapping[str, Values]], name: str, other: str, chosen: Sequence[int]
) -> Interval | None:
    own, theirs = ([measured[one]["agreement"][row] for row in chosen] for one in (name, other))
    return share(own, theirs)


def whole(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Rows of all categories together, seen and held-out prompts too."""
    return [row for row in rows if (row["category"], row["side"]) == (ALL, ALL)]
