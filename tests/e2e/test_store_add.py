"""A language model's features in a store, from the command line."""

import io
import json
from pathlib import Path

import pytest
import torch

from syzygy.core.errors import UserError
from syzygy.data.store import EmbeddingStore
from syzygy.data.store_checking import verify
from syzygy.text_encoders.llm import Llm, LlmRecipe
from syzygy.text_encoders.store_features import open_features
from tests.closeness import assert_close
from tests.tiny_llm import save_tiny_llm


@pytest.fixture
def store(syzygy, tiny_model: Path, tmp_path: Path) -> Path:
    assert syzygy("world", "sample", "--num", 7, "--size", 32, "--out", tmp_path / "scenes").code == 0
    answer = syzygy(
        "embed", tmp_path / "scenes", "--encoder", tiny_model, "--out", tmp_path / "store", "--device", "cpu"
    )
    assert answer.code == 0, answer.err
    return tmp_path / "store"


def test_added_and_checked(syzygy, store: Path, tmp_path: Path) -> None:
    folder = save_tiny_llm("llama", tmp_path / "llama")
    answer = syzygy("store", "add", store, "--llm", folder, "--batch-size", 3, "--device", "cpu", "--json")
    assert answer.code == 0, answer.err
    assert "cut" not in answer.out
    said = json.loads(answer.out.splitlines()[-1])
    llm = Llm.from_pretrained(folder)
    opened = open_features(store, llm.identity().to_config())
    assert opened.dtype == torch.bfloat16
    found, expected = opened.tokens(range(7)), llm.encode_states(opened.texts(range(7)))
    assert said["tokens"] == int(found.mask.sum()) == int(expected.mask.sum())  # nothing is padded in the store
    assert said["longest"] == expected.mask.shape[1]
    assert_close(found.states[found.mask].float(), expected.states[expected.mask], dtype=torch.bfloat16)
    assert verify(store) == []
    assert EmbeddingStore.open(store).captions([0]).pooled.shape == (1, 32)

    for how, message in (
        ({"recipe": LlmRecipe(layers="last")}, "layers is 'all' there, 'last' here"),
        ({"dtype": torch.bfloat16}, "dtype is 'float32' there, 'bfloat16' here"),
    ):
        with pytest.raises(UserError, match=rf"the feature set 'llm' of .* was made with other features .*: {message}"):
            open_features(store, Llm.from_pretrained(folder, **how).identity().to_config())
    with pytest.raises(UserError, match=r"the feature set 'clip' of .* was made with other features"):
        open_features(store, llm.identity().to_config(), "clip")


def test_other_recipes_by_other_names(syzygy, store: Path, tmp_path: Path) -> None:
    folder = save_tiny_llm("qwen2", tmp_path / "qwen2")
    one = ("store", "add", store, "--llm", folder, "--device", "cpu")
    answer = syzygy(*one, "--layers", "1,3", "--plain", "--template", "a {text}!", "--max-tokens", 8, "--dtype", "fp16")
    assert answer.code == 0, answer.err
    assert "The longest may have been cut: at most 8 tokens are read" in answer.out
    encoder = EmbeddingStore.open(store, features="llm").encoder
    told = {name: encoder[name] for name in ("layers", "normalise", "template", "max_tokens")}
    assert told == {"layers": [1, 3], "normalise": False, "template": "a {text}!", "max_tokens": 8}
    info = syzygy("store", "info", store).out
    assert "    layers: [1, 3]\n    normalise: False\n    template: a {text}!\n    computed in: float32" in info
    for more, message in (
        ((), "has a feature set 'llm' already"),
        (("--name", "x", "--layers", "some"), "allowed: all, last, or numbers"),
        (("--name", "x", "--layers", "9"), "has hidden states 0 to 3"),
        (("--name", "x", "--template", "none"), "must contain {text} once"),
        (("--name", "x", "--start-token", "red"), "start_token='red' is no special token of"),
    ):
        answer = syzygy(*one, *more)
        assert answer.code == 2
        assert message in answer.err.replace("\n", " ")


def test_a_start_token_is_recorded(syzygy, store: Path, tmp_path: Path) -> None:
    folder = save_tiny_llm("qwen2", tmp_path / "qwen2")
    answer = syzygy("store", "add", store, "--llm", folder, "--device", "cpu", "--start-token", "<s>")
    assert answer.code == 0, answer.err
    assert "    start token: <s>\n" in syzygy("store", "info", store).out
    llm = Llm.from_pretrained(folder, recipe=LlmRecipe(start_token="<s>"))
    opened = open_features(store, llm.identity().to_config())
    found, expected = opened.tokens([0]), llm.encode_states(opened.texts([0]))
    assert_close(found.states.float(), expected.states, dtype=torch.bfloat16)


def test_code_of_a_model_is_refused_without_a_question(
    syzygy, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_tiny_llm("llama", tmp_path / "llama")
    config = json.loads((folder / "config.json").read_text()) | {"model_type": "own"}
    config["auto_map"] = {"AutoConfig": "own_code.Own", "AutoModel": "own_code.OwnModel"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own_code.py").write_text(f"import pathlib\npathlib.Path({str(tmp_path / 'ran')!r}).touch()\n")
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 9))
    answer = syzygy("store", "add", store, "--llm", folder, "--device", "cpu")
    assert answer.code == 2
    assert "needs Python code of its own (own_code.py)" in " ".join(answer.err.split())
    assert "[y/N]" not in answer.out + answer.err
    assert not (tmp_path / "ran").exists()
