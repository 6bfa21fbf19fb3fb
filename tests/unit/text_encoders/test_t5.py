"""T5 as a text encoder: built, saved, loaded as transformers does, never cut in silence."""

from pathlib import Path

import pytest
import torch
from transformers import T5EncoderModel, T5ForConditionalGeneration

from syzygy.core import artifacts
from syzygy.core.errors import UserError
from syzygy.text_encoders.t5 import T5Config, T5Text, build_t5
from tests.closeness import NETWORK, assert_close

TEXTS = ["a red star left of a Blue circle.", "zwei grüne Ringe", "звезда 星"]


@pytest.fixture(scope="module")
def t5() -> T5Text:
    return build_t5(T5Config(width=32, layers=2, decoder_layers=1, heads=2, max_tokens=40), TEXTS * 20, seed=0).eval()


@pytest.fixture(scope="module")
def folder(t5: T5Text, tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("t5") / "encoder"
    t5.save_pretrained(where, {})
    return where


def test_saved_and_loaded_is_the_same(t5: T5Text, folder: Path) -> None:
    loaded = T5Text.from_pretrained(folder)
    first, second = t5.encode_states(TEXTS), loaded.encode_states(TEXTS)
    assert_close(first.states, second.states, depth=NETWORK)
    assert loaded.fingerprint() == t5.fingerprint()
    assert not any(p.requires_grad for p in loaded.parameters())


def test_states_are_those_of_transformers(t5: T5Text, folder: Path) -> None:
    found = t5.encode_states(TEXTS)
    encoder = T5EncoderModel.from_pretrained(folder)
    for row, text in enumerate(TEXTS):
        ids = torch.tensor([[*t5.tokenizer(text, add_special_tokens=False)["input_ids"], t5.tokenizer.eos_token_id]])
        alone = encoder(ids).last_hidden_state[0]
        assert_close(found.states[row][found.mask[row]], alone, depth=NETWORK)


def test_tokens_know_their_characters(t5: T5Text) -> None:
    found = t5.encode_states(TEXTS)
    assert found.spans is not None
    for text, spans, mask in zip(TEXTS, found.spans, found.mask, strict=True):
        real = spans[mask]
        assert real[-1].tolist() == [0, 0]
        covered = sorted({place for low, high in real[:-1].tolist() for place in range(low, high)})
        assert [text[i] for i in covered if text[i] != " "] == [c for c in text if c != " "]


def test_a_text_too_long_is_cut_aloud(t5: T5Text) -> None:
    with pytest.warns(UserWarning, match=r"tokens, this encoder reads 40; cut: .*circle"):
        found = t5.encode_states([TEXTS[0] * 10])
    assert found.mask.sum() == 40


def test_a_whole_t5_is_read_too(t5: T5Text, folder: Path, tmp_path: Path) -> None:
    t5.model.save_pretrained(tmp_path)
    t5.tokenizer.save_pretrained(tmp_path)
    whole = T5Text.from_pretrained(tmp_path)
    assert_close(whole.encode_states(TEXTS).states, t5.encode_states(TEXTS).states, depth=NETWORK)
    assert isinstance(t5.model, T5ForConditionalGeneration)


def test_wrong_folders(folder: Path, tmp_path: Path) -> None:
    import shutil

    clip = shutil.copytree(folder, tmp_path / "clip")
    artifacts.write_json(clip / "config.json", artifacts.read_json(clip / "config.json") | {"model_type": "clip"})
    with pytest.raises(UserError, match="is a 'clip', not a t5"):
        T5Text.from_pretrained(clip)
    lacking = shutil.copytree(folder, tmp_path / "lacking")
    tensors = artifacts.read_tensors(lacking / artifacts.WEIGHTS_FILE)
    tensors.pop("encoder.block.1.layer.0.SelfAttention.q.weight")
    artifacts.write_tensors(lacking / artifacts.WEIGHTS_FILE, tensors)
    with pytest.raises(UserError, match=r"lacks weights: encoder\.block\.1"):
        T5Text.from_pretrained(lacking)
    without = shutil.copytree(folder, tmp_path / "without")
    (without / artifacts.WEIGHTS_FILE).unlink()
    with pytest.raises(UserError, match=r"model\.safetensors is missing"):
        T5Text.from_pretrained(without)
    with pytest.raises(UserError, match="no folder"):
        T5Text.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(UserError, match="must divide by 3 heads"):
        build_t5(T5Config(heads=3), TEXTS, 0)
