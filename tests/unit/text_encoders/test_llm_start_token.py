"""A start token for tokenizers that add none: it is read, gives no feature, and is recorded."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModel

from syzygy.core.errors import UserError
from syzygy.text_encoders.llm import Llm, LlmRecipe, check_same
from tests.closeness import NETWORK, assert_close
from tests.tiny_llm import TEXTS, save_tiny_llm


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its tokenizer adds no start token, and has none."""
    return save_tiny_llm("qwen3", tmp_path_factory.mktemp("llm"))


def test_it_is_read_and_gives_no_feature(folder: Path) -> None:
    plain = Llm.from_pretrained(folder)
    read = Llm.from_pretrained(folder, recipe=LlmRecipe(start_token="<s>", layers="last", normalise=False))
    start, end = (read.tokenizer.convert_tokens_to_ids(mark) for mark in ("<s>", "</s>"))
    for text in ("", *TEXTS):
        ids = torch.tensor([[start, *read.tokenizer(text, add_special_tokens=False)["input_ids"], end]])
        assert torch.equal(read.tokenize([text]).ids, ids)
        with torch.no_grad():
            wanted = AutoModel.from_pretrained(folder)(ids).last_hidden_state[:, 1:]
        found, before = read.encode_states([text]), plain.encode_states([text])
        assert_close(found.states, wanted, depth=NETWORK)
        assert found.spans is not None
        assert before.spans is not None
        assert torch.equal(found.spans, before.spans)
        assert (found.states - plain.encode_states([text]).states).abs().max() > 1e-2
    assert read.positions == plain.positions - 1


def test_in_a_batch_and_with_a_template(folder: Path) -> None:
    framed, both = (
        Llm.from_pretrained(folder, recipe=LlmRecipe(template="star {text}.", start_token=start))
        for start in (None, "<s>")
    )
    texts = ["", *TEXTS]
    bare, found = framed.encode_states(texts), both.encode_states(texts)
    assert torch.equal(found.mask, bare.mask)
    assert (found.states - bare.states).abs().max() > 1e-2
    for row, text in enumerate(texts):
        assert_close(found.states[row][found.mask[row]], both.encode_states([text]).states[0], depth=NETWORK)


def test_auto_is_the_tokenizers_own(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"has neither a start token nor <\|endoftext\|>\. Name one .*such as </s>, <pad>"
    ):
        Llm.from_pretrained(folder, recipe=LlmRecipe(start_token="auto"))
    with pytest.raises(UserError, match=r"start_token='red' is no special token of .* It has: </s>, <pad>, <s>"):
        Llm.from_pretrained(folder, recipe=LlmRecipe(start_token="red"))
    llm = Llm.from_pretrained(folder)
    llm.tokenizer.bos_token = "<s>"
    auto = Llm(llm.model, llm.tokenizer, llm.source, LlmRecipe(start_token="auto"))
    assert auto.tokenize(["red"]).ids[0, 0] == llm.tokenizer.convert_tokens_to_ids("<s>")
    llama = save_tiny_llm("llama", tmp_path)
    with pytest.raises(UserError, match=r"has no effect: the tokenizer of .* puts <s> before every text by itself"):
        Llm.from_pretrained(llama, recipe=LlmRecipe(start_token="auto"))


def test_it_is_recorded(folder: Path) -> None:
    plain, read = (
        Llm.from_pretrained(folder, recipe=LlmRecipe(start_token=start)).identity().to_config()
        for start in (None, "<s>")
    )
    with pytest.raises(UserError, match="start_token is None there, '<s>' here"):
        check_same(plain, read, "the adapter")
    older = {name: value for name, value in plain.items() if name != "start_token"}
    check_same(older, plain, "an adapter of an older version")
