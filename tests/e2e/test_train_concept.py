"""`syzygy train decoder --concept` from pictures to images, on tiny random parts in the published layouts."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from syzygy.core import artifacts
from syzygy.core.errors import UserError
from syzygy.generation.image_files import open_picture, read_record
from syzygy.generation.text_to_image import TextToImage
from syzygy.pretrained.families import family
from tests.conftest import Answer
from tests.hub_cache import COMMIT, add_snapshot
from tests.tiny_stable_diffusion import tiny_stable_diffusion
from tests.tiny_unclip import Tiny, tiny_lambda_eclipse

PROMPT = "a red circle left of a blue star"
SMALL = ("size=16", "loop.steps=6", "loop.lr=0.01", "--device", "cpu")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("concept")
    for number in range(3):
        Image.new("RGB", (20 + number, 24), (200, 40 * number, 30)).save(folder / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def text_only(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_stable_diffusion(tmp_path_factory.mktemp("sd") / "model")


@pytest.fixture
def trained(syzygy: Callable[..., Answer], tiny_kandinsky: Tiny, pictures: Path, tmp_path: Path) -> Path:
    """A finished run."""
    model = ("--model", tiny_kandinsky.decoder, "--clip", tiny_kandinsky.clip)
    answer = syzygy("train", "decoder", "--concept", pictures, *model, "--out", tmp_path / "run", *SMALL)
    assert answer.code == 0, answer.err
    assert f"Trained: {tmp_path / 'run' / 'unet'}" in answer.out
    assert f"--clip {tiny_kandinsky.clip} --decoder {tmp_path / 'run'}" in answer.out
    assert "parameters to train" in answer.err
    assert "of memory for weights, gradients, optimizer" in answer.err
    return tmp_path / "run"


def pixels(path: str) -> np.ndarray:
    return np.asarray(open_picture(Path(path)), int)


def test_images_of_the_trained_decoder_and_of_subjects(
    syzygy: Callable[..., Answer], tiny_kandinsky: Tiny, trained: Path, pictures: Path, tmp_path: Path
) -> None:
    prior = tiny_lambda_eclipse(tmp_path / "prior")
    model = ("--model", tiny_kandinsky.decoder, "--clip", tiny_kandinsky.clip, "--prior", prior)

    def image(name: str, *more: object) -> str:
        out = ("--out", tmp_path / name, "--device", "cpu", "--steps", 2, "--seed", 7, "--json")
        answer = syzygy("generate", PROMPT, *model, *out, *more)
        assert answer.code == 0, answer.err
        return json.loads(answer.out)["images"][0]["path"]

    subject = ("--subject", f"star={pictures / '1.png'}")
    plain, own = image("plain"), image("own", "--decoder", trained)
    both = image("both", "--decoder", trained / "unet", *subject)
    made = [pixels(path) for path in (plain, own, both, image("subject", *subject))]
    assert all(np.abs(one - other).max() > 1 for i, one in enumerate(made) for other in made[:i])
    record = read_record(Path(own))
    assert record["decoder"] == str(trained)
    assert "unet" in record["fingerprints"]
    assert "unet" not in read_record(Path(plain))["fingerprints"]


def test_the_result_is_read_by_diffusers_and_in_python(tiny_kandinsky: Tiny, trained: Path) -> None:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from diffusers.pipelines.kandinsky2_2.pipeline_kandinsky2_2 import KandinskyV22Pipeline

    parts = {"clip": tiny_kandinsky.clip, "prior": tiny_kandinsky.prior}
    model = TextToImage.from_pretrained(tiny_kandinsky.decoder, decoder=trained, **parts)
    found = model(PROMPT, num_inference_steps=3, generator=[torch.Generator().manual_seed(1)])
    unet = UNet2DConditionModel.from_pretrained(trained / "unet", torch_dtype=torch.float32)
    pipe = KandinskyV22Pipeline.from_pretrained(tiny_kandinsky.decoder, unet=unet, low_cpu_mem_usage=False)
    pipe.set_progress_bar_config(disable=True)
    decoder: Any = model.pipeline.decoder
    after = [torch.Generator().manual_seed(1)]
    model.pipeline.noise(after)  # the prior's ε is drawn first
    wanted = pipe(
        image_embeds=found.image_embeddings,
        negative_image_embeds=decoder.unconditional(),
        height=32,
        width=32,
        num_inference_steps=3,
        generator=after,
    ).images
    assert np.abs(np.asarray(found.images[0], int) - np.asarray(wanted[0], int)).max() <= 1


def test_by_name_from_the_hubs_cache(
    syzygy: Callable[..., Answer], tiny_kandinsky: Tiny, cache: Path, pictures: Path, tmp_path: Path
) -> None:
    one, command = family("kandinsky-2.2"), ("train", "decoder", "--concept", pictures, "--out", tmp_path / "run")
    missing = syzygy(*command, *SMALL)
    assert (missing.code, missing.out) == (2, "")
    assert f"hf download {one.hub_id}" in missing.err
    assert one.hub_id is not None
    assert one.clip is not None
    add_snapshot(cache, tiny_kandinsky.decoder, one.hub_id, COMMIT, "main")
    add_snapshot(cache, tiny_kandinsky.clip, one.clip, COMMIT, "main")
    answer = syzygy(*command, *SMALL)
    assert answer.code == 0, answer.err
    assert f"Try next: syzygy generate PROMPT --model kandinsky-2.2 --decoder {tmp_path / 'run'}\n" in answer.out
    record = artifacts.read_json(tmp_path / "run" / "unet" / artifacts.PROVENANCE_FILE)
    assert record["model"] == one.hub_id
    loaded = TextToImage.from_pretrained("kandinsky-2.2", decoder=tmp_path / "run", prior=tiny_kandinsky.prior)
    assert loaded.fingerprints()["decoder"] == f"{one.hub_id}@{COMMIT}"


def test_a_dry_run_writes_nothing(
    syzygy: Callable[..., Answer], tiny_kandinsky: Tiny, pictures: Path, tmp_path: Path
) -> None:
    model = ("--model", tiny_kandinsky.decoder, "--clip", tiny_kandinsky.clip)
    command = ("train", "decoder", "--concept", pictures, *model, "size=16", "--device", "cpu", "--dry-run")
    answer = syzygy(*command, "--json", "--out", tmp_path / "run")
    assert answer.code == 0, answer.err
    found = json.loads(answer.out)
    weights = artifacts.read_tensors(tiny_kandinsky.decoder / "unet/diffusion_pytorch_model.safetensors")
    number = sum(value.numel() for value in weights.values())
    assert (found["steps"], found["trained"], found["validations"]) == (400, number, 0)
    assert found["states"] == 16 * number, "weights, gradients and two moments, in fp32"
    averaged = json.loads(syzygy(*command, "--json", "loop.ema_half_life=50").out)
    assert averaged["states"] == 20 * number
    assert "each picture's latents are encoded once" in answer.err
    assert not (tmp_path / "run").exists()


def test_settings_are_those_of_the_concept(syzygy: Callable[..., Answer]) -> None:
    answer = syzygy("train", "decoder", "--concept", "rex", "loop.lr=2e-5", "--settings", "--json")
    assert answer.code == 0, answer.err
    found = {name: about["value"] for name, about in json.loads(answer.out).items()}
    assert (found["size"], found["task.batch_size"], found["loop.steps"], found["loop.lr"]) == (512, 4, 400, 2e-5)
    assert "caption_columns" not in found


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--concept", "pictures", "--autoencoder", "starter"], "--autoencoder has no effect with --concept"),
        (["--concept", "pictures", "--t5", "x"], "--t5 has no effect with --concept"),
        (["--concept", "pictures", "--reader", "starter"], "--reader has no effect with --concept"),
        (["--concept", "pictures", "--samples", "x"], "--samples has no effect with --concept"),
        (["--concept", "pictures", "--init", "starter"], "--init has no effect with --concept"),
        (["--model", "kandinsky-2.2"], "--model has no effect without --concept"),
        (["--download"], "--download has no effect without --concept"),
        (["--concept", "none"], "there is no folder none: name the folder that holds the pictures."),
        (["--concept", "empty"], "empty holds no pictures"),
        (["--concept", "bad"], "no picture in bad can be read; 1 skipped: a.png: "),
        (["--concept", "pictures", "--model", "sd"], "sd reads texts alone: a concept is trained on"),
        (["--concept", "pictures", "--model", "nowhere"], "nowhere"),
        (["--concept", "pictures", "--preset", "starter"], "starter"),
        (["--concept", "pictures", "caption_columns=[]"], "caption_columns"),
    ],
    ids=str,
)
def test_wrong_arguments_are_one_line(
    arguments: list[str],
    message: str,
    syzygy: Callable[..., Answer],
    pictures: Path,
    text_only: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(pictures, "pictures")
    for name in ("empty", "bad"):
        Path(name).mkdir()
    Path("bad/a.png").write_bytes(b"no picture")
    Path("sd").symlink_to(text_only)
    answer = syzygy("train", "decoder", *arguments, "--out", "run")
    assert (answer.code, answer.out) == (2, "")
    assert message in answer.err
    assert len(answer.err.splitlines()) == 1


def test_other_decoders_are_refused(
    tiny_kandinsky: Tiny, tiny_kandinsky_inpaint: Tiny, text_only: Path, trained: Path, tmp_path: Path
) -> None:
    parts = {"clip": tiny_kandinsky.clip, "prior": tiny_kandinsky.prior}
    unfinished = tmp_path / "unfinished"
    unfinished.mkdir()
    (unfinished / "run.json").write_text("{}")
    for model, decoder, more, message in (
        (tiny_kandinsky_inpaint.decoder, trained, parts, r"has another U-Net\. Give --model"),
        (text_only, trained, {}, "has another U-Net"),
        (text_only, tiny_kandinsky.decoder, {}, "holds no U-Net that syzygy train decoder --concept trained"),
        (tiny_kandinsky.decoder, tiny_kandinsky.decoder, parts, "holds no U-Net that syzygy train"),
        (tiny_kandinsky.decoder, tmp_path / "none", parts, "holds no U-Net that syzygy train"),
        (tiny_kandinsky.decoder, unfinished, parts, "is not finished"),
        (tiny_kandinsky.decoder, trained, {**parts, "experts": trained}, "experts replace the decoder"),
    ):
        with pytest.raises(UserError, match=message):
            TextToImage.from_pretrained(model, decoder=decoder, **more)
