"""Paint-with-words in pipelines of diffusers: what happens in their U-Nets, and what is left behind."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor

from syzygy.core import diffusers_schedulers
from syzygy.core.contracts import Region
from syzygy.core.errors import UserError
from syzygy.regions import attention_processors as painting
from syzygy.regions import region_bias
from syzygy.regions.attention_processors import RegionAttnProcessor, combined_region_maps
from syzygy.regions.diffusers_hook import region_conditioning
from tests.closeness import NETWORK, assert_close
from tests.tiny_stable_diffusion import tiny_stable_diffusion
from tests.tiny_xl import tiny_xl

WALK = 2 * 4 * NETWORK  # two steps with a guidance of 4
PROMPT, OTHER = "a red circle above a ring", "two blue stars"
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation:DeprecationWarning"
)  # diffusers' own arithmetic


def half() -> Tensor:
    mask = torch.zeros(24, 32)
    mask[:, :16] = 1
    return mask


REGIONS = [Region("red circle", half()), Region("ring", half().flip(1))]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder: Path = tmp_path_factory.mktemp("pipelines")
    made = {
        "sd": diffusers.StableDiffusionPipeline.from_pretrained(
            tiny_stable_diffusion(folder / "sd"), low_cpu_mem_usage=False, safety_checker=None
        ),
        "xl": diffusers.StableDiffusionXLPipeline.from_pretrained(tiny_xl(folder / "xl"), low_cpu_mem_usage=False),
    }
    for one in made.values():
        one.set_progress_bar_config(disable=True)
    return made


@pytest.fixture(params=["sd", "xl"])
def pipe(request: pytest.FixtureRequest, loaded: dict[str, Any]) -> Any:
    return loaded[request.param]


def call(pipe: Any, prompt: Any = PROMPT, seeds: tuple[int, ...] = (3,), **more: Any) -> Tensor:
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    how = {"num_inference_steps": 2, "guidance_scale": 4.0, "generator": generators, "output_type": "latent"}
    return pipe(prompt, height=32, width=32, **how | more).images


def evaluations(pipe: Any, run: Callable[[], object]) -> list[Tensor]:
    """What the U-Net answers, evaluation by evaluation."""
    seen: list[Tensor] = []
    hook = pipe.unet.register_forward_hook(lambda _m, _i, output: seen.append(output[0].clone()))
    run()
    hook.remove()
    return seen


def state(pipe: Any) -> list[Any]:
    parts = [pipe.unet, pipe.text_encoder, getattr(pipe, "text_encoder_2", None)]
    return [pipe.unet.attn_processors, *[dict(one._forward_pre_hooks) for one in parts if one is not None]]


def test_no_strength_is_unpainted_to_the_bit_and_all_is_left_as_it_was(pipe: Any) -> None:
    plain, before = call(pipe), state(pipe)
    with region_conditioning(pipe, PROMPT, REGIONS, strength=0.0):
        assert torch.equal(call(pipe), plain)
    with region_conditioning(pipe, PROMPT, [Region("ring", half(), weight=0.0)]):
        assert torch.equal(call(pipe), plain)
    with region_conditioning(pipe, PROMPT, REGIONS, strength=2.0) as given:
        assert given is pipe
        made = call(pipe)
    assert (made - plain).abs().max() > 0.05
    assert torch.equal(call(pipe), plain)
    with pytest.raises(ZeroDivisionError), region_conditioning(pipe, PROMPT, REGIONS):
        raise ZeroDivisionError
    assert state(pipe) == before
    mirrored = [Region(one.phrase, one.mask.flip(1)) for one in REGIONS]
    with region_conditioning(pipe, PROMPT, mirrored, strength=2.0):
        assert (call(pipe) - made).abs().max() > 0.05
    with region_conditioning(pipe, PROMPT, REGIONS, strength=2.0, blur=0.3):
        assert (call(pipe) - made).abs().max() > 1e-3


def test_the_branch_to_move_away_from_is_unpainted(pipe: Any) -> None:
    """In the same batch; and with several pictures a prompt each one is painted."""
    plain = evaluations(pipe, lambda: call(pipe, seeds=(3, 4), num_images_per_prompt=2))
    with region_conditioning(pipe, PROMPT, REGIONS, strength=2.0):
        found = evaluations(pipe, lambda: call(pipe, seeds=(3, 4), num_images_per_prompt=2))
    assert plain[0].shape[0] == 4
    assert_close(found[0][:2], plain[0][:2], depth=NETWORK)
    assert ((plain[0] - found[0]).flatten(1).abs().amax(1)[2:] > 0.01).all()
    # Without guidance there is no such branch.
    plain = evaluations(pipe, lambda: call(pipe, guidance_scale=1.0))
    with region_conditioning(pipe, PROMPT, REGIONS, strength=2.0):
        found = evaluations(pipe, lambda: call(pipe, guidance_scale=1.0))
    assert plain[0].shape[0] == 1
    assert (plain[0] - found[0]).abs().max() > 0.01


def test_pictures_do_not_depend_on_their_neighbours(pipe: Any) -> None:
    both = [PROMPT, OTHER]
    with region_conditioning(pipe, PROMPT, REGIONS, strength=2.0):
        alone = call(pipe)
    for theirs in ([], [Region("blue stars", half(), weight=20.0)]):
        with region_conditioning(pipe, both, [REGIONS, theirs], strength=2.0):
            together = call(pipe, both, seeds=(3, 4))
        assert_close(together[:1], alone, depth=WALK)
    with region_conditioning(pipe, both, [REGIONS, []], strength=2.0):
        mixed = call(pipe, both, seeds=(3, 4, 5, 6), num_images_per_prompt=2)
    assert_close(mixed[:1], alone, depth=WALK)
    assert_close(mixed[2:3], call(pipe, OTHER, seeds=(5,)), depth=WALK)


def test_a_painted_area_attends_to_its_words(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The probabilities themselves, in the U-Net, beside those without painting."""
    gained: list[Tensor] = []
    real = region_bias.attention

    def watched(
        q: Tensor, k: Tensor, v: Tensor, painting: region_bias.RegionBias, mask: Tensor | None = None
    ) -> Tensor:
        probabilities = [
            real(q, k, torch.eye(k.shape[2]).expand(*k.shape[:2], -1, -1), one)
            for one in (painting, replace(painting, level=torch.zeros_like(painting.level)))
        ]
        words = painting.weights.flatten(2).amax(2)[0] > 0
        here = painting.at(q.shape[2])[0, :, words].amax(1) > 0
        gained.append((probabilities[0] - probabilities[1])[0][:, here][..., words].mean())
        gained.append(-(probabilities[0] - probabilities[1])[0][:, ~here].abs().max())
        return real(q, k, v, painting, mask)

    monkeypatch.setattr(region_bias, "attention", watched)
    with region_conditioning(pipe, PROMPT, REGIONS[:1], strength=8.0):
        call(pipe, num_inference_steps=1)
    assert len(gained) >= 6
    assert min(gained[::2]) > 0.005
    assert max(gained[::2]) > 0.05
    assert min(gained[1::2]) > -1e-6


def test_the_words_are_those_of_the_phrase(loaded: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[region_bias.RegionBias] = []
    real = region_bias.attention
    monkeypatch.setattr(region_bias, "attention", lambda q, k, v, p, m=None: (seen.append(p), real(q, k, v, p, m))[1])
    with region_conditioning(loaded["sd"], PROMPT, REGIONS[1:], strength=1.0):
        call(loaded["sd"], num_inference_steps=1)
    tokenizer = loaded["sd"].tokenizer
    ids = tokenizer(PROMPT).input_ids
    words = seen[0].weights.flatten(2).amax(2)[0].nonzero()[:, 0].tolist()
    assert tokenizer.decode([ids[i] for i in words]).strip() == "ring"


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("EulerDiscreteScheduler", {}),
        ("EulerDiscreteScheduler", {"use_karras_sigmas": True}),
        ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
        ("UniPCMultistepScheduler", {}),
        ("HeunDiscreteScheduler", {}),
        ("DDIMScheduler", {}),
    ],
)
def test_the_level_is_that_of_the_noise(
    kind: str, more: dict[str, Any], loaded: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """log(1 + σ) with the σ that the scheduler itself works in, or √((1 − ᾱ)/ᾱ)."""
    pipe, seen, real = loaded["sd"], [], region_bias.attention
    monkeypatch.setattr(region_bias, "attention", lambda q, k, v, p, m=None: (seen.append(p), real(q, k, v, p, m))[1])
    monkeypatch.setattr(pipe, "scheduler", getattr(diffusers, kind).from_config(pipe.scheduler.config, **more))
    with region_conditioning(pipe, PROMPT, REGIONS):
        call(pipe, num_inference_steps=4)
    levels = list(dict.fromkeys(float(one.level[0]) for one in seen))
    times = list(dict.fromkeys(pipe.scheduler.timesteps.tolist()))
    assert isinstance(seen[0].level, Tensor)
    if kind == "DDIMScheduler":
        kept = pipe.scheduler.alphas_cumprod[torch.tensor(times)]
        wanted = ((1 - kept) / kept).sqrt()
    else:
        wanted = torch.tensor(list(dict.fromkeys(pipe.scheduler.sigmas.tolist()))[: len(times)])
    torch.testing.assert_close(torch.tensor(levels), wanted.log1p(), rtol=0.01, atol=0)
    assert len(levels) == 4


def test_a_scheduler_that_is_changed_meanwhile_counts_for_itself(
    loaded: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = loaded["sd"]
    other = diffusers.DDIMScheduler.from_config(pipe.scheduler.config, beta_end=0.1)
    with region_conditioning(pipe, PROMPT, REGIONS):
        call(pipe)
        monkeypatch.setattr(pipe, "scheduler", other)
        found = call(pipe)
    with region_conditioning(pipe, PROMPT, REGIONS):
        assert torch.equal(call(pipe), found)


def test_other_ways_to_attend(pipe: Any) -> None:
    with region_conditioning(pipe, PROMPT, REGIONS, strength=1.0):
        usual = call(pipe)
    pipe.enable_attention_slicing(1)
    with region_conditioning(pipe, PROMPT, REGIONS, strength=1.0):
        assert_close(call(pipe), usual, depth=WALK)
    pipe.disable_attention_slicing()

    class Strange:
        def __call__(self, attn: Any, hidden_states: Tensor, **_: Any) -> Tensor:
            return hidden_states

    before = pipe.unet.attn_processors
    pipe.unet.set_attn_processor(Strange())
    with (
        pytest.raises(UserError, match="attention processor Strange does not support regions"),
        region_conditioning(pipe, PROMPT, REGIONS),
    ):
        pass
    assert not any(isinstance(one, RegionAttnProcessor) for one in pipe.unet.attn_processors.values())
    pipe.unet.set_attn_processor(before)
    with region_conditioning(pipe, PROMPT, REGIONS):
        pipe.unet.set_attn_processor(AttnProcessor())
        with pytest.raises(UserError, match="processors were changed inside the block"):
            call(pipe)
    twice = region_conditioning(pipe, PROMPT, REGIONS)
    with region_conditioning(pipe, PROMPT, REGIONS), pytest.raises(UserError, match="has regions already"), twice:
        pass


def test_the_prompt_must_be_the_one_that_is_painted(pipe: Any) -> None:
    with region_conditioning(pipe, PROMPT, REGIONS):
        with pytest.raises(UserError, match="another prompt than its regions"):
            call(pipe, OTHER)
        call(pipe, negative_prompt=OTHER)
    both = region_conditioning(pipe, [PROMPT, OTHER], [REGIONS, []])
    with both, pytest.raises(UserError, match="another prompt than its regions"):
        call(pipe, PROMPT)


def test_prompts_as_states(loaded: dict[str, Any]) -> None:
    pipe = loaded["sd"]
    states, away = pipe.encode_prompt(PROMPT, "cpu", 1, True)
    given = {"prompt": None, "prompt_embeds": states, "negative_prompt_embeds": away}
    with region_conditioning(pipe, PROMPT, REGIONS, strength=1.0):
        assert_close(call(pipe, **given), call(pipe), depth=WALK)
        twice = {name: None if one is None else torch.cat([one, one], 1) for name, one in given.items()}
        with pytest.raises(UserError, match="is given 154 tokens, but words can be found only among 77"):
            call(pipe, **twice)
    with (
        region_conditioning(pipe, [PROMPT, OTHER], [REGIONS, []]),
        pytest.raises(UserError, match="2 prompts have regions, but"),
    ):
        call(pipe, **given)


def test_a_second_prompt_of_xl_is_another_one(loaded: dict[str, Any]) -> None:
    with (
        region_conditioning(loaded["xl"], PROMPT, REGIONS),
        pytest.raises(UserError, match="for both of its text encoders"),
    ):
        call(loaded["xl"], prompt_2=OTHER)


def test_from_a_picture_and_within_one(loaded: dict[str, Any]) -> None:
    sd, image = loaded["sd"].components, torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    from_image = diffusers.StableDiffusionImg2ImgPipeline(**sd, requires_safety_checker=False)
    inside = diffusers.StableDiffusionInpaintPipeline(**sd, requires_safety_checker=False)
    hole = torch.ones(1, 1, 32, 32)
    for pipe, more in ((from_image, {"image": image}), (inside, {"image": image, "mask_image": hole})):
        pipe.set_progress_bar_config(disable=True)

        def run(pipe: Any = pipe, more: dict[str, Any] = more) -> Tensor:
            own = torch.Generator().manual_seed(3)
            how = {"num_inference_steps": 4, "strength": 0.9, "guidance_scale": 4.0, "output_type": "latent"}
            return pipe(PROMPT, generator=own, **how, **more).images

        plain = run()
        with region_conditioning(pipe, PROMPT, REGIONS, strength=2.0):
            assert (run() - plain).abs().max() > 0.02
        assert torch.equal(run(), plain)


def test_tokenizers_that_differ_share_a_phrase() -> None:
    """A column of XL is half a phrase's where one of its encoders has another word there."""
    spans = torch.tensor([[[0, 0], [0, 1], [2, 5], [6, 12], [0, 0]], [[0, 0], [0, 1], [2, 4], [4, 5], [6, 12]]])
    region = [[Region("circle", torch.ones(4, 4))]]
    found = combined_region_maps(["a red circle"], [one[None] for one in spans], region, 1.0, (2, 2))
    assert found is not None
    assert found[0, :, 0, 0].tolist() == [0, 0, 0, 0.5, 0.5]
    alike = combined_region_maps(["a red circle"], [spans[:1]] * 2, region, 1.0, (2, 2))
    assert alike is not None
    assert alike[0, :, 0, 0].tolist() == [0, 0, 0, 1, 0]


@pytest.mark.parametrize(
    ("prompt", "regions", "more", "message"),
    [
        (PROMPT, [Region("star", half())], {}, "does not contain the phrase 'star'"),
        (PROMPT, REGIONS, {"strength": -1.0}, "at least 0, got -1"),
        (PROMPT, REGIONS, {"blur": 2.0}, "below 1"),
        (PROMPT, [REGIONS, REGIONS], {}, "regions are given for 2 prompts, but there are 1"),
        (PROMPT, [], {}, "the list of regions is empty"),
        ([PROMPT, OTHER], [[], []], {}, "the list of regions is empty"),
    ],
)
def test_wrong_input(prompt: Any, regions: Any, more: dict[str, Any], message: str, loaded: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=message), region_conditioning(loaded["sd"], prompt, regions, **more):
        pass


def test_a_phrase_that_is_cut_off(pipe: Any) -> None:
    cut = region_conditioning(pipe, "a red circle " * 40 + "and a ring", [Region("ring", half())])
    with pytest.warns(UserWarning, match="cut:"), pytest.raises(UserError, match="after the last token"), cut:
        pass


def test_pipelines_without_words(loaded: dict[str, Any]) -> None:
    class Kandinsky:
        unet, scheduler = loaded["sd"].unet, loaded["sd"].scheduler

    with (
        pytest.raises(UserError, match="Kandinsky does not support regions: they need"),
        region_conditioning(Kandinsky(), PROMPT, REGIONS),
    ):
        pass


def test_schedules_that_end_in_noise_alone(loaded: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = loaded["sd"]
    more = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "prediction_type": "v_prediction"}
    with diffusers_schedulers.quiet():
        monkeypatch.setattr(pipe, "scheduler", diffusers.DDIMScheduler.from_config(pipe.scheduler.config, **more))
    with region_conditioning(pipe, PROMPT, REGIONS):
        assert torch.isfinite(call(pipe)).all()


def test_special_tokens_act_as_the_pipeline_reads_them(pipe: Any) -> None:
    """Our own readers read them as text; a pipeline of diffusers does not, and its words must stay in their places."""
    marked = "a red circle <|endoftext|> above a ring"
    with region_conditioning(pipe, marked, REGIONS):
        found = call(pipe, marked)
    assert not torch.equal(found, call(pipe, marked))


def test_guidance_may_change_within_the_context(pipe: Any) -> None:
    """Between calls, and in a callback: what was kept of a guided call is no help without guidance."""
    with region_conditioning(pipe, PROMPT, REGIONS, strength=2.0):
        alone = call(pipe, guidance_scale=1.0)
    with region_conditioning(pipe, PROMPT, REGIONS, strength=2.0):
        guided = call(pipe)
        assert torch.equal(call(pipe, guidance_scale=1.0), alone)
        assert torch.equal(call(pipe), guided)


def test_guidance_that_a_callback_switches_off_leaves_regions_on(
    loaded: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe, seen, real = loaded["sd"], [], painting._partly_biased

    def watched(q: Tensor, k: Tensor, v: Tensor, one: region_bias.RegionBias, mask: Tensor | None) -> Tensor:
        seen.append((len(q), one.negatives))
        return real(q, k, v, one, mask)

    def off(pipe: Any, step: int, _t: Any, kept: dict[str, Any]) -> dict[str, Any]:
        if step == 0:
            kept["prompt_embeds"] = kept["prompt_embeds"].chunk(2)[-1]
            pipe._guidance_scale = 0.0
        return kept

    monkeypatch.setattr(painting, "_partly_biased", watched)
    with region_conditioning(pipe, PROMPT, REGIONS, strength=2.0):
        call(pipe, callback_on_step_end=off, callback_on_step_end_tensor_inputs=["prompt_embeds", "latents"])
    assert set(seen) == {(2, 1), (1, 0)}


def test_a_schedule_that_is_replaced_is_noticed(loaded: dict[str, Any]) -> None:
    pipe = loaded["sd"]
    own = pipe.scheduler.alphas_cumprod
    with region_conditioning(pipe, PROMPT, REGIONS, strength=2.0):
        first = evaluations(pipe, lambda: call(pipe))[0]
        try:
            pipe.scheduler.alphas_cumprod = own**4  # noisier at each timestep: regions pull more strongly
            noisier = evaluations(pipe, lambda: call(pipe))[0]
        finally:
            pipe.scheduler.alphas_cumprod = own
        assert (noisier - first).abs().max() > 1e-4
        assert torch.equal(evaluations(pipe, lambda: call(pipe))[0], first)
