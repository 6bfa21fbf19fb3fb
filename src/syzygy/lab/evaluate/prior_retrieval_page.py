"""The scores of `runs/evaluate_prior.py` as a table of text and as a page with learning curves."""

import html
from collections.abc import Iterator, Mapping
from typing import Any

from syzygy.lab.evaluate import report
from syzygy.lab.evaluate.prior_retrieval import CONTROLS, FRECHET, MEANS, Evaluation
from syzygy.training.loop import VALIDATION

SHARES = ("R@1", "R@5")
"""Metrics that are shown in per cent."""
CURVES = {
    "cosine": "validation cosine to the true image embedding",
    "recall_at_1": "validation R@1",
    "cosine_text": "validation cosine to the text embedding",
    "frechet": "validation Fréchet distance",
}
NAME_LENGTH = 15


def cell(metric: str, row: Mapping[str, float]) -> str:
    """A mean with its interval."""
    if metric in SHARES:
        return f"{100 * row['mean']:.1f} % [{100 * row['low']:.1f}, {100 * row['high']:.1f}]"
    return f"{row['mean']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"


def change(metric: str, row: Mapping[str, float]) -> str:
    """A difference with its interval."""
    if metric in SHARES:
        return f"{100 * row['mean']:+.1f} [{100 * row['low']:+.1f}, {100 * row['high']:+.1f}]"
    return f"{row['mean']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]"


def table(found: Mapping[str, Any]) -> Iterator[str]:
    """Lines for a terminal."""
    width = max(len(row["name"]) for row in found["candidates"]) + 2
    yield found["about"]
    yield ""
    yield f"{'':{width}}" + "".join(f"{heading:>24}" for heading in MEANS.values()) + f"{'Fréchet':>10}"
    for row in found["candidates"]:
        cells = "".join(f"{cell(metric, row[metric]):>24}" for metric in MEANS)
        yield f"{row['name']:<{width}}{cells}{_distance(row):>10}"
    if found["differences"]:
        yield ""
        yield "Paired differences (an interval without 0 is a difference that the choice of pictures does not explain):"
        for first, second, rows in _compared(found):
            cells = "".join(f"{change(metric, rows[metric]):>24}" for metric in MEANS)
            yield f"{first} − {second}"
            yield f"{'':{width}}{cells}"
    yield ""
    yield "Brackets: 95 % bootstrap intervals over pictures. R@1, R@5: the picture is the nearest, or among the five nearest, of all"
    yield "measured pictures; a picture whose caption has the same words counts as right."
    yield from found["notes"]


def _distance(row: Mapping[str, Any]) -> str:
    return "" if row[FRECHET] is None else f"{row[FRECHET]:.2f}"


def _compared(found: Mapping[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    pairs = dict.fromkeys((row["first"], row["second"]) for row in found["differences"])
    for first, second in pairs:
        yield (
            first,
            second,
            {row["metric"]: row for row in found["differences"] if (row["first"], row["second"]) == (first, second)},
        )


def page(evaluation: Evaluation, found: Mapping[str, Any]) -> str:
    """A self-contained page: tables, learning curves, examples."""
    title = f"Prior on held-out pairs: {found['store']}"
    names = [row["name"] for row in found["candidates"]]
    controls = "".join(f"<li><b>{html.escape(name)}</b>: {CONTROLS[name]}</li>" for name in names if name in CONTROLS)
    body = f"""
<h1>{html.escape(title)}</h1>
<p>{html.escape(found["about"])} Seed {found["seed"]}, on {html.escape(found["machine"])}.</p>
{"".join(f"<p class='note'>{html.escape(line)}</p>" for line in found["notes"])}
<h2>Scores</h2>
{_scores(found)}
<p class='note'>Brackets: 95 % bootstrap intervals over pictures. <b>Cosine to true</b>: of the predicted to the true image embedding.
<b>Cosine to text</b>: to the caption's own text embedding; near 1, predictions have become text embeddings. <b>R@1, R@5</b>: the picture is
the nearest, or among the five nearest, of all measured pictures; a picture whose caption has the same words counts as right.
<b>Fréchet</b>: distance of predicted from true embeddings as distributions; small is near. Compare it between rows only.</p>
<ul class='note'>{controls}</ul>
{_differences(found)}
{_learning(evaluation)}
{_examples(evaluation, found)}
"""
    return report.page(title, body)


def _scores(found: Mapping[str, Any]) -> str:
    lines = [
        [html.escape(row["name"]), *(cell(metric, row[metric]) for metric in MEANS), _distance(row)]
        for row in found["candidates"]
    ]
    return report.rows(["", *MEANS.values(), "Fréchet"], lines, numbers_from=1)


def _differences(found: Mapping[str, Any]) -> str:
    if not found["differences"]:
        return ""
    lines = [
        [f"{html.escape(first)} − {html.escape(second)}", *(change(metric, rows[metric]) for metric in MEANS)]
        for first, second, rows in _compared(found)
    ]
    text = "Both score the same captions. An interval without 0 is a difference that the choice of pictures does not explain."
    return f"<h2>Paired differences</h2>{report.rows(['', *MEANS.values()], lines, numbers_from=1)}<p class='note'>{text}</p>"


def short(name: str) -> str:
    """A name that fits a legend."""
    return name if len(name) <= NAME_LENGTH else name[: NAME_LENGTH - 1] + "…"


def _learning(evaluation: Evaluation) -> str:
    runs = {short(name): one.metrics for name, one in evaluation.priors.items() if one.metrics}
    if not runs:
        return ""
    figures = ""
    for name, rows in runs.items():
        lines = {"training": _points(rows, "loss"), "validation": _points(rows, f"{VALIDATION}loss")}
        figures += report.curves(f"{name}: loss", {key: line for key, line in lines.items() if line}, x="steps")
    width = max(440, 60 + 110 * len(runs))
    for metric, title in CURVES.items():
        lines = {name: _points(rows, f"{VALIDATION}{metric}") for name, rows in runs.items()}
        lines = {name: line for name, line in lines.items() if line}
        figures += report.curves(title, lines, x="steps", size=(width, 240)) if lines else ""
    sentences = "".join(f"<li>{html.escape(line)}</li>" for line in _best(runs))
    text = (
        "Each run's own validation while it was trained. Where the training loss falls and the validation loss rises, the run overfits: "
        "train for fewer steps, or keep the best weights with loop.best."
    )
    return f"<h2>Learning curves</h2>{figures}<ul>{sentences}</ul><p class='note'>{text}</p>"


def _points(rows: list[dict[str, Any]], name: str) -> list[report.Point]:
    return [(float(row["step"]), float(row[name])) for row in rows if name in row]


def _best(runs: Mapping[str, list[dict[str, Any]]]) -> Iterator[str]:
    """Where each run validated best."""
    for name, rows in runs.items():
        points = _points(rows, f"{VALIDATION}cosine")
        if points:
            best, last = max(points, key=lambda point: point[1]), points[-1]
            end = f"after the last, {last[0]:,.0f}, it is {last[1]:.3f}"
            yield f"{name}: the validation cosine was highest after step {best[0]:,.0f} ({best[1]:.3f}); {end}."


def _examples(evaluation: Evaluation, found: Mapping[str, Any]) -> str:
    if not found["examples"]:
        return ""
    first = html.escape(next(iter(evaluation.priors)))
    lines = [
        [html.escape(row["caption"]), html.escape(row["picture"]), f"{row['cosine']:.3f}", f"{row['rank']:,}"]
        for row in found["examples"]
    ]
    text = f"Captions from the best to the worst prediction of {first}. The rank is the picture's place among all measured pictures."
    return f"<h2>Examples</h2><p>{text}</p>" + report.rows(
        ["caption", "picture", "cosine", "rank"], lines, numbers_from=2
    )
