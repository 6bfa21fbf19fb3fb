"""CLIP's loss: duplicates are no negatives, matched pairs are best, hard negatives count."""

import torch

from syzygy.clip.training import alignment, clip_loss, duplicates
from tests.closeness import NETWORK, about


def test_duplicates_are_marked_once_each_way() -> None:
    ids = torch.tensor([[1, 2], [3, 4], [1, 2], [3, 4]])
    same = duplicates(ids, 2)
    assert same.tolist() == [[False, False, True, False], [False, False, False, True]]


def test_matched_is_lower_than_shuffled() -> None:
    random = torch.Generator().manual_seed(0)
    x = torch.randn(16, 8, generator=random)
    none = torch.zeros(16, 16, dtype=torch.bool)
    scale = torch.tensor(10.0)
    assert clip_loss(x, x, scale, none) < clip_loss(x, x.roll(1, 0), scale, none)


def test_masking_a_duplicate_equals_leaving_it_out() -> None:
    random = torch.Generator().manual_seed(0)
    image, text = torch.randn(4, 8, generator=random), torch.randn(4, 8, generator=random)
    extra = torch.cat([text, text[:1]])  # a hard negative that equals caption 0
    same = torch.zeros(4, 5, dtype=torch.bool)
    same[0, 4] = True
    logits = 10 * torch.nn.functional.normalize(image, dim=1) @ torch.nn.functional.normalize(extra, dim=1).T
    row = torch.nn.functional.cross_entropy(logits[:1, :4], torch.tensor([0]))
    whole = clip_loss(image, extra, torch.tensor(10.0), same)
    masked = torch.nn.functional.cross_entropy(logits.masked_fill(same, float("-inf"))[:1], torch.tensor([0]))
    assert masked == about(float(row), depth=NETWORK)
    assert torch.isfinite(whole)
    assert whole < clip_loss(image, extra, torch.tensor(10.0), torch.zeros_like(same))


def test_alignment_of_known_vectors() -> None:
    x = torch.eye(4)
    assert alignment(x, 3 * x) == about({"matched_cosine": 1.0, "mean_distance": 0.0, "recall_at_1": 1.0})
    swapped = alignment(x, x[[1, 0, 2, 3]])
    assert swapped["recall_at_1"] == about(0.5)
    assert swapped["matched_cosine"] == about(0.5)
