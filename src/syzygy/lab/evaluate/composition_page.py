"""The scores of `runs/evaluate.py` as JSON and as a page."""

import html
from typing import Any

from syzygy.core import artifacts
from syzygy.core.wording import counted
from syzygy.lab.evaluate import composition, report
from syzygy.lab.evaluate.composition import REFERENCE, Painted, Row
from syzygy.lab.evaluate.evaluate_composition import Scores, Scoring, against

SHOWN = 2
"""Prompts a category and side whose pictures are shown."""


def result(model: str, scoring: Scoring, scores: Scores) -> dict[str, Any]:
    """Everything but the pictures, as JSON values."""
    return {
        "model": model,
        "scoring": scoring.model_dump(),
        "machine": artifacts.machine(),
        "versions": artifacts.versions(),
        "rows": composition.table(scores.painted),
        "rows_with_text": composition.table(scores.with_text),
        "against_reference": against(scores, REFERENCE),
        "embeddings": scores.embeddings,
        "fid_reader": scores.pictures,
    }


def page(found: dict[str, Any], scores: Scores) -> str:
    """A self-contained page: bars, tables, pictures."""
    scoring = found["scoring"]
    read = (
        f"<h2>The same, the decoder reading the text states as well</h2>{_agreement(scores.with_text, found['rows_with_text'])}"
        if scores.with_text
        else ""
    )
    body = f"""
<h1>Composition: {html.escape(str(found["model"]))}</h1>
<p>{counted(len({p.prompt.text for p in scores.painted}), "prompt")}, {counted(scoring["draws"], "picture")} each,
{counted(scoring["steps"], "step")}, guidance {scoring["guidance_scale"]:g}, seed {scoring["seed"]}, on {html.escape(found["machine"])}.
All candidates start from the same noise; the decoder reads the image embedding alone.</p>
{_agreement(scores.painted, found["rows"])}
{read}
<h2>By category</h2>
{_categories(found["rows"])}
<h2>Embeddings and pictures as distributions</h2>
{_distances(found)}
<h2>Pictures</h2>
<p>A green frame: every named thing is right.</p>
{_pictures(scores.painted)}
<p class='note'><b>Reference</b> decodes the true embedding of a scene that shows just what the prompt says; it is no upper bound.
<b>Shuffled prompts</b> judges the first prior's answers to other prompts of the same category: the level of chance.
Intervals: 95 % bootstrap over prompts and their pictures. A world of eight shapes, a tiny CLIP and a tiny decoder:
what holds here need not hold for photographs.</p>
"""
    return report.page(f"Composition: {found['model']}", body)


def _agreement(painted: list[Painted], rows: list[Row]) -> str:
    plots = ""
    for held_out, title in ((False, "seen compositions"), (True, "held-out compositions")):
        values = {
            row["candidate"]: (row["agreement"], row["low"], row["high"])
            for row in rows
            if row["category"] == "all" and row["held_out"] == held_out
        }
        plots += report.bars(f"agreement, {title}", values) if values else ""
    return plots


def _categories(rows: list[Row]) -> str:
    names = list(dict.fromkeys(row["candidate"] for row in rows))
    cells = {(row["candidate"], row["category"], row["held_out"]): composition.cell(row) for row in rows}
    lines = [
        [category, "held out" if held_out else "seen", *(cells.get((name, category, held_out), "") for name in names)]
        for category in dict.fromkeys(row["category"] for row in rows)
        for held_out in (False, True)
        if any((name, category, held_out) in cells for name in names)
    ]
    return report.rows(["category", "", *map(html.escape, names)], lines, numbers_from=2)


def _distances(found: dict[str, Any]) -> str:
    names = list(dict.fromkeys([*found["embeddings"], *found["fid_reader"]]))
    lines = []
    for name in names:
        values = found["embeddings"].get(name, {})
        cells = [f"{values[key]:.3f}" if key in values else "" for key in ("cosine", "recall_at_1", "frechet")]
        distance = found["fid_reader"].get(name)
        lines.append([html.escape(name), *cells, "" if distance is None else f"{distance:.2f}"])
    header = ["", "cosine to true", "R@1", "Fréchet, CLIP embeddings", "FID-reader"]
    return report.rows(header, lines, numbers_from=1)


def _pictures(painted: list[Painted]) -> str:
    names = list(dict.fromkeys(p.candidate for p in painted))
    first = {(p.candidate, p.prompt.text): p for p in painted if p.draw == 0}
    shown: dict[tuple[str, bool], list[str]] = {}
    for p in painted:
        texts = shown.setdefault((p.prompt.category, p.prompt.unseen), [])
        if p.prompt.text not in texts and len(texts) < SHOWN:
            texts.append(p.prompt.text)
    lines = []
    for (category, held_out), texts in shown.items():
        for text in texts:
            cells = [report.picture(one.picture, agrees=one.agrees) for one in (first[name, text] for name in names)]
            side = "held out" if held_out else "seen"
            lines.append([f"{html.escape(text)}<br><small>{category}, {side}</small>", *cells])
    return report.rows(["prompt", *map(html.escape, names)], lines)
