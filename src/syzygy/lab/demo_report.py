"""The page of the demo: what the priors differ in, beyond their intervals or not, with plots and images."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from syzygy.lab.evaluate import harness
from syzygy.lab.evaluate.bootstrap import Difference
from syzygy.lab.evaluate.composition import ScoredImage
from syzygy.lab.evaluate.harness import ALL, SEEN, UNSEEN, Row
from syzygy.lab.evaluate.judging import judge_note
from syzygy.lab.plots import Point, line_plot
from syzygy.lab.report import Figure, Gallery, GalleryRow, Items, Report, Section, Table, generated

COSINE = "cosine"
MEASURES = {
    COSINE: "cosine × 100",
    SEEN: "prompt accuracy, seen compositions",
    UNSEEN: "prompt accuracy, unseen compositions",
}
KINDS = ("shape", "colour", "texture")
"""Facts that the scored prompts name."""


@dataclass(frozen=True)
class Comparison:
    """What one prior is better or worse in than another, on the same pairs, prompts and noise."""

    first: str
    second: str
    differences: Mapping[str, Difference]
    """By the keys of `MEASURES`."""

    @property
    def clear(self) -> dict[str, Difference]:
        """The differences whose interval does not hold 0."""
        return {key: one for key, one in self.differences.items() if one.low > 0 or one.high < 0}

    def text(self, key: str) -> str:
        """A difference in points with its interval; cosines differ by less than a point."""
        one = self.differences[key]
        digits = 1 if key == COSINE else 0
        mean, low, high = (f"{100 * value:+.{digits}f}" for value in (one.mean, one.low, one.high))
        return f"{mean} [{low}, {high}]"

    def __str__(self) -> str:
        """Its clear differences in one line, such as "ECLIPSE − projection only: cosine × 100 +2.0 [+1.2, +2.8]"."""
        clear = ", ".join(f"{MEASURES[key]} {self.text(key)}" for key in self.clear)
        return f"{self.first} − {self.second}: {clear or 'no clear difference'}"


def report(
    results: Mapping[str, Any],
    histories: Mapping[str, Sequence[Mapping[str, Any]]],
    examples: Sequence[ScoredImage],
    rows: Sequence[Row],
    comparisons: Sequence[Comparison],
) -> Report:
    """The page of a demo from its results, the trainings' metrics, the images that it shows, and the rows of its scores."""
    prior, pairs = results["run"]["prior"], results["run"]["pairs"]
    number = next(row for row in rows if row["category"] == row["side"] == ALL)["prompt_accuracy"].number
    cosines = [
        [name, *(f"{one[key]:.3f}" for key in ("mean", "low", "high"))] for name, one in results["cosine"].items()
    ]
    sections = [
        Section("What the priors differ in", list(_findings(comparisons, number, pairs))),
        Section("Twelve prompts", [SHOWN, _gallery(examples)]),
        Section("Training", [TRAINED, *_training_plots(histories)]),
        Section(
            f"Embeddings: cosine to the true embedding, {pairs:,} unseen pairs",
            [Table(["", "mean", "from", "to"], cosines), FEW_WORDS],
        ),
        Section(f"Images: {number} prompts, one image each", list(_scores(rows))),
    ]
    return Report(
        "From a prompt to an image: priors trained in minutes",
        [
            "An unCLIP generator has two parts: a **prior** predicts a CLIP image embedding from the prompt, and a **decoder** generates an "
            f"image from the embedding. Three small priors were just trained from scratch: {prior['scenes']:,} pairs of the embedded world, "
            f"{prior['loop']['steps']} steps of {prior['task']['batch_size']}, CLIP and decoder frozen. The demo took "
            f"{results['seconds']:.0f} s on {results['machine']}.",
            f"**ECLIPSE** is trained with a projection loss and a contrastive loss (λ {prior['task']['lambda_contrastive']:g}). **Projection "
            "only** is the same without the contrastive loss. **Residual** adds ECLIPSE's network as a correction to the text embedding, so "
            "that it starts from a sensible place. Two controls need no training: **text identity** gives the decoder the text embedding "
            "itself, rescaled to the norm of images; **shifted**, it is also moved to the mean of images.",
            judge_note(results["judge"]),
        ],
        sections,
        limits=(
            f"This is one training of each prior, in one small world, with a tiny CLIP. The intervals cover {number} prompts and {pairs:,} "
            "pairs, not other trainings: `syzygy reproduce eclipse` trains each prior several times. Differences within the intervals are no "
            "findings."
        ),
    )


SHOWN = (
    "All images of a prompt start from the same noise, and the decoder reads only the image embedding. A green frame: the judge found "
    "everything that the prompt names. **Reference** decodes the true embedding of a scene that shows exactly what the prompt names. No "
    "prior was trained with an unseen composition."
)
TRAINED = "All priors have the same size, pairs, number of steps, learning rate and noise."
FEW_WORDS = (
    "From and to: 95 % bootstrap over pairs. Captions omit some of what images show, so not even a perfect prior would reach 1. A prior that "
    "predicts the mean of all fitting images has a high cosine; whether the decoder can use its embeddings, only images tell."
)


def _findings(comparisons: Sequence[Comparison], prompts: int, pairs: int) -> Iterable[str | Items | Table]:
    clear = [str(one) for one in comparisons if one.clear]
    yield "In percentage points, with 95 % intervals. " + (
        "Beyond 0 with its interval:"
        if clear
        else "No interval excludes 0: with so few pairs and prompts, the demo finds no difference between these priors."
    )
    if clear:
        yield Items(clear)
    cells = [[f"{one.first} − {one.second}", *(one.text(key) for key in MEASURES)] for one in comparisons]
    yield Table(["", *MEASURES.values()], cells)
    yield (
        f"Differences are paired: cosines by {pairs:,} pairs, prompt accuracy by the prompts of each side ({prompts} in all). The "
        "intervals are a bootstrap over them."
    )


def _scores(rows: Sequence[Row]) -> Iterable[str | Figure | Table]:
    for side in (SEEN, UNSEEN):
        yield harness.accuracy_plot(rows, f"prompt accuracy, {side} compositions", side=side)
    yield harness.category_table(rows)
    lines = [
        [
            row["side"],
            row["candidate"],
            *(f"{100 * row['atoms'][kind]:.0f} %" if kind in row["atoms"] else "" for kind in KINDS),
        ]
        for side in (SEEN, UNSEEN)
        for row in harness.overall(rows, side)
    ]
    yield Table(["compositions", "prior", *KINDS], lines, "Facts that are right, by kind", first_number=2)
    yield (
        "An image counts if every shape, colour, texture, relation, count and style that the prompt names is right and belongs to the right "
        "object. Brackets: 95 % bootstrap over prompts."
    )


def _training_plots(histories: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[Figure]:
    def lines(key: str) -> dict[str, list[Point]]:
        return {
            name: [(float(row["step"]), float(row[key])) for row in rows if key in row]
            for name, rows in histories.items()
        }

    titles = {
        "projection": "training loss: projection part",
        "validation/cosine": "validation: cosine to the true image embedding",
        "validation/recall_at_1": "validation: R@1 of the true image",
    }
    return [line_plot(title, lines(key), x="steps") for key, title in titles.items()]


def _gallery(examples: Sequence[ScoredImage]) -> Gallery:
    rows = []
    for prompt in dict.fromkeys(one.prompt for one in examples):
        images = [generated(one.image, prompt.text, one.correct) for one in examples if one.prompt == prompt]
        rows.append(GalleryRow(prompt.text, f"{prompt.category}, {harness.side_of(prompt)}", images))
    return Gallery(list(dict.fromkeys(one.candidate for one in examples)), rows)
