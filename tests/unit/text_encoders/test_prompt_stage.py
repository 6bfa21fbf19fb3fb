"""Adapters for Stable Diffusion: their sizes and statistics, their artefacts, and the losses of stage align."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from syzygy.core import artifacts
from syzygy.core.contracts import TextStates
from syzygy.core.errors import UserError
from syzygy.core.prompt_embeddings import PromptEmbeddings
from syzygy.core.randomness import generator
from syzygy.text_encoders.adapter import AdapterConfig, TextAdapter, TextStatistics
from syzygy.text_encoders.presets import PROMPT_PRESETS
from syzygy.text_encoders.prompt_stage import PromptAdapterSizes, PromptBatch, PromptStage, PromptTaskConfig
from syzygy.text_encoders.prompt_target import PromptTarget, check_target, chunks_for
from tests.closeness import NETWORK, about, assert_close

XL = PromptTarget(family="stable-diffusion-xl", widths=(6, 10), pooled=8)
ONE = PromptTarget(family="stable-diffusion-1", widths=(16,))
SIZES: dict[str, Any] = {"queries": 5, "layers": 1, "heads": 2, "width": 8, "llm_width": 12}
B, K, W = 6, 5, 12


def embeddings(target: PromptTarget = XL, number: int = B, seed: int = 0) -> PromptEmbeddings:
    """As text encoders give them: each position has a mean of its own, the first one does not vary, and one channel is large."""
    random = generator(seed, "embeddings")
    states = torch.randn(number, K, target.states, generator=random)
    states[:, 0] = 30.0
    states += 4 * torch.arange(K)[:, None] + 50.0 * (torch.arange(target.states) == 2)
    pooled = None if target.pooled is None else torch.randn(number, target.pooled, generator=random)
    return PromptEmbeddings(states, pooled, [None])


def adapter(target: PromptTarget = XL) -> TextAdapter:
    torch.manual_seed(0)
    made = TextAdapter(AdapterConfig(target=target, **SIZES))
    made.set_statistics(TextStatistics.of_prompts(embeddings(target, 50, seed=1)))
    for name, parameter in made.named_parameters():
        if "_head" in name:  # which begin as zeros
            torch.nn.init.normal_(parameter, std=0.3)
    return made


def text(number: int = B) -> TextStates:
    mask = torch.arange(4) < torch.tensor([1 + i % 4 for i in range(number)])[:, None]
    states = torch.randn(number, 4, W, generator=generator(0, "text")).masked_fill(~mask[..., None], torch.nan)
    return TextStates(states, mask)


def batch(target: PromptTarget = XL) -> PromptBatch:
    return PromptBatch(text(), embeddings(target), torch.tensor([0, 1, 2, 3, 4, 0]))


@pytest.mark.parametrize("target", [XL, ONE], ids=str)
def test_states_and_pooled_have_the_models_widths(target: PromptTarget) -> None:
    made = adapter(target)
    found = made.embed_prompts(text().states, text().mask)
    assert found.states.shape == (B, K, 16)
    assert (found.pooled is None) == (target.pooled is None)
    if found.pooled is not None:
        assert found.pooled.shape == (B, 8)
    for row, length in enumerate([1, 2, 3, 4, 1, 2]):  # padding holds NaN
        alone = made.embed_prompts(text().states[row : row + 1, :length], text().mask[row : row + 1, :length])
        assert_close(found.states[row], alone.states[0], depth=NETWORK)


def test_an_untrained_adapter_gives_each_positions_mean() -> None:
    made = TextAdapter(AdapterConfig(target=XL, **SIZES))
    expected = embeddings(XL, 50, seed=1)
    assert expected.pooled is not None
    made.set_statistics(TextStatistics.of_prompts(expected))
    found = made.embed_prompts(text().states, text().mask)
    assert found.pooled is not None
    assert_close(found.states, expected.states.mean(0).expand(B, -1, -1))
    assert_close(found.pooled, expected.pooled.mean(0).expand(B, -1))
    assert_close(made.states_mean[0], torch.full((16,), 30.0) + 50 * (torch.arange(16) == 2))


def test_an_adapter_speaks_to_one_reader() -> None:
    with pytest.raises(ValidationError, match="either a clip_width or a target"):
        AdapterConfig(**SIZES, target=None)
    with pytest.raises(ValidationError, match="either a clip_width or a target"):
        AdapterConfig(**SIZES, clip_width=8, target=XL)
    with pytest.raises(ValidationError, match="a prior reads at most 77"):
        AdapterConfig(**{**SIZES, "queries": 227}, clip_width=8)
    with pytest.raises(ValidationError, match="stable-diffusion-1 has 1 widths of states and no pooled"):
        PromptTarget(family="stable-diffusion-1", widths=(16,), pooled=8)
    with pytest.raises(AssertionError, match="call embed_prompts"):
        adapter()(text().states, text().mask)


def test_the_artefact_says_which_model_it_speaks_to(tmp_path: Path) -> None:
    made = adapter()
    with pytest.raises(AssertionError, match="what it learned from"):
        made.save_pretrained(tmp_path / "adapter", {"llm": {}, "clip": "c"})
    made.save_pretrained(tmp_path / "adapter", {"llm": {}, "text_encoders": {}})
    config = artifacts.read_json(tmp_path / "adapter" / artifacts.CONFIG_FILE)
    assert config["target"] == {"family": "stable-diffusion-xl", "widths": [6, 10], "pooled": 8}
    assert "clip_width" not in config
    loaded = TextAdapter.from_pretrained(tmp_path / "adapter")
    assert loaded.config == made.config
    given = text().states, text().mask
    assert torch.equal(loaded.embed_prompts(*given).states, made.embed_prompts(*given).states)


def test_an_adapter_of_a_prior_is_saved_as_ever(tmp_path: Path) -> None:
    """Its configuration has the same settings as before there were targets, so that either version reads the other's."""
    made = TextAdapter(AdapterConfig(**SIZES, clip_width=8))
    made.set_statistics(TextStatistics(*(torch.ones(8) for _ in range(4))))
    made.save_pretrained(tmp_path / "adapter", {"llm": {}, "clip": "c"})
    config = artifacts.read_json(tmp_path / "adapter" / artifacts.CONFIG_FILE)
    assert config == {"_class_name": "TextAdapter", **SIZES, "clip_width": 8}


def test_the_wrong_model_is_refused_with_both_named() -> None:
    check_target(XL, XL, Path("run"), "model")
    check_target(XL, None, Path("run"), "model")
    with pytest.raises(
        UserError, match=r"in run was trained for a stable-diffusion-xl .*16 wide .*; model is a stable-diffusion-1"
    ):
        check_target(XL, ONE, Path("run"), "model")
    with pytest.raises(UserError, match=r"priors that read CLIP's features 768 wide; model is a stable-diffusion-1 "):
        check_target(768, ONE, Path("run"), "model")
    with pytest.raises(UserError, match=r"features 768 wide; a Stable Diffusion is needed"):
        check_target(768, None, Path("run"), "")
    other = PromptTarget(family="stable-diffusion-2", widths=(16,))
    with pytest.raises(UserError, match=r"stable-diffusion-1 .*; model is a stable-diffusion-2"):
        check_target(ONE, other, Path("run"), "model")


@pytest.mark.parametrize(
    ("states", "chunks"), [(77, (1, True)), (152, (2, True)), (227, (3, True)), (154, (2, False)), (231, (3, False))]
)
def test_numbers_of_states(states: int, chunks: tuple[int, bool]) -> None:
    assert chunks_for(states) == chunks
    assert PromptAdapterSizes(queries=states, layers=1, heads=1, width=8).queries == states


@pytest.mark.parametrize("states", [1, 2, 76, 100, 228])
def test_numbers_of_states_that_no_chunks_give(states: int) -> None:
    with pytest.raises(ValidationError, match="Set 77"):
        PromptAdapterSizes(queries=states, layers=1, heads=1, width=8)


def test_statistics_of_too_few_or_equal_texts() -> None:
    with pytest.raises(UserError, match="at least 2 texts"):
        TextStatistics.of_prompts(embeddings(number=1))
    same = embeddings()
    with pytest.raises(UserError, match="does not vary"):
        TextStatistics.of_prompts(same[[0, 0, 0]])
    with pytest.raises(UserError, match=r"states_mean of shape \[5, 16\]; this adapter needs \[4, 16\]"):
        TextAdapter(AdapterConfig(**{**SIZES, "queries": 4}, target=XL)).set_statistics(TextStatistics.of_prompts(same))
    with pytest.raises(UserError, match=r"pooled_mean of shape None; this adapter needs \[8\]"):
        adapter().set_statistics(TextStatistics.of_prompts(replace(same, pooled=None)))


def stage(target: PromptTarget = XL, **settings: Any) -> PromptStage:
    return PromptStage(adapter(target), PromptTaskConfig(batch_size=B, **settings))


def test_what_the_text_encoders_give_has_no_loss() -> None:
    one, expected = stage(), embeddings()
    found = one._compared(expected, expected)
    assert set(found) == {"loss", "states", "states_norm", "pooled", "pooled_norm"}
    assert all(value.item() == about(0, depth=NETWORK) for value in found.values())
    shuffled = one._compared(expected[[1, 2, 3, 4, 5, 0]], expected)
    assert all(value > found[name] + 1e-3 for name, value in shuffled.items() if name != "loss")


def test_the_papers_loss() -> None:
    """1 − cosine for each text encoder's part and the pooled embedding, and 2e-5 times the squared difference of norms (released code)."""
    one, found, expected = stage(), embeddings(seed=3), embeddings()

    def compared(own: Tensor, other: Tensor) -> Tensor:
        norms = own.norm(dim=-1) - other.norm(dim=-1)
        return 1 - torch.cosine_similarity(own, other, dim=-1).mean() + 2e-5 * norms.square().mean()

    assert found.pooled is not None
    assert expected.pooled is not None
    pairs = [(x.states[..., :6], x.states[..., 6:], x.pooled) for x in (found, expected)]
    total = sum(
        compared(own, other) for own, other in zip(*pairs, strict=True) if own is not None and other is not None
    )
    assert_close(one._compared(found, expected)["loss"], torch.as_tensor(total))
    doubled = stage(states=2.0, norm=0.0)._compared(found, expected)
    assert set(doubled) == {"loss", "states", "pooled"}
    assert_close(doubled["loss"], 2 * doubled["states"] + doubled["pooled"])


def test_everything_learns() -> None:
    one = stage()
    one.losses(batch())["loss"].backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in one.adapter.parameters())


def test_weights_without_effect() -> None:
    with pytest.raises(UserError, match=r"task.pooled=1.0 has no effect: stable-diffusion-1 .* reads no pooled"):
        stage(ONE)
    with pytest.raises(UserError, match=r"task.pooled=0 would leave the pooled embedding untrained"):
        stage(XL, pooled=0)
    with pytest.raises(ValidationError, match="states"):
        PromptTaskConfig(states=0)
    assert set(stage(ONE, pooled=0).losses(batch(ONE))) == {"loss", "states", "states_norm"}


def test_validation_counts_deviations_from_the_mean_text() -> None:
    """The large values that all texts share are no merit."""
    one, whole = stage(), batch()

    class Gives(torch.nn.Module):
        def __init__(self, found: PromptEmbeddings) -> None:
            super().__init__()
            self.found, self.states_mean, self.states_std = found, adapter().states_mean, adapter().states_std

        def embed_prompts(self, *_: Tensor) -> PromptEmbeddings:
            return self.found

    def validated(found: PromptEmbeddings) -> dict[str, float]:
        one.adapter = Gives(found)  # type: ignore[assignment]
        return one.validated([("de", whole)])

    exact = validated(whole.target)
    assert (exact["cosine/de"], exact["recall_at_1/de"]) == (about(1, depth=NETWORK), 1.0)
    mean = replace(whole.target, states=adapter().states_mean.expand(B, -1, -1))
    assert validated(mean)["cosine/de"] == about(0, depth=NETWORK)
    assert validated(mean)["states"] < 0.3  # though the paper's cosine finds it good
    assert validated(whole.target[[1, 2, 3, 4, 5, 0]])["recall_at_1/de"] == pytest.approx(1 / 6)


def test_presets_are_for_the_published_models() -> None:
    published = {
        "stable-diffusion-1": PromptTarget(family="stable-diffusion-1", widths=(768,)),
        "stable-diffusion-2": PromptTarget(family="stable-diffusion-2", widths=(1024,)),
        "stable-diffusion-xl": PromptTarget(family="stable-diffusion-xl", widths=(768, 1280), pooled=1280),
    }
    assert set(PROMPT_PRESETS) == set(published)
    for name, preset in PROMPT_PRESETS.items():
        run = preset()
        with torch.device("meta"):
            made = TextAdapter(AdapterConfig(**run.adapter.model_dump(), llm_width=1024, target=published[name]))
        PromptStage(made, run.task)
        assert run.adapter.queries == 77
        assert sum(p.numel() for p in made.parameters()) < 100e6
