"""Does the picture hold what the prompt says? Exact scores on the embedded world, with controls and intervals.

Every prior is decoded from the same noise, the decoder reading the image embedding alone (as Kandinsky does): with text states
beside it, text would slip past the prior.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypedDict

import torch
from jaxtyping import Float
from torch import Tensor

from syzygy.errors import UserError
from syzygy.pipeline import Pipeline, conditioning_of
from syzygy.rng import Draw, generator
from syzygy.types import ImageEncoder, Prior, TextFeatures
from syzygy.world.description import Atom, judge
from syzygy.world.prompts import Prompt
from syzygy.world.reader import Reader
from syzygy.world.render import render
from syzygy.world.sample import scene_for

REFERENCE = "reference"
RESAMPLES = 2000
COUNTED = "numeracy"


@dataclass(frozen=True)
class Painted:
    """What one candidate made of one prompt."""

    candidate: str
    prompt: Prompt
    picture: Float[Tensor, "3 H W"]
    atoms: tuple[Atom, ...]

    @property
    def agrees(self) -> bool:
        """Whether every named atom holds."""
        return all(atom.holds for atom in self.atoms)


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float
    number: int
    """How many values it is the mean of."""

    def __str__(self) -> str:
        return f"{100 * self.mean:.0f} % [{100 * self.low:.0f}, {100 * self.high:.0f}]"


def reference_embeddings(
    prompts: Sequence[Prompt], encoder: ImageEncoder, seed: int, size: int
) -> Float[Tensor, "P D"]:
    """CLIP embeddings of pictures that show just what the prompts say: a reference, not an upper bound."""
    scenes = [scene_for(p.description, Draw(seed, "reference", p.text)) for p in prompts]
    return encoder.encode_image(render(scenes, size))


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
    *,
    seed: int,
    steps: int,
    guidance_scale: float,
    features: TextFeatures | None = None,
    batch_size: int = 32,
    progress: Callable[[int], None] = lambda done: None,
) -> list[Painted]:
    """Decode each candidate's embeddings, read the pictures, judge them against the prompts.

    Args:
        embeddings: candidate → embeddings of the prompts.
        features: where given, the decoder reads the prompts' text states as well.
        progress: told the number of pictures done since the last call.
    """
    conditions = ("image",) if features is None else ("image", "text")
    nothing = TextFeatures(torch.zeros(1, 1, 1), torch.zeros(1, 1, dtype=torch.bool), torch.zeros(1, 1))
    found = []
    for name, all_embeddings in embeddings.items():
        for start in range(0, len(prompts), batch_size):
            some = prompts[start : start + batch_size]
            part = all_embeddings[start : start + batch_size].to(pipeline.device)
            text = nothing if features is None else features[start : start + batch_size]
            pictures = pipeline.decode(
                conditioning_of(text, part, conditions),
                [generator(seed, "picture", p.text) for p in some],
                num_inference_steps=steps,
                guidance_scale=guidance_scale,
            )
            readings = reader.read(pictures)
            for prompt, picture, reading in zip(some, pictures.cpu(), readings, strict=True):
                atoms = judge(prompt.description, reading, exact_counts=prompt.category == COUNTED)
                found.append(Painted(name, prompt, picture, atoms))
            progress(len(some))
    return found


def interval(values: Sequence[float], seed: int = 0) -> Interval:
    """Mean and 95 % bootstrap interval over the values (one a prompt). Raises UserError for no values."""
    if not values:
        raise UserError("there is nothing to score: ask for at least one prompt.")
    x = torch.tensor(values, dtype=torch.float64)
    index = torch.randint(len(x), (RESAMPLES, len(x)), generator=generator(seed, "bootstrap", len(x)))
    low, high = x[index].mean(1).quantile(torch.tensor([0.025, 0.975], dtype=torch.float64))
    return Interval(float(x.mean()), float(low), float(high), len(x))


def difference(first: Sequence[Painted], second: Sequence[Painted], seed: int = 0) -> Interval:
    """Mean difference of agreement between two candidates on the same prompts, paired bootstrap over prompts."""
    assert [p.prompt for p in first] == [p.prompt for p in second], "paired: the same prompts in the same order"
    return interval([float(a.agrees) - float(b.agrees) for a, b in zip(first, second, strict=True)], seed)


def agreement(painted: Sequence[Painted]) -> Interval:
    """Share of pictures in which every named atom holds."""
    return interval([float(p.agrees) for p in painted])


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
                    and p.prompt.held_out == held_out
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
                        }
                    )
    return rows


def cell(row: Row | None) -> str:
    """A row's agreement and interval in per cent, for a table of text; empty for no row."""
    return f"{100 * row['agreement']:.0f} % [{100 * row['low']:.0f}, {100 * row['high']:.0f}]" if row else ""
