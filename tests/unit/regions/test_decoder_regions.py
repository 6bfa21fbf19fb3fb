"""Paint-with-words in a real U-Net: our decoder's."""

import pytest
import torch
from torch import Tensor

from syzygy.core.contracts import Condition, Conditioning, image_condition
from syzygy.core.randomness import generator
from syzygy.decoder.backbone import build_decoder
from syzygy.decoder.guidance import Guided
from syzygy.decoder.network import Decoder, DecoderConfig, SlotConfig, UNetConfig
from syzygy.decoder.preconditioning import Preconditioned
from tests.closeness import NETWORK, assert_close

CONFIG = DecoderConfig(
    slots=(
        SlotConfig(name="image", pooled_width=6, pooled_tokens=2),
        SlotConfig(name="text", token_width=6),
        SlotConfig(name="t5", token_width=4),
    ),
    cross_attention_width=16,
    vector_width=16,
    size=8,
    channels=3,
    backbone=UNetConfig(channels=(16, 32), attention=(True, True), head_width=8, norm_groups=8),
)
WIDTHS = {"text": 6, "t5": 4}


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=generator(0, *shape))


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    made = build_decoder(CONFIG, seed=0).eval().requires_grad_(False)
    made.set_scale("image", 1.0)
    weight = made.get_parameter("backbone.unet.conv_out.weight")
    weight.copy_(0.1 * normal(*weight.shape))
    return made


def read(batch: int, painted: dict[str, Tensor] | None = None) -> Conditioning:
    present = torch.ones(batch, dtype=torch.bool)
    texts = {
        name: Condition(
            present, normal(4, 5, width)[:batch], torch.ones(batch, 5).bool(), region_maps=(painted or {}).get(name)
        )
        for name, width in WIDTHS.items()
    }
    return Conditioning({"image": image_condition(normal(4, 6)[:batch]), **texts})


def patch(batch: int, strength: float = 0.5, token: int = 2, side: int = 8) -> Tensor:
    painted = torch.zeros(batch, 5, side, side)
    painted[:, token, : side // 2, : side // 2] = strength
    return painted


def answer(decoder: Decoder, conditioning: Conditioning, batch: int = 2, level: float = 0.3) -> Tensor:
    return decoder(normal(4, 3, 8, 8)[:batch], torch.full((batch,), level), conditioning)


def test_weight_zero_is_unpainted(decoder: Decoder) -> None:
    plain = answer(decoder, read(2))
    assert_close(answer(decoder, read(2, {"text": patch(2, 0.0)})), plain, depth=NETWORK)
    painted = answer(decoder, read(2, {"text": patch(2)}))
    assert (painted - plain).abs().max() > 1e-3


def test_the_painted_token_is_that_of_its_own_slot(decoder: Decoder) -> None:
    tokens = decoder.tokens(read(2, {"text": patch(2), "t5": patch(2, token=4, side=4)}), 2)
    painted = tokens.maps_BTHW
    assert painted is not None
    assert painted.shape == (2, tokens.mask_BT.shape[1], 8, 8)
    # null, image's null and two tokens, text's null, five tokens, t5's null, five tokens
    assert painted.abs().sum((0, 2, 3)).nonzero()[:, 0].tolist() == [1 + 3 + 1 + 2, 1 + 3 + 1 + 5 + 1 + 4]
    assert decoder.tokens(read(2), 2).maps_BTHW is None


def test_more_noise_is_a_stronger_pull(decoder: Decoder) -> None:
    gained = [
        (answer(decoder, read(2, {"text": patch(2)}), level=level) - answer(decoder, read(2), level=level)).norm()
        for level in (-1.6, 0.3)
    ]
    assert gained[1] > 5 * gained[0]


def test_a_picture_does_not_depend_on_its_painted_neighbours(decoder: Decoder) -> None:
    painted = patch(3)
    painted[1] *= 20
    together = answer(decoder, read(3, {"text": painted}), 3)
    alone = answer(decoder, read(1, {"text": painted[:1]}), 1)
    assert_close(together[:1], alone, depth=NETWORK)
    painted[1] = 0
    assert_close(answer(decoder, read(3, {"text": painted}), 3)[:1], alone, depth=NETWORK)


def test_the_branch_to_move_away_from_is_unpainted(decoder: Decoder) -> None:
    denoiser, sigma = Preconditioned(decoder, 1.0), torch.full((2,), 3.0)
    x, towards = normal(4, 3, 8, 8)[:2], read(2, {"text": patch(2)})
    for negative in (None, Conditioning({"text": read(1).conditions["text"]})):
        away = (
            towards.dropped()
            if negative is None
            else Conditioning({"text": read(2).conditions["text"][torch.tensor([0, 0])]})
        )
        wanted = denoiser(x, sigma, away) + 3 * (denoiser(x, sigma, towards) - denoiser(x, sigma, away))
        assert_close(Guided(denoiser, 3.0, negative)(x, sigma, towards), wanted, depth=NETWORK)
