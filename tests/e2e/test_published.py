"""Published models whole, tiny and random: by folder and from the hub's cache, offline, through Python and the command line."""

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
from PIL import Image

from syzygy.clip.zero_image import ZeroImage
from syzygy.core import artifacts
from syzygy.core.contracts import Guide, Sampling
from syzygy.core.errors import UserError
from syzygy.generation import load_pretrained
from syzygy.generation.text_to_image import TextToImage
from syzygy.pretrained import repositories
from syzygy.pretrained.families import families, family
from tests import tiny_unclip
from tests.hub_cache import COMMIT, add_snapshot
from tests.tiny_karlo import tiny_karlo
from tests.tiny_unclip import WIDTH, Tiny

PROMPTS = ["a red circle", "two blue stars"]
NEED_PICTURES = ("kandinsky-2.2-inpaint", "kandinsky-2.2-controlnet-depth")
"""Decoders that generate nothing from a prompt alone; see test_image_to_image.py."""
UNCLIP = [one.name for one in families() if one.prior is not None and one.name not in NEED_PICTURES]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty one of ours."""
    monkeypatch.setenv("SYZYGY_CACHE", str(tmp_path / "syzygy"))
    return tmp_path / "syzygy"


def publish_all(cache: Path, name: str, tiny: Tiny) -> None:
    one = family(name)
    for hub_id, folder in zip((one.hub_id, one.clip, one.prior), tiny, strict=True):
        add_snapshot(cache, folder, hub_id, COMMIT, "main")


def load(tiny: Tiny, **settings: Any) -> TextToImage:
    return TextToImage.from_pretrained(tiny.decoder, **{"clip": tiny.clip, "prior": tiny.prior} | settings)


def arguments(tiny: Tiny, **changes: Path) -> list[object]:
    chosen = tiny._asdict() | changes
    return ["--model", chosen["decoder"], "--clip", chosen["clip"], "--prior", chosen["prior"]]


def generators() -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in (5, 6)]


def pixels(images: list[Image.Image]) -> np.ndarray:
    return np.stack([np.asarray(image, dtype=int) for image in images])


def test_kandinsky_paints_what_diffusers_paints(tiny_kandinsky: Tiny, own_cache: Path) -> None:
    """From diffusers' own image encoder (of a picture of zeros) and U-Net, from our prior's embedding."""
    from diffusers.pipelines.kandinsky2_2.pipeline_kandinsky2_2 import KandinskyV22Pipeline
    from transformers import CLIPVisionModelWithProjection

    model = load(tiny_kandinsky)
    assert (model.world, model.notes("a storm")) == (False, [])
    assert not model.clip.model.has_images
    ours = model(PROMPTS, generator=generators(), num_inference_steps=3)
    assert not model.clip.model.has_images  # loaded for one vector, and let go
    encoder = CLIPVisionModelWithProjection.from_pretrained(tiny_kandinsky.clip / "image_encoder").float()
    pipeline = KandinskyV22Pipeline.from_pretrained(tiny_kandinsky.decoder, low_cpu_mem_usage=False)
    pipeline.set_progress_bar_config(disable=True)
    after = generators()
    model.pipeline.noise(after)  # the prior's ε is drawn first
    with torch.no_grad():
        zero = encoder(torch.zeros(1, 3, 24, 24)).image_embeds
        theirs = pipeline(
            image_embeds=ours.image_embeddings,
            negative_image_embeds=zero.expand(2, -1),
            height=32,
            width=32,
            num_inference_steps=3,
            guidance_scale=4.0,
            generator=after,
        ).images
    assert np.abs(pixels(ours.images) - pixels(theirs)).max() <= 1
    (kept,) = (own_cache / "zero-image").iterdir()
    assert kept.suffix == ".safetensors"


def test_the_picture_of_zeros_is_computed_once(tiny_kandinsky: Tiny, tmp_path: Path, own_cache: Path) -> None:
    folder = Path(shutil.copytree(tiny_kandinsky.clip, tmp_path / "clip"))
    found = repositories.hub_files.locate(folder, None, local_files_only=True)

    def zero() -> ZeroImage:
        clip = load_pretrained.Clip.from_pretrained(folder, text_first=True)
        return ZeroImage(clip, "the same")

    first = zero()
    made = first()
    assert made.shape == (1, WIDTH)
    (folder / "image_encoder" / "model.safetensors").unlink()  # needed no more
    assert torch.equal(zero()(), made)
    for broken in (b"half a file", b""):
        first.path.write_bytes(broken)
        with pytest.raises(UserError, match=r"model\.safetensors is missing"):
            zero()()
    before = repositories.identity(found)
    (folder / "image_encoder" / "config.json").write_text("{}")
    assert repositories.identity(found) != before


def test_a_cache_that_cannot_be_written_is_a_warning(
    tiny_kandinsky: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SYZYGY_CACHE", str(tmp_path / "file"))
    zero = ZeroImage(load_pretrained.Clip.from_pretrained(tiny_kandinsky.clip, text_first=True), "x")
    with pytest.warns(UserWarning, match="image encoder is loaded again next time"):
        assert zero().shape == (1, WIDTH)


@pytest.fixture(scope="module")
def tinies(tiny_kandinsky: Tiny, tiny_stable_unclip: Tiny, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tiny]:
    karlo = tiny_karlo(tmp_path_factory.mktemp("karlo"))
    return {"kandinsky-2.2": tiny_kandinsky, "stable-unclip": tiny_stable_unclip, "karlo": karlo}


@pytest.mark.parametrize("name", UNCLIP)
def test_variations_are_painted_from_the_image_tower(name: str, tinies: dict[str, Tiny]) -> None:
    model = load(tinies[name])
    picture = torch.rand(3, 40, 30, generator=torch.Generator().manual_seed(0))
    varied = model.vary(picture, generator=generators()[:1], num_inference_steps=2)
    assert model.clip.model.has_images
    direct = model.pipeline.decoder.generate(
        Guide(varied.image_embeddings), generators()[:1], sampling=Sampling(steps=2)
    )
    assert direct.shape[1:] == (3, varied.images[0].height, varied.images[0].width)
    mixed = model.mix([("a red circle", 0.6), (picture, 0.4)], generator=generators()[:1], num_inference_steps=2)
    assert np.abs(pixels(mixed.images) - pixels(varied.images)).max() > 1


@pytest.mark.parametrize("name", UNCLIP)
def test_a_published_name_is_found_in_the_hubs_cache(
    name: str, cache: Path, tinies: dict[str, Tiny], syzygy: Callable[..., Any], tmp_path: Path
) -> None:
    tiny = tinies[name]
    publish_all(cache, name, tiny)
    out = tmp_path / "out"
    answer = syzygy("generate", *PROMPTS, "--model", name, "--steps", 2, "--out", out, "--json", "--device", "cpu")
    assert answer.code == 0, answer.err
    said = json.loads(answer.out)
    one = family(name)
    assert said["settings"]["fingerprints"]["decoder"] == f"{one.hub_id}@{COMMIT}"
    assert said["settings"]["fingerprints"]["clip"] == f"{one.clip}@{COMMIT}"
    by_folder = load(tiny)(PROMPTS[0], generator=torch.Generator().manual_seed(0), num_inference_steps=2)
    seeded = load(tiny)([PROMPTS[0]], generator=[torch.Generator().manual_seed(0)], num_inference_steps=2)
    with Image.open(said["images"][0]["path"]) as painted:
        assert np.abs(pixels([painted]) - pixels(seeded.images)).max() <= 1
        assert np.abs(pixels([painted]) - pixels(by_folder.images)).max() > 1  # one generator for all seeds another
    # By the decoder's hub id, too.
    model = TextToImage.from_pretrained(one.hub_id or "")
    assert model.fingerprints()["decoder"] == f"{one.hub_id}@{COMMIT}"
    with pytest.raises(UserError, match="has no reader"):
        model.reader()


def test_stable_unclip_is_told_the_text_and_the_negative_prompt(tiny_stable_unclip: Tiny) -> None:
    model = load(tiny_stable_unclip)
    sampling: dict[str, Any] = {"num_inference_steps": 3, "guidance_scale": 4.0}
    both = model(PROMPTS, negative_prompt="a ring", generator=generators(), noise_level=20, **sampling)
    after = generators()
    model.pipeline.noise(after)
    expected = model.pipeline.decoder.generate(
        Guide(both.image_embeddings, texts=PROMPTS),
        after,
        negative=Guide(texts=["a ring"]),
        sampling=Sampling(steps=3, guidance_scale=4.0, options={"noise_level": 20}),
    )
    expected_pixels = (expected.permute(0, 2, 3, 1) * 255).round().int().numpy()
    assert np.abs(pixels(both.images) - expected_pixels).max() <= 1
    for changes in ({"negative_prompt": None}, {"conditions": ["image"]}, {"noise_level": 900}):
        settings = {"negative_prompt": "a ring", "noise_level": 20} | sampling | changes
        other = model(PROMPTS, generator=generators(), **settings)
        assert np.abs(pixels(other.images) - pixels(both.images)).max() > 1, changes
    with pytest.raises(UserError, match="needs image embeddings"):
        model(PROMPTS, conditions=["text"])


def test_sizes_dtypes_and_tiling_through_the_command(
    tiny_stable_unclip: Tiny, syzygy: Callable[..., Any], tmp_path: Path
) -> None:
    common = ["generate", PROMPTS[0], *arguments(tiny_stable_unclip), "--steps", 2, "--device", "cpu", "--json"]
    sized = syzygy(*common, "--height", 36, "--width", 24, "--tiling", "--dtype", "bf16", "--out", tmp_path / "a")
    assert sized.code == 0, sized.err
    record = json.loads(sized.out)
    with Image.open(record["images"][0]["path"]) as image:
        assert image.size == (24, 36)
    assert record["settings"]["dtype"] == "bf16"
    assert record["settings"]["sampler"] == "pndm"
    for more, message in (
        (["--height", 36], "height and width come together"),
        (["--offload"], "offloading moves parts off a GPU"),
        (["--super-res-steps", 3], "no option super_res_steps; its own are noise_level"),
        (["--sampler", "dpm"], "sampler 'dpm' is unknown"),
        (["--conditions", "image,sound"], "must be one or more of what the decoder reads: image, text"),
    ):
        refused = syzygy(*common, *more, "--out", tmp_path / "b")
        assert (refused.code, message in refused.err) == (2, True), (more, refused.err)
        assert "Traceback" not in refused.err


def test_what_belongs_to_another_clip_is_refused(
    tiny_kandinsky: Tiny, syzygy: Callable[..., Any], tmp_path: Path
) -> None:
    wide = tiny_unclip.tiny_eclipse(tmp_path / "wide", width=48)
    refused = syzygy(
        "generate", "a", *arguments(tiny_kandinsky, prior=wide), "--out", tmp_path / "out", "--device", "cpu"
    )
    assert refused.code == 2
    assert "reads image embeddings 32 wide" in refused.err
    assert f"prior {wide} predicts embeddings 48 wide" in " ".join(refused.err.split())
    other = tiny_unclip.tiny_clip(tmp_path / "clip", width=48)
    with pytest.raises(UserError, match=r"the CLIP .* makes embeddings 48 wide.*such as kandinsky-community"):
        load(tiny_kandinsky, clip=other)
    assert "768 wide (CLIP ViT-L/14" in load_pretrained.which_clip(768)


def test_what_is_missing_is_named(
    tiny_kandinsky: Tiny, cache: Path, syzygy: Callable[..., Any], tmp_path: Path
) -> None:
    run = ["generate", "a", "--out", tmp_path / "out", "--device", "cpu"]
    for more, messages in (
        (
            ["--model", "kandinsky-2.2"],
            [str(cache), "hf download kandinsky-community/kandinsky-2-2-decoder", "--download"],
        ),
        (["--model", "kandinsky-2.2", "--download"], ["not in the hub's cache and the hub cannot be reached"]),
        (["--model", "some/thing@v2"], ["has no some/thing at revision v2"]),
        (["--model", tiny_kandinsky.clip], ["'KandinskyV22PriorPipeline'", "StableUnCLIPPipeline"]),
        (
            ["--model", tmp_path / "nowhere"],
            ["neither a folder nor a known model", "kandinsky-2.2, karlo, stable-unclip, stable-diffusion-1.5"],
        ),
    ):
        said = syzygy(*run, *more)
        flat = " ".join(said.err.split())
        assert said.code == 2
        assert all(message in flat for message in messages), flat
    decoder = Path(shutil.copytree(tiny_kandinsky.decoder, tmp_path / "decoder"))
    shutil.rmtree(decoder / "movq")
    said = syzygy(*run, *arguments(tiny_kandinsky, decoder=decoder))
    assert f"{decoder} has no movq" in " ".join(said.err.split())
    add_snapshot(cache, tiny_kandinsky.decoder, family("kandinsky-2.2").hub_id or "", COMMIT, "main")
    said = syzygy(*run, "--model", "kandinsky-2.2")  # the prior and the CLIP are missing yet
    assert "hf download ECLIPSE-Community/ECLIPSE_KandinskyV22_Prior" in " ".join(said.err.split())


def test_a_download_takes_the_parts_that_are_needed(
    tiny_stable_unclip: Tiny, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote = Path(shutil.copytree(tiny_stable_unclip.decoder, tmp_path / "remote"))
    for part in ("unet", "vae"):
        weights = remote / part / "diffusion_pytorch_model.safetensors"
        shutil.copy(weights, weights.with_name("diffusion_pytorch_model.fp16.safetensors"))
        weights.with_suffix(".bin").write_bytes(b"pickle")
    asked = []

    def snapshot_download(
        hub_id: str, *, revision: str | None, allow_patterns: list[str], local_files_only: bool
    ) -> str:
        asked.append((revision, local_files_only))
        snapshot = cache / f"models--{hub_id.replace('/', '--')}" / "snapshots" / COMMIT
        names = [str(path.relative_to(remote)) for path in remote.rglob("*") if path.is_file()]
        for name in filter_repo_objects(names, allow_patterns=allow_patterns):
            (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(remote / name, snapshot / name)
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    found = repositories.find_decoder("stable-unclip", local_files_only=False)
    assert found.family.name == "stable-unclip"
    assert found.at.revision == COMMIT
    assert asked[0] == (None, False)
    assert {revision for revision, _ in asked[1:]} == {COMMIT}  # a push in between must not mix two commits
    fetched = {str(path.relative_to(found.at.folder)) for path in found.at.folder.rglob("*") if path.is_file()}
    models = ("unet", "vae", "image_normalizer")
    assert fetched == {
        "model_index.json",
        *(f"{part}/config.json" for part in (*models, "text_encoder")),
        *(f"{part}/diffusion_pytorch_model.safetensors" for part in models),
        "text_encoder/model.safetensors",
        "tokenizer/tokenizer.json",
        "tokenizer/tokenizer_config.json",
        "scheduler/scheduler_config.json",
        "image_noising_scheduler/scheduler_config.json",
    }
    (remote / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    with pytest.raises(UserError, match="'FluxPipeline', which is no decoder known here"):
        repositories.find_decoder("some/thing", local_files_only=False)


def test_our_own_models_refuse_what_is_not_for_them(tiny_model: Path) -> None:
    for settings in ({"dtype": "bf16"}, {"offload": True}, {"tiling": True}, {"clip": tiny_model / "clip"}):
        with pytest.raises(UserError, match="are for published models"):
            TextToImage.from_pretrained(tiny_model, **settings)
    with pytest.raises(UserError, match="dtype 'int8' is unknown"):
        TextToImage.from_pretrained(tiny_model, dtype="int8")
    with pytest.raises(UserError, match="generates images of one size"):
        TextToImage.from_pretrained(tiny_model)("a red circle", height=64, width=64)


def test_half_precision_that_overflows_is_an_error_of_every_command(
    tiny_kandinsky: Tiny, syzygy: Callable[..., Any], tmp_path: Path
) -> None:
    """Weights that are finite, and sums of theirs that are not in fp16."""
    folder = Path(shutil.copytree(tiny_kandinsky.decoder, tmp_path / "decoder"))
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights = artifacts.read_tensors(path)
    weights["conv_in.weight"] *= 1e5
    artifacts.write_tensors(path, weights)
    Image.new("RGB", (24, 24), "red").save(tmp_path / "a.png")
    (tmp_path / "prompts.txt").write_text(PROMPTS[0])
    common = [*arguments(tiny_kandinsky, decoder=folder), "--steps", 2, "--seed", 7]
    commands = [
        ["generate", PROMPTS[0]],
        ["generate", PROMPTS[0], "--best-of", 2],
        ["vary", tmp_path / "a.png"],
        ["mix", PROMPTS[0], tmp_path / "a.png"],
        ["mix", PROMPTS[0], tmp_path / "a.png", "--frames", 2],
        ["export-images", "--prompts", tmp_path / "prompts.txt", "--layout", "t2i-compbench", "--images-per-prompt", 1],
    ]
    for number, command in enumerate(commands):
        out = tmp_path / str(number)
        said = syzygy(*command, *common, "--dtype", "fp16", "--out", out)
        assert (said.code, list(out.rglob("*.png"))) == (2, []), command
        assert "images hold values that are not finite" in said.err
        assert "--dtype" in said.err
        if command[0] == "generate":
            assert f"image 1 of '{PROMPTS[0]}' (seed 7)" in said.err
    assert syzygy("generate", PROMPTS[0], *common, "--dtype", "bf16", "--out", tmp_path / "bf16").code == 0
