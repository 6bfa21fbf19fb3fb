"""A real language model, SmolLM2-135M-Instruct: features against a computation of our own, a batch against its texts, a folder of it."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer

from syzygy.text_encoders.llm import Llm, LlmRecipe
from tests.closeness import NETWORK, assert_close
from tests.smollm2 import smollm2_gguf

pytestmark = pytest.mark.slow
LAYERS = 30
TEXTS = ("", "circle", "a red circle", "two striped blue hearts left of a green moon, in night style", "ein roter Kreis", "一个红色圆形",
         "My aunt kept this sheet of paper in a wooden box for many years. " * 4 + "There is a red square.")  # fmt: skip


WORDS = ("red", "crimson", "blue", "green", "pink", "purple", "yellow", "orange")


def first_words(llm: Llm, start_token: str | None) -> float:
    """Mean cosine similarity between the features of texts' first tokens that stand for different words."""
    read = Llm(llm.model, llm.tokenizer, llm.source, LlmRecipe(start_token=start_token))
    states = F.normalize(torch.stack([read.encode_states([f"{word} circle"]).states[0, 0] for word in WORDS]), dim=-1)
    return (states @ states.T)[~torch.eye(len(WORDS), dtype=torch.bool)].mean().item()


@pytest.fixture(scope="module")
def llm() -> Llm:
    return Llm.from_pretrained(smollm2_gguf())


@pytest.fixture(scope="module")
def folder(llm: Llm, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of it, as the example makes one."""
    import runpy
    import sys

    from tests.documents import ROOT

    out = tmp_path_factory.mktemp("smollm2") / "folder"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["smollm2_folder.py", "--out", str(out)])
        runpy.run_path(str(ROOT / "examples/smollm2_folder.py"), run_name="__main__")
    return out


def test_a_batch_is_its_texts_one_by_one(llm: Llm) -> None:
    together = llm.encode_states([*TEXTS])
    for row, text in enumerate(TEXTS):
        assert_close(together.states[row][together.mask[row]], llm.encode_states([text]).states[0], depth=LAYERS)


def test_a_folder_of_it_gives_the_same_as_the_file(llm: Llm, folder: Path) -> None:
    own = Llm.from_pretrained(folder)
    assert own.fingerprint() == llm.fingerprint()
    assert torch.equal(own.tokenize([*TEXTS]).ids, llm.tokenize([*TEXTS]).ids)
    assert_close(own.encode_states([*TEXTS]).states, llm.encode_states([*TEXTS]).states, depth=NETWORK)


def test_the_features_are_the_mean_of_its_normalised_layers(llm: Llm, folder: Path) -> None:
    """Computed here with hooks on the model with its head, one text at a time, in double precision after the layers."""
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder).eval()
    seen: list[torch.Tensor] = []
    for layer in model.model.layers:
        layer.register_forward_pre_hook(
            lambda _, given, named: seen.append((given or (named["hidden_states"],))[0]), with_kwargs=True
        )
    model.model.norm.register_forward_hook(lambda _, given, out: seen.append(out))
    for text in TEXTS[1:6]:
        seen.clear()
        ids = [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
        with torch.no_grad():
            model(input_ids=torch.tensor([ids]))
        assert len(seen) == LAYERS + 1
        states = [x[0].double() for x in seen]
        normal = [
            (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, unbiased=False) + 1e-5).sqrt() for x in states
        ]
        wanted = torch.stack(normal).mean(0).float()
        assert_close(llm.encode_states([text]).states[0], wanted, depth=LAYERS)


def test_a_start_token_takes_the_sink_from_the_first_word(llm: Llm) -> None:
    alike, apart = first_words(llm, None), first_words(llm, "auto")
    assert alike > 0.98
    assert apart < 0.9
