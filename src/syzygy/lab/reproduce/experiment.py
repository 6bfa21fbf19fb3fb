"""What the experiments share: a folder of results that an interrupted experiment continues, scores over trainings, and parts of reports.

`Trainings` are the predictions for the images of each training of a candidate; all of them are of the same prompts in the same order.
"""

import io
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from PIL import ImageOps
from torch import Tensor

from syzygy.clip.clip_model import Clip
from syzygy.core import artifacts
from syzygy.core.errors import UserError
from syzygy.core.pixels import to_uint8
from syzygy.core.randomness import seed_of
from syzygy.generation.image_files import card, contact_sheet
from syzygy.lab.evaluate.bootstrap import Interval, difference, interval, win_rate
from syzygy.lab.evaluate.composition import ScoredImage
from syzygy.lab.evaluate.harness import ALL, Candidate, PredictionStore, predict
from syzygy.lab.evaluate.judging import judge_note, judge_record
from syzygy.lab.evaluate.probe import Probe, fit_probe
from syzygy.lab.plots import bar_plot
from syzygy.lab.report import Figure, Gallery, GalleryRow, Report, Table, generated
from syzygy.lab.world import scene_source
from syzygy.lab.world.judge import Judge
from syzygy.lab.world.prompts import Prompt

CATEGORIES = ("colour", "shape", "texture", "spatial", "numeracy")
SIDES = {"seen": False, "held out": True}
"""Side of the results → whether its prompts name an unseen composition."""
TITLES = {"seen": "seen", "held out": "unseen"}
EXAMPLES = 2
"""Prompts of each category and side whose images are kept."""
SHEET_CELL = 112
CHUNK = 512

Prediction = dict[str, Any]
"""A prompt, and what the judge found in the image of it, as JSON values."""
Trainings = Sequence[Sequence[Prediction]]
Score = dict[str, float | int]
"""A mean with its interval and the number of prompts, as JSON values."""
Sides = Mapping[str, Mapping[str, Score | None]]
"""Side → category → score; None where there are no prompts."""


class Findings(NamedTuple):
    """What an experiment wrote: its results as JSON values, and the report of them."""

    results: dict[str, Any]
    report: Report


@dataclass(frozen=True)
class ExperimentFolder:
    """A folder in which every finished step of an experiment leaves a file."""

    path: Path

    def claim(self, settings: Mapping[str, Any]) -> None:
        """Start the experiment, or continue it with the same settings.

        Raises:
            UserError: the folder holds an experiment with other settings.
        """
        file = self.path / "run.json"
        if file.is_file() and artifacts.read_json(file) != settings:
            raise UserError(
                f"{self.path} holds an experiment with other settings. Choose another --out, or use the settings in {file.name}."
            )
        artifacts.write_json(file, dict(settings))

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Add the time of a session, even an interrupted one, to that of the sessions before."""
        began = time.perf_counter()
        try:
            yield
        finally:
            before = self.time()["seconds"] if (self.path / "time.json").is_file() else 0.0
            seconds = round(before + time.perf_counter() - began, 1)
            artifacts.write_json(self.path / "time.json", {"seconds": seconds, "machine": artifacts.machine()})

    def time(self) -> dict[str, Any]:
        """Seconds over all sessions, and the machine."""
        return artifacts.read_json(self.path / "time.json")

    def score_once(self, name: str, measure: Callable[[], Mapping[str, Any]], *, of: Path | None = None) -> None:
        """Write what `measure` returns to the scores, unless they are there, and so is what they are the scores of."""
        file = self.path / "scores" / f"{name}.json"
        if not (file.is_file() and (of is None or of.exists())):
            artifacts.write_json(file, measure())

    def has_scores(self, name: str) -> bool:
        """Whether `score_once` wrote these scores."""
        return (self.path / "scores" / f"{name}.json").is_file()

    def scores(self, name: str) -> dict[str, Any]:
        """What `score_once` wrote."""
        return artifacts.read_json(self.path / "scores" / f"{name}.json")

    def tensors(self, part: str, name: str) -> Path:
        """The file of a training's measurements of one kind."""
        return self.path / part / f"{name}.safetensors"

    def has_images(self, name: str, **about: Any) -> bool:
        """Whether the images of this name were generated, scored by today's judge, and kept with these facts."""
        wanted, file = {"judge": judge_record()["fingerprint"], **about}, self._images(name)
        found = artifacts.read_json(file) if file.is_file() else {}
        return all(found.get(key) == value for key, value in wanted.items())

    def keep_images(self, name: str, scored: Sequence[ScoredImage], prompts: Sequence[Prompt], **more: Any) -> None:
        """Write the predictions for one image of each prompt, and the images of the example prompts, which come first."""
        images = torch.stack([scored[i].image for i in _examples(prompts)])
        artifacts.write_tensors(self._images(name).with_suffix(".safetensors"), {"pictures": images})
        artifacts.write_json(
            self._images(name),
            {"judge": judge_record()["fingerprint"], "prompts": [_prediction(one) for one in scored], **more},
        )

    def images(self, name: str) -> dict[str, Any]:
        """What `keep_images` wrote about the images."""
        return artifacts.read_json(self._images(name))

    def predictions(self, names: Iterable[str]) -> list[list[Prediction]]:
        """The predictions for the images of each training."""
        return [self.images(name)["prompts"] for name in names]

    def gallery(self, names: Mapping[str, str], prompts: Sequence[Prompt], caption: str, file: str) -> Gallery:
        """The images that were kept, and their contact sheet in a file; `names`: title of a column → name of its images."""
        columns = []
        for name in names.values():
            images = artifacts.read_tensors(self._images(name).with_suffix(".safetensors"))["pictures"]
            (found,) = self.predictions([name])
            rows = zip(images, _examples(prompts), strict=True)
            columns.append([generated(image, prompts[row].text, found[row]["agrees"]) for image, row in rows])
        shown = [prompts[row] for row in _examples(prompts)]
        lines = [
            GalleryRow(prompt.text, f"{prompt.category}, {TITLES['held out' if prompt.unseen else 'seen']}", cells)
            for prompt, cells in zip(shown, zip(*columns, strict=True), strict=True)
        ]
        gallery = Gallery(list(names), lines, caption, file)
        _save_sheet(self.path / file, gallery)
        return gallery

    def finish(self, results: dict[str, Any], report: Report) -> Findings:
        """Write results.json, report.md with its plots, and index.html."""
        report.write(self.path, results)
        return Findings(results, report)

    def _images(self, name: str) -> Path:
        return self.path / "painted" / f"{name}.json"


def judged(results: dict[str, Any]) -> dict[str, Any]:
    """The results, and which judge scored them."""
    return results | {"judge": judge_record()}


def judge_lines(results: Mapping[str, Any]) -> list[str]:
    """A report's paragraph about the judge; none for results from before there was one."""
    return [judge_note(results["judge"])] if "judge" in results else []


def _prediction(one: ScoredImage) -> Prediction:
    prompt = one.prompt
    atoms = [[atom.kind, atom.holds] for atom in one.atoms]
    record = {"text": prompt.text, "category": prompt.category, "held_out": prompt.unseen}
    return record | {"agrees": one.correct, "atoms": atoms, "extra": one.extra}


def _examples(prompts: Sequence[Prompt]) -> list[int]:
    """The numbers of the first prompts of each category and side."""
    kinds: dict[tuple[str, bool], list[int]] = {}
    for i, prompt in enumerate(prompts):
        kinds.setdefault((prompt.category, prompt.unseen), []).append(i)
    return [i for rows in kinds.values() for i in rows[:EXAMPLES]]


def _save_sheet(file: Path, gallery: Gallery) -> None:
    """The gallery as one image; a green frame where every fact is right."""
    rows = [
        [card(row.prompt), *(ImageOps.expand(one.pil(), 2, "#2a2" if one.correct else "white") for one in row.pictures)]
        for row in gallery.rows
    ]
    data = io.BytesIO()  # JPEG, a quarter of the bytes, because sheets go into repositories
    labels = [[row.note, *gallery.columns] for row in gallery.rows]
    contact_sheet(rows, labels, cell=SHEET_CELL).save(data, "JPEG", quality=90, subsampling=0)
    artifacts.write_bytes(file, data.getvalue())


def generate_and_score(
    candidate: Candidate, prompts: Sequence[Prompt], judge: Judge, progress: Callable[[int], None] = lambda done: None
) -> list[ScoredImage]:
    """Generate an image of each prompt, and predict what it shows."""
    images = {"image": lambda some, cases: list(to_uint8(some).cpu())}
    found = predict([candidate], judge, PredictionStore(None, {}), also=images, progress=progress)[candidate.name]
    each = zip(prompts, found.values["image"], found.scenes, strict=True)
    return [ScoredImage(candidate.name, prompt, 0, image, scene) for prompt, image, scene in each]


def embedded_images(clip: Clip, pairs: Sequence[scene_source.Pair]) -> Float[Tensor, "N D"]:
    """CLIP's embeddings of the pairs' images, on the CPU."""
    chunks = [list(pairs[start : start + CHUNK]) for start in range(0, len(pairs), CHUNK)]
    return torch.cat(
        [clip.encode_image(scene_source.pictures(some, clip.image_size, clip.device)).cpu() for some in chunks]
    )


def trained_probe(clip: Clip, scenes: int, seed: int) -> Probe:
    """A linear probe of CLIP's space, trained on true embeddings, those of unseen compositions included."""
    pairs = scene_source.pairs(seed_of(seed, "probe"), 0, scenes)
    return fit_probe(embedded_images(clip, pairs), [one.scene for one in pairs], seed)


def as_score(found: Interval) -> Score:
    """An interval as JSON values."""
    values = {"mean": found.mean, "low": found.low, "high": found.high}
    return {key: round(value, 4) for key, value in values.items()} | {"prompts": found.number}


def mean_score(values: list[list[float]]) -> Score | None:
    """The mean over rows (prompts) and columns (trainings); None without rows."""
    return as_score(interval(values, trainings=True)) if values else None


def gain_score(first: list[list[float]], second: list[list[float]]) -> Score | None:
    """The mean of first − second, paired by row and training; None without rows."""
    return as_score(difference(paired(first, second), paired(second, first), trainings=True)) if first else None


def paired(values: list[list[float]], others: list[list[float]]) -> list[list[float]]:
    """Values of a single training are paired with each training of the others."""
    return [row * len(others[0]) if len(row) == 1 else row for row in values]


def accuracy(trainings: Trainings, category: str, unseen: bool) -> Score | None:
    """Prompt accuracy: the share of images in which every fact that the prompt names is right."""
    return mean_score(_values(trainings, category, unseen, _correct))


def gain(first: Trainings, second: Trainings, category: str, unseen: bool) -> Score | None:
    """The first's prompt accuracy minus the second's, paired by prompt, noise and training."""
    return gain_score(*(_values(some, category, unseen, _correct) for some in (first, second)))


def preference(first: Trainings, second: Trainings, unseen: bool) -> Score | None:
    """How often more facts are right in the first's image; a tie counts half."""
    a, b = (_values(some, ALL, unseen, _fact_accuracy) for some in (first, second))
    return as_score(win_rate(paired(a, b), paired(b, a), trainings=True)) if a else None


def by_side(
    score: Callable[[str, bool], Score | None], categories: Sequence[str] = CATEGORIES
) -> dict[str, dict[str, Score | None]]:
    """Scores of each side and category, and of all categories together."""
    return {side: {name: score(name, unseen) for name in (*categories, ALL)} for side, unseen in SIDES.items()}


def _correct(one: Prediction) -> float:
    return float(one["agrees"])


def _fact_accuracy(one: Prediction) -> float:
    return sum(holds for _, holds in one["atoms"]) / len(one["atoms"])


def _values(
    trainings: Trainings, category: str, unseen: bool, score: Callable[[Prediction], float]
) -> list[list[float]]:
    """A row for each prompt, a column for each training."""
    return [
        [score(one) for one in prompt]
        for prompt in zip(*trainings, strict=True)
        if prompt[0]["held_out"] == unseen and category in (prompt[0]["category"], ALL)
    ]


def percent(one: Mapping[str, float | int] | None, signed: bool = False) -> str:
    """A share or difference with its interval, in per cent; empty for None."""
    if one is None:
        return ""
    sign = "+" if signed else ""
    return f"{100 * one['mean']:{sign}.0f} [{100 * one['low']:{sign}.0f}, {100 * one['high']:{sign}.0f}]"


def side_table(columns: Mapping[str, Sides], *, signed: bool = False) -> Table:
    """Scores in per cent: a line for each category and side that has prompts, a column for each candidate."""
    some = next(iter(columns.values()))
    kinds = [(side, name) for side, categories in some.items() for name, score in categories.items() if score]
    lines = [
        [f"{name}, {TITLES[side]}", *(percent(one[side][name], signed) for one in columns.values())]
        for side, name in kinds
    ]
    return Table(["", *columns], lines)


def score_plot(title: str, scores: Mapping[str, Score | None], file: str = "") -> Figure:
    """Bars of shares, in per cent."""
    return bar_plot(
        title, {name: (row["mean"], row["low"], row["high"]) for name, row in scores.items() if row}, file=file
    )
