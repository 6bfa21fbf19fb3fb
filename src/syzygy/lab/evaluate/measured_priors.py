"""The priors that `evaluate prior` measures on an embedding store, and what they predict.

Legend: M captions, D width of CLIP's joint space.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from syzygy.core.contracts import Prior, TextFeatures
from syzygy.core.errors import UserError
from syzygy.core.randomness import generator
from syzygy.data.store import EmbeddingStore
from syzygy.lab.evaluate.held_out import Past, Truth, past_of, record_of
from syzygy.prior.lambda_eclipse import LambdaEclipsePrior
from syzygy.prior.prior_folders import PART, find_prior
from syzygy.prior.prior_loading import load_prior
from syzygy.training.checkpoints import METRICS_FILE, read_lines

BATCH = 256


@dataclass(frozen=True)
class StoreClip:
    """The CLIP that made a store, as far as the store records it."""

    store: EmbeddingStore

    @property
    def width(self) -> int:
        return self.store.width

    def fingerprint(self) -> str:
        return self.store.encoder["fingerprint"]

    def encode_text(self, texts: list[str]) -> TextFeatures:
        """Only the empty text."""
        assert texts == [""], "a store holds the features of the empty text alone"
        return self.store.empty_text().padded()


@dataclass(frozen=True)
class MeasuredPrior:
    """A prior under comparison."""

    prior: Prior
    source: str
    past: Past
    metrics: list[dict[str, Any]]
    """The lines of its run's metrics.jsonl; empty if there is none."""


def measured(source: str, store: EmbeddingStore, device: str) -> MeasuredPrior:
    """A prior and what is known about its training; `source` as in `load_prior`.

    Raises:
        UserError: as `load_prior`; it belongs to another CLIP than the store, or reads subjects, which the store lacks.
    """
    prior = load_prior(source, StoreClip(store), device)
    if isinstance(prior, LambdaEclipsePrior):
        if (zero := store.zero_image) is None:
            raise UserError(
                f"{source} is a prior that reads subjects, and {store.path} holds none. Measure it on a store of `syzygy embed --subjects`."
            )
        prior.zero_image = lambda: zero
    folder = find_prior(source)
    lines = folder.parent / METRICS_FILE
    metrics = read_lines(lines) if folder.name == PART and lines.is_file() else []
    return MeasuredPrior(prior, source, past_of(record_of(folder), store), metrics)


@torch.no_grad()
def predictions(prior: Prior, truth: Truth, seed: int, progress: Callable[[int], None]) -> Float[Tensor, "M D"]:
    """For all held-out captions, from the same noise for every prior; one that reads subjects reads them, without a layout."""
    noise = torch.randn(len(truth), truth.pairs.width, generator=generator(seed, "evaluate prior"))
    found = []
    for index in truth.everything.split(BATCH):
        features = truth.pairs.text(index).padded().to(dtype=torch.float32)
        more: dict[str, Any] = {}
        if isinstance(prior, LambdaEclipsePrior) and (references := truth.pairs.references(index)) is not None:
            more = {"references": replace(references, control=None)}
        found.append(prior.predict(features, noise=noise[index], **more).float().cpu())
        progress(len(index))
    return torch.cat(found)
