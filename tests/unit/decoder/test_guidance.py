import math

import pytest
import torch
from torch import Tensor

from syzygy.core.contracts import Condition, Conditioning, TextFeatures, image_condition, text_condition
from syzygy.core.errors import UserError
from syzygy.decoder.guidance import Guided, StyleGuided, joined
from tests.closeness import NETWORK, assert_close

X, SIGMA = torch.zeros(2, 3, 4, 4), torch.ones(2)


class Reader:
    """A denoiser that answers with the image embedding's first number where present, else −1; counts its calls."""

    calls = 0

    def __call__(self, x: Tensor, sigma: Tensor, conditioning: Conditioning) -> Tensor:
        self.calls += 1
        assert len(x) == len(sigma)
        condition = conditioning.conditions["image"]
        assert condition.pooled is not None
        answer = torch.where(condition.present, condition.pooled[:, 0], -1.0)
        return answer[:, None, None, None].expand_as(x)


def image(*values: float) -> Conditioning:
    return Conditioning({"image": image_condition(torch.tensor(values)[:, None])})


def text(batch: int, length: int, value: float = 1.0) -> Condition:
    mask = torch.ones(batch, length, dtype=torch.bool)
    return text_condition(TextFeatures(torch.full((batch, length, 4), value), mask, torch.full((batch, 4), value)))


@pytest.mark.parametrize(("scale", "expected"), [(0.0, [-1, -1]), (3.0, [11, 14]), (0.5, [1, 1.5])])
def test_moves_from_the_dropped_branch_in_one_call(scale: float, expected: list[float]) -> None:
    reader = Reader()
    found = Guided(reader, scale)(X, SIGMA, image(3.0, 4.0))
    assert found[:, 0, 0, 0].tolist() == expected
    assert reader.calls == 1


def test_negative_replaces_the_dropped_branch() -> None:
    found = Guided(Reader(), 2.0, negative=image(1.0, 2.0))(X, SIGMA, image(3.0, 4.0))
    assert found[:, 0, 0, 0].tolist() == [5, 6]


def test_one_negative_serves_the_whole_batch() -> None:
    found = Guided(Reader(), 2.0, negative=image(1.0))(X, SIGMA, image(3.0, 4.0))
    assert found[:, 0, 0, 0].tolist() == [5, 7]


def test_negative_without_a_condition_means_absent() -> None:
    found = Guided(Reader(), 2.0, negative=Conditioning({"text": text(1, 3)}))(X, SIGMA, image(3.0, 4.0))
    assert found[:, 0, 0, 0].tolist() == [7, 9]


@pytest.mark.parametrize("scale", [-0.1, math.nan, math.inf])
def test_refuses_scales(scale: float) -> None:
    with pytest.raises(UserError, match="guidance scale"):
        Guided(Reader(), scale)


def test_refuses_a_negative_without_effect() -> None:
    with pytest.raises(UserError, match="no effect"):
        Guided(Reader(), 1.0, negative=image(1.0))


def test_refuses_a_negative_of_another_batch_size() -> None:
    with pytest.raises(UserError, match="'image' has 2 and 3 samples"):
        Guided(Reader(), 2.0, negative=image(1.0, 2.0, 3.0))(X, SIGMA, image(3.0, 4.0))


def test_joined_pads_the_shorter_text() -> None:
    both = joined(Conditioning({"text": text(2, 3, 1.0)}), Conditioning({"text": text(2, 5, 2.0)}), 2).conditions[
        "text"
    ]
    assert both.states is not None
    assert both.mask is not None
    assert both.pooled is not None
    assert both.mask.sum(1).tolist() == [3, 3, 5, 5]
    assert both.states[:, :, 0].sum(1).tolist() == [3, 3, 10, 10]
    assert both.pooled[:, 0].tolist() == [1, 1, 2, 2]
    assert both.present.all()


def test_joined_marks_what_one_side_lacks_as_absent() -> None:
    both = joined(image(1.0, 2.0), Conditioning({"text": text(2, 3)}), 2)
    assert both.conditions["image"].present.tolist() == [True, True, False, False]
    assert both.conditions["text"].present.tolist() == [False, False, True, True]


def test_joined_refuses_different_parts() -> None:
    other = Conditioning({"text": image_condition(torch.zeros(2, 4))})
    with pytest.raises(UserError, match="'text' and its negative must both"):
        joined(Conditioning({"text": text(2, 3)}), other, 2)


def test_style_has_a_scale_of_its_own() -> None:
    present = torch.ones(2, dtype=torch.bool)
    image, text = (Condition(present, pooled=torch.full((2, 1), value)) for value in (5.0, 1.0))
    both = Conditioning({"image": image, "text": text})

    def told(x, sigma, conditioning):
        level = x.new_zeros(len(x))
        for condition in conditioning.conditions.values():
            level = level + condition.pooled[:, 0] * condition.present
        return x + level[:, None, None, None]

    x, sigma = torch.zeros(2, 1, 1, 1), torch.ones(2)
    # 0 + 3·(1 − 0) + 2·(6 − 1)
    assert StyleGuided(told, 3.0, 2.0)(x, sigma, both).flatten().tolist() == [13.0, 13.0]
    away = Conditioning({"text": Condition(present[:1], pooled=torch.full((1, 1), -1.0))})
    # −1 + 3·(1 + 1) + 2·(6 − 1)
    assert StyleGuided(told, 3.0, 2.0, away)(x, sigma, both).flatten().tolist() == [15.0, 15.0]
    for negative in (None, away):
        equal, plain = (
            guided(x, sigma, both) for guided in (StyleGuided(told, 3.0, 3.0, negative), Guided(told, 3.0, negative))
        )
        assert_close(equal, plain, depth=NETWORK)
    with pytest.raises(UserError, match="style guidance scale"):
        StyleGuided(told, 1.0, -1.0)
