"""How near are a prior's predictions to the embeddings of held-out images? Compared with controls that need no training.

Legend: M captions of G images, D width of CLIP's joint space.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from syzygy.core import artifacts
from syzygy.core.errors import UserError
from syzygy.core.wording import counted
from syzygy.data.store import EmbeddingStore
from syzygy.lab import plots
from syzygy.lab.evaluate.bootstrap import Difference, Interval, difference, interval
from syzygy.lab.evaluate.harness import Outcome
from syzygy.lab.evaluate.held_out import Truth, common, rest_of
from syzygy.lab.evaluate.measured_priors import MeasuredPrior, measured, predictions
from syzygy.lab.evaluate.retrieval import ranks_among
from syzygy.lab.report import Block, Items, Note, Report, Section, Table
from syzygy.prior.embedding_pairs import StorePairs
from syzygy.prior.embedding_statistics import frechet_distance
from syzygy.prior.lambda_eclipse import LambdaEclipsePrior
from syzygy.prior.linear_prior import LinearPrior
from syzygy.training.loop import VALIDATION
from syzygy.training.run_records import Bar

IDENTITY, SHIFTED, LINEAR = "text identity", "text identity, shifted", "linear map"
SHUFFLED, MEAN = "shuffled captions", "mean image"
CONTROLS = {
    IDENTITY: "The caption's own text embedding, rescaled to the mean length of image embeddings.",
    SHIFTED: "The same, moved so that the mean over texts is the mean image embedding.",
    LINEAR: "Ridge regression from text to image embeddings, fitted on pairs of the store that are not measured.",
    SHUFFLED: "The first prior's predictions for other captions: the score of a prior that ignores the caption.",
    MEAN: "The mean image embedding, for every caption.",
}
MEANS = {"cosine": "cosine to true", "cosine_text": "cosine to text", "R@1": "R@1", "R@5": "R@5"}
"""Metrics that are means over images → their headings."""
SHARES = ("R@1", "R@5")
"""Metrics that are shown in per cent."""
FRECHET = "frechet"
EXAMPLES = 12
LINEAR_PAIRS = 200_000
"""Most pairs that the linear map is fitted on."""
CURVES = {
    "cosine": "validation cosine to the true image embedding",
    "recall_at_1": "validation R@1",
    "cosine_text": "validation cosine to the text embedding",
    "frechet": "validation Fréchet distance",
}


@dataclass(frozen=True)
class Score:
    """One row of the table."""

    values: dict[str, list[list[float]]]
    """Metric → a value for each image."""
    frechet: float | None
    cosines: Float[Tensor, "M"]
    ranks: Int[Tensor, "M"]

    @cached_property
    def intervals(self) -> dict[str, Interval]:
        return {name: interval(rows) for name, rows in self.values.items()}


def scored(truth: Truth, predicted: Float[Tensor, "M D"]) -> Score:
    """All metrics of predictions for the held-out captions."""
    ranks = ranks_among(predicted, truth.gallery, truth.right)
    cosines = F.cosine_similarity(predicted.double(), truth.images.double())
    each = {
        "cosine": cosines,
        "cosine_text": F.cosine_similarity(predicted.double(), truth.texts.double()),
        "R@1": (ranks < 1).double(),
        "R@5": (ranks < 5).double(),
    }
    values = {name: truth.by_image(one) for name, one in each.items()}
    enough = len(truth) > predicted.shape[1]
    return Score(values, frechet_distance(predicted, truth.images) if enough else None, cosines, ranks)


def controls(truth: Truth, first: Float[Tensor, "M D"] | None) -> dict[str, Float[Tensor, "M D"]]:
    """The controls; `first` are the first prior's predictions."""
    fit = rest_of(truth.pairs.store, truth.pairs)
    rows = torch.arange(len(fit))
    images, texts = fit.images(rows).float(), fit.pooled(rows).float()
    norm, mean = images.norm(dim=1).mean().item(), images.mean(0)
    raw = norm * F.normalize(truth.texts, dim=1)  # as `TextIdentity` predicts, which wants token states too
    shift = mean - norm * F.normalize(texts, dim=1).mean(0)
    found = {IDENTITY: raw, SHIFTED: raw + shift}
    if (linear := linear_control(truth)) is not None:
        found[LINEAR] = linear(truth.texts)
    if first is not None and truth.other is not None:
        found[SHUFFLED] = first[truth.other]
    return found | {MEAN: mean.expand(len(truth), -1)}


def linear_control(truth: Truth) -> LinearPrior | None:
    """The linear map, fitted on captions of other images than the measured ones; None where these are too few or all alike."""
    store = truth.pairs.store
    others = rest_of(store, truth.pairs, LINEAR_PAIRS)
    if others is truth.pairs:
        return None
    try:
        return LinearPrior.fit(
            StorePairs(store, others.chosen.sort().values)
        )  # sorted: a store is read faster in its order
    except UserError:
        return None


@dataclass(frozen=True)
class Evaluation:
    """All scores on one store."""

    store: EmbeddingStore
    truth: Truth
    priors: Mapping[str, MeasuredPrior]
    scores: Mapping[str, Score]
    """Of priors, then of controls."""
    seed: int

    @property
    def about(self) -> str:
        """What was measured on, as a sentence."""
        images, captions = counted(len(self.truth.image_numbers), "image"), counted(len(self.truth), "caption")
        known = [name for name, one in self.priors.items() if one.past.held_out is not None]
        kept = f"; the training of {' and of '.join(known)} held them out" if known else ""
        return f"Measured on {images} of {self.store.path} with {captions}{kept}."

    @cached_property
    def notes(self) -> list[str]:
        """What a reader must know about the numbers."""
        found = [one.past.warning(name) for name, one in self.priors.items()]
        found += [
            f"{name} also reads the subjects, which are cut out of the images that it predicts; priors and controls without subjects read "
            "words alone, so its scores cannot be compared with theirs."
            for name, one in self.priors.items()
            if isinstance(one.prior, LambdaEclipsePrior)
        ]
        if len(self.truth) <= self.store.width:
            found.append(
                f"The Fréchet distance is not measured: it needs more captions than the {self.store.width:,} dimensions of an "
                f"embedding, and there {'is' if len(self.truth) == 1 else 'are'} {len(self.truth):,}."
            )
        if LINEAR not in self.scores:
            found.append(
                "The linear map is not measured: besides the measured pairs, there are too few different ones to fit it on."
            )
        if self.priors and SHUFFLED not in self.scores:
            found.append("Shuffled captions are not measured: too many captions have the same words.")
        return [line for line in found if line]

    @cached_property
    def differences(self) -> dict[tuple[str, str], dict[str, Difference]]:
        """(first, second) → metric → paired difference: each prior to two controls, and the first prior to each other one."""
        names, strong = list(self.priors), [name for name in (SHIFTED, LINEAR) if name in self.scores]
        pairs = [(name, other) for name in names for other in strong] + [(names[0], other) for other in names[1:]]
        return {
            (one, other): {
                metric: difference(self.scores[one].values[metric], self.scores[other].values[metric])
                for metric in MEANS
            }
            for one, other in pairs
        }

    @cached_property
    def examples(self) -> list[dict[str, Any]]:
        """Some captions, from the best to the worst by the first prior's cosine."""
        if not self.priors:
            return []
        score = self.scores[next(iter(self.priors))]
        places = torch.linspace(0, len(self.truth) - 1, min(EXAMPLES, len(self.truth))).long()
        rows = score.cosines.argsort(descending=True)[places]
        texts, keys = self.store.texts(self.truth.pairs.chosen[rows]), self.truth.pairs.keys(rows)
        return [
            {"caption": text, "image": key, "cosine": round(float(score.cosines[row]), 4), "rank": int(score.ranks[row]) + 1}
            for text, key, row in zip(texts, keys, rows.tolist(), strict=True)
        ]  # fmt: skip

    def to_json(self) -> dict[str, Any]:
        """Everything, as JSON values."""
        return {
            "about": self.about,
            "store": str(self.store.path),
            "data": self.store.digest,
            "images": len(self.truth.image_numbers),
            "captions": len(self.truth),
            "seed": self.seed,
            "machine": artifacts.machine(),
            "versions": artifacts.versions(),
            "candidates": [self._row(name) for name in self.scores],
            "differences": [
                {"first": first, "second": second, "metric": metric, **rounded(found)}
                for (first, second), row in self.differences.items()
                for metric, found in row.items()
            ],
            "examples": self.examples,
            "notes": self.notes,
        }

    def _row(self, name: str) -> dict[str, Any]:
        score, own = self.scores[name], self.priors.get(name)
        about = {"control": CONTROLS[name]} if own is None else {"source": own.source, "trained_on": own.past.kind}
        means = {metric: rounded(found) for metric, found in score.intervals.items()}
        return {"name": name, **about, **means, FRECHET: None if score.frechet is None else round(score.frechet, 4)}

    def tables(self) -> list[Table]:
        """The scores, and the differences if there are some."""
        rows = [
            [name, *(cell(metric, one.intervals[metric]) for metric in MEANS), "" if one.frechet is None else f"{one.frechet:.2f}"]
            for name, one in self.scores.items()
        ]  # fmt: skip
        compared = [
            [f"{first} − {second}", *(cell(metric, found) for metric, found in row.items())]
            for (first, second), row in self.differences.items()
        ]
        scores = Table(["candidate", *MEANS.values(), "Fréchet"], rows)
        return [scores, *[Table(["paired difference", *MEANS.values()], compared, PAIRED)] * bool(compared)]

    def outcome(self) -> Outcome:
        """Results, tables and page."""
        scores, *differences = self.tables()

        def report(_sheet: Any) -> Report:
            controls = [f"**{name}**: {CONTROLS[name]}" for name in self.scores if name in CONTROLS]
            examples = (
                f"Captions from the best to the worst prediction of {next(iter(self.priors), '')}. The rank is the image's place among all "
                "measured images."
            )
            cells = [[x["caption"], x["image"], f"{x['cosine']:.3f}", f"{x['rank']:,}"] for x in self.examples]
            listed = Table(["caption", "image", "cosine", "rank"], cells, first_number=2)
            return Report(
                f"Prior on held-out pairs: {self.store.path}",
                [f"{self.about} Seed {self.seed}, on {artifacts.machine()}.", *self.notes],
                [
                    Section("Scores", [scores, Note(LEGEND), Items(controls)]),
                    *[Section("Paired differences", differences)] * bool(differences),
                    *self._learning(),
                    *[Section("Examples", [examples, listed])] * bool(self.examples),
                ],
                limits=(
                    "Embeddings are compared, not images: what a decoder generates from them is not measured. The intervals cover the choice "
                    "of images, not the training of the priors."
                ),
            )

        return Outcome(self.to_json(), [self.about, scores, *differences, LEGEND, *self.notes], report)

    def _learning(self) -> Iterator[Section]:
        """The validations of the runs while they were trained."""
        runs = {name: one.metrics for name, one in self.priors.items() if one.metrics}
        if not runs:
            return
        blocks: list[Block] = []
        for name, rows in runs.items():
            lines = {"training": _points(rows, "loss"), "validation": _points(rows, f"{VALIDATION}loss")}
            blocks.append(
                plots.line_plot(f"{name}: loss", {key: line for key, line in lines.items() if line}, x="steps")
            )
        for metric, title in CURVES.items():
            lines = {name: _points(rows, f"{VALIDATION}{metric}") for name, rows in runs.items()}
            if lines := {name: line for name, line in lines.items() if line}:
                blocks.append(plots.line_plot(title, lines, x="steps"))
        text = (
            "Each run's own validation during its training. If the training loss falls and the validation loss rises, the run overfits: train "
            "for fewer steps, or keep the best weights with loop.best."
        )
        yield Section("Learning curves", [*blocks, Items(list(_best(runs))), Note(text)])


PAIRED = (
    "Both score the same captions. An interval without 0 is a difference that the choice of images does not explain."
)
LEGEND = (
    "Brackets: 95 % bootstrap intervals over images. **Cosine to true**: of the predicted to the true image embedding. **Cosine to text**: "
    "to the caption's own text embedding; near 1, predictions have become text embeddings. **R@1, R@5**: the image is the nearest, or among "
    "the five nearest, of all measured images; an image whose caption has the same words counts as right. **Fréchet**: distance of predicted "
    "from true embeddings as distributions; smaller is better, and only rows of this table can be compared."
)


def cell(metric: str, value: Interval) -> str:
    """A mean or difference with its interval."""
    sign = "+" if isinstance(value, Difference) else ""
    if metric in SHARES:
        unit = "" if sign else " %"
        return f"{100 * value.mean:{sign}.1f}{unit} [{100 * value.low:{sign}.1f}, {100 * value.high:{sign}.1f}]"
    return f"{value.mean:{sign}.3f} [{value.low:{sign}.3f}, {value.high:{sign}.3f}]"


def _points(rows: Sequence[Mapping[str, Any]], name: str) -> list[plots.Point]:
    return [(float(row["step"]), float(row[name])) for row in rows if name in row]


def _best(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> Iterator[str]:
    """The step of each run's best validation."""
    for name, rows in runs.items():
        points = _points(rows, f"{VALIDATION}cosine")
        if points:
            best, last = max(points, key=lambda point: point[1]), points[-1]
            end = f"after the last, {last[0]:,.0f}, it is {last[1]:.3f}"
            yield f"{name}: the validation cosine was highest after step {best[0]:,.0f} ({best[1]:.3f}); {end}."


def rounded(found: Interval) -> dict[str, float]:
    """An interval as JSON values."""
    return {"mean": round(found.mean, 4), "low": round(found.low, 4), "high": round(found.high, 4)}


def evaluate(
    store: Path,
    sources: Mapping[str, str],
    *,
    images: int | None = None,
    seed: int = 0,
    device: str = "cpu",
    bar: Bar,
) -> Evaluation:
    """Measure priors and controls on pairs of the store that none of the priors was trained on.

    Args:
        store: folder of an embedding store.
        sources: name → prior, as in `load_prior`.
        images: how many held-out images; None is all of them, 4,096 at most.
        seed: of the choice and of the noise.
        device: where the priors compute.
        bar: shows progress.

    Raises:
        UserError: as `measured` and `held_out.common`.
    """
    opened = EmbeddingStore.open(store)
    priors = {name: measured(source, opened, device) for name, source in sources.items()}
    truth = Truth(common(opened, [one.past for one in priors.values()], images, seed))
    with bar("predicting", len(priors) * len(truth)) as progress:
        predicted = {name: predictions(one.prior, truth, seed, progress) for name, one in priors.items()}
    every = predicted | controls(truth, next(iter(predicted.values()), None))
    return Evaluation(opened, truth, priors, {name: scored(truth, one) for name, one in every.items()}, seed)
