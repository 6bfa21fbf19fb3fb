import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from syzygy.core.artifacts import CONFIG_FILE, PROVENANCE_FILE, WEIGHTS_FILE, read_tensors, write_tensors
from syzygy.core.contracts import Conditioning, image_condition
from syzygy.core.errors import UserError
from syzygy.core.randomness import generator
from syzygy.decoder.backbone import UNetBackbone, build_decoder, load_decoder, save_decoder
from syzygy.decoder.network import Decoder, DecoderConfig, SlotConfig, UNetConfig

CONFIG = DecoderConfig(
    slots=(SlotConfig(name="image", pooled_width=6, pooled_tokens=2),),
    cross_attention_width=16,
    vector_width=16,
    size=16,
    channels=3,
    backbone=UNetConfig(channels=(16, 32), head_width=16, norm_groups=8),
)


def trained() -> Decoder:
    """A decoder that answers with something: its last layer is no longer zero."""
    decoder = build_decoder(CONFIG, seed=3).eval()
    decoder.set_scale("image", 2.0)
    weight = decoder.get_parameter("backbone.unet.conv_out.weight")
    with torch.no_grad():
        weight.copy_(0.1 * torch.randn(weight.shape, generator=generator(0, "conv_out")))
    return decoder


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=generator(0, *shape))


def answer(decoder: Decoder) -> Tensor:
    with torch.no_grad():
        return decoder(
            normal(2, 3, 16, 16), torch.tensor([-1.0, 0.5]), Conditioning({"image": image_condition(normal(2, 6))})
        )


def test_fresh_decoder_answers_zero_and_owes_its_weights_to_the_seed() -> None:
    state = torch.get_rng_state()
    first, again, other = (build_decoder(CONFIG, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state), "building must not draw from the global generator"
    weights = [decoder.get_parameter("backbone.unet.conv_in.weight") for decoder in (first, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    first.set_scale("image", 1.0)
    assert not answer(first).any()


@pytest.mark.parametrize(("channels", "millions"), [((64, 96), 2.81), ((64, 96, 128), 5.99)])
def test_sizes_of_the_unet(channels: tuple[int, ...], millions: float) -> None:
    backbone = UNetConfig(channels=channels, attention=(False, *[True] * (len(channels) - 1)))
    with torch.device("meta"):
        unet = UNetBackbone(DecoderConfig(slots=(), backbone=backbone))
    assert sum(p.numel() for p in unet.parameters()) / 1e6 == pytest.approx(millions, abs=0.05)


def test_backbone_reads_noise_level_vector_and_visible_tokens_only() -> None:
    backbone = trained().backbone
    x, c_noise, tokens, vector = normal(1, 3, 16, 16), torch.tensor([0.1]), normal(1, 3, 16), normal(1, 16)
    mask = torch.tensor([[True, True, False]])
    with torch.no_grad():
        base = backbone(x, c_noise, tokens, mask, vector)
        hidden, seen = tokens.clone(), tokens.clone()
        hidden[:, 2] = 1e4
        seen[:, 1] += 1
        assert torch.equal(backbone(x, c_noise, hidden, mask, vector), base)
        for changed in (
            backbone(x, c_noise, seen, mask, vector),
            backbone(x, c_noise, tokens, mask, vector + 1),
            backbone(x, c_noise + 0.005, tokens, mask, vector),
        ):
            assert (changed - base).abs().max() > 1e-4


def test_saved_decoder_comes_back(tmp_path: Path) -> None:
    decoder = trained()
    save_decoder(decoder, tmp_path / "exact", {"seed": 3}, dtype=None)
    save_decoder(decoder, tmp_path / "half", {"seed": 3})
    exact, half = load_decoder(tmp_path / "exact"), load_decoder(tmp_path / "half")
    assert exact.config == CONFIG
    assert not exact.training
    assert torch.equal(answer(exact), answer(decoder))
    torch.testing.assert_close(answer(half), answer(decoder), atol=5e-3, rtol=0)
    assert answer(half).dtype == torch.float32
    assert json.loads((tmp_path / "half" / PROVENANCE_FILE).read_text()) == {"seed": 3}


def test_unset_scale_is_not_saved(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="scale of condition 'image' is unset"):
        save_decoder(build_decoder(CONFIG), tmp_path / "d", {})
    assert not (tmp_path / "d").exists()


def test_folders_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    save_decoder(trained(), tmp_path / "d", {})
    weights, config = tmp_path / "d" / WEIGHTS_FILE, tmp_path / "d" / CONFIG_FILE
    tensors = read_tensors(weights)
    write_tensors(weights, {name: x for name, x in tensors.items() if name != "slots.image.null_token"})
    with pytest.raises(UserError, match=r"missing \['slots.image.null_token'\]"):
        load_decoder(tmp_path / "d")
    write_tensors(weights, tensors)
    config.write_text(CONFIG.model_copy(update={"vector_width": 12}).model_dump_json())
    with pytest.raises(UserError, match=r"has shape .* expected"):
        load_decoder(tmp_path / "d")
    config.write_text('{"slots": [], "colour": 3}')
    with pytest.raises(UserError, match="'colour'"):
        load_decoder(tmp_path / "d")
    config.unlink()
    with pytest.raises(UserError, match=r"config.json is missing"):
        load_decoder(tmp_path / "d")
