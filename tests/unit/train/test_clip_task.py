"""CLIP's loss: duplicates are no negatives, matched pairs are best, hard negatives count."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from syzygy.train.clip import ClipBatch, ClipTask, ClipTaskConfig, alignment, clip_loss, duplicates

PLACES = ((0, 0), (1, 1), (2, 2), (3, 2))
"""Row, and where its own text stands once the duplicates 0 and 3 are left out of each other's row."""


class Towers(nn.Module):
    """Embeds a picture as its mean colour and a text as its ids."""

    def forward(self, images: Tensor, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        text = torch.stack([ids[:, 0], ids[:, 1], ids.sum(1)], 1).float()
        return images.mean((2, 3)), text, torch.tensor(10.0)


def test_duplicates_are_marked_both_ways() -> None:
    ids = torch.tensor([[1, 2], [3, 4], [1, 2]])
    assert duplicates(ids).tolist() == [[False, False, True], [False] * 3, [True, False, False]]


def test_matched_is_lower_than_shuffled() -> None:
    random = torch.Generator().manual_seed(0)
    x = torch.randn(16, 8, generator=random)
    none = torch.zeros(16, 16, dtype=torch.bool)
    scale = torch.tensor(10.0)
    assert clip_loss(x, x, scale, none) < clip_loss(x, x.roll(1, 0), scale, none)


def test_masking_a_duplicate_equals_leaving_it_out() -> None:
    random = torch.Generator().manual_seed(0)
    image, text = torch.randn(4, 8, generator=random), torch.randn(4, 8, generator=random)
    text[3] = text[0]
    scale, same = torch.tensor(10.0), torch.zeros(4, 4, dtype=torch.bool)
    same[0, 3] = same[3, 0] = True
    logits = scale * F.normalize(image, dim=1) @ F.normalize(text, dim=1).T
    rows = [F.cross_entropy(logits[i, [j for j in range(4) if not same[i, j]]], torch.tensor(p)) for i, p in PLACES]
    columns = [F.cross_entropy(logits[[j for j in range(4) if not same[i, j]], i], torch.tensor(p)) for i, p in PLACES]
    assert float(clip_loss(image, text, scale, same)) == pytest.approx(float(sum(rows + columns)) / 8, rel=1e-5)
    assert clip_loss(image, text, scale, same) < clip_loss(image, text, scale, torch.zeros_like(same))


def test_labels_weigh_as_configured() -> None:
    """A tower whose embeddings are what they are: the total is contrast plus weighted sum over labels."""
    images, shown = torch.rand(4, 3, 2, 2), torch.tensor([[True, False, True]] * 4)
    batch = ClipBatch(images, torch.arange(8).view(4, 2), torch.ones(4, 2, dtype=torch.bool), shown)
    labelled = nn.Linear(3, 3)
    task = ClipTask(Towers(), labelled, lambda step: batch, batch, ClipTaskConfig(batch_size=4, label_weight=0.5))
    losses = task.loss(0)
    evidence = labelled(images.mean((2, 3)))
    by_hand = -(F.logsigmoid(torch.where(shown, evidence, -evidence))).sum(1).mean()
    assert float(losses["labels"].detach()) == pytest.approx(float(by_hand.detach()))
    assert float(losses["loss"].detach()) == pytest.approx(float((losses["contrastive"] + 0.5 * by_hand).detach()))
    losses["loss"].backward()
    assert labelled.weight.grad is not None


def test_alignment_of_known_vectors() -> None:
    x = torch.eye(4)
    assert alignment(x, 3 * x) == pytest.approx({"matched_cosine": 1.0, "mean_distance": 0.0, "recall_at_1": 1.0})
    swapped = alignment(x, x[[1, 0, 2, 3]])
    assert swapped["recall_at_1"] == pytest.approx(0.5)
    assert swapped["matched_cosine"] == pytest.approx(0.5)
