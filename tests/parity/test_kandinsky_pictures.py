"""Kandinsky 2.2's decoders that read pictures, against diffusers' own pipelines, on the same files, embeddings and noise."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers.pipelines.kandinsky2_2.pipeline_kandinsky2_2_inpainting import prepare_mask
from torch import Tensor

from syzygy.core import diffusers_schedulers
from syzygy.core.contracts import Guide, Progress, Sampling
from syzygy.core.errors import UserError
from syzygy.core.spatial_guides import PixelGuide
from syzygy.pretrained.families import LoadContext
from syzygy.pretrained.kandinsky import KandinskyDecoder, kept_positions
from tests.tiny_unclip import WIDTH, Tiny, random_clip

LEVEL = 1 / 255
STEPS = 5
NOTHING = PixelGuide()
ZERO = torch.full((1, WIDTH), 0.3)
MOVED = 5 * LEVEL
"""Pictures that differ by more are other pictures."""


def load(folder: Path, **settings: Any) -> KandinskyDecoder:
    context = LoadContext(folder=folder, clip=random_clip(), **settings)
    return replace(KandinskyDecoder.load(context), unconditional=lambda: ZERO)


def embeddings(number: int = 2) -> Tensor:
    return torch.randn(number, WIDTH, generator=torch.Generator().manual_seed(1))


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds or (3, 4)]


def picture(side: int, seed: int = 2) -> Tensor:
    """A smooth picture [3, side, side]."""
    coarse = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(coarse, (side, side), mode="bicubic")[0].clamp(0, 1)


def left(side: int) -> Tensor:
    mask = torch.zeros(side, side)
    mask[:, : side // 2] = 1
    return mask


def theirs(kind: str, folder: Path, side: int, **arguments: Any) -> Tensor:
    """Images [2, 3, side, side] of diffusers' pipeline."""
    pipeline = getattr(diffusers, kind).from_pretrained(folder, low_cpu_mem_usage=False)
    pipeline.set_progress_bar_config(disable=True)
    pipeline._warn_has_been_called = True  # of the inpainting pipeline, whose masks were once inverted
    found = pipeline(
        image_embeds=embeddings(),
        negative_image_embeds=ZERO.expand(2, -1),
        height=side,
        width=side,
        num_inference_steps=STEPS,
        generator=generators(),
        output_type="np",
        **arguments,
    ).images
    return torch.from_numpy(found).permute(0, 3, 1, 2)


def ours(decoder: KandinskyDecoder, pixels: PixelGuide = NOTHING, *, steps: int = STEPS, **settings: Any) -> Tensor:
    guide = Guide(embeddings(), pixels=pixels)
    return decoder.generate(guide, generators(), sampling=Sampling(steps=steps, **settings))


def difference(one: Tensor, other: Tensor) -> float:
    """In the mean, because processors round differently and a clipping scheduler can magnify it in single pixels."""
    return float((one - other).abs().mean())


@pytest.mark.parametrize(("strength", "scale"), [(0.3, 4.0), (0.7, 1.0), (1.0, 4.0)])
def test_image_to_image_is_that_of_diffusers(strength: float, scale: float, tiny_kandinsky: Tiny) -> None:
    image, folder = picture(32), tiny_kandinsky.decoder
    pixels = {"image": image[None].expand(2, -1, -1, -1), "strength": strength, "guidance_scale": scale}
    expected = theirs("KandinskyV22Img2ImgPipeline", folder, 32, **pixels)
    decoder = load(folder)
    found = ours(decoder, PixelGuide(image=image), strength=strength, guidance_scale=scale)
    assert difference(found, expected) < LEVEL / 2
    assert difference(found, ours(decoder, guidance_scale=scale)) > MOVED
    assert (
        difference(found, ours(decoder, PixelGuide(image=picture(32, 9)), strength=strength, guidance_scale=scale))
        > LEVEL
    )


@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_inpainting_is_that_of_diffusers(scale: float, tiny_kandinsky_inpaint: Tiny) -> None:
    image, mask, folder = picture(32), left(32), tiny_kandinsky_inpaint.decoder
    expected = theirs(
        "KandinskyV22InpaintPipeline",
        folder,
        32,
        image=2 * image[None].repeat(2, 1, 1, 1) - 1,
        mask_image=mask.repeat(2, 1, 1, 1),
        guidance_scale=scale,
    )
    decoder = load(folder)
    found = ours(decoder, PixelGuide(image=image, mask=mask), guidance_scale=scale)
    assert difference(found, expected) < LEVEL / 2
    whole = ours(decoder, PixelGuide(image=image, mask=torch.ones(32, 32)), guidance_scale=scale)
    assert difference(found[..., 16:], whole[..., 16:]) > MOVED


@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_depth_maps_are_read_as_by_diffusers(scale: float, tiny_kandinsky_depth: Tiny) -> None:
    depth, image, folder = picture(64, 5), picture(64), tiny_kandinsky_depth.decoder
    hint = depth[None].expand(2, -1, -1, -1)
    decoder = load(folder)
    expected = theirs("KandinskyV22ControlnetPipeline", folder, 64, hint=hint, guidance_scale=scale)
    found = ours(decoder, PixelGuide(depth=depth), guidance_scale=scale)
    assert difference(found, expected) < LEVEL / 2
    assert difference(found, ours(decoder, PixelGuide(depth=1 - depth), guidance_scale=scale)) > 0
    pixels = {"image": image[None].expand(2, -1, -1, -1), "strength": 0.6, "guidance_scale": scale}
    expected = theirs("KandinskyV22ControlnetImg2ImgPipeline", folder, 64, hint=hint, **pixels)
    found = ours(decoder, PixelGuide(depth=depth, image=image), strength=0.6, guidance_scale=scale)
    assert difference(found, expected) < LEVEL / 2


def test_the_default_strength_is_that_of_diffusers(tiny_kandinsky: Tiny) -> None:
    decoder = load(tiny_kandinsky.decoder)
    assert decoder.defaults.strength == 0.3
    pixels = PixelGuide(image=picture(32))
    assert torch.equal(ours(decoder, pixels), ours(decoder, pixels, strength=0.3))


def test_masks_are_prepared_as_by_diffusers() -> None:
    mask = (torch.rand(9, 7, generator=torch.Generator().manual_seed(0)) < 0.2).float()
    assert 0 < mask.mean() < 1
    assert torch.equal(kept_positions(mask, (9, 7)), prepare_mask(1 - mask[None, None]))


@pytest.mark.parametrize("sampler", [name for name in diffusers_schedulers.SCHEDULERS if name != "pndm"])
def test_every_sampler_starts_from_the_image(sampler: str, tiny_kandinsky: Tiny) -> None:
    """With little noise and two steps, images are nearly what the autoencoder makes of the picture."""
    image, seen = picture(32), list[Progress]()
    decoder = load(tiny_kandinsky.decoder)
    made = decoder.generate(
        Guide(embeddings(1), pixels=PixelGuide(image=image)),
        generators(3),
        sampling=Sampling(steps=100, strength=0.02, sampler=sampler),
        on_step=seen.append,
    )
    assert [(p.step, p.steps) for p in seen] == [(1, 2), (2, 2)]
    expected = reconstructed(decoder, image)
    assert difference(made, expected) < difference(ours(decoder, steps=10, sampler=sampler), expected) / 2


@pytest.mark.parametrize("sampler", diffusers_schedulers.SCHEDULERS)
def test_every_sampler_keeps_what_the_mask_leaves_out(sampler: str, tiny_kandinsky_inpaint: Tiny) -> None:
    image, mask = picture(32), torch.zeros(32, 32)
    mask[:4, :4] = 1
    decoder = load(tiny_kandinsky_inpaint.decoder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(KandinskyDecoder, "decode", lambda _, latents: latents[:, :3])
        made = ours(decoder, PixelGuide(image=image, mask=mask), sampler=sampler)
    expected = (encoded(decoder, image)[:, :3] / 2 + 0.5).clamp(0, 1)
    torch.testing.assert_close(made[..., 3:, 3:], expected[..., 3:, 3:].expand(2, -1, -1, -1))
    assert difference(made[..., :2, :2], expected[..., :2, :2]) > MOVED


def encoded(decoder: KandinskyDecoder, image: Tensor) -> Tensor:
    with torch.no_grad():
        return decoder.autoencoder.encode(2 * image[None] - 1).latents


def reconstructed(decoder: KandinskyDecoder, image: Tensor) -> Tensor:
    with torch.no_grad():
        return (decoder.decode(encoded(decoder, image)) / 2 + 0.5).clamp(0, 1)


def test_offloading_and_batches_change_nothing(tiny_kandinsky_inpaint: Tiny) -> None:
    decoder, pixels = load(tiny_kandinsky_inpaint.decoder), PixelGuide(image=picture(32), mask=left(32))
    together = ours(decoder, pixels)
    assert difference(ours(load(tiny_kandinsky_inpaint.decoder, offload=True), pixels), together) < LEVEL
    alone = decoder.generate(Guide(embeddings()[1:], pixels=pixels), generators(4), sampling=Sampling(steps=STEPS))
    assert difference(alone[0], together[1]) < LEVEL


def test_what_cannot_be_done_is_refused(
    tiny_kandinsky: Tiny, tiny_kandinsky_inpaint: Tiny, tiny_kandinsky_depth: Tiny, copy_of: Callable[[Path], Path]
) -> None:
    plain, inpainting, deep = (
        load(tiny.decoder) for tiny in (tiny_kandinsky, tiny_kandinsky_inpaint, tiny_kandinsky_depth)
    )
    image, mask = picture(32), left(32)
    cases: list[tuple[KandinskyDecoder, PixelGuide, dict[str, Any], str]] = [
        (
            plain,
            PixelGuide(image=image, mask=mask),
            {},
            "cannot inpaint.*Models that can: starter, kandinsky-2.2-inpaint",
        ),
        (
            plain,
            PixelGuide(depth=image),
            {},
            "cannot read a depth map.*Models that can: kandinsky-2.2-controlnet-depth",
        ),
        (plain, NOTHING, {"strength": 0.5}, "strength has no effect without an image"),
        (plain, PixelGuide(image=image), {"strength": 0.1}, "strength 0.1 leaves none of 5 steps"),
        (plain, PixelGuide(image=image), {"strength": 0.5, "sampler": "pndm"}, "pndm cannot start from an image"),
        (inpainting, NOTHING, {}, "give an image and a mask"),
        (inpainting, PixelGuide(image=image), {}, "give an image and a mask"),
        (inpainting, PixelGuide(mask=mask), {}, "a mask has no effect without an image"),
        (inpainting, PixelGuide(image=image, mask=mask), {"strength": 0.5}, "strength has no effect on this decoder"),
        (deep, NOTHING, {}, "follows a depth map: give one"),
    ]
    for decoder, pixels, settings, message in cases:
        with pytest.raises(UserError, match=message):
            ours(decoder, pixels, **settings)


def test_a_u_net_that_reads_something_else_is_refused(tiny_kandinsky: Tiny, tmp_path: Path) -> None:
    from syzygy.pretrained.kandinsky import _kind

    with pytest.raises(UserError, match=r"reads 8 channels with 'image' embeddings; .* read 4 with 'image' or 9 with"):
        _kind(tmp_path, {"in_channels": 8, "addition_embed_type": "image"}, 4)
