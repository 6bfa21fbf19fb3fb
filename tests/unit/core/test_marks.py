"""Special tokens spelled out in users' texts are text, in every reader; texts without them keep their token ids."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

from syzygy.clip.clip_model import Clip
from syzygy.clip.tokenization import encoded
from syzygy.pretrained.text_reader import TextReader
from syzygy.regions.attention_processors import padded_tokens
from syzygy.text_encoders.llm import Llm, LlmRecipe
from syzygy.text_encoders.t5 import T5Config, build_t5
from tests.tiny_llm import TEXTS, save_tiny_llm, tiny_tokenizer
from tests.tiny_unclip import tiny_clip

ORDINARY = [*TEXTS, "", "a < b > c", "tabs\tand  spaces", "an <odd> text | with | bars", "✨ 星"]


def sentencepiece() -> Any:
    """A Unigram vocabulary as T5's and XLM-R's, which hold special tokens among their pieces, with the best score."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁a", -2.0), ("▁red", -3.0), ("▁", -2.0)]
    letters = sorted({letter for text in ORDINARY for letter in text if letter not in " ✨"} | set("fim_end<|>/"))
    tokenizer = Tokenizer(models.Unigram([*pieces, *((letter, -5.0) for letter in letters)], unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    marks = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **marks)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Clip:
    return Clip.from_pretrained(tiny_clip(tmp_path_factory.mktemp("clip") / "clip"))


@pytest.fixture(params=["byte pairs", "sentencepiece", "clip", "t5"])
def tokenizer(request: pytest.FixtureRequest, clip: Clip) -> Any:
    if request.param == "clip":
        return clip.tokenizer
    if request.param == "t5":
        return build_t5(T5Config(width=16, layers=1, heads=2), TEXTS * 20, 0).tokenizer
    return tiny_tokenizer() if request.param == "byte pairs" else sentencepiece()


def special(tokenizer: Any) -> set[int]:
    found = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    return found - {tokenizer.convert_tokens_to_ids("<unk>")}


def test_ordinary_texts_keep_their_ids(tokenizer: Any) -> None:
    expected = tokenizer(ORDINARY, add_special_tokens=False, return_offsets_mapping=True)
    found = encoded(tokenizer, ORDINARY)
    assert [ids for ids, _ in found] == expected["input_ids"]
    assert [spans for _, spans in found] == expected["offset_mapping"]


def test_marks_are_spelled(tokenizer: Any) -> None:
    for name in sorted(tokenizer.convert_ids_to_tokens(i) for i in special(tokenizer)):
        text = f"a red {name} star{name}"
        ((ids, spans),) = encoded(tokenizer, [text])
        assert special(tokenizer).isdisjoint(ids), name
        covered = {place for low, high in spans for place in range(low, high)}
        assert {i for i, letter in enumerate(text) if letter != " "} <= covered
        ((acting, _),) = encoded(tokenizer, [text], control=True)
        assert not special(tokenizer).isdisjoint(acting)
    # What others do with the same tokenizer afterwards is not changed.
    assert tokenizer.eos_token_id in tokenizer(f"a {tokenizer.eos_token}", add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("kind", ["byte pairs", "sentencepiece"])
def test_added_tokens_that_are_not_special(kind: str) -> None:
    """Words and white space that a tokenizer added stay one token; control tokens by their form do not, whatever they are declared as."""
    tokenizer = tiny_tokenizer() if kind == "byte pairs" else sentencepiece()
    tokenizer.add_tokens(["cat-toy", "<|fim_middle|>"])
    word, mark = tokenizer.convert_tokens_to_ids(["cat-toy", "<|fim_middle|>"])
    ((ids, spans),) = encoded(tokenizer, ["a <|fim_middle|> cat-toy"])
    assert mark not in ids
    assert spans[ids.index(word)] == (17, 24)


def test_readers_of_texts(clip: Clip, tmp_path: Path) -> None:
    """CLIP, a language model, and T5: no special token but those that they put around a text."""
    end = clip.tokenizer.eos_token_id
    assert (clip.tokenize(["a red <|endoftext|> star<|startoftext|>"])[0] == end).sum() == 1
    llm = Llm.from_pretrained(save_tiny_llm("llama", tmp_path / "llm"))
    assert llm.tokenize(["a </s> <s> star"]).ids[0, 1:-1].min() > 2  # the three of the tokenizer come first
    t5 = build_t5(T5Config(width=16, layers=1, heads=2), TEXTS * 20, 0)
    assert (t5.tokenize(["a </s> star <extra_id_3>"]).ids == t5.tokenizer.eos_token_id).sum() == 1
    assert t5.tokenize(["<extra_id_3>"]).ids.shape[1] > 3


def test_in_a_template_they_act(tmp_path: Path) -> None:
    folder = save_tiny_llm("qwen3", tmp_path / "llm")
    llm = Llm.from_pretrained(folder, recipe=LlmRecipe(template="<s>{text}</s>"))
    start, end = llm.tokenizer.convert_tokens_to_ids(["<s>", "</s>"])
    (ids,) = llm.tokenize(["a </s> star"]).ids.tolist()
    assert ids[0] == start
    assert ids[-2:] == [end, end]
    assert end not in ids[:-2]


def test_readers_of_published_decoders(clip: Clip) -> None:
    """Stable unCLIP's own encoder reads what the words of a region are looked for in; diffusers' pipelines let marks act."""
    tokenizer, prompt, most = clip.tokenizer, "a red <|endoftext|> star", clip.positions
    end = tokenizer.eos_token_id
    words = padded_tokens(tokenizer, [prompt], most=most)
    real = int(words.mask.sum())
    assert (words.ids[0, : real - 1] != end).all()
    reader = TextReader([clip.model.text_model], [tokenizer], torch.device("cpu"), most=most)
    expected = clip.model.text_model(words.ids, attention_mask=None)[0]
    torch.testing.assert_close(reader([prompt]).states, expected)
    assert torch.equal(reader([prompt]).spans[0], words.spans)
    acting = padded_tokens(tokenizer, [prompt], most=most, control=True)
    assert acting.ids.tolist() == tokenizer([prompt], padding="max_length", max_length=most)["input_ids"]
    assert not torch.equal(acting.ids, words.ids)


def test_an_exclamation_mark_that_pads_is_text_as_well(clip: Clip) -> None:
    """As of Stable Diffusion XL's second tokenizer and Kandinsky's: the ids that they were trained with."""
    import copy

    tokenizer = copy.deepcopy(clip.tokenizer)
    tokenizer.add_special_tokens({"pad_token": "!"})
    texts = ["a red star!", "!", "wow! a star <|endoftext|>"]
    assert [ids for ids, _ in encoded(tokenizer, texts[:2])] == tokenizer(texts[:2], add_special_tokens=False)[
        "input_ids"
    ]
    assert tokenizer.eos_token_id not in encoded(tokenizer, texts)[2][0]
