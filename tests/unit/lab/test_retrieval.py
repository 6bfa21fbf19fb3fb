"""Ranks and recalls: of what is found, of chance, of what is all the same."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from syzygy.lab.evaluate.bootstrap import share
from syzygy.lab.evaluate.retrieval import ranks, ranks_among, recalls


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


@given(st.integers(2, 30), st.integers(1, 12), st.integers(0, 99))
def test_ranks_among_count_the_wrong_ones_before_the_nearest_right_one(queries: int, size: int, seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    asked, gallery = torch.randn(queries, 5, generator=random), torch.randn(size, 5, generator=random)
    right = torch.rand(queries, size, generator=random) < 0.3
    right[torch.arange(queries), torch.randint(size, (queries,), generator=random)] = True
    found = ranks_among(asked, gallery, right)
    order = torch.nn.functional.cosine_similarity(asked[:, None], gallery[None], dim=-1).argsort(1, descending=True)
    assert found.tolist() == [right[i][order[i]].tolist().index(True) for i in range(queries)]


def test_a_wrong_one_as_near_stands_first_and_further_right_ones_do_not_count() -> None:
    gallery = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    asked = torch.tensor([[1.0, 0.0]])
    assert ranks_among(asked, gallery, torch.tensor([[True, False, False]])).tolist() == [1]
    assert ranks_among(asked, gallery, torch.tensor([[True, True, True]])).tolist() == [0]
