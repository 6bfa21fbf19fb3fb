"""From a training run to a folder to pass on, and on from there."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from syzygy.core import artifacts
from syzygy.prior.eclipse import EclipsePrior

PUBLISHED = Path(__file__).parents[1] / "data/eclipse_reference/config.json"
SMALL = (
    "num_layers=1",
    "num_attention_heads=2",
    "attention_head_dim=16",
    "scenes=40",
    "validation_images=20",
    "task.batch_size=8",
    "loop.steps=6",
    "loop.warmup=1",
    "loop.lr=0.05",
    "loop.validate_every=2",
    "loop.best=min projection",
)


@pytest.fixture
def run(syzygy: Callable[..., Any], tiny_model: Path, tmp_path: Path) -> Path:
    """A finished run whose last weights are not its best."""
    answer = syzygy("train", "prior", "--clip", tiny_model, "--out", tmp_path / "run", *SMALL)
    assert answer.code == 0, answer.err
    return tmp_path / "run"


def test_the_folder_is_as_published_with_a_card_and_a_record_beside(
    syzygy: Callable[..., Any], run: Path, tmp_path: Path
) -> None:
    answer = syzygy("export", run, "--out", tmp_path / "mine", "--dtype", "fp32", "--json")
    assert answer.code == 0, answer.err
    assert set(json.loads(answer.out)["files"]) == {
        "README.md", "config.json", "diffusion_pytorch_model.safetensors", "provenance.json"
    }  # fmt: skip
    config, published = (artifacts.read_json(path) for path in (tmp_path / "mine/config.json", PUBLISHED))
    assert config.keys() == published.keys() - {"_diffusers_version"}
    mine, trained = (EclipsePrior.from_pretrained(folder) for folder in (tmp_path / "mine", run / "prior"))
    for (name, x), y in zip(mine.state_dict().items(), trained.state_dict().values(), strict=True):
        assert torch.equal(x, y), name
    text = (tmp_path / "mine/README.md").read_text()
    fingerprint = artifacts.read_json(run / "prior/provenance.json")["clip"]
    for said in ("library_name: syzygy", "width 32", fingerprint, "48 captions in 6 steps of 8", "| cosine |", "last"):
        assert said in text, said
    assert "| licence | not stated: ask the author" in text
    assert "license:" not in text
    assert "40 pairs of text and image (40 pictures), from rendered scenes of Syzygy's embedded world" in text
    assert "The metric frechet is not measured: it needs more validation captions than the 32 dimensions" in text
    assert "on 20 pairs (20 pictures) that training omitted" in text
    painted = syzygy("generate", "a red circle", "--model", "starter", "--prior", tmp_path / "mine", "--out", tmp_path)
    assert painted.code == 2, "another CLIP's prior"


def test_licence_and_source_are_what_the_author_states(syzygy: Callable[..., Any], run: Path, tmp_path: Path) -> None:
    stated = ("--license", "cc-by-4.0", "--source", "my holiday: photographs")
    assert syzygy("export", run, "--out", tmp_path / "mine", *stated).code == 0
    text = (tmp_path / "mine/README.md").read_text()
    front = yaml.safe_load(text.split("---")[1])
    assert front["license"] == "cc-by-4.0"
    assert "| licence | cc-by-4.0 |" in text
    assert "from my holiday: photographs" in text
    record = artifacts.read_json(tmp_path / "mine/provenance.json")
    assert (record["licence"], record["source"]) == ("cc-by-4.0", "my holiday: photographs")


def snippet(folder: Path) -> str:
    found = re.search("```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    assert found
    return found[1]


def test_the_snippet_of_the_card_runs(
    syzygy: Callable[..., Any], tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the starter's CLIP it generates a picture; with another CLIP, whose place a store records, it predicts an embedding."""
    monkeypatch.chdir(tmp_path)
    small = [text for text in SMALL if "best" not in text]
    assert syzygy("train", "prior", "--clip", "starter", "--out", "run", *small).code == 0
    answer = syzygy("export", "run", "--out", "starters")
    assert "Try next: syzygy generate 'a red circle' --prior starters" in answer.out
    code = snippet(tmp_path / "starters")
    exec(code.replace("num_inference_steps=25", "num_inference_steps=1"), {})
    assert (tmp_path / "picture.png").is_file()

    assert syzygy("world", "sample", "--num", 12, "--out", "pairs").code == 0
    assert syzygy("embed", "pairs", "--encoder", tiny_model / "clip", "--out", "store").code == 0
    small = [text for text in small if not text.startswith(("scenes", "validation_images"))]
    answer = syzygy("train", "prior", "--data", "store", "--out", "own", *small)
    assert "Try next: syzygy evaluate prior --data store --prior own" in answer.out
    assert "syzygy generate" not in answer.out, "no decoder is known for this CLIP"
    assert syzygy("export", "own", "--out", "mine").code == 0
    found: dict[str, Any] = {}
    exec(snippet(tmp_path / "mine"), found)
    assert found["embedding"].shape == (1, 32)
    assert "10 pairs of text and image (10 pictures), from pairs" in (tmp_path / "mine/README.md").read_text()


def test_the_card_names_the_packaged_clip_and_not_its_folder_on_this_machine(
    syzygy: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert syzygy("world", "sample", "--num", 12, "--out", "pairs").code == 0
    rows = [json.loads(line) for line in Path("pairs/metadata.jsonl").read_text().splitlines()]
    own = [{"file_name": row["file_name"], "text": f"my garden, number {i}"} for i, row in enumerate(rows)]
    Path("pairs/metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in own))
    assert syzygy("embed", "pairs", "--encoder", "starter", "--out", "store").code == 0
    small = [text for text in SMALL if not text.startswith(("scenes", "validation_images", "loop.best"))]
    assert syzygy("train", "prior", "--data", "store", "--out", "run", *small).code == 0
    assert syzygy("export", "run", "--out", "mine").code == 0
    package = str(Path(artifacts.__file__).parent)
    assert all(package not in file.read_text() for file in Path("mine").iterdir() if file.suffix in (".md", ".json"))
    assert artifacts.read_json(Path("mine/provenance.json"))["about_data"]["encoder"] == "starter"
    found: dict[str, Any] = {}
    exec(snippet(tmp_path / "mine"), found)
    assert found["embedding"].shape == (1, 192)


def test_the_best_weights_can_be_exported(syzygy: Callable[..., Any], run: Path, tmp_path: Path) -> None:
    answer = syzygy("export", run, "--out", tmp_path / "best", "--best", "--dtype", "fp32")
    assert answer.code == 0, answer.err
    best = artifacts.read_json(run / "best/state.json")
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert best["value"] == min(row["validation/projection"] for row in rows if "validation/projection" in row)
    kept = artifacts.read_tensors(run / "best/model.safetensors")
    exported = EclipsePrior.from_pretrained(tmp_path / "best")
    assert all(torch.equal(x, kept[f"prior.{name}"]) for name, x in exported.state_dict().items())
    assert f"best by projection, step {best['step']}" in (tmp_path / "best/README.md").read_text()
    assert artifacts.read_json(tmp_path / "best/provenance.json")["best"] == best


def test_training_goes_on_from_an_exported_prior(
    syzygy: Callable[..., Any], run: Path, tiny_model: Path, tmp_path: Path
) -> None:
    assert syzygy("export", run, "--out", tmp_path / "mine", "--dtype", "fp32").code == 0
    arguments = (
        "train",
        "prior",
        "--clip",
        tiny_model,
        "--init",
        tmp_path / "mine",
        *SMALL,
        "loop.lr=1e-30",
        "loop.steps=2",
    )
    answer = syzygy(*arguments, "--out", tmp_path / "on")
    assert answer.code == 0, answer.err
    old, new = (EclipsePrior.from_pretrained(folder) for folder in (tmp_path / "mine", tmp_path / "on/prior"))
    torch.testing.assert_close(new.proj_in.weight, old.proj_in.weight, rtol=0, atol=1e-3)  # fp16 in between
    assert artifacts.read_json(tmp_path / "on/prior/provenance.json")["init"]
    other = syzygy(*arguments, "num_layers=2", "--out", tmp_path / "other")
    assert other.code == 2
    assert "num_layers is 1 there and 2 here" in other.err


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("missing", "is not a training run of a prior"),
        ("unfinished", "is not finished"),
        ("full", "is not empty"),
        ("no best", "kept no best weights"),
    ],
)
def test_wrong_input(syzygy: Callable[..., Any], run: Path, tmp_path: Path, what: str, said: str) -> None:
    source, out, extra = run, tmp_path / "out", ()
    if what == "missing":
        source = tmp_path / "nowhere"
    elif what == "unfinished":
        (run / "prior").rename(tmp_path / "away")
    elif what == "full":
        out.mkdir()
        (out / "mine.txt").write_text("keep me")
    else:
        (run / "best").rename(tmp_path / "away")
        extra = ("--best",)
    answer = syzygy("export", source, "--out", out, *extra)
    assert (answer.code, answer.out) == (2, "")
    assert said in answer.err
    assert what != "full" or (out / "mine.txt").read_text() == "keep me"
