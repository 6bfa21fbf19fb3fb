"""What the code makes does not change while the code moves: pictures, a store and a resumed training, to the byte.

On the kind of processor that stored them (named in the file) everything is equal to the byte. Elsewhere the last bits
of sums differ: there only the pictures are compared, closely. A deliberate change of what is made (other weights,
another sampler) stores it anew: `python tests/golden/test_unchanged.py`.
"""

import hashlib
import json
import platform
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from tests.stopping import stopped

STORED = Path(__file__).parents[1] / "data" / "unchanged"
SYZYGY = [sys.executable, "-m", "syzygy.cli"]
CPU = ["--device", "cpu"]

PROMPTS = ("a red star and a blue ring", "a striped green heart above a yellow moon")
PICTURES: dict[str, list[str]] = {
    "prompts": ["generate", *PROMPTS, "--num-images", "2"],
    "sampler": ["generate", PROMPTS[0], "--sampler", "heun", "--steps", "8", "--guidance-scale", "2"],
    "negative": ["generate", PROMPTS[1], "--negative-prompt", "a green circle", "--best-of", "2"],
    "language": ["generate", "ein roter Stern links von einem blauen Ring", "--text-encoder", "adapter"],
    "region": ["generate", PROMPTS[0], "--region", "{mask}=a red star"],
    "image-only": ["generate", PROMPTS[1], "--conditions", "image"],
    "style": ["generate", PROMPTS[0], "--style", "{scene}"],
    "vary": ["vary", "{scene}"],
    "mix": ["mix", "{scene}", PROMPTS[1]],
}
"""Twelve pictures, by what they need."""


def processor() -> str:
    """What results depend on beside the code: one string for the processor's kind and torch's version."""
    return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()} torch {torch.__version__.split('+')[0]}"


def run(*words: str | Path) -> None:
    """A command in this process, on one thread: sums of several threads end in other bits."""
    from syzygy.cli.main import cli

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        cli.main([str(word) for word in words], prog_name="syzygy", standalone_mode=False)
    finally:
        torch.set_num_threads(threads)


def made_pictures(folder: Path) -> np.ndarray:
    """The twelve pictures, [12, height, width, 3]."""
    scenes = folder / "scene"
    run("world", "sample", "--num", "1", "--seed", "5", "--out", scenes)
    places = {"scene": str(next(scenes.glob("**/*.png"))), "mask": str(folder / "mask.png")}
    mask = np.zeros((64, 64), np.uint8)
    mask[16:48, 4:30] = 255
    Image.fromarray(mask).save(places["mask"])
    found = []
    for name, words in PICTURES.items():
        out = folder / name
        run(*(word.format(**places) for word in words), "--out", out, *CPU)
        found += [np.asarray(Image.open(p).convert("RGB")) for p in sorted(out.glob("*.png")) if "sheet" not in p.name]
    return np.stack(found)


def digest(*parts: bytes) -> str:
    return hashlib.sha256(b"".join(parts)).hexdigest()


def tensors_in(folder: Path) -> dict[str, str]:
    """Digests of the tensors in all files of a folder, by the place of the file. Headers may list their metadata in any order."""

    def of_file(path: Path) -> str:
        tensors = sorted(load_file(path).items())
        return digest(
            *(f"{n} {t.dtype} {tuple(t.shape)}".encode() + t.view(torch.uint8).numpy().tobytes() for n, t in tensors)
        )

    return {str(p.relative_to(folder)): of_file(p) for p in sorted(folder.rglob("*.safetensors"))}


def made_training(folder: Path) -> dict[str, Any]:
    """A store of a hundred scenes, and a prior trained on it that was interrupted once."""
    store, out = folder / "store", folder / "run"
    run("world", "sample", "--num", "100", "--seed", "3", "--out", folder / "pairs")
    run("embed", folder / "pairs", "--encoder", "starter", "--out", store, "--threads", "1", *CPU)
    command = [
        *SYZYGY, "train", "prior", "--data", store, "--out", out, "--threads", "1", *CPU, "validation_images=20",
        "task.batch_size=32", "loop.steps=60", "loop.checkpoint_every=10", "loop.warmup=10",
    ]  # fmt: skip
    prior = out / "prior"
    stopped(command, out, signal.SIGINT, reached=lambda _: list(out.glob("**/*.safetensors")), finished=prior)
    run(*command[len(SYZYGY) :])
    return {"store": tensors_in(store), "prior": tensors_in(prior)}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_pictures_are_those_of_before(tmp_path: Path) -> None:
    stored = np.asarray(Image.open(STORED / "pictures.png").convert("RGB"))
    made = made_pictures(tmp_path)
    assert len(made) == 12
    sheet = np.concatenate(list(made), axis=1)
    if json.loads((STORED / "digests.json").read_text())["processor"] == processor():
        assert np.array_equal(sheet, stored)
    else:
        apart = np.abs(sheet.astype(int) - stored.astype(int))
        assert np.mean(apart <= 2) > 0.99, f"the pictures differ by up to {apart.max()} grey levels"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_store_and_resumed_training_are_those_of_before(tmp_path: Path) -> None:
    stored = json.loads((STORED / "digests.json").read_text())
    made = made_training(tmp_path)
    assert made["store"].keys() == stored["store"].keys()
    assert made["prior"].keys() == stored["prior"].keys()
    if stored["processor"] == processor():
        assert made == {name: stored[name] for name in made}


if __name__ == "__main__":
    STORED.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as place:
        Image.fromarray(np.concatenate(list(made_pictures(Path(place))), axis=1)).save(STORED / "pictures.png")
        record = {"processor": processor(), **made_training(Path(place))}
    (STORED / "digests.json").write_text(json.dumps(record, indent=2) + "\n")
