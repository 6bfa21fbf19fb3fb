"""A language model from the command line, read by transformers and by us."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from syzygy.core import artifacts
from syzygy.core.errors import UserError
from syzygy.lab.starter import presets
from syzygy.lab.starter.lm_training import LmConfig, build_lm
from syzygy.text_encoders.llm import Llm

SMALL = ("lm.width=32", "lm.layers=1", "lm.heads=2", "lm.feed_forward=32", "lm.vocabulary=1500", "task.batch_size=4",
         'languages=["en","de"]', "loop.steps=6", "loop.warmup=1", "loop.validate_every=3", "loop.checkpoint_every=3")  # fmt: skip


def test_trained_and_loaded(syzygy, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("syzygy.lab.starter.lm_training.TOKENIZER_CAPTIONS", 30)
    monkeypatch.setattr("syzygy.lab.starter.lm_training.VALIDATION_CAPTIONS", 2)
    answer = syzygy("train", "lm", "--out", tmp_path / "run", *SMALL)
    assert answer.code == 0, answer.err
    assert "loss/de" in answer.out
    folder = tmp_path / "run" / "llm"
    record = artifacts.read_json(folder / artifacts.PROVENANCE_FILE)
    assert (record["kind"], record["steps"], record["samples"]) == ("lm", 6, 24)
    assert set(record["tokens_per_caption"]) == {"en", "de"}
    for each in record["tokens_per_caption"].values():
        assert 3 < each["short"] < each["medium"] < each["long"] < 512
    llm = Llm.from_pretrained(folder)
    found = llm.encode_states(["", "ein roter Kreis"])
    assert found.states.shape[2] == llm.width == 32
    # The words begin and end as in training, and the head is tied as it was.
    whole = AutoModelForCausalLM.from_pretrained(folder)
    assert torch.equal(whole.lm_head.weight, whole.model.embed_tokens.weight)
    assert torch.equal(whole.model.layers[0].mlp.up_proj.weight, llm.model.layers[0].mlp.up_proj.weight)


def test_a_trained_model_reads_the_tokens_that_it_was_trained_on(tmp_path: Path) -> None:
    texts = ["ein roter Kreis", "左边的红色圆形", "звезда"]
    lm = build_lm(LmConfig(width=32, layers=1, heads=2, vocabulary=400), texts * 9, seed=0)
    lm.save_pretrained(tmp_path / "llm", {})
    seen, read = lm.reader.tokenize(texts), Llm.from_pretrained(tmp_path / "llm").tokenize(texts)
    assert torch.equal(seen.ids, read.ids)
    assert torch.equal(seen.mask, read.mask)
    assert seen.ids[0, 0] == lm.tokenizer.bos_token_id
    assert seen.ids[seen.mask].eq(lm.tokenizer.eos_token_id).sum() == len(texts)


def test_no_token_spans_two_chinese_characters() -> None:
    text = "左边的红色圆形"
    lm = build_lm(LmConfig(width=32, layers=1, heads=2, vocabulary=2000), [text] * 9, seed=0)
    assert lm.reader.tokenize([text]).mask.sum() == len(text) + 2


def test_the_starter_is_small() -> None:
    run = presets.lm_starter()
    lm = build_lm(run.lm, ["a"], seed=0)
    embeddings = run.lm.vocabulary * run.lm.width
    others = sum(p.numel() for p in lm.model.parameters()) - lm.model.lm_head.weight.numel()
    assert embeddings + others < 3e6
    assert run.lm.max_tokens == 512


def test_wrong_settings(syzygy, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="must give 5 heads an even width"):
        build_lm(LmConfig(width=32, heads=5), ["a"], 0)
    answer = syzygy("train", "lm", "--out", tmp_path / "run", *SMALL, 'languages=["en","xx"]')
    assert answer.code == 2
    assert "unknown language 'xx'" in answer.err
