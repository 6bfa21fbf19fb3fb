"""Experts in the place of a pipeline's U-Net: diffusers' own pipelines, tiny and random, sampled by diffusers' schedulers."""

import copy
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from syzygy.core import artifacts
from syzygy.core.contracts import Guide, Sampling
from syzygy.core.diffusers_timesteps import noise_of
from syzygy.core.errors import UserError
from syzygy.core.lora import Adapted, Lora
from syzygy.core.offload import SequentialOffload
from syzygy.experts.expert_folders import OffloadPolicy
from syzygy.experts.expert_unets import ExpertUNet, with_experts
from syzygy.experts.routing import Stages
from syzygy.generation.text_to_image import TextToImage
from syzygy.pretrained import kandinsky
from syzygy.pretrained.families import LoadContext
from tests.closeness import NETWORK, assert_close
from tests.tiny_unclip import random_clip

pytestmark = pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")  # diffusers' arithmetic with numpy 2

SD: dict[str, Any] = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1}
CUT = Stages(("low", "middle", "high"), (0.9, 4.0))
SAMPLERS = {
    "ddim": ("DDIMScheduler", {"clip_sample": False}),
    "euler": ("EulerDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
    "dpm++2m karras": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
}


def scheduler(sampler: str) -> Any:
    name, more = SAMPLERS[sampler]
    return getattr(diffusers, name)(**SD, **more)


UNET: dict[str, Any] = {
    "sample_size": 8,
    "block_out_channels": (8, 16),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "layers_per_block": 1,
    "attention_head_dim": 8,
    "norm_num_groups": 8,
    "cross_attention_dim": 16,
}


def made_unet(seed: int, **more: Any) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return diffusers.UNet2DConditionModel(**UNET | more).eval()


@pytest.fixture(scope="module")
def vae() -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return diffusers.AutoencoderKL(block_out_channels=(8, 8), norm_num_groups=8, latent_channels=4).eval()


def pipeline(unet: Any, vae: Any, sampler: str, kind: str = "StableDiffusionPipeline") -> Any:
    parts: dict[str, Any] = {"vae": vae, "unet": unet, "scheduler": scheduler(sampler), "text_encoder": None}
    if kind.startswith("StableDiffusionXL"):
        made = getattr(diffusers, kind)(**parts, text_encoder_2=None, tokenizer=None, tokenizer_2=None)
    else:
        made = getattr(diffusers, kind)(
            **parts, tokenizer=None, safety_checker=None, feature_extractor=None, requires_safety_checker=False
        )
    made.set_progress_bar_config(disable=True)
    return made


def paint(pipe: Any, steps: int = 6, **more: Any) -> Tensor:
    states = torch.randn(2, 3, 16, generator=torch.Generator().manual_seed(1))
    return pipe(
        prompt_embeds=states[:1],
        negative_prompt_embeds=states[1:],
        num_inference_steps=steps,
        guidance_scale=3.0,
        generator=torch.Generator().manual_seed(2),
        output_type="pt",
        **more,
    ).images


def watched(experts: ExpertUNet, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, float]]:
    """Who was called with which timestep."""
    calls: list[tuple[str, float]] = []
    assert isinstance(experts.denoisers, torch.nn.ModuleDict)
    for name, unet in experts.denoisers.items():

        def call(sample: Tensor, timestep: Any, *args: Any, plain=unet.forward, name=name, **more: Any) -> Any:
            calls.append((name, float(timestep)))
            return plain(sample, timestep, *args, **more)

        monkeypatch.setattr(unet, "forward", call)
    return calls


def different() -> ExpertUNet:
    return ExpertUNet(CUT, {name: made_unet(i) for i, name in enumerate(CUT.experts)}, scheduler("ddim"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    saved = tmp_path_factory.mktemp("experts") / "ensemble"
    different().save_pretrained(saved)
    return saved


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_identical_experts_are_the_plain_pipeline(sampler: str, vae: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    unet = made_unet(0)
    experts = ExpertUNet(CUT, {name: copy.deepcopy(unet) for name in CUT.experts}, scheduler("ddim"))
    calls = watched(experts, monkeypatch)
    assert torch.equal(paint(pipeline(experts, vae, sampler)), paint(pipeline(unet, vae, sampler)))
    assert [name for name, _ in calls] == sorted((name for name, _ in calls), key=["high", "middle", "low"].index)
    assert {name for name, _ in calls} == {"high", "middle", "low"}


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("steps", [5, 14])
def test_calls_follow_the_boundaries(sampler: str, steps: int, vae: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    experts = different()
    calls, pipe = watched(experts, monkeypatch), pipeline(experts, vae, sampler)
    paint(pipe, steps)
    counted = getattr(pipe.scheduler, "sigmas", None)  # of those that have them; else a share of signal each
    levels = (
        [noise_of(pipe.scheduler)(float(t)) for t in pipe.scheduler.timesteps]
        if counted is None
        else counted[: len(pipe.scheduler.timesteps)].tolist()
    )
    assert [name for name, _ in calls] == [CUT.at(level) for level in levels]
    assert len(calls) == (2 * steps - 1 if sampler == "heun" else steps)
    if sampler == "heun":  # a step over a border asks both
        asked = [name for name, _ in calls]
        assert any(asked[i] != asked[i + 1] for i in range(0, len(asked) - 1, 2))


def test_a_change_of_schedule_keeps_the_experts(vae: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    experts = different()
    calls, pipe, served = watched(experts, monkeypatch), pipeline(experts, vae, "ddim"), {}
    for sampler in SAMPLERS:
        pipe.scheduler = type(scheduler(sampler)).from_config(pipe.scheduler.config, **SAMPLERS[sampler][1])
        paint(pipe, 9)
        for name, timestep in calls:
            served.setdefault(name, []).append(timestep)
        calls.clear()
    assert max(served["low"]) < min(served["middle"])
    assert max(served["middle"]) < min(served["high"])
    assert all(len(timesteps) >= 2 * len(SAMPLERS) for timesteps in served.values())


def test_image_to_image_begins_with_the_expert_of_its_noise(vae: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    experts = different()
    calls, pipe = watched(experts, monkeypatch), pipeline(experts, vae, "heun", "StableDiffusionImg2ImgPipeline")
    paint(pipe, 10, image=torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0)), strength=0.5)
    assert [timestep for _, timestep in calls] == pipe.scheduler.timesteps[10:].tolist()
    assert [name for name, _ in calls] == [CUT.at(level) for level in pipe.scheduler.sigmas[10:-1].tolist()]
    assert calls[0][0] == "middle"


def test_timesteps_of_an_accelerator_are_read_once(vae: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    experts, pipe = different(), None
    calls, reads = watched(experts, monkeypatch), []
    monkeypatch.setattr(experts._host, "value", experts._host.planned)  # as there
    plain = Tensor.tolist
    monkeypatch.setattr(Tensor, "tolist", lambda self: reads.append(self.shape) or plain(self))
    pipe = pipeline(experts, vae, "ddim")
    paint(pipe, 8)
    assert experts._serving(pipe.scheduler.timesteps[2].expand(4)) == calls[2][0]
    assert reads == [(8,)]
    assert [name for name, _ in calls] == [CUT.at(experts.sigma(float(t))) for t in pipe.scheduler.timesteps]


def test_stable_diffusion_xl(vae: Any) -> None:
    more = {"addition_embed_type": "text_time", "addition_time_embed_dim": 8}
    unet = made_unet(0, projection_class_embeddings_input_dim=6 * 8 + 12, **more)
    experts = ExpertUNet(CUT, {name: copy.deepcopy(unet) for name in CUT.experts}, scheduler("ddim"))
    pooled = torch.randn(2, 12, generator=torch.Generator().manual_seed(3))
    told = {"pooled_prompt_embeds": pooled[:1], "negative_pooled_prompt_embeds": pooled[1:]}
    plain, routed = (paint(pipeline(u, vae, "euler", "StableDiffusionXLPipeline"), **told) for u in (unet, experts))
    assert torch.equal(plain, routed)


def test_kandinsky_by_diffusers_and_by_ours(tiny_kandinsky: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    own = kandinsky.KandinskyDecoder.load(LoadContext(folder=tiny_kandinsky.decoder, clip=random_clip()))
    own = replace(own, unconditional=lambda: torch.zeros(1, 32))
    experts = ExpertUNet(CUT, {name: copy.deepcopy(own.unet) for name in CUT.experts}, own.scheduler)
    calls, embedding = watched(experts, monkeypatch), torch.randn(1, 32, generator=torch.Generator().manual_seed(0))
    pictures = [
        decoder.generate(
            Guide(embedding), [torch.Generator().manual_seed(1)], sampling=Sampling(steps=5, sampler="euler")
        )
        for decoder in (own, with_experts(own, experts))
    ]
    assert torch.equal(*pictures)
    assert [name for name, _ in calls] == ["high", "middle", "middle", "low", "low"]
    calls.clear()
    pipes = [
        diffusers.KandinskyV22Pipeline(unet=u, scheduler=own.scheduler, movq=own.autoencoder)
        for u in (own.unet, experts)
    ]
    painted = []
    for pipe in pipes:
        pipe.set_progress_bar_config(disable=True)
        painted.append(
            pipe(
                image_embeds=embedding,
                negative_image_embeds=torch.zeros(1, 32),
                height=64,
                width=64,
                num_inference_steps=5,
                generator=torch.Generator().manual_seed(1),
                output_type="pt",
            ).images
        )
    assert torch.equal(*painted)
    assert {name for name, _ in calls} == set(CUT.experts)
    with pytest.raises(UserError, match="another U-Net than the model's: they differ in addition_embed_type"):
        with_experts(own, different())


def batch(rows: int) -> dict[str, Any]:
    draw = torch.Generator().manual_seed(0)
    return {
        "sample": torch.randn(rows, 4, 8, 8, generator=draw),
        "encoder_hidden_states": torch.randn(rows, 3, 16, generator=draw),
        "encoder_attention_mask": torch.ones(rows, 3),
    }


@torch.no_grad()
def test_timesteps_that_differ_go_to_the_expert_of_each() -> None:
    experts, told = different(), batch(4)
    timesteps = torch.tensor([10, 990, 500, 20])
    together = experts(timestep=timesteps, **told)
    names = [CUT.at(experts.sigma(float(t))) for t in timesteps]
    assert names == ["low", "high", "middle", "low"]
    for i, (name, t) in enumerate(zip(names, timesteps, strict=True)):
        alone = experts.denoisers[name](timestep=t, **{key: value[i : i + 1] for key, value in told.items()})
        assert_close(together.sample[i : i + 1], alone.sample, depth=NETWORK)
    assert torch.equal(experts(timestep=timesteps, return_dict=False, **told)[0], together.sample)
    alike = torch.tensor([10, 20, 15, 20])
    assert torch.equal(experts(timestep=alike, **told)[0], experts.denoisers["low"](timestep=alike, **told)[0])
    with pytest.raises(UserError, match=r"argument of shape \(1, 3, 16\) cannot be split among"):
        experts(timestep=timesteps, **told | {"encoder_hidden_states": told["encoder_hidden_states"][:1]})
    with pytest.raises(UserError, match="a set cannot be split among"):
        experts(timestep=timesteps, cross_attention_kwargs={"region_bias": {1}}, **told)


def test_training_reaches_every_expert_that_is_asked() -> None:
    experts = different()
    experts(timestep=torch.tensor([10, 990]), **batch(2)).sample.square().mean().backward()
    touched = {name: any(p.grad is not None for p in u.parameters()) for name, u in experts.denoisers.items()}
    assert touched == {"low": True, "middle": False, "high": True}


@pytest.mark.parametrize("memory", ["all", "lazy"])
def test_saved_and_loaded(memory: str, folder: Path, vae: Any, tmp_path: Path) -> None:
    assert sorted(path.name for path in folder.iterdir()) == ["high", "low", "middle", "scheduler", "stages.json"]
    loaded = ExpertUNet.from_pretrained(folder, offload_policy=OffloadPolicy(memory=memory))
    wanted = paint(pipeline(different(), vae, "euler"))
    assert torch.equal(paint(pipeline(loaded, vae, "euler")), wanted)
    loaded.save_pretrained(tmp_path / "again")
    assert torch.equal(paint(pipeline(ExpertUNet.from_pretrained(tmp_path / "again"), vae, "euler")), wanted)
    with pytest.warns(DeprecationWarning, match="keeping= is now offload_policy="):
        old = ExpertUNet.from_pretrained(folder, keeping=OffloadPolicy(memory="lazy"))
    assert isinstance(old.denoisers, SequentialOffload)
    other = ExpertUNet.from_pretrained(folder, scheduler=diffusers.FlowMatchEulerDiscreteScheduler())
    assert other.sigma(500.0) == 1.0


def test_loaded_one_at_a_time(folder: Path, vae: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    plain = artifacts.read_tensors
    monkeypatch.setattr(
        artifacts, "read_tensors", lambda path, *more: asked.append(path.parent.name) or plain(path, *more)
    )
    experts = ExpertUNet.from_pretrained(folder, offload_policy=OffloadPolicy(memory="lazy"), dtype=torch.float64)
    pipe = pipeline(experts, vae, "heun")
    # What a pipeline looks at needs no expert.
    assert (experts.dtype, experts.device, experts.config.in_channels) == (torch.float64, torch.device("cpu"), 4)
    assert experts.conv_in.in_channels == 4
    assert asked == []
    pipe.to(torch.float32)
    paint(pipe, 6)
    assert asked == ["high", "middle", "low"]
    assert experts.denoisers["low"].dtype == torch.float32
    assert list(experts.parameters()) == []


class Loud:
    """An attention processor that counts its calls."""

    def __init__(self) -> None:
        self.plain, self.calls = diffusers.models.attention_processor.AttnProcessor2_0(), 0

    def __call__(self, *args: Any, **more: Any) -> Tensor:
        self.calls += 1
        return self.plain(*args, **more)


@pytest.mark.parametrize("memory", ["all", "lazy"])
def test_a_method_is_called_on_every_expert(memory: str, folder: Path) -> None:
    experts, loud = ExpertUNet.from_pretrained(folder, offload_policy=OffloadPolicy(memory=memory)), Loud()
    experts.set_attn_processor(dict.fromkeys(experts.attn_processors, loud))
    assert set(experts.attn_processors.values()) == {loud}
    each = []
    for t in (10, 990, 500):
        before = loud.calls
        experts(timestep=t, **batch(1))
        each.append(loud.calls - before)
    assert each[0] == each[1] == each[2] > 0
    with pytest.raises(AttributeError, match="no_such_thing"):
        _ = experts.no_such_thing


def lora_experts() -> ExpertUNet:
    trunk, found = made_unet(0).requires_grad_(False), {}
    for i, name in enumerate(CUT.experts):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(i)
            lora = Lora(trunk, rank=2, layers="attn2")
            for update in lora.updates.values():
                torch.nn.init.normal_(update.up, std=0.2)
        found[name] = Adapted(trunk, lora)
    return ExpertUNet(CUT, found, scheduler("ddim")).requires_grad_(False)


def test_low_rank_experts(vae: Any, tmp_path: Path) -> None:
    experts = lora_experts()
    wanted = paint(pipeline(experts, vae, "euler"))
    assert not torch.equal(wanted, paint(pipeline(made_unet(0), vae, "euler")))
    experts.save_pretrained(tmp_path / "saved")
    assert (tmp_path / "saved" / "trunk" / "diffusion_pytorch_model.safetensors").is_file()
    again = ExpertUNet.from_pretrained(tmp_path / "saved")
    # Adaptations are kept in half precision.
    torch.testing.assert_close(paint(pipeline(again, vae, "euler")), wanted, atol=2e-3, rtol=0)
    assert {name for name, _ in again.named_children()} == {"denoisers"}
    with pytest.raises(UserError, match="all in memory with it: 'lazy' has no effect"):
        ExpertUNet.from_pretrained(tmp_path / "saved", offload_policy=OffloadPolicy(memory="lazy"))


class Backend:
    """Compiles nothing, and counts."""

    def __init__(self) -> None:
        self.graphs = self.runs = 0

    def __call__(self, graph: Any, inputs: Any) -> Callable[..., Any]:
        self.graphs += 1

        def run(*args: Any) -> Any:
            self.runs += 1
            return graph(*args)

        return run


@torch.no_grad()
def test_each_expert_is_compiled_and_all_alike(tmp_path: Path) -> None:
    names = [f"e{i}" for i in range(10)]  # more than torch compiles of one piece of code
    blocks = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",), "block_out_channels": (8,)}
    unets = {name: made_unet(i, mid_block_type=None, **blocks) for i, name in enumerate(names)}
    cut = Stages(tuple(names), tuple(0.2 * 1.4**i for i in range(9)))
    plain, told, backend = ExpertUNet(cut, unets, scheduler("ddim")), batch(1), Backend()
    plain.save_pretrained(tmp_path / "e")
    experts = ExpertUNet.from_pretrained(tmp_path / "e", offload_policy=OffloadPolicy(memory="lazy", backend=backend))
    served = set()
    for number, t in enumerate(torch.arange(990.0, 0.0, -30.0), 1):
        assert_close(experts(timestep=t, **told).sample, plain(timestep=t, **told).sample, depth=NETWORK)
        assert backend.runs == number
        served.add(experts.denoisers.active)
    assert served == set(names)
    assert backend.graphs == 1
    torch.compiler.reset()


def test_too_many_low_rank_experts_to_compile_are_refused() -> None:
    OffloadPolicy(backend="eager").check_lora(8)
    OffloadPolicy().check_lora(9)
    with pytest.raises(UserError, match=r"9 low-rank experts are more than torch.compile's limit of 8"):
        OffloadPolicy(backend="eager").check_lora(9)


def test_what_does_not_fit_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="expert high is another U-Net than the first: they differ in in_channels"):
        ExpertUNet(CUT, {n: made_unet(0, in_channels=4 + (n == "high")) for n in CUT.experts}, scheduler("ddim"))
    with pytest.raises(UserError, match="stages name the experts high, which are missing"):
        ExpertUNet(CUT, {"low": made_unet(0), "middle": made_unet(0)}, scheduler("ddim"))
    with pytest.raises(UserError, match="offloading moves experts off a GPU"):
        ExpertUNet.from_pretrained(folder, offload_policy=OffloadPolicy(memory="offload"))
    with pytest.raises(UserError, match="unknown memory of experts 'most'"):
        OffloadPolicy(memory="most")
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    shutil.rmtree(broken / "middle")
    for memory in ("all", "lazy"):
        with pytest.raises(UserError, match=r"middle.config\.json is missing"):
            ExpertUNet.from_pretrained(broken, offload_policy=OffloadPolicy(memory=memory))


def test_loaded_and_made_ones_are_of_one_configuration(folder: Path) -> None:
    """JSON keeps a tuple as a list."""
    loaded = ExpertUNet.from_pretrained(folder).denoisers["low"]
    made = {name: made_unet(i) for i, name in enumerate(CUT.experts)}
    assert ExpertUNet(CUT, made | {"low": loaded}, scheduler("ddim")).config == loaded.config


def test_offloaded_experts_share_a_device() -> None:
    unets = {name: made_unet(i) for i, name in enumerate(CUT.experts)}
    experts, told = ExpertUNet(CUT, SequentialOffload.offloaded(unets), scheduler("ddim")), batch(1)
    with torch.no_grad():
        for t, name in ((990, "high"), (500, "middle"), (10, "low")):
            assert torch.equal(
                experts(timestep=t, **told).sample, different().denoisers[name](timestep=t, **told).sample
            )
            assert experts.denoisers.active == name


def test_experts_of_a_published_model(tiny_kandinsky: Any, tmp_path: Path) -> None:
    def model(**more: Any) -> TextToImage:
        return TextToImage.from_pretrained(
            tiny_kandinsky.decoder, prior=tiny_kandinsky.prior, clip=tiny_kandinsky.clip, **more
        )

    plain = model()
    unet = plain.pipeline.decoder.unet
    ExpertUNet(CUT, {name: unet for name in CUT.experts}, plain.pipeline.decoder.scheduler).save_pretrained(
        tmp_path / "e"
    )
    routed = model(experts=tmp_path / "e", experts_memory="lazy")
    pictures = [
        one("a red circle", num_inference_steps=3, generator=torch.Generator().manual_seed(0)).images[0].tobytes()
        for one in (plain, routed)
    ]
    assert pictures[0] == pictures[1]
    assert routed.fingerprints()["experts"] == str(tmp_path / "e")
    with pytest.raises(UserError, match="have no effect without experts"):
        model(experts_memory="lazy")
