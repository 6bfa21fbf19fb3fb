"""Does the image show what a prompt names, in each language, through an adapter and through CLIP? And the report of all of it."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image, ImageOps
from torch import Tensor

from syzygy.cli.common import paced
from syzygy.core.contracts import Sampling
from syzygy.core.randomness import generator
from syzygy.core.wording import counted
from syzygy.generation.image_files import card, contact_sheet
from syzygy.generation.pipeline import to_pil
from syzygy.generation.request import GenerationRequest
from syzygy.lab import plots
from syzygy.lab.evaluate import harness
from syzygy.lab.evaluate.bootstrap import share
from syzygy.lab.evaluate.harness import Candidate, EvaluationContext, Outcome, Row, evaluation_prompts, tensors
from syzygy.lab.evaluate.judging import judge_of
from syzygy.lab.evaluate.text_encoder import (
    ADAPTER,
    CLIP,
    CUT,
    ENGLISH,
    LongPrompt,
    Material,
    Subject,
    TextEncoderConfig,
    caption_rows,
    long_prompt,
    number_of_texts,
    tail_rows,
)
from syzygy.lab.report import Figure, Note, Picture, Report, Section, Table
from syzygy.lab.world.prompts import CATEGORIES, Prompt
from syzygy.lab.world.scene_classifier import Prediction

SHORT, LONG = "short", "long"
SHOWN, SHOWN_SIZE = 3, 96
"""Prompts on the sheet, and the size of an image there."""
SHEET = "languages.png"


@dataclass(frozen=True)
class LanguageCase:
    """A prompt in each language, alone and after a paragraph that says nothing about the image."""

    prompt: Prompt
    said: Mapping[str, LongPrompt]

    def text(self, code: str, length: str) -> str:
        return self.said[code].sentence if length == SHORT else self.said[code].long


def language_cases(config: TextEncoderConfig) -> list[LanguageCase]:
    """Prompts of every category, seen and unseen; none with `prompts` 0."""
    if not config.prompts:
        return []
    codes = dict.fromkeys((ENGLISH, *config.languages))
    return [
        LanguageCase(
            prompt,
            {code: long_prompt(prompt.description, code, config.seed, "painted", prompt.text) for code in codes},
        )
        for prompt in evaluation_prompts(CATEGORIES, config.prompts, config.seed)
    ]


def name_of(reader: str, code: str, length: str) -> str:
    """A candidate: the encoder, and the language and length of the prompts."""
    return f"{reader}, {code}" if length == SHORT else f"{reader}, {code}, {length}"


CLIP_ENGLISH = name_of(CLIP, ENGLISH, SHORT)


def candidates(config: TextEncoderConfig) -> dict[str, tuple[str, str, str]]:
    """Name → encoder, language, length. CLIP on English comes first; its long prompts are in English only, as it truncates all of them."""
    others = [code for code in config.languages if code != ENGLISH]
    wanted = [(CLIP, ENGLISH, SHORT), (CLIP, ENGLISH, LONG), *((CLIP, code, SHORT) for code in others)]
    wanted += [(ADAPTER, code, length) for length in (SHORT, LONG) for code in config.languages]
    return {name_of(*one): one for one in wanted}


def generate(
    subject: Subject, config: TextEncoderConfig, some: Sequence[LanguageCase], reader: str, code: str, length: str
) -> Float[Tensor, "B 3 H W"]:
    """An image for each prompt; its noise is the same for every encoder, language and length."""
    with warnings.catch_warnings():  # that CLIP truncates long prompts is what is measured
        warnings.filterwarnings("ignore", message=CUT)
        request = GenerationRequest(
            [one.text(code, length) for one in some],
            sampling=Sampling(steps=config.steps, guidance_scale=config.guidance_scale),
            conditions=config.conditions,
            generator=[generator(config.seed, "text encoder", one.prompt.text) for one in some],
        )
        return tensors(subject.paths[reader](request).images)


def table(
    cases: Sequence[LanguageCase], scenes: Mapping[str, Sequence[Prediction]], config: TextEncoderConfig
) -> list[Row]:
    """The harness's rows; prompt accuracy minus CLIP's on the English prompts and (long prompts) on the short ones, `against_…`, and divided
    by it, `of_…`, on the same prompts and noise.
    """
    wanted = [one.prompt for one in cases]
    scores = {name: harness.accuracies(wanted, found) for name, found in scenes.items()}
    known = candidates(config)
    against: dict[str, dict[str, str]] = {}
    for name, (reader, code, length) in known.items():
        against[name] = {} if name == CLIP_ENGLISH else {"clip_english": CLIP_ENGLISH}
        if length == LONG:
            against[name]["short"] = name_of(reader, code, SHORT)
    rows = harness.table(scores, wanted, {a: {f"against_{k}": b for k, b in to.items()} for a, to in against.items()})
    groups = harness.groups(wanted)
    for row in rows:
        name, chosen = row["candidate"], groups[row["category"], row["side"]]
        row |= dict(zip(("reader", "language", "length"), known[name], strict=True))
        for key, other in against[name].items():
            own, theirs = ([scores[one]["prompt_accuracy"][i] for i in chosen] for one in (name, other))
            row[f"of_{key}"] = share(own, theirs)
    return rows


def shown(cases: Sequence[LanguageCase]) -> list[LanguageCase]:
    """What the sheet shows: the first prompt of each of three categories."""
    first = {one.prompt.category: one for one in reversed(cases)}
    return [one for one in cases if first[one.prompt.category] is one][:SHOWN]


def paragraph_language(config: TextEncoderConfig) -> str:
    """The language of the sheet's paragraph."""
    return ENGLISH if ENGLISH in config.languages else config.languages[0]


def sheet(subject: Subject, cases: Sequence[LanguageCase], config: TextEncoderConfig) -> Image.Image:
    """For each prompt that is `shown`, the images that CLIP and the adapter lead to in each language, and from a paragraph that ends with it.

    A green frame: every fact is right.
    """
    columns = [*((code, SHORT) for code in config.languages), (paragraph_language(config), LONG)]
    judge = judge_of(subject.model)
    rows, labels = [], []
    for one in shown(cases):
        for encoder in subject.paths:
            images = torch.cat([generate(subject, config, [one], encoder, *column) for column in columns])
            scenes = judge.read(images.to(subject.model.pipeline.device))
            colours = ["#2a2" if harness.prompt_accuracy(one.prompt, scene) == 1 else "white" for scene in scenes]
            framed = [ImageOps.expand(cell, 2, colour) for cell, colour in zip(to_pil(images), colours, strict=True)]
            rows.append([card(one.said[ENGLISH].sentence), *framed])
            names = [code if length == SHORT else f"{code}, ends a paragraph" for code, length in columns]
            labels.append([f"read by {encoder}", *names])
    return contact_sheet(rows, labels, cell=SHOWN_SIZE)


def evaluate(context: EvaluationContext[TextEncoderConfig]) -> Outcome:
    """Everything: captions, the last words of long prompts, and images."""
    config = context.config
    subject, cases = Subject.of(context.model), language_cases(config)
    if cases:
        judge_of(context.model)  # fails before the work, not after it
    with paced("encoding", number_of_texts(config), "texts") as advance:
        material = Material.of(subject, config, advance)
        captions = caption_rows(subject, material, config, advance)
        tails = tail_rows(subject, material, config, advance)
    rows: list[Row] = []
    if cases:
        every = [
            Candidate(name, len(cases), lambda numbers, one=one: generate(subject, config, [cases[i] for i in numbers], *one))
            for name, one in candidates(config).items()
        ]  # fmt: skip
        rows = table(cases, context.scenes(every), config)
    result = context.header(
        fingerprints=context.model.fingerprints(),
        taught=list(context.model.languages),
        captions=harness.plain(captions),
        tail=harness.plain(tails),
        rows=harness.plain(rows),
        shown=[
            {
                "said": {code: one.said[code].sentence for code in config.languages},
                "paragraph": one.said[paragraph_language(config)].long,
            }
            for one in shown(cases)
        ],
    )
    return Outcome(
        result,
        _summary(captions, tails, rows),
        lambda image: _report(context, result, captions, tails, rows, image),
        partial(sheet, subject, cases, config) if cases else None,
        SHEET,
    )


def _number(key: str) -> Callable[[Row], str]:
    return lambda row: "" if row[key] is None else f"{row[key]:.3f}"


def _recalls(key: str, *inner: str) -> Callable[[Row], str]:
    """R@1, R@5 and R@10 in per cent."""

    def cell(row: Row) -> str:
        found = row[key][inner[0]] if inner else row[key]
        return " · ".join(f"{100 * found[f'R@{most}']:.0f}" for most in (1, 5, 10))

    return cell


def _share(key: str, name: str) -> Callable[[Row], str]:
    return lambda row: "" if row[key][name] is None else str(row[key][name])


CAPTIONS: harness.Columns = {
    "encoder": "reader",
    "language": "language",
    "length": "length",
    "cosine": _number("pooled_cosine"),
    "of mean": _number("mean_vector"),
    "of shuffled": _number("shuffled"),
    "norm ratio": _number("norm_ratio"),
    "prior's cosine": _number("predicted_cosine"),
    "of mean, prior": _number("predicted_mean_vector"),
    "tokens": _number("token_cosine"),
    "text found": _recalls("to_text"),
    "shuffled": _recalls("to_text_shuffled"),
    "image found": _recalls("to_image"),
    "of CLIP, en": _share("to_image", "of_clip_english"),
    "image found by prior": _recalls("predicted_to_image"),
    "of CLIP, en, by prior": _share("predicted_to_image", "of_clip_english"),
    "truncated": "cut",
}
TAILS: harness.Columns = {
    "encoder": "reader",
    "language": "language",
    "tokens": lambda row: "" if row["fewest"] is None else f"{row['fewest']} to {row['most']}",
    "changed": _number("changed"),
    "changed, alone": _number("changed_short"),
    "text found": _recalls("to_text", "long"),
    "of short": _share("to_text", "of_short"),
    "image found": _recalls("to_image", "long"),
    "of short, image": _share("to_image", "of_short"),
    "image found by prior": _recalls("predicted_to_image", "long"),
    "of short, by prior": _share("predicted_to_image", "of_short"),
}
COLUMNS: harness.Columns = {
    "candidate": "candidate",
    "prompt accuracy": "prompt_accuracy",
    "fact accuracy": "fact_accuracy",
    "minus CLIP, en": "against_clip_english",
    "minus short": "against_short",
    "of CLIP, en": "of_clip_english",
    "of short": "of_short",
}
RECALLS = "R@1 · R@5 · R@10 in per cent"


def _summary(captions: Sequence[Row], tails: Sequence[Row], rows: Sequence[Row]) -> list[str | Table]:
    def some(columns: harness.Columns, *without: str) -> dict[str, Any]:
        return {heading: column for heading, column in columns.items() if heading not in without}

    less = ("prior's cosine", "of mean, prior", "tokens", "shuffled", "of CLIP, en", "truncated")
    found: list[str | Table] = [
        harness.as_table(captions, some(CAPTIONS, *less), first_number=3),
        f"Captions: {RECALLS}; the last column: R@1 of the prior's prediction, divided by CLIP's in English.",
        harness.as_table(tails, some(TAILS, "text found", "of short")),
        "Last words of long prompts. Changed: cosine to the embedding of the prompt with another last sentence (1: not read).",
    ]
    if rows:
        found += [
            harness.as_table(harness.overall(rows), some(COLUMNS, "minus CLIP, en", "minus short"), first_number=1)
        ]
        found += [
            "Prompt accuracy: every fact that the prompt names is right. Brackets: 95 % bootstrap over prompts; quotients are paired."
        ]
    return found


def _retrieval_plot(captions: Sequence[Row]) -> Figure:
    found = {
        f"{row['reader']}, {row['language']}, {row['length']}": row["predicted_to_image"]["interval"]
        for row in captions
        if row["reader"] == ADAPTER or row["length"] == "short"
    }
    values = {name: (one.mean, one.low, one.high) for name, one in found.items()}
    return plots.bar_plot("image found (R@1) by the prior's prediction", values, file="retrieval.svg")


def _report(
    context: EvaluationContext[TextEncoderConfig],
    result: Mapping[str, Any],
    captions: Sequence[Row],
    tails: Sequence[Row],
    rows: Sequence[Row],
    image: Image.Image | None,
) -> Report:
    sections = [
        Section(
            "Captions",
            [
                _retrieval_plot(captions),
                harness.as_table(captions, CAPTIONS, first_number=3),
                Note(
                    "Cosine and norm ratio: the pooled embedding against CLIP's of the short English caption; **of mean** and **of shuffled**: "
                    "what the mean of all of them, and another caption's, would have. Prior's cosine: the same for the prior's predictions. "
                    "Tokens: CLIP's padded states, if the adapter has as many. Found: retrieval of the short English caption and of the image "
                    f"among {context.config.captions}, {RECALLS}. Of CLIP, en: R@1, divided by CLIP's for the short English caption."
                ),
            ],
        ),
        Section(
            "The last words of long prompts",
            [
                harness.as_table(tails, TAILS),
                Note(
                    "The decisive words come after a paragraph (80 to 220 words, Chinese 120 to 240 characters) that says nothing about the "
                    "image. **Changed**: cosine of a prompt's embedding to that of the same prompt with another's last sentence (1: not read); "
                    "**alone**: of the two sentences without the paragraph. Of short: R@1 of long prompts, divided by that of the sentences."
                ),
            ],
        ),
    ]
    if rows and image is not None:
        sections += _image_sections(context.config, result, rows, image)
    return Report(
        f"Text encoder: {result['text_encoder']}",
        context.lead(
            f"The adapter replaces the CLIP text encoder of {context.model.name}; it was trained on {', '.join(result['taught'])}. "
            f"{context.config.captions} captions for each language and length, no two of which say the same.",
        ),
        sections,
        limits=(
            "Captions and paragraphs come from the embedded world's grammars: they are simpler than what people write, and in no other "
            "languages. One adapter from one training is measured."
        ),
    )


def _image_sections(
    config: TextEncoderConfig, result: Mapping[str, Any], rows: Sequence[Row], image: Image.Image
) -> list[Section]:
    said = [
        [code, text] for one in result["shown"] for code, text in {**one["said"], "paragraph": one["paragraph"]}.items()
    ]  # fmt: skip
    return [
        Section(
            "Images",
            [
                f"{counted(harness.overall(rows)[0]['prompt_accuracy'].number, 'prompt')} in each language; the decoder reads "
                f"{', '.join(config.conditions)}.",
                harness.accuracy_plot(rows, file="prompt_accuracy.svg"),
                harness.as_table(harness.overall(rows), COLUMNS, first_number=1),
                Note(
                    "**Prompt accuracy**: every fact that the prompt names is right; **fact accuracy**: the part of the facts that is. "
                    "Differences in points and quotients are paired on the same prompts and noise. Brackets: 95 % bootstrap over prompts."
                ),
            ],
        ),
        Section(
            "Examples",
            [
                Picture(image, "Images by language, with CLIP and with the adapter", "A green frame: every fact is right."),
                Table(["", "prompt, row by row"], said, first_number=2),
            ],
        ),
        Section("By category", [harness.category_table(rows)]),
    ]  # fmt: skip
