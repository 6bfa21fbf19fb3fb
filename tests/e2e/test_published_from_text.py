"""Published models that read texts alone, and words painted in published models, through the command line: tiny, random, offline."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
from huggingface_hub.utils import filter_repo_objects
from PIL import Image, ImageDraw

from syzygy.core.contracts import Region
from syzygy.core.errors import UserError
from syzygy.generation.image_files import read_record
from syzygy.generation.text_to_image import TextToImage
from syzygy.pretrained import repositories
from syzygy.pretrained.families import families, family
from tests.hub_cache import COMMIT, add_snapshot
from tests.tiny_karlo import tiny_karlo
from tests.tiny_stable_diffusion import tiny_stable_diffusion
from tests.tiny_unclip import Tiny, tiny_clip
from tests.tiny_xl import tiny_xl

PROMPT = "a red circle above a ring"
NAMES = [one.name for one in families() if one.prior is None]
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation:DeprecationWarning"
)  # diffusers' own arithmetic


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = tmp_path_factory.mktemp("text-alone")
    found = {"stable-diffusion-1.5": tiny_stable_diffusion(made / "sd"), "stable-diffusion-xl": tiny_xl(made / "xl")}
    assert list(found) == NAMES
    return found


@pytest.fixture
def canvas(tmp_path: Path) -> Path:
    picture = Image.new("RGB", (60, 40), "white")
    draw = ImageDraw.Draw(picture)
    draw.rectangle((2, 2, 25, 37), "red")
    draw.rectangle((32, 2, 57, 37), "blue")
    picture.save(tmp_path / "canvas.png")
    return tmp_path / "canvas.png"


def regions(canvas: Path) -> list[object]:
    return ["--canvas", canvas, "--region", "#ff0000=red circle", "--region", "#0000ff=ring@2"]


def run(syzygy: Callable[..., Any], out: Path, model: object, *more: object) -> tuple[bytes, dict[str, Any]]:
    answer = syzygy(
        "generate", PROMPT, "--model", model, "--steps", 2, "--device", "cpu", "--json", "--out", out, *more
    )
    assert answer.code == 0, answer.err
    path = Path(json.loads(answer.out)["images"][0]["path"])
    return Image.open(path).tobytes(), read_record(path)


@pytest.mark.parametrize("name", NAMES)
def test_a_text_becomes_the_picture_that_diffusers_makes(
    name: str, folders: dict[str, Path], cache: Path, syzygy: Callable[..., Any], tmp_path: Path, canvas: Path
) -> None:
    from diffusers import DiffusionPipeline

    one = family(name)
    add_snapshot(cache, folders[name], one.hub_id or "", COMMIT, "main")
    made, record = run(syzygy, tmp_path / "plain", name, "--seed", 5)
    assert record["fingerprints"] == {"decoder": f"{one.hub_id}@{COMMIT}"}
    assert record["conditions"] == ["text"]
    pipeline = DiffusionPipeline.from_pretrained(folders[name], low_cpu_mem_usage=False)
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(PROMPT, num_inference_steps=2, generator=torch.Generator().manual_seed(5)).images[0]
    apart = np.frombuffer(made, np.uint8).astype(int) - np.frombuffer(theirs.tobytes(), np.uint8)
    assert np.abs(apart).max() <= 1
    painted, record = run(syzygy, tmp_path / "painted", name, "--seed", 5, "--region-strength", 3, *regions(canvas))
    assert painted != made
    assert record["region_strength"] == 3
    assert [(one["phrase"], one["weight"]) for one in record["regions"]] == [("red circle", 1.0), ("ring", 2.0)]
    none, _ = run(syzygy, tmp_path / "none", name, "--seed", 5, "--region-strength", 0, *regions(canvas))
    assert none == made


def test_the_best_of_several_needs_a_clip(
    folders: dict[str, Path], cache: Path, syzygy: Callable[..., Any], tmp_path: Path
) -> None:
    model = folders["stable-diffusion-1.5"]
    refused = syzygy("generate", PROMPT, "--model", model, "--steps", 1, "--best-of", 2, "--out", tmp_path / "a")
    assert refused.code == 2
    assert "hf download openai/clip-vit-large-patch14" in " ".join(refused.err.split())
    clip = tiny_clip(tmp_path / "clip")
    _, record = run(syzygy, tmp_path / "b", model, "--best-of", 2, "--clip", clip)
    assert record["best_of"] == 2
    assert -1 <= record["score"] <= 1
    assert record["clip"] == str(clip)


def test_what_a_text_alone_cannot_do(
    folders: dict[str, Path], syzygy: Callable[..., Any], tmp_path: Path, canvas: Path
) -> None:
    sd, xl = folders.values()
    for command, message in (
        (["generate", PROMPT, "--model", sd, "--prior", tmp_path], "has no place for a prior: leave the prior out"),
        (["generate", PROMPT, "--model", sd, "--style", canvas], "cannot vary or mix pictures, nor take a style"),
        (["generate", PROMPT, "--model", sd, "--conditions", "image"], "what the decoder reads: text."),
        (["generate", PROMPT, "--model", xl, "--noise-level", 3], "no option noise_level; it has none"),
        (["generate", PROMPT, "--model", xl, "--region-strength", 1], "no effect without regions"),
        (["vary", canvas, "--model", xl], "cannot vary or mix pictures"),
        (["mix", "a ring", canvas, "--model", sd], "cannot vary or mix pictures"),
        (["evaluate", "composition", "--model", sd], "generates images from texts alone: it has no prior to evaluate"),
    ):
        out = [] if command[0] == "evaluate" else ["--out", tmp_path / "out"]
        answer = syzygy(*command, "--device", "cpu", *out)
        assert (answer.code, answer.out) == (2, ""), command
        assert message in " ".join(answer.err.split()), answer.err
        assert "Traceback" not in answer.err
    with pytest.raises(UserError, match="has no prior that predicts image embeddings"):
        TextToImage.from_pretrained(sd).pipeline.predict(["a"], [0], torch.zeros(1, 0))


def test_words_of_karlo_stable_unclip_and_kandinsky(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_stable_unclip: Tiny,
    tiny_kandinsky: Tiny,
    syzygy: Callable[..., Any],
    tmp_path: Path,
    canvas: Path,
) -> None:
    karlo = tiny_karlo(tmp_path_factory.mktemp("karlo"))
    for name, tiny, more in (("karlo", karlo, ["--super-res-steps", 1]), ("unclip", tiny_stable_unclip, [])):
        parts = ["--clip", tiny.clip, "--prior", tiny.prior, *more]
        plain, _ = run(syzygy, tmp_path / name / "plain", tiny.decoder, *parts)
        strong = ["--region-strength", 4, *regions(canvas)]
        painted, _ = run(syzygy, tmp_path / name / "painted", tiny.decoder, *parts, *strong)
        assert np.abs(np.frombuffer(plain, np.uint8).astype(int) - np.frombuffer(painted, np.uint8)).max() > 2
    answer = syzygy(
        "generate", PROMPT, "--model", tiny_kandinsky.decoder, "--clip", tiny_kandinsky.clip, "--prior",
        tiny_kandinsky.prior, "--device", "cpu", "--out", tmp_path / "out", *regions(canvas),
    )  # fmt: skip
    assert (answer.code, answer.out) == (2, "")
    assert "this decoder cannot take regions" in answer.err


def test_several_pictures_of_several_prompts(folders: dict[str, Path]) -> None:
    model, mask = TextToImage.from_pretrained(folders["stable-diffusion-1.5"]), torch.zeros(8, 12)
    mask[:, :6] = 1
    generators = [torch.Generator().manual_seed(seed) for seed in range(4)]
    told: dict[str, Any] = {"num_images_per_prompt": 2, "num_inference_steps": 2, "generator": generators}
    asked = model([PROMPT, "a star"], regions=[[Region("ring", mask)], []], region_strength=3.0, **told)
    assert (len(asked.images), asked.image_embeddings.shape, asked.seeds) == (4, (4, 0), [0, 1, 2, 3])
    again = [torch.Generator().manual_seed(1)]
    alone = model(PROMPT, regions=[Region("ring", mask)], region_strength=3.0, num_inference_steps=2, generator=again)
    apart = np.asarray(alone.images[0], int) - np.asarray(asked.images[1], int)
    assert np.abs(apart).max() <= 1
    assert (model.world, model.notes("a storm")) == (False, [])


def test_a_download_takes_the_parts_that_are_needed(
    folders: dict[str, Path], cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote = Path(shutil.copytree(folders["stable-diffusion-xl"], tmp_path / "remote"))
    for stray in ("unet/model.fp16.safetensors", "vae_1_0/config.json", "sd_xl_base_1.0.safetensors", "unet/x.bin"):
        (remote / stray).parent.mkdir(exist_ok=True)
        (remote / stray).write_bytes(b"stray")

    def snapshot_download(hub_id: str, *, allow_patterns: list[str], **_: Any) -> str:
        snapshot = cache / f"models--{hub_id.replace('/', '--')}" / "snapshots" / COMMIT
        names = [str(path.relative_to(remote)) for path in remote.rglob("*") if path.is_file()]
        for name in filter_repo_objects(names, allow_patterns=allow_patterns):
            (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(remote / name, snapshot / name)
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    found = repositories.find_decoder("stable-diffusion-xl", local_files_only=False)
    fetched = {str(path.relative_to(found.at.folder)) for path in found.at.folder.rglob("*") if path.is_file()}
    assert fetched == {
        "model_index.json",
        *(f"{part}/config.json" for part in ("unet", "vae", "text_encoder", "text_encoder_2")),
        *(f"{part}/diffusion_pytorch_model.safetensors" for part in ("unet", "vae")),
        *(f"{part}/model.safetensors" for part in ("text_encoder", "text_encoder_2")),
        *(f"{part}/{name}.json" for part in ("tokenizer", "tokenizer_2") for name in ("tokenizer", "tokenizer_config")),
        "scheduler/scheduler_config.json",
    }
