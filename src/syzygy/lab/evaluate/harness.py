"""One harness for every evaluation that generates images of the embedded world.

An evaluation says what its cases are, which candidates generate images for them and which measures score an image. The harness generates in
batches, lets the judge (`judging.py`) predict what each image shows, keeps the predictions on disk so that an interrupted evaluation
resumes, and makes tables with bootstrap intervals by category and side.
"""

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from jaxtyping import Float
from PIL import Image
from pydantic import Field
from torch import Tensor

from syzygy.cli.common import paced
from syzygy.core import artifacts
from syzygy.core.config import Config
from syzygy.core.errors import UserError
from syzygy.core.randomness import seed_of
from syzygy.generation.image_files import to_tensor
from syzygy.generation.text_to_image import TextToImage
from syzygy.lab import plots
from syzygy.lab.evaluate.bootstrap import Interval, difference, interval
from syzygy.lab.evaluate.judging import judge_note, judge_of, judge_record
from syzygy.lab.report import Figure, Report, Table
from syzygy.lab.world.description import Fact, check_facts
from syzygy.lab.world.judge import Judge
from syzygy.lab.world.prompts import CATEGORIES, Category, Prompt, prompts
from syzygy.lab.world.scene import Thing
from syzygy.lab.world.scene_classifier import Prediction

BATCH = 32
FILE = "predictions.jsonl"
ALL, SEEN, UNSEEN = "all", "seen", "unseen"
COUNTED = "numeracy"
"""The category whose counts must be exact."""

C = TypeVar("C", bound="SamplingConfig")
Values = list[list[float]]
"""A score of every image: a row for each prompt, a column for each image of it."""
Row = dict[str, Any]
"""A line of a table: candidate, category, side, and an interval for each measure and difference."""


class SamplingConfig(Config):
    """Settings of every evaluation that generates images."""

    steps: int = Field(default=10, gt=0)
    """Sampling steps."""
    guidance_scale: float = Field(default=3.0, ge=0, allow_inf_nan=False)
    """Guidance; 1 means off. With a style reference, it is the guidance of the text."""
    seed: int = 0
    """Prompts, scenes and noise follow from it."""


class CategoriesConfig(SamplingConfig):
    """Settings of an evaluation on prompts of chosen categories."""

    prompts: int = Field(default=16, gt=0)
    """Prompts of each category, seen and unseen each, or as many as exist."""
    categories: tuple[Category, ...] | None = Field(default=None, min_length=1)
    """Categories of prompts; null is all of them."""

    def wanted(self) -> list[Prompt]:
        """The prompts."""
        return evaluation_prompts(list(dict.fromkeys(self.categories or CATEGORIES)), self.prompts, self.seed)


def evaluation_prompts(categories: Sequence[str], number: int, seed: int) -> list[Prompt]:
    """Prompts of each category, `number` seen and `number` that name an unseen composition, or as many as exist."""
    return [
        prompt
        for category in categories
        for unseen in (False, True)
        for prompt in prompts(category, number, seed_of(seed, "prompts", category), unseen, fewer=True)
    ]


@dataclass(frozen=True)
class Candidate:
    """A way to generate an image for each of a number of cases."""

    name: str
    number: int
    generate: Callable[[Sequence[int]], Float[Tensor, "B 3 H W"]]
    """Images in [0, 1] for these cases, which begin at a multiple of `BATCH`."""


def tensors(images: Iterable[Image.Image]) -> Float[Tensor, "B 3 H W"]:
    """A pipeline's images as `Candidate.generate` returns them."""
    return torch.stack([to_tensor(image) for image in images])


class PredictionStore:
    """The predictions of an evaluation, in a file that grows with each batch, so that an interrupted evaluation resumes.

    The first line of the file names the model and the settings.
    """

    def __init__(self, folder: Path | None, about: Mapping[str, Any]) -> None:
        """Without a folder nothing is written.

        Raises:
            UserError: the folder holds predictions of another model or other settings.
        """
        self._path = None if folder is None else folder / FILE
        self._batches: dict[tuple[str, int], Row] = {}
        if self._path is None:
            return
        header = json.loads(json.dumps(about))
        lines = _complete_lines(self._path) if self._path.is_file() else []
        if lines and lines[0] != header:
            differ = [key for key in {**lines[0], **header} if lines[0].get(key) != header.get(key)]
            raise UserError(
                f"{self._path} holds predictions of another evaluation ({', '.join(differ)} differ): choose another folder for "
                "--out, or delete that file."
            )
        self._batches = {(line["candidate"], line["start"]): line for line in lines[1:]}
        # Written again in full: the end of a line that a killed process began would spoil the next one.
        artifacts.write_bytes(self._path, "".join(json.dumps(line) + "\n" for line in (lines or [header])).encode())

    def get(self, candidate: str, start: int) -> Row | None:
        """The batch that starts at this case, if it is there."""
        return self._batches.get((candidate, start))

    def put(self, batch: Row) -> None:
        """Keep one batch."""
        self._batches[batch["candidate"], batch["start"]] = batch
        if self._path is None:
            return
        with artifacts.writing("predictions", self._path), self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(batch) + "\n")
            file.flush()
            os.fsync(file.fileno())


def _complete_lines(path: Path) -> list[dict[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8")
        return [json.loads(line) for line in text.splitlines(keepends=True) if line[-1] == "\n"]
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path} cannot be read ({error}): delete it, or choose another folder for --out.") from None


@dataclass(frozen=True)
class Predictions:
    """What the judge predicts for the images of one candidate, and other values of each image."""

    scenes: list[Prediction] = field(default_factory=list)
    values: dict[str, list[Any]] = field(default_factory=dict)


ImageValue = Callable[[Float[Tensor, "B 3 H W"], Sequence[int]], list[Any]]
"""A value (for a store: plain JSON) for each image; it gets the images and the numbers of their cases."""


def predict(
    candidates: Sequence[Candidate],
    judge: Judge,
    store: PredictionStore,
    *,
    also: Mapping[str, ImageValue] | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> dict[str, Predictions]:
    """Generate and judge the images of every candidate, except those whose predictions are in the store."""
    device = next(judge.parameters()).device
    found: dict[str, Predictions] = {}
    for one in candidates:
        mine = found[one.name] = Predictions([], {name: [] for name in also or {}})
        for start in range(0, one.number, BATCH):
            rows = range(start, min(start + BATCH, one.number))
            batch = store.get(one.name, start)
            if batch is None:
                images = one.generate(rows).to(device)
                batch = {"candidate": one.name, "start": start, "scenes": [asdict(x) for x in judge.read(images)]}
                batch |= {name: value(images, rows) for name, value in (also or {}).items()}
                store.put(batch)
            mine.scenes.extend(map(prediction_of, batch["scenes"]))
            for name, values in mine.values.items():
                values.extend(batch[name])
            progress(len(rows))
    return found


def prediction_of(plain: Mapping[str, Any]) -> Prediction:
    """A prediction from its JSON values."""
    return Prediction(tuple(Thing(**one) for one in plain["things"]), plain["style"], tuple(plain["confidence"]))


@dataclass(frozen=True)
class EvaluationContext(Generic[C]):
    """Where an evaluation runs: a model, settings, and a folder for what must survive an interruption."""

    name: str
    model: TextToImage
    config: C
    out: Path | None
    record: Mapping[str, Any] = field(default_factory=dict)
    """What the results also name, such as the text encoder that the model was loaded with."""

    def predict(
        self, candidates: Sequence[Candidate], *, also: Mapping[str, ImageValue] | None = None, **about: Any
    ) -> dict[str, Predictions]:
        """As `predict`, with the judge, a store in `out`, progress, rate and time left.

        Args:
            about: what else decides the images, beyond the model's weights and the settings.
        """
        judge = judge_of(self.model)
        weights = self.model.fingerprints() | {"judge": artifacts.fingerprint(judge.state_dict())}
        settings = {"evaluation": self.name, "settings": self.config.model_dump(mode="json"), "fingerprints": weights}
        store = PredictionStore(self.out, settings | about)
        with paced("generating", sum(one.number for one in candidates), "images") as advance:
            return predict(candidates, judge, store, also=also, progress=advance)

    def scenes(self, candidates: Sequence[Candidate]) -> dict[str, list[Prediction]]:
        """What the judge predicts for every candidate's images."""
        return {name: one.scenes for name, one in self.predict(candidates).items()}

    def header(self, **more: Any) -> dict[str, Any]:
        """The first keys of the JSON results."""
        machine = {"machine": artifacts.machine(), "versions": artifacts.versions()}
        return {
            "model": self.model.name,
            **self.record,
            "scoring": self.config.model_dump(mode="json"),
            "judge": judge_record(),
            **more,
            **machine,
        }

    def lead(self, *texts: str) -> list[str]:
        """The first paragraphs of the page: `texts`, how images were sampled, and what scored them."""
        config = self.config
        how = f"{config.steps} sampling steps, guidance {config.guidance_scale:g}, seed {config.seed}, on {artifacts.machine()}."
        return [*texts, f"{how} All images of a prompt start from the same noise.", judge_note(judge_record())]


@dataclass(frozen=True)
class Outcome:
    """What an evaluation found."""

    result: Mapping[str, Any]
    """JSON values."""
    summary: Sequence[str | Table]
    """What the command prints."""
    report: Callable[[Image.Image | None], Report]
    """Makes the page, given the sheet."""
    sheet: Callable[[], Image.Image] | None = None
    """Makes the contact sheet of examples."""
    sheet_file: str = "grid.png"

    def record(self) -> dict[str, Any]:
        """What the contact sheet's file says of how it was made."""
        return {key: x for key, x in self.result.items() if key == "scoring" or isinstance(x, str | int | float | None)}


@lru_cache(maxsize=2**16)
def facts(prompt: Prompt, scene: Prediction) -> tuple[Fact, ...]:
    """Every fact that the prompt names, and whether the image shows it. Kept, as several measures need them."""
    return check_facts(prompt.description, scene, exact_counts=prompt.category == COUNTED)


def fact_accuracy(prompt: Prompt, scene: Prediction) -> float:
    """The part of the facts that the prompt names which the image shows."""
    found = facts(prompt, scene)
    return sum(fact.holds for fact in found) / len(found)


def prompt_accuracy(prompt: Prompt, scene: Prediction) -> float:
    """1 if the image shows every fact that the prompt names, else 0."""
    return float(fact_accuracy(prompt, scene) == 1)


def accuracies(wanted: Sequence[Prompt], scenes: Sequence[Prediction]) -> dict[str, Values]:
    """`prompt_accuracy` and `fact_accuracy`; the scenes of one prompt, equally many for each, stand together."""
    each = len(scenes) // len(wanted)
    measures = {"prompt_accuracy": prompt_accuracy, "fact_accuracy": fact_accuracy}
    return {
        name: [[measure(one, x) for x in scenes[each * i : each * (i + 1)]] for i, one in enumerate(wanted)]
        for name, measure in measures.items()
    }


def groups(wanted: Sequence[Prompt]) -> dict[tuple[str, str], list[int]]:
    """(category or all; seen, unseen or all) → the numbers of its prompts, if there are any. All of them come first."""
    found: dict[tuple[str, str], list[int]] = {}
    for category in (ALL, *dict.fromkeys(prompt.category for prompt in wanted)):
        for side in (ALL, SEEN, UNSEEN):
            rows = [
                row
                for row, prompt in enumerate(wanted)
                if category in (ALL, prompt.category) and side in (ALL, side_of(prompt))
            ]
            if rows:
                found[category, side] = rows
    return found


def side_of(prompt: Prompt) -> str:
    """Whether training data held the prompt's composition."""
    return UNSEEN if prompt.unseen else SEEN


def table(
    scores: Mapping[str, Mapping[str, Values]],
    wanted: Sequence[Prompt],
    against: Mapping[str, Mapping[str, str]],
    paired: str = "prompt_accuracy",
) -> list[Row]:
    """A row for each candidate and group: the interval of each measure, and paired differences of one measure to other candidates.

    Args:
        scores: candidate → measure → values, a row for each prompt.
        against: candidate → name of the difference → the other candidate.
        paired: the measure that is compared.
    """
    rows = []
    for candidate, measures in scores.items():
        for (category, side), chosen in groups(wanted).items():
            row: Row = {"candidate": candidate, "category": category, "side": side}
            row |= {name: interval([values[i] for i in chosen]) for name, values in measures.items()}
            for name, other in against.get(candidate, {}).items():
                own, theirs = ([scores[one][paired][i] for i in chosen] for one in (candidate, other))
                row[name] = difference(own, theirs)
            rows.append(row)
    return rows


def plain(value: Any) -> Any:
    """Intervals at any depth as JSON values, to four digits."""
    if isinstance(value, Interval):
        return {name: round(x, 4) for name, x in asdict(value).items()}
    if isinstance(value, Mapping):
        return {key: plain(x) for key, x in value.items()}
    if isinstance(value, list | tuple):
        return [plain(x) for x in value]
    return value


def overall(rows: Sequence[Row], side: str | None = ALL) -> list[Row]:
    """The rows of all categories together; of both sides together unless `side` says otherwise (None: each)."""
    return [row for row in rows if row["category"] == ALL and side in (None, row["side"])]


Columns = Mapping[str, str | Callable[[Row], str]]
"""Heading → key of a row, or a function of a row."""


def as_table(rows: Sequence[Row], columns: Columns, caption: str = "", first_number: int = 2) -> Table:
    """Rows as cells of text; a row without a value has an empty cell."""

    def cell(row: Row, column: str | Callable[[Row], str]) -> str:
        value = column(row) if callable(column) else row.get(column)
        return "" if value is None else str(value)

    cells = [[cell(row, column) for column in columns.values()] for row in rows]
    return Table(list(columns), cells, caption, first_number)


def category_table(rows: Sequence[Row], measure: str = "prompt_accuracy") -> Table:
    """A line for each category and side, a column for each candidate."""
    names = list(dict.fromkeys(row["candidate"] for row in rows))
    cells = {(row["candidate"], row["category"], row["side"]): str(row[measure]) for row in rows}
    kinds = dict.fromkeys((row["category"], row["side"]) for row in rows if ALL not in (row["category"], row["side"]))
    lines = [[*kind, *(cells.get((name, *kind), "") for name in names)] for kind in kinds]
    return Table(["category", "prompts", *names], lines, first_number=2)


def accuracy_plot(rows: Sequence[Row], title: str = "prompt accuracy", *, side: str = ALL, file: str = "") -> Figure:
    """Prompt accuracy of every candidate, all categories together."""
    found = {row["candidate"]: row["prompt_accuracy"] for row in overall(rows, side)}
    return plots.bar_plot(title, {name: (one.mean, one.low, one.high) for name, one in found.items()}, file=file)


def sweep(places: Sequence[tuple[float, Row]], measures: Mapping[str, str]) -> dict[str, list[plots.Point]]:
    """Lines in per cent for `plots.line_plot`: title → measure, over the places of the rows."""
    return {
        title: [(x, 100 * row[key].mean, 50 * (row[key].high - row[key].low)) for x, row in places]
        for title, key in measures.items()
    }
