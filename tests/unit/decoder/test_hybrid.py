"""The hybrid backbone: its contract, regions, LoRA, experts, and its place in a decoder's folder."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from syzygy.core.artifacts import CONFIG_FILE
from syzygy.core.config import parse
from syzygy.core.contracts import Condition, Conditioning, image_condition
from syzygy.core.errors import UserError
from syzygy.core.lora import Lora
from syzygy.core.randomness import generator
from syzygy.decoder.backbone import build_decoder, load_decoder, save_decoder
from syzygy.decoder.hybrid_backbone import HybridBackbone
from syzygy.decoder.network import Decoder, DecoderConfig, HybridConfig, SlotConfig, UNetConfig
from syzygy.decoder.preconditioning import Preconditioned
from syzygy.experts.expert_folders import build_lora
from syzygy.experts.routing import Experts, Stages
from syzygy.training.optimizers import hidden_matrices
from syzygy.training.precision import autocast
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
    backbone=HybridConfig(channels=16, norm_groups=4, width=24, depth=3, heads=2),
)
WIDTHS = {"text": 6, "t5": 4}


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=generator(0, *shape))


def trained(seed: int = 0) -> Decoder:
    """A decoder whose output and shifts are no longer zero."""
    made = build_decoder(CONFIG, seed=seed).eval().requires_grad_(False)
    made.set_scale("image", 1.0)
    for name in ("conv_out", "shifts"):
        weight = made.get_parameter(f"backbone.{name}.weight")
        weight.copy_(0.1 * normal(*weight.shape))
    return made


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    return trained()


def read(batch: int, regions: dict[str, Tensor] | None = None, tokens: int = 5) -> Conditioning:
    present = torch.ones(batch, dtype=torch.bool)
    texts = {
        name: Condition(
            present,
            normal(4, tokens, width)[:batch],
            torch.ones(batch, tokens).bool(),
            region_maps=(regions or {}).get(name),
        )
        for name, width in WIDTHS.items()
    }
    return Conditioning({"image": image_condition(normal(4, 6)[:batch]), **texts})


def region(batch: int, strength: float = 0.5, token: int = 2) -> Tensor:
    maps = torch.zeros(batch, 5, 8, 8)
    maps[:, token, :4, :4] = strength
    return maps


def answer(decoder: Decoder, conditioning: Conditioning, batch: int = 2, level: float = 0.3) -> Tensor:
    return decoder(normal(4, 3, 8, 8)[:batch], torch.full((batch,), level), conditioning)


def test_a_fresh_one_answers_zero_and_owes_its_weights_to_the_seed() -> None:
    first, again, other = (build_decoder(CONFIG, seed=seed) for seed in (1, 1, 2))
    weights = [one.get_parameter("backbone.blocks.1.attn2.to_kv.weight") for one in (first, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    first.set_scale("image", 1.0)
    assert not answer(first, read(2)).any()


def test_it_reads_each_condition_and_the_noise_level(decoder: Decoder) -> None:
    whole = answer(decoder, read(2))
    for name in CONFIG.slots:
        conditions = dict(read(2).conditions)
        conditions[name.name] = conditions[name.name].dropped()
        assert (answer(decoder, Conditioning(conditions)) - whole).abs().max() > 1e-4, name.name
    assert (answer(decoder, read(2), level=0.5) - whole).abs().max() > 1e-4


def test_hidden_tokens_have_no_influence(decoder: Decoder) -> None:
    conditions = dict(read(2).conditions)
    text = conditions["text"]
    assert text.states is not None
    assert text.mask is not None
    longer = Condition(
        text.present,
        torch.cat([text.states, torch.full((2, 3, 6), 7.0)], 1),
        torch.cat([text.mask, torch.zeros(2, 3).bool()], 1),
    )
    assert_close(answer(decoder, Conditioning(conditions | {"text": longer})), answer(decoder, read(2)), depth=NETWORK)


def test_a_sample_does_not_depend_on_its_neighbours(decoder: Decoder) -> None:
    for regions in ({}, {"text": region(3)}):
        alone = {name: maps[:1] for name, maps in regions.items()}
        assert_close(answer(decoder, read(3, regions), 3)[:1], answer(decoder, read(1, alone), 1), depth=NETWORK)


def test_regions_pull_their_words(decoder: Decoder) -> None:
    plain = answer(decoder, read(2))
    assert_close(answer(decoder, read(2, {"text": region(2, 0.0)})), plain, depth=NETWORK)
    assert (answer(decoder, read(2, {"text": region(2)})) - plain).abs().max() > 1e-4
    assert (answer(decoder, read(2, {"t5": region(2)})) - plain).abs().max() > 1e-4
    gained = [
        (answer(decoder, read(2, {"text": region(2)}), level=level) - answer(decoder, read(2), level=level)).norm()
        for level in (-1.6, 0.3)
    ]
    assert gained[1] > 5 * gained[0]


def test_inside_a_region_patches_attend_more_to_its_word() -> None:
    decoder = trained()
    backbone = decoder.backbone
    assert isinstance(backbone, HybridBackbone)
    place = decoder.places(read(1))["text"] + 2
    found = []
    for regions in ({}, {"text": region(1, 4.0)}):
        with backbone.recording() as recorded:
            answer(decoder, read(1, regions), 1, level=1.0)
        found.append(recorded.attention[0])
        assert len(recorded.attention) == 2  # every block but the first
        assert recorded.features is not None
        assert recorded.features.shape == (1, 16, 24)
        assert_close(recorded.attention[0].sum(-1), torch.ones(1, 16), depth=NETWORK)
    # The second block's queries come from features that the first block's biased attention has changed; its own bias is not recorded.
    changed = (found[1] - found[0]).abs()
    assert changed[..., place].max() > 1e-4
    assert found[1][0, :, place].max() < 0.9, "with its bias the attention would be near 1"


def test_places_are_those_of_the_token_states(decoder: Decoder) -> None:
    tokens = decoder.tokens(read(2, {"text": region(2), "t5": region(2, token=4)}), 2)
    assert tokens.maps_BTHW is not None
    places = decoder.places(read(2))
    marked = tokens.maps_BTHW.abs().sum((0, 2, 3)).nonzero()[:, 0].tolist()
    assert marked == [places["text"] + 2, places["t5"] + 4]


def test_bf16_is_close_and_trains() -> None:
    made = trained().requires_grad_(True)
    exact = answer(made, read(2))
    with autocast(torch.device("cpu"), torch.bfloat16):
        half = answer(made, read(2))
    assert (half.float() - exact).norm() < 0.05 * exact.norm()
    half.float().square().mean().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in made.backbone.parameters())


def test_lora_finds_its_attention_and_changes_it() -> None:
    made = trained()
    before = answer(made, read(2))
    lora = build_lora(made.backbone, rank=2, layers="attn|ff|conv", seed=0)
    names = set(lora.updates)
    for part in ("attn1/to_qkv", "attn2/to_q", "attn2/to_kv", "attn2/to_out", "ff/0"):
        assert f"blocks/0/{part}" in names
    assert "convs/0/conv1" in names
    assert torch.equal(answer(made, read(2)), before)
    for parameter in lora.parameters():
        parameter.data.add_(0.05)
    with lora.active():
        adapted = answer(made, read(2))
    assert (adapted - before).abs().max() > 1e-4
    lora.merge_into(made.backbone)
    assert_close(answer(made, read(2)), adapted, depth=NETWORK)
    assert isinstance(Lora(made.backbone, rank=1, layers="attn2"), Lora)


def test_experts_serve_their_noise_levels() -> None:
    stages = Stages(("E1_0", "E1_1"), (1.0,))
    networks = {"E1_0": trained(0), "E1_1": trained(1)}
    experts = Experts(stages, {name: Preconditioned(one, 1.0) for name, one in networks.items()})
    x = normal(4, 3, 8, 8)[:2]
    both = experts(x, torch.tensor([0.5, 2.0]), read(2))
    for row, (name, sigma) in enumerate((("E1_0", 0.5), ("E1_1", 2.0))):
        own = Preconditioned(networks[name], 1.0)(x, torch.full((2,), sigma), read(2))
        assert_close(both[row], own[row], depth=NETWORK)


def test_muon_takes_what_is_between_input_and_output(decoder: Decoder) -> None:
    made = build_decoder(CONFIG)
    names = {name.removeprefix("decoder.backbone.") for name in hidden_matrices({"decoder": made})}
    assert "blocks.0.attn2.to_kv.weight" in names
    assert "context_blocks.1.ff.2.weight" in names
    assert "convs.0.conv1.weight" in names
    assert not any(
        name.startswith(("conv_in", "conv_out", "patches", "level", "shifts", "decoder.slots")) for name in names
    )


def test_a_folder_says_which_backbone_it_is(tmp_path: Path, decoder: Decoder) -> None:
    save_decoder(decoder, tmp_path / "hybrid", {}, None)
    loaded = load_decoder(tmp_path / "hybrid")
    assert loaded.config == CONFIG
    assert_close(answer(loaded, read(2)), answer(decoder, read(2)), depth=NETWORK)
    config = json.loads((tmp_path / "hybrid" / CONFIG_FILE).read_text())
    assert config["backbone"]["kind"] == "hybrid"


def test_configurations_without_a_kind_are_of_a_unet() -> None:
    old = {
        "slots": [],
        "backbone": {"channels": [16, 32], "attention": [False, True], "head_width": 16, "norm_groups": 8},
    }
    backbone = parse(DecoderConfig, old, "test").backbone
    assert isinstance(backbone, UNetConfig)
    assert backbone.channels == (16, 32)
    with pytest.raises(UserError, match="width"):
        parse(DecoderConfig, {"slots": [], "backbone": {"kind": "unet", "width": 24}}, "test")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"backbone": {"kind": "hybrid", "heads": 5}}, "5 heads do not divide the width 192"),
        ({"backbone": {"kind": "hybrid", "norm_groups": 7}}, "norm_groups 7 does not divide 64 channels"),
        ({"backbone": {"kind": "hybrid"}, "cross_attention_width": 128}, "do not divide the cross_attention_width 128"),
        ({"backbone": {"kind": "hybrid", "patch": 3}, "cross_attention_width": 192}, "size 16 must be a multiple of 3"),
        ({"backbone": {"kind": "hybird"}}, "hybird"),
    ],
)
def test_sizes_must_fit_together(values: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse(DecoderConfig, {"slots": [], **values}, "test")


COMPILED = """
import torch
from syzygy.core.contracts import Conditioning
from syzygy.decoder.backbone import build_decoder
from syzygy.decoder.network import DecoderConfig, HybridConfig
from syzygy.experts.expert_folders import OffloadPolicy
ran = []
backend = lambda graph, inputs: lambda *args: ran.append(1) or graph(*args)
sizes = HybridConfig(channels=16, norm_groups=4, width=24, depth=2, heads=2)
decoder = build_decoder(DecoderConfig(slots=(), cross_attention_width=16, vector_width=16, size=8, backbone=sizes))
torch.nn.init.normal_(decoder.backbone.conv_out.weight)
x, level = torch.randn(2, 4, 8, 8), torch.zeros(2)
plain = decoder(x, level, Conditioning({}))
compiled = OffloadPolicy(backend=backend).compiled(decoder)(x, level, Conditioning({}))
assert ran and torch.allclose(plain, compiled, atol=1e-5), (ran, (plain - compiled).abs().max())
"""


def test_compiled_it_answers_the_same() -> None:
    # In a process of its own: the shapes that tests check at run time are no code that torch can compile.
    ran = subprocess.run([sys.executable, "-c", COMPILED], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
