"""A package of somebody else, made of the code in docs/extending.md, adds a decoder, a prior, a text encoder and a sampler."""

import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from syzygy.core.model_parts import BUNDLED

PAGE = Path(__file__).parents[2] / "docs" / "extending.md"
CLIP = BUNDLED["starter"] / "clip"
WIDTH = 192
"""Of its embeddings."""
Run = Callable[..., subprocess.CompletedProcess[str]]


def blocks(language: str) -> list[str]:
    """The page's code in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A folder of installed packages with the page's one."""
    site = tmp_path / "site"
    information = site / "palette_package-1.0.dist-info"
    information.mkdir(parents=True)
    (site / "palette_package.py").write_text("\n\n".join(blocks("python")))
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: palette-package\nVersion: 1.0\n")
    (toml,) = blocks("toml")
    groups = tomllib.loads(toml)["project"]["entry-points"]
    lines = [
        line for group, points in groups.items() for line in (f"[{group}]", *(f"{k} = {v}" for k, v in points.items()))
    ]
    (information / "entry_points.txt").write_text("\n".join(lines))
    return site


@pytest.fixture
def run(site: Path, tmp_path: Path) -> Run:
    """`syzygy` in a process of its own that finds the package."""

    def call(*arguments: object) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {"PYTHONPATH": str(site), "SYZYGY_CACHE": str(tmp_path / "cache"), "COLUMNS": "200"}
        command = [sys.executable, "-m", "syzygy.cli", *map(str, arguments)]
        return subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)

    return call


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder with the page's decoder."""
    folder = tmp_path / "palette"
    folder.mkdir()
    (folder / "model_index.json").write_text('{"_class_name": "PalettePipeline"}')
    save_file(
        {"colours": 0.7 * torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(0))},
        folder / "model.safetensors",
    )
    return folder


def test_the_decoders_option_is_in_the_help(run: Run) -> None:
    assert re.search(r"--contrast X\s+Palette: contrast of colours; 1 is neutral\.", run("generate", "--help").stdout)
    refused = run("generate", "a", "--contrast", "-1")
    assert refused.returncode == 2
    assert "contrast must be a number of at least 0, got -1" in refused.stderr


def test_the_decoders_option_is_a_field_of_the_api(site: Path, model: Path) -> None:
    script = f"""
from syzygy import TextToImage
from syzygy.server.app import create_app
from syzygy.server.engine import Engine
from starlette.testclient import TestClient

model = TextToImage.from_pretrained({str(model)!r}, clip={str(CLIP)!r})
own = dict(steps=2, guidance_scale=1.0, sampler=None, negative_prompt=None, conditions=None)
with TestClient(create_app(Engine.of(model, own), hosts=None)) as client:
    assert "Palette: contrast of colours" in client.get("/docs").text
    assert list(client.get("/v1/models").json()["data"][0]["capabilities"]["options"]) == ["contrast"]
    asked = dict(prompt="a red star", seed=1)
    plain, strong = (
        client.post("/v1/images/generations", json=asked | more).json()["data"] for more in (dict(), dict(contrast=2))
    )
    assert plain != strong
    refused = client.post("/v1/images/generations", json=asked | dict(contrast=-1)).json()["error"]
    assert refused["param"] == "contrast", refused
"""
    environment = os.environ | {"PYTHONPATH": str(site)}
    said = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stderr


def test_an_image_is_generated_with_all_of_it(run: Run, model: Path, tmp_path: Path) -> None:
    chosen = ("--text-encoder", "synonyms", "--sampler", "midpoint", "--contrast", 2, "--steps", 3)
    where = ("--model", model, "--clip", CLIP, "--device", "cpu", "--out", tmp_path / "out", "--json")
    said = run("generate", "a crimson star", *where, *chosen)
    assert said.returncode == 0, said.stderr
    settings = json.loads(said.stdout)["settings"]
    assert settings["fingerprints"]["prior"] == "text-as-image"  # as the decoder declares
    assert settings["fingerprints"]["text_encoder"] == "synonyms"
    assert (settings["sampler"], settings["contrast"]) == ("midpoint", 2.0)
    (file,) = (tmp_path / "out").glob("*.png")
    with Image.open(file) as image:
        assert image.size == (32, 32)


def test_each_part_has_an_effect(site: Path, model: Path) -> None:
    """In one process, whose images are compared there."""
    script = f"""
import torch
from syzygy import TextToImage

def generated(model, prompt, **settings):
    return model(prompt, generator=torch.Generator().manual_seed(0), **settings).images[0].tobytes()

plain, synonyms = (
    TextToImage.from_pretrained({str(model)!r}, clip={str(CLIP)!r}, text_encoder=encoder) for encoder in (None, "synonyms")
)
first = generated(plain, "a red star")
others = [
    generated(plain, "a blue star"),
    generated(plain, "a crimson star"),
    generated(plain, "a red star", contrast=2.0),
    generated(plain, "a red star", num_inference_steps=3),
    generated(plain, "a red star", num_inference_steps=3, sampler="midpoint"),
    generated(plain, "a red star", guidance_scale=2.0, negative_prompt="a green ring"),
]
assert len({{first, *others}}) == 1 + len(others)
assert generated(plain, "a red star") == generated(synonyms, "a crimson star") == first
starter = TextToImage.from_pretrained("starter", prior="text-as-image")
steps = dict(num_inference_steps=2)
assert generated(starter, "a red star", sampler="midpoint", **steps) != generated(starter, "a red star", **steps)
"""
    environment = os.environ | {"PYTHONPATH": str(site)}
    said = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stderr


def test_a_package_that_cannot_be_imported_is_named_and_stops_nothing_else(run: Run, site: Path) -> None:
    (site / "palette_package.py").write_text("import no_such_module")
    said = run("generate", "--help")
    assert said.returncode == 0
    assert "the decoder 'palette' of another package cannot be imported" in " ".join(said.stderr.split())
    said = run("generate", "a", "--sampler", "midpoint", "--device", "cpu")
    assert said.returncode == 2
    assert "the sampler 'midpoint' of another package cannot be imported from palette_package:midpoint" in said.stderr
