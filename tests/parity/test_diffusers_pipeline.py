"""`PriorPipeline` as a pipeline of diffusers: what diffusers tests of its own prior pipelines, where it applies to a prior without steps.

(After tests/pipelines/testing_utils and tests/pipelines/kandinsky2_2/test_kandinsky_prior.py of diffusers.)
"""

import inspect
import json
import logging
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.pipelines.kandinsky2_2.pipeline_kandinsky2_2 import KandinskyV22Pipeline
from diffusers.pipelines.kandinsky2_2.pipeline_kandinsky2_2_img2img import KandinskyV22Img2ImgPipeline
from diffusers.pipelines.kandinsky2_2.pipeline_kandinsky2_2_inpainting import KandinskyV22InpaintPipeline
from diffusers.pipelines.kandinsky2_2.pipeline_kandinsky2_2_prior import KandinskyV22PriorPipeline
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from syzygy.clip.clip_model import Clip
from syzygy.core.errors import UserError
from syzygy.generation.prior_pipeline import CLIPS, PriorPipeline
from syzygy.prior.diffusion_prior import DiffusionPrior
from syzygy.prior.eclipse import EclipsePrior
from tests.closeness import NETWORK, assert_close
from tests.hub_cache import COMMIT, add_snapshot
from tests.tiny_unclip import SIZE, WIDTH, Tiny, tiny_kandinsky

DOCS = Path(__file__).parents[2] / "docs" / "how-to" / "published-decoders.md"
PROMPTS = ["a red circle", "two blue stars above a ring!"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return tiny_kandinsky(tmp_path_factory.mktemp("kandinsky"))


@pytest.fixture
def components(tiny: Tiny) -> dict[str, Any]:
    """Of an ECLIPSE prior, the image encoder included."""
    image = Clip.from_pretrained(tiny.clip, text_first=True).model.load_image()
    return PriorPipeline.from_pretrained(tiny.prior, clip=tiny.clip, image_encoder=image).components


@pytest.fixture
def pipeline(components: dict[str, Any]) -> PriorPipeline:
    made = PriorPipeline(**components)
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture
def stepped(tiny: Tiny) -> PriorPipeline:
    """With the stock prior, which takes steps."""
    made = PriorPipeline.from_pretrained(tiny.clip)
    made.set_progress_bar_config(disable=True)
    return made


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def both(pipeline: Any, prompt: Any = PROMPTS[0], **more: Any) -> tuple[Tensor, Tensor]:
    return pipeline(prompt, **{"generator": seeded(), "return_dict": False} | more)


def assert_same(found: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor]) -> None:
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_the_call_has_the_arguments_of_the_stock_pipeline(pipeline: PriorPipeline) -> None:
    assert isinstance(pipeline, DiffusionPipeline)
    ours = inspect.signature(PriorPipeline.__call__).parameters
    theirs = inspect.signature(KandinskyV22PriorPipeline.__call__).parameters
    assert list(ours) == list(theirs)
    empty = inspect.Parameter.empty
    assert [one.default is empty for one in ours.values()] == [one.default is empty for one in theirs.values()]


def test_components(pipeline: PriorPipeline, components: dict[str, Any]) -> None:
    stock = inspect.signature(KandinskyV22PriorPipeline.__init__).parameters
    assert set(pipeline.components) == set(components) == set(stock) - {"self"}
    assert all(pipeline.components[name] is component for name, component in components.items())
    assert_same(both(PriorPipeline(**pipeline.components)), both(pipeline))


def test_the_image_encoder_may_be_missing_where_it_is_not_needed(components: dict[str, Any]) -> None:
    bare = PriorPipeline(**components | {"image_encoder": None})
    assert both(bare, negative_prompt="a moon")[1].shape == (1, WIDTH)
    with pytest.raises(UserError, match="image encoder is needed, and this pipeline has none: give a negative_prompt"):
        bare(PROMPTS[0])
    with pytest.raises(UserError, match="saved with its image_processor, and this pipeline has none"):
        PriorPipeline(**components | {"image_processor": None}).save_pretrained("x")


def test_what_is_saved_loads_again(
    pipeline: PriorPipeline, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    logger = logging.getLogger("diffusers.pipelines.pipeline_utils")
    monkeypatch.setattr(logging.getLogger("diffusers"), "propagate", True)
    with pytest.warns(UserWarning, match="no effect in save_pretrained .*safe_serialization=False"):
        pipeline.save_pretrained(tmp_path, safe_serialization=False)
    assert not [*tmp_path.rglob("*.bin")]
    assert not (tmp_path / "zero_image.safetensors").exists()
    with caplog.at_level(logging.INFO, logger.name):
        again = PriorPipeline.from_pretrained(tmp_path)
    assert all(name in caplog.text for name, component in again.components.items() if component is not None)
    kinds = {name: type(component) for name, component in again.components.items()}
    assert kinds == {name: type(component) for name, component in pipeline.components.items()}
    assert_same(both(again), both(pipeline))
    assert Clip.from_pretrained(tmp_path).width == WIDTH  # it is a whole CLIP too
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert (index["_class_name"], index["prior"]) == ("PriorPipeline", ["syzygy.prior.eclipse", "EclipsePrior"])


def test_without_the_image_encoder_its_embedding_of_zeros_is_saved(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "saved"
    prior = EclipsePrior.from_pretrained(tiny.prior)
    record = {"clip": Clip.from_pretrained(tiny.clip).fingerprint(), "recipe": {"task": {}}}
    prior.save_pretrained(tmp_path / "run/prior", record)
    loaded = PriorPipeline.from_pretrained(tmp_path / "run", clip=tiny.clip, dtype=torch.bfloat16)
    expected = both(loaded)
    loaded.save_pretrained(folder)
    assert not (folder / "image_encoder").exists()
    assert json.loads((folder / "prior/provenance.json").read_text()) == record
    monkeypatch.setenv("SYZYGY_CACHE", str(tmp_path / "empty"))
    dtypes = {"prior": torch.float32, "default": torch.bfloat16}
    again = PriorPipeline.from_pretrained(folder, dtype=dtypes)  # though the record is of the CLIP in fp32
    assert again.image_encoder is None
    assert_same(both(again), expected)
    again.save_pretrained(tmp_path / "twice")
    assert_same(both(PriorPipeline.from_pretrained(tmp_path / "twice", dtype=dtypes)), expected)
    half = PriorPipeline.from_pretrained(folder, dtype=torch.bfloat16)
    assert half.prior.dtype == half.text_encoder.dtype == torch.bfloat16
    save_file({"embedding": torch.zeros(1, 3)}, folder / "zero_image.safetensors")
    with pytest.raises(UserError, match="does not belong to this pipeline"):
        PriorPipeline.from_pretrained(folder)


def test_a_stock_prior_is_saved_with_its_scheduler(stepped: PriorPipeline, tmp_path: Path) -> None:
    stepped.save_pretrained(tmp_path)
    again = PriorPipeline.from_pretrained(tmp_path)
    assert isinstance(again.prior, DiffusionPrior)
    settings: dict[str, Any] = {"num_inference_steps": 3, "guidance_scale": 2.0}
    for one, other in zip(both(again, **settings), both(stepped, **settings), strict=True):
        assert_close(one, other, depth=NETWORK)
    assert_same(
        both(PriorPipeline(**again.components), "a", negative_prompt="b"), both(again, "a", negative_prompt="b")
    )


def test_published_priors_without_statistics_are_saved_as_they_are(tiny: Tiny, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny.prior, tmp_path / "published")
    path = folder / "diffusion_pytorch_model.safetensors"
    zeros = {"clip_mean": torch.zeros(1, WIDTH), "clip_std": torch.zeros(1, WIDTH)}
    save_file(load_file(path) | zeros, path)
    loaded = PriorPipeline.from_pretrained(folder, clip=tiny.clip)
    loaded.save_pretrained(tmp_path / "saved")
    assert_same(both(PriorPipeline.from_pretrained(tmp_path / "saved")), both(loaded))


def test_hub_id_with_revision(tiny: Tiny, cache: Path, tmp_path: Path) -> None:
    PriorPipeline.from_pretrained(tiny.prior, clip=tiny.clip).save_pretrained(tmp_path / "saved")
    add_snapshot(cache, tmp_path / "saved", "somebody/pipeline", COMMIT, "v2")
    expected = both(PriorPipeline.from_pretrained(tmp_path / "saved"))
    for source, more in (("somebody/pipeline", {"revision": "v2"}), ("somebody/pipeline@v2", {})):
        assert_same(both(PriorPipeline.from_pretrained(source, local_files_only=True, **more)), expected)
    with pytest.raises(UserError, match="no somebody/pipeline at revision main"):
        PriorPipeline.from_pretrained("somebody/pipeline", local_files_only=True)
    with pytest.raises(UserError, match="names a revision already"):
        PriorPipeline.from_pretrained("somebody/pipeline@v2", revision="v1")
    with pytest.raises(UserError, match="is a folder and has no revision 'v1'"):
        PriorPipeline.from_pretrained(tiny.prior, clip=tiny.clip, revision="v1")


def test_variants(pipeline: PriorPipeline, tmp_path: Path) -> None:
    pipeline.save_pretrained(tmp_path, variant="fp16")
    for name, component in pipeline.components.items():
        if isinstance(component, nn.Module):
            files = [path.name for path in (tmp_path / name).glob("*.safetensors")]
            assert files
            assert all(name.split(".")[1].startswith("fp16") for name in files), files
    again = PriorPipeline.from_pretrained(tmp_path, variant="fp16")
    for name, component in pipeline.components.items():
        if isinstance(component, nn.Module):
            found = again.components[name].state_dict()
            assert all(torch.equal(found[key], value) for key, value in component.state_dict().items())
    # Where both are there, the one that is asked for is read, in each component.
    expected = both(again)
    for part in ("prior", "text_encoder", "image_encoder"):
        (path,) = (tmp_path / part).glob("*.safetensors")
        full = {name: value * 1.5 for name, value in load_file(path).items()}
        save_file(full, path.with_name(path.name.replace(".fp16", "")), metadata={"format": "pt"})
    assert_same(both(PriorPipeline.from_pretrained(tmp_path, variant="fp16")), expected)
    other = both(PriorPipeline.from_pretrained(tmp_path))
    assert not any(torch.allclose(one, two) for one, two in zip(other, expected, strict=True))
    with pytest.raises(UserError, match="You are trying to load the model files of the `variant=bf16`, but neither"):
        PriorPipeline.from_pretrained(tmp_path, variant="bf16")


def test_a_batch_gives_what_single_calls_give(pipeline: PriorPipeline) -> None:
    prompts = [PROMPTS[0], PROMPTS[0][:6], 100 * "very long"]
    with pytest.warns(UserWarning, match="this encoder reads"):
        batch = both(pipeline, prompts, negative_prompt=[""] * 3, generator=[seeded(i) for i in range(3)])
    assert all(one.shape == (3, WIDTH) for one in batch)
    alone = both(pipeline, prompts[0], negative_prompt="", generator=[seeded(0)])
    for one, other in zip(batch, alone, strict=True):
        assert_close(one[:1], other, depth=NETWORK)


@pytest.mark.parametrize("prompts", [1, 2])
@pytest.mark.parametrize("pictures", [1, 2])
def test_number_of_pictures(prompts: int, pictures: int, pipeline: PriorPipeline) -> None:
    found = both(pipeline, PROMPTS[:prompts], num_images_per_prompt=pictures)
    assert [len(one) for one in found] == [prompts * pictures] * 2
    assert len(both(pipeline, PROMPTS[:prompts], num_images_per_prompt=pictures, negative_prompt="a")[1]) == len(
        found[0]
    )


def test_settings_without_effect_are_accepted_with_a_warning(pipeline: PriorPipeline) -> None:
    expected = both(pipeline)
    # As diffusers' combined pipelines pass them where their user says nothing.
    assert_same(both(pipeline, num_inference_steps=25, guidance_scale=4.0), expected)
    with pytest.warns(
        UserWarning, match="num_inference_steps and guidance_scale: no effect on this prior, which predicts"
    ):
        assert_same(both(pipeline, num_inference_steps=2, guidance_scale=7.5), expected)
    with pytest.warns(UserWarning, match=r"^guidance_scale: no effect"):
        both(pipeline, guidance_scale=1.0)


def test_arguments_of_from_pretrained_without_effect(tiny: Tiny) -> None:
    where: dict[str, Any] = {"clip": tiny.clip, "use_safetensors": True, "cache_dir": None, "device_map": "cpu"}
    PriorPipeline.from_pretrained(tiny.prior, **where)
    with pytest.warns(
        UserWarning, match="no effect in from_pretrained of a PriorPipeline: low_cpu_mem_usage, use_safe"
    ):
        PriorPipeline.from_pretrained(tiny.prior, **where | {"low_cpu_mem_usage": False, "use_safetensors": False})
    with pytest.raises(UserError, match=r"unknown argument 'use_safetensor'\. Did you mean 'use_safetensors'"):
        PriorPipeline.from_pretrained(tiny.prior, clip=tiny.clip, use_safetensor=True)
    with pytest.raises(UserError, match="device_map 'balanced' is no device"):
        PriorPipeline.from_pretrained(tiny.prior, clip=tiny.clip, device_map="balanced")
    with pytest.raises(UserError, match="does not upload"):
        PriorPipeline.from_pretrained(tiny.prior, clip=tiny.clip).save_pretrained("x", push_to_hub=True)


def test_device_and_dtype(pipeline: PriorPipeline, tiny: Tiny) -> None:
    expected = both(pipeline)
    assert pipeline.to("cpu") is pipeline
    modules = [one for one in pipeline.components.values() if isinstance(one, nn.Module)]
    assert {one.device.type for one in modules} == {"cpu"}
    pipeline.to(dtype=torch.bfloat16)
    assert {one.dtype for one in modules} == {pipeline.dtype} == {torch.bfloat16}
    for one, other in zip(both(pipeline), expected, strict=True):
        assert one.dtype == torch.bfloat16
        assert torch.cosine_similarity(one.float(), other).item() > 0.99
    pipeline.to("cpu", torch.float32)
    assert both(pipeline)[0].dtype == torch.float32
    # A pipeline whose image encoder is loaded on demand.
    lazy = PriorPipeline.from_pretrained(tiny.prior, clip=tiny.clip).to(torch.bfloat16)
    assert [one.dtype for one in both(lazy)] == [torch.bfloat16] * 2


def test_a_dtype_for_each_component(tiny: Tiny) -> None:
    dtypes = {"prior": torch.bfloat16, "default": torch.float16}
    loaded = PriorPipeline.from_pretrained(tiny.prior, clip=tiny.clip, torch_dtype=dtypes)
    assert (loaded.prior.dtype, loaded.text_encoder.dtype) == (torch.bfloat16, torch.float16)
    plain = PriorPipeline.from_pretrained(tiny.prior, clip=tiny.clip, dtype=torch.float16)
    assert (plain.prior.dtype, plain.text_encoder.dtype) == (torch.float32, torch.float16)


def test_callbacks(pipeline: PriorPipeline) -> None:
    expected, seen = both(pipeline), []

    def keep(own: Any, step: int, timestep: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        assert own is pipeline
        assert set(tensors) <= set(own._callback_tensor_inputs)
        seen.append((step, int(timestep), sorted(tensors)))
        return tensors

    def zero(own: Any, step: int, timestep: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        assert step == own.num_timesteps - 1 == 0
        return {"latents": torch.zeros_like(tensors["latents"])}

    assert_same(both(pipeline, callback_on_step_end=keep), expected)
    assert_same(both(pipeline, callback_on_step_end=keep, callback_on_step_end_tensor_inputs=[]), expected)
    assert seen == [(0, 0, ["latents"]), (0, 0, [])]
    every = pipeline._callback_tensor_inputs
    found = both(pipeline, callback_on_step_end=zero, callback_on_step_end_tensor_inputs=every)
    assert found[0].abs().sum() == 0
    assert torch.equal(found[1], expected[1])
    with pytest.raises(UserError, match=r"\['prompt_embeds'\]: not all of them are known. Known: latents"):
        pipeline("a", callback_on_step_end=keep, callback_on_step_end_tensor_inputs=["prompt_embeds"])


@pytest.mark.filterwarnings("ignore:guidance_scale. no effect")
@pytest.mark.parametrize(("kind", "steps"), [("pipeline", 1), ("stepped", 3)])
def test_callbacks_may_change_the_guidance(kind: str, steps: int, request: pytest.FixtureRequest) -> None:
    pipeline: Any = request.getfixturevalue(kind)

    def increase(own: Any, step: int, timestep: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        own._guidance_scale += 1.0
        return tensors

    asked: dict[str, Any] = {"guidance_scale": 2.0} | ({} if steps == 1 else {"num_inference_steps": steps})
    expected = both(pipeline, **asked)
    assert (pipeline.guidance_scale, pipeline.num_timesteps) == (2.0, steps)
    changed = both(pipeline, callback_on_step_end=increase, **asked)
    assert pipeline.guidance_scale == 2.0 + pipeline.num_timesteps == 2.0 + steps
    assert torch.equal(changed[0], expected[0]) == (steps == 1)


def test_callbacks_of_a_stock_prior(stepped: PriorPipeline) -> None:
    seen: list[tuple[int, int]] = []

    def last(own: Any, step: int, timestep: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        seen.append((step, int(timestep)))
        latents = tensors["latents"]
        return {"latents": torch.zeros_like(latents) if step == own.num_timesteps - 1 else latents}

    found = both(stepped, negative_prompt="a", num_inference_steps=3, callback_on_step_end=last)
    assert seen == [(0, 999), (1, 500), (2, 0)]
    assert_close(torch.cat(found), stepped.prior.clip_mean.expand(2, -1))


def test_progress_bar(pipeline: PriorPipeline, capsys: pytest.CaptureFixture[str]) -> None:
    pipeline(PROMPTS[0])
    assert capsys.readouterr().err == ""
    pipeline.set_progress_bar_config(disable=False, desc="prior")
    pipeline(PROMPTS[0])
    assert "prior: 100%" in capsys.readouterr().err


def on_cpu(offload: Callable[..., Any]) -> Callable[..., Any]:
    """Diffusers asks for "cpu:0", which is another device than "cpu", so that moving a parameter there would make it a plain tensor."""
    return lambda model, device, offload_buffers: offload(model, torch.device("cpu"), offload_buffers=offload_buffers)


OFFLOADS: dict[str, Callable[[Any], None]] = {
    "model": lambda pipeline: pipeline.enable_model_cpu_offload(device="cpu"),
    "sequential": lambda pipeline: pipeline.enable_sequential_cpu_offload(device="cpu"),
}


@pytest.mark.parametrize("image_encoder", [True, False])
@pytest.mark.parametrize("kind", OFFLOADS)
def test_offloading(
    kind: str, image_encoder: bool, pipeline: PriorPipeline, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a CPU as the accelerator: hooks run, and move what they find there. Sequentially, weights are on no device in between."""
    accelerate = pytest.importorskip("accelerate")
    monkeypatch.setattr(accelerate, "cpu_offload", on_cpu(accelerate.cpu_offload))
    if not image_encoder:
        pipeline = PriorPipeline.from_pretrained(tiny.prior, clip=tiny.clip)
        pipeline.set_progress_bar_config(disable=True)
    expected = both(pipeline), both(pipeline, negative_prompt="a moon")
    for _ in range(2):
        OFFLOADS[kind](pipeline)
        for one, other in zip((both(pipeline), both(pipeline, negative_prompt="a moon")), expected, strict=True):
            assert_same(one, other)
    offloaded = {
        name: one
        for name, one in pipeline.components.items()
        if isinstance(one, nn.Module) and name not in pipeline._exclude_from_cpu_offload
    }
    assert set(offloaded) == {"text_encoder", *(["image_encoder"] if image_encoder else [])}
    hook = {"model": accelerate.hooks.CpuOffload, "sequential": accelerate.hooks.AlignDevicesHook}[kind]
    for one in offloaded.values():
        assert isinstance(one._hf_hook, hook)
        assert one.device.type == {"model": "cpu", "sequential": "meta"}[kind]
    pipeline.remove_all_hooks()
    assert_same(both(pipeline), expected[0])


KINDS: dict[str, tuple[Any, dict[str, Any]]] = {
    "text": (KandinskyV22Pipeline, {}),
    "image": (KandinskyV22Img2ImgPipeline, {"strength": 0.9}),
    "inpaint": (KandinskyV22InpaintPipeline, {}),
}


def decoder_of(kind: str, tiny: Tiny) -> tuple[Any, dict[str, Any]]:
    """A decoder's pipeline, and what its call needs besides the embeddings."""
    cls, more = KINDS[kind]
    parts = KandinskyV22Pipeline.from_pretrained(tiny.decoder, local_files_only=True).components
    if kind != "text":
        more = more | {"image": Image.new("RGB", (64, 64), "red")}
    if kind == "inpaint":
        unet = parts["unet"]
        wide = nn.Conv2d(9, unet.conv_in.out_channels, 3, padding=1)
        with torch.no_grad():
            torch.nn.init.zeros_(wide.weight)
            wide.weight[:, :4] = unet.conv_in.weight
        unet.conv_in = wide
        unet.register_to_config(in_channels=9)
        mask = Image.new("L", (64, 64))
        mask.paste(255, (32, 0, 64, 64))
        more = more | {"mask_image": mask}
    made = cls(**parts)
    made.set_progress_bar_config(disable=True)
    return made, {"height": SIZE, "width": SIZE, "num_inference_steps": 2, "output_type": "np"} | more


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_it_is_the_prior_of_the_combined_pipelines(kind: str, tiny: Tiny, pipeline: PriorPipeline) -> None:
    decoder, settings = decoder_of(kind, tiny)
    embeds, negative = both(pipeline, negative_prompt="a moon")
    expected = decoder(image_embeds=embeds, negative_image_embeds=negative, generator=seeded(1), **settings).images
    whole: Any = pipeline.combined_with(decoder)
    whole.set_progress_bar_config(disable=True)
    seen: list[int] = []

    def call() -> Any:
        drawn, later = seeded(), seeded(1)

        def restart(own: Any, step: int, timestep: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
            seen.append(step)
            drawn.set_state(later.get_state())  # the combined pipeline has one generator for both
            return tensors

        return whole(
            PROMPTS[0], negative_prompt="a moon", generator=drawn, prior_callback_on_step_end=restart, **settings
        ).images

    assert (call() == expected).all()
    assert seen == [0]  # one step, not the 25 of a stock prior
    assert whole.to("cpu", torch.float32) is whole
    if kind == "text":
        pytest.importorskip("accelerate")
        whole.enable_model_cpu_offload(device="cpu")
        assert (call() == expected).all()


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_the_combined_pipeline_of_the_documentation_runs(
    tiny: Tiny, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Word for word, but for sizes, device and steps; the hub's cache holds tiny models under the published names."""
    pytest.importorskip("accelerate")
    block = next(b for b in re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.S) if "combined_with" in b)
    add_snapshot(cache, tiny.prior, "ECLIPSE-Community/ECLIPSE_KandinskyV22_Prior", COMMIT, "main")
    add_snapshot(cache, tiny.clip, "kandinsky-community/kandinsky-2-2-prior", COMMIT, "main")
    monkeypatch.setitem(CLIPS, WIDTH, "kandinsky-community/kandinsky-2-2-prior")
    for was, now in (
        ('"kandinsky-community/kandinsky-2-2-decoder"', repr(str(tiny.decoder))),
        ("torch.float16", "torch.float32"),
        ("enable_model_cpu_offload()", 'enable_model_cpu_offload(device="cpu")'),
        ("height=768, width=768", f"height={SIZE}, width={SIZE}, num_inference_steps=2"),
    ):
        assert was in block
        block = block.replace(was, now)
    monkeypatch.chdir(tmp_path)
    exec(block, {})
    with Image.open(tmp_path / "cat.png") as image:
        assert image.size == (SIZE, SIZE)


def test_other_pipelines_are_not_combined(pipeline: PriorPipeline) -> None:
    with pytest.raises(
        UserError, match=r"a PriorPipeline cannot be combined with a prior\. Give one of: KandinskyV22P"
    ):
        pipeline.combined_with(pipeline)


def test_a_prior_of_diffusers_is_refused(components: dict[str, Any], tiny: Tiny) -> None:
    theirs = KandinskyV22PriorPipeline.from_pretrained(tiny.clip, local_files_only=True)
    with pytest.raises(UserError, match=r"the prior is a PriorTransformer; an EclipsePrior, .* is needed"):
        PriorPipeline(**components | {"prior": theirs.prior})
