"""Experts of a diffusers U-Net from the command line, then in a diffusers pipeline."""

import json
from pathlib import Path

import torch

from syzygy.experts.expert_unets import ExpertUNet
from tests.tiny_stable_diffusion import tiny_stable_diffusion

SMALL = (
    "task.batch_size=2", "loop.steps=3", "loop.validate_every=3", "loop.warmup=0", "loop.checkpoint_every=2", "loop.lr=0.05",
    "size=16", "rank=2",
)  # fmt: skip


def test_trained_and_painting(syzygy, tmp_path: Path) -> None:
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline

    model, data, run = tiny_stable_diffusion(tmp_path / "model"), tmp_path / "data", tmp_path / "run"
    assert syzygy("world", "sample", "--num", 8, "--out", data).code == 0
    command = ("train", "experts", "--model", model, "--data", data, "--out", run, "--leaves", "E1_0,E1_1", *SMALL)
    answer = syzygy(*command)
    assert answer.code == 0, answer.err
    assert "latents of 8 pictures" in answer.err
    assert "2/2  E1_1" in answer.err
    assert f"validation_pictures is 1 instead of the preset's 16, to fit the 8 pictures in {data}." in answer.err
    assert f"Trained: {run / 'experts'}" in answer.out
    assert "E1_0: done before" in syzygy(*command).err

    pipe = StableDiffusionPipeline.from_pretrained(model, safety_checker=None)
    pipe.set_progress_bar_config(disable=True)

    def painted() -> torch.Tensor:
        random = torch.Generator().manual_seed(0)
        found = pipe("a red circle", num_inference_steps=4, generator=random, output_type="pt")
        return found.images

    alone = painted()
    pipe.unet = ExpertUNet.from_pretrained(run / "experts")
    served: dict[str, list[int]] = {}
    for name, expert in pipe.unet.denoisers.items():
        expert.register_forward_pre_hook(
            lambda module, inputs, name=name: served.setdefault(name, []).append(int(inputs[1]))
        )
    together = painted()
    assert (together - alone).abs().max() > 0.01
    timesteps = pipe.scheduler.timesteps.tolist()
    assert served == {"E1_1": [t for t in timesteps if t >= 500], "E1_0": [t for t in timesteps if t < 500]}
    assert all(served.values())


def test_wrong_input(syzygy, tmp_path: Path) -> None:
    (tmp_path / "unet").mkdir()
    (tmp_path / "metadata.jsonl").write_text("")
    out = ("--out", tmp_path / "run")
    for arguments, message in (
        (("--data", tmp_path, *out), "there is no folder starter"),
        (("--model", tmp_path, *out), "give the captioned images to train on with --data"),
        (("--model", tmp_path, "--data", tmp_path, *out), "has no vae, scheduler, text_encoder, tokenizer"),
        (("--data", tmp_path, "--leaves", "E1_0", 'leaves=["E1_1"]', *out), "say the same"),
        (("--data", tmp_path, "--preset", "starter", *out), "Known: full, lora"),
        (("--data", tmp_path / "none", "--model", tmp_path, *out), "there is no"),
    ):
        answer = syzygy("train", "experts", *arguments)
        assert (answer.code, answer.out) == (2, "")
        assert message in answer.err


def test_the_form_chooses_the_settings(syzygy) -> None:
    def settings(*arguments: object) -> dict[str, object]:
        answer = syzygy("train", "experts", *arguments, "--settings", "--json")
        return {name: one["value"] for name, one in json.loads(answer.out).items()}

    lora, full = settings("--data", "x"), settings("--data", "x", "--form", "full", "--leaves", "E1_0, E1_1")
    assert (lora["form"], full["form"]) == ("lora", "full")
    assert lora["loop.lr"] == 10 * full["loop.lr"]
    assert full["leaves"] == ["E1_0", "E1_1"]
    assert settings("--form", "lora")["form"] == "lora"
