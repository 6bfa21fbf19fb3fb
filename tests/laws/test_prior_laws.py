"""Laws of the prior and its contrastive loss."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from syzygy.core.contracts import TextFeatures
from syzygy.core.packed_attention import PackedText
from syzygy.prior.baselines import TextIdentity
from syzygy.prior.eclipse import EclipsePrior, contrastive_loss
from syzygy.prior.residual_prior import ResidualPrior
from tests.closeness import NETWORK, assert_close

WIDTH, TOKENS = 8, 6
seeds = st.integers(0, 2**31)


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module", params=[EclipsePrior, ResidualPrior])
def prior(request: pytest.FixtureRequest) -> EclipsePrior:
    sizes = {"num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 4}
    prior = request.param(request.param.config_class(embedding_dim=WIDTH, num_embeddings=TOKENS, **sizes))
    if isinstance(prior, ResidualPrior):
        prior.set_identity(TextIdentity(2.0, normal(9, WIDTH)))
    with torch.no_grad():
        for i, parameter in enumerate(prior.parameters()):
            parameter.copy_(0.5 * normal(i, *parameter.shape))
    return prior


@st.composite
def prompts(draw: st.DrawFn) -> TextFeatures:
    """One to four prompts; any position may be padding."""
    masks = draw(st.lists(st.lists(st.booleans(), min_size=TOKENS, max_size=TOKENS), min_size=1, max_size=4))
    seed = draw(seeds)
    states, pooled = normal(seed, len(masks), TOKENS, WIDTH), normal(seed + 1, len(masks), WIDTH)
    return TextFeatures(states, torch.tensor(masks), pooled)


@settings(max_examples=30)
@given(prompts(), st.sampled_from([0.0, 1e4, -3e38, float("inf"), float("nan")]))
def test_what_padding_holds_has_exactly_no_influence(prior: EclipsePrior, features: TextFeatures, pad: float) -> None:
    noise = normal(0, len(features), WIDTH)
    other = replace(features, states=features.states.masked_fill(~features.mask[..., None], pad))
    assert torch.equal(prior.predict(features, noise=noise), prior.predict(other, noise=noise))


@settings(max_examples=30)
@given(prompts())
def test_a_batch_equals_its_samples_and_dropped_pads_equal_kept_ones(
    prior: EclipsePrior, features: TextFeatures
) -> None:
    """A full-length prompt in the batch keeps the pads of the others; alone, each is trimmed to its own length."""
    longest = TextFeatures(normal(7, 1, TOKENS, WIDTH), torch.ones(1, TOKENS) > 0, normal(8, 1, WIDTH))
    features = TextFeatures.cat([features, longest])
    noise = normal(0, len(features), WIDTH)
    together = prior.predict(features, noise=noise)
    for i in range(len(features)):
        alone = prior.predict(features[i : i + 1], noise=noise[i : i + 1])
        assert_close(alone, together[i : i + 1], depth=NETWORK)


@settings(max_examples=30)
@given(prompts())
def test_every_input_that_is_not_padding_counts(prior: EclipsePrior, features: TextFeatures) -> None:
    states, pooled = features.states.clone().requires_grad_(), features.pooled.clone().requires_grad_()
    noise = normal(0, len(features), WIDTH).requires_grad_()
    prior(PackedText.of(TextFeatures(states, features.mask, pooled)), noise).square().sum().backward()
    for read in (pooled.grad, noise.grad):
        assert read is not None
        assert (read.abs().sum(-1) > 0).all()
    read = torch.zeros_like(features.mask) if states.grad is None else states.grad.abs().sum(-1) > 0
    assert torch.equal(read, features.mask)


@given(seeds, st.integers(2, 9))
def test_contrastive_loss_ignores_the_order_of_the_batch(seed: int, size: int) -> None:
    predicted, text = normal(seed, size, WIDTH), normal(seed + 1, size, WIDTH)
    ids = torch.arange(size) // 2
    order = torch.randperm(size, generator=torch.Generator().manual_seed(seed))
    shuffled = contrastive_loss(predicted[order], text[order], 14.3, ids[order])
    assert_close(shuffled, contrastive_loss(predicted, text, 14.3, ids), largest=14.3)


@given(seeds, st.integers(2, 9), st.integers(1, 8))
def test_contrastive_loss_is_lower_when_matched_than_when_shuffled(seed: int, size: int, shift: int) -> None:
    text = normal(seed, size, WIDTH)
    predicted = text + 0.01 * normal(seed + 1, size, WIDTH)
    ids = torch.arange(size)
    moved = text.roll(1 + shift % (size - 1), 0)
    assert contrastive_loss(predicted, text, 14.3, ids) < contrastive_loss(predicted, moved, 14.3, ids)


@given(seeds, st.lists(st.integers(0, 3), min_size=1, max_size=9))
def test_masked_duplicates_are_as_if_they_were_not_there(seed: int, captions: list[int]) -> None:
    ids = torch.tensor(captions)
    text, predicted = normal(seed, 4, WIDTH)[ids], normal(seed + 1, len(ids), WIDTH)
    terms = []
    for i in range(len(ids)):
        negatives = text[ids != ids[i]]
        logits = 14.3 * torch.cosine_similarity(predicted[i], torch.cat([text[i : i + 1], negatives]))
        terms.append(torch.logsumexp(logits, 0) - logits[0])
    assert_close(contrastive_loss(predicted, text, 14.3, ids), torch.stack(terms).mean(), largest=14.3)
