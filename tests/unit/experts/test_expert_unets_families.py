"""Experts of Kandinsky 2.2's decoder and of Stable Diffusion XL: what their U-Nets are told of pictures and captions, and whole runs."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from syzygy.core import artifacts
from syzygy.core.errors import UserError
from syzygy.experts import unet_expert_training
from syzygy.experts.expert_unets import ExpertUNet
from syzygy.experts.unet_expert_training import ExpertUNetsRun
from syzygy.pretrained.latent_cache import Latents
from syzygy.pretrained.training_families import load_beside
from syzygy.pretrained.unet_task import UNetTaskConfig
from syzygy.pretrained.unet_training import TrainingParts, load_unet
from syzygy.training.schedule import LoopConfig
from tests.closeness import NETWORK, assert_close
from tests.tiny_unclip import Tiny, tiny_clip_pipeline
from tests.tiny_xl import tiny_xl

CPU = torch.device("cpu")
SIDE = 16


@pytest.fixture(scope="module")
def xl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_xl(tmp_path_factory.mktemp("xl"))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six pictures of noise, wider than high."""
    folder = tmp_path_factory.mktemp("pictures")
    random, lines = np.random.default_rng(0), []
    for number in range(6):
        levels = random.integers(0, 256, (20, 24 + number, 3), np.uint8)
        Image.fromarray(levels).save(folder / f"{number}.png")
        lines.append(json.dumps({"file_name": f"{number}.png", "text": f"picture {number}"}))
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    return folder


def run(form: str = "lora", **more: Any) -> ExpertUNetsRun:
    loop = LoopConfig(steps=3, lr=0.01, validate_every=3, checkpoint_every=3, log_every=1)
    task = UNetTaskConfig(batch_size=3, dropped=0.5, checkpointing=True)
    values = {"leaves": ("E1_0", "E1_1"), "size": SIDE, "validation_pictures": 2, "rank": 2, "form": form} | more
    return ExpertUNetsRun(task=task, loop=loop, **values)


def train(what: ExpertUNetsRun, model: Path, data: Path, out: Path, clip: Path | None = None) -> Path:
    return unet_expert_training.train(what, model, str(data), out, CPU, lambda line: None, clip)


def made(beside: TrainingParts, image: Image.Image) -> dict[str, Tensor]:
    """What is kept of one picture."""
    prepared = {name: x[None] for name, x in beside.pictures.prepare(image).items()}
    return dict(beside.pictures.encode(prepared))


def cut(image: Image.Image, size: tuple[int, int], left: int) -> Tensor:
    """In [-1, 1]."""
    square = image.resize(size, Image.Resampling.LANCZOS).crop((left, 0, left + SIDE, SIDE))
    return torch.from_numpy(np.array(square)).permute(2, 0, 1)[None] / 127.5 - 1


def test_kandinskys_pictures_are_movqs_latents_and_clips_embeddings(tiny_kandinsky: Tiny, pictures: Path) -> None:
    from diffusers.models.autoencoders.vq_model import VQModel
    from transformers import CLIPVisionModelWithProjection
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    image = Image.open(pictures / "5.png")
    assert image.size == (29, 20)
    found = made(load_beside(tiny_kandinsky.decoder, SIDE, CPU, tiny_kandinsky.clip), image)
    assert found.keys() == {"mean", "embedding"}
    with torch.no_grad():
        movq = VQModel.from_pretrained(tiny_kandinsky.decoder / "movq")
        latents = movq.encode(cut(image, (23, SIDE), 3)).latents
        torch.testing.assert_close(found["mean"].float(), latents, atol=2e-3, rtol=2e-3)
        kind: Any = CLIPVisionModelWithProjection
        encoder = kind.from_pretrained(tiny_kandinsky.clip / "image_encoder", dtype=torch.float32)
        seen = CLIPImageProcessorPil.from_pretrained(tiny_kandinsky.clip / "image_processor")(
            image, return_tensors="pt"
        )
        assert_close(found["embedding"], encoder(**seen).image_embeds, depth=NETWORK)


def test_kandinsky_is_told_the_embedding_or_that_of_zeros(tiny_kandinsky: Tiny) -> None:
    from transformers import CLIPVisionModelWithProjection

    conditions = load_beside(tiny_kandinsky.decoder, SIDE, CPU, tiny_kandinsky.clip).conditions
    own = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    found = conditions(["a", None, ""], {"embedding": own})
    kind: Any = CLIPVisionModelWithProjection
    encoder = kind.from_pretrained(tiny_kandinsky.clip / "image_encoder", dtype=torch.float32)
    with torch.no_grad():  # as `KandinskyV22PriorPipeline.get_zero_embed`
        nothing = encoder(torch.zeros(1, 3, encoder.config.image_size, encoder.config.image_size)).image_embeds
    assert found["encoder_hidden_states"] is None
    assert_close(found["added_cond_kwargs"]["image_embeds"], torch.stack([own[0], nothing[0], own[2]]), depth=NETWORK)


@pytest.mark.parametrize("zeros", [True, False])
def test_xl_is_told_what_its_pipeline_tells(zeros: bool, xl: Path, pictures: Path, tmp_path: Path) -> None:
    from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import StableDiffusionXLPipeline

    model = xl
    if not zeros:
        model = shutil.copytree(xl, tmp_path / "model")
        index = json.loads((model / "model_index.json").read_text())
        (model / "model_index.json").write_text(json.dumps(index | {"force_zeros_for_empty_prompt": False}))
    beside, image = load_beside(model, SIDE, CPU), Image.open(pictures / "5.png")
    kept = made(beside, image)
    pipe: Any = StableDiffusionXLPipeline.from_pretrained(model, add_watermarker=False)
    with torch.no_grad():
        posterior = pipe.vae.encode(cut(image, (23, SIDE), 3)).latent_dist
        states, away, pooled, pooled_away = pipe.encode_prompt("a red circle", device=CPU)
        found = beside.conditions(["a red circle", None], {"place": kept["place"].repeat(2, 1)})
    factor = pipe.vae.config.scaling_factor
    torch.testing.assert_close(kept["mean"].float(), posterior.mean * factor, atol=2e-3, rtol=2e-3)
    torch.testing.assert_close(kept["std"].float(), posterior.std * factor, atol=2e-3, rtol=2e-3)
    assert bool(away.any()) is not zeros
    assert_close(found["encoder_hidden_states"], torch.cat([states, away]), depth=NETWORK)
    assert_close(found["added_cond_kwargs"]["text_embeds"], torch.cat([pooled, pooled_away]), depth=NETWORK)
    width = pipe.text_encoder_2.config.projection_dim
    place = pipe._get_add_time_ids((20, 29), (0, 3), (SIDE, SIDE), torch.float32, width)
    assert torch.equal(found["added_cond_kwargs"]["time_ids"], place.repeat(2, 1))


def test_whole_networks_of_kandinsky(tiny_kandinsky: Tiny, pictures: Path, tmp_path: Path) -> None:
    train(run("full"), tiny_kandinsky.decoder, pictures, tmp_path, tiny_kandinsky.clip)
    experts = ExpertUNet.from_pretrained(tmp_path)
    root, weights = load_unet(tiny_kandinsky.decoder / "unet"), []
    for name in ("E1_0", "E1_1"):
        expert: Any = experts.denoisers[name]
        weights.append(expert.conv_out.weight)
        assert not torch.equal(expert.conv_out.weight[:4], root.conv_out.weight[:4])
        assert torch.equal(expert.conv_out.weight[4:], root.conv_out.weight[4:]), "the variance"
        assert not torch.equal(expert.encoder_hid_proj.image_embeds.weight, root.encoder_hid_proj.image_embeds.weight)
    assert not torch.equal(*weights)
    record = artifacts.read_json(tmp_path / "experts" / "E1_0" / artifacts.PROVENANCE_FILE)
    beside = load_beside(tiny_kandinsky.decoder, SIDE, CPU, tiny_kandinsky.clip)
    told = beside.fingerprints()
    assert told.keys() == {"movq", "clip", "scheduler"}
    assert {name: record[name] for name in told} == told
    found = Latents(tmp_path / "latents", [artifacts.read_json(tmp_path / "latents" / "00000.json")])
    alone = made(beside, Image.open(pictures / "4.png"))
    assert_close(found.extras([0, 4])["embedding"][1:], alone["embedding"], depth=NETWORK)
    assert torch.equal(found.sampled([4], 1), found.sampled([4], 2)), "MOVQ draws nothing"


def test_another_clip_is_another_run(tiny_kandinsky: Tiny, pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    train(run(), tiny_kandinsky.decoder, pictures, out, tiny_kandinsky.clip)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")}
    train(run(), tiny_kandinsky.decoder, pictures, out, tiny_kandinsky.clip)
    nodes = [path for path in before if "experts" not in path.parts]
    assert {path: path.stat().st_mtime_ns for path in nodes} == {path: before[path] for path in nodes}
    other = tiny_clip_pipeline(tmp_path / "clip", seed=1)
    with pytest.raises(UserError, match=r"made differently \(clip differ\)"):
        train(run(), tiny_kandinsky.decoder, pictures, out, other)


def changed(folder: Path, part: str, to: Path, **values: Any) -> Path:
    """A model whose part has other settings."""
    copy = shutil.copytree(folder, to)
    (path,) = (copy / part).glob("*config.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    return copy


def test_wrong_input(tiny_kandinsky: Tiny, xl: Path, pictures: Path, tmp_path: Path) -> None:
    decoder, clip = tiny_kandinsky.decoder, tiny_kandinsky.clip
    half = shutil.copytree(clip, tmp_path / "half")
    shutil.rmtree(half / "image_encoder")
    cases: list[tuple[str, ExpertUNetsRun, Path, Path | None]] = [
        ("give --clip, the folder of the CLIP", run(), decoder, None),
        ("--clip has no effect", run(), xl, clip),
        ("embeddings 32 wide; the CLIP .* makes embeddings 48 wide", run(), decoder, tiny_clip_pipeline(tmp_path / "c", 48)),
        ("has no image_encoder", run(), decoder, half),
        ("multiples of 2", run(size=15), decoder, clip),
        ("9 channels, its autoencoder makes 4: an inpainting", run(), changed(decoder, "unet", tmp_path / "i", in_channels=9), clip),
        ("not Kandinsky 2.2's", run(), changed(decoder, "unet", tmp_path / "t", encoder_hid_dim_type="text_image_proj"), clip),
        ("pooled texts and sizes", run(), changed(xl, "unet", tmp_path / "p", projection_class_embeddings_input_dim=9), None),
    ]  # fmt: skip
    for number, (message, what, model, own) in enumerate(cases):
        with pytest.raises(UserError, match=message):
            train(what, model, pictures, tmp_path / f"out{number}", own)
