"""`KarloPipeline`: the call of diffusers' `UnCLIPPipeline`, its images, and those of `TextToImage`."""

import inspect
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.pipelines.deprecated.unclip.pipeline_unclip import UnCLIPPipeline
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from PIL import Image
from torch import Tensor, nn
from transformers import CLIPTextModelWithProjection, CLIPTokenizer

import syzygy
from syzygy.core.errors import NonFiniteError, UserError
from syzygy.generation.karlo_pipeline import MODEL, PRIOR, KarloPipeline
from syzygy.generation.text_to_image import TextToImage
from syzygy.prior.diffusion_prior import DiffusionPrior
from syzygy.prior.eclipse import EclipsePrior
from tests.closeness import LEVEL
from tests.hub_cache import COMMIT, add_snapshot
from tests.tiny_karlo import LARGE, SMALL, karlo_models, karlo_schedulers, tiny_karlo
from tests.tiny_unclip import WIDTH, Tiny

DOCS = Path(__file__).parents[2] / "docs" / "how-to" / "published-decoders.md"
PROMPTS = ["a red circle", "two blue stars above a ring!"]
SAME, OTHER = 0.004, 0.02
"""Mean differences of images from the same inputs and from others. Not the largest: random weights make rounding large in single pixels."""
FEW: dict[str, Any] = {"decoder_num_inference_steps": 3, "super_res_num_inference_steps": 2}


@pytest.fixture(scope="module")
def karlo(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return tiny_karlo(tmp_path_factory.mktemp("karlo"))


@pytest.fixture
def pipeline(karlo: Tiny) -> KarloPipeline:
    return loaded(karlo)


def loaded(karlo: Tiny, **more: Any) -> Any:
    made = KarloPipeline.from_pretrained(karlo.decoder, **{"prior": karlo.prior} | more)
    made.set_progress_bar_config(disable=True)
    return made


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def images(pipeline: Any, prompt: Any = PROMPTS[0], **more: Any) -> Tensor:
    return pipeline(prompt, **{"generator": generators(3), "output_type": "pt"} | FEW | more).images


def difference(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().mean())


def test_its_call_and_components_are_those_of_diffusers(pipeline: KarloPipeline) -> None:
    assert syzygy.KarloPipeline is KarloPipeline
    assert isinstance(pipeline, DiffusionPipeline)
    ours, theirs = (inspect.signature(kind.__call__).parameters for kind in (KarloPipeline, UnCLIPPipeline))
    assert list(ours) == list(theirs)
    for name in set(ours) - {"self", "prior_num_inference_steps", "prior_guidance_scale"}:
        assert ours[name].default == theirs[name].default, name
    assert set(pipeline.components) == set(inspect.signature(UnCLIPPipeline.__init__).parameters) - {"self"}


def test_pictures_are_those_of_diffusers(karlo: Tiny, pipeline: KarloPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the same embeddings and the same noise: of the generators, or of both stages' latents."""
    made = torch.randn(2, WIDTH, generator=generators(0)[0])
    models = karlo_models()
    drawn = generators(3, 4)

    def post_process(latents: Tensor) -> Tensor:
        for one, seed in zip(drawn, (3, 4), strict=True):
            one.manual_seed(seed)
        return made

    monkeypatch.setattr(models.prior, "post_process_latents", post_process)
    tokenizer = CLIPTokenizer.from_pretrained(karlo.decoder / "tokenizer", local_files_only=True)
    text = CLIPTextModelWithProjection.from_pretrained(karlo.decoder / "text_encoder", local_files_only=True)
    theirs = UnCLIPPipeline(**models._asdict(), **karlo_schedulers(), text_encoder=text, tokenizer=tokenizer)
    theirs.set_progress_bar_config(disable=True)
    noise = torch.zeros(2, WIDTH)
    monkeypatch.setattr(EclipsePrior, "predict", lambda self, features, noise: made)
    latents = {
        "decoder_latents": torch.randn(2, 3, SMALL, SMALL, generator=generators(1)[0]),
        "super_res_latents": torch.randn(2, 3, LARGE, LARGE, generator=generators(2)[0]),
    }
    for more in ({}, {"decoder_guidance_scale": 2.5}, latents):
        expected = theirs(PROMPTS, generator=drawn, prior_num_inference_steps=2, output_type="np", **FEW, **more).images
        found = images(pipeline, PROMPTS, generator=generators(3, 4), prior_latents=noise, **more)
        assert difference(found.permute(0, 2, 3, 1), torch.from_numpy(expected)) < SAME
    assert difference(images(pipeline, PROMPTS, generator=generators(3, 4), prior_latents=noise), found) > OTHER


@pytest.mark.parametrize("stock", [False, True])
def test_images_are_those_of_text_to_image(stock: bool, karlo: Tiny) -> None:
    prior = karlo.decoder if stock else karlo.prior
    model = TextToImage.from_pretrained(karlo.decoder, clip=karlo.clip, prior=prior)
    expected = model(PROMPTS, generator=generators(1, 2), num_inference_steps=3, super_res_steps=2).images
    pipeline = loaded(karlo, prior=prior)
    assert isinstance(pipeline.prior, DiffusionPrior if stock else EclipsePrior)
    found = pipeline(PROMPTS, generator=generators(1, 2), **FEW).images
    assert all(isinstance(one, Image.Image) for one in found)
    for one, other in zip(found, expected, strict=True):
        assert np.abs(np.asarray(one, dtype=int) - np.asarray(other, dtype=int)).mean() < 255 * SAME


def test_outputs(pipeline: KarloPipeline) -> None:
    two = images(pipeline, num_images_per_prompt=2, generator=generators(3, 4))
    assert two.shape == (2, 3, LARGE, LARGE)
    alone = images(pipeline)
    assert difference(two[:1], alone) < SAME
    (arrays,) = pipeline(PROMPTS[0], generator=generators(3), output_type="np", return_dict=False, **FEW)
    assert isinstance(arrays, np.ndarray)
    assert np.abs(arrays[0] - alone[0].permute(1, 2, 0).numpy()).max() < LEVEL
    # One generator draws a generator for each image.
    one = images(pipeline, PROMPTS, generator=generators(5)[0])
    assert torch.equal(one, images(pipeline, PROMPTS, generator=generators(5)[0]))
    assert not torch.equal(one[0], one[1])


def test_text_features_instead_of_prompts(pipeline: KarloPipeline) -> None:
    expected = images(pipeline, PROMPTS, generator=generators(3, 4))
    tokens = pipeline.tokenizer(PROMPTS, padding="max_length", max_length=77, return_tensors="pt")
    with torch.no_grad():
        output = pipeline.text_encoder(tokens.input_ids)
    more = {"text_model_output": output, "text_attention_mask": tokens.attention_mask}
    assert difference(images(pipeline, None, generator=generators(3, 4), **more), expected) < SAME
    assert difference(images(pipeline, PROMPTS[::-1], generator=generators(3, 4)), expected) > OTHER
    with pytest.raises(UserError, match="prompt and text_model_output are both given"):
        images(pipeline, **more)
    with pytest.raises(UserError, match="give a prompt, or text_model_output together with its text_attention_mask"):
        images(pipeline, None, text_model_output=output)


def test_what_is_saved_loads_again(karlo: Tiny, pipeline: KarloPipeline, tmp_path: Path) -> None:
    expected = images(pipeline)
    pipeline.save_pretrained(tmp_path)
    again: Any = KarloPipeline.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    assert difference(images(again), expected) < SAME
    assert torch.equal(images(KarloPipeline(**again.components)), images(again))
    model = TextToImage.from_pretrained(tmp_path, clip=karlo.clip, prior=tmp_path / "prior")
    found = model(PROMPTS[0], generator=generators(3), num_inference_steps=3, super_res_steps=2).images[0]
    assert np.abs(np.asarray(found) / 255 - expected[0].permute(1, 2, 0).numpy()).max() < LEVEL
    with pytest.warns(UserWarning, match="no effect in save_pretrained of a KarloPipeline: safe_serialization"):
        pipeline.save_pretrained(tmp_path, safe_serialization=False)
    stock = loaded(karlo, prior=karlo.decoder)
    stock.save_pretrained(tmp_path / "stock")
    again = KarloPipeline.from_pretrained(tmp_path / "stock")
    assert difference(images(again), images(stock)) < SAME
    assert difference(images(stock), expected) > OTHER


@pytest.mark.parametrize("kind", ["enable_model_cpu_offload", "enable_sequential_cpu_offload"])
def test_offloading(kind: str, pipeline: KarloPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    accelerate = pytest.importorskip("accelerate")
    real = accelerate.cpu_offload  # diffusers asks for "cpu:0", which accelerate cannot move parameters to
    monkeypatch.setattr(
        accelerate, "cpu_offload", lambda model, device, **more: real(model, torch.device("cpu"), **more)
    )
    expected = images(pipeline)
    for _ in range(2):
        getattr(pipeline, kind)(device="cpu")
        assert difference(images(pipeline), expected) < SAME
    networks = [pipeline.text_encoder, pipeline.decoder, pipeline.super_res_first, pipeline.super_res_last]
    assert all(hasattr(one, "_hf_hook") for one in networks)


def test_dtype(karlo: Tiny) -> None:
    half = loaded(karlo, dtype=torch.bfloat16, device_map="cpu")
    found = {name: one.dtype for name, one in half.components.items() if isinstance(one, nn.Module)}
    assert found.pop("prior") == torch.float32
    assert set(found.values()) == {torch.bfloat16}
    assert images(half).isfinite().all()
    half.to(torch.float32)
    assert images(half).isfinite().all()


def test_settings_of_the_prior(karlo: Tiny, pipeline: KarloPipeline) -> None:
    expected = images(pipeline)
    assert torch.equal(images(pipeline, prior_num_inference_steps=25, prior_guidance_scale=4.0), expected)
    with pytest.warns(UserWarning, match="prior_guidance_scale: no effect on this prior"):
        assert torch.equal(images(pipeline, prior_guidance_scale=7.0), expected)
    stock = loaded(karlo, prior=karlo.decoder)
    assert not torch.equal(images(stock, prior_num_inference_steps=2), images(stock, prior_num_inference_steps=9))
    assert not torch.equal(images(stock, prior_guidance_scale=1.0), images(stock, prior_guidance_scale=9.0))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"output_type": "latent"}, "output_type 'latent' is unknown. Known: pil, np, pt"),
        ({"num_images_per_prompt": 0}, "num_images_per_prompt must be a whole number of at least 1"),
        ({"decoder_num_inference_steps": 0}, "decoder_num_inference_steps must be a whole number from 1 to 1000"),
        ({"generator": generators(1, 2)}, "2 generators for 1 images"),
        (
            {"decoder_latents": torch.zeros(1, 3, 4, 4)},
            rf"latents have shape \(1, 3, 4, 4\); \(1, 3, {SMALL}, {SMALL}\)",
        ),
    ],
)
def test_what_cannot_be_is_said(call: dict[str, Any], message: str, pipeline: KarloPipeline) -> None:
    with pytest.raises(UserError, match=message):
        images(pipeline, **call)


def test_other_components_are_refused(karlo: Tiny, pipeline: KarloPipeline, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the prior is a PriorTransformer; an EclipsePrior"):
        KarloPipeline(**pipeline.components | {"prior": karlo_models().prior})
    stock = loaded(karlo, prior=karlo.decoder)
    with pytest.raises(UserError, match="give the prior_scheduler"):
        KarloPipeline(**stock.components | {"prior_scheduler": None})
    with pytest.raises(UserError, match="is a folder and has no revision"):
        loaded(karlo, revision="v1")
    with torch.no_grad():
        pipeline.prior.proj_to_clip_embeddings.bias[0] = float("inf")
    with pytest.raises(NonFiniteError, match="image embeddings hold"):
        images(pipeline)


def test_the_script_in_the_documentation_runs(
    karlo: Tiny, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Word for word, but for device, precision and steps; the hub's cache holds tiny models under the published names."""
    block = next(b for b in re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.S) if "KarloPipeline" in b)
    assert MODEL in block
    add_snapshot(cache, karlo.decoder, MODEL, COMMIT, "main")
    add_snapshot(cache, karlo.prior, PRIOR, COMMIT, "main")
    for was, now in (
        ("dtype=torch.float16", "local_files_only=True"),
        ('"cuda"', '"cpu"'),
        ("decoder_num_inference_steps=25", "decoder_num_inference_steps=2, super_res_num_inference_steps=2"),
    ):
        assert was in block
        block = block.replace(was, now)
    monkeypatch.chdir(tmp_path)
    exec(block, {})
    with Image.open(tmp_path / "cat.png") as image:
        assert image.size == (LARGE, LARGE)
