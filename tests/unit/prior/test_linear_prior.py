"""The linear map: the closed form, in blocks, saved and refused."""

from pathlib import Path

import numpy as np
import pytest
import torch

from syzygy.core import artifacts
from syzygy.core.contracts import TextFeatures
from syzygy.core.errors import UserError
from syzygy.prior.embedding_pairs import PriorData
from syzygy.prior.linear_prior import LinearPrior, LinearPriorConfig
from tests.closeness import assert_close

WIDTH = 6


def new_data(number: int = 50, dtype: torch.dtype = torch.float32, noise: float = 0.0) -> PriorData:
    """Images that are an affine function of the texts, with noise."""
    draw = torch.Generator().manual_seed(0)
    pooled = torch.randn(number, WIDTH, generator=draw) @ torch.randn(WIDTH, WIDTH, generator=draw) + 2
    images = pooled @ torch.randn(WIDTH, WIDTH, generator=draw) - 1 + noise * torch.randn(number, WIDTH, generator=draw)
    features = TextFeatures(torch.zeros(number, 2, WIDTH), torch.ones(number, 2) > 0, pooled)
    index = torch.arange(number)
    return PriorData(images.to(dtype), features.to(dtype=dtype), index, index)


@pytest.mark.parametrize("ridge", [1e-6, 1e-2, 1.0])
def test_it_is_numpys_ridge_regression(ridge: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("syzygy.prior.embedding_pairs.SUMMED", 7)
    data = new_data(noise=0.5)
    x, y = (t.numpy().astype(np.float64) for t in (data.captions.pooled, data.image_embeddings))
    variance = x.var(0).mean()
    centred = x - x.mean(0)
    gram = centred.T @ centred + len(x) * ridge * variance * np.eye(WIDTH)
    weight = np.linalg.solve(gram, centred.T @ (y - y.mean(0)))
    expected = (x - x.mean(0)) @ weight + y.mean(0)
    prior = LinearPrior.fit(data, ridge)
    assert_close(prior.predict(data.captions), torch.from_numpy(expected).float(), depth=10)
    # the same as an ordinary least squares problem with more rows
    rows = np.concatenate([centred, np.sqrt(len(x) * ridge * variance) * np.eye(WIDTH)])
    least, *_ = np.linalg.lstsq(rows, np.concatenate([y - y.mean(0), np.zeros((WIDTH, WIDTH))]), rcond=None)
    np.testing.assert_allclose(prior.weight.numpy(), least.T, rtol=1e-4, atol=1e-4)


def test_it_finds_the_map_behind_the_pairs_and_ignores_noise() -> None:
    data = new_data()
    prior = LinearPrior.fit(data, 1e-9)
    noise = torch.randn(50, WIDTH)
    assert_close(prior.predict(data.captions, noise=noise), data.image_embeddings, depth=10)
    assert torch.equal(prior.predict(data.captions, noise=noise), prior.predict(data.captions))


def test_more_regularisation_leaves_the_mean_image() -> None:
    data = new_data(noise=1.0)
    predicted = LinearPrior.fit(data, 1e9).predict(data.captions)
    assert_close(predicted, data.image_embeddings.mean(0).expand(50, -1), depth=10)


def test_fewer_pairs_than_dimensions_are_enough() -> None:
    data = new_data()
    few = PriorData(data.image_embeddings, data.captions[:3], torch.arange(3), torch.arange(3))
    assert torch.isfinite(LinearPrior.fit(few).predict(data.captions)).all()


def test_half_precision_pairs_are_summed_in_float64() -> None:
    whole, half = LinearPrior.fit(new_data(noise=1.0)), LinearPrior.fit(new_data(dtype=torch.float16, noise=1.0))
    assert half.weight.dtype == torch.float32
    assert_close(half.weight, whole.weight, depth=10, dtype=torch.float16)


def test_what_is_saved_predicts_the_same(tmp_path: Path) -> None:
    prior, data = LinearPrior.fit(new_data(noise=1.0)), new_data()
    prior.save_pretrained(tmp_path / "prior", {"clip": "x"})
    assert artifacts.read_json(tmp_path / "prior/config.json") == {"_class_name": "LinearPrior", "embedding_dim": WIDTH}
    loaded = LinearPrior.from_pretrained(tmp_path / "prior")
    assert torch.equal(loaded.predict(data.captions), prior.predict(data.captions))
    assert loaded.fingerprint() == prior.fingerprint()


def test_wrong_input_is_named(tmp_path: Path) -> None:
    data = new_data()
    one = PriorData(data.image_embeddings, data.captions[:1], torch.arange(1), torch.arange(1))
    with pytest.raises(UserError, match="at least 2 pairs, got 1"):
        LinearPrior.fit(one)
    same = PriorData(data.image_embeddings, data.captions[[0] * 4], torch.arange(4), torch.arange(4))
    with pytest.raises(UserError, match="all text embeddings are equal"):
        LinearPrior.fit(same)
    prior = LinearPrior.fit(data)
    with pytest.raises(UserError, match=f"8 wide, but {WIDTH} is needed"):
        prior.predict(TextFeatures(torch.zeros(2, 1, 8), torch.ones(2, 1) > 0, torch.zeros(2, 8)))
    with pytest.raises(UserError, match="NaN"):
        prior.predict(data.captions, noise=torch.full((50, WIDTH), float("nan")))
    prior.save_pretrained(tmp_path / "prior")
    tensors = artifacts.read_tensors(tmp_path / "prior/model.safetensors")
    artifacts.write_tensors(tmp_path / "prior/model.safetensors", tensors | {"weight": torch.zeros(2, 2)})
    with pytest.raises(UserError, match=r"do not fit LinearPrior: weight has shape \(2, 2\)"):
        LinearPrior.from_pretrained(tmp_path / "prior")
    assert LinearPriorConfig(embedding_dim=3).embedding_dim == 3
