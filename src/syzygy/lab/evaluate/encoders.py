"""T5's states, CLIP's, or both: what does each tell a decoder, of short and of long prompts? Exact scores on the embedded world (eDiff-I)."""

import html
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image
from pydantic import Field

from syzygy.core import artifacts
from syzygy.core.contracts import Sampling, TextFeatures, TextStates
from syzygy.core.errors import UserError
from syzygy.core.randomness import Draw, generator
from syzygy.decoder.latent_decoder import LatentDecoder
from syzygy.generation.text_to_image import TextToImage
from syzygy.lab.evaluate import predictions, report
from syzygy.lab.evaluate.evaluate_composition import asked as prompts_asked
from syzygy.lab.evaluate.predictions import ALL, BATCH, Sampled, Series
from syzygy.lab.world.language import language
from syzygy.lab.world.prompts import CATEGORIES, Prompt
from syzygy.lab.world.reader import Prediction

LENGTHS = ("short", "long")
NOTHING = "nothing read"
CUT = "the prompt has"
"""How the warning begins that an encoder cuts a prompt."""
TITLES = {"text": "CLIP text", "t5": "T5", "image": "image of the prior"}


class EncodersScoring(Sampled):
    """What is painted and scored."""

    prompts: int = Field(default=16, gt=0)
    """Prompts a category, seen and held-out each, or as many as there are; each is painted short and long."""


@dataclass(frozen=True)
class Asked:
    """A prompt as it is, and after sentences that say nothing of the picture: the decisive words come last."""

    prompt: Prompt
    long: str

    def text(self, length: str) -> str:
        return self.prompt.text if length == "short" else self.long


def ask(scoring: EncodersScoring) -> list[Asked]:
    """Prompts of every category, seen and held-out, short and long."""
    found = []
    for prompt in prompts_asked(CATEGORIES, scoring.prompts, scoring.seed):
        said = language("en").caption(prompt.description, Draw(scoring.seed, "length", prompt.text), "long")
        before = said.text[: min(span.start for span in said.spans)]
        found.append(Asked(prompt, _sentences(before, said.text) + prompt.text))
    return found


def _sentences(before: str, text: str) -> str:
    """The whole sentences that come before the decisive one."""
    return text[: before.rfind(". ") + 2]


def candidates(conditions: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """What is compared of a decoder that reads these: each text encoder, all of them, the prior's embedding alone, and everything.

    Raises:
        UserError: the decoder reads no text.
    """
    texts = tuple(name for name in conditions if name != "image")
    if not texts:
        raise UserError("this decoder reads image embeddings alone: there are no text encoders to compare.")
    found: dict[str, tuple[str, ...]] = {TITLES.get(name, name): (name,) for name in texts}
    if len(texts) > 1:
        found["both texts" if len(texts) == 2 else "all texts"] = texts
    if "image" in conditions:
        found |= {TITLES["image"]: ("image",), "everything": tuple(conditions)}
    return found


def left_out(conditions: Sequence[str]) -> list[str]:
    """What a decoder with T5 beside CLIP would have, and this one has not."""
    return [] if "t5" in conditions else [f"{TITLES['t5']}, and both texts: this decoder reads no T5"]


def name_of(candidate: str, length: str) -> str:
    """A candidate on prompts of one length."""
    return f"{candidate}, {length}"


def series(model: TextToImage, asked: Sequence[Asked], scoring: EncodersScoring) -> list[Series]:
    """A picture a prompt for each candidate and length, and one that reads nothing (guidance 0). Same noise for a prompt everywhere."""

    def painted(rows: Sequence[int], length: str, reads: Sequence[str] | None, guidance: float) -> list[Image.Image]:
        some = [asked[row] for row in rows]
        with warnings.catch_warnings():  # that CLIP cuts long prompts is what is measured; `tokens` counts it
            warnings.filterwarnings("ignore", message=CUT)
            return model.pipeline(
                [one.text(length) for one in some],
                sampling=Sampling(steps=scoring.steps, guidance_scale=guidance),
                conditions=reads,
                generator=[generator(scoring.seed, "encoders", one.prompt.text) for one in some],
            ).images

    def of(length: str, reads: Sequence[str] | None, guidance: float, name: str) -> Series:
        return Series(name, len(asked), lambda rows: painted(rows, length, reads, guidance))

    own = candidates(model.pipeline.decoder.conditions)
    return [
        of("short", None, 0.0, NOTHING),
        *(
            of(length, reads, scoring.guidance_scale, name_of(name, length))
            for length in LENGTHS
            for name, reads in own.items()
        ),
    ]


def table(
    model: TextToImage, asked: Sequence[Asked], found: Mapping[str, Sequence[Prediction]]
) -> list[dict[str, Any]]:
    """A row a candidate and length, category and side: agreement (less that of all texts, of nothing read, of the short prompts) and facts."""
    own = candidates(model.pipeline.decoder.conditions)
    texts = next(reversed([name for name, reads in own.items() if "image" not in reads]))
    wanted = [one.prompt for one in asked]
    measured = {
        candidate: {
            "agreement": [[predictions.agrees(prompt, one)] for prompt, one in zip(wanted, read, strict=True)],
            "facts": [[predictions.facts(prompt, one)] for prompt, one in zip(wanted, read, strict=True)],
        }
        for candidate, read in found.items()
    }
    against: dict[str, dict[str, str]] = {}
    for name in own:
        for length in LENGTHS:
            other = against.setdefault(name_of(name, length), {"against_nothing": NOTHING})
            if name != texts:
                other["against_texts"] = name_of(texts, length)
            if length != "short":
                other["against_short"] = name_of(name, "short")
    return predictions.table(measured, wanted, against)


def tokens(model: TextToImage, asked: Sequence[Asked]) -> list[dict[str, Any]]:
    """A row an encoder and length: fewest and most tokens that it read of a prompt, and how many prompts it cut."""
    decoder = model.pipeline.decoder
    encoders: dict[str, Callable[[list[str]], TextFeatures | TextStates]] = {"text": model.clip.encode_text}
    if isinstance(decoder, LatentDecoder):
        encoders |= {name: one.encode_states for name, one in decoder.encoders.items()}
    found = []
    for name, encode in encoders.items():
        for length in LENGTHS:
            numbers, cut = [], 0
            for start in range(0, len(asked), BATCH):
                with warnings.catch_warnings(record=True) as said:
                    warnings.simplefilter("always")
                    read = encode([one.text(length) for one in asked[start : start + BATCH]])
                numbers += read.mask.sum(1).tolist()
                cut += sum(str(one.message).startswith(CUT) for one in said)
            row = {"encoder": TITLES.get(name, name), "length": length}
            found.append(row | {"fewest": min(numbers), "most": max(numbers), "cut": cut})
    return found


def result(
    model: TextToImage, scoring: EncodersScoring, asked: Sequence[Asked], rows: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """All scores as JSON values."""
    conditions = model.pipeline.decoder.conditions
    return {
        "model": model.name,
        "scoring": scoring.model_dump(mode="json"),
        "conditions": list(conditions),
        "candidates": {name: list(reads) for name, reads in candidates(conditions).items()},
        "left_out": left_out(conditions),
        "prompts": len(asked),
        "tokens": tokens(model, asked),
        "machine": artifacts.machine(),
        "versions": artifacts.versions(),
        "rows": predictions.plain(rows),
    }


def plot(rows: Sequence[Mapping[str, Any]]) -> str:
    """Agreement of every candidate, seen and held-out prompts together, as HTML with an SVG."""
    whole = {row["candidate"]: row["agreement"] for row in rows if (row["category"], row["side"]) == (ALL, ALL)}
    return report.bars("agreement", {name: (one.mean, one.low, one.high) for name, one in whole.items()})


def page(found: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    """A self-contained page: bars, tables."""
    scoring = found["scoring"]
    lines = [
        [html.escape(row["candidate"]), row["side"], str(row["agreement"]), str(row["facts"]),
         *(predictions.points(row[key]) if key in row else "" for key in ("against_texts", "against_short", "against_nothing"))]
        for row in rows
        if row["category"] == ALL
    ]  # fmt: skip
    counts = [
        [one["encoder"], one["length"], f"{one['fewest']} to {one['most']}", str(one["cut"])] for one in found["tokens"]
    ]
    body = f"""
<h1>Text encoders: {html.escape(found["model"])}</h1>
<p>{found["prompts"]} prompts, each short and long (the same words after sentences that say nothing of the picture); {scoring["steps"]} steps,
guidance {scoring["guidance_scale"]:g}, seed {scoring["seed"]}, on {html.escape(found["machine"])}. A prompt's pictures all start from the same
noise. {html.escape("; ".join(f"Left out: {one}." for one in found["left_out"]))}</p>
{plot(rows)}
{report.rows(["encoder", "prompts", "tokens read", "prompts cut"], counts, numbers_from=2)}
<h2>Agreement</h2>
{report.rows(["", "prompts", "agreement", "facts", "less all texts", "less short", "less nothing read"], lines, numbers_from=2)}
<h2>By category</h2>
{_categories(rows)}
<p class='note'><b>Agreement</b>: every named thing is right; <b>facts</b>: the part of them that is. Differences in points, on the same
prompts and noise. <b>Nothing read</b>: all conditions dropped, the level of chance. Brackets: 95 % bootstrap over prompts.</p>
"""
    return report.page(f"Text encoders: {found['model']}", body)


def _categories(rows: Sequence[Mapping[str, Any]]) -> str:
    names = list(dict.fromkeys(row["candidate"] for row in rows))
    cells = {(row["candidate"], row["category"], row["side"]): str(row["agreement"]) for row in rows}
    kinds = dict.fromkeys((row["category"], row["side"]) for row in rows if ALL not in (row["category"], row["side"]))
    lines = [[category, side, *(cells[name, category, side] for name in names)] for category, side in kinds]
    return report.rows(["category", "", *map(html.escape, names)], lines, numbers_from=2)
