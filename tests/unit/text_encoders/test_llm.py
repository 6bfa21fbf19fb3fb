"""Language models as text encoders: real classes of each family, tiny and random."""

import inspect
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest
import torch
from transformers import AutoModel, AutoTokenizer, ByT5Tokenizer

from syzygy.core import artifacts
from syzygy.core.config import parse
from syzygy.core.errors import UserError
from syzygy.text_encoders.llm import SENTENCES, Llm, LlmRecipe, check_same, mean_of_layers
from tests.closeness import NETWORK, about, assert_close
from tests.hub_cache import COMMIT, add_snapshot
from tests.tiny_llm import FAMILIES, SIZES, TEXTS, save_tiny_llm, tiny_tokenizer
from tests.tiny_unclip import tiny_clip

Get = Callable[[str], Path]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Get:
    """A family's folder, made once."""
    made: dict[str, Path] = {}

    def get(family: str) -> Path:
        if family not in made:
            made[family] = save_tiny_llm(family, tmp_path_factory.mktemp("llm") / family.replace(" ", "-"))
        return made[family]

    return get


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_is_its_texts_one_by_one(family: str, folders: Get) -> None:
    llm = Llm.from_pretrained(folders(family))
    assert llm.width == SIZES["hidden_size"]
    assert not any(name.startswith(("lm_head", "decoder.", "vision")) for name, _ in llm.model.named_parameters())
    assert not any(p.requires_grad for p in llm.parameters())
    texts = ["", *TEXTS, TEXTS[0] * 4]
    together = llm.encode_states(texts)
    assert together.spans is not None
    assert together.mask.sum(1).unique().numel() > 3
    for row, text in enumerate(texts):
        alone = llm.encode_states([text])
        assert alone.mask.all()
        real = together.mask[row]
        assert_close(together.states[row][real], alone.states[0], depth=NETWORK)
        assert (together.states[row][~real] == 0).all()
        assert torch.equal(together.spans[row][real.cpu()], alone.spans[0])  # type: ignore[index]


@pytest.mark.parametrize("family", ["llama", "xlm-roberta"])
def test_the_last_layer_is_what_transformers_gives(family: str, folders: Get) -> None:
    """Positions too, which do not begin at 0 in every family."""
    llm = Llm.from_pretrained(folders(family), recipe=LlmRecipe(layers="last", normalise=False))
    start, end = (llm.tokenizer.convert_tokens_to_ids(mark) for mark in ("<s>", "</s>"))
    ids = torch.tensor([[start, *llm.tokenizer(TEXTS[0], add_special_tokens=False)["input_ids"], end]])
    with torch.no_grad():
        expected = AutoModel.from_pretrained(folders(family))(ids).last_hidden_state
    assert_close(llm.encode_states([TEXTS[0]]).states, expected, depth=NETWORK)


def test_the_first_hidden_state_is_the_embedding(folders: Get) -> None:
    llm = Llm.from_pretrained(folders("llama"), recipe=LlmRecipe(layers=(0,), normalise=False))
    expected = llm.model.embed_tokens(llm.tokenize([TEXTS[0]]).ids)
    assert torch.equal(llm.encode_states([TEXTS[0]]).states, expected)


def test_the_mean_is_over_normalised_layers(folders: Get) -> None:
    def states(**recipe) -> torch.Tensor:
        return Llm.from_pretrained(folders("gemma2"), recipe=LlmRecipe(**recipe)).encode_states([TEXTS[1]]).states

    each = [states(layers=(i,)) for i in range(4)]
    for one in each:
        torch.testing.assert_close(one.std(-1, unbiased=False), torch.ones(one.shape[:2]), atol=1e-2, rtol=0)
    assert_close(states(), torch.stack(each).mean(0))
    assert_close(states(layers=(3, 1)), (each[3] + each[1]) / 2)
    assert_close(states(layers=(3,), normalise=False), states(layers="last", normalise=False))
    assert (states(normalise=False) - states()).abs().max() > 0.1


@pytest.mark.parametrize("scale", [1e-2, 1.0, 1e4])
def test_a_large_layer_does_not_drown_the_others(scale: float) -> None:
    first, second = torch.randn(2, 1, 3, 64, generator=torch.Generator().manual_seed(0))
    both = mean_of_layers([first, scale * second], normalise=True)
    torch.testing.assert_close(both, mean_of_layers([first, second], normalise=True), atol=2e-1, rtol=0)
    plain = mean_of_layers([first, scale * second], normalise=False)
    assert torch.nn.functional.cosine_similarity(both, first, dim=-1).mean() > 0.5
    assert_close(plain, (first + scale * second) / 2)


def test_layers_in_bf16_are_normalised_in_fp32() -> None:
    coarse = torch.randn(1, 3, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
    assert torch.equal(mean_of_layers([coarse], normalise=True), mean_of_layers([coarse.float()], normalise=True))


@pytest.mark.parametrize("family", ["llama", "qwen2", "t5"])
def test_a_template_is_read_and_its_tokens_dropped(family: str, folders: Get) -> None:
    plain = Llm.from_pretrained(folders(family))
    framed = Llm.from_pretrained(folders(family), recipe=LlmRecipe(template="Blue circle: {text}. star"))
    texts = [TEXTS[0], "", TEXTS[2]]
    bare, found = plain.encode_states(texts), framed.encode_states(texts)
    assert bare.spans is not None
    assert found.spans is not None
    own = [int((spans[:, 1] > spans[:, 0]).sum()) for spans in bare.spans]
    assert found.mask.sum(1).tolist() == [number + 1 for number in own]  # and the end
    for row, number in enumerate(own):
        assert torch.equal(found.spans[row, :number], bare.spans[row][bare.spans[row, :, 1] > 0][:number])
    other = Llm.from_pretrained(folders(family), recipe=LlmRecipe(template="zwei Ringe {text}. star"))
    assert (other.encode_states(texts).states - found.states).abs().max() > 1e-2
    alone = framed.encode_states([TEXTS[2]])
    assert_close(found.states[2][found.mask[2]], alone.states[0], depth=NETWORK)


@pytest.mark.parametrize(("family", "start"), [("llama", ["<s>"]), ("qwen2", [])])
def test_a_template_stands_between_the_special_tokens(family: str, start: list[str], folders: Get) -> None:
    """And the text's own states and the very last one are kept: a causal model has read all of it there."""
    head, text, tail = "Blue circle: ", "zwei Ringe", ". star"
    recipe = LlmRecipe(template=f"{head}{{text}}{tail}", layers="last", normalise=False)
    llm = Llm.from_pretrained(folders(family), recipe=recipe)
    before, own, after = (llm.tokenizer(part, add_special_tokens=False)["input_ids"] for part in (head, text, tail))
    before, end = llm.tokenizer.convert_tokens_to_ids(start) + before, llm.tokenizer.convert_tokens_to_ids("</s>")
    ids = torch.tensor([[*before, *own, *after, end]])
    assert torch.equal(llm.tokenize([text]).ids, ids)
    with torch.no_grad():
        states = llm.model(ids).last_hidden_state[0]
    expected = torch.cat([states[len(before) : len(before) + len(own)], states[-1:]])
    assert_close(llm.encode_states([text]).states[0], expected, depth=NETWORK)


def test_named_templates_are_those_of_published_pipelines(folders: Get, tmp_path: Path) -> None:
    from diffusers import Lumina2Pipeline, QwenImagePipeline, SanaPipeline

    qwen = LlmRecipe(template="qwen-image").template
    assert qwen is not None
    source = inspect.getsource(QwenImagePipeline.__init__)
    assert json.dumps(qwen.replace("{text}", "{}")) in source
    assert (LlmRecipe(template="lumina-2").template or "").partition(" <Prompt")[0] in inspect.getsource(
        Lumina2Pipeline
    )
    instruction = inspect.signature(SanaPipeline.__call__).parameters["complex_human_instruction"].default
    assert LlmRecipe(template="sana").template == "\n".join(instruction) + "{text}"

    with pytest.raises(
        UserError, match=r"the template holds <\|im_end\|>, <\|im_start\|>, which the tokenizer of .* as ordinary"
    ):
        Llm.from_pretrained(folders("qwen2"), recipe=LlmRecipe(template="qwen-image"))
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<|im_start|>", "<|im_end|>"], special_tokens=True)
    llm = Llm.from_pretrained(
        save_tiny_llm("qwen2", tmp_path, tokenizer), recipe=LlmRecipe(template="qwen-image", max_tokens=400)
    )
    ids, spans = llm.tokenize(["a red star"]).ids[0].tolist(), llm.encode_states(["a red star"]).spans
    start, end = tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
    assert (ids.count(start), ids.count(end)) == (3, 2)
    assert spans is not None
    assert spans[0, :-1].flatten().tolist()[0] == 0  # the text's own tokens, then the last one
    assert llm.identity().template == qwen


def test_tokens_know_their_characters(folders: Get) -> None:
    found = Llm.from_pretrained(folders("qwen3")).encode_states(list(TEXTS))
    assert found.spans is not None
    for text, spans, mask in zip(TEXTS, found.spans, found.mask, strict=True):
        covered = {place for low, high in spans[mask].tolist() for place in range(low, high)}
        assert {i for i, letter in enumerate(text) if letter != " "} <= covered


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_a_tokenizer_without_a_pad(family: str, tmp_path: Path) -> None:
    """Of Llama it stays without; transformers gives Qwen's one that a tiny model does not know."""
    tokenizer = tiny_tokenizer(pad=False)
    assert tokenizer.pad_token_id is None
    llm = Llm.from_pretrained(save_tiny_llm(family, tmp_path, tokenizer))
    found = llm.encode_states(["star", TEXTS[0]])
    assert_close(found.states[0][found.mask[0]], llm.encode_states(["star"]).states[0], depth=NETWORK)


def test_a_text_too_long_is_cut_aloud(folders: Get) -> None:
    llm = Llm.from_pretrained(folders("mistral"))
    with pytest.warns(UserWarning, match=r"the prompt has \d{3} tokens, this encoder reads 512; cut: .*circle"):
        found = llm.encode_states([TEXTS[0] * 60])
    assert found.mask.sum() == llm.positions == 512
    framed = Llm.from_pretrained(folders("mistral"), recipe=LlmRecipe(template="star {text}!", max_tokens=20))
    with pytest.warns(UserWarning, match="this encoder reads 20"):
        assert framed.encode_states([TEXTS[0] * 4]).mask.sum() == framed.positions < 20


def test_in_bf16_the_same_within_its_precision(folders: Get) -> None:
    fine, coarse = (Llm.from_pretrained(folders("llama"), dtype=dtype) for dtype in (torch.float32, torch.bfloat16))
    assert coarse.dtype == torch.bfloat16
    first, second = (llm.encode_states(list(TEXTS)) for llm in (fine, coarse))
    assert second.states.dtype == torch.float32
    cosine = torch.nn.functional.cosine_similarity(first.states[first.mask], second.states[second.mask], dim=-1)
    assert 0.99 < cosine.mean() < 1 - 1e-7
    alone = coarse.encode_states([TEXTS[1]]).states[0]
    torch.testing.assert_close(second.states[1][second.mask[1]], alone, atol=0.1, rtol=0)
    # Without normalisation values are large; what they differ by then is a part of the largest.
    large = Llm.from_pretrained(folders("llama"), dtype=torch.bfloat16, recipe=LlmRecipe(normalise=False))
    together, alone = large.encode_states(list(TEXTS)), large.encode_states([TEXTS[1]]).states[0]
    difference = together.states[1][together.mask[1]] - alone
    assert difference.abs().max() <= 0.02 * alone.abs().max()
    with pytest.raises(UserError, match=r"computes in float32 or bfloat16, not torch\.float16"):
        Llm.from_pretrained(folders("llama"), dtype=torch.float16)


def test_an_identity_tells_what_changes_features(folders: Get) -> None:
    folder = folders("llama")
    identity = Llm.from_pretrained(folder).identity().to_config()
    alone = [Llm.from_pretrained(folder).encode_states([text]).states.std().item() for text in SENTENCES]
    assert identity["deviations"] == about(alone, depth=NETWORK)  # of the tokens, not of the padding
    assert identity["versions"]["transformers"]
    check_same(identity, Llm.from_pretrained(folder).identity().to_config(), "this")
    rounded = identity | {"deviations": [x * 1.001 for x in identity["deviations"]], "source": "elsewhere"}
    check_same(rounded, identity, "a store made on another machine")
    for how, word in (
        ({"recipe": LlmRecipe(layers="last")}, "layers is 'all' there, 'last' here"),
        ({"recipe": LlmRecipe(normalise=False)}, "normalise is True there, False here"),
        ({"recipe": LlmRecipe(template="{text}!")}, r"template is None there, '\{text\}!' here"),
        ({"dtype": torch.bfloat16}, "dtype is 'float32' there, 'bfloat16' here"),
    ):
        with pytest.raises(UserError, match=rf"the store was made with other features of a language model: {word}"):
            check_same(identity, Llm.from_pretrained(folder, **how).identity().to_config(), "the store")


@pytest.mark.parametrize("layers", [(2, 3), (3,), "last", "all"])
def test_hidden_states_of_another_meaning_are_noticed(
    layers: Literal["all", "last"] | tuple[int, ...], folders: Get, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when a version of transformers gives the last state before the final normalisation."""
    llm = Llm.from_pretrained(folders("llama"), recipe=LlmRecipe(layers=layers))
    before = llm.identity().to_config()
    monkeypatch.setattr(llm.model, "norm", torch.nn.Identity())
    after = before | {"deviations": list(llm.deviations())}
    assert before["deviations"] != after["deviations"]
    with pytest.raises(UserError, match=r"another standard deviation .* changed between transformers \d"):
        check_same(before, after, "the adapter")


def test_other_weights_are_another_model(folders: Get, tmp_path: Path) -> None:
    other = Llm.from_pretrained(save_tiny_llm("llama", tmp_path, seed=1))
    with pytest.raises(UserError, match="fingerprint is"):
        check_same(Llm.from_pretrained(folders("llama")).identity().to_config(), other.identity().to_config(), "it")


def test_a_wider_model_is_named_by_its_width(folders: Get) -> None:
    identity = Llm.from_pretrained(folders("llama")).identity().to_config()
    with pytest.raises(UserError, match="width is 32 there, 64 here"):
        check_same(identity, identity | {"width": 64, "classes": ["X", "Y"], "fingerprint": "0"}, "it")


def test_a_tokenizer_that_writes_into_texts(folders: Get) -> None:
    from syzygy.text_encoders.llm_frame import Frame

    class Splitting:
        eos_token_id = 0

        def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
            return {"input_ids": [1, 9, 2] if add_special_tokens else [1, 2]}

    with pytest.raises(UserError, match="puts special tokens into a text"):
        Frame.of(Splitting(), None, None, "it")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"template": "no hole"},
            r"must contain \{text\} once, and other text, or be one of qwen-image, lumina-2, sana",
        ),
        ({"template": "{text}"}, "leave the template out"),
        ({"template": "{text} {text}"}, "once"),
        ({"layers": []}, "at least one"),
        ({"layers": [1, 1]}, "different numbers"),
        ({"layers": "first"}, "layers"),
        ({"max_tokens": 2}, "max_tokens"),
    ],
)
def test_recipes_that_are_none(values: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse(LlmRecipe, values, "settings")


def test_recipes_that_do_not_fit(folders: Get) -> None:
    for recipe, message in (
        (LlmRecipe(layers=(4,)), r"has hidden states 0 to 3"),
        (LlmRecipe(max_tokens=601), r"reads at most 600"),
        (LlmRecipe(template="circle " * 9 + "{text}", max_tokens=10), "leaves no room for text"),
    ):
        with pytest.raises(UserError, match=message):
            Llm.from_pretrained(folders("llama"), recipe=recipe)
    assert Llm.from_pretrained(folders("llama"), recipe=LlmRecipe(max_tokens=600)).positions == 600
    read = Llm.from_pretrained(
        folders("xlm-roberta"), recipe=LlmRecipe(max_tokens=601)
    )  # 602 positions, of which one is the padding's
    with pytest.warns(UserWarning, match="this encoder reads 601"):
        assert read.encode_states(["circle " * 599]).mask.sum() == 601
    with pytest.raises(UserError, match="reads at most 601"):
        Llm.from_pretrained(folders("xlm-roberta"), recipe=LlmRecipe(max_tokens=602))
    framed = Llm.from_pretrained(folders("llama"), recipe=LlmRecipe(template="circle {text}", max_tokens=20))
    special = 20 + 1 - framed.positions  # all but the end are dropped
    with pytest.raises(UserError, match=f"the template take {special}"):
        Llm.from_pretrained(folders("llama"), recipe=LlmRecipe(template="circle {text}", max_tokens=special))


def test_wrong_folders(folders: Get, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no folder nowhere\. Give a folder, or a hub id such as Qwen"):
        Llm.from_pretrained("nowhere")
    strange = shutil.copytree(folders("llama"), tmp_path / "strange")
    artifacts.write_json(
        strange / "config.json", artifacts.read_json(strange / "config.json") | {"model_type": "baichuan"}
    )
    with pytest.raises(UserError, match="cannot be loaded"):
        Llm.from_pretrained(strange)
    lacking = shutil.copytree(folders("qwen2"), tmp_path / "lacking")
    tensors = artifacts.read_tensors(lacking / artifacts.WEIGHTS_FILE)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    artifacts.write_tensors(lacking / artifacts.WEIGHTS_FILE, tensors)
    with pytest.raises(UserError, match=r"lacks weights: layers\.1\.mlp\.up_proj"):
        Llm.from_pretrained(lacking)
    file = lacking / artifacts.WEIGHTS_FILE
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"lacking cannot be loaded: .*incomplete"):
        Llm.from_pretrained(lacking)
    file.rename(lacking / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"only as pickle \(pytorch_model\.bin\), which can run code"):
        Llm.from_pretrained(lacking)
    endless = shutil.copytree(folders("qwen2"), tmp_path / "endless")
    tokenizer = AutoTokenizer.from_pretrained(endless)
    tokenizer.eos_token = None
    tokenizer.save_pretrained(endless)
    with pytest.raises(UserError, match="no end token"):
        Llm.from_pretrained(endless)
    (endless / "tokenizer.json").write_text('{"version": "1.0"}')
    with pytest.raises(UserError, match=r"the tokenizer of .*endless cannot be read"):
        Llm.from_pretrained(endless)
    (endless / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"knows no words: its folder needs a tokenizer\.json"):
        Llm.from_pretrained(endless)
    slow = shutil.copytree(folders("t5"), tmp_path / "slow")
    (slow / "tokenizer.json").unlink()
    ByT5Tokenizer().save_pretrained(slow)
    with pytest.raises(UserError, match=r"cannot map tokens to characters: its folder needs a tokenizer\.json"):
        Llm.from_pretrained(slow)


def test_what_reads_pictures_is_no_language_model(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is a CLIPModel, which reads images: give a language model"):
        Llm.from_pretrained(tiny_clip(tmp_path))


def test_a_revision_is_kept(folders: Get, cache: Path) -> None:
    add_snapshot(cache, folders("llama"), "some/model", COMMIT, "main")
    assert Llm.from_pretrained("some/model").identity().revision == COMMIT
