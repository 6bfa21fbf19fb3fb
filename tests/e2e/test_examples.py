"""The examples run as they are, on the starter or a tiny pipeline, and are short enough to copy."""

import json
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib import pyplot
from PIL import Image

from syzygy import TextToImage
from syzygy.lab.evaluate.judging import judge_of
from syzygy.text_encoders.llm import Llm
from tests.documents import ROOT
from tests.tiny_llm import save_tiny_gguf, save_tiny_llm
from tests.tiny_stable_diffusion import tiny_stable_diffusion

EXAMPLES = ROOT / "examples"
LONGEST = 60


def run(monkeypatch: pytest.MonkeyPatch, name: str, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")


def images(folder: Path) -> list[str]:
    """The names of a folder's images, each of which can be read."""
    for path in folder.glob("*.png"):
        Image.open(path).load()
    return sorted(path.name for path in folder.glob("*.png"))


def test_generate(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    run(monkeypatch, "generate.py", "a red heart", "--out", tmp_path)
    assert images(tmp_path) == [
        "mixed.png",
        *(f"prompt-{i}.png" for i in range(4)),
        "variation-0.png",
        "variation-1.png",
    ]


@pytest.mark.slow
def test_train_prior_on_your_pairs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, syzygy: Callable[..., Any]) -> None:
    assert syzygy("world", "sample", "--num", 40, "--out", tmp_path / "pairs").code == 0
    monkeypatch.setattr("syzygy.prior.presets.PRESETS", small_presets())
    run(monkeypatch, "train_prior_on_your_pairs.py", tmp_path / "pairs", "--out", tmp_path / "out", "--steps", 10)
    assert images(tmp_path / "out") == ["image.png"]
    assert (tmp_path / "out" / "run" / "prior" / "config.json").is_file()


def small_presets() -> dict[str, Any]:
    from syzygy.prior.presets import PRESETS

    preset = PRESETS["eclipse"]()
    task = preset.task.model_copy(update={"batch_size": 8})
    return {"eclipse": lambda: preset.model_copy(update={"validation_images": 8, "task": task})}


def test_regions_in_diffusers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    model = tiny_stable_diffusion(tmp_path / "model")
    out = tmp_path / "images" / "regions.png"
    run(monkeypatch, "regions_in_diffusers.py", model, "--steps", 2, "--out", out)
    assert images(out.parent) == ["regions.png"]


def test_llm_text_encoder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(monkeypatch, "llm_text_encoder.py", "--out", tmp_path)
    assert images(tmp_path) == ["de.png", "en.png", "long.png", "zh.png"]
    said = capsys.readouterr().out
    assert "languages: en, de" in said
    assert float(said.split()[-1]) > 0.9


def test_own_decoder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    run(monkeypatch, "own_decoder.py", tmp_path)
    assert images(tmp_path) == ["0.png", "1.png", "2.png", "3.png"]
    judge = judge_of(TextToImage.from_pretrained("starter"))
    shown = torch.stack([pixels(tmp_path / name) for name in images(tmp_path)])
    hearts = [any(thing.shape == "heart" for thing in one.things) for one in judge.read(shown)]
    assert sum(hearts) >= 3


def pixels(path: Path) -> torch.Tensor:
    """An image as a tensor [3, H, W] in [0, 1]."""
    return torch.tensor(np.asarray(Image.open(path).convert("RGB"))).permute(2, 0, 1) / 255


def test_demo(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The code cells of the notebook run in order, and its prior learns."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("matplotlib.pyplot.show", lambda: pyplot.close("all"))
    notebook = json.loads((EXAMPLES / "demo.ipynb").read_text("utf-8"))
    names: dict[str, Any] = {"__name__": "__main__"}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            exec("".join(cell["source"]), names)
    assert names["result"].metrics["cosine"] > 0.6
    assert sum(names["correct"]["the trained prior"]) > sum(names["correct"]["shuffled prompts"])


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_examples_are_short(path: Path) -> None:
    assert len(path.read_text("utf-8").splitlines()) <= LONGEST


def test_smollm2_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With a tiny GGUF file in place of the package's."""
    llm = save_tiny_llm("qwen2", tmp_path / "llm")
    run(
        monkeypatch, "smollm2_folder.py", "--gguf", save_tiny_gguf(llm, tmp_path / "m.gguf"), "--out", tmp_path / "made"
    )
    made, own = Llm.from_pretrained(tmp_path / "made"), Llm.from_pretrained(llm)
    assert made.fingerprint() == own.fingerprint()
    assert torch.equal(made.encode_states(["a red star"]).states, own.encode_states(["a red star"]).states)
