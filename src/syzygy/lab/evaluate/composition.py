"""Does the picture hold what the prompt says? Exact scores on the embedded world, with controls and intervals.

Every prior is decoded from the same noise, the decoder reading the image embedding alone (as Kandinsky does): with text states
beside it, text would slip past the prior.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypedDict, runtime_checkable

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from syzygy.core.contracts import Guide, ImageEncoder, Prior, Sampling, TextEncoder, TextFeatures
from syzygy.core.randomness import Draw, generator
from syzygy.generation.pipeline import Pipeline, to_uint8
from syzygy.lab.evaluate.bootstrap import Interval, interval
from syzygy.lab.world.description import Fact, check_facts, extra_things
from syzygy.lab.world.prompts import Prompt
from syzygy.lab.world.reader import Reader
from syzygy.lab.world.render import render
from syzygy.lab.world.scene_sampling import scene_for

REFERENCE = "reference"
BATCH = 32
COUNTED = "numeracy"


@dataclass(frozen=True)
class Painted:
    """What one candidate made of one prompt."""

    candidate: str
    prompt: Prompt
    draw: int
    """Which of the prompt's noises it was painted from."""
    picture: UInt8[Tensor, "3 H W"]
    atoms: tuple[Fact, ...]
    extra: int
    """Things in the picture that the prompt does not name."""

    @property
    def agrees(self) -> bool:
        """Whether every named atom holds."""
        return all(atom.holds for atom in self.atoms)


@runtime_checkable
class ClipJudge(ImageEncoder, TextEncoder, Protocol):
    """Both towers of a CLIP."""


@dataclass(frozen=True)
class Painting:
    """How every candidate's embeddings are decoded."""

    seed: int
    steps: int
    guidance_scale: float
    draws: int = 1
    """Pictures a prompt, each from noise of its own."""


def reference_embeddings(
    prompts: Sequence[Prompt], encoder: ImageEncoder, seed: int, size: int
) -> Float[Tensor, "P D"]:
    """CLIP embeddings of pictures that show just what the prompts say: a reference, not an upper bound."""
    return torch.cat([encoder.encode_image(x) for x in reference_pictures(prompts, seed, size).split(8 * BATCH)])


def reference_pictures(prompts: Sequence[Prompt], seed: int, size: int) -> Float[Tensor, "P 3 H W"]:
    """Renders, in [0, 1], of scenes that show just what the prompts say; what they leave open is drawn at random."""
    scenes = [scene_for(p.description, Draw(seed, "reference", p.text)) for p in prompts]
    return torch.cat([render(scenes[i : i + BATCH], size) for i in range(0, len(scenes), BATCH)])


def predictions(
    prompts: Sequence[Prompt], features: TextFeatures, priors: Mapping[str, Prior], seed: int
) -> dict[str, Float[Tensor, "P D"]]:
    """Every prior's embeddings of the prompts, from the same noise."""
    width = features.pooled.shape[1]
    draws = [torch.randn(width, generator=generator(seed, "epsilon", p.text)) for p in prompts]
    noise = torch.stack(draws).to(features.pooled)
    return {name: prior.predict(features, noise=noise) for name, prior in priors.items()}


@torch.inference_mode()
def paint_and_judge(
    prompts: Sequence[Prompt],
    embeddings: Mapping[str, Float[Tensor, "P D"]],
    pipeline: Pipeline,
    reader: Reader,
    how: Painting,
    *,
    features: TextFeatures | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> list[Painted]:
    """Decode each candidate's embeddings, read the pictures, judge them against the prompts.

    Args:
        embeddings: candidate → embeddings of the prompts.
        how: all candidates start from the same noise.
        features: where given, the decoder reads the prompts' text states as well.
        progress: told the number of pictures done since the last call.
    """
    asked = [(row, draw) for row in range(len(prompts)) for draw in range(how.draws)]
    found = []
    for name, all_embeddings in embeddings.items():
        for start in range(0, len(asked), BATCH):
            some = asked[start : start + BATCH]
            rows = [row for row, _ in some]
            pictures = pipeline.decoder.generate(
                Guide(all_embeddings[rows], None if features is None else features[rows]),
                [generator(how.seed, "picture", prompts[row].text, draw) for row, draw in some],
                sampling=Sampling(steps=how.steps, guidance_scale=how.guidance_scale),
            )
            for (row, draw), picture, reading in zip(some, to_uint8(pictures), reader.read(pictures), strict=True):
                prompt = prompts[row]
                atoms = check_facts(prompt.description, reading, exact_counts=prompt.category == COUNTED)
                extra = extra_things(prompt.description, reading)
                found.append(Painted(name, prompt, draw, picture, atoms, extra))
            progress(len(some))
    return found


def by_prompt(painted: Sequence[Painted], score: Callable[[Painted], float]) -> list[list[float]]:
    """A score of every picture, those of one prompt together: what intervals are made of."""
    rows: dict[str, list[float]] = {}
    for one in painted:
        rows.setdefault(one.prompt.text, []).append(score(one))
    return list(rows.values())


def agreement(painted: Sequence[Painted]) -> Interval:
    """Share of pictures in which every named atom holds."""
    return interval(by_prompt(painted, lambda one: float(one.agrees)))


def clip_scores(painted: Sequence[Painted], clip: ClipJudge) -> list[list[float]]:
    """Cosine of each picture's embedding with its prompt's, those of one prompt together (Hessel et al. 2021, unscaled)."""
    scores: list[float] = []
    for start in range(0, len(painted), 8 * BATCH):
        some = painted[start : start + 8 * BATCH]
        image = clip.encode_image(torch.stack([p.picture for p in some]) / 255)
        text = clip.encode_text([p.prompt.text for p in some]).pooled
        scores += torch.nn.functional.cosine_similarity(image, text).tolist()
    of = {id(p): value for p, value in zip(painted, scores, strict=True)}
    return by_prompt(painted, lambda one: of[id(one)])


def by_kind(painted: Sequence[Painted]) -> dict[str, float]:
    """Share of the atoms of each kind (shape, colour, texture, relation, count, style) that hold."""
    kinds: dict[str, list[bool]] = {}
    for one in painted:
        for atom in one.atoms:
            kinds.setdefault(atom.kind, []).append(atom.holds)
    return {kind: sum(held) / len(held) for kind, held in kinds.items()}


class Row(TypedDict):
    """One line of a table, as plain JSON values; shares are in [0, 1]."""

    candidate: str
    category: str
    held_out: bool
    prompts: int
    agreement: float
    low: float
    high: float
    atoms: dict[str, float]
    extra: float
    """Things a picture that its prompt does not name."""


def table(painted: Sequence[Painted]) -> list[Row]:
    """A row a candidate and category (and all categories), seen and held-out prompts apart."""
    rows: list[Row] = []
    candidates = list(dict.fromkeys(p.candidate for p in painted))
    categories = [*dict.fromkeys(p.prompt.category for p in painted), "all"]
    for candidate in candidates:
        for category in categories:
            for held_out in (False, True):
                some = [
                    p
                    for p in painted
                    if p.candidate == candidate
                    and p.prompt.unseen == held_out
                    and category in (p.prompt.category, "all")
                ]
                if some:
                    score = agreement(some)
                    rows.append(
                        {
                            "candidate": candidate,
                            "category": category,
                            "held_out": held_out,
                            "prompts": score.number,
                            "agreement": round(score.mean, 4),
                            "low": round(score.low, 4),
                            "high": round(score.high, 4),
                            "atoms": {kind: round(share, 4) for kind, share in by_kind(some).items()},
                            "extra": round(sum(p.extra for p in some) / len(some), 4),
                        }
                    )
    return rows


def cell(row: Row | None) -> str:
    """A row's agreement and interval in per cent, for a table of text; empty for no row."""
    return f"{100 * row['agreement']:.0f} % [{100 * row['low']:.0f}, {100 * row['high']:.0f}]" if row else ""
