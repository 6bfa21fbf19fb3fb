"""Karlo's decoder against diffusers' `UnCLIPPipeline`, run in memory on the same weights, embedding and noise."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.transformers.prior_transformer import PriorTransformer
from diffusers.pipelines.deprecated.unclip.pipeline_unclip import UnCLIPPipeline
from diffusers.schedulers import scheduling_unclip
from diffusers.schedulers.scheduling_unclip import UnCLIPScheduler
from torch import Tensor
from transformers import CLIPTextModelWithProjection, CLIPTokenizer

from syzygy.clip.clip_model import Clip
from syzygy.core.contracts import Guide, ImageDecoder, Progress, Region, Sampling, TextFeatures
from syzygy.core.errors import UserError
from syzygy.core.randomness import generator, per_sample_noise
from syzygy.pretrained.families import LoadContext
from syzygy.pretrained.karlo import KarloDecoder
from syzygy.prior.unclip_sampling import Ancestral, alphas_bar, sample_unclip, visited
from syzygy.regions import region_bias as paint
from tests.closeness import LEVEL, NETWORK, assert_close
from tests.tiny_karlo import LARGE, SMALL, karlo_models, karlo_schedulers, tiny_karlo
from tests.tiny_unclip import WIDTH, Tiny

PROMPTS = ["a red circle", "two blue stars above a ring!"]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def karlo(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return tiny_karlo(tmp_path_factory.mktemp("karlo"))


@pytest.fixture(scope="module")
def clip(karlo: Tiny) -> Clip:
    return Clip.from_pretrained(karlo.clip)


@pytest.fixture(scope="module")
def decoder(karlo: Tiny, clip: Clip) -> KarloDecoder:
    return load(karlo.decoder, clip)


def load(folder: Path, clip: Clip, **settings: Any) -> KarloDecoder:
    return KarloDecoder.load(LoadContext(folder=folder, clip=clip, **settings))


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def embeddings(number: int = 2, key: str = "embeddings") -> Tensor:
    return torch.randn(number, WIDTH, generator=generator(0, key))


class Recorded(PriorTransformer):
    """A prior that keeps what it made, and gives the decoder generators as they were seeded."""

    def post_process_latents(self, prior_latents: Tensor) -> Tensor:
        self.made = super().post_process_latents(prior_latents)
        for one, seed in zip(self.generators, self.seeds, strict=True):
            one.manual_seed(seed)
        return self.made


def theirs(folder: Path, seeds: list[int], **settings: Any) -> tuple[Tensor, Tensor]:
    """Pictures and embeddings of diffusers' pipeline; saved, it could not be loaded again."""
    models = karlo_models()
    models.prior.__class__ = Recorded
    models.prior.generators, models.prior.seeds = generators(*seeds), seeds
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
    text = CLIPTextModelWithProjection.from_pretrained(folder / "text_encoder", local_files_only=True)
    pipeline = UnCLIPPipeline(**models._asdict(), **karlo_schedulers(), text_encoder=text, tokenizer=tokenizer)
    pipeline.set_progress_bar_config(disable=True)
    pictures = pipeline(
        PROMPTS, generator=models.prior.generators, prior_num_inference_steps=2, output_type="np", **settings
    ).images
    return torch.from_numpy(pictures).permute(0, 3, 1, 2), models.prior.made


@pytest.mark.parametrize(("scale", "steps", "fine"), [(8.0, 6, 7), (1.0, 4, 3), (2.5, 3, 2)])
def test_pictures_are_those_of_diffusers(
    scale: float, steps: int, fine: int, karlo: Tiny, decoder: KarloDecoder, clip: Clip
) -> None:
    expected, made = theirs(
        karlo.decoder, [3, 4], decoder_num_inference_steps=steps, super_res_num_inference_steps=fine,
        decoder_guidance_scale=scale, prior_guidance_scale=1.0,
    )  # fmt: skip
    assert expected.shape == (2, 3, LARGE, LARGE)
    assert (expected[0] - expected[1]).abs().max() > 20 * LEVEL
    guide = Guide(made, clip.encode_text(PROMPTS))
    sampling = Sampling(steps=steps, guidance_scale=scale, options={"super_res_steps": fine})
    seen: list[Progress] = []
    found = decoder.generate(guide, generators(3, 4), sampling=sampling, on_step=seen.append)
    assert (found - expected).abs().max() < LEVEL
    # Each thing that makes a picture does, by more than what is allowed above.
    for other in (
        decoder.generate(Guide(-made, guide.features), generators(3, 4), sampling=sampling),
        decoder.generate(Guide(made, clip.encode_text(PROMPTS[::-1])), generators(3, 4), sampling=sampling),
        decoder.generate(guide, generators(3, 5), sampling=sampling)[1:],
    ):
        assert (other - expected[-len(other) :]).abs().max() > 3 * LEVEL

    assert [(one.step, one.steps) for one in seen] == [(i + 1, steps + fine) for i in range(steps + fine)]
    assert seen[-1].denoised is not None
    assert seen[0].denoised is not None
    assert seen[0].denoised.shape == (2, 3, SMALL, SMALL)
    assert_close((seen[-1].denoised / 2 + 0.5).clamp(0, 1), found, depth=NETWORK)
    assert seen[0].sigma > seen[steps - 1].sigma < seen[steps].sigma


def test_a_batch_is_its_pictures_and_pads_do_not_count(decoder: KarloDecoder, clip: Clip) -> None:
    assert isinstance(decoder, ImageDecoder)
    assert (decoder.conditions, decoder.width) == (("image", "text"), WIDTH)
    sampling = Sampling(steps=3, options={"super_res_steps": 2})
    features = clip.encode_text(PROMPTS)
    guide = Guide(embeddings(), features)
    together = decoder.generate(guide, generators(0, 1), sampling=sampling)
    for i in range(2):
        alone = decoder.generate(guide[[i]], generators(i), sampling=sampling)
        assert (alone[0] - together[i]).abs().max() < LEVEL
    for content in (1e4, float("nan"), float("inf")):
        spoilt = features.states.masked_fill(~features.mask[..., None], content)
        assert (~features.mask).any()
        again = decoder.generate(Guide(guide.embeddings, TextFeatures(spoilt, features.mask, features.pooled)),
                              generators(0, 1), sampling=sampling)  # fmt: skip
        assert torch.equal(again, together)


def test_what_is_not_told_is_nothing(karlo: Tiny, decoder: KarloDecoder, clip: Clip) -> None:
    sampling, made, empty = Sampling(steps=3, options={"super_res_steps": 2}), embeddings(), clip.encode_text(["", ""])
    prompt = clip.encode_text(PROMPTS)

    def painted(positive: Guide, negative: Guide | None = None) -> Tensor:
        # With seed 0 one value lies where the sampler clips its prediction, and rounding decides.
        return decoder.generate(positive, generators(2, 3), negative=negative, sampling=sampling)

    assert_close(painted(Guide(made)), painted(Guide(made, empty)), depth=NETWORK)
    told, nothing = Guide(made, prompt), decoder.projection.nothing.expand(2, -1)
    plain = painted(told)
    for negative in (Guide(nothing, empty), Guide(nothing[:1], empty[[0]]), Guide(nothing), Guide(features=empty)):
        assert_close(painted(told, negative), plain, depth=NETWORK)
    negative = embeddings(2, "negative"), clip.encode_text(["a ring", "stars above a blue circle"])
    both, image, text = (painted(told, Guide(*parts)) for parts in (negative, negative[:1], (None, negative[1])))
    pictures = [plain, both, image, text]
    assert all((a - b).abs().max() > 3 * LEVEL for i, a in enumerate(pictures) for b in pictures[:i])


def test_defaults_are_the_published_ones(decoder: KarloDecoder, clip: Clip) -> None:
    guide, seen = Guide(embeddings(1), clip.encode_text(PROMPTS[:1])), []
    plain = decoder.generate(guide, generators(0), on_step=seen.append)
    assert len(seen) == 25 + 7
    sampling = Sampling(steps=25, guidance_scale=8.0, options={"super_res_steps": 7})
    assert decoder.defaults == sampling
    assert torch.equal(decoder.generate(guide, generators(0), sampling=sampling), plain)


def test_half_precision_and_offloading_paint_the_same(karlo: Tiny, decoder: KarloDecoder, clip: Clip) -> None:
    guide, sampling = Guide(embeddings(1), clip.encode_text(PROMPTS[:1])), Sampling(steps=3, guidance_scale=1.0)
    full = decoder.generate(guide, generators(0), sampling=sampling)
    negative = load(karlo.decoder, clip, offload=True).generate(guide, generators(0), sampling=sampling)
    assert torch.equal(negative, full)
    half = load(karlo.decoder, clip, dtype=torch.bfloat16).generate(guide, generators(0), sampling=sampling)
    assert half.dtype == torch.float32
    assert 0 < (half - full).abs().mean() < 0.05


@pytest.mark.parametrize("kind", ["learned_range", "fixed_small_log"])
@pytest.mark.parametrize("steps", [2, 7, 25])
def test_steps_are_those_of_diffusers_scheduler(kind: Any, steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    learned, channels, times = kind == "learned_range", 6 if kind == "learned_range" else 3, visited(steps)

    def predict(x: Tensor, t: int, last: bool) -> Tensor:
        assert last == (t == 0)
        return torch.cat([x, x.roll(1, 1)], 1)[:, :channels].sin() * (1 + t / 1000)

    scheduler = UnCLIPScheduler(variance_type=kind)
    signal = alphas_bar("cosine")
    scheduler.betas = 1 - signal / torch.cat([torch.ones(1), signal[:-1]])
    scheduler.alphas, scheduler.alphas_cumprod = 1 - scheduler.betas, signal
    drawn = iter([per_sample_noise((3, 4, 4), [one], "cpu") for one in generators(0) for _ in range(steps)])
    x = next(drawn)
    monkeypatch.setattr(scheduling_unclip, "randn_tensor", lambda *_, **__: next(drawn))
    for i, t in enumerate(times):
        later = times[i + 1] if i + 1 < steps else None
        x = scheduler.step(predict(x, t, later is None), t, x, prev_timestep=later).prev_sample
    found = sample_unclip(Ancestral(learned, 1.0), predict, (3, 4, 4), times, generators(0), CPU)
    assert_close(found, x.float(), depth=NETWORK)


@pytest.mark.parametrize(
    ("guide", "negative", "sampling", "message"),
    [
        ({"embeddings": None}, None, {}, "needs image embeddings"),
        ({"embeddings": torch.zeros(1, 12)}, None, {}, f"reads image embeddings {WIDTH} wide; these are 12 wide"),
        ({}, Guide(torch.zeros(1, 12)), {}, "these are 12 wide"),
        ({}, Guide(torch.zeros(1, WIDTH)), {"guidance_scale": 1.0}, "no effect at guidance scale 1"),
        ({}, None, {"guidance_scale": 0.5}, "at least 1"),
        ({}, None, {"size": (256, 256)}, f"{LARGE} × {LARGE} pixels only: leave the size out"),
        ({}, None, {"sampler": "ddim"}, "leave the sampler out"),
        ({}, None, {"steps": 0}, r"0 steps are not possible; allowed are 1 to 1000"),
        (
            {},
            None,
            {"options": {"super_res_steps": 0}},
            "super_res_steps must be a whole number of at least 1, got 0",
        ),
        ({}, None, {"options": {"super_res_steps": 1001}}, r"1001 steps \(super_res_steps\) are not possible"),
        ({}, None, {"options": {"super_res_steps": 2.5}}, "must be a whole number of at least 1, got 2.5"),
        ({}, None, {"options": {"noise": 1}}, "no option noise; its own are super_res_steps"),
        ({}, None, {"region_strength": 0.4}, "no effect without regions"),
        ({"regions": [[Region("ring", torch.ones(2, 2))]]}, None, {}, "does not contain the phrase 'ring'"),
        ({"regions": [[Region("circle", torch.ones(2, 2))]], "texts": None}, None, {}, "let it read the text"),
        ({"regions": [[Region("circle", torch.ones(2, 2))]], "features": None}, None, {}, "a state for each word"),
    ],
)
def test_what_it_cannot_do_is_said(
    guide: dict[str, Any],
    negative: Guide | None,
    sampling: dict[str, Any],
    message: str,
    decoder: KarloDecoder,
    clip: Clip,
) -> None:
    told = {"embeddings": embeddings(1), "features": clip.encode_text(PROMPTS[:1]), "texts": PROMPTS[:1]} | guide
    with pytest.raises(UserError, match=message):
        decoder.generate(Guide(**told), generators(0), negative=negative, sampling=Sampling(**sampling))


def half() -> Tensor:
    mask = torch.zeros(16, 24)
    mask[:, :12] = 1
    return mask


def test_laws_of_painting(decoder: KarloDecoder, clip: Clip) -> None:
    """Strength 0 changes no bit; a region has a place; neighbours, and what is moved away from, have no part in it."""
    features = clip.encode_text(PROMPTS)
    sampling = Sampling(steps=3, options={"super_res_steps": 2})

    def paint(*regions: list[Region], rows: tuple[int, ...] = (0, 1), strength: float = 3.0) -> Tensor:
        told = Guide(embeddings(), features, PROMPTS, regions or None)[list(rows)]
        own = sampling if not regions else replace(sampling, region_strength=strength)
        return decoder.generate(told, generators(*rows), sampling=own)

    left, right = Region("circle", half()), Region("circle", half().flip(1))
    plain = paint()
    assert torch.equal(paint([left], [], strength=0.0), plain)
    assert torch.equal(paint([Region("circle", half(), 0.0)], []), plain)
    painted = paint([left], [])
    assert (painted[0] - plain[0]).abs().max() > 5 * LEVEL
    assert (painted[1] - plain[1]).abs().max() < LEVEL
    assert (paint([right], [])[0] - painted[0]).abs().max() > 5 * LEVEL
    assert (paint([left], [], rows=(0,))[0] - painted[0]).abs().max() < LEVEL


def test_the_bias_is_on_the_words_keys_alone(
    decoder: KarloDecoder, clip: Clip, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four tokens of the image come before them, the picture's own keys after; the branch to move away from has none."""
    seen: list[tuple[paint.RegionBias, Tensor, Tensor]] = []
    real = paint.attention

    def watched(q: Tensor, k: Tensor, v: Tensor, painting: paint.RegionBias, mask: Tensor | None = None) -> Tensor:
        keys = torch.eye(k.shape[2]).expand(*k.shape[:2], -1, -1)
        nothing = replace(painting, level=torch.zeros_like(painting.level))
        seen.append((painting, real(q, k, keys, painting, mask), real(q, k, keys, nothing, mask)))
        return real(q, k, v, painting, mask)

    monkeypatch.setattr(paint, "attention", watched)
    features = clip.encode_text(PROMPTS[:1])
    guide = Guide(embeddings(1), features, PROMPTS[:1], [[Region("circle", half())]])
    decoder.generate(
        guide, generators(0), sampling=Sampling(steps=1, region_strength=2.0, options={"super_res_steps": 1})
    )
    assert len(seen) >= 4
    assert features.spans is not None
    (word,) = (features.spans[0, :, 0] == PROMPTS[0].index("circle")).nonzero()[:, 0].tolist()[:1]
    for painting, painted, plain in seen:
        assert (painting.start, painting.negatives, len(painted)) == (4, 1, 1)
        here = painting.at(painted.shape[2])[0].amax(1) > 0
        gained = (painted - plain)[0]
        assert gained[:, here][..., 4 + word].mean() > 0.01
        assert gained[:, ~here].abs().max() < 1e-5
        others = [i for i in range(gained.shape[-1]) if gained[:, here][..., i].max() > 1e-5]
        assert set(others) <= {4 + i for i in range(77) if painting.weights[0, i].any()}


def test_an_unpainted_row_is_as_it_was(decoder: KarloDecoder, clip: Clip) -> None:
    found: list[Tensor] = []
    hook = decoder.unet.register_forward_hook(lambda _m, _i, output: found.append(output[0].clone()))
    for regions in (None, [[Region("circle", half())]]):
        told = Guide(embeddings(1), clip.encode_text(PROMPTS[:1]), PROMPTS[:1], regions)
        decoder.generate(told, generators(0), sampling=Sampling(steps=1, options={"super_res_steps": 1}))
    hook.remove()
    assert_close(found[0][:1], found[1][:1], depth=NETWORK)
    assert (found[0][1:] - found[1][1:]).abs().max() > 1e-3


def test_prompts_must_fit(decoder: KarloDecoder, clip: Clip) -> None:
    def features(rows: int, tokens: int, width: int) -> TextFeatures:
        return TextFeatures(torch.zeros(rows, tokens, width), torch.ones(rows, tokens).bool(), torch.zeros(rows, width))

    for guide, negative, message in (
        (
            Guide(embeddings(), features(2, 5, 12)),
            None,
            f"whose embeddings are {WIDTH} wide; these features are 12 wide",
        ),
        (Guide(embeddings(), features(2, 78, WIDTH)), None, "78 tokens; Karlo reads at most 77"),
        (Guide(embeddings()), Guide(features=features(3, 5, WIDTH)), "3 prompts for 2 images"),
    ):
        with pytest.raises(UserError, match=message):
            decoder.generate(guide, generators(0, 1), negative=negative)


def broken(folder: Path, tmp_path: Path, change: Callable[[Path], None]) -> Path:
    copied = Path(shutil.copytree(folder, tmp_path / "karlo"))
    change(copied)
    return copied


def set_json(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda f: shutil.rmtree(f / "super_res_last"),
            r"has no super_res_last: Karlo's decoder needs decoder, text_proj",
        ),
        (lambda f: (f / "decoder/config.json").unlink(), r"config\.json is missing"),
        (lambda f: set_json(f / "decoder/config.json", _class_name="UNet2DModel"), "UNet2DConditionModel is needed"),
        (lambda f: set_json(f / "text_proj/config.json", _class_name="X"), "UnCLIPTextProjModel is needed"),
        (lambda f: set_json(f / "text_proj/config.json", colour=1), "setting 'colour'"),
        (lambda f: set_json(f / "text_proj/config.json", time_embed_dim=32), "do not fit TextProjection"),
        (lambda f: set_json(f / "decoder/config.json", cross_attention_dim=32), "do not fit UNet2DConditionModel"),
        (
            lambda f: set_json(f / "decoder_scheduler/scheduler_config.json", _class_name="DDIM"),
            "_class_name is 'DDIM'",
        ),
        (lambda f: set_json(f / "decoder_scheduler/scheduler_config.json", variance_type="x"), "variance_type is 'x'"),
        (lambda f: set_json(f / "super_res_scheduler/scheduler_config.json", prediction_type="sample"), "'epsilon'"),
        (
            lambda f: set_json(f / "super_res_scheduler/scheduler_config.json", variance_type="learned_range"),
            "super_res_first reads and makes 6 and 3 channels; with its scheduler 6 and 6",
        ),
        (
            lambda f: set_json(f / "super_res_last/config.json", sample_size=32),
            "super_res_first and super_res_last work on images of different sizes",
        ),
        (
            lambda f: (f / "super_res_first/diffusion_pytorch_model.safetensors").rename(
                f / "super_res_first/diffusion_pytorch_model.bin"
            ),
            "only as pickle",
        ),
    ],
)
def test_a_broken_folder_is_told(
    change: Callable[[Path], None], message: str, karlo: Tiny, clip: Clip, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        load(broken(karlo.decoder, tmp_path, change), clip)


def test_its_width_is_known_without_its_weights(karlo: Tiny, tmp_path: Path) -> None:
    assert (
        KarloDecoder.embedding_width(
            broken(karlo.decoder, tmp_path, lambda f: [p.unlink() for p in f.rglob("*.safetensors")])
        )
        == WIDTH
    )


def test_its_own_saved_pipeline_does_not_load(karlo: Tiny) -> None:
    """Why the parts are loaded one by one: should this begin to work, the way is open for diffusers' own loading."""
    from diffusers import DiffusionPipeline

    with pytest.raises((ValueError, ImportError, AttributeError, OSError)):
        DiffusionPipeline.from_pretrained(karlo.decoder, local_files_only=True)


@pytest.mark.parametrize("kind", ["learned_range", "fixed_small_log"])
@pytest.mark.parametrize("steps", [1, 2, 997, 999, 1000])
def test_any_number_of_steps_leads_from_noise_to_the_picture(kind: Any, steps: int) -> None:
    """With a network that knows one picture only."""
    times, signal, target = visited(steps), alphas_bar("cosine"), torch.full((3, 2, 2), 0.5)
    assert (times[0], len(times), times) == (999, steps, sorted(set(times), reverse=True))

    def predict(x: Tensor, t: int, last: bool) -> Tensor:
        eps = (x - signal[t].sqrt() * target) / (1 - signal[t]).sqrt()
        return torch.cat([eps, torch.zeros_like(eps)], 1).float() if kind == "learned_range" else eps.float()

    found = sample_unclip(Ancestral(kind == "learned_range", 1.0), predict, (3, 2, 2), times, generators(0), CPU)
    assert (found - target).abs().max() < 0.02
