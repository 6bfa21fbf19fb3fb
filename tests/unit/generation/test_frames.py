"""How many functions of ours stand between a command and the denoiser: a reader follows them from file to file."""

import traceback
from pathlib import Path

import pytest
import torch

import syzygy
from syzygy.cli.main import cli
from syzygy.decoder.preconditioning import Preconditioned

HOME = Path(syzygy.__file__).parent
MOST = 8


class Reached(Exception):
    """The denoiser is called."""


def reached(*_arguments: object) -> torch.Tensor:
    raise Reached


def frames(error: BaseException) -> list[str]:
    """Names of our functions on the way to the error, in order."""
    own = [one for one in traceback.extract_tb(error.__traceback__) if HOME in Path(one.filename).parents]
    return [f"{Path(one.filename).stem}.{one.name}" for one in own]


@pytest.mark.parametrize(
    "words",
    [
        ("generate", "a red star"),
        ("generate", "a red star", "--num-images", "3", "--batch-size", "2", "--best-of", "2"),
        ("vary", "PICTURE"),
        ("mix", "a red star", "PICTURE"),
        ("mix", "a red star", "PICTURE", "--frames", "3"),
    ],
    ids=" ".join,
)
def test_few_frames_lead_from_a_command_to_the_denoiser(
    words: tuple[str, ...], tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from PIL import Image

    picture = tmp_path / "picture.png"
    Image.new("RGB", (32, 32), "red").save(picture)
    monkeypatch.setattr(Preconditioned, "forward", reached)
    given = [str(picture) if word == "PICTURE" else word for word in words]
    with pytest.raises(Reached) as caught:
        cli.main(
            [*given, "--model", str(tiny_model), "--out", str(tmp_path / "out"), "--device", "cpu"],
            "syzygy",
            standalone_mode=False,
        )
    found = frames(caught.value)
    command = f"{words[0]}.{words[0]}"
    between = found[found.index(command) + 1 :]
    assert len(between) <= MOST, between
    assert between[-1].startswith("guidance.")
