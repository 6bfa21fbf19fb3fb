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
WIDTH = 192
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
        {"colours": 4 * torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(0))}, folder / "model.safetensors"
    )
    return folder


def test_the_decoders_option_is_in_the_help(run: Run) -> None:
    help_text = run("generate", "--help").stdout
    assert re.search(r"--contrast X\s+Palette: contrast of colours; 1 is neutral\.", help_text)
    said = run("generate", "a", "--contrast", "-1")
    assert said.returncode == 2
    assert "contrast must be a number of at least 0, got -1" in said.stderr


def test_images_are_generated_with_all_of_it(run: Run, model: Path, tmp_path: Path) -> None:
    def generated(name: str, prompt: str, *more: object) -> tuple[bytes, dict]:
        own = ("--model", model, "--clip", BUNDLED["starter"] / "clip", "--device", "cpu", "--out", tmp_path / name)
        said = run("generate", prompt, *own, "--json", *more)
        assert said.returncode == 0, said.stderr
        (file,) = (tmp_path / name).glob("*.png")
        return Image.open(file).tobytes(), json.loads(said.stdout)["settings"]

    plain, settings = generated("plain", "a red star")
    assert settings["fingerprints"]["prior"] == "text-as-image"  # as declared
    assert generated("again", "a red star")[0] == plain
    different = {
        "contrast": generated("contrast", "a red star", "--contrast", 2)[0],
        "sampler": generated("sampler", "a red star", "--sampler", "midpoint", "--steps", 3)[0],
        "euler": generated("euler", "a red star", "--steps", 3)[0],
        "blue": generated("blue", "a blue star")[0],
        "crimson": generated("crimson", "a crimson star")[0],
    }
    assert len({plain, *different.values()}) == 1 + len(different)
    read, settings = generated("read", "a crimson star", "--text-encoder", "synonyms")
    assert read == plain
    assert settings["fingerprints"]["text_encoder"] == "synonyms"


def test_a_sampler_and_a_prior_work_with_the_starter(run: Run, tmp_path: Path) -> None:
    own = (
        "--prior",
        "text-as-image",
        "--sampler",
        "midpoint",
        "--steps",
        2,
        "--device",
        "cpu",
        "--out",
        tmp_path / "out",
    )
    said = run("generate", "a red star", *own)
    assert said.returncode == 0, said.stderr
    assert len(list((tmp_path / "out").glob("*.png"))) == 1


def test_a_package_that_cannot_be_imported_is_named_and_stops_nothing_else(run: Run, site: Path, model: Path) -> None:
    (site / "palette_package.py").write_text("import no_such_module")
    said = run("generate", "--help")
    assert said.returncode == 0
    assert "the decoder 'palette' of another package cannot be imported" in said.stderr
    said = run("generate", "a", "--sampler", "midpoint", "--device", "cpu")
    assert said.returncode == 2
    assert "the sampler 'midpoint' of another package cannot be imported from palette_package:midpoint" in said.stderr
