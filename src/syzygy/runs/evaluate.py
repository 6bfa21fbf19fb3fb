"""Scoring priors of a loaded model on prompts of the embedded world, beside the controls that every table carries."""

from collections.abc import Callable, Mapping, Sequence

from pydantic import Field

from syzygy.api import TextToImage
from syzygy.config import Config
from syzygy.errors import UserError
from syzygy.evals import composition
from syzygy.evals.composition import REFERENCE, Painted
from syzygy.prior.baselines import TextIdentity
from syzygy.rng import seed_of
from syzygy.runs.prior import embed
from syzygy.types import Prior
from syzygy.world.prompts import Prompt, prompts

IDENTITY = "text identity"
NORM_PAIRS = 1024


class Scoring(Config):
    """How pictures are made and how many are scored."""

    prompts: int = Field(default=40, gt=0)
    """Prompts a category, seen and held-out each."""
    steps: int = Field(default=25, gt=0)
    """Sampling steps."""
    guidance_scale: float = Field(default=2.0, ge=0, allow_inf_nan=False)
    """Guidance; 1 means off."""
    with_text: bool = False
    """Let the decoder read the text states as well; text then slips past the prior."""
    seed: int = 0
    """Prompts, scenes and noise follow from it."""


def asked(categories: Sequence[str], number: int, seed: int) -> list[Prompt]:
    """Prompts of each category, `number` seen and `number` that name a held-out composition, or as many as there are."""
    return [
        prompt
        for category in categories
        for held_out in (False, True)
        for prompt in prompts(category, number, seed_of(seed, "prompts", category), held_out, fewer=True)
    ]


def text_identity(model: TextToImage, seed: int) -> TextIdentity:
    """The control that takes the text embedding itself, rescaled to the images' mean norm."""
    pairs = embed(model.clip, seed_of(seed, "mean norm"), NORM_PAIRS)
    return TextIdentity.fit(pairs.captions.pooled, pairs.image_embeddings)


def paint(
    model: TextToImage,
    priors: Mapping[str, Prior],
    wanted: Sequence[Prompt],
    scoring: Scoring,
    progress: Callable[[int], None] = lambda done: None,
) -> list[Painted]:
    """One picture of every prompt from the reference embedding and from each prior's, same noise, read and judged."""
    if REFERENCE in priors:
        raise UserError(f"{REFERENCE!r} is the name of the true embeddings: give the prior another name.")
    features = model.clip.encode_text([p.text for p in wanted])
    embeddings = {REFERENCE: composition.reference_embeddings(wanted, model.clip, scoring.seed, model.clip.image_size)}
    embeddings |= composition.predictions(wanted, features, priors, scoring.seed)
    return composition.paint_and_judge(
        wanted,
        embeddings,
        model.pipeline,
        model.reader(),
        composition.Painting(scoring.seed, scoring.steps, scoring.guidance_scale),
        features=features if scoring.with_text else None,
        progress=progress,
    )
