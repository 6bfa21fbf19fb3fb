import pytest
import torch

from syzygy.core.errors import UserError
from syzygy.prior.embedding_statistics import EmbeddingStatistics
from tests.closeness import assert_close


def test_measures_each_dimension_and_the_norm() -> None:
    statistics = EmbeddingStatistics.of(torch.tensor([[3.0, 4.0], [0.0, 1.0]], dtype=torch.float16))
    assert statistics.mean.tolist() == [1.5, 2.5]
    assert_close(statistics.std, torch.tensor([4.5, 4.5]).sqrt())
    assert statistics.mean_norm == 3.0


def test_refuses_what_would_make_predictions_vanish_or_explode() -> None:
    good = torch.randn(10, 3, generator=torch.Generator().manual_seed(0))
    with pytest.raises(UserError, match="at least 2"):
        EmbeddingStatistics.of(good[:1])
    with pytest.raises(UserError, match="NaN"):
        EmbeddingStatistics.of(good.masked_fill(good == good[4, 1], float("nan")))
    with pytest.raises(UserError, match="1 of 3"):
        EmbeddingStatistics.of(torch.cat([good[:, :2], torch.full((10, 1), 0.1)], dim=1))
    with pytest.raises(UserError, match="norm"):
        EmbeddingStatistics(good[0], good[1].abs(), 0.0)
