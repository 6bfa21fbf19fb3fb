"""`syzygy generate`, end to end on a tiny model of real classes and files."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from syzygy.clip.clip_model import Clip
from syzygy.core import artifacts
from syzygy.generation.best_of import clip_scores
from syzygy.generation.image_files import open_picture, read_record

PROMPT = "a red circle left of a blue star"


@pytest.fixture
def paint(syzygy: Callable[..., Any], tiny_model: Path, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Run `generate --json` on the tiny model, expecting success."""

    def run(*arguments: object, out: Path = tmp_path / "out") -> dict[str, Any]:
        answer = syzygy("generate", "--model", tiny_model, "--device", "cpu", "--out", out, "--json", *arguments)
        assert (answer.code, answer.err) == (0, "")
        return json.loads(answer.out)

    return run


def pixels(path: str | Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image).astype(int)


def files(result: dict[str, Any]) -> list[str]:
    return [one["path"] for one in result["images"]]


def test_a_picture_tells_how_it_was_made(paint: Callable[..., Any], tiny_model: Path) -> None:
    extra = ("--negative-prompt", "a moon", "--sampler", "heun", "--guidance-scale", "3", "--conditions", "text")
    result = paint(PROMPT, "--seed", "7", *extra)
    (path,) = files(result)
    assert Path(path).name == "000-a-red-circle-left-of-a-blue-star-7.png"
    assert result["contact_sheet"] is None
    with Image.open(path) as image:
        assert image.size == (32, 32)
        assert image.info["prompt"] == PROMPT
    record = read_record(Path(path))
    assert record == {"prompt": PROMPT, "seed": 7, **result["settings"]}
    assert record["versions"] == artifacts.versions()
    assert set(record["fingerprints"]) == {"clip", "prior", "decoder", "autoencoder"}
    expected = {"steps": 3, "guidance_scale": 3.0, "sampler": "heun", "conditions": ["text"], "model": str(tiny_model)}
    expected |= {"negative_prompt": "a moon", "prior": None}
    assert {name: record[name] for name in expected} == expected


def test_the_settings_change_the_picture(paint: Callable[..., Any]) -> None:
    def one(*arguments: object) -> bytes:
        return pixels(files(paint(*arguments))[0]).tobytes()

    pictures = [
        one(PROMPT),
        one(PROMPT, "--seed", "1"),
        one("a green moon"),
        one(PROMPT, "--negative-prompt", "a green moon"),
        one(PROMPT, "--steps", "4"),
        one(PROMPT, "--sampler", "euler"),
        one(PROMPT, "--conditions", "image"),
        one(PROMPT, "--guidance-scale", "1"),
    ]
    assert len(set(pictures)) == len(pictures)


def test_neither_the_batch_nor_the_others_change_a_picture(paint: Callable[..., Any], tmp_path: Path) -> None:
    together = paint(PROMPT, "a green moon", "--num-images", "3", "--seed", "5")
    assert [(one["prompt"], one["seed"]) for one in together["images"]] == [
        (prompt, seed) for prompt in (PROMPT, "a green moon") for seed in (5, 6, 7)
    ]
    in_twos = paint(PROMPT, "a green moon", "--num-images", "3", "--seed", "5", "--batch-size", "2", out=tmp_path / "2")
    alone = paint("a green moon", "--seed", "7", out=tmp_path / "1")
    for i, path in enumerate(files(together)):
        assert abs(pixels(path) - pixels(files(in_twos)[i])).max() <= 1
    assert abs(pixels(files(together)[5]) - pixels(files(alone)[0])).max() <= 1
    assert abs(pixels(files(together)[5]) - pixels(files(together)[4])).max() > 1


def test_the_best_of_several_is_kept(paint: Callable[..., Any], tiny_model: Path, tmp_path: Path) -> None:
    result = paint(PROMPT, "--num-images", "2", "--best-of", "3", "--seed", "4")
    candidates = paint(PROMPT, "--num-images", "6", "--seed", "4", out=tmp_path / "all")
    clip = Clip.from_pretrained(tiny_model / "clip")
    embeddings = clip.encode_text([PROMPT]).pooled.expand(6, -1)
    scores = clip_scores([open_picture(Path(path)) for path in files(candidates)], embeddings, clip)
    for one, some, first in zip(result["images"], scores.split(3), (4, 7), strict=True):
        assert one["seed"] == first + int(some.argmax())
        assert one["score"] == pytest.approx(float(some.max()), abs=1e-3)
        record = read_record(Path(one["path"]))
        assert (record["best_of"], record["score"], record["seed"]) == (3, one["score"], one["seed"])
        alone = files(candidates)[one["seed"] - 4]
        assert abs(pixels(alone) - pixels(one["path"])).max() <= 1
    assert "score" not in candidates["images"][0]


def test_the_contact_sheet_shows_all(paint: Callable[..., Any]) -> None:
    result = paint(PROMPT, "a green moon", "--num-images", "2")
    assert len(read_record(Path(result["contact_sheet"]))["pictures"]) == 4
    with Image.open(result["contact_sheet"]) as sheet:
        assert min(sheet.size) > 2 * 192


def test_no_other_picture_is_overwritten(paint: Callable[..., Any]) -> None:
    first, again = paint(PROMPT), paint(PROMPT)
    assert files(first) == files(again)
    before = Path(files(first)[0]).read_bytes()
    other = paint(PROMPT, "--steps", "4")
    assert Path(files(other)[0]).name == "000-a-red-circle-left-of-a-blue-star-0-2.png"
    assert Path(files(first)[0]).read_bytes() == before


def test_it_prints_where_the_pictures_are(syzygy: Callable[..., Any], tiny_model: Path, tmp_path: Path) -> None:
    answer = syzygy("generate", PROMPT, "a moon", "--model", tiny_model, "--out", tmp_path)
    assert (answer.code, answer.err) == (0, "")
    assert sorted(answer.out.split()) == sorted(map(str, tmp_path.iterdir()))
    assert answer.out.splitlines()[-1] == str(tmp_path / "contact-sheet.png")


def test_what_the_model_will_not_understand_is_one_line(
    syzygy: Callable[..., Any], tiny_model: Path, tmp_path: Path
) -> None:
    here = ("--model", tiny_model, "--out", tmp_path)
    answer = syzygy("generate", "a red cirkle left of a blue star", *here, "--num-images", "2", "--batch-size", "1")
    assert answer.code == 0
    (line,) = answer.err.splitlines()
    assert line.startswith("warning: this model's world does not know the word 'cirkle'; nearest known: circle")
    answer = syzygy("generate", "a storm over the sea", *here)
    assert answer.code == 0
    assert [line.split(":")[0] for line in answer.err.splitlines()] == ["warning"]
    long = "a red circle left of a blue star, " * 12 + "and a moon"
    answer = syzygy("generate", long, *here)
    cut = [line for line in answer.err.splitlines() if "tokens, this encoder reads 77" in line]
    assert (answer.code, len(cut)) == (0, 1)
    assert cut[0].startswith("warning: ")
    assert "moon" in cut[0]


WRONG: dict[str, tuple[tuple[str, ...], str]] = {
    "no prompt": ((), "Missing argument 'PROMPT…'"),
    "empty prompt": ((" ",), "the prompt is empty"),
    "empty among others": ((PROMPT, ""), "the prompt is empty"),
    "broken bytes": (("a \udcff circle",), "the prompt is not text"),
    "no pictures": ((PROMPT, "--num-images", "0"), "0 is out of range; allowed: at least 1."),
    "no steps": ((PROMPT, "--steps", "0"), "0 is out of range"),
    "no candidates": ((PROMPT, "--best-of", "0"), "0 is out of range; allowed: at least 1."),
    "candidates past the last seed": ((PROMPT, "--seed", str(2**64 - 1), "--best-of", "2"), "seeds end at"),
    "no batch": ((PROMPT, "--batch-size", "0"), "0 is out of range"),
    "huge seed": ((PROMPT, "--seed", str(2**64)), "seeds end at"),
    "seed past the end": ((PROMPT, "--seed", str(2**64 - 1), "--num-images", "2"), "seeds end at"),
    "NaN": ((PROMPT, "--guidance-scale", "nan"), "guidance_scale must be a finite number"),
    "infinity": ((PROMPT, "--guidance-scale", "inf"), "guidance_scale must be a finite number"),
    "negative guidance": ((PROMPT, "--guidance-scale", "-1"), "guidance scale must be a finite number of at least 0"),
    "idle negative": ((PROMPT, "--negative-prompt", "a moon", "--guidance-scale", "1"), "has no effect"),
    "sampler": ((PROMPT, "--sampler", "eulr"), "unknown sampler 'eulr'. Did you mean 'euler'?"),
    "conditions": ((PROMPT, "--conditions", "image,txt"), "must be one or more of what the decoder reads: image, text"),
    "no conditions": ((PROMPT, "--conditions", ""), "must be one or more of what the decoder reads: image, text"),
    "model": (
        (PROMPT, "--model", "starterr"),
        "model 'starterr' is neither a folder nor a known model. Known: starter",
    ),
    "prior": ((PROMPT, "--prior", "nowhere"), "there is no folder nowhere"),
    "device": ((PROMPT, "--device", "cuda"), "device 'cuda' is not available here"),
    "out": ((PROMPT, "--out", __file__), "cannot write to"),
}


@pytest.mark.parametrize(("arguments", "message"), WRONG.values(), ids=WRONG)
def test_wrong_input(
    arguments: tuple[str, ...],
    message: str,
    syzygy: Callable[..., Any],
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    answer = syzygy("generate", "--model", tiny_model, "--out", tmp_path / "out", *arguments)
    assert (answer.code, answer.out) == (2, "")
    assert answer.err.startswith("error: ")
    assert message in answer.err
    assert len(answer.err.splitlines()) <= 2
    assert not list(tmp_path.rglob("*.png"))


def _truncated(model: Path) -> None:
    file = model / "decoder" / artifacts.WEIGHTS_FILE
    file.write_bytes(file.read_bytes()[:-100])


def _without(name: str) -> Callable[[Path], None]:
    return lambda model: (model / name).unlink()


def _changed(name: str, **values: Any) -> Callable[[Path], None]:
    return lambda model: artifacts.write_json(model / name, artifacts.read_json(model / name) | values)


def _not_finite(model: Path) -> None:
    file = model / "prior" / "diffusion_pytorch_model.safetensors"
    tensors = artifacts.read_tensors(file)
    tensors["proj_in.weight"][0, 0] = float("nan")
    artifacts.write_tensors(file, tensors)


BROKEN: dict[str, tuple[Callable[[Path], None], str]] = {
    "truncated weights": (_truncated, "is truncated or not safetensors"),
    "missing weights": (_without("clip/model.safetensors"), "clip/model.safetensors is missing"),
    "missing index": (_without("model_index.json"), "has no model_index.json"),
    "another library's model": (_changed("model_index.json", _class_name="KandinskyPipeline"), "'KandinskyPipeline'"),
    "newer schema": (_changed("model_index.json", schema_version=99), "has schema 99"),
    "mismatched width": (_changed("prior/config.json", attention_head_dim=8), "do not fit EclipsePrior"),
    "another CLIP's prior": (_changed("prior/provenance.json", clip="0123"), "trained with another clip (0123)"),
    "another autoencoder's decoder": (
        _changed("decoder/provenance.json", autoencoder="0123"),
        "trained with another autoencoder (0123)",
    ),
    "another CLIP's decoder": (_changed("decoder/provenance.json", clip="0123"), "trained with another clip (0123)"),
    "NaN in weights": (_not_finite, "proj_in.weight holds NaN or infinity"),
}


@pytest.mark.parametrize(("breaks", "message"), BROKEN.values(), ids=BROKEN)
def test_broken_model(
    breaks: Callable[[Path], None], message: str, syzygy: Callable[..., Any], tiny_model: Path, tmp_path: Path
) -> None:
    model = shutil.copytree(tiny_model, tmp_path / "model")
    breaks(model)
    answer = syzygy("generate", PROMPT, "--model", model, "--out", tmp_path / "out")
    assert (answer.code, answer.out) == (2, "")
    assert answer.err.startswith("error: ")
    assert message in answer.err
    assert len(answer.err.splitlines()) <= 2


def test_as_a_user_runs_it(tiny_model: Path, tmp_path: Path) -> None:
    command = [Path(sys.executable).with_name("syzygy"), "generate", "a red cirkle and a star", "--json"]
    where = ["--model", tiny_model, "--out", tmp_path]
    result = subprocess.run([*command, *where], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["images"][0]["path"] == str(tmp_path / "000-a-red-cirkle-and-a-star-0.png")
    (line,) = result.stderr.splitlines()
    assert line.startswith("warning: this model's world does not know the word 'cirkle'")
