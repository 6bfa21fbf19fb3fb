import math

import pytest
import torch

from syzygy.core.errors import UserError
from syzygy.prior.eclipse import contrastive_loss, eclipse_loss, projection_loss
from tests.closeness import about, assert_close


def test_projection_is_the_mean_squared_error() -> None:
    predicted, image = torch.tensor([[1.0, 2.0], [0.0, 0.0]]), torch.tensor([[0.0, 0.0], [3.0, 0.0]])
    assert projection_loss(predicted, image).item() == pytest.approx((1 + 4 + 9) / 4)


def test_contrastive_is_the_papers_sum_in_one_direction() -> None:
    torch.manual_seed(0)
    predicted, text, scale = 3 * torch.randn(4, 5), 2 * torch.randn(4, 5), 7.0

    def cosine(i: int, j: int) -> float:
        return (predicted[i] @ text[j] / predicted[i].norm() / text[j].norm()).item()

    terms = [
        math.log(math.exp(scale * cosine(i, i)) / sum(math.exp(scale * cosine(i, j)) for j in range(4)))
        for i in range(4)
    ]
    assert contrastive_loss(predicted, text, scale, torch.arange(4)).item() == about(-sum(terms) / 4)


def test_a_part_of_the_batch_is_contrasted_with_all_texts() -> None:
    torch.manual_seed(0)
    predicted, text, ids = torch.randn(6, 5), torch.randn(6, 5), torch.tensor([0, 1, 2, 0, 4, 1])
    whole = contrastive_loss(predicted, text, 7.0, ids)
    parts = [contrastive_loss(predicted[i : i + 2], text, 7.0, ids, i) for i in (0, 2, 4)]
    assert torch.stack(parts).mean().item() == about(whole.item())


def test_contrastive_is_not_rounded_under_autocast() -> None:
    torch.manual_seed(0)
    predicted, text, ids = torch.randn(8, 64), torch.randn(8, 64), torch.arange(8)
    expected = contrastive_loss(predicted, text, 100.0, ids)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(contrastive_loss(predicted, text, 100.0, ids), expected)


def test_a_logit_scale_that_is_not_positive_is_refused() -> None:
    with pytest.raises(UserError, match="logit_scale"):
        contrastive_loss(torch.ones(2, 3), torch.ones(2, 3), 0.0, torch.arange(2))


def test_eclipse_weighs_its_parts() -> None:
    torch.manual_seed(0)
    predicted, image, text, ids = (
        torch.randn(4, 5, requires_grad=True),
        torch.randn(4, 5),
        torch.randn(4, 5),
        torch.arange(4),
    )
    loss = eclipse_loss(predicted, image, text, lambda_contrastive=0.3, logit_scale=10.0, caption_ids=ids)
    assert torch.equal(loss.projection, projection_loss(predicted, image))
    assert torch.equal(loss.contrastive, contrastive_loss(predicted, text, 10.0, ids))
    assert_close(loss.total, loss.projection + 0.3 * loss.contrastive)
    alone = eclipse_loss(predicted, image, text, lambda_contrastive=0.0, logit_scale=10.0, caption_ids=ids)
    (gradient,) = torch.autograd.grad(alone.total, predicted)
    assert_close(gradient, 2 * (predicted - image).detach() / predicted.numel())
