"""Ranks and recalls: of what is found, of chance, of what is all the same."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from syzygy.evals.bootstrap import share
from syzygy.evals.retrieval import ranks, recalls


@given(st.integers(2, 40), st.integers(0, 99))
def test_ranks_are_places_by_cosine(number: int, seed: int) -> None:
    queries, gallery = torch.randn(2, number, 6, generator=torch.Generator().manual_seed(seed))
    found = ranks(queries, gallery)
    order = torch.nn.functional.cosine_similarity(queries[:, None], gallery[None], dim=-1).argsort(1, descending=True)
    assert found.tolist() == [order[i].tolist().index(i) for i in range(number)]
    assert torch.equal(
        ranks(3 * queries, gallery * torch.arange(1, number + 1)[:, None]), found
    )  # lengths do not matter
    assert not ranks(gallery, gallery).any()


def test_what_tells_nothing_apart_is_last() -> None:
    same = torch.ones(12, 4)
    assert ranks(same, torch.ones(12, 4)).tolist() == [11] * 12
    assert recalls(ranks(same, torch.ones(12, 4))) == {"R@1": 0, "R@5": 0, "R@10": 0}
    assert recalls(torch.tensor([0, 3, 7, 90])) == {"R@1": 0.25, "R@5": 0.5, "R@10": 0.75}


def test_a_share_is_paired() -> None:
    first, second = [[1.0]] * 30 + [[0.0]] * 70, [[1.0]] * 60 + [[0.0]] * 40
    found = share(first, second)
    assert found is not None
    assert (found.mean, found.number) == (pytest.approx(0.5), 100)
    crossed = share(first, second[::-1])
    assert crossed is not None
    assert crossed.high - crossed.low > 1.2 * (found.high - found.low)  # one lies in the other, or beside it
    equal = share(second, second)
    assert equal is not None
    assert (equal.low, equal.high) == (1, 1)
    assert share(first, [[0.0]] * 100) is None
