"""A T5 from the command line."""

import shutil
from pathlib import Path

import pytest
import torch

from syzygy.core import artifacts
from syzygy.core.contracts import Region
from syzygy.core.errors import UserError
from syzygy.decoder.backbone import build_decoder, load_decoder
from syzygy.generation.text_to_image import TextToImage
from syzygy.lab.starter.decoder_training import extend
from syzygy.text_encoders.t5 import T5Config, T5Text, build_t5


def test_trained_and_loaded(syzygy, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("syzygy.lab.starter.t5_training.TOKENIZER_CAPTIONS", 50)
    monkeypatch.setattr("syzygy.lab.starter.t5_training.VALIDATION_CAPTIONS", 6)
    small = ("t5.width=32", "t5.layers=1", "t5.decoder_layers=1", "t5.heads=2", "task.batch_size=4", "loop.steps=6",
             "loop.warmup=1", "loop.validate_every=3", "loop.checkpoint_every=3")  # fmt: skip
    answer = syzygy("train", "t5", "--out", tmp_path / "run", *small)
    assert answer.code == 0, answer.err
    assert "accuracy" in answer.out
    t5 = T5Text.from_pretrained(tmp_path / "run" / "t5")
    assert t5.encode_states(["a red circle"]).states.shape[2] == t5.width == 32
    record = artifacts.read_json(tmp_path / "run" / "t5" / artifacts.PROVENANCE_FILE)
    assert (record["kind"], record["steps"], record["samples"]) == ("t5", 6, 24)
    assert set(record["metrics"]) == {"loss", "accuracy"}


@pytest.mark.usefixtures("few_pictures")
def test_a_decoder_goes_on_with_t5_beside(syzygy, tiny_model: Path, tmp_path: Path) -> None:
    t5 = build_t5(T5Config(width=32, layers=1, decoder_layers=1, heads=2), ["a red circle"] * 9, seed=0)
    t5.save_pretrained(tmp_path / "t5", {})
    small = ("--preset", "ediff-i", "scenes=0", "task.batch_size=4", "loop.steps=2", "loop.warmup=0",
             "loop.validate_every=2", "loop.checkpoint_every=2",
             "backbone.channels=[16,32]", "backbone.attention=[false,true]", "backbone.head_width=16",
             "backbone.norm_groups=8", "cross_attention_width=32", "vector_width=32", "image_tokens=1",
             'task.subsets={"image":0.5,"text+t5":0.5}')  # fmt: skip
    parts = (
        "--clip",
        tiny_model / "clip",
        "--autoencoder",
        tiny_model / "autoencoder",
        "--init",
        tiny_model / "decoder",
    )
    run = tmp_path / "run"
    answer = syzygy("train", "decoder", *parts, "--t5", tmp_path / "t5", "--out", run, *small)
    assert answer.code == 0, answer.err
    old, new = load_decoder(tiny_model / "decoder"), load_decoder(run / "decoder")
    assert set(new.slots) == {"image", "text", "t5"}
    assert torch.equal(new.slots["image"].scale, old.slots["image"].scale)
    record = artifacts.read_json(run / "decoder" / artifacts.PROVENANCE_FILE)
    assert record["t5"] == T5Text.from_pretrained(tmp_path / "t5").fingerprint()
    assert record["init"] == artifacts.fingerprint(old.state_dict())

    # The three together paint: any subset of what the decoder reads, and words painted for both text encoders.
    whole = shutil.copytree(tiny_model, tmp_path / "model")
    shutil.rmtree(whole / "decoder")
    shutil.copytree(run / "decoder", whole / "decoder")
    with pytest.raises(UserError, match=r"reads T5's states, but .* has no folder t5"):
        TextToImage.from_pretrained(whole)
    shutil.copytree(tmp_path / "t5", whole / "t5")
    model, half = TextToImage.from_pretrained(whole), torch.zeros(8, 8)
    half[:, :4] = 1

    def picture(**settings) -> bytes:
        return model("a red circle", generator=torch.Generator().manual_seed(0), **settings).images[0].tobytes()

    subsets = (None, ["image"], ["text"], ["t5"], ["text", "t5"], ["image", "t5"])
    assert len({picture(conditions=one) for one in subsets}) == len(subsets)
    assert picture(conditions=["image", "text", "t5"]) == picture()
    painted = picture(conditions=["t5"], regions=[Region("red circle", half)], region_strength=2.0)
    assert painted != picture(conditions=["t5"])
    assert picture(conditions=["t5"], negative_prompt="a blue star") != picture(conditions=["t5"])
    build_t5(T5Config(width=32, layers=1, decoder_layers=1, heads=2), ["a red circle"] * 9, seed=1).save_pretrained(
        whole / "t5", {}
    )
    with pytest.raises(UserError, match="trained with another t5"):
        TextToImage.from_pretrained(whole)

    fresh = build_decoder(new.config, seed=1)
    before = {name: value.clone() for name, value in fresh.slots["t5"].state_dict().items()}
    extend(fresh, tiny_model / "decoder")
    assert all(torch.equal(fresh.state_dict()[name], value) for name, value in old.state_dict().items())
    assert all(
        torch.allclose(fresh.slots["t5"].state_dict()[name], value, rtol=0, atol=0, equal_nan=True)
        for name, value in before.items()
    )
    states = T5Text.from_pretrained(tmp_path / "t5").encode_states(["a red circle"]).states
    assert torch.isfinite(new.slots["t5"].states_mean).all()
    assert states.shape[2] == len(new.slots["t5"].states_std)

    answer = syzygy(
        "train", "decoder", *parts, "--t5", tmp_path / "t5", "--out", tmp_path / "other", *small, "vector_width=64"
    )
    assert answer.code == 2
    assert "cannot continue from the decoder" in answer.err
    answer = syzygy(
        "train",
        "decoder",
        *parts,
        "--t5",
        tmp_path / "t5",
        "--out",
        tmp_path / "no",
        *small[:-1],
        'task.subsets={"text":1}',
    )
    assert answer.code == 2
    assert "no subset of task.subsets has t5" in answer.err
