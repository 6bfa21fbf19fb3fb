"""Stable Diffusion 1.x, 2.x and XL as decoders against diffusers' own pipelines, on the same files, texts and noise."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from syzygy.core import diffusers_schedulers
from syzygy.core.contracts import Guide, ImageDecoder, Progress, Region, Sampling
from syzygy.core.errors import UserError
from syzygy.pretrained.families import LoadContext
from syzygy.pretrained.repositories import family_of
from syzygy.pretrained.stable_diffusion import StableDiffusionDecoder
from syzygy.regions.diffusers_hook import region_conditioning
from tests.tiny_stable_diffusion import tiny_stable_diffusion
from tests.tiny_unclip import SIZE
from tests.tiny_xl import tiny_xl

LEVEL = 1 / 255
TEXTS = ["a red circle", "two blue stars above a ring!"]
KINDS = ("1.5", "2.1", "xl")
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation:DeprecationWarning"
)  # diffusers' own arithmetic


def set_json(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def set_scheduler(folder: Path, kind: str, **values: Any) -> None:
    set_json(folder / "scheduler" / "scheduler_config.json", _class_name=kind, **values)
    set_json(folder / "model_index.json", scheduler=["diffusers", kind])


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = tmp_path_factory.mktemp("stable-diffusion")
    first = tiny_stable_diffusion(made / "1.5")
    set_scheduler(first, "PNDMScheduler", skip_prk_steps=True)
    return {
        "1.5": first,
        "2.1": tiny_stable_diffusion(made / "2.1", "v_prediction"),
        "xl": tiny_xl(made / "xl"),
    }


def load(folder: Path, **settings: Any) -> StableDiffusionDecoder:
    decoder = family_of(folder).decoder
    assert issubclass(decoder, StableDiffusionDecoder)
    return decoder.load(LoadContext(folder=folder, **settings))


@pytest.fixture(scope="module")
def decoders(folders: dict[str, Path]) -> dict[str, StableDiffusionDecoder]:
    return {kind: load(folder) for kind, folder in folders.items()}


def theirs(folder: Path) -> Any:
    from diffusers import DiffusionPipeline

    pipeline = DiffusionPipeline.from_pretrained(folder, low_cpu_mem_usage=False, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.check_inputs = lambda *_, **__: None  # it wants multiples of 8 whatever the autoencoder's scale
    return pipeline


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def half() -> Tensor:
    mask = torch.zeros(20, 30)
    mask[:, :15] = 1
    return mask


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("scale", "negative", "size"), [(7.5, None, None), (3.0, "a ring", (36, 26)), (1.0, None, None)]
)
def test_pictures_are_those_of_diffusers(
    kind: str, scale: float, negative: str | None, size: Any, folders: dict[str, Path], decoders: Any
) -> None:
    height, width = size or (SIZE, SIZE)
    reference = theirs(folders[kind])(
        prompt=TEXTS,
        negative_prompt=None if negative is None else [negative] * 2,
        height=height,
        width=width,
        num_inference_steps=4,
        guidance_scale=scale,
        generator=generators(3, 4),
        output_type="np",
    ).images
    seen: list[Progress] = []

    def paint(texts: list[str] = TEXTS, **changes: Any) -> Tensor:
        sampling = {"steps": 4, "guidance_scale": scale, "size": size} | changes
        unwanted = None if negative is None else Guide(texts=[negative])
        return decoders[kind].generate(
            Guide(texts=texts), generators(3, 4), negative=unwanted, sampling=Sampling(**sampling), on_step=seen.append
        )

    ours = paint()
    assert ours.shape == (2, 3, height, width)
    assert (torch.from_numpy(reference).permute(0, 3, 1, 2) - ours).abs().max() < LEVEL
    assert (paint(TEXTS[::-1]) - ours).abs().max() > 3 * LEVEL  # and can fail
    assert seen[0].sigma > seen[len(seen) // 2 - 1].sigma


@pytest.mark.parametrize("kind", KINDS)
def test_regions_are_the_same_as_in_diffusers_pipeline(kind: str, folders: dict[str, Path], decoders: Any) -> None:
    pipeline, regions = theirs(folders[kind]), [Region("red circle", half())]
    sampling: dict[str, Any] = {"num_inference_steps": 4, "guidance_scale": 5.0}
    with region_conditioning(pipeline, TEXTS[0], regions, strength=1.5):
        reference = pipeline(TEXTS[0], generator=generators(3), output_type="np", **sampling).images
    guide, own = Guide(texts=TEXTS[:1], regions=[regions]), Sampling(steps=4, guidance_scale=5.0, region_strength=1.5)
    ours = decoders[kind].generate(guide, generators(3), sampling=own)
    assert (torch.from_numpy(reference).permute(0, 3, 1, 2) - ours).abs().max() < LEVEL
    plain = decoders[kind].generate(
        Guide(texts=TEXTS[:1]), generators(3), sampling=Sampling(steps=4, guidance_scale=5.0)
    )
    assert (ours - plain).abs().max() > 3 * LEVEL
    again = theirs(folders[kind])(TEXTS[0], generator=generators(3), output_type="np", **sampling).images
    after = pipeline(TEXTS[0], generator=generators(3), output_type="np", **sampling).images
    assert (again == after).all()


@pytest.mark.parametrize("kind", KINDS)
def test_laws_of_painting(kind: str, decoders: Any) -> None:
    decoder = decoders[kind]
    assert isinstance(decoder, ImageDecoder)
    assert decoder.conditions == ("text",)

    def paint(*regions: list[Region], texts: list[str] = TEXTS, seeds: tuple[int, ...] = (3, 4), **more: Any) -> Tensor:
        told = Guide(texts=texts, regions=regions or None)
        return decoder.generate(told, generators(*seeds), sampling=Sampling(steps=3, guidance_scale=4.0, **more))

    left, right = Region("red circle", half()), Region("red circle", half().flip(1))
    plain = paint()
    assert torch.equal(paint([left], [], region_strength=0.0), plain)
    assert torch.equal(paint([Region("red circle", half(), 0.0)], []), plain)
    painted = paint([left], [], region_strength=2.0)
    assert (painted[0] - plain[0]).abs().max() > 3 * LEVEL
    assert (painted[1] - plain[1]).abs().max() < LEVEL  # its neighbour is painted, it is not
    assert (paint([right], [], region_strength=2.0)[0] - painted[0]).abs().max() > 3 * LEVEL
    alone = paint([left], texts=TEXTS[:1], seeds=(3,), region_strength=2.0)
    assert (alone[0] - painted[0]).abs().max() < LEVEL


def test_precision_and_offloading(folders: dict[str, Path], decoders: Any) -> None:
    for kind in ("1.5", "xl"):
        guide, sampling = Guide(texts=TEXTS), Sampling(steps=2)
        full = decoders[kind].generate(guide, generators(3, 4), sampling=sampling)
        parked = load(folders[kind], offload=True, tiling=True)
        assert parked.autoencoder.use_tiling
        torch.testing.assert_close(
            parked.generate(guide, generators(3, 4), sampling=sampling), full, rtol=0, atol=LEVEL
        )
        low = load(folders[kind], dtype=torch.bfloat16).generate(guide, generators(3, 4), sampling=sampling)
        assert 0 < (low - full).abs().mean() < 0.1
    assert load(folders["xl"], dtype=torch.float16).autoencoder.dtype == torch.float32  # it would overflow
    assert load(folders["1.5"], dtype=torch.float16).autoencoder.dtype == torch.float16


@pytest.mark.parametrize("named", [True, False])
def test_what_diffusers_mends_in_old_schedulers(named: bool, folders: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(folders["1.5"], tmp_path / "old"))
    set_scheduler(folder, "DDIMScheduler", steps_offset=0, clip_sample=True)
    if not named:  # diffusers' default values are those
        path = folder / "scheduler" / "scheduler_config.json"
        values = json.loads(path.read_text())
        path.write_text(json.dumps({key: values[key] for key in values if key not in ("steps_offset", "clip_sample")}))
    with pytest.warns(FutureWarning, match="outdated|clip_sample"):
        reference = theirs(folder)(TEXTS[0], num_inference_steps=4, generator=generators(3), output_type="np").images
    ours = load(folder).generate(Guide(texts=TEXTS[:1]), generators(3), sampling=Sampling(steps=4))
    assert (torch.from_numpy(reference).permute(0, 3, 1, 2) - ours).abs().max() < LEVEL


def test_every_sampler_paints(decoders: Any) -> None:
    regions = [[Region("circle", half())]]
    for name in diffusers_schedulers.SCHEDULERS:
        sampling = Sampling(steps=3, sampler=name)
        plain, painted = (
            decoders["1.5"].generate(Guide(texts=TEXTS[:1], regions=own), generators(3), sampling=sampling)
            for own in (None, regions)
        )
        assert torch.isfinite(painted).all()
        assert not torch.equal(plain, painted), name


def test_long_prompts_are_cut_with_a_warning(decoders: Any) -> None:
    long = "a red circle " * 40 + "and a ring"
    with pytest.warns(UserWarning, match="this encoder reads 77; cut:"):
        decoders["1.5"].generate(Guide(texts=[long]), generators(3), sampling=Sampling(steps=2))
    told = Guide(texts=[long], regions=[[Region("ring", half())]])
    with pytest.warns(UserWarning, match="cut:"), pytest.raises(UserError, match="after the last token"):
        decoders["xl"].generate(told, generators(3), sampling=Sampling(steps=1))


@pytest.mark.parametrize(
    ("guide", "sampling", "message"),
    [
        (Guide(torch.zeros(1, 32)), {}, "generates images from texts: give it one"),
        (Guide(texts=["a", "b", "c"]), {}, "3 texts for 1 images"),
        (Guide(texts=["a"]), {"size": (33, 32)}, "33 × 32 pixels are not possible"),
        (Guide(texts=["a"]), {"region_strength": 0.4}, "no effect without regions"),
        (Guide(texts=["a"], regions=[[Region("ring", half())]]), {}, "does not contain the phrase 'ring'"),
        (Guide(texts=["a"], regions=[[Region("a", half())]]), {"region_strength": -1.0}, "at least 0, got -1"),
        (Guide(texts=["a"]), {"options": {"noise_level": 3}}, "no option noise_level; it has none"),
        (Guide(texts=["a"]), {"steps": 0}, "0 steps are not possible"),
    ],
)
def test_what_cannot_be_done_is_refused(guide: Guide, sampling: dict[str, Any], message: str, decoders: Any) -> None:
    with pytest.raises(UserError, match=message):
        decoders["1.5"].generate(guide, generators(1), sampling=Sampling(**sampling))


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("1.5", lambda f: shutil.rmtree(f / "vae"), "has no vae: Stable Diffusion needs unet, vae"),
        ("xl", lambda f: shutil.rmtree(f / "tokenizer_2"), "has no tokenizer_2: Stable Diffusion XL needs"),
        ("1.5", lambda f: set_json(f / "text_encoder/config.json", num_hidden_layers=1), "do not fit CLIPTextModel"),
        ("xl", lambda f: set_json(f / "text_encoder_2/config.json", projection_dim=8), "do not fit CLIPTextModelWith"),
        ("1.5", lambda f: set_json(f / "unet/config.json", time_cond_proj_dim=8), "do not fit UNet2D"),
        ("1.5", lambda f: set_json(f / "vae/config.json", latents_mean=[0.0]), "shifted latents are other kinds"),
        ("1.5", lambda f: set_json(f / "scheduler/scheduler_config.json", _class_name="LCM"), "is for 'LCM'"),
        ("xl", lambda f: shutil.rmtree(f / "text_encoder_2"), "has no text_encoder_2: Stable Diffusion XL needs"),
        (
            "1.5",
            lambda f: (f / "unet/diffusion_pytorch_model.safetensors").rename(f / "unet/diffusion_pytorch_model.bin"),
            "only as pickle",
        ),
    ],
)
def test_a_broken_folder_is_told(
    kind: str, change: Callable[[Path], None], message: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(folders[kind], tmp_path / "broken"))
    change(folder)
    with pytest.raises(UserError, match=message):
        load(folder)


def test_a_unet_that_does_not_say_for_which_size_it_was_made(folders: dict[str, Path], tmp_path: Path) -> None:
    """As in some converted repositories: 512 pixels at eight a position (here two), of XL 1024."""
    for kind, sample, size in (("1.5", None, (128, 128)), ("xl", None, (256, 256)), ("1.5", [3, 5], (6, 10))):
        folder = Path(shutil.copytree(folders[kind], tmp_path / "changed"))
        set_json(folder / "unet/config.json", sample_size=sample)
        decoder = load(folder)
        assert decoder.defaults.size == size
        sampling = Sampling(steps=2, size=(8, 8))
        assert decoder.generate(Guide(texts=["a"]), generators(1), sampling=sampling).shape == (1, 3, 8, 8)
        shutil.rmtree(folder)


def test_tokens_that_a_text_encoder_does_not_know(folders: dict[str, Path], tmp_path: Path) -> None:
    """As a tokenizer has them after textual inversion, whose embeddings were not saved."""
    from transformers import CLIPTokenizer

    folder = Path(shutil.copytree(folders["1.5"], tmp_path / "changed"))
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    tokenizer.add_tokens(["cat-toy"])
    tokenizer.save_pretrained(folder / "tokenizer")
    with pytest.raises(
        UserError, match=r"changed: the model has no embedding for 1 of its tokenizer's tokens \('cat-toy'\)"
    ):
        load(folder)
