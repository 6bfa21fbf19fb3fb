"""T5's states, CLIP's, or both: what does each give a decoder, from short and from long prompts? On the embedded world (eDiff-I)."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor

from syzygy.core.contracts import Sampling, TextFeatures, TextStates
from syzygy.core.errors import UserError
from syzygy.core.randomness import Draw, generator
from syzygy.core.wording import counted
from syzygy.decoder.latent_decoder import LatentDecoder
from syzygy.generation.request import GenerationRequest
from syzygy.generation.text_to_image import TextToImage
from syzygy.lab.evaluate import harness
from syzygy.lab.evaluate.harness import BATCH, Candidate, EvaluationContext, Outcome, Row, tensors
from syzygy.lab.report import Note, Report, Section
from syzygy.lab.world.language import language
from syzygy.lab.world.prompts import Prompt
from syzygy.lab.world.scene_classifier import Prediction

LENGTHS = ("short", "long")
NOTHING = "nothing read"
CUT = "the prompt has"
"""How the warning begins that an encoder truncates a prompt."""
TITLES = {"text": "CLIP text", "t5": "T5", "image": "image of the prior"}


class EncodersConfig(harness.CategoriesConfig):
    """What is generated and scored; each prompt is used short and long."""


@dataclass(frozen=True)
class LengthCase:
    """A prompt as it is, and after sentences that say nothing about the image: the decisive words come last."""

    prompt: Prompt
    long: str

    def text(self, length: str) -> str:
        return self.prompt.text if length == "short" else self.long


def length_cases(config: EncodersConfig) -> list[LengthCase]:
    """Prompts of every category, seen and unseen, short and long."""
    found = []
    for prompt in config.wanted():
        said = language("en").caption(prompt.description, Draw(config.seed, "length", prompt.text), "long")
        before = said.text[: min(span.start for span in said.spans)]
        whole_sentences = said.text[: before.rfind(". ") + 2]
        found.append(LengthCase(prompt, whole_sentences + prompt.text))
    return found


def conditions_compared(conditions: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """What a decoder with these conditions is compared with: each text encoder, all of them, the prior's embedding, and everything.

    Raises:
        UserError: the decoder reads no text.
    """
    texts = tuple(name for name in conditions if name != "image")
    if not texts:
        raise UserError("this decoder reads only image embeddings: there are no text encoders to compare.")
    found: dict[str, tuple[str, ...]] = {TITLES.get(name, name): (name,) for name in texts}
    if len(texts) > 1:
        found["both texts" if len(texts) == 2 else "all texts"] = texts
    if "image" in conditions:
        found |= {TITLES["image"]: ("image",), "everything": tuple(conditions)}
    return found


def left_out(conditions: Sequence[str]) -> list[str]:
    """What a decoder with T5 and CLIP would have, and this one lacks."""
    return [] if "t5" in conditions else [f"{TITLES['t5']}, and both texts: this decoder reads no T5"]


def name_of(candidate: str, length: str) -> str:
    """A candidate on prompts of one length."""
    return f"{candidate}, {length}"


def candidates(model: TextToImage, cases: Sequence[LengthCase], config: EncodersConfig) -> list[Candidate]:
    """An image of each prompt for each set of conditions and length, and one with all conditions dropped (guidance 0)."""

    def generate(
        rows: Sequence[int], length: str, reads: Sequence[str] | None, guidance: float
    ) -> Float[Tensor, "B 3 H W"]:
        some = [cases[row] for row in rows]
        with warnings.catch_warnings():  # that CLIP truncates long prompts is what is measured; `tokens` counts it
            warnings.filterwarnings("ignore", message=CUT)
            request = GenerationRequest(
                [one.text(length) for one in some],
                sampling=Sampling(steps=config.steps, guidance_scale=guidance),
                conditions=reads,
                generator=[generator(config.seed, "encoders", one.prompt.text) for one in some],
            )
            return tensors(model.pipeline(request).images)

    def one(name: str, *how: Any) -> Candidate:
        return Candidate(name, len(cases), lambda rows: generate(rows, *how))

    own = conditions_compared(model.pipeline.decoder.conditions)
    return [
        one(NOTHING, "short", None, 0.0),
        *(
            one(name_of(name, length), length, reads, config.guidance_scale)
            for length in LENGTHS
            for name, reads in own.items()
        ),
    ]


def table(model: TextToImage, cases: Sequence[LengthCase], scenes: Mapping[str, Sequence[Prediction]]) -> list[Row]:
    """The harness's rows; prompt accuracy minus that with all texts, with nothing read, and on the short prompts."""
    own = conditions_compared(model.pipeline.decoder.conditions)
    texts = next(reversed([name for name, reads in own.items() if "image" not in reads]))
    wanted = [one.prompt for one in cases]
    against: dict[str, dict[str, str]] = {}
    for name in own:
        for length in LENGTHS:
            other = against.setdefault(name_of(name, length), {"against_nothing": NOTHING})
            if name != texts:
                other["against_texts"] = name_of(texts, length)
            if length != "short":
                other["against_short"] = name_of(name, "short")
    return harness.table({name: harness.accuracies(wanted, found) for name, found in scenes.items()}, wanted, against)


def tokens(model: TextToImage, cases: Sequence[LengthCase]) -> list[dict[str, Any]]:
    """A row for each encoder and length: fewest and most tokens that it reads of a prompt, and how many prompts it truncates."""
    decoder = model.pipeline.decoder
    encoders: dict[str, Callable[[list[str]], TextFeatures | TextStates]] = {"text": model.clip.encode_text}
    if isinstance(decoder, LatentDecoder):
        encoders |= {name: one.encode_states for name, one in decoder.encoders.items()}
    found = []
    for name, encode in encoders.items():
        for length in LENGTHS:
            numbers, cut = [], 0
            for start in range(0, len(cases), BATCH):
                with warnings.catch_warnings(record=True) as warned:
                    warnings.simplefilter("always")
                    read = encode([one.text(length) for one in cases[start : start + BATCH]])
                numbers += read.mask.sum(1).tolist()
                cut += sum(str(one.message).startswith(CUT) for one in warned)
            row = {"encoder": TITLES.get(name, name), "length": length}
            found.append(row | {"fewest": min(numbers), "most": max(numbers), "cut": cut})
    return found


COLUMNS: harness.Columns = {
    "candidate": "candidate",
    "prompts": "side",
    "prompt accuracy": "prompt_accuracy",
    "fact accuracy": "fact_accuracy",
    "minus all texts": "against_texts",
    "minus short": "against_short",
    "minus nothing read": "against_nothing",
}
TOKENS: harness.Columns = {
    "encoder": "encoder",
    "prompts": "length",
    "tokens read": lambda row: f"{row['fewest']} to {row['most']}",
    "prompts truncated": "cut",
}
LEGEND = (
    "**Prompt accuracy**: every fact that the prompt names is right; **fact accuracy**: the part of the facts that is. Differences in points, "
    "on the same prompts and noise. **Nothing read**: all conditions dropped, the level of chance. Brackets: 95 % bootstrap over prompts."
)


def evaluate(context: EvaluationContext[EncodersConfig]) -> Outcome:
    """Compare the conditions of the model's decoder."""
    model, config = context.model, context.config
    compared = conditions_compared(model.pipeline.decoder.conditions)
    cases = length_cases(config)
    rows = table(model, cases, context.scenes(candidates(model, cases, config)))
    missing, read = left_out(model.pipeline.decoder.conditions), tokens(model, cases)
    result = context.header(
        conditions=list(model.pipeline.decoder.conditions),
        candidates={name: list(reads) for name, reads in compared.items()},
        left_out=missing,
        prompts=len(cases),
        tokens=read,
        rows=harness.plain(rows),
    )
    omitted = [f"Left out: {one}." for one in missing]
    token_table, whole = harness.as_table(read, TOKENS), harness.as_table(harness.overall(rows, None), COLUMNS)

    def report(_sheet: Any) -> Report:
        return Report(
            f"Text encoders: {model.name}",
            context.lead(
                f"{counted(len(cases), 'prompt')}, each short and long (the same words after sentences that say nothing about the image).",
                *omitted,
            ),
            [
                Section("", [harness.accuracy_plot(rows, file="prompt_accuracy.svg"), token_table]),
                Section("Prompt accuracy", [whole, Note(LEGEND)]),
                Section("By category", [harness.category_table(rows)]),
            ],
            limits=(
                "One decoder is measured, which was trained with all of its conditions: one that is trained with a single text encoder may do "
                "better with it. The prompts are those of a small world."
            ),
        )

    return Outcome(result, [*omitted, token_table, whole, LEGEND], report)
