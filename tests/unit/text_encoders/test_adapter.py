"""The adapter from a language model's features to CLIP's text space."""

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from syzygy.core import artifacts
from syzygy.core.config import parse
from syzygy.core.contracts import TextEncoder, TextFeatures, TextStates
from syzygy.core.errors import UserError
from syzygy.prior.eclipse import EclipsePrior, EclipsePriorConfig
from syzygy.text_encoders.adapter import SIZES, AdaptedText, AdapterConfig, AdapterSizes, TextAdapter, TextStatistics
from tests.closeness import NETWORK, about, assert_close

CONFIG = AdapterConfig(queries=5, layers=2, heads=2, width=16, llm_width=12, clip_width=8)


def made(config: AdapterConfig = CONFIG, *, scale: float = 1.0) -> TextAdapter:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        adapter = TextAdapter(config)
    ones = torch.ones(config.clip_width)
    adapter.set_statistics(TextStatistics(0 * ones, scale * ones, 0 * ones, scale * ones))
    return adapter.eval()


def features(*lengths: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Random states padded with NaN, and their mask."""
    draw = torch.Generator().manual_seed(seed)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return torch.randn(*mask.shape, 12, generator=draw).masked_fill(~mask[..., None], math.nan), mask


@settings(max_examples=25)
@given(st.lists(st.integers(1, 40), min_size=2, max_size=4))
def test_a_batch_is_its_texts_one_by_one(lengths: list[int]) -> None:
    adapter = made()
    states, mask = features(*lengths)
    together = adapter(states, mask)
    assert together.mask.all()
    assert together.states.shape == (len(lengths), 5, 8)
    assert together.spans is None
    for row, length in enumerate(lengths):
        alone = adapter(states[row : row + 1, :length], mask[row : row + 1, :length])
        assert_close(together.states[row], alone.states[0], depth=NETWORK)
        assert_close(together.pooled[row], alone.pooled[0], depth=NETWORK)


def test_every_token_is_read_wherever_it_stands() -> None:
    adapter = made()
    states, mask = features(300)
    before = adapter(states, mask)
    for place in (0, 150, 299):
        changed = states.clone()
        changed[:, place] = -changed[:, place]
        after = adapter(changed, mask)
        assert (after.states - before.states).abs().max() > 1e-4
        assert (after.pooled - before.pooled).abs().max() > 1e-5


def test_the_order_of_words_matters() -> None:
    adapter = made()
    states, mask = features(6)
    turned = adapter(states.flip(1), mask)
    assert (turned.states - adapter(states, mask).states).abs().max() > 1e-3


def test_rotary_attention_knows_distances_only() -> None:
    """Between words: what one reads of another is the same wherever the two stand."""
    from syzygy.core.packed_attention import Packing
    from syzygy.text_encoders.rotary_attention import RotaryAttend

    packing = Packing.of(torch.tensor([0, 40]), following=0, positions=0)
    attend = RotaryAttend(packing, torch.arange(40), 8)
    q, k = torch.randn(2, 1, 1, 8, generator=torch.Generator().manual_seed(0))

    def read(i: int, j: int) -> float:
        row, other = torch.zeros(40, 1, 8), torch.zeros(40, 1, 8)
        row[i], other[j] = q[0], k[0]
        return float((attend.rotated(row)[i] * attend.rotated(other)[j]).sum())

    assert read(3, 9) == about(read(30, 36), depth=NETWORK)
    assert abs(read(3, 9) - read(3, 10)) > 1e-3


def test_attention_gets_one_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels for half precision take queries, keys and values of it alone."""
    from syzygy.core.packed_attention import PackedAttention

    seen: list[set[torch.dtype]] = []
    whole = PackedAttention.whole

    def noted(self: PackedAttention, *qkv: Tensor) -> Tensor:
        seen.append({x.dtype for x in qkv})
        return whole(self, *qkv)

    monkeypatch.setattr(PackedAttention, "whole", noted)
    with torch.autocast("cpu", torch.bfloat16):
        made()(*features(3, 7))
    made().to(torch.bfloat16)(*(x if x.dtype == torch.bool else x.bfloat16() for x in features(3, 7)))
    assert seen == [{torch.bfloat16}] * 4


def test_everything_learns() -> None:
    adapter = made().train()
    found = adapter(*features(3, 7))
    (found.states.square().mean() + found.pooled.square().mean()).backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in adapter.parameters())


def test_the_pooled_embedding_has_a_query_of_its_own() -> None:
    adapter = made()
    adapter.pooled_head.load_state_dict(adapter.states_head.state_dict())
    found = adapter(*features(4))
    assert (found.states - found.pooled[:, None]).abs().amax(-1).min() > 1e-2


def clip_features(number: int = 400) -> TextFeatures:
    """As CLIP's: off centre, dimensions of different size, a start token that is always the same."""
    draw = torch.Generator().manual_seed(3)
    states = torch.randn(number, 6, 8, generator=draw) * torch.arange(1, 9) + 5
    states[:, 0] = 100.0
    return TextFeatures(states, torch.ones(number, 6, dtype=torch.bool), 3 * torch.randn(number, 8, generator=draw) - 2)


def test_statistics_leave_the_start_token_out() -> None:
    found = TextStatistics.of(clip_features())
    torch.testing.assert_close(found.states_mean, torch.full((8,), 5.0), atol=0.6, rtol=0)
    torch.testing.assert_close(found.states_std, torch.arange(1.0, 9.0), atol=0, rtol=0.1)
    torch.testing.assert_close(found.pooled_std, torch.full((8,), 3.0), atol=0, rtol=0.15)


def test_untrained_it_speaks_in_clips_range() -> None:
    adapter = made(CONFIG.model_copy(update={"width": 64}))
    clip = clip_features()
    adapter.set_statistics(TextStatistics.of(clip))
    found = adapter(*features(*[9] * 200))
    for mine, theirs in ((found.states[:, 1:], clip.states[:, 1:]), (found.pooled, clip.pooled)):
        distance = (mine.flatten(0, -2).mean(0) - theirs.flatten(0, -2).mean(0)) / theirs.flatten(0, -2).std(0)
        assert distance.abs().max() < 2
        assert 0.01 < mine.norm(dim=-1).mean() / theirs.norm(dim=-1).mean() < 2


def test_statistics_that_are_none() -> None:
    with pytest.raises(UserError, match="at least 2 texts"):
        TextStatistics.of(clip_features(1))
    same = TextFeatures(torch.ones(3, 4, 8), torch.ones(3, 4, dtype=torch.bool), torch.randn(3, 8))
    with pytest.raises(UserError, match="does not vary"):
        TextStatistics.of(same)
    with pytest.raises(UserError, match="NaN"):
        TextStatistics.of(TextFeatures(same.states * math.nan, same.mask, same.pooled))
    wide = torch.ones(9)
    with pytest.raises(UserError, match=r"states_mean of shape \[9\]; this adapter needs \[8\]"):
        made().set_statistics(TextStatistics(wide, wide, wide, wide))


@pytest.mark.parametrize(
    ("name", "clip_width", "most"), [("starter", 192, 2e6), ("vit-l-14", 768, 85e6), ("bigg-14", 1280, 85e6)]
)
def test_presets_are_as_small_as_promised(name: str, clip_width: int, most: float) -> None:
    llm_width = 192 if name == "starter" else 5120  # of a model of 13B
    with torch.device("meta"):
        adapter = TextAdapter(AdapterConfig(**SIZES[name].model_dump(), llm_width=llm_width, clip_width=clip_width))
    assert sum(p.numel() for p in adapter.parameters()) <= most
    assert SIZES[name].queries <= 77


@pytest.mark.parametrize(
    ("values", "message"),
    [({"queries": 78}, "77"), ({"queries": 0}, "1"), ({"width": 18}, "no even width"), ({"layers": 0}, "layers")],
)
def test_wrong_sizes(values: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse(AdapterSizes, {"layers": 1, "heads": 2, "width": 16} | values, "settings")


def test_saved_and_loaded_is_the_same(tmp_path: Path) -> None:
    adapter = made(scale=2.0)
    adapter.save_pretrained(tmp_path / "adapter", {"llm": {}, "clip": "c"})
    loaded = TextAdapter.from_pretrained(tmp_path / "adapter")
    given = features(4, 9)
    assert torch.equal(loaded(*given).pooled, adapter(*given).pooled)
    assert loaded.config == CONFIG
    assert artifacts.read_json(tmp_path / "adapter" / artifacts.PROVENANCE_FILE) == {"llm": {}, "clip": "c"}

    with pytest.raises(UserError, match="no statistics"):
        TextAdapter(CONFIG).save_pretrained(tmp_path / "other", {"llm": {}, "clip": "c"})
    path = tmp_path / "adapter" / artifacts.CONFIG_FILE
    config = artifacts.read_json(path)
    artifacts.write_json(path, config | {"llm_width": 13})
    with pytest.raises(UserError, match=r"norm_in\.weight has shape \(12,\), expected \(13,\)"):
        TextAdapter.from_pretrained(tmp_path / "adapter")
    artifacts.write_json(path, config | {"_class_name": "PriorTransformer"})
    with pytest.raises(UserError, match="holds a 'PriorTransformer', not an adapter"):
        TextAdapter.from_pretrained(tmp_path / "adapter")
    artifacts.write_json(path, config | {"depth": 3})
    with pytest.raises(UserError, match="depth"):
        TextAdapter.from_pretrained(tmp_path / "adapter")


class Letters(torch.nn.Module):
    """A `StatesEncoder` that costs nothing: a state for each letter, and one at the end."""

    width = 12

    def encode_states(self, texts: list[str]) -> TextStates:
        codes = [[*map(ord, text), 0] for text in texts]
        mask = torch.arange(max(map(len, codes))) < torch.tensor([len(one) for one in codes])[:, None]
        states = torch.zeros(*mask.shape, 12)
        states[mask] = torch.tensor([code for one in codes for code in one])[:, None].float() * torch.linspace(
            0.1, 1, 12
        )
        return TextStates(states.sin(), mask)


def test_both_together_are_a_text_encoder() -> None:
    encoder = AdaptedText(Letters(), made())
    assert isinstance(encoder, TextEncoder)
    assert encoder.width == 8
    found = encoder.encode_text(["", "a red star", "a red star " * 40])
    assert found.states.shape == (3, 5, 8)
    assert torch.isfinite(found.states).all()
    assert_close(found.pooled[0], encoder.encode_text([""]).pooled[0], depth=NETWORK)
    prior = EclipsePrior(EclipsePriorConfig(embedding_dim=8, num_layers=1, num_attention_heads=1, attention_head_dim=8))
    assert prior.predict(found, noise=torch.zeros(3, 8)).shape == (3, 8)

    coarse = AdaptedText(Letters(), made().to(torch.bfloat16)).encode_text(["a red star"])
    assert coarse.pooled.dtype == torch.float32
    torch.testing.assert_close(coarse.pooled[0], found.pooled[1], atol=0.1, rtol=0)


def test_a_language_model_of_another_width() -> None:
    message = "features are 12 wide; this adapter reads 13. Use the model that it was trained on"
    other = made(CONFIG.model_copy(update={"llm_width": 13}))
    with pytest.raises(UserError, match=message):
        AdaptedText(Letters(), other)
    with pytest.raises(UserError, match=message):
        other(*features(3))
