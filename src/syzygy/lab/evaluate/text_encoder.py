"""What an adapter makes of prompts in other languages and past CLIP's 77 tokens, beside what CLIP makes of them.

Short, medium and long captions of scenes of the embedded world, in each language; the pivot of all of them is the short English caption,
which CLIP reads whole. Shapes: N captions, D width of CLIP's joint space.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from syzygy.clip.clip_model import Clip
from syzygy.clip.tokenization import encoded
from syzygy.core import artifacts
from syzygy.core.contracts import TextFeatures
from syzygy.core.errors import UserError
from syzygy.core.randomness import Draw, generator, seed_of
from syzygy.generation.pipeline import Pipeline
from syzygy.generation.replaced_text_encoder import with_text
from syzygy.generation.text_to_image import TextToImage
from syzygy.lab.evaluate.bootstrap import interval, share
from syzygy.lab.evaluate.distance import mean_cosine
from syzygy.lab.evaluate.predictions import Sampled, plain
from syzygy.lab.evaluate.retrieval import ranks, recalls
from syzygy.lab.world import scene_source as source
from syzygy.lab.world.description import Description
from syzygy.lab.world.language import LANGUAGES, language
from syzygy.lab.world.language.base import Length
from syzygy.lab.world.language.sentence import write
from syzygy.lab.world.language.spoken import Spoken
from syzygy.lab.world.scene import INVERSE, Relation
from syzygy.text_encoders.adapter import AdaptedText
from syzygy.text_encoders.align_stage import padded_states
from syzygy.text_encoders.llm import Llm

ADAPTER, CLIP = "adapter", "CLIP"
ENGLISH = "en"
LENGTHS: tuple[Length, ...] = get_args(Length)
CHUNK = 64
CUT = "the prompt has"
"""How the warning begins that an encoder cuts a prompt."""

Tell = Callable[[int], None]
"""Is told how many texts more were read."""


class TextScoring(Sampled):
    """What is read, painted and scored."""

    languages: tuple[str, ...] = Field(min_length=1)
    """Codes of the world's languages."""
    captions: int = Field(default=512, ge=2)
    """Captions a language and length; as many stand to choice in retrieval."""
    prompts: int = Field(default=16, ge=0)
    """Prompts a category, seen and held-out each, or as many as there are, that are painted in each language; 0 paints nothing."""
    conditions: tuple[str, ...] = ("image", "text")
    """What the decoder reads."""


@dataclass(frozen=True)
class Subject:
    """An adapter beside the CLIP in whose place it comes."""

    model: TextToImage
    adapter: AdaptedText
    paths: Mapping[str, Pipeline]
    """`ADAPTER` and `CLIP`: the paths of a prompt through either."""

    @staticmethod
    def of(model: TextToImage) -> "Subject":
        """Of a model that was loaded with an adapter."""
        encoder = model.pipeline.text_encoder
        assert isinstance(encoder, AdaptedText) and model.adapter, "the model was loaded with a text encoder"
        return Subject(model, encoder, {ADAPTER: model.pipeline, CLIP: with_text(model.pipeline, model.clip)})


def lines(number: int, seed: int) -> list[source.Pair]:
    """Scenes with short English captions, each of which says something else."""
    found: dict[object, source.Pair] = {}
    key, index = seed_of(seed, "text encoder"), 0
    while len(found) < number:
        one = source.pair(key, index)
        found.setdefault(meaning(one.caption.description), one)
        index += 1
    return list(found.values())


def meaning(told: Description) -> object:
    """Equal where two descriptions say the same, in whichever order."""
    both: set[tuple[str, Relation, str]] = set()
    for p in told.relations:
        one, other = (repr(told.mentions[i]) for i in (p.subject, p.target))
        both |= {(one, p.relation, other), (other, INVERSE[p.relation], one)}
    return tuple(sorted(map(repr, told.mentions))), frozenset(both), told.style


@dataclass(frozen=True)
class Material:
    """The captions' pivots and pictures as CLIP embeds them."""

    pairs: Sequence[source.Pair]
    english: Sequence[str]
    texts: Float[Tensor, "N D"]
    """CLIP's pooled embeddings of the short English captions."""
    states: Float[Tensor, "N P D"] | None
    """CLIP's states of them with all of their padding, where the adapter has as many queries as CLIP positions."""
    images: Float[Tensor, "N D"]
    predicted: Float[Tensor, "N D"]
    """What the prior makes of CLIP's features of the short English captions."""

    @staticmethod
    def of(subject: Subject, scoring: TextScoring, tell: Tell) -> "Material":
        pairs = lines(scoring.captions, scoring.seed)
        english, clip = [one.caption.text for one in pairs], subject.model.clip
        images = [
            clip.encode_image(source.pictures(list(pairs[start : start + CHUNK]), clip.image_size, clip.device)).cpu()
            for start in range(0, len(pairs), CHUNK)
        ]
        own = read(subject.paths[CLIP], english, scoring.seed, tell)
        states = None
        if subject.adapter.adapter.config.queries == clip.positions:
            parts = (english[start : start + CHUNK] for start in range(0, len(english), CHUNK))
            states = torch.cat([padded_states(clip, part).cpu() for part in parts])
        return Material(pairs, english, own.features.pooled, states, torch.cat(images), own.predicted)


@dataclass(frozen=True)
class Read:
    """What a text encoder made of some texts, and the prior of that, on the CPU."""

    features: TextFeatures
    predicted: Float[Tensor, "N D"]
    cut: int
    """How many texts it did not read to their ends."""


def read(path: Pipeline, texts: Sequence[str], seed: int, tell: Tell) -> Read:
    """Texts through encoder and prior, ε of each being the same whoever reads it."""
    assert path.text_encoder is not None and path.prior is not None
    noise = torch.randn(len(texts), path.text_encoder.width, generator=generator(seed, "text encoder", "noise"))
    order = sorted(range(len(texts)), key=lambda row: len(texts[row]))  # alike lengths need little padding
    features, predicted, cut = [], [], 0
    for start in range(0, len(texts), CHUNK):
        rows = order[start : start + CHUNK]
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            found = path.text_encoder.encode_text([texts[row] for row in rows])
        cut += sum(str(one.message).startswith(CUT) for one in said)
        with torch.no_grad():
            made = path.prior.predict(found, noise=noise[rows].to(path.device))
        predicted.append(made.float().cpu())
        features.append(found.to("cpu"))
        tell(len(rows))
    back = sorted(range(len(order)), key=order.__getitem__)
    return Read(TextFeatures.cat(features)[back], torch.cat(predicted)[back], cut)


def reads(scoring: TextScoring) -> int:
    """Texts that `captions` and `tail` read, English pivots included."""
    of_captions = scoring.captions * (1 + 2 * len(LENGTHS) * len(scoring.languages))
    return of_captions + 3 * scoring.captions * (len(scoring.languages) + 1)


def captions(subject: Subject, material: Material, scoring: TextScoring, tell: Tell) -> list[dict[str, Any]]:
    """A row a reader, language and length: distillation and retrieval (section 6, points 1 to 3), with their controls.

    `mean_vector` and `shuffled` are what the cosine to CLIP's embedding would be of the mean of all of them, and is of another caption's.
    """
    own_text = ranks(material.texts, material.images)
    own_predicted = ranks(material.predicted, material.images)
    rows = []
    for reader, path in subject.paths.items():
        for code in scoring.languages:
            for length in LENGTHS:
                texts = said(material.pairs, code, length, scoring.seed)
                found = read(path, texts, scoring.seed, tell)
                row = {"reader": reader, "language": code, "length": length, "cut": found.cut}
                row |= _distilled(found, material)
                row |= {
                    "to_text": recalls(ranks(found.features.pooled, material.texts)),
                    "to_text_shuffled": recalls(ranks(found.features.pooled.roll(1, 0), material.texts)),
                    "to_image": _against(ranks(found.features.pooled, material.images), own_text),
                    "predicted_to_image": _against(ranks(found.predicted, material.images), own_predicted),
                }
                rows.append(row)
    return rows


def said(pairs: Sequence[source.Pair], code: str, length: Length, seed: int) -> list[str]:
    """The pairs' descriptions in a language; English and short, the pivots themselves."""
    if (code, length) == (ENGLISH, "short"):
        return [one.caption.text for one in pairs]
    spoken = language(code)
    return [
        spoken.caption(one.caption.description, Draw(seed, "text encoder", code, length, i), length).text
        for i, one in enumerate(pairs)
    ]


def _distilled(found: Read, material: Material) -> dict[str, float | None]:
    pooled, true = found.features.pooled, material.texts
    mean = true.mean(0, keepdim=True).expand_as(true)
    values: dict[str, float | None] = {
        "pooled_cosine": mean_cosine(pooled, true),
        "mean_vector": mean_cosine(mean, true),
        "shuffled": mean_cosine(pooled.roll(1, 0), true),
        "norm_ratio": float((pooled.norm(dim=1) / true.norm(dim=1)).mean()),
        "predicted_cosine": mean_cosine(found.predicted, material.predicted),
        "predicted_mean_vector": mean_cosine(
            material.predicted.mean(0, keepdim=True).expand_as(true), material.predicted
        ),
        "token_cosine": None,
    }
    if material.states is not None and found.features.states.shape == material.states.shape:
        values["token_cosine"] = float(F.cosine_similarity(found.features.states, material.states, dim=-1).mean())
    return {name: None if value is None else round(value, 4) for name, value in values.items()}


def _against(found: Int[Tensor, "N"], own: Int[Tensor, "N"]) -> dict[str, Any]:
    """Recalls, and R@1 with its interval as a part of CLIP's own on the short English captions."""
    hits, theirs = _hits(found), _hits(own)
    return recalls(found) | {"interval": interval(hits), "of_clip_english": share(hits, theirs)}


def _hits(found: Int[Tensor, "N"]) -> list[list[float]]:
    return [[float(rank == 0)] for rank in found.tolist()]


@dataclass(frozen=True)
class Tail:
    """A sentence, and the same after sentences that say nothing of the picture: the decisive words come last."""

    sentence: str
    long: str
    head: int
    """Characters before the sentence."""


def tailed(described: Description, code: str, seed: int, *key: str | int) -> Tail:
    """In a language; `seed` and `key` decide the wording."""
    spoken = language(code)
    assert isinstance(spoken, Spoken)
    sentence, _ = write(described, spoken.grammar, Draw(seed, *key, code), alone=False)
    head = spoken.fillers.head(Draw(seed, *key, code, "head"), "long")
    return Tail(sentence, head + sentence, len(head))


def tail(subject: Subject, material: Material, scoring: TextScoring, tell: Tell) -> list[dict[str, Any]]:
    """A row a reader and language (CLIP: English): the test of section 6, point 4.

    `changed` is the mean cosine of a long prompt's embedding to that of the same prompt with another's last sentence, `changed_most` the
    largest difference of a number of theirs: for CLIP, which reads the head alone, 1 and 0.
    """
    rows = []
    for reader, path in subject.paths.items():
        for code in scoring.languages if reader == ADAPTER else (ENGLISH,):
            some = [
                tailed(one.caption.description, code, scoring.seed, "tail", i) for i, one in enumerate(material.pairs)
            ]
            changed = [
                one.long[: one.head] + other.sentence for one, other in zip(some, [*some[1:], some[0]], strict=True)
            ]
            short, long, other = (
                read(path, texts, scoring.seed, tell)
                for texts in ([one.sentence for one in some], [one.long for one in some], changed)
            )
            row = {"reader": reader, "language": code, "cut": long.cut}
            row |= _tokens(subject, reader, [one.long for one in some])
            row |= {
                "changed": round(mean_cosine(long.features.pooled, other.features.pooled), 4),
                "changed_most": float((long.features.pooled - other.features.pooled).abs().max()),
                "changed_short": round(mean_cosine(short.features.pooled, short.features.pooled.roll(-1, 0)), 4),
                "to_text": _lengths(short.features.pooled, long.features.pooled, material.texts),
                "to_image": _lengths(short.features.pooled, long.features.pooled, material.images),
                "predicted_to_image": _lengths(short.predicted, long.predicted, material.images),
            }
            rows.append(row)
    return rows


def _tokens(subject: Subject, reader: str, texts: list[str]) -> dict[str, int | None]:
    """Fewest and most tokens that a reader reads of these."""
    encoder = subject.adapter.llm if reader == ADAPTER else subject.model.clip
    if isinstance(encoder, Llm):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=CUT)
            numbers = encoder.tokenize(texts).mask.sum(1)
        return {"fewest": int(numbers.min()), "most": int(numbers.max())}
    if isinstance(encoder, Clip):
        found = [len(ids) + 2 for ids, _ in encoded(encoder.tokenizer, texts)]  # with start and end
        return {"fewest": min(found), "most": max(found)}
    return {"fewest": None, "most": None}


def _lengths(short: Tensor, long: Tensor, gallery: Tensor) -> dict[str, Any]:
    """Recalls of both, and R@1 of the long prompts as a part of that of the short ones."""
    first, second = ranks(short, gallery), ranks(long, gallery)
    return {"short": recalls(first), "long": recalls(second), "of_short": share(_hits(second), _hits(first))}


def checked_languages(model: TextToImage, asked: Sequence[str] | None) -> tuple[str, ...]:
    """The languages to measure: those that the adapter was taught, or those asked for.

    Raises:
        UserError: an unknown one, or one twice.
    """
    if asked is None:
        return model.languages
    for code in asked:
        language(code)
        if asked.count(code) > 1:
            raise UserError(f"language {code!r} is named twice. Name each once. Known: {', '.join(LANGUAGES)}.")
    return tuple(asked)


def result(
    subject: Subject,
    scoring: TextScoring,
    source: str,
    *,
    captions: Sequence[Mapping[str, Any]],
    tail: Sequence[Mapping[str, Any]],
    agreement: Sequence[Mapping[str, Any]],
    shown: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """All scores as JSON values; `shown` are the prompts of the contact sheet."""
    return {
        "model": subject.model.name,
        "text_encoder": source,
        "fingerprints": subject.model.fingerprints(),
        "taught": list(subject.model.languages),
        "scoring": scoring.model_dump(mode="json"),
        "captions": [_plain(row) for row in captions],
        "tail": [_plain(row) for row in tail],
        "agreement": plain(agreement),
        "shown": list(shown),
        "machine": artifacts.machine(),
        "versions": artifacts.versions(),
    }


def _plain(row: Mapping[str, Any]) -> dict[str, Any]:
    """Intervals at any depth as JSON values."""
    return {
        key: _plain(value) if isinstance(value, dict) else plain([{key: value}])[0][key] for key, value in row.items()
    }
