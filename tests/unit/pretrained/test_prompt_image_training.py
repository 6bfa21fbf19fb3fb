"""Stages image and quality of an adapter for a Stable Diffusion: the diffusion loss, what is trained, resuming, refusing."""

import json
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from syzygy.core import artifacts
from syzygy.core.contracts import TextStates
from syzygy.core.errors import UserError
from syzygy.core.randomness import generator
from syzygy.generation.prompt_encoder import PromptEncoder
from syzygy.generation.text_to_image import TextToImage
from syzygy.pretrained.captioned_latents import Steps
from syzygy.pretrained.latent_cache import Latents
from syzygy.pretrained.presets import IMAGE_PRESETS, QUALITY_PRESETS
from syzygy.pretrained.prompt_diffusion import (
    DescribedLatents,
    DescribedLatentsSource,
    DiffusionStage,
    PromptImageTaskConfig,
)
from syzygy.pretrained.prompt_image_training import PromptImageRun
from syzygy.pretrained.unet_training import load_unet, training_noise
from syzygy.text_encoders.adapter import TextAdapter
from syzygy.text_encoders.feature_cache import CacheFolder
from syzygy.text_encoders.presets import PROMPT_PRESETS
from syzygy.text_encoders.prompt_training import with_timesteps
from syzygy.training.loop import Interrupted
from tests.closeness import NETWORK, assert_close
from tests.tiny_prompt_images import MODELS, differ, save_places, settings, tensors, train

pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation:DeprecationWarning"
)  # diffusers' own arithmetic


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_places(tmp_path_factory.mktemp("prompt-images"), *MODELS)


def generated(places: Path, name: str, adapter: Path) -> bytes:
    model = TextToImage.from_pretrained(places / name, text_encoder=adapter)
    made = model("ein roter Kreis", num_inference_steps=2, generator=torch.Generator().manual_seed(0))
    return made.images[0].tobytes()


@pytest.mark.parametrize("name", MODELS)
def test_the_adapter_alone_learns_with_a_frozen_unet(places: Path, tmp_path: Path, name: str) -> None:
    record = train(places, name, settings(), tmp_path)
    assert (record["stage"], record["trains"], record["languages"]) == ("image", "adapter", ["en", "de"])
    assert record["metrics"].keys() == {"loss", "loss_other"}
    assert [one["stage"] for one in record["lineage"]] == ["align"]
    assert {path.name for path in tmp_path.iterdir()} >= {"adapter", "latents"}
    assert not (tmp_path / "unet").exists()
    assert not (tmp_path / "lora").exists()
    before = places / f"align-{name}" / "adapter"
    changed = differ(tmp_path / "adapter", before)
    assert {"queries", "states_head.weight", "proj_in.weight"} <= changed
    assert ("pooled_head.weight" in changed) == (name == "xl")
    assert not {key for key in changed if key.endswith(("_mean", "_std"))}
    after = generated(places, name, tmp_path)
    assert after != generated(places, name, before.parent)
    assert after == generated(places, name, tmp_path)


@pytest.mark.parametrize("name", MODELS)
def test_a_lora_of_the_cross_attention_learns_too(places: Path, tmp_path: Path, name: str) -> None:
    base = tensors(places / name / "unet")
    record = train(places, name, settings("lora"), tmp_path)
    assert record["trains"] == "lora"
    found = tensors(tmp_path / "lora")
    assert found
    assert all("/attn2/" in key for key in found)
    assert all(x.any() for key, x in found.items() if key.endswith("up")), "they begin as zeros"
    assert differ(tmp_path / "adapter", places / f"align-{name}" / "adapter")
    assert all(torch.equal(x, base[key]) for key, x in tensors(places / name / "unet").items())

    with_lora = TextToImage.from_pretrained(places / name, text_encoder=tmp_path)
    unet: Any = with_lora.pipeline.decoder.unet  # type: ignore[attr-defined]
    layers = {key.removesuffix(".up").replace("/", ".").removeprefix("updates.") for key in found if key.endswith("up")}
    for key, x in unet.state_dict().items():
        assert torch.equal(x, base[key]) == (key.removesuffix(".weight") not in layers), key
    assert with_lora.adapter["unet"] == record["trained_unet"]
    assert generated(places, name, tmp_path) == generated(places, name, tmp_path)
    with pytest.warns(UserWarning, match="also trained the U-Net. A pipeline needs what it learned"):
        PromptEncoder.from_pretrained(tmp_path)


@pytest.mark.parametrize("name", MODELS)
def test_the_whole_unet_learns_too_and_the_adapter_may_be_frozen(places: Path, tmp_path: Path, name: str) -> None:
    record = train(places, name, settings("unet", frozen="adapter", perturbation=0.1), tmp_path)
    assert record["trains"] == "unet"
    assert not differ(tmp_path / "adapter", places / f"align-{name}" / "adapter")
    changed = differ(tmp_path / "unet", places / name / "unet")
    assert {"conv_in.weight", "conv_out.weight", "time_embedding.linear_1.weight"} <= changed
    if name == "xl":
        assert "add_embedding.linear_1.weight" in changed
    loaded = TextToImage.from_pretrained(places / name, text_encoder=tmp_path).pipeline.decoder.unet  # type: ignore[attr-defined]
    own = tensors(tmp_path / "unet")
    assert all(torch.equal(x, own[key].float()) for key, x in loaded.state_dict().items())
    assert generated(places, name, tmp_path) != generated(places, name, places / f"align-{name}")


@pytest.mark.parametrize("trains", ["adapter", "lora", "unet"])
def test_the_loss_falls(places: Path, tmp_path: Path, trains: str) -> None:
    run = settings(trains, steps=24, lr=1e-2, dropped=0.0)
    run = run.model_copy(update={"loop": run.loop.model_copy(update={"validate_every": 2, "ema_half_life": 0.0})})
    train(places, "v_prediction", run, tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    losses = [line["validation/loss"] for line in lines if "validation/loss" in line]
    assert min(losses[-3:]) < losses[0]


@pytest.mark.parametrize("trains", ["adapter", "lora", "unet"])
def test_interrupted_and_continued_is_the_same(
    places: Path, tmp_path: Path, trains: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "xl" if trains == "lora" else "epsilon"
    train(places, name, settings(trains), tmp_path / "whole")
    read = DescribedLatentsSource.read

    def stopping(self: DescribedLatentsSource, step: int, rows: slice) -> DescribedLatents:
        if step == 2:
            signal.raise_signal(signal.SIGINT)
        return read(self, step, rows)

    monkeypatch.setattr(DescribedLatentsSource, "read", stopping)
    with pytest.raises(Interrupted, match="after step 3 of 4"):
        train(places, name, settings(trains), tmp_path / "parts")
    monkeypatch.undo()
    assert not (tmp_path / "parts" / "adapter").exists()
    train(places, name, settings(trains), tmp_path / "parts")
    for part in {"adapter", trains}:
        one, other = (tensors(tmp_path / run / part) for run in ("whole", "parts"))
        assert all(torch.equal(x, other[key]) for key, x in one.items())
    with pytest.raises(UserError, match="perturbation"):
        train(places, name, settings(trains, perturbation=0.5), tmp_path / "parts")


def test_a_batch_in_parts_and_features_from_a_cache(places: Path, tmp_path: Path) -> None:
    train(places, "xl", settings("lora"), tmp_path / "whole")
    train(places, "xl", settings("lora", micro_batch=3), tmp_path / "parts")
    record = train(places, "xl", settings("lora"), tmp_path / "cached", cache=CacheFolder(tmp_path / "features"))
    assert record["cached"] == {"llm": "fp16"}
    whole = tensors(tmp_path / "whole" / "lora")
    for run in ("parts", "cached"):
        for key, x in tensors(tmp_path / run / "lora").items():
            torch.testing.assert_close(x.float(), whole[key].float(), atol=5e-3, rtol=5e-3)


def batches(
    places: Path, name: str, *, zeros: bool, flat: bool = False, **task: Any
) -> tuple[DescribedLatentsSource, DiffusionStage]:
    """Six images of noise, or each of one colour, and a stage that trains the U-Net, in memory."""

    class Kept(Latents):
        def __init__(self) -> None:
            self.captions = [(f"ein Kreis {i}",) for i in range(6)]
            self.same_picture = [*range(6)]

        def sampled(self, pictures: Any, *key: int | str) -> Tensor:
            every = torch.randn(6, 4, 8, 8, generator=generator(0, "images"))
            return (every[:, :, :1, :1].expand_as(every) if flat else every)[list(pictures)]

        def extras(self, pictures: Any) -> dict[str, Tensor]:
            places = torch.tensor([[40.0 + i, 30.0, 1.0, i, 16.0, 16.0] for i in range(6)])
            return {"place": places[list(pictures)]} if name == "xl" else {}

    class Texts:
        width = 32

        def encode_states(self, texts: list[str]) -> TextStates:
            rows = [torch.randn(3, llm_width, generator=generator(0, text)) for text in texts]
            return TextStates(torch.stack(rows), torch.ones(len(texts), 3, dtype=torch.bool))

    adapter = TextAdapter.from_pretrained(places / f"align-{name}" / "adapter")
    llm_width = adapter.config.llm_width
    config = PromptImageTaskConfig(batch_size=6, **task)
    noise = training_noise(places / name)
    source = DescribedLatentsSource(
        Steps(Kept(), [*range(6)], config, 0),
        [4, 5],
        Texts(),
        len(noise.kept),
        torch.device("cpu"),
        config,
        zeros=zeros,
    )
    unet = load_unet(places / name / "unet").requires_grad_(True)
    return source, DiffusionStage(adapter, unet, noise, config)


@pytest.mark.parametrize("name", MODELS)
def test_the_loss_is_that_of_diffusers_schedulers(places: Path, name: str) -> None:
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

    source, stage = batches(places, name, zeros=name == "xl", dropped=0.5)
    batch = source.read(1, slice(0, 6))
    scheduler = DDPMScheduler.from_pretrained(places / name / "scheduler")
    noisy = scheduler.add_noise(batch.latents, batch.noise, batch.timesteps)
    velocity = name == "v_prediction"
    expected = scheduler.get_velocity(batch.latents, batch.noise, batch.timesteps) if velocity else batch.noise
    found = stage.adapter.embed_prompts(batch.text.states, batch.text.mask)
    states, more = found.states.clone(), {}
    if name == "xl":
        assert found.pooled is not None
        assert batch.place is not None
        assert 0 < int(batch.given.sum()) < 6
        states[~batch.given], pooled = 0, found.pooled.clone()
        pooled[~batch.given] = 0
        more = {"added_cond_kwargs": {"text_embeds": pooled, "time_ids": batch.place}}
        assert batch.place[0, :2].tolist() != batch.place[1, :2].tolist()
    else:
        assert batch.given.all(), "the empty text goes through the adapter"
    unet: Any = stage.modules["unet"]
    predicted = unet(noisy, batch.timesteps, states, return_dict=False, **more)[0]
    assert_close(stage.losses(batch)["loss"], (predicted - expected).square().mean(), depth=NETWORK)


def test_xls_pooled_embedding_and_time_ids_have_an_effect(places: Path) -> None:
    source, stage = batches(places, "xl", zeros=True, dropped=0.0)
    batch = source.read(0, slice(0, 6))
    loss = stage.losses(batch)["loss"]
    loss.backward()
    gradient = stage.adapter.pooled_head.weight.grad
    assert gradient is not None
    assert gradient.abs().sum() > 0
    assert batch.place is not None
    assert stage.losses(replace(batch, place=batch.place + 100))["loss"] != loss


class Believing(nn.Module):
    """A frozen network that takes the mean text state for the image's colour, and so predicts noise as well as the adapter describes."""

    def __init__(self, kept: Tensor) -> None:
        super().__init__()
        self.kept = kept

    def forward(self, noisy: Tensor, timesteps: Tensor, return_dict: bool, *, encoder_hidden_states: Tensor) -> Any:
        share = self.kept[timesteps][:, None, None, None].float()
        colour = encoder_hidden_states.mean(1)[:, :4, None, None]
        return ((noisy - share.sqrt() * colour) / (1 - share).sqrt(),)


def test_the_adapter_alone_learns_to_describe_images_to_a_frozen_network(places: Path) -> None:
    source, stage = batches(places, "epsilon", zeros=False, flat=True, dropped=0.0)
    noise = training_noise(places / "epsilon")
    alone = DiffusionStage(stage.adapter, Believing(noise.kept), noise, stage.config)
    assert [*alone.modules] == ["adapter"]
    before = alone.validated(source.unseen())
    optimizer = torch.optim.AdamW(alone.adapter.parameters(), lr=1e-2)
    for step in range(200):
        optimizer.zero_grad()
        alone.losses(source.read(step, slice(0, 6)))["loss"].backward()
        torch.nn.utils.clip_grad_norm_(alone.adapter.parameters(), 1.0)
        optimizer.step()
    after = alone.validated(source.unseen())
    assert after["loss"] < before["loss"] / 4
    assert after["loss_other"] > 5 * after["loss"], "the caption of another image describes it badly"


class Mirroring(Believing):
    """The same, but in the three noisier quarters of the timesteps it takes the state's negative for the colour."""

    def forward(self, noisy: Tensor, timesteps: Tensor, return_dict: bool, *, encoder_hidden_states: Tensor) -> Any:
        sign = torch.where(timesteps < len(self.kept) // 4, 1.0, -1.0)[:, None, None]
        return super().forward(noisy, timesteps, return_dict, encoder_hidden_states=encoder_hidden_states * sign)


def test_a_timestep_aware_adapter_learns_what_another_cannot(places: Path) -> None:
    """ELLA's reason: a U-Net asks for other things in its first steps than in its last."""
    source, stage = batches(places, "epsilon", zeros=False, flat=True, dropped=0.0)
    noise, after = training_noise(places / "epsilon"), {}
    for name, adapter in (("plain", stage.adapter), ("aware", with_timesteps(stage.adapter, 0))):
        alone = DiffusionStage(adapter, Mirroring(noise.kept), noise, stage.config)
        optimizer = torch.optim.AdamW(adapter.parameters(), lr=1e-2)
        losses = []
        for step in range(200):
            optimizer.zero_grad()
            loss = alone.losses(source.read(step, slice(0, 6)))["loss"]
            loss.backward()
            torch.nn.utils.clip_grad_norm_(adapter.parameters(), 1.0)
            optimizer.step()
            losses.append(loss.item())
        after[name] = sum(losses[-50:])
    assert after["aware"] < after["plain"] / 3, after


@pytest.mark.parametrize("trains", ["adapter", "lora"])
def test_activations_computed_again_in_bf16(places: Path, tmp_path: Path, trains: str) -> None:
    """As the preset trains on a GPU; the result is near that in fp32."""
    whole, half = tmp_path / "whole", tmp_path / "half"
    train(places, "xl", settings(trains, checkpointing=False, lr=1e-4), whole)
    train(places, "xl", settings(trains, precision="bf16", lr=1e-4), half)
    before = tensors(places / "align-xl" / "adapter")
    one, other = tensors(whole / "adapter"), tensors(half / "adapter")
    moves = [torch.cat([(x[key].float() - before[key].float()).flatten() for key in one]) for x in (one, other)]
    assert torch.cosine_similarity(moves[0], moves[1], dim=0) > 0.8


def test_perturbation_is_added_and_not_predicted(places: Path) -> None:
    plain, _ = batches(places, "epsilon", zeros=False)
    perturbed, _ = batches(places, "epsilon", zeros=False, perturbation=0.1)
    one, other = (source.read(0, slice(2, 6)) for source in (plain, perturbed))
    assert torch.equal(one.added, one.noise)
    assert torch.equal(one.noise, other.noise)
    assert_close((other.added - other.noise).std(), torch.tensor(0.1), depth=500_000)


def test_quality_continues_what_image_trained(places: Path, tmp_path: Path) -> None:
    image, quality = tmp_path / "image", tmp_path / "quality"
    train(places, "epsilon", settings("lora"), image)
    record = train(places, "epsilon", settings(frozen="adapter"), quality, start=image, stage="quality")
    assert (record["stage"], record["trains"]) == ("quality", "lora")
    assert [one["stage"] for one in record["lineage"]] == ["align", "image"]
    assert not differ(quality / "adapter", image / "adapter")
    assert differ(quality / "lora", image / "lora")
    with pytest.raises(
        UserError, match="trained with trains=lora, and its adapter needs that; trains=unet would lose it"
    ):
        train(places, "epsilon", settings("unet"), tmp_path / "other", start=image, stage="quality")


def test_wrong_input(places: Path, tmp_path: Path) -> None:
    other = shutil.copytree(places / "epsilon", tmp_path / "other")
    (file,) = (other / "unet").glob("*.safetensors")
    artifacts.write_tensors(file, {name: x + 0.1 for name, x in tensors(other / "unet").items()})
    (tmp_path / "images").symlink_to(places / "images")
    image = tmp_path / "image"
    train(places, "epsilon", settings("lora"), image)
    unets = r"also trained the U-Net of .*epsilon \(trains=lora\); .*other has another U-Net"
    with pytest.raises(UserError, match=unets):
        TextToImage.from_pretrained(other, text_encoder=image)
    with pytest.raises(UserError, match=unets):
        train(tmp_path, "other", settings(), tmp_path / "out", start=image, stage="quality")
    cases: list[tuple[str, str, PromptImageRun, dict[str, Any]]] = [
        ("of stage 'align'; stage 'quality' continues from image or quality", "xl", settings(), {"stage": "quality"}),
        ("for a stable-diffusion-2 .*; .*xl is a stable-diffusion-xl", "xl", settings(), {"start": places / "align-epsilon"}),
        ("leaves nothing to train with a frozen U-Net", "xl", settings(frozen="adapter"), {}),
        ("no linear or convolution layer", "xl", settings("lora").model_copy(update={"layers": "nowhere"}), {}),
        ("multiples of 2", "xl", settings().model_copy(update={"size": 15}), {}),
        ("leaves none of the 12 pictures", "xl", settings().model_copy(update={"validation_pictures": 12}), {}),
    ]  # fmt: skip
    for message, name, run, more in cases:
        with pytest.raises(UserError, match=message):
            train(places, name, run, tmp_path / "out", **more)


def test_every_family_has_presets() -> None:
    assert IMAGE_PRESETS.keys() == QUALITY_PRESETS.keys() == PROMPT_PRESETS.keys()
    image, quality = IMAGE_PRESETS["stable-diffusion-xl"](), QUALITY_PRESETS["stable-diffusion-xl"]()
    assert quality.loop.lr < image.loop.lr
    assert quality.loop.steps < image.loop.steps
