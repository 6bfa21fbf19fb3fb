"""What an adapter makes of prompts in other languages and past CLIP's 77 tokens, compared with CLIP.

Texts are short, medium and long captions of scenes of the embedded world, in each language. The reference of all of them is the short English
caption, which CLIP reads to its end. Shapes: N captions, D width of CLIP's joint space.
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
from syzygy.core.contracts import TextEncoder, TextFeatures
from syzygy.core.errors import UserError
from syzygy.core.randomness import Draw, generator, seed_of
from syzygy.generation.pipeline import Pipeline
from syzygy.generation.replaced_text_encoder import with_text
from syzygy.generation.text_to_image import TextToImage
from syzygy.lab.evaluate.bootstrap import interval, share
from syzygy.lab.evaluate.distance import mean_cosine
from syzygy.lab.evaluate.harness import SamplingConfig
from syzygy.lab.evaluate.retrieval import ranks, recalls
from syzygy.lab.world import scene_source as source
from syzygy.lab.world.description import Description
from syzygy.lab.world.language import LANGUAGES, language
from syzygy.lab.world.language.base import Length
from syzygy.lab.world.language.definition import Language
from syzygy.lab.world.language.sentence import write
from syzygy.text_encoders.adapter import AdaptedText
from syzygy.text_encoders.align_stage import padded_states
from syzygy.text_encoders.llm import Llm

ADAPTER, CLIP = "adapter", "CLIP"
ENGLISH = "en"
LENGTHS: tuple[Length, ...] = get_args(Length)
CHUNK = 64
CUT = "the prompt has"
"""How the warning begins that an encoder truncates a prompt."""

OnProgress = Callable[[int], None]
"""Gets the number of texts that were encoded since the last call."""


class TextEncoderConfig(SamplingConfig):
    """What is encoded, generated and scored."""

    languages: tuple[str, ...] = Field(min_length=1)
    """Codes of the world's languages."""
    captions: int = Field(default=512, ge=2)
    """Captions for each language and length, which are also the candidates in retrieval."""
    prompts: int = Field(default=16, ge=0)
    """Prompts of each category, seen and unseen each, or as many as exist, for images in each language; 0 generates no images."""
    conditions: tuple[str, ...] = ("image", "text")
    """What the decoder reads."""


@dataclass(frozen=True)
class Subject:
    """An adapter, and the CLIP that it replaces."""

    model: TextToImage
    adapter: AdaptedText
    paths: Mapping[str, Pipeline]
    """`ADAPTER` and `CLIP`: the pipeline with either text encoder."""

    @staticmethod
    def of(model: TextToImage) -> "Subject":
        """The adapter that a model was loaded with. Raises as `prompt_reader`."""
        encoder = prompt_reader(model)
        assert isinstance(encoder, AdaptedText) and model.adapter, "the model was loaded with a text encoder"
        return Subject(model, encoder, {ADAPTER: model.pipeline, CLIP: with_text(model.pipeline, model.clip)})


def prompt_reader(model: TextToImage) -> TextEncoder:
    """What encodes the model's prompts in CLIP's space.

    Raises:
        UserError: the model has no prior that reads them there.
    """
    found = model.pipeline.text_encoder
    if found is None:
        raise UserError(
            f"{model.name} has no prior, and this evaluation compares what an adapter gives to a prior with what CLIP gives: choose a model "
            "that has one. For Stable Diffusion, provenance.json of the adapter holds cosine and recall of unseen captions."
        )
    return found


def caption_pairs(number: int, seed: int) -> list[source.Pair]:
    """Scenes with short English captions, no two of which say the same."""
    found: dict[object, source.Pair] = {}
    key, index = seed_of(seed, "text encoder"), 0
    while len(found) < number:
        one = source.pair(key, index)
        found.setdefault(one.caption.description.key, one)
        index += 1
    return list(found.values())


def captions_in(pairs: Sequence[source.Pair], code: str, length: Length, seed: int) -> list[str]:
    """The pairs' descriptions in a language; the short English ones are the pairs' own captions."""
    if (code, length) == (ENGLISH, "short"):
        return [one.caption.text for one in pairs]
    spoken = language(code)
    return [
        spoken.caption(one.caption.description, Draw(seed, "text encoder", code, length, i), length).text
        for i, one in enumerate(pairs)
    ]


@dataclass(frozen=True)
class LongPrompt:
    """A sentence, and the same sentence after a paragraph that says nothing about the image."""

    sentence: str
    long: str
    head: int
    """Characters before the sentence."""


def long_prompt(described: Description, code: str, seed: int, *key: str | int) -> LongPrompt:
    """A description in a language; `seed` and `key` decide the wording."""
    spoken = language(code)
    assert isinstance(spoken, Language)
    sentence, _ = write(described, spoken.grammar, Draw(seed, *key, code), alone=False)
    head = spoken.fillers.head(Draw(seed, *key, code, "head"), "long")
    return LongPrompt(sentence, head + sentence, len(head))


@dataclass(frozen=True)
class EncodedTexts:
    """What a text encoder made of some texts, and the prior's predictions from it, on the CPU."""

    features: TextFeatures
    predicted: Float[Tensor, "N D"]
    cut: int
    """How many texts were truncated."""


def encode_texts(path: Pipeline, texts: Sequence[str], seed: int, progress: OnProgress) -> EncodedTexts:
    """Texts through text encoder and prior; the noise of a text is the same for every encoder."""
    assert path.text_encoder is not None and path.prior is not None
    noise = torch.randn(len(texts), path.text_encoder.width, generator=generator(seed, "text encoder", "noise"))
    order = sorted(range(len(texts)), key=lambda row: len(texts[row]))  # texts of similar length need little padding
    features, predicted, cut = [], [], 0
    for start in range(0, len(texts), CHUNK):
        rows = order[start : start + CHUNK]
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            found = path.text_encoder.encode_text([texts[row] for row in rows])
        cut += sum(str(one.message).startswith(CUT) for one in warned)
        with torch.no_grad():
            embeddings = path.prior.predict(found, noise=noise[rows].to(path.device))
        predicted.append(embeddings.float().cpu())
        features.append(found.to("cpu"))
        progress(len(rows))
    back = sorted(range(len(order)), key=order.__getitem__)
    return EncodedTexts(TextFeatures.cat(features)[back], torch.cat(predicted)[back], cut)


@dataclass(frozen=True)
class Material:
    """The short English captions and their images as CLIP embeds them."""

    pairs: Sequence[source.Pair]
    texts: Float[Tensor, "N D"]
    """CLIP's pooled embeddings of the captions."""
    states: Float[Tensor, "N P D"] | None
    """CLIP's states of the captions with all of their padding, if the adapter has as many queries as CLIP has positions."""
    images: Float[Tensor, "N D"]
    predicted: Float[Tensor, "N D"]
    """The prior's predictions from CLIP's features of the captions."""

    @staticmethod
    def of(subject: Subject, config: TextEncoderConfig, progress: OnProgress) -> "Material":
        pairs = caption_pairs(config.captions, config.seed)
        english, clip = [one.caption.text for one in pairs], subject.model.clip
        images = [
            clip.encode_image(source.pictures(list(pairs[start : start + CHUNK]), clip.image_size, clip.device)).cpu()
            for start in range(0, len(pairs), CHUNK)
        ]
        own = encode_texts(subject.paths[CLIP], english, config.seed, progress)
        states = None
        if subject.adapter.adapter.config.queries == clip.positions:
            parts = (english[start : start + CHUNK] for start in range(0, len(english), CHUNK))
            states = torch.cat([padded_states(clip, part).cpu() for part in parts])
        return Material(pairs, own.features.pooled, states, torch.cat(images), own.predicted)


def number_of_texts(config: TextEncoderConfig) -> int:
    """Texts that `caption_rows` and `tail_rows` encode, with the English captions."""
    of_captions = config.captions * (1 + 2 * len(LENGTHS) * len(config.languages))
    return of_captions + 3 * config.captions * (len(config.languages) + 1)


def caption_rows(
    subject: Subject, material: Material, config: TextEncoderConfig, progress: OnProgress
) -> list[dict[str, Any]]:
    """A row for each encoder, language and length: distances to CLIP's embeddings, and retrieval, with their controls.

    `mean_vector` and `shuffled` are the cosines to CLIP's embedding of the mean of all of them, and of another caption's.
    """
    own_text = ranks(material.texts, material.images)
    own_predicted = ranks(material.predicted, material.images)
    rows = []
    for reader, path in subject.paths.items():
        for code in config.languages:
            for length in LENGTHS:
                texts = captions_in(material.pairs, code, length, config.seed)
                found = encode_texts(path, texts, config.seed, progress)
                pooled = found.features.pooled
                row = {"reader": reader, "language": code, "length": length, "cut": found.cut}
                row |= _distances(found, material)
                row |= {
                    "to_text": recalls(ranks(pooled, material.texts)),
                    "to_text_shuffled": recalls(ranks(pooled.roll(1, 0), material.texts)),
                    "to_image": _against(ranks(pooled, material.images), own_text),
                    "predicted_to_image": _against(ranks(found.predicted, material.images), own_predicted),
                }
                rows.append(row)
    return rows


def _distances(found: EncodedTexts, material: Material) -> dict[str, float | None]:
    pooled, true = found.features.pooled, material.texts
    middle, predicted = true.mean(0, keepdim=True), material.predicted
    values: dict[str, float | None] = {
        "pooled_cosine": mean_cosine(pooled, true),
        "mean_vector": mean_cosine(middle.expand_as(true), true),
        "shuffled": mean_cosine(pooled.roll(1, 0), true),
        "norm_ratio": float((pooled.norm(dim=1) / true.norm(dim=1)).mean()),
        "predicted_cosine": mean_cosine(found.predicted, predicted),
        "predicted_mean_vector": mean_cosine(predicted.mean(0, keepdim=True).expand_as(true), predicted),
        "token_cosine": None,
    }
    if material.states is not None and found.features.states.shape == material.states.shape:
        values["token_cosine"] = float(F.cosine_similarity(found.features.states, material.states, dim=-1).mean())
    return {name: None if value is None else round(value, 4) for name, value in values.items()}


def _against(found: Int[Tensor, "N"], own: Int[Tensor, "N"]) -> dict[str, Any]:
    """Recalls, and R@1 with its interval as a part of CLIP's own for the short English captions."""
    hits = _hits(found)
    return recalls(found) | {"interval": interval(hits), "of_clip_english": share(hits, _hits(own))}


def _hits(found: Int[Tensor, "N"]) -> list[list[float]]:
    return [[float(rank == 0)] for rank in found.tolist()]


def tail_rows(
    subject: Subject, material: Material, config: TextEncoderConfig, progress: OnProgress
) -> list[dict[str, Any]]:
    """A row for each encoder and language (CLIP: English): are the last words of long prompts read?

    `changed` is the mean cosine of a long prompt's embedding to that of the same prompt with another's last sentence, `changed_most` the
    largest difference of any of their numbers. For CLIP, which truncates before the last sentence, they are 1 and 0.
    """
    rows = []
    for reader, path in subject.paths.items():
        for code in config.languages if reader == ADAPTER else (ENGLISH,):
            some = [
                long_prompt(one.caption.description, code, config.seed, "tail", i)
                for i, one in enumerate(material.pairs)
            ]
            sentences, longs = [one.sentence for one in some], [one.long for one in some]
            changed = [
                one.long[: one.head] + other for one, other in zip(some, [*sentences[1:], sentences[0]], strict=True)
            ]
            short, long, other = (
                encode_texts(path, texts, config.seed, progress) for texts in (sentences, longs, changed)
            )
            first, second, third = (one.features.pooled for one in (short, long, other))
            rows.append(
                {
                    "reader": reader,
                    "language": code,
                    "cut": long.cut,
                    **_tokens(subject, reader, longs),
                    "changed": round(mean_cosine(second, third), 4),
                    "changed_most": float((second - third).abs().max()),
                    "changed_short": round(mean_cosine(first, first.roll(-1, 0)), 4),
                    "to_text": _lengths(first, second, material.texts),
                    "to_image": _lengths(first, second, material.images),
                    "predicted_to_image": _lengths(short.predicted, long.predicted, material.images),
                }
            )
    return rows


def _tokens(subject: Subject, reader: str, texts: list[str]) -> dict[str, int | None]:
    """Fewest and most tokens of these texts."""
    encoder = subject.adapter.llm if reader == ADAPTER else subject.model.clip
    if isinstance(encoder, Llm):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=CUT)
            numbers = encoder.tokenize(texts).mask.sum(1).tolist()
    elif isinstance(encoder, Clip):
        numbers = [len(ids) + 2 for ids, _ in encoded(encoder.tokenizer, texts)]  # with start and end
    else:
        return {"fewest": None, "most": None}
    return {"fewest": min(numbers), "most": max(numbers)}


def _lengths(short: Tensor, long: Tensor, gallery: Tensor) -> dict[str, Any]:
    """Recalls of both, and R@1 of the long prompts as a part of that of the short ones."""
    first, second = ranks(short, gallery), ranks(long, gallery)
    return {"short": recalls(first), "long": recalls(second), "of_short": share(_hits(second), _hits(first))}


def checked_languages(model: TextToImage, wanted: Sequence[str] | None) -> tuple[str, ...]:
    """The languages to measure: those that the adapter was trained on, unless others are named.

    Raises:
        UserError: an unknown language, or one that is named twice.
    """
    if wanted is None:
        return tuple(code for code in LANGUAGES if code in model.languages)
    for code in wanted:
        language(code)
        if wanted.count(code) > 1:
            raise UserError(f"language {code!r} is named twice. Name each once. Known: {', '.join(LANGUAGES)}.")
    return tuple(wanted)
