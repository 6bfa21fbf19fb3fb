import pytest
import torch
from torch import Tensor, nn

from syzygy.core.config import parse
from syzygy.core.contracts import Condition, Conditioning, image_condition
from syzygy.core.errors import UserError
from syzygy.core.randomness import generator
from syzygy.decoder.network import Decoder, DecoderConfig, SlotConfig
from tests.closeness import NETWORK, assert_close

SLOTS = (
    SlotConfig(name="image", pooled_width=6, pooled_tokens=4),
    SlotConfig(name="text", token_width=5, pooled_width=6),
    SlotConfig(name="t5", token_width=7),
)
CONFIG = DecoderConfig(slots=SLOTS, cross_attention_width=8, vector_width=10, size=16, channels=3)


class Echo(nn.Module):
    """A backbone that returns its latents and remembers what it was given."""

    def forward(self, x: Tensor, c_noise: Tensor, tokens: Tensor, mask: Tensor, vector: Tensor) -> Tensor:
        self.shapes = [tuple(y.shape) for y in (x, c_noise, tokens, mask, vector)]
        return x


def decoder() -> Decoder:
    torch.manual_seed(0)
    made = Decoder(CONFIG, Echo())
    made.set_scale("image", 3.0)
    made.set_scale("text", 2.0)
    return made


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=generator(0, *shape))


def image(batch: int = 2, width: int = 6) -> Condition:
    return image_condition(normal(batch, width))


def text(lengths: list[int]) -> Condition:
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return Condition(torch.ones(len(mask), dtype=torch.bool), normal(*mask.shape, 5), mask, normal(len(mask), 6))


def test_latents_and_all_tokens_reach_the_backbone() -> None:
    made, x = decoder(), normal(2, 3, 16, 16)
    assert torch.equal(made(x, torch.zeros(2), Conditioning({"image": image(), "text": text([3, 9])})), x)
    tokens = 1 + (1 + 4) + (1 + 9) + 1
    assert made.backbone.shapes == [(2, 3, 16, 16), (2,), (2, tokens, 8), (2, tokens), (2, 10)]


def test_null_tokens_stand_in_for_what_is_absent() -> None:
    made = decoder()
    shown, read = image().kept(torch.tensor([True, False])), text([1, 3]).kept(torch.tensor([False, True]))
    tokens = made.tokens(Conditioning({"image": shown, "text": read}), 2)
    #            always  image: null, 4 tokens        text: null, states      t5: null
    assert tokens.mask_BT.int().tolist() == [
        [1, *[0, 1, 1, 1, 1], *[1, 0, 0, 0], 1],
        [1, *[1, 0, 0, 0, 0], *[0, 1, 1, 1], 1],
    ]
    assert torch.equal(tokens.states_BTC[1, 1], made.slots["image"].null_token)
    assert read.pooled is not None
    expected = made.slots["image"].null_vector + made.slots["text"].vector_in(read.pooled[1] / 2)
    assert_close(tokens.vector_BV[1], expected)
    nothing = made.tokens(Conditioning({}), 2)
    assert nothing.mask_BT.all()
    assert nothing.mask_BT.shape == (2, 4)
    assert_close(nothing.vector_BV[0], made.slots["image"].null_vector + made.slots["text"].null_vector)


def test_pooled_embeddings_are_divided_by_the_scale_of_their_slot() -> None:
    made, condition = decoder(), image()
    assert condition.pooled is not None
    vector = made.tokens(Conditioning({"image": condition}), 2).vector_BV - made.slots["text"].null_vector
    assert_close(vector, made.slots["image"].vector_in(condition.pooled / 3))


def test_hidden_nan_does_not_leak() -> None:
    made = decoder()
    condition = text([1, 3])
    assert condition.states is not None
    assert condition.mask is not None
    assert condition.pooled is not None
    spoilt = Condition(
        torch.tensor([True, False]),
        condition.states.masked_fill(~condition.mask[..., None], torch.nan),
        condition.mask,
        torch.stack([condition.pooled[0], torch.full((6,), torch.nan)]),
    )
    tokens = made.tokens(Conditioning({"text": spoilt}), 2)
    assert torch.isfinite(tokens.states_BTC).all()
    assert torch.isfinite(tokens.vector_BV).all()


def test_half_precision_embeddings_are_read() -> None:
    half = Condition(torch.ones(2, dtype=torch.bool), pooled=normal(2, 6).half())
    assert decoder().tokens(Conditioning({"image": half}), 2).vector_BV.dtype == torch.float32


def test_a_scale_must_be_set_before_use_and_only_once() -> None:
    made = Decoder(CONFIG, Echo())
    with pytest.raises(UserError, match="scale of condition 'image' is unset"):
        made.tokens(Conditioning({}), 1)
    with pytest.raises(UserError, match=r"positive and finite, got -1.0"):
        made.set_scale("image", -1.0)
    with pytest.raises(UserError, match="'t5' has no pooled"):
        made.set_scale("t5", 1.0)
    with pytest.raises(UserError, match="Did you mean 'image'"):
        made.set_scale("imag", 1.0)
    made.set_scale("image", 2.0)
    with pytest.raises(AssertionError, match="already"):
        made.set_scale("image", 2.0)


@pytest.mark.parametrize(
    ("name", "condition", "message"),
    [
        ("imgae", image(), "unknown condition 'imgae'. Did you mean 'image'"),
        ("image", image(width=9), "'image': pooled vectors have width 9, this decoder reads width 6"),
        ("t5", text([2, 2]), "'t5': token states have width 5, this decoder reads width 7"),
        ("text", image(), r"'text' lacks token states, which this decoder reads \(of width 5\)"),
        ("image", image(batch=3), "'image' has 3 samples, the images have 2"),
    ],
)
def test_wrong_conditions_are_named(name: str, condition: Condition, message: str) -> None:
    with pytest.raises(UserError, match=message):
        decoder()(normal(2, 3, 16, 16), torch.zeros(2), Conditioning({name: condition}))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"slots": [{"name": "x"}]}, "'x' reads nothing"),
        ({"slots": [{"name": "x", "token_width": 3, "pooled_tokens": 2}]}, "needs a pooled_width"),
        ({"slots": [{"name": "a+b", "token_width": 3}]}, "slots.0.name"),
        ({"slots": [{"name": "x", "token_width": 3}] * 2}, "names must differ"),
        ({"slots": [], "size": 15}, "multiple of 2"),
        ({"slots": [], "backbone": {"channels": [32, 32, 32]}}, "attention has 2 entries, channels 3"),
        ({"slots": [], "backbone": {"channels": [24, 96]}}, "norm_groups 16 does not divide 24"),
        ({"slots": [], "backbone": {"channels": [64, 80]}}, "head_width 32 does not divide 80"),
    ],
)
def test_config_refuses_what_does_not_fit(settings: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse(DecoderConfig, settings, "test")


def test_standardised_states_do_not_depend_on_what_all_tokens_share() -> None:
    slot = SlotConfig(name="t5", token_width=6, standardized=True)
    config = DecoderConfig.model_validate(CONFIG.model_dump() | {"slots": [slot.model_dump()]})
    states, everywhere = normal(50, 6), torch.ones(2, 5, dtype=torch.bool)
    found = []
    for shift, scale in ((0.0, 1.0), (7.0, torch.tensor([1.0, 2, 3, 4, 5, 6]))):
        torch.manual_seed(0)
        made = Decoder(config, Echo())
        made.set_statistics("t5", states * scale + shift)
        some = (states * scale + shift)[:10].reshape(2, 5, 6)
        condition = Condition(everywhere[:, 0], some, everywhere)
        found.append(made.tokens(Conditioning({"t5": condition}), 2).states_BTC)
    assert_close(found[0], found[1], depth=NETWORK)
    assert found[0][:, 2:].std() > 1


def test_statistics_must_be_set() -> None:
    slot = SlotConfig(name="t5", token_width=6, standardized=True)
    made = Decoder(DecoderConfig.model_validate(CONFIG.model_dump() | {"slots": [slot.model_dump()]}), Echo())
    with pytest.raises(UserError, match="statistics of condition 't5' are unset"):
        made.tokens(Conditioning({}), 2)
    with pytest.raises(UserError, match="T5"):
        made.set_statistics("T5", normal(9, 6))
    with pytest.raises(ValueError, match="standardized needs a token_width"):
        SlotConfig(name="t5", pooled_width=6, standardized=True)


def test_a_channel_that_never_changes_tells_nothing() -> None:
    slot = SlotConfig(name="t5", token_width=6, standardized=True)
    made = Decoder(DecoderConfig.model_validate(CONFIG.model_dump() | {"slots": [slot.model_dump()]}), Echo())
    states, everywhere = normal(50, 6), torch.ones(2, 5, dtype=torch.bool)
    states[:, 2] = 4.0
    made.set_statistics("t5", states)
    condition = Condition(everywhere[:, 0], states[:10].reshape(2, 5, 6), everywhere)
    assert made.tokens(Conditioning({"t5": condition}), 2).states_BTC.isfinite().all()
