"""What a comparison painted and judged, as files in its folder: a file of judgements and one of pictures a training; and what is made of them.

`trainings` below: a candidate's trainings, for each the judgements of the same prompts in the same order.
"""

import html
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import UInt8
from PIL import Image, ImageOps
from torch import Tensor

from syzygy.core import artifacts
from syzygy.generation.image_files import card, contact_sheet
from syzygy.lab.evaluate import report
from syzygy.lab.evaluate.bootstrap import Interval, difference, interval, win_rate
from syzygy.lab.evaluate.composition import ScoredImage
from syzygy.lab.world.prompts import Prompt

CATEGORIES = ("colour", "shape", "texture", "spatial", "numeracy")
SIDES = ((False, "seen"), (True, "held out"))
SHOWN = 2
"""Prompts a category and side whose pictures are kept."""
SHEET_CELL = 112

Judged = dict[str, Any]
"""One prompt's judgement, as JSON values."""
Row = dict[str, float | int]
"""A mean with its interval, and over how many prompts."""


def painted_file(out: Path, name: str) -> Path:
    """Where the judgements of a training are, once it is painted."""
    return out / "painted" / f"{name}.json"


def keep(out: Path, name: str, painted: Sequence[ScoredImage], wanted: list[Prompt], **more: Any) -> None:
    """Write the judgements of one training's pictures, a prompt each, and the pictures that are shown; the former last."""
    pictures = torch.stack([painted[i].image for i in shown_rows(wanted)])
    artifacts.write_tensors(painted_file(out, name).with_suffix(".safetensors"), {"pictures": pictures})
    artifacts.write_json(painted_file(out, name), {"prompts": [_judged(one) for one in painted], **more})


def _judged(one: ScoredImage) -> Judged:
    prompt = one.prompt
    atoms = [[atom.kind, atom.holds] for atom in one.atoms]
    record = {"text": prompt.text, "category": prompt.category, "held_out": prompt.unseen}
    return record | {"agrees": one.correct, "atoms": atoms, "extra": one.extra}


def read(out: Path, name: str) -> list[Judged]:
    """The judgements of one training."""
    return artifacts.read_json(painted_file(out, name))["prompts"]


def shown_rows(wanted: list[Prompt]) -> list[int]:
    """The first prompts of each category and side, by number."""
    seen: dict[tuple[str, bool], list[int]] = {}
    for i, prompt in enumerate(wanted):
        seen.setdefault((prompt.category, prompt.unseen), []).append(i)
    return [i for rows in seen.values() for i in rows[:SHOWN]]


def _agrees(one: Mapping[str, Any]) -> float:
    return float(one["agrees"])


def _facts(one: Mapping[str, Any]) -> float:
    return sum(holds for _, holds in one["atoms"]) / len(one["atoms"])


def _values(
    trainings: list[list[Judged]], category: str, held_out: bool, score: Callable[[Judged], float] = _agrees
) -> list[list[float]]:
    """A row a prompt, a column a training."""
    return [
        [score(one) for one in prompt]
        for prompt in zip(*trainings, strict=True)
        if prompt[0]["held_out"] == held_out and category in (prompt[0]["category"], "all")
    ]


def row(found: Interval) -> Row:
    """An interval as JSON values."""
    values = {"mean": found.mean, "low": found.low, "high": found.high}
    return {key: round(value, 4) for key, value in values.items()} | {"prompts": found.number}


def agreement(trainings: list[list[Judged]], category: str, held_out: bool) -> Row | None:
    """Share of the pictures in which all that is named is right; None where there are no such prompts."""
    values = _values(trainings, category, held_out)
    return row(interval(values, trainings=True)) if values else None


def gained(first: list[list[Judged]], second: list[list[Judged]], category: str, held_out: bool) -> Row | None:
    """Agreement of the first less that of the second, paired by prompt, noise and training."""
    a, b = _values(first, category, held_out), _values(second, category, held_out)
    return row(difference(paired(a, b), paired(b, a), trainings=True)) if a else None


def preferred(first: list[list[Judged]], second: list[list[Judged]], held_out: bool) -> Row | None:
    """How often more of the named facts hold in the first's picture; a tie counts half."""
    a, b = _values(first, "all", held_out, _facts), _values(second, "all", held_out, _facts)
    return row(win_rate(paired(a, b), paired(b, a), trainings=True)) if a else None


def paired(values: list[list[float]], others: list[list[float]]) -> list[list[float]]:
    """A control has one training: each of the other's is paired with it."""
    return [row * len(others[0]) if len(row) == 1 else row for row in values]


def percent(one: Mapping[str, float | int] | None, signed: bool = False) -> str:
    """A share or difference and its interval, in per cent; empty for none."""
    if one is None:
        return ""
    sign = "+" if signed else ""
    return f"{100 * one['mean']:{sign}.0f} [{100 * one['low']:{sign}.0f}, {100 * one['high']:{sign}.0f}]"


@dataclass(frozen=True)
class Shown:
    """One of the prompts whose pictures are kept: each candidate's, and whether it agrees."""

    prompt: Prompt
    pictures: dict[str, tuple[UInt8[Tensor, "3 H W"], bool]]

    @property
    def kind(self) -> str:
        """The prompt's category and side."""
        return f"{self.prompt.category}, {'held out' if self.prompt.unseen else 'seen'}"


def shown(out: Path, names: Mapping[str, str], wanted: list[Prompt]) -> list[Shown]:
    """The pictures that trainings kept; `names`: title → training."""
    files = {title: painted_file(out, name).with_suffix(".safetensors") for title, name in names.items()}
    pictures = {title: artifacts.read_tensors(file)["pictures"] for title, file in files.items()}
    judged = {title: read(out, name) for title, name in names.items()}
    return [
        Shown(wanted[row], {title: (pictures[title][place], judged[title][row]["agrees"]) for title in names})
        for place, row in enumerate(shown_rows(wanted))
    ]


def pictures_table(some: Sequence[Shown]) -> str:
    """As HTML, a row a prompt."""
    lines = []
    for one in some:
        cells = [report.picture(picture, agrees=agrees) for picture, agrees in one.pictures.values()]
        lines.append([f"{html.escape(one.prompt.text)}<br><small>{one.kind}</small>", *cells])
    return report.rows(["prompt", *map(html.escape, some[0].pictures)], lines)


def save_sheet(file: Path, some: Sequence[Shown]) -> None:
    """The same pictures as one, a row a prompt; a green frame where everything named is right."""
    rows, labels = [], []
    for one in some:
        cells = [Image.fromarray(picture.permute(1, 2, 0).numpy()) for picture, _ in one.pictures.values()]
        colours = ["#2a2" if agrees else "white" for _, agrees in one.pictures.values()]
        framed = [ImageOps.expand(cell, 2, colour) for cell, colour in zip(cells, colours, strict=True)]
        rows.append([card(one.prompt.text), *framed])
        labels.append([one.kind, *one.pictures])
    data = io.BytesIO()  # JPEG, as it goes into repositories: a quarter of the bytes
    contact_sheet(rows, labels, cell=SHEET_CELL).save(data, "JPEG", quality=90, subsampling=0)
    artifacts.write_bytes(file, data.getvalue())
