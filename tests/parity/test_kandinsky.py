"""Kandinsky 2.2's decoder against diffusers' own pipeline, on the same files, embeddings and noise."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from syzygy.core import diffusers_schedulers
from syzygy.core.contracts import Guide, Progress, Sampling
from syzygy.core.diffusers_weights import load_model
from syzygy.core.errors import UserError
from syzygy.pretrained.families import LoadContext
from syzygy.pretrained.kandinsky import KandinskyDecoder
from tests.tiny_unclip import SIZE, WIDTH, Tiny, random_clip

LEVEL = 1 / 255
ZERO = torch.full((1, WIDTH), 0.3)


def change_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def load(folder: Path, **settings: Any) -> KandinskyDecoder:
    context = LoadContext(folder=folder, clip=random_clip(), **settings)
    return replace(KandinskyDecoder.load(context), unconditional=lambda: ZERO)


@pytest.fixture(scope="module")
def decoder(tiny_kandinsky: Tiny) -> KandinskyDecoder:
    return load(tiny_kandinsky.decoder)


def embeddings(number: int = 2) -> Tensor:
    return torch.randn(number, WIDTH, generator=torch.Generator().manual_seed(1))


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def with_scheduler(folder: Path, **changes: Any) -> Path:
    change_json(folder / "scheduler" / "scheduler_config.json", **changes)
    return folder


@pytest.mark.parametrize("variance", ["fixed_small", "learned_range"])  # as published; as of Kandinsky 2.1
@pytest.mark.parametrize(("scale", "size"), [(1.0, None), (7.5, (36, 24))])
def test_pictures_are_those_of_diffusers(
    scale: float, size: tuple[int, int] | None, variance: str, tiny_kandinsky: Tiny, copy_of: Callable[[Path], Path]
) -> None:
    from diffusers.pipelines.kandinsky2_2.pipeline_kandinsky2_2 import KandinskyV22Pipeline

    folder = with_scheduler(copy_of(tiny_kandinsky.decoder), variance_type=variance)
    decoder = load(folder)
    pipeline = KandinskyV22Pipeline.from_pretrained(folder, low_cpu_mem_usage=False)
    pipeline.set_progress_bar_config(disable=True)
    height, width = size or (SIZE, SIZE)
    theirs = pipeline(
        image_embeds=embeddings(),
        negative_image_embeds=ZERO.expand(2, -1),
        height=height,
        width=width,
        num_inference_steps=4,
        guidance_scale=scale,
        generator=generators(3, 4),
        output_type="np",
    ).images
    ours = decoder.generate(
        Guide(embeddings()), generators(3, 4), sampling=Sampling(steps=4, guidance_scale=scale, size=size)
    )
    assert ours.shape == (2, 3, height, width)
    difference = (torch.from_numpy(theirs).permute(0, 3, 1, 2) - ours).abs().max()
    assert difference <= LEVEL
    if scale != 1:  # and can fail: another picture of zeros makes other pictures
        other = replace(load(folder), unconditional=lambda: -ZERO)
        moved = other.generate(
            Guide(embeddings()), generators(3, 4), sampling=Sampling(steps=4, guidance_scale=scale, size=size)
        )
        assert (moved - ours).abs().max() > 5 * LEVEL


def test_a_batch_is_its_pictures_one_by_one(decoder: KandinskyDecoder, tiny_kandinsky: Tiny) -> None:
    together = decoder.generate(Guide(embeddings()), generators(3, 4), sampling=Sampling(steps=3))
    apart = [
        decoder.generate(Guide(embeddings()[[i]]), generators(3 + i), sampling=Sampling(steps=3))[0] for i in range(2)
    ]
    torch.testing.assert_close(together, torch.stack(apart), rtol=0, atol=LEVEL)
    same_seed = decoder.generate(Guide(embeddings()), generators(3, 3), sampling=Sampling(steps=3))
    assert (same_seed[0] - same_seed[1]).abs().max() > 5 * LEVEL  # it reads the embedding
    one_for_all = decoder.generate(Guide(embeddings(1)), generators(3, 4), sampling=Sampling(steps=3))
    torch.testing.assert_close(one_for_all[:1], together[:1], rtol=0, atol=LEVEL)
    parked = load(tiny_kandinsky.decoder, offload=True)
    torch.testing.assert_close(
        parked.generate(Guide(embeddings()), generators(3, 4), sampling=Sampling(steps=3)), together, rtol=0, atol=LEVEL
    )


def test_samplers_are_diffusers_schedulers(tiny_kandinsky: Tiny, copy_of: Callable[[Path], Path]) -> None:
    # Unclipped, evenly spaced and to the end, which are not every scheduler's own habits.
    habits = {"clip_sample": False, "timestep_spacing": "leading", "set_alpha_to_one": True}
    decoder = load(with_scheduler(copy_of(tiny_kandinsky.decoder), variance_type="learned_range", **habits))
    made = {
        name: decoder.generate(Guide(embeddings(1)), generators(3), sampling=Sampling(steps=4, sampler=name))
        for name in diffusers_schedulers.SCHEDULERS
    }
    assert torch.equal(made["ddpm"], decoder.generate(Guide(embeddings(1)), generators(3), sampling=Sampling(steps=4)))
    # One ODE and one method in two parametrisations: Euler in σ is DDIM. It shows that scaled inputs reach the U-Net.
    torch.testing.assert_close(made["euler"], made["ddim"], rtol=0, atol=LEVEL)
    for name in ("euler-a", "dpm++2m", "unipc", "pndm"):
        assert (made[name] - made["ddim"]).abs().max() > 0
    with pytest.raises(UserError, match=r"sampler 'heun' is unknown.*Known: ddpm, ddim, pndm"):
        decoder.generate(Guide(embeddings(1)), generators(3), sampling=Sampling(sampler="heun"))


def test_progress_is_told_after_each_step(decoder: KandinskyDecoder) -> None:
    told: list[Progress] = []
    decoder.generate(Guide(embeddings()), generators(3, 4), sampling=Sampling(steps=3), on_step=told.append)
    assert [(p.step, p.steps) for p in told] == [(1, 3), (2, 3), (3, 3)]
    assert told[0].sigma > told[1].sigma > told[2].sigma
    assert all(p.denoised is not None and p.denoised.shape == (2, 4, SIZE // 2, SIZE // 2) for p in told)


def test_away_is_the_zero_picture_asked_for_only_when_needed(tiny_kandinsky: Tiny) -> None:
    asked = []

    def zero() -> Tensor:
        asked.append(1)
        return ZERO

    decoder = replace(load(tiny_kandinsky.decoder), unconditional=zero)
    sampling = Sampling(steps=2, guidance_scale=3.0)
    negative = decoder.generate(Guide(embeddings()), generators(1, 2), negative=Guide(ZERO), sampling=sampling)
    decoder.generate(Guide(embeddings()), generators(1, 2), sampling=Sampling(steps=2, guidance_scale=1.0))
    assert not asked
    assert torch.equal(negative, decoder.generate(Guide(embeddings()), generators(1, 2), sampling=sampling))
    assert len(asked) == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, "0 steps are not possible; allowed are 1 to 1000"),
        ({"guidance_scale": 0.5}, r"at least 1, got 0\.5"),
        ({"guidance_scale": float("nan")}, "finite"),
        ({"size": (30, 32)}, "30 × 32 pixels are not possible; both sides must be multiples of 4"),
        ({"options": {"noise_level": 3}}, "no option noise_level; it has none"),
        ({"region_strength": 0.5}, "cannot take regions"),
    ],
)
def test_what_cannot_be_done_is_refused(settings: dict[str, Any], message: str, decoder: KandinskyDecoder) -> None:
    with pytest.raises(UserError, match=message):
        decoder.generate(Guide(embeddings()), generators(1, 2), sampling=Sampling(**settings))


def test_a_guide_must_fit(decoder: KandinskyDecoder) -> None:
    with pytest.raises(UserError, match="needs image embeddings"):
        decoder.generate(Guide(texts=["a"]), generators(1))
    with pytest.raises(UserError, match=r"reads image embeddings 32 wide; these are 768 wide \(CLIP ViT-L/14"):
        decoder.generate(Guide(torch.zeros(1, 768)), generators(1))
    with pytest.raises(UserError, match="3 embeddings for 2 images"):
        decoder.generate(Guide(embeddings(3)), generators(1, 2))
    with pytest.raises(UserError, match="no effect at guidance scale 1"):
        decoder.generate(
            Guide(embeddings(1)), generators(1), negative=Guide(ZERO), sampling=Sampling(guidance_scale=1.0)
        )


def test_half_precision_paints_nearly_the_same(decoder: KandinskyDecoder, tiny_kandinsky: Tiny) -> None:
    half = load(tiny_kandinsky.decoder, dtype=torch.bfloat16)
    assert half.unet.dtype == half.autoencoder.dtype == torch.bfloat16
    sampling = Sampling(steps=3, sampler="ddim", guidance_scale=1.0)
    ours, full = (x.generate(Guide(embeddings()), generators(3, 4), sampling=sampling) for x in (half, decoder))
    assert ours.dtype == torch.float32
    assert 0 < (ours - full).abs().mean() < 0.05


def test_files_that_are_not_a_decoder_are_refused(
    tiny_kandinsky: Tiny, copy_of: Callable[[Path], Path], tmp_path: Path
) -> None:
    assert KandinskyDecoder.embedding_width(tiny_kandinsky.decoder) == WIDTH
    with pytest.raises(UserError, match="diffusers has no tiling for Kandinsky"):
        load(tiny_kandinsky.decoder, tiling=True)
    folder = copy_of(tiny_kandinsky.decoder)
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="truncated or not safetensors"):
        load(folder)
    weights.unlink()
    (folder / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(UserError, match=r"only as pickle \(diffusion_pytorch_model\.bin\)"):
        load(folder)
    weights.write_bytes(whole)
    config = json.loads((folder / "unet" / "config.json").read_text())
    (folder / "unet" / "config.json").write_text(json.dumps(config | {"layers_per_block": 2}))
    with pytest.raises(UserError, match="do not fit UNet2DConditionModel: missing"):
        load(folder)
    (folder / "unet" / "config.json").write_text(json.dumps(config | {"encoder_hid_dim_type": "text_image_proj"}))
    with pytest.raises(UserError, match=r"is not Kandinsky 2\.2's"):
        load(folder)
    shutil.rmtree(folder / "movq")
    with pytest.raises(UserError, match=r"has no movq: Kandinsky 2\.2's decoder needs unet, movq, scheduler"):
        load(folder)
    (folder / "scheduler" / "scheduler_config.json").write_text('{"_class_name": "HeunDiscreteScheduler"}')
    with pytest.raises(UserError, match=r"is for 'HeunDiscreteScheduler'; known are DDPMScheduler"):
        diffusers_schedulers.load_scheduler(folder)
    from diffusers.models.autoencoders.vq_model import VQModel

    with pytest.raises(UserError, match="is for 'UNet2DConditionModel'; VQModel is needed there"):
        load_model(VQModel, folder, "unet", torch.float32)
