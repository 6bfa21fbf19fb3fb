"""How the experiments on priors score embeddings and generate images, and the same prompts, pairs and noise for every prior."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from syzygy.clip.clip_model import Clip
from syzygy.core.contracts import Prior, TextFeatures
from syzygy.core.packed_attention import PackedText
from syzygy.core.randomness import generator, seed_of
from syzygy.generation.text_to_image import TextToImage
from syzygy.lab.evaluate import distance, probe
from syzygy.lab.evaluate.composition import (
    REFERENCE,
    CompositionConfig,
    candidate_embeddings,
    generate_and_score,
    predict_all,
)
from syzygy.lab.evaluate.harness import evaluation_prompts
from syzygy.lab.evaluate.probe import Probe
from syzygy.lab.reproduce.experiment import CATEGORIES, ExperimentFolder, trained_probe
from syzygy.lab.starter import prior_training
from syzygy.lab.world.prompts import Prompt
from syzygy.prior.embedding_pairs import PriorData
from syzygy.training.run_records import Bar, no_bar

PROMPTS = ("single", *CATEGORIES)
"""Categories of the prompts: one object, then two or more."""
OBJECTS = {"": None, "_one": 1, "_two": 2}
"""End of the name of a probe's score → the number of objects in its prompts."""


@dataclass(frozen=True)
class EmbeddingScorer:
    """Unseen pairs of the embedded world, prompts, and a linear probe of CLIP's space."""

    pairs: PriorData
    probe: Probe
    prompts: list[Prompt]
    features: TextFeatures
    """Of the prompts."""
    seed: int
    """Seed of the noise."""

    @staticmethod
    def prepare(clip: Clip, *, prompts: int, pairs: int, probe_scenes: int, seed: int) -> "EmbeddingScorer":
        """Choose the prompts (of each category and side), embed the pairs, train the probe."""
        wanted = evaluation_prompts(PROMPTS, prompts, seed)
        return EmbeddingScorer(
            prior_training.embed(clip, seed_of(seed, "pairs"), pairs),
            trained_probe(clip, probe_scenes, seed),
            wanted,
            clip.encode_text([p.text for p in wanted]),
            seed,
        )

    def scores(self, prior: Prior) -> dict[str, float]:
        """Cosine, R@1 and Fréchet distance on unseen pairs, and the combinations of the prompts that the probe finds."""
        pairs, prompts = self._predict(prior, self.pairs.captions), self._predict(prior, self.features)
        return distance.embedding_scores(pairs, self.pairs.image_embeddings) | self.probed(prompts)

    def of_reference(self, model: TextToImage, seed: int) -> dict[str, float]:
        """What the probe finds in the true embeddings of scenes that show what the prompts name."""
        return self.probed(candidate_embeddings(model, {}, self.prompts, seed)[REFERENCE])

    def probed(self, embeddings: Tensor) -> dict[str, float]:
        """The mean share of the prompts' named combinations that the probe finds, for seen and unseen compositions, and for prompts with one
        object and with two. Prompts that count are left out."""
        shares = probe.found(self.probe, embeddings.cpu(), self.prompts)
        known = [(share, prompt) for share, prompt in zip(shares, self.prompts, strict=True) if share is not None]
        scores = {}
        for name, unseen in (("probe_seen", False), ("probe_held_out", True)):
            for suffix, objects in OBJECTS.items():
                some = [
                    share
                    for share, prompt in known
                    if prompt.unseen == unseen and objects in (None, len(prompt.description.mentions))
                ]
                scores[name + suffix] = sum(some) / len(some)
        return scores

    def _predict(self, prior: Prior, features: TextFeatures | PackedText) -> Tensor:
        """Predictions for all rows, from noise that is the same for every prior."""
        noise = torch.randn(features.pooled.shape, generator=generator(self.seed, "reproduce", len(features)))
        return predict_all(prior, features, noise)


def generate_once(
    folder: ExperimentFolder,
    model: TextToImage,
    prompts: list[Prompt],
    name: str,
    prior: Callable[[], Prior] | None,
    config: CompositionConfig,
    bar: Bar = no_bar,
    *,
    measure: Callable[[Prior | None], Mapping[str, Any]] = lambda prior: {},
) -> None:
    """Generate and classify an image of each prompt, unless the folder has those of this name from these CLIP and decoder.

    Args:
        prior: loads the prior; None for the reference, under its own name.
        measure: takes the prior and returns what else is kept with the images, as JSON values.
    """
    weights = {part: model.fingerprints().get(part) for part in ("clip", "decoder", "autoencoder")}
    if folder.has_images(name, weights=weights):
        return
    loaded = None if prior is None else prior()
    found = candidate_embeddings(model, {} if loaded is None else {name: loaded}, prompts, config.seed)
    with bar(f"generating {name}", len(prompts)) as progress:
        scored = generate_and_score(model, {name: found[name]}, prompts, config, progress)
    folder.keep_images(name, scored, prompts, weights=weights, **measure(loaded))
