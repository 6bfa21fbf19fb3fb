"""Concept fine-tuning of a tiny Kandinsky 2.2: the loss, learning, resuming, what is written and what is refused."""

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from syzygy.core import artifacts
from syzygy.core.errors import UserError
from syzygy.core.randomness import generator
from syzygy.data.source_pictures import picture_folder
from syzygy.pretrained import concept_training, unet_task
from syzygy.pretrained.captioned_latents import Batches
from syzygy.pretrained.concept_training import ConceptRun
from syzygy.pretrained.presets import concept as recipe
from syzygy.pretrained.repositories import find_decoder
from syzygy.pretrained.unet_task import UNetTaskConfig, spread
from syzygy.training.loop import Interrupted
from syzygy.training.parallel import Ranks
from syzygy.training.run_records import RunResult
from syzygy.training.schedule import LoopConfig
from syzygy.training.shuffled import Shuffled
from tests.tiny_stable_diffusion import tiny_stable_diffusion
from tests.tiny_unclip import Tiny, tiny_clip_pipeline

ALONE = Ranks(torch.device("cpu"))
SIDE = 16


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three pictures of one thing, a striped square, wider than high."""
    folder = tmp_path_factory.mktemp("concept")
    for number in range(3):
        levels = np.full((20 + number, 24 + number, 3), 255, np.uint8)
        levels[4:14, 5 + number : 16 + number : 2] = (200, 30, 60)
        Image.fromarray(levels).save(folder / f"{number}.png")
    return folder


def run(steps: int = 4, lr: float = 0.002, **more: Any) -> ConceptRun:
    loop = LoopConfig(steps=steps, lr=lr, schedule="constant", checkpoint_every=2, log_every=2)
    task = UNetTaskConfig(batch_size=4, dropped=0.0, **more.pop("task", {}))
    return ConceptRun(**{"size": SIDE, "validation_pictures": 0} | more, task=task, loop=loop)


def train(what: ConceptRun, tiny: Tiny, pictures: Path, out: Path, **more: Any) -> RunResult:
    settings = {"clip": tiny.clip, "say": lambda line: None} | more
    return concept_training.train(
        what, find_decoder(tiny.decoder), picture_folder(pictures), out, settings.pop("world", ALONE), **settings
    )


def tensors(folder: Path) -> dict[str, Tensor]:
    return artifacts.read_tensors(folder / "diffusion_pytorch_model.safetensors")


def encoded(tiny: Tiny, pictures: Path) -> tuple[Tensor, Tensor]:
    """Latents and image embeddings of the concept by diffusers' and transformers' classes alone."""
    from diffusers.models.autoencoders.vq_model import VQModel
    from transformers import CLIPVisionModelWithProjection
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    movq, kind = VQModel.from_pretrained(tiny.decoder / "movq"), CLIPVisionModelWithProjection
    loose: Any = kind
    encoder = loose.from_pretrained(tiny.clip / "image_encoder", dtype=torch.float32)
    processor = CLIPImageProcessorPil.from_pretrained(tiny.clip / "image_processor")
    latents, embeddings = [], []
    for path in sorted(pictures.glob("*.png")):
        image = Image.open(path)
        width = int(image.width * SIDE / image.height)
        left = (width - SIDE) // 2
        square = image.resize((width, SIDE), Image.Resampling.LANCZOS).crop((left, 0, left + SIDE, SIDE))
        pixels = torch.from_numpy(np.array(square)).permute(2, 0, 1)[None] / 127.5 - 1
        with torch.no_grad():
            latents.append(movq.encode(pixels).latents)
            embeddings.append(encoder(**processor(image, return_tensors="pt")).image_embeds)
    return torch.cat(latents), torch.cat(embeddings)


def plain_loss(unet: Any, tiny: Tiny, x: Tensor, embeddings: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    """As in diffusers' training script for this decoder: its scheduler's noise, which the first four channels must predict."""
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

    scheduler = DDPMScheduler.from_pretrained(tiny.decoder / "scheduler")
    added: Any = {"image_embeds": embeddings}
    noisy = scheduler.add_noise(x, noise, timesteps)
    predicted = unet(noisy, timesteps, None, added_cond_kwargs=added).sample[:, :4]
    return torch.nn.functional.mse_loss(predicted, noise)


def loaded_unet(folder: Path) -> Any:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    return UNet2DConditionModel.from_pretrained(folder, torch_dtype=torch.float32)


def test_the_loss_and_its_gradients_are_those_of_plain_torch(
    tiny_kandinsky: Tiny, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(concept_training, "train_part", lambda run, task, *more, **others: seen.append(task))
    monkeypatch.setattr(concept_training, "precision_on", lambda device: None)  # bf16 on some processors
    train(run(), tiny_kandinsky, pictures, tmp_path)
    (task,), step = seen, 3
    loss = task.loss(step)["loss"]
    loss.backward()
    order = Shuffled(3, 0, "unet")
    chosen = [order[place] for place in range(4 * step, 4 * step + 4)]
    assert sorted(set(chosen)) == [0, 1, 2], "more pictures in a batch than there are: the next permutation begins"
    latents, embeddings = encoded(tiny_kandinsky, pictures)
    noise = torch.randn((4, 4, 8, 8), generator=generator(0, "unet", step))
    offset = torch.rand((), generator=generator(0, "unet", step, "timesteps"))
    timesteps = spread(torch.arange(1000), 4, offset)
    unet = loaded_unet(tiny_kandinsky.decoder / "unet")
    wanted = plain_loss(unet, tiny_kandinsky, latents[chosen], embeddings[chosen], noise, timesteps)
    wanted.backward()
    torch.testing.assert_close(loss, wanted, rtol=2e-3, atol=0)  # the latents are kept in half precision
    largest = max(parameter.grad.abs().max().item() for parameter in unet.parameters())
    gradients = dict(task.modules["unet"].named_parameters())
    for name, parameter in unet.named_parameters():
        found = gradients[name].grad
        assert found is not None, name
        torch.testing.assert_close(found, parameter.grad, rtol=0, atol=0.01 * largest)
    assert not gradients["conv_out.weight"].grad[4:].any(), "the predicted variance is not trained"


@pytest.fixture(scope="module")
def trained(tiny_kandinsky: Tiny, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing stopped."""
    out = tmp_path_factory.mktemp("trained")
    train(run(steps=40), tiny_kandinsky, pictures, out)
    return out


def test_training_reduces_the_loss_on_the_concept(trained: Path, tiny_kandinsky: Tiny, pictures: Path) -> None:
    latents, embeddings = encoded(tiny_kandinsky, pictures)
    noise = torch.randn((3, 4, 8, 8), generator=torch.Generator().manual_seed(1))
    before, after = (
        plain_loss(loaded_unet(place), tiny_kandinsky, latents, embeddings, noise, torch.tensor([150, 500, 850])).item()
        for place in (tiny_kandinsky.decoder / "unet", trained / "unet")
    )
    assert after < 0.9 * before


def test_what_is_written(trained: Path, tiny_kandinsky: Tiny, pictures: Path) -> None:
    assert sorted(path.name for path in trained.iterdir()) == ["latents", "metrics.jsonl", "run.json", "unet"]
    weights, before = tensors(trained / "unet"), tensors(tiny_kandinsky.decoder / "unet")
    assert weights.keys() == before.keys()
    assert {value.dtype for value in weights.values()} == {torch.float16}
    assert torch.equal(weights["conv_out.weight"][4:], before["conv_out.weight"][4:].half())
    record = artifacts.read_json(trained / "unet" / "provenance.json")
    settings = artifacts.read_json(trained / "run.json")
    assert (record["kind"], record["model"], record["source"]) == (
        "concept",
        str(tiny_kandinsky.decoder),
        str(pictures),
    )
    assert (record["pictures"], record["steps"], record["samples"]) == (3, 40, 160)
    for name in ("unet", "movq", "clip", "scheduler", "data"):
        assert record[name] == settings[name]


def test_interrupted_and_continued_is_the_same(
    tiny_kandinsky: Tiny, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, calls = Batches.__call__, []
    train(run(), tiny_kandinsky, pictures, tmp_path / "whole")

    def stopping(self: Batches, step: int) -> Any:
        calls.append(step)
        if len(calls) == 3:
            signal.raise_signal(signal.SIGINT)
        return whole(self, step)

    monkeypatch.setattr(Batches, "__call__", stopping)
    with pytest.raises(Interrupted, match="after step 3 of 4"):
        train(run(), tiny_kandinsky, pictures, tmp_path / "stopped")
    assert not (tmp_path / "stopped" / "unet").exists()
    train(run(), tiny_kandinsky, pictures, tmp_path / "stopped")
    assert calls == [0, 1, 2, 3]
    one, other = (tensors(tmp_path / name / "unet") for name in ("stopped", "whole"))
    assert all(torch.equal(one[name], other[name]) for name in other)
    lines = [(tmp_path / name / "metrics.jsonl").read_bytes() for name in ("stopped", "whole")]
    assert lines[0] == lines[1]
    # A finished run is not trained again, although its checkpoint is gone.
    result = train(run(), tiny_kandinsky, pictures, tmp_path / "stopped")
    assert calls == [0, 1, 2, 3]
    assert [line["step"] for line in result.history] == [2, 4]


def test_recomputed_activations_averages_and_validation(
    tiny_kandinsky: Tiny, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, again, blocks = tmp_path / "plain", tmp_path / "again", []
    whole = unet_task.checkpoint

    def counted(block: Any, *inputs: Any, **more: Any) -> Any:
        blocks.append(type(block).__name__)
        return whole(block, *inputs, **more)

    monkeypatch.setattr(unet_task, "checkpoint", counted)
    train(run(), tiny_kandinsky, pictures, plain)
    assert blocks == []
    train(run(task={"checkpointing": True}), tiny_kandinsky, pictures, again)
    assert len(blocks) >= 4 * 6, "the residual blocks of both ways, at each step"
    one, other = tensors(plain / "unet"), tensors(again / "unet")
    assert all(torch.allclose(one[name], other[name], atol=2e-3) for name in one)
    more = run().changed(validation_pictures=1, loop={"validate_every": 2, "ema_half_life": 1.0})
    result = train(more, tiny_kandinsky, pictures, tmp_path / "averaged")
    assert result.metrics["loss"] > 0
    averaged = tensors(tmp_path / "averaged" / "unet")
    assert not torch.equal(averaged["conv_in.weight"], one["conv_in.weight"])


def test_the_recipe() -> None:
    found = recipe()
    assert (found.size, found.task.batch_size, found.task.dropped) == (512, 4, 0)
    assert (found.loop.steps, found.loop.lr, found.loop.schedule) == (400, 1e-5, "constant")
    assert found.task.checkpointing


def test_lines_about_the_pictures(tiny_kandinsky: Tiny, pictures: Path, tmp_path: Path) -> None:
    folder, said = Path(shutil.copytree(pictures, tmp_path / "concept")), []
    (folder / "phone.heic").write_bytes(b"0000ftypheic")
    Image.new("RGB", (9, 40)).save(folder / "narrow.png")
    train(run(steps=1), tiny_kandinsky, folder, tmp_path / "out", say=said.append)
    assert said[0].startswith("1 of 5 pictures skipped: phone.heic: ")
    assert said[1] == (
        "warning: 1 of 4 pictures enlarged to 16 × 16 pixels, which trains blur; the smallest, narrow.png, has 9 × 40. "
        "Use larger pictures, or a smaller size."
    )
    assert said[2].startswith("latents of 4 pictures in ")
    said.clear()
    train(run(steps=1), tiny_kandinsky, pictures, tmp_path / "other", say=said.append)
    assert [line.partition(" in ")[0] for line in said] == ["latents of 3 pictures"]


def test_a_run_stays_what_it_was_begun_as(tiny_kandinsky: Tiny, pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    train(run(), tiny_kandinsky, pictures, out)
    with pytest.raises(UserError, match=r"trained with other settings \(loop\)"):
        train(run(lr=0.02), tiny_kandinsky, pictures, out)
    changed = Path(shutil.copytree(pictures, tmp_path / "changed"))
    Image.new("RGB", (20, 20)).save(changed / "0.png")
    with pytest.raises(UserError, match=r"latents of other pictures .*\(shards differ\)"):
        train(run(), tiny_kandinsky, changed, out)
    other = tiny_kandinsky._replace(decoder=Path(shutil.copytree(tiny_kandinsky.decoder, tmp_path / "model")))
    weights = tensors(other.decoder / "unet")
    weights["conv_out.bias"] += 1
    artifacts.write_tensors(other.decoder / "unet/diffusion_pytorch_model.safetensors", weights)
    with pytest.raises(UserError, match=r"trained with other settings \(unet\)"):
        train(run(), other, pictures, out)


def changed(folder: Path, to: Path, **values: Any) -> Path:
    """A model whose U-Net has other settings."""
    copy = Path(shutil.copytree(folder, to))
    path = copy / "unet" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    return copy


def test_wrong_models(
    tiny_kandinsky: Tiny, tiny_kandinsky_inpaint: Tiny, tiny_stable_unclip: Tiny, pictures: Path, tmp_path: Path
) -> None:
    text_only = tiny_stable_diffusion(tmp_path / "sd")
    no_embedding = changed(tiny_kandinsky.decoder, tmp_path / "t", encoder_hid_dim_type="text_image_proj")
    cases: list[tuple[str, Path, dict[str, Any]]] = [
        ("reads texts alone: a concept is trained on its pictures' image embeddings", text_only, {}),
        ("the decoder of stable-unclip .* cannot be trained on a concept", tiny_stable_unclip.decoder, {}),
        ("9 channels, its autoencoder makes 4: an inpainting", tiny_kandinsky_inpaint.decoder, {}),
        ("it reads no image embedding through image_proj", no_embedding, {}),
        ("makes embeddings 48 wide", tiny_kandinsky.decoder, {"clip": tiny_clip_pipeline(tmp_path / "c", 48)}),
        ("in one process", tiny_kandinsky.decoder, {"world": Ranks(torch.device("cpu"), rank=0, size=2)}),
    ]
    for number, (message, model, more) in enumerate(cases):
        with pytest.raises(UserError, match=message):
            train(run(), tiny_kandinsky._replace(decoder=model), pictures, tmp_path / f"out{number}", **more)
    with pytest.raises(UserError, match="multiples of 2"):
        train(run(size=15), tiny_kandinsky, pictures, tmp_path / "odd")
    what = run().changed(validation_pictures=3, loop={"validate_every": 2})
    with pytest.raises(UserError, match="leaves none of the 3 pictures"):
        train(what, tiny_kandinsky, pictures, tmp_path / "none")
