from dataclasses import replace
from pathlib import Path

import pytest
import torch

from syzygy.core.contracts import TextFeatures
from syzygy.core.errors import UserError
from syzygy.prior.diffusion_prior import causal_mask
from syzygy.prior.eclipse import EclipsePrior, EclipsePriorConfig
from syzygy.prior.embedding_statistics import EmbeddingStatistics
from tests.closeness import NETWORK, assert_close

WIDTH, TOKENS = 6, 5


@pytest.fixture
def prior() -> EclipsePrior:
    torch.manual_seed(0)
    config = EclipsePriorConfig(
        embedding_dim=WIDTH, num_layers=2, num_attention_heads=2, attention_head_dim=4, num_embeddings=TOKENS
    )
    prior = EclipsePrior(config)
    torch.nn.init.normal_(prior.positional_embedding)
    return prior


@pytest.fixture
def features() -> TextFeatures:
    torch.manual_seed(1)
    mask = torch.tensor([[1, 1, 1, 1, 0], [1, 1, 0, 0, 0]], dtype=torch.bool)
    return TextFeatures(torch.randn(2, TOKENS, WIDTH), mask, torch.randn(2, WIDTH))


def test_a_generator_draws_the_noise(prior: EclipsePrior, features: TextFeatures) -> None:
    by_generator = prior.predict(features, generator=torch.Generator().manual_seed(3))
    noise = torch.randn(2, WIDTH, generator=torch.Generator().manual_seed(3))
    assert torch.equal(by_generator, prior.predict(features, noise=noise))
    assert not torch.equal(by_generator, prior.predict(features))
    assert not by_generator.requires_grad


def test_half_precision_features_are_taken_in_the_priors_precision(prior: EclipsePrior, features: TextFeatures) -> None:
    half = features.to(dtype=torch.float16)
    predicted = prior.predict(half, noise=torch.zeros(2, WIDTH))
    assert predicted.dtype == torch.float32
    assert torch.equal(predicted, prior.predict(half.to(dtype=torch.float32), noise=torch.zeros(2, WIDTH)))


def test_padding_may_stand_anywhere_and_fill_a_whole_row(prior: EclipsePrior, features: TextFeatures) -> None:
    mask = torch.tensor([[0, 0, 1, 0, 1], [0, 0, 0, 0, 0]], dtype=torch.bool)
    noise = torch.randn(2, WIDTH)
    predicted = prior.predict(replace(features, mask=mask), noise=noise)
    assert torch.isfinite(predicted).all()
    nowhere = TextFeatures(features.states[1:, :0], mask[1:, :0], features.pooled[1:])
    assert_close(prior.predict(nowhere, noise=noise[1:])[0], predicted[1], depth=NETWORK)


def test_no_row_of_the_attention_mask_is_empty_and_no_other_token_reads_padding() -> None:
    """Backends of attention disagree about empty rows: zeros here, NaN there."""
    real = torch.tensor([[False, True, False, True]])
    expected = [[1, 0, 0, 0], [0, 1, 0, 0], [0, 1, 1, 0], [0, 1, 0, 1]]
    assert causal_mask(real)[0, 0].int().tolist() == expected


def test_a_prompt_longer_than_the_positions_is_refused_unless_the_rest_is_padding(
    prior: EclipsePrior, features: TextFeatures
) -> None:
    longer = TextFeatures.cat(
        [features, TextFeatures(torch.zeros(1, 7, WIDTH), torch.zeros(1, 7) > 0, features.pooled[:1])]
    )
    prior.predict(longer)
    mask = longer.mask.clone()
    mask[0] = True
    with pytest.raises(UserError, match=r"7 tokens.*at most 5"):
        prior.predict(replace(longer, mask=mask))


@pytest.mark.parametrize("name", ["states", "pooled", "noise"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_and_infinity_are_refused(prior: EclipsePrior, features: TextFeatures, name: str, value: float) -> None:
    bad = {"states": features.states, "pooled": features.pooled, "noise": torch.zeros(2, WIDTH)}
    bad[name].view(-1)[0] = value
    with pytest.raises(UserError, match="NaN or infinity"):
        prior.predict(replace(features, states=bad["states"], pooled=bad["pooled"]), noise=bad["noise"])


def test_other_wrong_arguments_are_named(prior: EclipsePrior, features: TextFeatures) -> None:
    with pytest.raises(UserError, match="both given"):
        prior.predict(features, noise=torch.zeros(2, WIDTH), generator=torch.Generator())
    with pytest.raises(UserError, match=r"\(3, 6\).*\(2, 6\)"):
        prior.predict(features, noise=torch.zeros(3, WIDTH))
    wide = TextFeatures(torch.zeros(2, 3, 8), features.mask[:, :3], torch.zeros(2, 8))
    with pytest.raises(UserError, match=f"8 wide.*{WIDTH}"):
        prior.predict(wide)


def test_statistics_are_required_before_saving(prior: EclipsePrior, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="set_statistics"):
        prior.save_pretrained(tmp_path / "prior")
    with pytest.raises(UserError, match=f"3 wide.*{WIDTH}"):
        prior.set_statistics(EmbeddingStatistics.of(torch.randn(9, 3)))
    statistics = EmbeddingStatistics.of(torch.randn(9, WIDTH))
    prior.set_statistics(statistics)
    prior.save_pretrained(tmp_path / "prior")
    loaded = EclipsePrior.from_pretrained(tmp_path / "prior")
    assert torch.equal(loaded.clip_mean[0], statistics.mean)
    assert torch.equal(loaded.clip_std[0], statistics.std)
    with torch.no_grad():
        prior.clip_std.zero_()  # as in some published priors, which are saved as they are
    prior.save_pretrained(tmp_path / "prior")
    assert not EclipsePrior.from_pretrained(tmp_path / "prior").has_statistics
