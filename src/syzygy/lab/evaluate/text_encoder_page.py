"""The page of `syzygy evaluate text-encoder`: plots and tables in one file."""

import html
from collections.abc import Mapping, Sequence
from typing import Any

from syzygy.lab.evaluate import report
from syzygy.lab.evaluate.bootstrap import Interval
from syzygy.lab.evaluate.predictions import points
from syzygy.lab.evaluate.text_encoder import ADAPTER
from syzygy.lab.evaluate.text_encoder_images import whole

Rows = Sequence[Mapping[str, Any]]


def page(found: Mapping[str, Any], captions: Rows, tail: Rows, agreement: Rows) -> str:
    """A self-contained page; `captions`, `tail` and `agreement` with their intervals, `found` as `evaluate_text.result` gives it."""
    scoring = found["scoring"]
    body = f"""
<h1>Text encoder: {html.escape(found["text_encoder"])}</h1>
<p>Beside the CLIP of {html.escape(found["model"])}; taught {", ".join(found["taught"])}. {scoring["captions"]} captions a language and length,
each of which says something else; seed {scoring["seed"]}, on {html.escape(found["machine"])}.</p>
<h2>Captions</h2>
{retrieved(captions)}
{_captions(captions)}
<p class='note'>Cosine and norm ratio: the pooled embedding to CLIP's of the short English caption; <b>mean</b> and <b>shuffled</b>: what
the mean of all of them, and another caption's, would have. Prior: what the prior makes of both. Tokens: CLIP's padded states, where the
adapter has as many. Retrieval among {scoring["captions"]}: R@1, R@5, R@10 of the short English caption's embedding and of the picture's, and
R@1 as a part of what CLIP has on the short English caption.</p>
<h2>The last words of long prompts</h2>
{_tail(tail)}
<p class='note'>Prompts whose decisive words come after a paragraph (80 to 220 words, Chinese 120 to 240 characters) that says nothing of the
picture.
<b>Changed</b>: cosine of a prompt's embedding to that of the same prompt with another's last sentence (1: not read), beside that of the two
sentences alone. Share: R@1 of long prompts as a part of that of the sentences alone.</p>
{_painted(found, agreement)}
"""
    return report.page(f"Text encoder: {found['text_encoder']}", body)


def retrieved(captions: Rows) -> str:
    """How often the picture is found by what the prior predicts, as HTML with an SVG."""
    bars = {
        f"{row['reader']}, {row['language']}, {row['length']}": _bar(row["predicted_to_image"]["interval"])
        for row in captions
        if row["reader"] == ADAPTER or row["length"] == "short"
    }
    return report.bars("picture found (R@1) by the prior's prediction", bars)


def painted(agreement: Rows) -> str:
    """Agreement of every candidate, as HTML with an SVG."""
    return report.bars("agreement", {row["candidate"]: _bar(row["agreement"]) for row in whole(agreement)})


def _bar(one: Interval) -> tuple[float, float, float]:
    return one.mean, one.low, one.high


def _captions(rows: Rows) -> str:
    header = ["read by", "", "", "cosine", "mean", "shuffled", "norm ratio", "prior", "mean", "tokens", "to text", "shuffled",
              "to picture", "of CLIP's", "prior to picture", "of CLIP's", "cut"]  # fmt: skip
    names = ("pooled_cosine", "mean_vector", "shuffled", "norm_ratio", "predicted_cosine", "predicted_mean_vector",
             "token_cosine")  # fmt: skip
    lines = [
        [row["reader"], row["language"], row["length"],
         *("" if row[name] is None else f"{row[name]:.3f}" for name in names),
         recalled(row["to_text"]), recalled(row["to_text_shuffled"]), recalled(row["to_image"]), part(row["to_image"]["of_clip_english"]),
         recalled(row["predicted_to_image"]), part(row["predicted_to_image"]["of_clip_english"]), str(row["cut"])]
        for row in rows
    ]  # fmt: skip
    return report.rows(header, lines, numbers_from=3)


def _tail(rows: Rows) -> str:
    header = [
        "read by",
        "",
        "tokens",
        "changed",
        "alone",
        "to text",
        "share",
        "to picture",
        "share",
        "prior to picture",
        "share",
    ]
    lines = []
    for row in rows:
        cells = [tokens(row), f"{row['changed']:.3f}", f"{row['changed_short']:.3f}"]
        for name in ("to_text", "to_image", "predicted_to_image"):
            cells += [recalled(row[name]["long"]), part(row[name]["of_short"])]
        lines.append([row["reader"], row["language"], *cells])
    return report.rows(header, lines, numbers_from=2)


def _painted(found: Mapping[str, Any], rows: Rows) -> str:
    if not rows:
        return ""
    scoring = found["scoring"]
    lines = [
        [row["candidate"], str(row["agreement"]), str(row["facts"]),
         *(points(row[key]) if key in row else "" for key in ("against_clip_english", "against_short")),
         *(part(row.get(key)) for key in ("of_clip_english", "of_short"))]
        for row in whole(rows)
    ]  # fmt: skip
    kinds = dict.fromkeys((row["category"], row["side"]) for row in rows if "all" not in (row["category"], row["side"]))
    cells = {(row["candidate"], row["category"], row["side"]): str(row["agreement"]) for row in rows}
    names = list(dict.fromkeys(row["candidate"] for row in rows))
    by_kind = [[name, *(cells[(name, *kind)] for kind in kinds)] for name in names]
    header = ["", "agreement", "facts", "less CLIP, en", "less short", "of CLIP, en", "of short"]
    return f"""<h2>Pictures</h2>
<p>{whole(rows)[0]["agreement"].number} prompts, said in each language; the decoder reads {", ".join(scoring["conditions"])};
{scoring["steps"]} steps, guidance {scoring["guidance_scale"]:g}. A prompt's pictures all start from the same noise.</p>
{painted(rows)}
{report.rows(header, lines, numbers_from=1)}
{_sheet(found["shown"])}
<h3>By category</h3>
{report.rows(["", *(f"{category}, {side}" for category, side in kinds)], by_kind, numbers_from=1)}
<p class='note'><b>Agreement</b>: every named thing is right; <b>facts</b>: the part of them that is. Differences in points, shares of
agreement, on the same prompts and noise. Brackets: 95 % bootstrap over prompts.</p>"""


def _sheet(prompts: Rows) -> str:
    """The contact sheet, and what was said in each of its rows."""
    said = [
        [code, html.escape(text)]
        for one in prompts
        for code, text in {**one["said"], "paragraph": one["paragraph"]}.items()
    ]
    return f"""<h3>Some of them</h3>
<p><img src='languages.png' alt='Pictures by language, as read by CLIP and by the adapter' style='max-width:100%'></p>
<p class='note'>A green frame: everything named is right. The prompts, row by row:</p>
{report.rows(["", "prompt"], said, numbers_from=2)}"""


def recalled(found: Mapping[str, float]) -> str:
    """R@1, R@5 and R@10 in per cent."""
    return " · ".join(f"{100 * found[f'R@{most}']:.0f}" for most in (1, 5, 10))


def part(found: Interval | None) -> str:
    """A share, or nothing where there is none."""
    return "" if found is None else str(found)


def tokens(row: Mapping[str, Any]) -> str:
    """How many tokens a prompt has."""
    return "" if row["fewest"] is None else f"{row['fewest']} to {row['most']}"
