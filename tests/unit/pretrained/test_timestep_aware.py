"""Timestep-aware adapters for Stable Diffusion: trained by stage image, used in generation, refused where they do not fit."""

import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from syzygy.core.contracts import Region
from syzygy.core.errors import UserError
from syzygy.core.prompt_embeddings import PromptEmbeddings, TimedPrompts
from syzygy.generation.prompt_encoder import PromptEncoder
from syzygy.generation.replaced_text_encoder import adapt
from syzygy.generation.text_to_image import TextToImage
from syzygy.pretrained.prompt_diffusion import DescribedLatents, DescribedLatentsSource
from syzygy.text_encoders.adapted_prompts import AdaptedPrompts, load_adapted_prompts
from syzygy.text_encoders.adapter import TextAdapter
from syzygy.training.loop import Interrupted
from tests.tiny_prompt_images import differ, save_places, settings, tensors, train

PROMPT, NEGATIVE = "ein roter Kreis", "ein blauer Ring"
KINDS = ("epsilon", "xl")
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a timestep-aware adapter of each model, `aware-NAME`, whose states change much with the timestep."""
    folder = save_places(tmp_path_factory.mktemp("timestep-aware"), *KINDS)
    for name in KINDS:
        train(folder, name, settings(timestep_aware=True), folder / f"image-{name}")
        changed = TextAdapter.from_pretrained(folder / f"image-{name}" / "adapter")
        assert changed.time is not None
        torch.manual_seed(0)
        for parameter in changed.time.parameters():
            torch.nn.init.normal_(parameter, std=0.5)
        provenance = {"llm": {}, "text_encoders": {}} | _record(folder / f"image-{name}")
        changed.save_pretrained(folder / f"aware-{name}" / "adapter", provenance)
    return folder


def _record(run: Path) -> dict[str, Any]:
    from syzygy.core import artifacts

    return artifacts.read_json(run / "adapter" / artifacts.PROVENANCE_FILE)


@pytest.mark.parametrize("name", KINDS)
def test_stage_image_trains_it_and_the_artefact_says_so(places: Path, name: str) -> None:
    run = places / f"image-{name}"
    assert _record(run)["recipe"]["timestep_aware"] is True
    found = tensors(run / "adapter")
    before = tensors(places / f"align-{name}" / "adapter")
    time = {key: x for key, x in found.items() if key not in before}
    assert time
    assert all(key.startswith("time.") for key in time)
    begun_as_zeros = {key: x for key, x in time.items() if not key.startswith("time.embed")}
    assert all(x.any() for x in begun_as_zeros.values())
    assert not torch.equal(found["queries"], before["queries"].half())


def images(model: TextToImage, negative: str | None, **more: Any) -> Any:
    seeds = [torch.Generator().manual_seed(5)]
    made = model(PROMPT, negative_prompt=negative, num_inference_steps=3, guidance_scale=4.0, generator=seeds, **more)
    return np.asarray(made.images[0]).astype(int)


@pytest.mark.parametrize("negative", [None, NEGATIVE])
@pytest.mark.parametrize("name", KINDS)
def test_the_picture_that_diffusers_makes_of_the_embeddings_of_each_step(
    places: Path, name: str, negative: str | None
) -> None:
    """diffusers' pipeline gets other embeddings before each step by its callback; positive and negative ones change alike."""
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline

    made = images(TextToImage.from_pretrained(places / name, text_encoder=places / f"aware-{name}"), negative)
    pipeline: Any = DiffusionPipeline.from_pretrained(places / name, low_cpu_mem_usage=False, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    encoder = load_adapted_prompts(places / f"aware-{name}")
    texts = encoder.encode_states([negative or "", PROMPT])
    pipeline.scheduler.set_timesteps(3)
    plan = list(pipeline.scheduler.timesteps)

    def at(step: int) -> PromptEmbeddings:
        found = encoder.adapter.embed_prompts(texts.states, texts.mask, plan[step].expand(2))  # type: ignore[call-arg]
        if negative is None and name == "xl":
            found.states[0] = 0
            found.pooled[0] = 0  # type: ignore[index]
        return found

    def callback(_: Any, step: int, t: Tensor, given: dict[str, Tensor]) -> dict[str, Tensor]:
        if step + 1 == len(plan):
            return given
        found = at(step + 1)
        assert not torch.equal(found.states, given["prompt_embeds"])
        more = {} if found.pooled is None else {"add_text_embeds": found.pooled}
        return {"prompt_embeds": found.states, **more}

    with torch.no_grad():
        first = at(0)
        names = ["prompt_embeds"] + (["add_text_embeds"] if name == "xl" else [])
        pooled = {} if first.pooled is None else {
            "pooled_prompt_embeds": first.pooled[1:], "negative_pooled_prompt_embeds": first.pooled[:1],
        }  # fmt: skip
        own = pipeline(
            prompt_embeds=first.states[1:],
            negative_prompt_embeds=first.states[:1],
            num_inference_steps=3,
            guidance_scale=4,
            generator=torch.Generator().manual_seed(5),
            callback_on_step_end=callback,
            callback_on_step_end_tensor_inputs=names,
            **pooled,
        ).images[0]
    assert np.abs(made - np.asarray(own).astype(int)).max() <= 1
    constant = images(TextToImage.from_pretrained(places / name, text_encoder=places / f"align-{name}"), negative)
    assert np.abs(made - constant).max() > 2


def test_offloaded_it_gives_the_same(places: Path) -> None:
    """The language model visits once, and the adapter at each step."""
    plain = TextToImage.from_pretrained(places / "xl")
    found = [
        adapt(plain.pipeline, lambda: plain.clip, places / "xl", places / "aware-xl", offload=offload).pipeline.decoder
        for offload in (False, True)
    ]
    read = [decoder.reader([PROMPT, NEGATIVE]) for decoder in found]  # type: ignore[attr-defined]
    assert all(isinstance(one, TimedPrompts) for one in read)
    for timestep in (torch.tensor(901), torch.tensor(1)):
        one, other = (each.at(timestep) for each in read)
        assert torch.equal(one.states, other.states)
        assert torch.equal(one.pooled, other.pooled)


def test_interrupted_and_continued_is_the_same(places: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, read = settings(timestep_aware=True), DescribedLatentsSource.read

    def stopping(self: DescribedLatentsSource, step: int, rows: slice) -> DescribedLatents:
        if step == 2:
            signal.raise_signal(signal.SIGINT)
        return read(self, step, rows)

    monkeypatch.setattr(DescribedLatentsSource, "read", stopping)
    with pytest.raises(Interrupted, match="after step 3 of 4"):
        train(places, "epsilon", run, tmp_path)
    monkeypatch.undo()
    train(places, "epsilon", run, tmp_path)
    whole = tensors(places / "image-epsilon" / "adapter")
    assert all(torch.equal(x, whole[key]) for key, x in tensors(tmp_path / "adapter").items())


def test_stage_quality_continues_it(places: Path, tmp_path: Path) -> None:
    before = places / "image-epsilon"
    train(places, "epsilon", settings(), tmp_path, start=before, stage="quality")
    assert TextAdapter.from_pretrained(tmp_path / "adapter").timestep_aware
    assert any(key.startswith("time.blocks") for key in differ(tmp_path / "adapter", before / "adapter"))


def test_what_is_refused(places: Path, tmp_path: Path) -> None:
    constant = settings(timestep_aware=False)
    with pytest.raises(UserError, match="is timestep-aware; timestep_aware=false would lose what it learned"):
        train(places, "epsilon", constant, tmp_path / "out", start=places / "image-epsilon", stage="quality")
    with pytest.raises(UserError, match=r"timestep_aware=true has no effect with task\.frozen=adapter"):
        train(places, "epsilon", settings("lora", timestep_aware=True, frozen="adapter"), tmp_path / "out")
    with pytest.raises(
        UserError, match="timestep-aware, so its embeddings change at each denoising step, and a diffusers"
    ):
        PromptEncoder.from_pretrained(places / "aware-epsilon")
    model = TextToImage.from_pretrained(places / "epsilon", text_encoder=places / "aware-epsilon")
    with pytest.raises(UserError, match="the states of an adapter do not belong to single words"):
        model(PROMPT, regions=[Region("roter", torch.ones(4, 4))], num_inference_steps=1)


def test_without_a_timestep_the_reader_gives_a_function_of_it(places: Path) -> None:
    found: AdaptedPrompts = load_adapted_prompts(places / "aware-epsilon")
    assert found.timestep_aware
    read = found([PROMPT, NEGATIVE, PROMPT])
    assert isinstance(read, TimedPrompts)
    early, late = read.at(torch.tensor(951)), read.at(torch.tensor(1.5))
    assert torch.equal(early.states[0], early.states[2])
    assert (early.states - late.states).abs().max() > 0.01
