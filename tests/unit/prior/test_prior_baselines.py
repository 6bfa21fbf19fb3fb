import pytest
import torch

from syzygy.core.contracts import TextFeatures
from syzygy.core.errors import UserError
from syzygy.prior.baselines import TextIdentity
from tests.closeness import assert_close


def features_of(pooled: torch.Tensor) -> TextFeatures:
    return TextFeatures(torch.zeros(len(pooled), 2, 4), torch.ones(len(pooled), 2) > 0, pooled)


def test_keeps_the_direction_of_the_text_at_the_norm_of_images() -> None:
    torch.manual_seed(0)
    text, images = torch.randn(9, 4), 5 * torch.randn(20, 4)
    prior = TextIdentity.fit(text, images)
    predicted = prior.predict(features_of(text))
    assert_close(predicted.norm(dim=-1), images.norm(dim=-1).mean().expand(9))
    assert_close(torch.cosine_similarity(predicted, text), torch.ones(9))
    assert torch.equal(predicted, prior.predict(features_of(text), generator=torch.Generator()))


def test_shifted_texts_have_the_mean_of_the_images() -> None:
    torch.manual_seed(0)
    text, images = torch.randn(9, 4), 5 * torch.randn(20, 4) + 3
    plain, shifted = TextIdentity.fit(text, images), TextIdentity.fit(text, images, shifted=True)
    moved = shifted.predict(features_of(text))
    assert_close(moved.mean(0), images.mean(0))
    difference = moved - plain.predict(features_of(text))
    assert_close(difference, difference[:1].expand(9, 4))


def test_checks_its_arguments_as_the_prior_does() -> None:
    images = torch.randn(20, 4)
    prior = TextIdentity.fit(images, images, shifted=True)
    with pytest.raises(UserError, match="NaN"):
        prior.predict(features_of(torch.full((2, 4), float("nan"))))
    with pytest.raises(UserError, match="both given"):
        prior.predict(features_of(images), noise=images, generator=torch.Generator())
    with pytest.raises(UserError, match=r"3 wide.*4"):
        prior.predict(TextFeatures(torch.zeros(2, 1, 3), torch.ones(2, 1) > 0, torch.zeros(2, 3)))
