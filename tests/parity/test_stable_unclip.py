"""Stable unCLIP's decoder against diffusers' own pipeline, on the same files, embeddings, texts and noise."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from syzygy.core import diffusers_schedulers
from syzygy.core.contracts import Guide, Region, Sampling
from syzygy.core.errors import UserError
from syzygy.pretrained.families import LoadContext
from syzygy.pretrained.stable_unclip import StableUnclipDecoder
from tests.tiny_unclip import SIZE, WIDTH, Tiny

LEVEL = 1 / 255
TEXTS = ["a red circle", "two blue stars"]


def load(folder: Path, **settings: Any) -> StableUnclipDecoder:
    return StableUnclipDecoder.load(LoadContext(folder=folder, **settings))


@pytest.fixture(scope="module")
def decoder(tiny_stable_unclip: Tiny) -> StableUnclipDecoder:
    return load(tiny_stable_unclip.decoder)


@pytest.fixture(scope="module")
def theirs(tiny_stable_unclip: Tiny) -> Any:
    from diffusers.pipelines.stable_diffusion.pipeline_stable_unclip_img2img import StableUnCLIPImg2ImgPipeline

    pipeline = StableUnCLIPImg2ImgPipeline.from_pretrained(tiny_stable_unclip.decoder, low_cpu_mem_usage=False)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def embeddings(number: int = 2) -> Tensor:
    return torch.randn(number, WIDTH, generator=torch.Generator().manual_seed(1))


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


@pytest.mark.parametrize(
    ("scale", "negative", "level", "size"),
    [(1.0, None, 0, None), (10.0, None, 0, None), (5.0, "a blue star", 400, (36, 26))],
)
def test_pictures_are_those_of_diffusers(
    scale: float, negative: str | None, level: int, size: Any, decoder: StableUnclipDecoder, theirs: Any
) -> None:
    theirs.check_inputs = lambda *_, **__: None  # it wants multiples of 8 whatever the autoencoder's scale
    height, width = size or (SIZE, SIZE)
    reference = theirs(
        prompt=TEXTS,
        image_embeds=embeddings(),
        negative_prompt=None if negative is None else [negative] * 2,
        noise_level=level,
        height=height,
        width=width,
        num_inference_steps=4,
        guidance_scale=scale,
        generator=generators(3, 4),
        output_type="np",
    ).images

    def paint(**changes: Any) -> Tensor:
        sampling = {"steps": 4, "guidance_scale": scale, "size": size, "options": {"noise_level": level}} | changes
        # As a pipeline tells a negative prompt: with the prior's prediction for it, which this decoder was not trained to read.
        unwanted = None if negative is None else Guide(embeddings(1), texts=[negative])
        return decoder.generate(
            Guide(embeddings(), texts=TEXTS), generators(3, 4), negative=unwanted, sampling=Sampling(**sampling)
        )

    ours = paint()
    assert ours.shape == (2, 3, height, width)
    assert (torch.from_numpy(reference).permute(0, 3, 1, 2) - ours).abs().max() <= LEVEL
    moved = paint(options={"noise_level": level + 300})  # and can fail
    assert (moved - ours).abs().max() > 5 * LEVEL


def test_it_reads_the_text_and_the_embedding(decoder: StableUnclipDecoder) -> None:
    def paint(guide: Guide, negative: Guide | None = None) -> Tensor:
        return decoder.generate(guide, generators(3), negative=negative, sampling=Sampling(steps=3, guidance_scale=4.0))

    plain = paint(Guide(embeddings(1)))
    assert torch.equal(plain, paint(Guide(embeddings(1), texts=[""])))
    assert (plain - paint(Guide(embeddings(1), texts=["a red circle"]))).abs().max() > LEVEL
    assert (plain - paint(Guide(-embeddings(1)))).abs().max() > 5 * LEVEL
    assert (plain - paint(Guide(embeddings(1)), Guide(texts=["a star"]))).abs().max() > LEVEL
    assert (plain - paint(Guide(embeddings(1)), Guide(-embeddings(1)))).abs().max() > 5 * LEVEL


def test_a_batch_is_its_pictures_one_by_one(decoder: StableUnclipDecoder, tiny_stable_unclip: Tiny) -> None:
    sampling = Sampling(steps=3)
    together = decoder.generate(Guide(embeddings(), texts=TEXTS), generators(3, 4), sampling=sampling)
    apart = [
        decoder.generate(Guide(embeddings()[[i]], texts=[TEXTS[i]]), generators(3 + i), sampling=sampling)[0]
        for i in range(2)
    ]
    torch.testing.assert_close(together, torch.stack(apart), rtol=0, atol=LEVEL)
    parked = load(tiny_stable_unclip.decoder, offload=True, tiling=True)
    assert parked.autoencoder.use_tiling
    again = parked.generate(Guide(embeddings(), texts=TEXTS), generators(3, 4), sampling=sampling)
    torch.testing.assert_close(again, together, rtol=0, atol=LEVEL)


def test_every_sampler_paints(tiny_stable_unclip: Tiny, copy_of: Callable[[Path], Path]) -> None:
    folder = copy_of(tiny_stable_unclip.decoder)
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"set_alpha_to_one": True}))
    decoder = load(folder)
    made = {
        name: decoder.generate(Guide(embeddings(1)), generators(3), sampling=Sampling(steps=3, sampler=name))
        for name in diffusers_schedulers.SCHEDULERS
    }
    assert torch.equal(made["pndm"], decoder.generate(Guide(embeddings(1)), generators(3), sampling=Sampling(steps=3)))
    torch.testing.assert_close(made["euler"], made["ddim"], rtol=0, atol=3 * LEVEL)  # so latents are not clipped


@pytest.mark.parametrize("level", [-1, 1000, 2.5, "much"])
def test_a_noise_level_is_a_timestep(level: Any, decoder: StableUnclipDecoder) -> None:
    with pytest.raises(UserError, match="noise_level must be a whole number from 0 to 999"):
        decoder.generate(Guide(embeddings(1)), generators(1), sampling=Sampling(options={"noise_level": level}))


def test_what_cannot_be_done_is_refused(decoder: StableUnclipDecoder) -> None:
    with pytest.raises(UserError, match="no option tiles; its own are noise_level"):
        decoder.generate(Guide(embeddings(1)), generators(1), sampling=Sampling(options={"tiles": 3}))
    with pytest.raises(UserError, match="33 × 32 pixels are not possible; both sides must be multiples of 2"):
        decoder.generate(Guide(embeddings(1)), generators(1), sampling=Sampling(size=(33, 32)))
    with pytest.raises(UserError, match="2 texts for 3 images"):
        decoder.generate(Guide(embeddings(1)), generators(1, 2, 3), negative=Guide(texts=TEXTS))


def test_files_that_do_not_fit_are_refused(tiny_stable_unclip: Tiny, copy_of: Callable[[Path], Path]) -> None:
    assert StableUnclipDecoder.embedding_width(tiny_stable_unclip.decoder) == WIDTH
    folder = copy_of(tiny_stable_unclip.decoder)
    shutil.rmtree(folder / "image_encoder")  # not needed
    load(folder)
    path = folder / "text_encoder" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"hidden_size": 32, "num_hidden_layers": 1}))
    with pytest.raises(UserError, match="do not fit CLIPTextModel"):
        load(folder)
    path.write_text(json.dumps(config))
    path = folder / "image_normalizer" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"embedding_dim": 16}))
    with pytest.raises(UserError, match=r"64 wide, which must be twice the image normaliser's 16"):
        load(folder)
    shutil.rmtree(folder / "image_normalizer")
    with pytest.raises(UserError, match="has no image_normalizer: Stable unCLIP needs unet, vae"):
        load(folder)


def test_its_words_can_be_painted(decoder: StableUnclipDecoder) -> None:
    mask = torch.zeros(20, 30)
    mask[:, :15] = 1

    def paint(*regions: list[Region], texts: list[str] | None = TEXTS, strength: float = 3.0) -> Tensor:
        told = Guide(embeddings(), texts=texts, regions=regions or None)
        sampling = Sampling(steps=3, guidance_scale=4.0, region_strength=strength if regions else None)
        return decoder.generate(told, generators(3, 4), sampling=sampling)

    plain, painted = paint(), paint([Region("red circle", mask)], [])
    assert (painted[0] - plain[0]).abs().max() > 3 * LEVEL
    assert (painted[1] - plain[1]).abs().max() < LEVEL
    assert (paint([Region("red circle", mask.flip(1))], [])[0] - painted[0]).abs().max() > 3 * LEVEL
    assert torch.equal(paint([Region("red circle", mask)], [], strength=0.0), plain)
    for texts, message in ((None, "let it read the text"), (["a ring"] * 2, "does not contain the phrase")):
        with pytest.raises(UserError, match=message):
            paint([Region("red circle", mask)], [], texts=texts)
