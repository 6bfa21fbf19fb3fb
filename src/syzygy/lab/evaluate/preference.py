"""How often is one prior's image preferred to another's, of the same prompt and noise?"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from syzygy.clip.clip_model import Clip
from syzygy.core.contracts import Prior
from syzygy.core.pixels import to_uint8
from syzygy.core.wording import counted
from syzygy.lab.evaluate import harness
from syzygy.lab.evaluate.bootstrap import win_rate
from syzygy.lab.evaluate.composition import LIMITS, CompositionConfig, candidate_embeddings, decoded, weights_of
from syzygy.lab.evaluate.harness import SEEN, UNSEEN, EvaluationContext, ImageValue, Outcome, Values
from syzygy.lab.report import Note, Report, Section
from syzygy.lab.world.prompts import Prompt

CRITERIA = {
    "fact_accuracy": "The image that shows more of the facts that the prompt names, by the judge, a scene classifier.",
    "clip_score": "The image whose CLIP embedding is nearer to the prompt's. The model's CLIP also trained the priors: it is not neutral.",
    "pickscore": "The same by a CLIP that was trained on people's choices (arXiv 2305.01569).",
}


def clip_score(clip: Clip, texts: Sequence[str]) -> ImageValue:
    """The cosine of each image's embedding with its text's (Hessel et al. 2021, unscaled)."""

    def score(images: Float[Tensor, "B 3 H W"], cases: Sequence[int]) -> list[float]:
        image = clip.encode_image(to_uint8(images) / 255)
        text = clip.encode_text([texts[case] for case in cases]).pooled
        return torch.nn.functional.cosine_similarity(image, text).tolist()

    return score


def evaluate(
    context: EvaluationContext[CompositionConfig], two: Mapping[str, Prior], pickscore: Clip | None = None
) -> Outcome:
    """Compare two priors by each of `CRITERIA`, on seen and on unseen prompts. A tie counts half for each."""
    model, config = context.model, context.config
    wanted = config.wanted()
    embeddings = candidate_embeddings(model, two, wanted, config.seed)
    candidates = decoded(model, {name: embeddings[name] for name in two}, wanted, config)
    clips = {"clip_score": model.clip} | ({} if pickscore is None else {"pickscore": pickscore})
    texts = [prompt.text for prompt in wanted for _ in range(config.draws)]
    also = {name: clip_score(clip, texts) for name, clip in clips.items()}
    weights = {"clips": {name: clip.fingerprint() for name, clip in clips.items()}, "priors": weights_of(two)}
    found = context.predict(candidates, also=also, **weights)
    values: dict[str, list[Values]] = {
        "fact_accuracy": [harness.accuracies(wanted, one.scenes)["fact_accuracy"] for one in found.values()]
    }
    for name in clips:
        values[name] = [_by_prompt(one.values[name], config.draws) for one in found.values()]
    rows = _rows(values, wanted)
    first, second = two
    columns = {
        "criterion": "criterion",
        "prompts": "side",
        f"{first} preferred": "rate",
        "number": "prompts",
        "ties": _ties,
    }
    table = harness.as_table(rows, columns)
    title = f"How often {first} is preferred to {second}"
    result = context.header(first=first, second=second, rows=harness.plain(rows))

    def report(_sheet: Any) -> Report:
        lead = f"{counted(len(wanted), 'prompt')}, {counted(config.draws, 'image')} for each. The decoder reads only the image embedding."
        explained = " ".join(f"**{name}**: {CRITERIA[name]}" for name in values)
        legend = f"A tie counts half for each. Brackets: 95 % bootstrap over prompts and their images. {explained}"
        return Report(title, context.lead(lead), [Section("", [table, Note(legend)])], limits=LIMITS)

    return Outcome(result, [f"{title}:", table], report)


def _by_prompt(values: Sequence[float], draws: int) -> Values:
    return [list(values[i : i + draws]) for i in range(0, len(values), draws)]


def _rows(values: Mapping[str, Sequence[Values]], wanted: Sequence[Prompt]) -> list[harness.Row]:
    rows = []
    for side in (SEEN, UNSEEN):
        chosen = [i for i, prompt in enumerate(wanted) if harness.side_of(prompt) == side]
        for criterion, both in values.items() if chosen else ():
            first, second = ([of[i] for i in chosen] for of in both)
            rate = win_rate(first, second)
            pairs = [pair for one in zip(first, second, strict=True) for pair in zip(*one, strict=True)]
            ties = round(sum(a == b for a, b in pairs) / len(pairs), 4)
            rows.append({"criterion": criterion, "side": side, "prompts": rate.number, "rate": rate, "ties": ties})
    return rows


def _ties(row: harness.Row) -> str:
    return f"{100 * row['ties']:.0f} %"
