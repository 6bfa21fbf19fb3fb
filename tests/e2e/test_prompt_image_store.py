"""Stages image and quality of an adapter for a Stable Diffusion, with the language model's features from an embedding store."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from syzygy.core import artifacts
from tests.tiny_adapter import save_tiny_lm
from tests.tiny_prompt_images import save_places, tensors


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_places(tmp_path_factory.mktemp("prompt-store"), "xl")


def test_features_from_a_store(places: Path, tiny_model: Path, syzygy: Any, tmp_path: Path) -> None:
    """They train the same adapter, up to their rounding, without the language model."""
    store, images = tmp_path / "store", places / "images"
    answer = syzygy("embed", images, "--encoder", tiny_model, "--out", store, "--device", "cpu")
    assert answer.code == 0, answer.err
    begin = ("train", "adapter", "--stage", "image", "--model", places / "xl", "--from", places / "align-xl", "--data", images,
             "--device", "cpu", "size=16", "validation_pictures=3", "task.batch_size=4", "task.dropped=0.5", "loop.steps=4", "loop.warmup=1",
             "loop.lr=3e-3", "loop.ema_half_life=1")  # fmt: skip

    def refused(message: str, *more: object) -> None:
        answer = syzygy(*begin, "--out", tmp_path / "refused", *more)
        assert (answer.code, answer.out) == (2, ""), answer.err
        assert answer.err.splitlines()[-1].startswith("error: ")
        assert message in answer.err.splitlines()[-1], answer.err
        assert not (tmp_path / "refused/latents").exists()

    refused(
        f"has no feature set 'llm' of a language model (it has: clip). Add it: syzygy store add {store}",
        "--store",
        store,
    )
    for name, llm, how in (
        ("llm", places / "llm", ()),
        ("last", places / "llm", ("--layers", "last")),
        ("other", save_tiny_lm(tmp_path / "other", "en"), ()),
    ):
        assert syzygy("store", "add", store, "--llm", llm, "--name", name, "--device", "cpu", *how).code == 0
    refused("layers is 'last' there, 'all' here", "--store", store, "--features", "last")
    refused(f"({tmp_path / 'other'} there, {places / 'llm'} here)", "--store", store, "--features", "other")
    refused("--llm has no effect with --store, which has the language model's features", "--store", store, "--llm", "x")
    refused("--cache has no effect with --store", "--store", store, "--cache")
    refused("--features has no effect with stage 'image' and --model", "--features", "llm")
    refused("is an embedding store, which holds no images", "--data", store)

    for name, more, said in (
        (
            "anew",
            (),
            "The language model computes the features of the captions at each step; --cache computes them once.",
        ),
        ("stored", ("--store", store), f"features of the captions are read from {store} (feature set 'llm')"),
    ):
        answer = syzygy(*begin, "--out", tmp_path / name, *more)
        assert answer.code == 0, answer.err
        assert said in " ".join((answer.out + answer.err).split()), answer
    record = artifacts.read_json(tmp_path / "stored/adapter" / artifacts.PROVENANCE_FILE)
    assert record["cached"] == {"llm": "bf16"}
    anew = tensors(tmp_path / "anew/adapter")
    for key, x in tensors(tmp_path / "stored/adapter").items():
        torch.testing.assert_close(x.float(), anew[key].float(), atol=2e-2, rtol=2e-2)

    more_images = shutil.copytree(images, tmp_path / "more")
    lines = (images / "metadata.jsonl").read_text().splitlines()
    lines[0] = json.dumps({"file_name": "0.png", "text": "ein Stern"})
    (more_images / "metadata.jsonl").write_text("\n".join(lines))
    answer = syzygy(*begin, "--data", more_images, "--store", store, "--out", tmp_path / "more-out")
    assert answer.code == 2
    assert "has no features of 1 caption of the images, such as 'ein Stern'. Use the store that was" in answer.err
