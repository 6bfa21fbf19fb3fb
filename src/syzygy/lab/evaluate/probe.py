"""A linear probe: which combinations does an image embedding contain? Trained on true embeddings, applied to predicted ones."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from syzygy.core.randomness import generator
from syzygy.lab.evaluate.harness import COUNTED
from syzygy.lab.world.prompts import Prompt
from syzygy.lab.world.scene import COLOURS, SHAPES, TEXTURES, Scene
from syzygy.prior.embedding_statistics import EmbeddingStatistics

LABELS: tuple[tuple[str, str], ...] = (*product(SHAPES, COLOURS), *product(SHAPES, TEXTURES))
"""The combinations: shape with colour, shape with texture."""
COLOURED = len(SHAPES) * len(COLOURS)
STEPS, BATCH, RATE, DECAY = 1500, 512, 5e-3, 1e-2


@dataclass(frozen=True)
class Probe:
    """A logistic regression for each label, on whitened embeddings."""

    statistics: EmbeddingStatistics
    weight: Float[Tensor, "K D"]
    bias: Float[Tensor, "K"]

    def logits(self, embeddings: Float[Tensor, "B D"]) -> Float[Tensor, "B K"]:
        """Evidence for each of `LABELS`."""
        return F.linear((embeddings - self.statistics.mean) / self.statistics.std, self.weight, self.bias)


def fit_probe(embeddings: Float[Tensor, "N D"], scenes: Sequence[Scene], seed: int = 0) -> Probe:
    """Train on true embeddings of scenes, with every combination among them, unseen ones too."""
    statistics = EmbeddingStatistics.of(embeddings)
    x = (embeddings.float() - statistics.mean) / statistics.std
    y = torch.tensor([_labels(scene) for scene in scenes])
    weight = torch.zeros(len(LABELS), x.shape[1], requires_grad=True)
    bias = torch.full((len(LABELS),), -3.0, requires_grad=True)
    optimizer = torch.optim.AdamW([weight, bias], lr=RATE, weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    random = generator(seed, "probe")
    with torch.enable_grad():
        for _ in range(STEPS):
            rows = torch.randint(len(x), (BATCH,), generator=random)
            optimizer.zero_grad()
            F.binary_cross_entropy_with_logits(F.linear(x[rows], weight, bias), y[rows]).backward()
            optimizer.step()
            schedule.step()
    return Probe(statistics, weight.detach(), bias.detach())


def _labels(scene: Scene) -> list[float]:
    held = {(t.shape, t.colour) for t in scene.things} | {(t.shape, t.texture) for t in scene.things}
    return [float(label in held) for label in LABELS]


def found(probe: Probe, embeddings: Float[Tensor, "P D"], prompts: Sequence[Prompt]) -> list[float | None]:
    """For each prompt the part of its k named combinations that are among the probe's k strongest; None if none is named.

    Shape × colour and shape × texture are ranked separately. Prompts that count name none that a probe of presence can find.
    """
    logits = probe.logits(embeddings)
    return [_share(row, prompt) for row, prompt in zip(logits, prompts, strict=True)]


def _share(logits: Tensor, prompt: Prompt) -> float | None:
    mentions = prompt.description.mentions
    families = (
        (LABELS[:COLOURED], logits[:COLOURED], {(m.shape, m.colour) for m in mentions if m.colour}),
        (LABELS[COLOURED:], logits[COLOURED:], {(m.shape, m.texture) for m in mentions if m.texture}),
    )
    hits = named = 0
    for labels, evidence, wanted in families:
        strongest = {labels[i] for i in evidence.topk(len(wanted)).indices.tolist()} if wanted else set()
        hits += len(wanted & strongest)
        named += len(wanted)
    return hits / named if named and prompt.category != COUNTED else None
