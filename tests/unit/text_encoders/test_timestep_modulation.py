"""Timestep-aware queries (ELLA, arXiv 2403.05135): what the modulation computes, and that it changes nothing before it is trained."""

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from syzygy.core import artifacts
from syzygy.core.contracts import TextStates
from syzygy.core.prompt_embeddings import PromptEmbeddings
from syzygy.core.randomness import generator
from syzygy.core.transformer_layers import Block
from syzygy.text_encoders.adapter import AdapterConfig, TextAdapter, TextStatistics
from syzygy.text_encoders.prompt_target import PromptTarget
from syzygy.text_encoders.prompt_training import with_timesteps
from syzygy.text_encoders.timestep_modulation import CHANNELS, TimestepModulation
from tests.closeness import NETWORK, assert_close

XL = PromptTarget(family="stable-diffusion-xl", widths=(6, 10), pooled=8)
SIZES: dict[str, Any] = {"queries": 5, "layers": 2, "heads": 2, "width": 8, "llm_width": 12}
LENGTHS = [3, 1, 4, 2]
TIMESTEPS = torch.tensor([0, 999, 500, 20])


def text() -> TextStates:
    """Texts that are not sorted by length; padding holds NaN."""
    mask = torch.arange(4) < torch.tensor(LENGTHS)[:, None]
    states = torch.randn(4, 4, 12, generator=generator(0, "text")).masked_fill(~mask[..., None], torch.nan)
    return TextStates(states, mask)


def plain() -> TextAdapter:
    torch.manual_seed(0)
    made = TextAdapter(AdapterConfig(target=XL, **SIZES))
    found = PromptEmbeddings(torch.randn(20, 5, 16), torch.randn(20, 8), [None])
    made.set_statistics(TextStatistics.of_prompts(found))
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.3)
    return made


def aware(*, trained: bool = True) -> TextAdapter:
    made = with_timesteps(plain(), 0)
    if trained:
        assert made.time is not None
        torch.manual_seed(1)
        for parameter in made.time.parameters():
            nn.init.normal_(parameter, std=0.3)
    return made


def test_it_changes_nothing_before_it_is_trained() -> None:
    before, found = plain().embed_prompts(text().states, text().mask), aware(trained=False)
    assert found.timestep_aware
    for timesteps in (TIMESTEPS, TIMESTEPS.flip(0), TIMESTEPS + 0.5):
        after = found.embed_prompts(text().states, text().mask, timesteps)
        assert torch.equal(after.states, before.states)
        assert after.pooled is not None
        assert before.pooled is not None
        assert torch.equal(after.pooled, before.pooled)
    one, same, other = (with_timesteps(plain(), seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(x, same[name]) for name, x in one.items())
    assert not torch.equal(one["time.embed.0.weight"], other["time.embed.0.weight"])


def test_a_text_has_the_same_states_alone_and_with_others_at_other_timesteps() -> None:
    found = aware()
    together = found.embed_prompts(text().states, text().mask, TIMESTEPS)
    assert together.pooled is not None
    for row, length in enumerate(LENGTHS):
        given = text().states[row : row + 1, :length], text().mask[row : row + 1, :length]
        alone = found.embed_prompts(*given, TIMESTEPS[row : row + 1])
        assert_close(together.states[row], alone.states[0], depth=NETWORK)
        assert alone.pooled is not None
        assert_close(together.pooled[row], alone.pooled[0], depth=NETWORK)
        later = found.embed_prompts(*given, TIMESTEPS[row : row + 1] + 50)
        assert (later.states - alone.states).abs().max() > 0.01
        assert later.pooled is not None
        assert (later.pooled - alone.pooled).abs().max() > 0.01


def test_the_timestep_is_embedded_as_in_ella() -> None:
    """Its released code: diffusers' `Timesteps(320, flip_sin_to_cos=True, downscale_freq_shift=0)` and `TimestepEmbedding`, then SiLU."""
    from diffusers.models.embeddings import TimestepEmbedding, Timesteps

    own = TimestepModulation(2, 8)
    for parameter in own.parameters():
        nn.init.normal_(parameter, std=0.3)
    theirs = TimestepEmbedding(in_channels=CHANNELS, time_embed_dim=8)
    weights = own.embed.state_dict()
    names = {"0": "linear_1", "2": "linear_2"}
    theirs.load_state_dict({f"{names[key[0]]}{key[1:]}": value for key, value in weights.items()})
    sinusoids = Timesteps(CHANNELS, flip_sin_to_cos=True, downscale_freq_shift=0)(TIMESTEPS)
    embedded = nn.functional.silu(theirs(sinusoids))
    added, blocks = own(TIMESTEPS)
    assert_close(added, own.queries(embedded), depth=NETWORK)
    assert [x.shape for x in blocks] == [(4, 32)] * 2
    for found, layer in zip(blocks, own.blocks, strict=True):
        assert_close(found, layer(embedded), depth=NETWORK)


@pytest.mark.parametrize("kept", [None, torch.tensor([4, 1])], ids=["all", "kept"])
def test_shift_and_scale_follow_each_normalisation(kept: torch.Tensor | None) -> None:
    torch.manual_seed(0)
    block, x, modulation = Block(8, 2), torch.randn(5, 8), torch.randn(5, 32)

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        each = (one.transpose(0, 1) for one in (q, k, v))
        return nn.functional.scaled_dot_product_attention(*each).transpose(0, 1)

    shift, scale, later_shift, later_scale = modulation.chunk(4, -1)
    tokens = block.norm1(x) * (1 + scale) + shift
    rows = torch.arange(5) if kept is None else kept
    y = x[rows] + block.attn1(tokens[rows], tokens, attend)
    expected = y + block.ff(block.norm3(y) * (1 + later_scale[rows]) + later_shift[rows])
    assert_close(block(x, attend, kept, modulation), expected)
    assert_close(block(x, attend, kept, torch.zeros_like(modulation)), block(x, attend, kept))


def test_everything_learns() -> None:
    found = aware()
    one = found.embed_prompts(text().states, text().mask, TIMESTEPS)
    assert one.pooled is not None
    (one.states.square().mean() + one.pooled.square().mean()).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in found.parameters())


def test_the_artefact_says_so(tmp_path: Path) -> None:
    for made, name in ((plain(), "plain"), (aware(), "aware")):
        made.save_pretrained(tmp_path / name, {"llm": {}, "text_encoders": {}})
        loaded = TextAdapter.from_pretrained(tmp_path / name)
        assert loaded.config == made.config
        assert loaded.timestep_aware == made.timestep_aware == (name == "aware")
        config = artifacts.read_json(tmp_path / name / artifacts.CONFIG_FILE)
        assert config.get("timestep_aware") == (True if name == "aware" else None)
        assert all(torch.equal(x, loaded.state_dict()[key]) for key, x in made.state_dict().items())


def test_timesteps_belong_to_timestep_aware_adapters() -> None:
    with pytest.raises(AssertionError, match="only a timestep-aware adapter takes timesteps, and needs them"):
        aware().embed_prompts(text().states, text().mask)
    with pytest.raises(AssertionError, match="only a timestep-aware adapter"):
        plain().embed_prompts(text().states, text().mask, TIMESTEPS)
    with pytest.raises(AssertionError, match="not timestep-aware before"):
        with_timesteps(aware(), 0)
    with pytest.raises(ValidationError, match="a prior has no timesteps"):
        AdapterConfig(**SIZES, clip_width=8, timestep_aware=True)
