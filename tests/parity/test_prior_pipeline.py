"""The drop-in for diffusers' prior pipeline: its output, its call, and a user's script as the documentation has it."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jaxtyping
import numpy as np
import pytest
import torch
from diffusers.pipelines.kandinsky.pipeline_kandinsky_prior import KandinskyPriorPipelineOutput
from diffusers.pipelines.kandinsky2_2.pipeline_kandinsky2_2 import KandinskyV22Pipeline
from diffusers.pipelines.kandinsky2_2.pipeline_kandinsky2_2_prior import KandinskyV22PriorPipeline
from diffusers.schedulers import scheduling_unclip
from torch import Tensor

import syzygy
from syzygy.clip.clip_model import Clip
from syzygy.core.errors import NonFiniteError, UserError
from syzygy.generation.prior_pipeline import PriorPipeline
from syzygy.prior.diffusion_prior import fresh_noise
from tests.closeness import NETWORK, assert_close
from tests.hub_cache import COMMIT, add_snapshot
from tests.tiny_unclip import SIZE, WIDTH, Tiny, tiny_clip_pipeline, tiny_kandinsky

DOCS = Path(__file__).parents[2] / "docs" / "how-to" / "published-decoders.md"
PROMPTS = ["a red circle", "two blue stars above a ring!"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return tiny_kandinsky(tmp_path_factory.mktemp("kandinsky"))


@pytest.fixture(scope="module")
def stock(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The repository of the prior that is replaced, its random weights made to heed what they read."""
    folder = tmp_path_factory.mktemp("stock")
    shutil.copytree(tiny.clip, folder, dirs_exist_ok=True)
    prior = KandinskyV22PriorPipeline.from_pretrained(folder, local_files_only=True).prior
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        for parameter in prior.parameters():
            parameter.copy_(0.4 * torch.randn(parameter.shape))
        prior.clip_std.abs_().add_(0.1)
    prior.save_pretrained(folder / "prior")
    return folder


@pytest.fixture(scope="module")
def eclipse(tiny: Tiny) -> PriorPipeline:
    return PriorPipeline.from_pretrained(tiny.prior, clip=tiny.clip)


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def test_it_is_public_and_returns_what_diffusers_does(eclipse: PriorPipeline, tiny: Tiny) -> None:
    assert syzygy.PriorPipeline is PriorPipeline
    clip = Clip.from_pretrained(tiny.clip)
    noise = torch.randn(4, WIDTH, generator=torch.Generator().manual_seed(3))
    out = eclipse(PROMPTS, num_images_per_prompt=2, generator=torch.Generator().manual_seed(3))
    assert isinstance(out, KandinskyPriorPipelineOutput)
    embeds, negative = out.to_tuple()
    assert embeds is out.image_embeds
    expected = eclipse.prior.predict(clip.encode_text(PROMPTS)[[0, 0, 1, 1]], noise=noise)
    assert torch.equal(embeds, expected)
    assert torch.equal(embeds, eclipse(PROMPTS, num_images_per_prompt=2, latents=noise).image_embeds)
    side = clip.image_size
    zero = clip.encode_pixels(torch.zeros(1, 3, side, side))
    assert_close(negative, zero.expand(4, -1))
    arrays = eclipse(PROMPTS, latents=noise[:2], output_type="np", return_dict=False)
    assert isinstance(arrays, tuple)
    assert all(isinstance(one, np.ndarray) and one.shape == (2, WIDTH) for one in arrays)


def test_negative_prompts_go_through_the_prior(eclipse: PriorPipeline) -> None:
    noise = torch.randn(4, WIDTH, generator=torch.Generator().manual_seed(0))
    out = eclipse(PROMPTS, negative_prompt="a moon", latents=noise)
    features = eclipse.encode_text(["a moon"])
    assert_close(out.negative_image_embeds, eclipse.prior.predict(features[[0, 0]], noise=noise[2:]), depth=NETWORK)
    assert_close(out.image_embeds, eclipse(PROMPTS, latents=noise[:2]).image_embeds, depth=NETWORK)
    each = eclipse(PROMPTS, negative_prompt=["a moon", "a ring"], latents=noise).negative_image_embeds
    assert_close(each[0], out.negative_image_embeds[0], depth=NETWORK)
    assert not torch.allclose(each[1], out.negative_image_embeds[1])
    # One generator a picture: a picture's embeddings do not depend on the others.
    alone = eclipse(PROMPTS[1], negative_prompt="a moon", generator=generators(6))
    both = eclipse(PROMPTS, negative_prompt="a moon", generator=generators(5, 6))
    assert_close(both.image_embeds[1:], alone.image_embeds, depth=NETWORK)
    assert_close(both.negative_image_embeds[1:], alone.negative_image_embeds, depth=NETWORK)


@torch.no_grad()
@pytest.mark.parametrize("negative", [None, "a moon"])
def test_with_the_stock_prior_it_is_diffusers_pipeline(
    negative: str | None, stock: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = KandinskyV22PriorPipeline.from_pretrained(stock, local_files_only=True, dtype=torch.float32)
    theirs.set_progress_bar_config(disable=True)
    noise = torch.randn(1 if negative is None else 2, WIDTH, generator=torch.Generator().manual_seed(1))
    steps = iter(range(5))
    monkeypatch.setattr(scheduling_unclip, "randn_tensor", lambda *_, **__: fresh_noise(noise, next(steps)))
    asked: dict[str, Any] = {"negative_prompt": negative, "num_inference_steps": 6, "guidance_scale": 3.0}
    expected = theirs(PROMPTS[0], latents=noise, **asked)
    found = PriorPipeline.from_pretrained(stock, clip=stock)(PROMPTS[0], latents=noise, **asked)
    for name in ("image_embeds", "negative_image_embeds"):
        torch.testing.assert_close(found[name], expected[name], atol=2e-3, rtol=2e-3)
    other = PriorPipeline.from_pretrained(stock)(PROMPTS[0], latents=noise, **asked | {"guidance_scale": 1.0})
    assert not torch.allclose(other.image_embeds, found.image_embeds, atol=0.05)


def test_half_precision_and_moving(tiny: Tiny, eclipse: PriorPipeline) -> None:
    half = PriorPipeline.from_pretrained(tiny.prior, clip=tiny.clip, dtype=torch.bfloat16).to("cpu")
    assert isinstance(half, PriorPipeline)
    assert half.device.type == "cpu"
    noise = torch.ones(1, WIDTH)
    embeds, negative = half(PROMPTS[0], latents=noise).to_tuple()
    assert embeds.dtype == negative.dtype == torch.bfloat16
    full = eclipse(PROMPTS[0], latents=noise)
    for one, other in ((embeds, full.image_embeds), (negative, full.negative_image_embeds)):
        assert torch.cosine_similarity(one.float(), other).item() > 0.99


def test_the_script_in_the_documentation_paints(
    tiny: Tiny, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Word for word, but for sizes, device and steps; the hub's cache holds tiny models under the published names."""
    block = next(b for b in re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.S) if "PriorPipeline" in b)
    for hub_id, folder in (
        ("ECLIPSE-Community/ECLIPSE_KandinskyV22_Prior", tiny.prior),
        ("kandinsky-community/kandinsky-2-2-prior", tiny.clip),
    ):
        assert hub_id in block or hub_id == "kandinsky-community/kandinsky-2-2-prior"
        add_snapshot(cache, folder, hub_id, COMMIT, "main")
    # A prior as narrow as this one tells no published CLIP by its width.
    monkeypatch.setitem(syzygy.generation.prior_pipeline.CLIPS, WIDTH, "kandinsky-community/kandinsky-2-2-prior")
    for was, now in (
        ('"kandinsky-community/kandinsky-2-2-decoder"', repr(str(tiny.decoder))),
        ('"cuda"', '"cpu"'),
        ("torch.float16", "torch.float32"),
        ("height=768, width=768", f"height={SIZE}, width={SIZE}, num_inference_steps=3"),
    ):
        assert was in block
        block = block.replace(was, now)
    names: dict[str, Any] = {}
    monkeypatch.chdir(tmp_path)
    exec(block, names)
    assert isinstance(names["decoder"], KandinskyV22Pipeline)
    assert names["image"].size == (SIZE, SIZE)
    assert isinstance(names["prior"], PriorPipeline)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"num_inference_steps": 0}, "num_inference_steps must be a whole number from 1 to 1000"),
        ({"guidance_scale": -1.0}, "guidance_scale must be a finite number of at least 0"),
        ({"prompt": []}, "0 prompts, 1 pictures a prompt"),
        ({"num_images_per_prompt": 0}, "2 prompts, 0 pictures a prompt"),
        ({"negative_prompt": ["a", "b", "c"]}, "3 negative prompts for 2 prompts"),
        ({"generator": generators(1)}, "1 generators for 2 pictures"),
        ({"latents": torch.zeros(1, WIDTH)}, rf"latents have shape \(1, {WIDTH}\); \(2, {WIDTH}\) is needed"),
        ({"output_type": "pil"}, "output_type 'pil' is unknown. Known: pt, np"),
    ],
)
def test_what_cannot_be_is_said(call: dict[str, Any], message: str, eclipse: PriorPipeline) -> None:
    with pytest.raises(UserError, match=message):
        eclipse(**{"prompt": PROMPTS} | call)


def test_parts_that_do_not_fit_are_told(tiny: Tiny, stock: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"embeddings {WIDTH} wide, of no published CLIP .*clip=…"):
        PriorPipeline.from_pretrained(tiny.prior)
    with pytest.raises(
        UserError, match=rf"predicts embeddings {WIDTH} wide, and those of this model's CLIP are 48 wide"
    ):
        PriorPipeline.from_pretrained(tiny.prior, clip=tiny_clip_pipeline(tmp_path / "clip", width=48))
    with pytest.raises(UserError, match="hub cannot be reached"):
        PriorPipeline.from_pretrained("some/prior")
    config = json.loads((stock / "prior/config.json").read_text())
    assert config["embedding_dim"] == WIDTH
    with pytest.raises(UserError, match="one setting: give one"):
        PriorPipeline.from_pretrained(stock, dtype=torch.float16, torch_dtype=torch.float16)
    assert PriorPipeline.from_pretrained(tiny.prior, clip=tiny.clip, torch_dtype=torch.float16).dtype == torch.float16
    with pytest.raises(UserError, match="guidance_scale must be a finite number of at least 0"):
        PriorPipeline.from_pretrained(stock)(PROMPTS[0], guidance_scale=-1.0)


def test_the_zero_image_is_computed_once(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SYZYGY_CACHE", str(tmp_path / "kept"))
    seen: list[Tensor] = []
    for _ in range(2):
        seen.append(PriorPipeline.from_pretrained(tiny.prior, clip=tiny.clip)(PROMPTS[0]).negative_image_embeds)
        monkeypatch.setattr("syzygy.clip.clip_model.Clip.encode_pixels", None)
    assert torch.equal(*seen)


@pytest.fixture
def _unchecked() -> Iterator[None]:
    """Without the checks of types that tests run with, and users do not."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.usefixtures("_unchecked")
def test_arguments_of_other_types_are_refused(eclipse: PriorPipeline, stock: Path) -> None:
    call: Any = eclipse
    for value in (None, b"a", 3, ["a", None], [["a"]]):
        with pytest.raises(UserError, match="prompt must be a text"):
            call(value)
    for value in (None, "2", 2.5, True):
        with pytest.raises(UserError, match="num_images_per_prompt must be a whole number"):
            call("a", num_images_per_prompt=value)
    with pytest.raises(UserError, match="generator must be a"):
        call("a", generator=3)
    with pytest.raises(UserError, match="latents must be a tensor"):
        call("a", latents=[[0.0] * WIDTH])
    assert len(call("a", num_images_per_prompt=np.int64(2)).image_embeds) == 2
    sampled: Any = PriorPipeline.from_pretrained(stock)
    for value in ("2", True, 2.0, 0, 1001):
        with pytest.raises(UserError, match="num_inference_steps must be a whole number from 1 to 1000"):
            sampled("a", num_inference_steps=value)
    assert sampled("a", num_inference_steps=np.int32(2), guidance_scale=np.float32(1)).image_embeds.isfinite().all()


def test_embeddings_that_are_not_finite_are_named(eclipse: PriorPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NonFiniteError, match=r"latents hold .*number 2 of 2"):
        eclipse(PROMPTS, latents=torch.tensor([[0.0] * WIDTH, [float("nan")] * WIDTH]))
    real = type(eclipse.prior).predict

    def overflow(self: Any, features: Any, **more: Any) -> torch.Tensor:
        found = real(self, features, **more)
        found[-1, 0] = float("inf")
        return found

    monkeypatch.setattr(type(eclipse.prior), "predict", overflow)
    with pytest.raises(NonFiniteError, match=r"image embeddings hold .*: 'two blue stars.*--dtype"):
        eclipse(PROMPTS, generator=generators(0, 1))
