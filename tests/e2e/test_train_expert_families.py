"""Experts of Kandinsky 2.2's decoder and of Stable Diffusion XL from the command line, then painting in diffusers and here."""

from pathlib import Path
from typing import Any

import pytest
import torch

from syzygy.experts.expert_unets import ExpertUNet
from syzygy.generation.text_to_image import TextToImage
from tests.tiny_unclip import Tiny
from tests.tiny_xl import tiny_xl

SMALL = (
    "task.batch_size=2", "task.checkpointing=false", "loop.steps=3", "loop.validate_every=0", "loop.warmup=0", "loop.lr=0.05",
    "validation_pictures=0", "size=16", "rank=2", "--leaves", "E1_0,E1_1",
)  # fmt: skip


def replaced(pipe: Any, run: Path, **asked: Any) -> None:
    """The trained experts take the U-Net's place, each at its noise levels, and paint another picture."""
    pipe.set_progress_bar_config(disable=True)

    def painted() -> torch.Tensor:
        return pipe(num_inference_steps=4, generator=torch.Generator().manual_seed(0), output_type="pt", **asked).images

    alone = painted()
    pipe.unet = ExpertUNet.from_pretrained(run)
    served: dict[str, list[int]] = {}
    for name, expert in pipe.unet.denoisers.items():

        def note(module: Any, inputs: Any, more: Any, name: str = name) -> None:
            served.setdefault(name, []).append(int(more.get("timestep", inputs[1] if len(inputs) > 1 else None)))

        expert.register_forward_pre_hook(note, with_kwargs=True)
    together = painted()
    assert (together - alone).abs().max() > 0.01
    timesteps = [int(t) for t in pipe.scheduler.timesteps]
    assert served == {"E1_1": [t for t in timesteps if t >= 500], "E1_0": [t for t in timesteps if t < 500]}
    assert all(served.values())


def test_kandinsky(syzygy: Any, tiny_kandinsky: Tiny, tmp_path: Path) -> None:
    from diffusers.pipelines.kandinsky2_2.pipeline_kandinsky2_2 import KandinskyV22Pipeline

    model, data, run = tiny_kandinsky.decoder, tmp_path / "data", tmp_path / "run"
    assert syzygy("world", "sample", "--num", 6, "--out", data).code == 0
    command = ("train", "experts", "--model", model, "--data", data, "--out", run, *SMALL)
    refused = syzygy(*command)
    assert refused.code == 2
    assert "give --clip" in refused.err
    answer = syzygy(*command, "--clip", tiny_kandinsky.clip)
    assert answer.code == 0, answer.err

    def ours(**more: Any) -> bytes:
        own = TextToImage.from_pretrained(model, prior=tiny_kandinsky.prior, clip=tiny_kandinsky.clip, **more)
        random = torch.Generator().manual_seed(0)
        return own("a red circle", num_inference_steps=3, generator=random).images[0].tobytes()

    assert ours(experts=run) != ours()
    embedding = torch.randn(1, 32, generator=torch.Generator().manual_seed(0))
    pipe = KandinskyV22Pipeline.from_pretrained(model)
    replaced(pipe, run, image_embeds=embedding, negative_image_embeds=torch.zeros_like(embedding), height=64, width=64)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers' Euler in numpy 2
def test_stable_diffusion_xl(syzygy: Any, tmp_path: Path) -> None:
    from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import StableDiffusionXLPipeline

    model, data, run = tiny_xl(tmp_path / "model"), tmp_path / "data", tmp_path / "run"
    assert syzygy("world", "sample", "--num", 6, "--out", data).code == 0
    answer = syzygy("train", "experts", "--model", model, "--data", data, "--out", run, *SMALL)
    assert answer.code == 0, answer.err
    replaced(StableDiffusionXLPipeline.from_pretrained(model, add_watermarker=False), run, prompt="a red circle")


def test_a_clip_without_effect(syzygy: Any, tmp_path: Path) -> None:
    answer = syzygy("train", "experts", "--clip", "starter", "--out", tmp_path / "run")
    assert answer.code == 2
    assert "--clip has no effect without --data" in answer.err
