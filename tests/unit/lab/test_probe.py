"""The probe finds what embeddings hold, and only that."""

import torch

from syzygy.core.randomness import generator
from syzygy.lab.evaluate import probe as probes
from syzygy.lab.evaluate.probe import LABELS, fit_probe, found
from syzygy.lab.world import scene_source
from syzygy.lab.world.description import Description, Mention
from syzygy.lab.world.prompts import Prompt, prompts
from syzygy.lab.world.scene import Scene

MIX = torch.randn(len(LABELS), 96, generator=generator(0, "mix")) / 10


def embedded(scenes: list[Scene]) -> torch.Tensor:
    """Embeddings that hold every combination linearly, under noise."""
    labels = torch.tensor([probes._labels(scene) for scene in scenes])
    return labels @ MIX + 0.02 * torch.randn(len(scenes), 96, generator=generator(0, "noise", len(scenes)))


def of(prompt: Prompt) -> torch.Tensor:
    named = {(m.shape, m.colour) for m in prompt.description.mentions} | {
        (m.shape, m.texture) for m in prompt.description.mentions
    }
    return torch.tensor([float(label in named) for label in LABELS]) @ MIX


def test_what_is_there_is_found_and_what_is_not_is_not(monkeypatch) -> None:
    monkeypatch.setattr(probes, "STEPS", 400)
    scenes = [p.scene for p in scene_source.pairs(0, 0, 1500)]
    probe = fit_probe(embedded(scenes), scenes)
    asked = prompts("colour", 30, 0, False) + prompts("texture", 10, 0, True)
    true = torch.stack([of(p) for p in asked])
    right = found(probe, true, asked)
    assert all(share is not None for share in right)
    assert sum(filter(None, right)) / len(right) > 0.9
    wrong = found(probe, true.roll(7, 0), asked)
    assert sum(share or 0 for share in wrong) / len(wrong) < 0.3


def test_only_named_combinations_count() -> None:
    bare = Prompt("shape", "a circle", Description((Mention("circle"),)), False)
    counted = Prompt("numeracy", "two red circles", Description((Mention("circle", "red", None, 2),)), False)
    probe = probes.Probe(
        probes.EmbeddingStatistics(torch.zeros(4), torch.ones(4), 1.0),
        torch.zeros(len(LABELS), 4),
        torch.zeros(len(LABELS)),
    )
    assert found(probe, torch.zeros(2, 4), [bare, counted]) == [None, None]
