"""Scoring priors of a loaded model on prompts of the embedded world, beside the controls that every table carries."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from syzygy.clip.clip_model import Clip
from syzygy.core.contracts import Prior, TextFeatures
from syzygy.core.errors import UserError
from syzygy.core.randomness import generator, seed_of
from syzygy.generation.text_to_image import TextToImage
from syzygy.lab.evaluate import composition, distance
from syzygy.lab.evaluate.bootstrap import difference, win_rate
from syzygy.lab.evaluate.composition import REFERENCE, Painted
from syzygy.lab.evaluate.predictions import Sampled
from syzygy.lab.starter.prior_training import embed
from syzygy.lab.world.prompts import Prompt, prompts
from syzygy.lab.world.reader import Reader
from syzygy.prior.baselines import TextIdentity
from syzygy.training.run_records import Bar, no_bar

IDENTITY, SHIFTED, SHUFFLED = "text identity", "text identity, shifted", "shuffled prompts"
NORM_PAIRS = 1024
CHUNK = 256


class Scoring(Sampled):
    """How pictures are made and how many are scored."""

    prompts: int = Field(default=200, gt=0)
    """Prompts a category, seen and held-out each, or as many as there are."""
    draws: int = Field(default=1, gt=0)
    """Pictures a prompt, each from noise of its own."""
    pairs: int = Field(default=5000, ge=0)
    """Pairs of the world that predicted embeddings are compared on; 0 leaves that out."""
    with_text: bool = False
    """Paint once more with the decoder reading the text states as well; text then slips past the prior."""


def asked(categories: Sequence[str], number: int, seed: int) -> list[Prompt]:
    """Prompts of each category, `number` seen and `number` that name a held-out composition, or as many as there are."""
    return [
        prompt
        for category in categories
        for held_out in (False, True)
        for prompt in prompts(category, number, seed_of(seed, "prompts", category), held_out, fewer=True)
    ]


def controls(model: TextToImage, seed: int) -> dict[str, Prior]:
    """Text-identity: the text embedding itself, at the images' mean norm; raw, and moved to the images' mean."""
    pairs = embed(model.clip, seed_of(seed, "mean norm"), NORM_PAIRS)
    fitted = pairs.captions.pooled, pairs.image_embeddings
    return {IDENTITY: TextIdentity.fit(*fitted), SHIFTED: TextIdentity.fit(*fitted, shifted=True)}


def candidates(
    model: TextToImage, priors: Mapping[str, Prior], wanted: Sequence[Prompt], seed: int, *, shuffled: str | None = None
) -> dict[str, Tensor]:
    """Embeddings of the prompts: the reference's, every prior's, and with `shuffled` that prior's for the wrong prompts."""
    if REFERENCE in priors:
        raise UserError(f"{REFERENCE!r} is the name of the true embeddings: give the prior another name.")
    features = model.encode_text([p.text for p in wanted])
    found = {REFERENCE: composition.reference_embeddings(wanted, model.clip, seed, model.clip.image_size)}
    found |= composition.predictions(wanted, features, priors, seed)
    if shuffled is not None:
        found[SHUFFLED] = found[shuffled][exchanged(wanted, seed)]
    return found


def exchanged(wanted: Sequence[Prompt], seed: int) -> list[int]:
    """For each prompt the index of another one of its category and side (its own where it is alone)."""
    groups: dict[tuple[str, bool], list[int]] = {}
    for i, prompt in enumerate(wanted):
        groups.setdefault((prompt.category, prompt.unseen), []).append(i)
    other = [0] * len(wanted)
    for key, rows in groups.items():
        order = torch.randperm(len(rows), generator=generator(seed, "shuffled", *map(str, key))).tolist()
        for place, nth in enumerate(order):
            other[rows[nth]] = rows[order[(place + 1) % len(rows)]]
    return other


def paint(
    model: TextToImage,
    embeddings: Mapping[str, Tensor],
    wanted: Sequence[Prompt],
    scoring: Scoring,
    progress: Callable[[int], None] = lambda done: None,
    *,
    features: TextFeatures | None = None,
) -> list[Painted]:
    """Pictures of every prompt from each candidate's embeddings, same noise, read and judged."""
    return composition.paint_and_judge(
        wanted,
        embeddings,
        model.pipeline,
        model.reader(),
        composition.Painting(scoring.seed, scoring.steps, scoring.guidance_scale, scoring.draws),
        features=features,
        progress=progress,
    )


@dataclass(frozen=True)
class Scores:
    """What `score` found."""

    painted: list[Painted]
    """The decoder reads the image embedding alone."""
    with_text: list[Painted]
    """The decoder reads the text states as well; empty unless asked for."""
    embeddings: dict[str, dict[str, float]]
    """Candidate → cosine, R@1 and Fréchet distance of predicted embeddings; empty without pairs."""
    pictures: dict[str, float]
    """Candidate → Fréchet distance of its pictures to renders, in the reader's features."""


def score(
    model: TextToImage, priors: Mapping[str, Prior], wanted: Sequence[Prompt], scoring: Scoring, bar: Bar = no_bar
) -> Scores:
    """Score priors and controls on the prompts. The first prior also answers shuffled prompts, the level of chance."""
    everyone = dict(priors) | controls(model, scoring.seed)
    distances = {}
    if scoring.pairs:
        distances = on_pairs(model, everyone, scoring, bar)
    found = candidates(model, everyone, wanted, scoring.seed, shuffled=next(iter(priors), None))
    features = model.encode_text([p.text for p in wanted])
    modes = []
    for text in (None, features)[: 1 + scoring.with_text]:
        with bar(
            "painting" if text is None else "painting, text read", len(wanted) * scoring.draws * len(found)
        ) as tell:
            modes.append(paint(model, found, wanted, scoring, tell, features=text))
    painted = modes[0]
    return Scores(
        painted, modes[1] if scoring.with_text else [], distances, on_pictures(model, painted, wanted, scoring)
    )


def on_pairs(
    model: TextToImage, priors: Mapping[str, Prior], scoring: Scoring, bar: Bar = no_bar
) -> dict[str, dict[str, float]]:
    """Predicted against true image embeddings, on unseen pairs whose captions tell less than the pictures show."""
    with bar("embedding", scoring.pairs) as progress:
        encoder = model.pipeline.text_encoder
        pairs = embed(model.clip, seed_of(scoring.seed, "pairs"), scoring.pairs, progress, encoder=encoder)
    true = pairs.image_embeddings
    noise = torch.randn(true.shape, generator=generator(scoring.seed, "pairs", "noise"))
    return {
        name: distance.embedding_scores(predict_all(prior, pairs.captions, noise), true)
        for name, prior in priors.items()
    }


def predict_all(prior: Prior, features: TextFeatures, noise: Tensor) -> Tensor:
    """Predictions for any number of texts, some at a time, on the CPU."""
    rows = (slice(start, start + CHUNK) for start in range(0, len(features), CHUNK))
    return torch.cat([prior.predict(features[part], noise=noise[part].to(features.pooled)).cpu() for part in rows])


def on_pictures(
    model: TextToImage, painted: Sequence[Painted], wanted: Sequence[Prompt], scoring: Scoring
) -> dict[str, float]:
    """Fréchet distance, in the reader's features, of each candidate's pictures to renders of the same prompts ("FID-reader").

    Empty with fewer pictures than features.
    """
    reader = model.reader()
    renders = composition.reference_pictures(wanted, scoring.seed, model.clip.image_size)
    true = _features(reader, renders)
    found = {}
    for name in dict.fromkeys(p.candidate for p in painted):
        first = [p.picture for p in painted if p.candidate == name and p.draw == 0]
        if len(first) > true.shape[1]:
            found[name] = distance.frechet_distance(_features(reader, torch.stack(first) / 255), true)
    return found


def _features(reader: Reader, pictures: Tensor) -> Tensor:
    device = next(reader.parameters()).device
    return torch.cat([reader.features(part.to(device)).cpu() for part in pictures.split(CHUNK)])


def prefer(
    model: TextToImage,
    two: Mapping[str, Prior],
    wanted: Sequence[Prompt],
    scoring: Scoring,
    progress: Callable[[int], None] = lambda done: None,
    *,
    pickscore: Clip | None = None,
) -> list[dict[str, Any]]:
    """How often the first prior's picture is preferred to the second's of the same prompt and noise, a row a judge and side.

    `agreement`: more named facts hold, by the reader. `clip_score`: larger cosine of picture and prompt, by the model's own CLIP,
    which trained the priors and so is no neutral judge. `pickscore`: the same by a CLIP trained on people's choices (arXiv 2305.01569).
    """
    found = candidates(model, two, wanted, scoring.seed)
    painted = paint(model, {name: found[name] for name in two}, wanted, scoring, progress)
    rows = []
    for held_out in (False, True):
        sides = [[p for p in painted if p.candidate == name and p.prompt.unseen == held_out] for name in two]
        if not sides[0]:
            continue
        judges = {"agreement": [composition.by_prompt(side, _facts) for side in sides]}
        for name, clip in (("clip_score", model.clip), ("pickscore", pickscore)):
            if clip is not None:
                judges[name] = [composition.clip_scores(side, clip) for side in sides]
        for judge, (first, second) in judges.items():
            rate = win_rate(first, second)
            pairs = [pair for one in zip(first, second, strict=True) for pair in zip(*one, strict=True)]
            rows.append(
                {
                    "judge": judge,
                    "held_out": held_out,
                    "prompts": rate.number,
                    "rate": round(rate.mean, 4),
                    "low": round(rate.low, 4),
                    "high": round(rate.high, 4),
                    "ties": round(sum(a == b for a, b in pairs) / len(pairs), 4),
                }
            )
    return rows


def _facts(one: Painted) -> float:
    return sum(atom.holds for atom in one.atoms) / len(one.atoms)


def against(scores: Scores, name: str) -> list[dict[str, Any]]:
    """Every candidate's agreement less that of `name`, on the same prompts and noise: paired intervals, seen and held-out apart."""
    rows = []
    for held_out in (False, True):
        side = [p for p in scores.painted if p.prompt.unseen == held_out]
        by = {c: [p for p in side if p.candidate == c] for c in dict.fromkeys(p.candidate for p in side)}
        if name not in by:
            continue
        base = composition.by_prompt(by[name], lambda one: float(one.agrees))
        for candidate, some in by.items():
            if candidate != name:
                found = difference(composition.by_prompt(some, lambda one: float(one.agrees)), base)
                row = {"candidate": candidate, "against": name, "held_out": held_out, "prompts": found.number}
                values = {"difference": found.mean, "low": found.low, "high": found.high}
                rows.append(row | {key: round(value, 4) for key, value in values.items()})
    return rows
